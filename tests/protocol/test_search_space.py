"""Search spaces, and what the samplers draw from them."""

import itertools
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy import stats

from clbench.conf_files import conf_dir
from clbench.errors import ConfigError
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import (
    SearchSpace,
    as_overrides,
    distribution,
    frozen_trial,
    n_trials,
    next_values,
    refuse_unlisted,
    space_of,
)
from clbench.registry import STRATEGIES

optuna.logging.set_verbosity(optuna.logging.WARNING)

LR = [0.003, 0.01, 0.03, 0.1, 0.3]
DECAY = [0.0, 0.0001, 0.0005, 0.001]
SCHEDULER = ["constant", "cosine"]
COMMON = {"trainer.lr": LR, "trainer.weight_decay": DECAY, "trainer.scheduler": SCHEDULER}


def space(own: dict | None = None, shared: dict | None = None) -> SearchSpace:
    """A space of a method's own options and those that all methods share."""
    own, shared = own or {}, COMMON if shared is None else shared
    every = sorted({**shared, **own}.items())
    return SearchSpace({name: distribution(name, values) for name, values in every}, frozenset(shared))


def drawn(method: str, of: SearchSpace, options: ProtocolConfig, count: int) -> list[dict]:
    """The first ``count`` draws of a method, none of which has a result."""
    trials = []
    for _ in range(count):
        trials.append(frozen_trial(next_values(trials, method, of, options), of))
    return [trial.params for trial in trials]


def as_key(values: dict) -> tuple:
    return tuple(sorted(values.items()))


# ---- what a space is made of -------------------------------------------------------------------------------------------


def test_a_list_is_independent_choices_and_a_range_is_a_number():
    assert distribution("x", [1, 2.5, "a", None, True]) == CategoricalDistribution([1, 2.5, "a", None, True])
    assert distribution("x", {"low": 0.1, "high": 2.0}) == FloatDistribution(0.1, 2.0)
    assert distribution("x", {"low": 0.1, "high": 2.0, "log": True}) == FloatDistribution(0.1, 2.0, log=True)
    assert distribution("x", {"low": 1, "high": 9}) == IntDistribution(1, 9)
    assert distribution("x", [[0.4, 0.8], [0.5]]) == CategoricalDistribution(["[0.4,0.8]", "[0.5]"])


@pytest.mark.parametrize(
    "wrong",
    [[], 0.1, "abc", {"low": 1}, {"low": 2, "high": 1}, {"low": 1, "high": 1}, {"low": 0.0, "high": 1.0, "log": True},
     {"low": 0, "high": 1, "step": 1}, {}],
)  # fmt: skip
def test_what_is_neither_is_refused(wrong):
    with pytest.raises(
        ConfigError, match=r"what is to be tried of trainer\.lr is .*: it has to be a list of values, or"
    ):
        distribution("trainer.lr", wrong)


def test_a_space_counts_its_configurations_and_says_what_it_is():
    of = space({"strategy.lam": [1.0, 10.0, 100.0]})
    assert of.size == 5 * 4 * 2 * 3
    assert of.described() == {**COMMON, "strategy.lam": [1.0, 10.0, 100.0]}
    ranged = space({"strategy.lam": {"low": 0.1, "high": 10.0, "log": True}})
    assert ranged.size == math.inf
    assert ranged.described()["strategy.lam"] == {"low": 0.1, "high": 10.0, "log": True}
    assert space(shared={}).size == 1


def test_the_budget_is_never_more_than_there_are_configurations(options_of):
    assert n_trials(space(), options_of(trials=1000)) == 40
    assert n_trials(space(), options_of(trials=7)) == 7
    assert n_trials(space({"strategy.lam": {"low": 0.1, "high": 1.0}}), options_of(trials=1000)) == 1000
    assert n_trials(space(shared={}), options_of(trials=1000)) == 1


