"""What the command line says about a study: methods, and what is tried of each."""

from collections.abc import Callable
from typing import Any

import pytest

from clbench.errors import ConfigError
from clbench.protocol.methods import Method, methods_of

SHARED = {"trainer.lr": [0.01, 0.1], "trainer.weight_decay": [0.0, 0.001]}
EWC_LAM = [0.1, 1.0, 10.0, 100.0, 1000.0]


@pytest.fixture
def methods(compose, options_of) -> Callable[..., list[Method]]:
    """A function: words of the command line → methods, under a protocol with two shared options."""

    def make(*arguments: str, **options: Any) -> list[Method]:
        return methods_of(list(arguments), options_of(**{"search": SHARED, **options}), compose)

    return make


def test_every_choice_of_a_swept_group_is_a_method(methods):
    found = methods("strategy=ewc,finetune", "scenario=split_digits,split_digits_task", "trainer.batch_size=16")
    assert [(method.name, method.scenario) for method in found] == [
        ("ewc", "split_digits"),
        ("ewc", "split_digits_task"),
        ("finetune", "split_digits"),
        ("finetune", "split_digits_task"),
    ]
    for method in found:
        assert method.overrides == ["trainer.batch_size=16", f"strategy={method.name}", f"scenario={method.scenario}"]
        assert (method.composed.strategy.name, method.composed.scenario.name) == (method.name, method.scenario)
        assert method.composed.trainer.batch_size == 16
    assert found[0].space.described() == {**SHARED, "strategy.lam": EWC_LAM}
    assert found[2].space.described() == SHARED


def test_a_single_method_needs_no_sweep(methods):
    [method] = methods("strategy=ewc")
    assert (method.name, method.scenario, method.overrides) == ("ewc", "split_digits", ["strategy=ewc"])
    [usual] = methods()
    assert (usual.name, usual.overrides) == ("ewc", [])


@pytest.mark.parametrize(
    ("swept", "expected"),
    [
        ("trainer.lr=0.5,0.25", [0.5, 0.25]),
        ("trainer.lr=choice(0.5,0.25)", [0.5, 0.25]),
        ("trainer.lr=range(1,4)", [1, 2, 3]),
        ("trainer.lr=interval(0.001,0.1)", {"low": 0.001, "high": 0.1, "log": False}),
        ("trainer.lr=tag(log,interval(0.001,0.1))", {"low": 0.001, "high": 0.1, "log": True}),
    ],
)
def test_a_swept_value_is_searched_in_place_of_the_usual_ones(methods, swept, expected):
    for method in methods("strategy=ewc,finetune", swept):
        assert method.space.described()["trainer.lr"] == expected
        assert method.space.described()["trainer.weight_decay"] == SHARED["trainer.weight_decay"]
        assert not any("trainer.lr" in override for override in method.overrides)
        assert "trainer.lr" in method.space.shared


@pytest.mark.parametrize(
    ("swept", "option", "expected"),
    [
        ("trainer.optimizer=sgd,adam", "trainer.optimizer", ["sgd", "adam"]),
        ("trainer.clip_grad_norm=null,1.0", "trainer.clip_grad_norm", [None, 1.0]),
        ("trainer.reset_optimizer=true,false", "trainer.reset_optimizer", [True, False]),
        ("trainer.milestones=[0.5],[0.4,0.8]", "trainer.milestones", ["[0.5]", "[0.4,0.8]"]),
        ("trainer.batch_size=8,16", "trainer.batch_size", [8, 16]),
        ("strategy.lam=7,8", "strategy.lam", [7, 8]),
    ],
)
def test_a_swept_value_of_any_type_is_searched(methods, swept, option, expected):
    [method] = methods("strategy=ewc", swept)
    assert method.space.described()[option] == expected


def test_a_methods_own_option_stays_its_own_when_it_is_swept(methods):
    [method] = methods("strategy=ewc", "strategy.lam=7,8")
    assert method.space.shared == set(SHARED)


def test_a_fixed_value_leaves_the_space_and_is_the_same_for_all(methods):
    for method in methods("strategy=ewc,l2", "trainer.lr=0.05", "strategy.lam=3"):
        assert method.space.described() == {"trainer.weight_decay": [0.0, 0.001]}
        assert (method.composed.trainer.lr, method.composed.strategy.lam) == (0.05, 3)


@pytest.mark.parametrize(
    "given",
    ["seed=0", "seed=0,1", "++seed=3", "evaluator.split=test", "evaluator.split=test,validation", "scenario.validation=0.2",
     "scenario.tasks=2"],
)  # fmt: skip
def test_what_a_protocol_sets_itself_is_refused_in_one_sentence(methods, given):
    with pytest.raises(
        ConfigError, match=r"is not for a protocol, which sets .* itself: see protocol\.tuning_seeds"
    ) as raised:
        methods("strategy=ewc", given)
    assert str(raised.value).startswith(given)
    assert "\n" not in str(raised.value)


