"""Folders of texts with answers, as two benchmarks of language models lay them out: O-LoRA's, and TRACE.

A data set of either is a superclass: a task of its own where ``scenario.increment=null``, chosen and ordered by
``scenario.superclasses``. Its answers are its classes, so that two sets with the same answers have classes of their own; what a
language model is to write is in :attr:`SourceData.answers`. Validation texts of the benchmarks are left alone: O-LoRA's are its
test texts once more. ``scenario.validation`` cuts some from the training texts.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.instruction_sources import prompt
from clbench.data.location import data_folder, require
from clbench.data.text import note_of_cut, text_set
from clbench.errors import DataError
from clbench.registry import SOURCES

CLIPPED = 1500
"""Characters of a text of ``text_cl`` that are shown at most: about the 512 tokens of Wang et al. 2023."""

MOST_ANSWERS = 26
"""A data set with more different answers asks for free text."""

INSTRUCTIONS = {
    "TC": "What is this text about?",
    "SC": "What opinion does this review give?",
    "NLI": "How does the second sentence relate to the first?",
    "QQP": "Do these two questions mean the same?",
    "BoolQA": "Going by the passage, is it true?",
    "MultiRC": "Going by the passage, is this answer to the question true?",
    "WiC": "Has the word the same sense in both sentences?",
    "COPA": "Which of the two is more plausible?",
}
"""What is asked about the texts of a folder of O-LoRA's; of a folder of another name :data:`ANY_INSTRUCTION`."""

ANY_INSTRUCTION = "Which of the options fits this text?"

KINDS = {
    **dict.fromkeys(("dbpedia", "yahoo", "agnews"), "TC"),
    **dict.fromkeys(("amazon", "yelp", "IMDB", "SST-2"), "SC"),
    **dict.fromkeys(("MNLI", "RTE", "CB"), "NLI"),
    **{name: name for name in ("QQP", "BoolQA", "MultiRC", "WiC", "COPA")},
}
"""The 15 data sets of O-LoRA's orders, and the folder that each lies in."""

TRACE = ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"]
"""The data sets of TRACE, in its order."""


class DataSet(NamedTuple):
    """A data set: its name, its answers, and (prompt, number of the answer) of every text."""

    name: str
    answers: list[str]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


@SOURCES.register("text_cl")
def text_cl(config: DataConfig) -> SourceData:
    """The text sets of O-LoRA (Wang et al. 2023, arXiv:2310.14152), or your own in its layout, below ``CL_Benchmark/``.

    ``<kind>/<set>/train.json`` and ``test.json``, each a list of objects with ``sentence`` and ``label``, and ``labels.json``,
    the list of the labels. The sets that lie there are read. Instructions are worded otherwise than the paper's.
    """
    folder = require("text_cl", config, data_folder(config, "CL_Benchmark"), "CL_Benchmark of cmnfriend/O-LoRA")
    sets: list[DataSet] = []
    for file in sorted(folder.glob("*/*/labels.json")):
        answers = _json(file)
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{file} is not a list of labels")
        splits = [
            _pairs(
                require("text_cl", config, file.with_name(f"{split}.json"), "the texts of that split"),
                "sentence",
                "label",
            )
            for split in ("train", "test")
        ]
        asked = INSTRUCTIONS.get(file.parts[-3], ANY_INSTRUCTION)
        train, test = (
            [
                (prompt(asked, tuple(answers), text, CLIPPED), number)
                for text, number in _numbered(pairs, answers, file.parent)
            ]
            for pairs in splits
        )
        sets.append(DataSet(file.parent.name, answers, train, test))
    names = Counter(s.name for s in sets)
    twice = next((name for name, n in names.items() if n > 1), None)
    if twice is not None:
        raise DataError(f"{folder} has two sets called {twice}: rename or remove one")
    refused = {name: f"which is not at {folder / kind / name}" for name, kind in KINDS.items() if name not in names}
    return _source(config, folder, sets, refused, "")


