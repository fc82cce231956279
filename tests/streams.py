"""A small stream of every setting, and every strategy in every setting it is defined for."""

import pytest

from clbench.registry import STRATEGIES

THREE_TASKS = ["scenario.classes=[0,1,2,3,4,5]", "scenario.frozen=null"]

STREAMS = {
    "class": ["scenario=split_digits", *THREE_TASKS],
    "task": ["scenario=split_digits_task", *THREE_TASKS],
    "domain": [
        "scenario=permuted_mnist",
        "scenario.source=digits",
        "scenario.frozen=null",
        "scenario.n_tasks=3",
    ],
}


OUTLIERS = [
    "strategy.share=0.75",  # of four steps the last three
    "strategy.neighbours=3",
    "strategy.select=5",
    "strategy.sample_from=6",
    "strategy.per_class=12",
    "strategy.tau_id=-3.0",
    "strategy.tau_ood=-1.0",
]

SMALL_OPTIONS = {
    "acil": ["strategy.width=30"],
    "coda_prompt": ["strategy.blocks=[0,1]", "strategy.pool=12", "strategy.length=4"],  # of 12 tasks, at most
    "continual_backprop": ["strategy.replacement_rate=0.1", "strategy.maturity=1"],
    "dst": ["strategy.update_every=2"],
    "dualprompt": [
        "strategy.general_blocks=[0]",
        "strategy.general_length=2",
        "strategy.expert_blocks=[1]",
        "strategy.expert_length=4",
    ],
    "hypernetwork": ["strategy.chunk_size=300"],
    "if2net": [
        "strategy.n_windows=2",
        "strategy.window=4",
        "strategy.n_expand=12",
        "strategy.n_out=20",
        "strategy.admm_iter=5",
    ],
    "ilora": ["strategy.rank=2"],
    "l2p": ["strategy.blocks=[0,1]", "strategy.pool=5", "strategy.length=4", "strategy.top_k=2"],
    "lora": ["strategy.rank=2"],
    "oneprompt": ["strategy.blocks=[0,1]", "strategy.lengths=[2,4]"],
    "outliers": OUTLIERS,
    "ovor": ["strategy.blocks=[0,1]", "strategy.lengths=[2,4]", *OUTLIERS],
    "ranpac": ["strategy.projection=30"],
    "reglora": ["strategy.rank=2", "strategy.top_fraction=0.1"],  # of 8×8 entries
    "slda": ["strategy.shrinkage=0.1"],  # a few samples leave the covariance singular
    "redo": ["strategy.period_unit=steps", "strategy.period=2", "strategy.threshold=0.5"],
}
"""What makes a strategy small beside a small network and a few steps."""


def small_options(name: str) -> list[str]:
    """Overrides that choose a strategy with options for small streams and networks."""
    memory = ["strategy.memory_size=40"] if STRATEGIES[name].needs.memory else []
    return [f"strategy={name}", *memory, *SMALL_OPTIONS.get(name, [])]


def small_network(name: str) -> list[str]:
    """Overrides that choose a small network in which the strategy can act, after those of the stream."""
    if STRATEGIES[name].needs.transformer:
        return ["model=small_vit", "model.width=8", "model.depth=2", "model.heads=2", "model.image_size=8"]
    return ["model=mlp", "model.hidden=[16]"]


def setting_of(name: str, preferred: str) -> str:
    """``preferred`` where the strategy is defined for it, else the first setting that it is defined for."""
    settings = STRATEGIES[name].needs.settings
    return preferred if preferred in settings else settings[0]


def digits_for(name: str) -> str:
    """The scenario of digits that the strategy is defined for: the default one, or its task-incremental sister."""
    return {"class": "split_digits", "task": "split_digits_task"}[setting_of(name, "class")]


def _case(name: str, setting: str):
    """One strategy in one setting. What acts within a transformer is slower to test, and does the same in every setting."""
    is_further = STRATEGIES[name].needs.transformer and setting != STRATEGIES[name].needs.settings[0]
    return pytest.param(name, setting, marks=pytest.mark.slow if is_further else ())


def _in_turn(index: int, name: str, setting: str):
    """One strategy in one setting, of which every strategy has another in turn; the other settings are slow."""
    settings = STRATEGIES[name].needs.settings
    is_further = setting != settings[0 if STRATEGIES[name].needs.transformer else index % len(settings)]
    return pytest.param(name, setting, marks=pytest.mark.slow if is_further else ())


CASES = [_case(name, setting) for name in STRATEGIES.names() for setting in STRATEGIES[name].needs.settings]

IN_TURN = [
    _in_turn(index, name, setting)
    for index, name in enumerate(STRATEGIES.names())
    for setting in STRATEGIES[name].needs.settings
]
"""The same, for tests of what hardly depends on the setting: every strategy once, and every setting."""
