"""Data sets of texts."""

import csv
import json

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.location import data_folder, require, verified
from clbench.data.text import note_of_cut, text_set
from clbench.errors import DataError
from clbench.registry import SOURCES


@SOURCES.register("clinc150")
def clinc150(config: DataConfig) -> SourceData:
    """CLINC150: 15,000 + 4,500 requests to an assistant, 150 intents in ten domains (Larson et al. 2019, arXiv:1909.02027).

    Its validation texts and those out of scope are left out. Classes are numbered domain by domain.
    """
    folder = data_folder(config, "clinc150")
    file = require("clinc150", config, folder / "data_full.json", "data_full.json and domains.json of clinc/oos-eval")
    domains = json.loads(
        require("clinc150", config, folder / "domains.json", "domains.json of clinc/oos-eval").read_text("utf-8")
    )
    texts = json.loads(file.read_text("utf-8"))
    names = [intent for intents in domains.values() for intent in intents]
    number = {name: n for n, name in enumerate(names)}
    train, test = (
        text_set([text for text, _ in texts[split]], [number[intent] for _, intent in texts[split]], config)
        for split in ("train", "test")
    )
    superclass = np.array([d for d, intents in enumerate(domains.values()) for _ in intents])
    data = SourceData(
        train, test, names, (), (), superclass=superclass, superclass_names=list(domains), note=note_of_cut(train, test)
    )
    return verified("clinc150", data, file)


@SOURCES.register("banking77")
def banking77(config: DataConfig) -> SourceData:
    """BANKING77: 10,003 + 3,080 requests to a bank, 77 intents (Casanueva et al. 2020, arXiv:2003.04807)."""
    folder = data_folder(config, "banking77")
    rows = {}
    for split in ("train", "test"):
        file = require(
            "banking77", config, folder / f"{split}.csv", "train.csv and test.csv of PolyAI's task-specific data sets"
        )
        with file.open(newline="", encoding="utf-8") as lines:
            rows[split] = list(csv.DictReader(lines))
    names = sorted({row["category"] for row in rows["train"]})
    number = {name: n for n, name in enumerate(names)}
    train, test = (
        text_set([row["text"] for row in rows[split]], [number[row["category"]] for row in rows[split]], config)
        for split in ("train", "test")
    )
    return verified("banking77", SourceData(train, test, names, (), (), note=note_of_cut(train, test)), folder)


@SOURCES.register("hwu64")
def hwu64(config: DataConfig) -> SourceData:
    """HWU64: 8,954 + 1,076 requests to an assistant at home, 64 intents in 18 domains (Liu et al. 2019, arXiv:1903.05566).

    An intent's domain is what its name begins with (``alarm_query``); three domains have one intent. Its validation texts are
    left out. The split is that of jianguoz/Few-Shot-Intent-Detection (Casanueva et al. 2020).
    """
    folder = data_folder(config, "text_more/hwu64")
    lines = {}
    for split in ("train", "test"):
        texts, labels = (
            require(
                "hwu64",
                config,
                folder / split / name,
                "the folders in Datasets/HWU64 of jianguoz/Few-Shot-Intent-Detection",
            )
            .read_text("utf-8")
            .split("\n")
            for name in ("seq.in", "label")
        )
        if len(texts) != len(labels):
            raise DataError(
                f"{folder / split} has {len(texts)} lines of texts in seq.in and {len(labels)} of intents in label"
            )
        lines[split] = [
            (text.strip(), intent.strip()) for text, intent in zip(texts, labels, strict=True) if text.strip()
        ]
    names = sorted({intent for _, intent in lines["train"]})
    number = {name: n for n, name in enumerate(names)}
    unknown = next((intent for _, intent in lines["test"] if intent not in number), None)
    if unknown is not None:
        raise DataError(f"the intent {unknown!r} of {folder / 'test' / 'label'} has no training text")
    train, test = (
        text_set([text for text, _ in lines[split]], [number[intent] for _, intent in lines[split]], config)
        for split in ("train", "test")
    )
    of_intent = [name.split("_")[0] for name in names]
    domains = sorted(set(of_intent))
    data = SourceData(
        train,
        test,
        names,
        (),
        (),
        superclass=np.array([domains.index(domain) for domain in of_intent]),
        superclass_names=domains,
        note=note_of_cut(train, test),
    )
    return verified("hwu64", data, folder)