def test_every_method_with_a_strength_of_its_own_searches_it():
    """EWC, L2 and LwF are nothing without their λ, ER without its weighting."""
    files = {name: (conf_dir() / "strategy" / f"{name}.yaml").read_text() for name in STRATEGIES.names()}
    searched = {name for name, text in files.items() if "\nsearch:" in text}
    assert {"ewc", "l2", "lwf", "er", "gem"} <= searched


def test_the_space_is_the_shared_options_and_the_methods_own(compose):
    made = space_of(compose(["strategy=ewc"]), COMMON, {}, set())
    assert set(made.distributions) == {*COMMON, "strategy.lam"}
    assert made.shared == set(COMMON)


def test_the_command_line_has_the_last_word(compose):
    composed = compose(["strategy=ewc", "trainer.weight_decay=0.5"])
    swept = {
        "trainer.lr": [7.0, 8.0],
        "strategy.lam": {"low": 1.0, "high": 2.0, "log": False},
        "strategy.decay": [0.5, 1.0],
    }
    made = space_of(composed, COMMON, swept, {"strategy", "trainer.weight_decay"})
    assert made.described() == {
        "strategy.decay": [0.5, 1.0],
        "strategy.lam": {"low": 1.0, "high": 2.0, "log": False},
        "trainer.lr": [7.0, 8.0],
        "trainer.scheduler": SCHEDULER,
    }


def test_an_added_strategy_brings_its_search(compose):
    made = space_of(compose(["strategy=er", "strategy.plus=[ewc,l2]"]), {}, {}, set())
    assert made.described() == {
        "plus.ewc.lam": [0.1, 1.0, 10.0, 100.0, 1000.0],
        "plus.l2.lam": [0.0005, 0.005, 0.05, 0.5, 5.0],
        "strategy.new_weight": [0.1, 0.3, 0.5, 0.7, 0.9],
    }
    fixed = space_of(compose(["strategy=er", "strategy.plus=[ewc]"]), {}, {}, {"plus.ewc.lam"})
    assert set(fixed.distributions) == {"strategy.new_weight"}


def test_an_option_that_does_not_exist_is_named(compose):
    with pytest.raises(
        ConfigError, match=r"trainer\.rl is to be tuned, but finetune on split_digits has no such option"
    ):
        space_of(compose(["strategy=finetune"]), {"trainer.rl": [0.1]}, {}, set())
    with pytest.raises(ConfigError, match=r"strategy\.lam is to be tuned, but finetune"):
        space_of(compose(["strategy=finetune"]), {}, {"strategy.lam": [0.1, 1.0]}, set())


def test_a_grid_needs_lists(options_of):
    ranged = space({"strategy.lam": {"low": 0.1, "high": 1.0}})
    refuse_unlisted(ranged, options_of(sampler="random"))
    refuse_unlisted(space(), options_of(sampler="grid"))
    with pytest.raises(ConfigError, match=r"protocol\.sampler=grid needs a list of values for strategy\.lam"):
        refuse_unlisted(ranged, options_of(sampler="grid"))


@pytest.mark.parametrize(
    "values",
    [
        {"trainer.lr": 1e-05, "trainer.clip_grad_norm": None, "trainer.reset_optimizer": False},
        {"trainer.milestones": "[0.4,0.8]", "trainer.scheduler": "step", "trainer.batch_size": 16},
        {"model.hidden": "[7,5]", "trainer.weight_decay": 0.0},
    ],
)
def test_values_arrive_in_the_run_as_they_were_drawn(compose, values):
    composed = compose(as_overrides(values))
    for name, value in values.items():
        group, option = name.split(".")
        found = composed[group][option]
        assert (str(list(found)).replace(" ", "") if isinstance(value, str) and value[0] == "[" else found) == value