@SOURCES.register("trace")
def trace(config: DataConfig) -> SourceData:
    """TRACE (Wang et al. 2023, arXiv:2310.06762), or your own sets in its layout, below ``TRACE/``: those answered by choice.

    ``<set>/train.json`` and ``test.json``, each a list of objects with ``prompt`` and ``answer``. A set with at most 26 different
    answers (C-STANCE, FOMC) has classes. The others ask for free text, which no strategy here can be trained on yet: they are
    read, left out with a note, and refused where ``scenario.superclasses`` names them.
    """
    folder = require("trace", config, data_folder(config, "TRACE"), "the folders of TRACE's data sets")
    sets: list[DataSet] = []
    refused = {name: f"which is not at {folder / name}" for name in TRACE}
    free = []
    for place in sorted(path.parent for path in folder.glob("*/train.json")):
        train, test = (
            _pairs(require("trace", config, place / f"{split}.json", "the pairs of that split"), "prompt", "answer")
            for split in ("train", "test")
        )
        answers = sorted({answer for _, answer in train})
        refused.pop(place.name, None)
        if len(answers) > MOST_ANSWERS:
            free.append(f"{place.name} ({len(train):,} + {len(test):,})")
            refused[place.name] = (
                f"whose {len(answers):,} different answers (more than {MOST_ANSWERS}) are free text, which cannot be learned yet"
            )
            continue
        sets.append(DataSet(place.name, answers, _numbered(train, answers, place), _numbered(test, answers, place)))
    sets.sort(key=lambda s: (TRACE.index(s.name) if s.name in TRACE else len(TRACE), s.name))
    note = f"free text cannot be learned yet, left out are {', '.join(free)}" if free else ""
    return _source(config, folder, sets, refused, note)


def _source(config: DataConfig, folder: Path, sets: list[DataSet], refused: dict[str, str], note: str) -> SourceData:
    if not sets:
        raise DataError(f"{folder} holds no set of texts that can be learned{f': {note}' if note else ''}")
    starts = np.cumsum([0, *(len(s.answers) for s in sets)])
    splits = []
    for split in ("train", "test"):
        pairs = [
            (text, start + number) for s, start in zip(sets, starts, strict=False) for text, number in getattr(s, split)
        ]
        splits.append(text_set([text for text, _ in pairs], [number for _, number in pairs], config))
    train, test = splits
    return SourceData(
        train,
        test,
        [f"{s.name}: {answer}" for s in sets for answer in s.answers],
        (),
        (),
        superclass=np.repeat(np.arange(len(sets)), np.diff(starts)),
        superclass_names=[s.name for s in sets],
        refused=refused,
        note="; ".join(filter(None, [note, note_of_cut(*splits)])),
        answers=tuple(f" {answer}" for s in sets for answer in s.answers),
    )


def _pairs(file: Path, text: str, answer: str) -> list[tuple[str, str]]:
    """What the objects of a list say under ``text`` and ``answer``.

    Raises:
        DataError: it is something else.
    """
    rows = _json(file)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file} is not a list of objects with {text!r} and {answer!r}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in (text, answer)):
            raise DataError(
                f"entry {number} of {file} is not an object with a text under {text!r} and under {answer!r}"
            )
    return [(row[text], row[answer].strip()) for row in rows]


def _numbered(pairs: list[tuple[str, str]], answers: list[str], place: Path) -> list[tuple[str, int]]:
    number = {answer: n for n, answer in enumerate(answers)}
    unknown = next((answer for _, answer in pairs if answer not in number), None)
    if unknown is not None:
        raise DataError(f"the answer {unknown!r} in {place} is none of its {len(answers)}: {', '.join(answers)}")
    return [(text, number[answer]) for text, answer in pairs]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{file} cannot be read as JSON: {' '.join(str(error).split())}") from error
