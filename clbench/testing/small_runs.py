"""Runs that are over in a fraction of a second: three tasks of four steps on scikit-learn's digits, with a small network."""

import pickle
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from clbench.compose import compose
from clbench.registry import STRATEGIES
from clbench.set_up import Setup, set_up
from clbench.training.trainer import Trainer

GROUPS = (
    "strategy",
    "scenario",
    "model",
    "evaluator",
    "experiment",
    "protocol",
    "debug",
    "training",
    "local",
    "search_space",
)
"""What chooses a file of the Hydra tree."""

THREE_TASKS = ["scenario.classes=[0,1,2,3,4,5]", "scenario.frozen=null"]

STREAMS = {
    "class": ["scenario=split_digits", *THREE_TASKS],
    "task": ["scenario=split_digits_task", *THREE_TASKS],
    "domain": ["scenario=permuted_mnist", "scenario.source=digits", "scenario.frozen=null", "scenario.n_tasks=3"],
}
"""Overrides for a small stream of every setting."""

SMALL = [
    "trainer.epochs=null",
    "trainer.max_steps_per_task=4",
    "trainer.batch_size=8",
    "trainer.lr=0.05",
    "evaluator.subset=20",
    "record.figure=false",
    "progress=false",
    "device=cpu",
]
"""Overrides that leave a run with a few steps."""

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
    "cls_er": ["strategy.plastic_rate=0.9", "strategy.stable_rate=0.7"],
    "coda_prompt": ["strategy.blocks=[0,1]", "strategy.pool=12", "strategy.length=4"],  # of 12 tasks, at most
    "continual_backprop": ["strategy.replacement_rate=0.1", "strategy.maturity=1"],
    "cope": ["strategy.embedding=8"],
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
    "igmn": ["strategy.projection=6", "strategy.components=4"],
    "ilora": ["strategy.rank=2"],
    "inc_lora": ["strategy.rank=2"],
    "inflora": ["strategy.rank=2"],
    "l2p": ["strategy.blocks=[0,1]", "strategy.pool=5", "strategy.length=4", "strategy.top_k=2"],
    "lora": ["strategy.rank=2"],
    "mer": ["strategy.replay_batch_size=1", "strategy.beta=0.7", "strategy.gamma=0.6"],
    "mir": ["strategy.candidates=6", "strategy.replay_batch_size=3"],
    "n_lora": ["strategy.rank=2"],
    "o_lora": ["strategy.rank=2"],
    "oneprompt": ["strategy.blocks=[0,1]", "strategy.lengths=[2,4]"],
    "outliers": OUTLIERS,
    "ovor": ["strategy.blocks=[0,1]", "strategy.lengths=[2,4]", *OUTLIERS],
    "ranpac": ["strategy.projection=30"],
    "grpo": ["strategy.steps_per_rollout=2"],
    "rif": ["strategy.min_correct=3", "strategy.max_correct=6"],
    "reglora": ["strategy.rank=2", "strategy.top_fraction=0.1"],  # of 8×8 entries
    "scr": ["strategy.replay_batch_size=8", "strategy.projection=8"],
    "slda": ["strategy.shrinkage=0.1"],  # a few samples leave the covariance singular
    "redo": ["strategy.period_unit=steps", "strategy.period=2", "strategy.threshold=0.5"],
}
"""What makes a strategy of clbench's own small beside a small network and a few steps."""


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


@cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of overrides, as :func:`clbench.config.compose` makes it. It is made once: nobody may change it.

    Composing takes longer than a small run, so that files are composed once for every choice of them; setting single values
    is what Hydra does last, and it is done here in the same way.
    """
    groups = [override for override in overrides if override.partition("=")[0] in GROUPS]
    values = [override for override in overrides if override not in groups]
    if not values:
        return compose(groups)
    config = pickle.loads(_pickled(*groups))
    with suppress(OmegaConfBaseException):
        for value in map(_parsed, values):
            with open_dict(config) if value.is_add() else nullcontext():
                OmegaConf.update(config, value.key_or_group, value.value(), merge=True, force_add=value.is_add())
        return config
    return compose(list(overrides))  # which says in a sentence what is wrong


@cache
def _pickled(*groups: str) -> bytes:
    """The configuration of these files: it is read in a fifth of the time that it takes OmegaConf to copy it."""
    return pickle.dumps(composed(*groups))


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


@dataclass(frozen=True)
class Case:
    """A small run of one strategy in one setting.

    Attributes:
        strategy: its registered name.
        setting: ``class``, ``task`` or ``domain``.
        overrides: further ones, such as options that let the method act within four steps.
        stream: the setting whose stream it is; by default its own.
    """

    strategy: str
    setting: str
    overrides: tuple[str, ...] = ()
    stream: str = ""

    def __str__(self) -> str:
        return f"{self.strategy}-{self.setting}"

    def setup(self, *overrides: str) -> Setup:
        """Everything the run needs, built but not trained."""
        name = self.strategy
        stream = [*small_options(name), *STREAMS[self.stream or self.setting], *small_network(name)]
        return set_up(composed(*stream, *SMALL, *self.overrides, *overrides))

    def trainer(self, *overrides: str, folder: Path | None = None) -> Trainer:
        """A trainer that has not begun; without a ``folder`` for its checkpoint it saves none."""
        setup = self.setup(*overrides)
        file = (folder or Path("nowhere")) / "state.pt"
        trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, file)
        if folder is None:
            trainer.save = lambda: None  # type: ignore[method-assign]
        return trainer


WATCHED = ("trainer.scheduler=cosine", "evaluator.every=1")


@lru_cache(maxsize=3)  # checks of one case follow each other, and a strategy has three settings
def whole_run(case: Case) -> tuple[Trainer, list[tuple[str, ...]]]:
    """A finished run that is evaluated after every step, and the stage of every step: a name for each strategy."""
    trainer = case.trainer(*WATCHED)
    advance, stages = trainer.advance, []

    def advance_and_note() -> None:
        advance()
        stages.append((str(trainer.task), *(part.name for part in trainer.learner.stage.parts)))

    trainer.advance = advance_and_note  # type: ignore[method-assign]
    trainer.fit()
    return trainer, stages


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the learner's parameters and buffers."""
    return {name: tensor.clone() for name, tensor in trainer.learner.state_dict().items()}


def in_double_precision(trainer: Trainer) -> Trainer:
    """The trainer, not begun, with weights, inputs and optimizer in float64.

    Rounding then does not grow from step to step until two right computations differ.
    """
    trainer.learner.double()
    trainer.inputs._scale, trainer.inputs._shift = trainer.inputs._scale.double(), trainer.inputs._shift.double()
    trainer.evaluator._images = trainer.evaluator._images.double()
    for state in trainer.optimizer.state.values():
        state.update({name: value.double() for name, value in state.items()})
    return trainer