def test_values_of_an_added_strategy_arrive_there(compose):
    composed = compose(["strategy=er", "strategy.plus=[ewc]", *as_overrides({"plus.ewc.lam": 100.0})])
    assert composed.plus == {"ewc": {"lam": 100.0}}
    again = compose(
        ["strategy=er", "strategy.plus=[ewc]", "+plus.ewc.mode=online", *as_overrides({"plus.ewc.lam": 1.0})]
    )
    assert again.plus == {"ewc": {"mode": "online", "lam": 1.0}}


# ---- random draws ------------------------------------------------------------------------------------------------------


def test_a_draw_does_not_depend_on_what_else_of_the_method_is_tuned(options_of):
    """One of its options more or fewer, and the other options' draws stay."""
    options = options_of()
    large = {"strategy.lam": {"low": 0.0, "high": 1.0}}  # real-valued, so that nothing is ever drawn again
    narrow = drawn("ewc", space(large, COMMON), options, 20)
    wide = drawn("ewc", space({**large, "strategy.decay": DECAY}, COMMON), options, 20)
    assert [values["trainer.lr"] for values in narrow] == [values["trainer.lr"] for values in wide]
    assert [values["strategy.lam"] for values in narrow] == [values["strategy.lam"] for values in wide]


def test_methods_share_the_draws_of_shared_options_and_have_their_own_of_others(options_of):
    own = {"strategy.lam": {"low": 0.0, "high": 1.0}}
    ewc, l2 = (drawn(method, space(own), options_of(), 30) for method in ("ewc", "l2"))
    for name in COMMON:
        assert [values[name] for values in ewc] == [values[name] for values in l2]
    assert not {values["strategy.lam"] for values in ewc} & {values["strategy.lam"] for values in l2}


def test_methods_share_the_draws_even_where_one_of_them_has_nothing_of_its_own(options_of, compose):
    """The usual comparison, 30 configurations from conf/search_space/common.yaml: all methods try the same shared values.

    Of 30 draws from 40 shared configurations some are the same, which for finetuning is a repetition and for EWC is not.
    """
    tried = {}
    for name in ("finetune", "ewc", "lwf"):
        of = space_of(compose([f"strategy={name}"]), COMMON, {}, set())
        tried[name] = [
            {option: values[option] for option in COMMON} for values in drawn(name, of, options_of(trials=30), 30)
        ]
    assert tried["ewc"] == tried["lwf"]
    assert tried["finetune"] == tried["ewc"]


def test_the_seed_changes_all_draws(options_of):
    own = {"strategy.lam": {"low": 0.0, "high": 1.0}}
    one, other = (drawn("ewc", space(own), options_of(sampler_seed=seed), 30) for seed in (0, 1))
    for name in (*COMMON, "strategy.lam"):
        assert [values[name] for values in one] != [values[name] for values in other]


