"""Every pair of strategies, trained on a stream so small that all of them can be: three tasks of two steps.

Composing a configuration takes a hundred times as long as such a run. So the stream is made once for each setting, options once
for each strategy, and a run is set up from dataclasses.
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from clbench.compose import added_strategy
from clbench.config import RunConfig, StrategyConfig, typed
from clbench.errors import ConfigError
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.learning.composition import refuse
from clbench.precision import Precision
from clbench.registry import STRATEGIES
from clbench.scenarios.build import build
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.scenario import Scenario, Split
from clbench.set_up import learner_of, network_of
from clbench.testing.properties import require
from clbench.testing.small_runs import composed, setting_of, small_options
from clbench.testing.stepping import finish_stage
from clbench.training.trainer import Trainer

CPU = torch.device("cpu")

STREAMS = {"class": "split_digits", "task": "split_digits_task"}

NETWORKS = {
    "mlp": ["model=mlp", "model.hidden=[8]"],
    "vit": ["model=small_vit", "model.width=8", "model.depth=2", "model.heads=2", "model.image_size=8"],
}

FIXED = [
    "scenario.classes=[0,1,2,3,4,5]",
    "scenario.frozen=null",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=2",
    "trainer.batch_size=6",
    "trainer.lr=0.2",
    "evaluator.every=0",
    "evaluator.subset=6",
    "device=cpu",
]

OPTIONS = {
    "agem": ["strategy.reference_size=2"],
    "er": ["strategy.new_weight=0.9"],
    "acil": ["strategy.extractor=first_task"],
    "fecam": ["strategy.extractor=first_task"],
    "igmn": ["strategy.extractor=first_task"],
    "if2net": ["strategy.extractor=first_task"],
    "ranpac": ["strategy.extractor=first_task"],
    "slda": ["strategy.extractor=first_task"],
    "dst": ["strategy.update_every=1"],
    "er_ace": ["strategy.replay_batch_size=1", "strategy.present=task"],  # so that A-GEM finds something to project
    "icarl": ["strategy.loss=ce_kd"],  # whose gradient GEM finds something to project in
    "redo": ["strategy.period_unit=steps", "strategy.period=1", "strategy.threshold=0.5"],
    "continual_backprop": ["strategy.replacement_rate=0.1", "strategy.maturity=0"],
    "outliers": ["strategy.share=0.5", "strategy.tau_id=-3.0", "strategy.tau_ood=-1.0", "strategy.lam=1.0"],
    "ovor": ["strategy.share=0.5", "strategy.tau_id=-3.0", "strategy.tau_ood=-1.0", "strategy.lam=1.0"],
    "n_lora": ["strategy.lam=0.1"],
    "reglora": ["strategy.lam=10.0"],
    "rif": ["strategy.min_correct=4", "strategy.max_correct=6"],
    "coda_prompt": ["strategy.pool=6"],
}
"""What makes a strategy act within two steps, after :data:`clbench.testing.small_runs.SMALL_OPTIONS`."""


class Result(NamedTuple):
    """What came of a run.

    Attributes:
        logits: (n, n_classes) on all test samples.
        losses: of all steps and terms.
        state: the learner's.
    """

    logits: Tensor
    losses: list[float]
    state: dict[str, Tensor]


WITH_A_STEP_MORE = {"mer", "outliers", "ovor"}
"""Strategies of which one of a task's two steps would be no step on new samples, or not of the whole network."""


def place_for(names: tuple[str, ...]) -> dict[str, Any]:
    """Setting, network and steps in which all of the strategies act."""
    where: dict[str, Any] = {"setting": setting_for(names), "network": network_for(names)}
    return where | ({"max_steps_per_task": 3} if WITH_A_STEP_MORE & set(names) else {})


def setting_for(names: tuple[str, ...]) -> str:
    """The setting that all of the strategies are defined for, or that of the first where there is none."""
    common = [s for s in STREAMS if all(s in STRATEGIES[name].needs.settings for name in names)]
    return common[0] if common else setting_of(names[0], "class")


def network_for(names: tuple[str, ...]) -> str:
    """A transformer where one of the strategies acts within one."""
    return "vit" if any(STRATEGIES[name].needs.transformer for name in names) else "mlp"


@cache
def options_of(name: str, overrides: tuple[str, ...] = ()) -> Any:
    """The strategy's options; of ``overrides`` those of the strategy count."""
    chosen = (*small_options(name), *OPTIONS.get(name, []), *overrides)
    own = [override.removeprefix("strategy.") for override in chosen if override.startswith("strategy.")]
    changes: Any = OmegaConf.from_dotlist(own)
    return added_strategy(name, changes)


@cache
def base_config(setting: str, network: str) -> RunConfig:
    """A run without a strategy that matters. One for each setting and network: nobody may change it."""
    return typed(composed(f"scenario={STREAMS[setting]}", "strategy=finetune", *NETWORKS[network], *FIXED))


@cache
def stream(setting: str) -> Scenario:
    """Three tasks of two classes, 12 training samples and 6 test samples in each."""
    config = base_config(setting, "mlp")
    scenario = build(config.scenario, config.data, config.seed, CPU)
    train, test = (_first(split, scenario.n_tasks, n) for split, n in ((scenario.train, 12), (scenario.test, 6)))
    return dataclasses.replace(scenario, train=train, _test=test)


def _first(split: Split, n_tasks: int, n: int) -> Split:
    """Some ``n`` samples of every task."""
    chosen = []
    for task in range(n_tasks):
        ids = split.ids(task)
        chosen.append(ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(task))[:n]])
    ids = torch.cat(chosen)
    rows = split.rows[ids].numpy()
    digests = np.zeros((int(split.rows.max()) + 1, 2), np.uint64)
    return Split(split.store, rows, split.labels[ids].numpy(), split.tasks[ids].numpy(), digests, n_tasks)


