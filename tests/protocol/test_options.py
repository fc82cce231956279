"""The options of a protocol: what is refused, and every committed YAML file."""

import json

import pytest

from clbench.conf_files import conf_dir
from clbench.config import typed
from clbench.errors import ConfigError
from clbench.evaluation.metrics import summarise
from clbench.options import check_fields, to_dataclass
from clbench.protocol.options import CHEAP_METRICS, ProtocolConfig
from clbench.protocol.search_space import distribution

PROTOCOLS = sorted(file.stem for file in (conf_dir() / "protocol").glob("*.yaml"))
SPACES = sorted(file.stem for file in (conf_dir() / "search_space").glob("*.yaml"))


def options(compose, *overrides: str) -> ProtocolConfig:
    """The checked options that the command line gives a study."""
    config = to_dataclass(compose(list(overrides)).protocol)
    check_fields(config, "protocol.")
    config.check()
    return config


# ---- the YAML files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_file_composes_and_makes_the_sweep_a_study(compose, name):
    composed = compose([f"protocol={name}"])
    assert composed.hydra.runtime.choices["hydra/sweeper"] == "clbench_protocol"
    config = options(compose, f"protocol={name}")
    assert config.kinds == ([name] if name != "comparison" else ["two_phase", "conventional", "first_task", "first_k"])
    assert set(config.search) == {"trainer.lr", "trainer.weight_decay", "trainer.scheduler"}
    assert not set(config.tuning_seeds) & set(config.evaluation_seeds)
    assert (conf_dir() / "protocol" / f"{name}.yaml").read_text().splitlines()[1].startswith("# ")


def test_the_two_phases_are_those_of_the_paper(compose):
    """30 configurations, five seeds, the first and the second half of the classes, a class order for every seed."""
    config = options(compose, "protocol=two_phase")
    assert (config.trials, config.halves, config.shuffle_classes, config.sampler) == (30, "index", True, "random")
    assert (config.tuning_seeds, config.evaluation_seeds) == ([0, 1, 2, 3, 4], [100, 101, 102, 103, 104])
    assert config.metric == "average_incremental_pooled"
    assert config.pruner == "none"


def test_without_a_protocol_a_sweep_is_hydras(compose):
    composed = compose([])
    assert composed.hydra.runtime.choices["hydra/sweeper"] == "basic"
    assert composed.protocol is None


@pytest.mark.parametrize("name", SPACES)
def test_a_search_space_replaces_the_usual_one_and_its_values_can_be_run(compose, name):
    """Values at the same place of all lists make a configuration; together those configurations have every value once."""
    search = options(compose, "protocol=two_phase", f"search_space={name}").search
    for option, values in search.items():
        distribution(option, values)
    for place in range(max((len(values) for values in search.values()), default=0)):
        chosen = [f"{option}={values[place % len(values)]}" for option, values in search.items()]
        config = typed(compose(["scenario=cifar100", *chosen]))
        for option, values in search.items():
            value = values[place % len(values)]
            found = getattr(config.trainer, option.removeprefix("trainer."))
            assert found == (json.loads(value) if option == "trainer.milestones" else value)
    assert (name == "none") == (not search)


