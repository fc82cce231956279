"""Small tasks in words: an instruction with its options, a text, and an answer of one word.

What a language model is to write is in :attr:`SourceData.answers`: a space and a word, one token for the tokenizers of GPT-2's
kind that were looked at (SmolLM2's has all of them). No two tasks share an answer, so that an answer tells its task, and what is
forgotten can be told apart: another task's word, or a wrong one of its own. A network that is no language model learns the same
texts as classes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.location import data_folder, require, verified
from clbench.data.sentence_sources import Sentence, deal_out, labelled
from clbench.data.text import note_of_cut, text_digest, text_set
from clbench.registry import SOURCES

N_TRAIN, N_TEST = 640, 500
"""Samples of each task of ``text_small``."""

CLIPPED = 120
"""Characters of a text that are shown at most, cut between two words: about 30 tokens."""

Split = tuple[list[Sentence], list[Sentence]]


@dataclass(frozen=True)
class Task:
    """A task of ``text_small``.

    Attributes:
        instruction: what is asked about the text.
        answers: the words to choose from, in the order of the labels.
        read: all training and test texts, from ``data.folder`` or the root.
    """

    instruction: str
    answers: tuple[str, ...]
    read: Callable[[DataConfig, Path], Split]


def prompt(instruction: str, answers: tuple[str, ...], text: str, length: int = CLIPPED) -> str:
    """What a language model reads before it answers: two lines, and a third that it is to complete."""
    return f"{instruction} Options: {', '.join(answers)}.\n{clipped(text, length)}\nAnswer:"


def clipped(text: str, length: int) -> str:
    """The text on one line; of a longer one the first words, ``length`` characters at most, or the start of a long first word."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    whole_words = line[: length + 1].rpartition(" ")[0]
    return whole_words or line[:length]


def chosen(prompts: list[Sentence], n: int, without: frozenset[str] = frozenset()) -> list[Sentence]:
    """``n`` of the prompts, those with the lowest digests, none twice and none that is in ``without``.

    So the choice does not depend on the order of a file, and classes are as frequent as they were.
    """
    distinct = {prompt.text: prompt for prompt in prompts if prompt.text not in without}
    return sorted(distinct.values(), key=lambda prompt: text_digest(prompt.text))[:n]


@SOURCES.register("text_small")
def text_small(config: DataConfig) -> SourceData:
    """Six small tasks in words, each 640 + 500 texts: news, film reviews, questions, requests, subjectivity, product reviews.

    ``ag_news`` (Zhang et al. 2015) by topic, ``sst2`` by sentiment, ``trec`` by what is asked for, ``clinc`` (CLINC150) by
    domain, ``subj`` (Pang & Lee 2004) opinions and plots, ``cr`` (Hu & Liu 2004) by sentiment, in other words than sst2. The
    samples are chosen by digests of the texts. It is no stream of a paper: order 1 is the one above, orders 2 and 3 are drawn.
    """
    base = data_folder(config)
    train: list[Sentence] = []
    test: list[Sentence] = []
    names: list[str] = []
    for task, spec in TASKS.items():
        splits = []
        for sentences in spec.read(config, base):
            splits.append(
                [Sentence(prompt(spec.instruction, spec.answers, s.text), len(names) + s.label) for s in sentences]
            )
        held_out = chosen(splits[1], N_TEST)
        test += held_out
        train += chosen(splits[0], N_TRAIN, frozenset(sample.text for sample in held_out))
        names += [f"{task}: {answer}" for answer in spec.answers]
    first, second = (text_set([s.text for s in split], [s.label for s in split], config) for split in (train, test))
    data = SourceData(
        first,
        second,
        names,
        (),
        (),
        superclass=np.repeat(np.arange(len(TASKS)), [len(spec.answers) for spec in TASKS.values()]),
        superclass_names=list(TASKS),
        note=note_of_cut(first, second),
        answers=tuple(f" {answer}" for spec in TASKS.values() for answer in spec.answers),
    )
    return verified("text_small", data, base)


def _ag_news(config: DataConfig, base: Path) -> Split:
    folder, names = base / "text_more" / "ag_news" / "olora", ("World", "Sports", "Business", "Science or Technology")
    splits = []
    for split in ("train", "test"):
        file = require("text_small", config, folder / f"{split}.json", "CL_Benchmark/TC/agnews of cmnfriend/O-LoRA")
        rows = json.loads(file.read_text("utf-8"))
        splits.append([Sentence(_untitled(row["sentence"]), names.index(row["label"])) for row in rows])
    return splits[0], splits[1]


def _untitled(news: str) -> str:
    """Title and text of an article, without saying which is which."""
    return news.replace("Title: ", "", 1).replace("\nText: ", ". ", 1)


def _sentences(train: str, test: str | None = None) -> Callable[[DataConfig, Path], Split]:
    """A reader of a set of :mod:`clbench.data.sentence_sources`; without a file of test texts one text in seven is one."""

    def read(config: DataConfig, base: Path) -> Split:
        folder = base / "text_more" / "sentence"
        first = labelled("text_small", config, folder, train)
        return deal_out(first, 7) if test is None else (first, labelled("text_small", config, folder, test))

    return read


def _clinc(config: DataConfig, base: Path) -> Split:
    files = [
        require("text_small", config, base / "clinc150" / name, "data_full.json and domains.json of clinc/oos-eval")
        for name in ("data_full.json", "domains.json")
    ]
    texts, domains = (json.loads(file.read_text("utf-8")) for file in files)
    of_intent = {intent: number for number, intents in enumerate(domains.values()) for intent in intents}
    train, test = ([Sentence(text, of_intent[intent]) for text, intent in texts[split]] for split in ("train", "test"))
    return train, test


TASKS = {
    "ag_news": Task("What is this news about?", ("World", "Sports", "Business", "Technology"), _ag_news),
    "sst2": Task(
        "What does this review think of the film?",
        ("negative", "positive"),
        _sentences("stsa.binary.train", "stsa.binary.test"),
    ),
    "trec": Task(
        "What does this question ask for?",
        ("description", "entity", "abbreviation", "person", "location", "number"),
        _sentences("TREC.train.all", "TREC.test.all"),
    ),
    "clinc": Task(
        "Which area does this request belong to?",
        ("banking", "credit", "kitchen", "home", "car", "travel", "utility", "work", "talk", "meta"),
        _clinc,
    ),
    "subj": Task("Is this an opinion or a plot?", ("opinion", "plot"), _sentences("subj.all")),
    "cr": Task("How does this customer find the product?", ("bad", "good"), _sentences("custrev.all")),
}
"""The tasks by name, in the order of the stream's first order."""