def config_of(*options: Any, setting: str, network: str, **trainer: Any) -> RunConfig:
    """A run of the first strategy with the others added to it."""
    base = base_config(setting, network)
    main = dataclasses.replace(options[0], plus=[o.name for o in options[1:]])
    return dataclasses.replace(
        base,
        strategy=main,
        plus={o.name: o for o in options[1:]},
        trainer=dataclasses.replace(base.trainer, **trainer),
    )


def trainer_of(*options: Any, setting: str, network: str, checkpoint: Path = Path("unused"), **trainer: Any) -> Trainer:
    """A trainer that is ready to begin; raises ConfigError where the strategies cannot be combined."""
    config = config_of(*options, setting=setting, network=network, **trainer)
    scenario = stream(setting)
    refuse(list(options), config)
    learner = learner_of(config, list(options), network_of(config, scenario), scenario)
    inputs = InputPipeline(scenario, config.scenario.augment, config.seed, CPU)
    evaluator = ContinualEvaluator(learner, scenario, inputs, config.evaluator, config.seed, Precision("fp32", CPU))
    made = Trainer(config, scenario, learner, inputs, evaluator, checkpoint)
    made.save = lambda: None  # type: ignore[method-assign]
    evaluator.after_step = lambda *position: None  # type: ignore[method-assign]  # predictions are looked at in the end
    return made


def trained(*options: Any, setting: str, network: str, **trainer_options: Any) -> Result:
    """Train on the whole stream."""
    torch.manual_seed(0)
    trainer = trainer_of(*options, setting=setting, network=network, **trainer_options)
    for task in range(trainer.scenario.n_tasks):
        trainer.task = task
        trainer.begin_task()
        finish_stage(trainer)
        while trainer.begin_stage():
            finish_stage(trainer)
        trainer.learner.end_task(trainer._task)
        trainer.step = trainer.n_stages_after = trainer.steps_before = 0
    return Result(predictions(trainer), trainer.training.loss.tolist(), trainer.learner.state_dict())


def predictions(trainer: Trainer) -> Tensor:
    """Logits (n, n_classes) of all test samples."""
    learner, split = trainer.learner.eval(), trainer.scenario.test
    samples = trainer.inputs.plain(split, torch.arange(len(split)))
    with torch.no_grad():
        learner.prepare_for_eval()
        if learner.separates_tasks:
            parts = [learner.predict_task(samples.x[samples.task == t], t) for t in range(trainer.scenario.n_tasks)]
            return torch.cat(parts)
        return learner.predict(samples.x, samples.task)


def try_pair(first: StrategyConfig, second: StrategyConfig) -> Result | ConfigError:
    """Train ``first`` with ``second`` added to it, or the error by which the pair is refused."""
    where = place_for((first.name, second.name))
    try:
        trainer_of(first, second, **where)
    except ConfigError as error:
        return error
    try:
        return trained(first, second, **where)
    except (RuntimeError, IndexError) as error:
        pair = f"strategy={first.name} strategy.plus=[{second.name}]"
        raise AssertionError(
            f"{pair} is accepted, but stops with {type(error).__name__}: {error}; {OVERWRITTEN}"
        ) from error


_alone: dict[str, tuple[StrategyConfig, Tensor]] = {}


def logits_alone(options: StrategyConfig, **where: Any) -> Tensor:
    """Logits of a strategy trained without another; trained once for each place."""
    key = f"{options} {where}"
    if key not in _alone:
        _alone[key] = options, trained(options, **where).logits
    return _alone[key][1]


def check_sentence(error: Exception, *parts: str) -> None:
    """The error is one sentence for a user, with these parts."""
    text = str(error)
    missing = [part for part in parts if part not in text]
    require(not missing, f"an error does not name {', '.join(missing)}: {text}")
    is_sentence = "\n" not in text and ". " not in text and not text.endswith(".")
    require(is_sentence, f"an error is more than one sentence, or ends in a full stop: {text}")


def check_pair(first: StrategyConfig, second: StrategyConfig, adds_nothing: tuple[str, ...] = ("finetune",)) -> None:
    """Refused in a sentence with both names; or the losses are finite, and the predictions other than those of each alone.

    Args:
        first: the main strategy's options.
        second: those of the one that is added.
        adds_nothing: strategies that change nothing beside another one.
    """
    result = try_pair(first, second)
    if isinstance(result, ConfigError):
        check_sentence(result, first.name, second.name)
    else:
        check_acts(result, first, second, adds_nothing)


OVERWRITTEN = (
    "usually both strategies set plan.replay, of which the later overwrites the earlier: the strategy that replays overrides "
    "data_loss too, which one of a run at most may"
)


def check_acts(result: Result, first: StrategyConfig, second: StrategyConfig, adds_nothing: tuple[str, ...]) -> None:
    """The losses are finite, and the predictions other than those of each strategy alone."""
    pair = f"strategy={first.name} strategy.plus=[{second.name}]"
    require(
        bool(torch.tensor(result.losses).isfinite().all()),
        f"losses of {pair} are not finite: {result.losses}; {OVERWRITTEN}",
    )
    require(not result.logits.isnan().any(), f"logits of {pair} are NaN")
    where = place_for((first.name, second.name))
    for one, other in ((first, second), (second, first)):
        same = torch.equal(result.logits, logits_alone(one, **where))
        require(
            same == (other.name in adds_nothing),
            f"{pair} predicts {'the same as' if same else 'otherwise than'} {one.name} alone, in three tasks of two steps; "
            f"usually {other.name} does not act so early, where options can make it, or what it does is undone by {one.name}: "
            "then the pair has to be refused, by Needs.traits (clbench/learning/traits.py)",
        )