@pytest.mark.parametrize("name", [name for name in SPACES if name.startswith("gtep")])
def test_the_papers_milestones_follow_its_rule(compose, name):
    """n milestones at 2i / (2n + 1) of the epochs: 2/5, 4/5; 2/7, 4/7, 6/7; 2/9 to 8/9."""
    lists = options(compose, "protocol=two_phase", f"search_space={name}").search["trainer.milestones"]
    for n, text in zip((2, 3, 4), lists, strict=True):
        assert [float(part) for part in text.strip("[]").split(",")] == pytest.approx(
            [2 * i / (2 * n + 1) for i in range(1, n + 1)], abs=1e-6
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gtep_scratch", {"trainer.epochs": [30, 70, 120, 160, 200], "trainer.lr": [0.05, 0.1, 0.15, 0.2, 0.3],
                          "trainer.gamma": [0.1, 0.3, 0.5], "trainer.batch_size": [32, 64, 128, 256, 512],
                          "trainer.weight_decay": [1e-4, 5e-4, 1e-3, 5e-3], "trainer.scheduler": ["step", "cosine"]}),
        ("gtep_prompt", {"trainer.epochs": [3, 5, 10, 15, 20, 25], "trainer.lr": [0.000875, 0.001375, 0.001875, 0.002375, 0.0025],
                         "trainer.gamma": [0.1, 0.3, 0.5], "trainer.batch_size": [8, 16, 24, 48, 64, 128],
                         "trainer.weight_decay": [0.0, 1e-4, 5e-4], "trainer.scheduler": ["step", "cosine", "constant"],
                         "trainer.optimizer": ["sgd", "adam", "adamw"]}),
        ("gtep_adapter", {"trainer.epochs": [5, 10, 15, 20, 25, 30], "trainer.lr": [0.01, 0.02, 0.03, 0.04, 0.05],
                          "trainer.gamma": [0.1, 0.3, 0.5], "trainer.batch_size": [8, 16, 24, 48, 64, 128],
                          "trainer.weight_decay": [1e-4, 5e-4, 1e-3, 5e-3], "trainer.scheduler": ["step", "cosine", "constant"],
                          "trainer.optimizer": ["sgd", "adam", "adamw"]}),
    ],
)  # fmt: skip
def test_the_papers_lists(compose, name, expected):
    search = options(compose, "protocol=two_phase", f"search_space={name}").search
    search.pop("trainer.milestones")
    assert search == expected


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["two_fase"]}, "unknown value in protocol.kinds 'two_fase': did you mean 'two_phase'\\? Valid choices: "),
        ({"kinds": []}, "protocol.kinds=.* has to name at least one of two_phase, conventional"),
        ({"kinds": ["first_k", "first_k"]}, "none twice"),
        ({"tuning_seeds": []}, r"protocol.tuning_seeds=\[\] has to name at least one seed"),
        ({"evaluation_seeds": [100, 100]}, r"protocol.evaluation_seeds=\[100, 100\] has to name .* none twice"),
        ({"tuning_seeds": [-1]}, r"protocol.tuning_seeds=\[-1\] .* from 0 on"),
        ({"evaluation_seeds": [1, 100, 0]}, r"seeds \[0, 1\] are in protocol.tuning_seeds and in protocol.evaluation_seeds"),
        ({"halves": "index", "tune_on": "split_mnist"}, "protocol.halves=index and protocol.tune_on=split_mnist exclude"),
        ({"kinds": ["conventional", "two_phase"]}, "two_phase needs something else to tune on: protocol.halves=index"),
        ({"kinds": ["first_task"], "shuffle_classes": True}, "protocol.shuffle_classes=true gives every seed other first tasks"),
        ({"kinds": ["first_k"], "shuffle_classes": True}, "set it to false"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_together(options_of, changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        options_of(**changes).check()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation_seeds": [1, 0], "paper_compat": True},
        {"kinds": ["two_phase"], "halves": "seeded"},
        {"kinds": ["two_phase"], "tune_on": "split_mnist"},
        {"kinds": ["conventional"], "shuffle_classes": True},
    ],
)
def test_options_that_make_sense_together(options_of, changes):
    config = options_of(**changes)
    check_fields(config, "protocol.")
    config.check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trials", 0, "protocol.trials=0 is out of range: it has to be at least 1"),
        ("sampler", "rnadom", "did you mean 'random'\\? Valid choices: grid, random, tpe"),
        ("pruner", "halving", "unknown value for protocol.pruner 'halving'.*successive_halving"),
        ("metric", "FORG", "unknown value for protocol.metric 'FORG'"),
        ("validation", 0.0, "protocol.validation=0.0 is out of range: it has to be above 0"),
        ("reduction", 1, "at least 2"),
        (
            "metric",
            "average_incremental",
            "unknown value for protocol.metric 'average_incremental': did you mean "
            "'average_incremental_macro' or 'average_incremental_pooled'\\?",
        ),
        ("halves", "idnex", "unknown value for protocol.halves 'idnex': did you mean 'index'\\?"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(options_of, name, value, message):
    with pytest.raises(ConfigError, match=message):
        check_fields(options_of(**{name: value}), "protocol.")


@pytest.mark.parametrize("kind", ["first_task", "first_k"])
def test_a_metric_that_one_task_does_not_have_is_refused(options_of, kind):
    """min-ACC is undefined before a second task: every trial would be trained, and none could be selected."""
    with pytest.raises(ConfigError, match="min_ACC"):
        options_of(kinds=[kind], first_tasks=1, metric="min_ACC").check()


def test_cheap_metrics_need_no_evaluation_between_task_ends(small_trainer):
    """They are the same whether or not anything is evaluated in between, so that tuning may leave that out."""
    found = []
    for every in (0, 1):
        trainer = small_trainer(f"evaluator.every={every}", "scenario.tasks=2", checkpoint=f"every {every}")
        trainer.fit()
        metrics = summarise(trainer.curve, trainer.tasks, every)
        found.append({name: metrics[name] for name in CHEAP_METRICS})
    assert found[0] == found[1]
    assert all(value is not None for value in found[0].values())
