"""Options of ``protocol=…``."""

from dataclasses import dataclass
from typing import Any

from clbench.errors import ConfigError, choose_from
from clbench.options import option

KINDS = ("two_phase", "conventional", "first_task", "first_k")
"""How the values are tuned that are then evaluated; see :mod:`clbench.protocol.streams`."""

CHEAP_METRICS = ("average_incremental_pooled", "average_incremental_macro", "ACC", "ACC_pooled", "LA")
"""Metrics that need accuracies at task ends only, so that nothing is evaluated in between while tuning."""

METRICS = (*CHEAP_METRICS, "AAA", "AAUC", "min_ACC", "WC_ACC")


@dataclass
class ProtocolConfig:
    """How methods are tuned and then evaluated (conf/protocol/)."""

    kinds: list[str] = option(
        help="ways of tuning, each followed by an evaluation on the same stream: two_phase, conventional, first_task, first_k"
    )
    trials: int = option(30, help="configurations drawn for every method", at_least=1)
    tuning_seeds: list[int] = option([0, 1, 2, 3, 4], help="seeds that every configuration is trained with")
    evaluation_seeds: list[int] = option(
        [100, 101, 102, 103, 104],
        help="seeds that the selected configuration is trained with; none of the tuning seeds",
    )
    sampler: str = option(
        "random",
        help="random: independent draws, the same on every machine; tpe: tree-structured Parzen estimator; grid: all "
        "combinations, shuffled",
        choices=("random", "tpe", "grid"),
    )
    sampler_seed: int = option(0, help="seed of the draws", at_least=0)
    batch: int = option(
        5, help="sampler=tpe: configurations drawn before the results of earlier ones are looked at again", at_least=1
    )
    pruner: str = option(
        "none",
        help="successive_halving: all configurations are trained with the first tuning seed, the best 1/reduction of them with "
        "reduction seeds, and so on",
        choices=("none", "successive_halving"),
    )
    reduction: int = option(2, help="pruner=successive_halving: factor", at_least=2)
    metric: str = option(
        "average_incremental_pooled",
        help="what is maximised, mean over the tuning seeds; a diverged run counts as chance level. pooled: of all samples of "
        "the tasks seen, as iCaRL and PyCIL report it; macro: the mean over the tasks; the same where tasks are equally large",
        choices=METRICS,
    )
    validation: float = option(
        0.1, help="share of the tuning stream's training samples that tuning is judged on", above=0, at_most=0.9
    )
    halves: str | None = option(
        None,
        help="tune on one half of the classes and evaluate on the other: index (first and second half), seeded (drawn from "
        "halves_seed); null: the evaluation stream has all classes",
        choices=("index", "seeded", None),
    )
    halves_seed: int = option(0, help="halves=seeded: seed", at_least=0)
    tune_on: str | None = option(None, help="another scenario to tune on, in place of half of the classes")
    first_tasks: int = option(3, help="first_k: tasks of the evaluation stream that are seen while tuning", at_least=1)
    shuffle_classes: bool = option(
        False, help="draw the class order from each run's seed, where the scenario has a natural one"
    )
    paper_compat: bool = option(
        False, help="let evaluation_seeds repeat tuning seeds, as the authors' code does (0 to 4 in both phases)"
    )
    retries: int = option(
        1, help="times that a run is tried again that was killed or failed for no fault of its options", at_least=0
    )
    label: str | None = option(
        None,
        help="added to the names of the study's methods, e.g. layer_norm where model.norm=layer: variants of a strategy that are "
        "studied apart are told apart by it in records and reports",
    )
    best: str | None = option(
        "best",
        help="folder, seen from where the command is given, that tuned values are written to for +best=true; null: none",
    )
    search: dict[str, Any] = option(
        {},
        help="values to try of options that all methods share; those of a method's own are in its strategy's `search`",
    )

    def check(self) -> None:
        """Check what single fields cannot.

        Raises:
            ConfigError: an unknown kind, no seed, a seed twice, seeds that are used in both phases, or a two_phase protocol
                without anything to tune on.
        """
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(choose_from("value in protocol.kinds", kind, KINDS))
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise ConfigError(
                f"protocol.kinds={self.kinds} has to name at least one of {', '.join(KINDS)}, and none twice"
            )
        for name in ("tuning_seeds", "evaluation_seeds"):
            seeds = getattr(self, name)
            if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
                raise ConfigError(f"protocol.{name}={seeds} has to name at least one seed from 0 on, and none twice")
        both = sorted(set(self.tuning_seeds) & set(self.evaluation_seeds))
        if both and not self.paper_compat:
            raise ConfigError(
                f"seeds {both} are in protocol.tuning_seeds and in protocol.evaluation_seeds: choose others, or "
                "protocol.paper_compat=true to repeat seeds as the authors' code does"
            )
        if self.halves is not None and self.tune_on is not None:
            raise ConfigError(
                f"protocol.halves={self.halves} and protocol.tune_on={self.tune_on} exclude each other: set one of them to null"
            )
        if "two_phase" in self.kinds and self.halves is None and self.tune_on is None:
            raise ConfigError(
                "protocol two_phase needs something else to tune on: protocol.halves=index, protocol.halves=seeded or "
                "protocol.tune_on=<scenario>"
            )
        n_first = {"first_task": 1, "first_k": self.first_tasks}
        if self.metric == "min_ACC" and any(n_first.get(kind) == 1 for kind in self.kinds):
            raise ConfigError(
                "protocol.metric=min_ACC is not defined on a single task, which first_task (and first_k with "
                "protocol.first_tasks=1) tunes on: choose another, e.g. ACC"
            )
        if self.shuffle_classes and {"first_task", "first_k"} & set(self.kinds):
            raise ConfigError(
                "protocol.shuffle_classes=true gives every seed other first tasks, so that first_task and first_k would tune on "
                "tasks that the evaluation does not begin with: set it to false"
            )
