"""Write frozen scenario definitions: ``python -m clbench.scenarios.freeze split_mnist rotated_mnist``.

Each definition is written to the file that ``frozen:`` names in ``conf/scenario/<name>.yaml``, and the table in
``scenarios/README.md`` is brought up to date. Nothing in the files depends on when or where they were written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from clbench.compose import compose
from clbench.conf_files import catalogue_dir
from clbench.errors import ClbenchError, ConfigError
from clbench.options import to_dataclass
from clbench.scenarios.build import build
from clbench.scenarios.frozen import definitions, load_definition, stream_content, stream_options

CITATIONS = {
    "digits": "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 "
    "(the copy in scikit-learn)",
    "mnist": "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-Based Learning Applied to Document Recognition, "
    "Proceedings of the IEEE 86, 1998",
    "fashion_mnist": "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
    "Learning Algorithms, arXiv:1708.07747, 2017",
    "cifar100": "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    "clinc150": "S. Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction, EMNLP 2019",
    "banking77": "I. Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, arXiv:2003.04807, 2020",
    "hwu64": "X. Liu, A. Eshghi, P. Swietojanski and V. Rieser, Benchmarking Natural Language Understanding Services for "
    "building Conversational Agents, arXiv:1903.05566, 2019",
    "trec": "X. Li and D. Roth, Learning Question Classifiers, COLING 2002",
    "sentiment_domains": "R. Socher et al., EMNLP 2013 (SST-2); B. Pang and L. Lee, ACL 2005 (MR); M. Hu and B. Liu, KDD 2004 "
    "(CR); J. Wiebe, T. Wilson and C. Cardie, Language Resources and Evaluation 39, 2005 (MPQA)",
    "text_small": "X. Zhang, J. Zhao and Y. LeCun, NIPS 2015 (AG News); R. Socher et al., EMNLP 2013 (SST-2); X. Li and D. Roth, "
    "COLING 2002 (TREC); S. Larson et al., EMNLP 2019 (CLINC150); B. Pang and L. Lee, ACL 2004 (Subj); M. Hu and B. Liu, KDD "
    "2004 (CR)",
}
"""Where the samples of a source come from; a stream can only be frozen when its source is listed here."""

TABLE_START, TABLE_END = "<!-- table: written by clbench.scenarios.freeze -->\n", "<!-- end of table -->"


def freeze(name: str) -> Path:
    """Write the definition of ``scenario=<name>`` as configured, without any override.

    Raises:
        ConfigError: the scenario names no frozen version or has no citation, its stream depends on the run's seed, or the
            version exists and says something else.
    """
    config = to_dataclass(compose([f"scenario={name}"]))
    scenario_config = config.scenario
    if scenario_config.frozen is None:
        raise ConfigError(
            f"conf/scenario/{name}.yaml names no version to freeze: write frozen: {name}/v1 into it first"
        )
    if scenario_config.source not in CITATIONS:
        raise ConfigError(
            f"no citation for source {scenario_config.source}. Valid choices: {', '.join(sorted(CITATIONS))}"
        )
    scenario, other_seed = (build(scenario_config, config.data, seed, torch.device("cpu")) for seed in (0, 1))
    if scenario.hash != other_seed.hash:
        raise ConfigError(f"scenario {name} depends on the run's seed, so that there is no one stream to freeze")
    definition = {
        "name": scenario_config.frozen,
        "hash": scenario.hash,
        "source": CITATIONS[scenario_config.source],
        "options": stream_options(scenario_config),
        **stream_content(scenario),
    }
    path = catalogue_dir() / f"{scenario_config.frozen}.json"
    if path.exists() and load_definition(scenario_config.frozen) != definition:
        raise ConfigError(f"{scenario_config.frozen} exists and is another stream: freeze this one under a new version")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(definition, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def catalogue_table() -> str:
    """All frozen definitions as a Markdown table."""
    lines = [
        "| definition | source | setting | tasks | classes | training samples | test samples | hash |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in definitions():
        definition = load_definition(name)
        tasks = definition["tasks"]
        n_classes = len({c for task in tasks for c in task["classes"]})
        cells = [name, definition["options"]["source"], definition["setting"], len(tasks), n_classes]
        cells += [_per_task(tasks, "n_train"), _per_task(tasks, "n_test"), f"`{definition['hash']}`"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _per_task(tasks: list[dict[str, Any]], key: str) -> str:
    """The total, and the smallest and largest task."""
    sizes = [task[key] for task in tasks]
    smallest, largest = min(sizes), max(sizes)
    spread = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    return f"{sum(sizes):,} ({spread} a task)"


def write_table() -> None:
    """Bring the table in the catalogue's README up to date."""
    readme = catalogue_dir() / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(TABLE_START)
    _, after = rest.split(TABLE_END)
    readme.write_text(f"{before}{TABLE_START}{catalogue_table()}{TABLE_END}{after}", encoding="utf-8")


def main(names: list[str]) -> None:
    """Freeze the scenarios ``names``, then bring the table up to date."""
    for name in names:
        print(freeze(name))
    write_table()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ClbenchError as error:
        sys.exit(f"clbench: {error}")