@settings(max_examples=20, deadline=None)
@given(lists=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_no_configuration_is_drawn_twice_while_there_are_others(lists, seed):
    of = space(shared={f"option{i}": [float(value) for value in range(n)] for i, n in enumerate(lists)})
    options = ProtocolConfig(kinds=["conventional"], sampler_seed=seed)
    tried = [as_key(values) for values in drawn("finetune", of, options, int(of.size) + 1)]
    every = set(itertools.product(*([(f"option{i}", float(value)) for value in range(n)] for i, n in enumerate(lists))))
    assert set(tried[:-1]) == every
    assert len(tried) == len(every) + 1  # one more than there are is a repetition, and no endless search


def test_draws_are_uniform_and_independent(options_of):
    """χ² of categorical draws and Kolmogorov-Smirnov of real-valued ones, on a scale of logarithms where that is asked for."""
    own = {
        "linear": {"low": -1.0, "high": 3.0},
        "log": {"low": 1e-4, "high": 1.0, "log": True},
        "count": {"low": 2, "high": 5},
        "widths": {"low": 1, "high": 1000, "log": True},
    }
    tried = drawn("ewc", space(own), options_of(), 150)
    for name, choices in {**COMMON, "count": [2, 3, 4, 5]}.items():
        counts = [sum(values[name] == choice for values in tried) for choice in choices]
        assert sum(counts) == len(tried)
        assert stats.chisquare(counts).pvalue > 0.001, name
    assert stats.kstest([values["linear"] for values in tried], stats.uniform(-1, 4).cdf).pvalue > 0.001
    logs = np.log([values["log"] for values in tried])
    assert stats.kstest(logs, stats.uniform(np.log(1e-4), np.log(1e4)).cdf).pvalue > 0.001
    widths = [values["widths"] for values in tried]
    assert all(isinstance(width, int) and 1 <= width <= 1000 for width in widths)
    assert 0.2 < np.mean([width <= 10 for width in widths]) < 0.5  # a third of the logarithms
    numbers = np.array(
        [[values["linear"], math.log(values["log"]), values["count"], values["trainer.lr"]] for values in tried]
    )
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.25


# ---- grid and TPE ------------------------------------------------------------------------------------------------------


def test_a_grid_visits_every_cell_once(options_of):
    of, options = space({"strategy.lam": [1.0, 2.0, 3.0]}, {"trainer.lr": LR}), options_of(sampler="grid")
    tried = [(values["strategy.lam"], values["trainer.lr"]) for values in drawn("ewc", of, options, 15)]
    assert sorted(tried) == sorted(itertools.product([1.0, 2.0, 3.0], LR))
    assert tried != sorted(tried)  # shuffled, so that a budget below the grid's size is not a corner of it
    assert tried == [(v["strategy.lam"], v["trainer.lr"]) for v in drawn("ewc", of, options, 15)]
    other = options_of(sampler="grid", sampler_seed=1)
    assert tried != [(v["strategy.lam"], v["trainer.lr"]) for v in drawn("ewc", of, other, 15)]


def test_a_grid_takes_texts_lists_and_nulls(options_of):
    choices = {"a": ["[0.4,0.8]", "[0.5]"], "b": [None, 1.0], "c": [True, False]}
    tried = drawn("ewc", space(choices, {}), options_of(sampler="grid"), 8)
    assert {tuple(values.values()) for values in tried} == set(itertools.product(*choices.values()))


def finished(of: SearchSpace, values: dict, score: float) -> optuna.trial.FrozenTrial:
    """A trial with a score."""
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE, value=score, params=values, distributions=of.distributions
    )


def test_tpe_learns_from_results(options_of):
    """After results that fall off around 0.7 its draws gather there, as independent ones do not."""
    of, options = space({"strategy.lam": {"low": 0.0, "high": 1.0}}, {}), options_of(sampler="tpe")
    places = np.linspace(0.0, 1.0, 30)
    known = [finished(of, {"strategy.lam": float(p)}, -abs(p - 0.7)) for p in places]
    tried = []
    for _ in range(20):
        tried.append(next_values(known, "ewc", of, options)["strategy.lam"])
        known.append(finished(of, {"strategy.lam": tried[-1]}, -abs(tried[-1] - 0.7)))
    assert np.median(np.abs(np.array(tried) - 0.7)) < 0.15


def test_tpe_proposes_the_same_whenever_it_is_asked(options_of):
    """A proposal is a function of the results and the trial's number; those of two methods differ."""
    of, options = space({"strategy.lam": {"low": 0.0, "high": 1.0}}), options_of(sampler="tpe")
    rng = np.random.default_rng(0)
    known = [finished(of, values, float(rng.random())) for values in drawn("ewc", of, options, 15)]
    first = next_values(known, "ewc", of, options)
    optuna.create_study().ask({"x": FloatDistribution(0, 1)})  # draws from elsewhere do not matter
    assert next_values(known, "ewc", of, options) == first
    assert next_values(known, "l2", of, options) != first
    assert next_values(known, "ewc", of, options_of(sampler="tpe", sampler_seed=1)) != first