def test_the_protocols_own_words_are_none_of_the_methods(methods):
    [method] = methods("protocol=two_phase", "protocol.trials=3", "search_space=none", "strategy=ewc")
    assert method.overrides == ["strategy=ewc"]


def test_added_strategies_bring_their_search(methods):
    [method] = methods("strategy=er", "strategy.plus=[ewc]")
    assert method.name == "er+ewc"
    assert method.space.described()["plus.ewc.lam"] == EWC_LAM
    assert method.space.shared == set(SHARED)
    [fixed] = methods("strategy=er", "strategy.plus=[ewc]", "+plus.ewc.lam=5")
    assert "plus.ewc.lam" not in fixed.space.described()
    assert fixed.composed.plus.ewc.lam == 5


def test_other_swept_groups_are_part_of_the_name_where_they_have_to_be(methods):
    found = methods("strategy=finetune", "model=mlp,slim_resnet18")
    assert [method.name for method in found] == ["finetune-mlp", "finetune-slim_resnet18"]
    assert [method.composed.model.name for method in found] == ["mlp", "slim_resnet18"]
    assert [method.name for method in methods("strategy=finetune", "model=mlp")] == ["finetune"]
    by_experiment = methods("experiment=split_mnist_er,split_mnist_gem")
    assert [(method.name, method.scenario) for method in by_experiment] == [
        ("er", "split_mnist"),
        ("gem", "split_mnist"),
    ]


def test_a_label_tells_variants_apart_that_are_studied_apart(methods):
    [variant] = methods("strategy=ewc", "model.norm=layer", label="layer_norm")
    assert variant.name == "ewc-layer_norm"


def test_two_methods_of_one_name_are_refused(methods):
    with pytest.raises(ConfigError, match="the command line names the method ewc twice"):
        methods("strategy=ewc,ewc")


def test_a_space_that_the_sampler_cannot_draw_from_is_refused(methods):
    with pytest.raises(ConfigError, match=r"protocol\.sampler=grid needs a list of values for trainer\.lr"):
        methods("strategy=ewc", "trainer.lr=interval(0.001,0.1)", sampler="grid")


def test_an_option_that_only_one_of_the_methods_has(methods):
    with pytest.raises(
        ConfigError, match=r"strategy\.lam is to be tuned, but finetune on split_digits has no such option"
    ):
        methods("strategy=ewc,finetune", "strategy.lam=1,2")


@pytest.mark.parametrize(
    "swept", ["scenario.classes=[0,1,2,3],[5,6,7,8]", "scenario.increment=1,2", "scenario.source=digits,mnist"]
)
def test_options_that_make_the_stream_are_not_searched(methods, swept):
    """A configuration would be tuned on one stream and evaluated on another than was compared, maybe on the very classes."""
    with pytest.raises(ConfigError, match=swept.partition("=")[0].replace(".", r"\.")):
        methods("strategy=finetune", swept)


def test_a_range_of_whole_numbers_is_drawn_in_whole_numbers(methods):
    """``interval`` is real-valued in Hydra, ``int(interval(…))`` is not; a batch of 23.7 samples cannot be made."""
    [method] = methods("strategy=finetune", "trainer.batch_size=int(interval(8,64))")
    distribution = method.space.distributions["trainer.batch_size"]
    assert (type(distribution).__name__, distribution.low, distribution.high) == ("IntDistribution", 8, 64)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size"):
        methods("strategy=finetune", "trainer.batch_size=interval(8,64)")


def test_a_pattern_is_one_sentence(methods):
    """``strategy=glob(*)`` works in Hydra's own sweeps; here it takes what knows the files of the group."""
    with pytest.raises(ConfigError, match="glob"):
        methods("strategy=glob(l*)")


def test_a_sweep_over_one_value_is_a_fixed_option(compose, options_of):
    """In a sweep over strategies the command line hands fixed options to Hydra as choice(…)."""
    arguments = [
        "strategy=l2,finetune",
        "trainer.epochs=choice(3)",
        "trainer.lr=choice(0.5)",
        "trainer.momentum=0.1,0.2",
    ]
    for method in methods_of(arguments, options_of(), compose):
        assert "trainer.lr=0.5" in method.overrides
        assert "trainer.epochs=3" in method.overrides
        assert "trainer.momentum" in method.space.described()
        assert "trainer.lr" not in method.space.described()
