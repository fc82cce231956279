"""A small stream of every setting, and every strategy in every setting it is defined for."""

from clbench.registry import STRATEGIES

STREAMS = {
    "class": ["scenario=split_digits"],
    "task": ["scenario=split_digits_task"],
    "domain": [
        "scenario=permuted_mnist",
        "scenario.source=digits",
        "scenario.frozen=null",
        "scenario.n_tasks=3",
        "model=mlp",
    ],
}

CASES = [(name, setting) for name in STRATEGIES.names() for setting in STRATEGIES[name].needs.settings]
