"""Data sets of texts."""

import csv
import json

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.location import data_folder, require, verified
from clbench.data.text import note_of_cut, text_set
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
    return verified(
        "clinc150", SourceData(train, test, names, (), (), superclass=superclass, note=note_of_cut(train, test)), file
    )


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
