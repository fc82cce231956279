"""``trainer.compile``: the same run, and what happens where compiling fails."""

import functools

import pandas as pd
import pytest
import torch
from double_precision import in_double_precision
from streams import digits_for, small_network, small_options

from clbench.errors import ConfigError
from clbench.strategies.compilation import Compilation
from clbench.training.fleet import Fleet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def options(name: str, *more: str) -> list[str]:
    return [*small_options(name), f"scenario={digits_for(name)}", *small_network(name), "scenario.increment=3",
            "scenario.class_order=[0,1,2,3,4,5,6,7,8]", "scenario.classes=[0,1,2,3,4,5,6,7,8]", *more]  # fmt: skip


def assert_same_curve(first, second) -> None:
    pd.testing.assert_frame_equal(first.training, second.training, rtol=1e-3, atol=1e-4)
    assert ((first.curve.correct - second.curve.correct).abs() <= 1).all()


def test_what_is_compiled():
    assert not Compilation("off", CUDA).active
    assert not Compilation("auto", CPU).active
    assert Compilation("auto", CUDA).active
    assert not Compilation("auto", CUDA).graphs
    assert Compilation("max", CPU).active
    assert not Compilation("max", CPU).graphs
    assert Compilation("max", CUDA).graphs
    assert Compilation("max", CPU).done == "torch.compile, mode max-autotune-no-cudagraphs"
    assert Compilation("auto", CPU).done == "eager"


@pytest.fixture
def traced_only(monkeypatch):
    """torch.compile traces and differentiates as ever, but runs the graphs as they are: no C++ compiler, seconds."""
    compiled = []
    compile_function = torch.compile

    def spy(function, mode):
        compiled.append(function)
        return compile_function(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", spy)
    torch._dynamo.reset()
    return compiled


SLOW = [
    "ilora",
    "reglora",
    "hypernetwork",
    "spectral",
    "wasserstein",
    "redo",
    "continual_backprop",
    "owm",
    "slda",
    "ranpac",
    "if2net",
    "outliers",
]


@pytest.mark.parametrize(
    "name", ["er", "ewc", "gem", "dst", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_same_curve_over_tasks(name, small_trainer, traced_only):
    eager, compiled = (
        small_trainer(*options(name), checkpoint="eager"),
        small_trainer(*options(name, "trainer.compile=max"), checkpoint="compiled"),
    )
    has_losses = eager.learner.learns_by_gradient  # in the first task
    eager.fit()
    assert not traced_only
    compiled.fit()
    assert len(traced_only) == 1 + has_losses  # predictions, and losses
    assert compiled.learner.compilation.active
    assert_same_curve(eager, compiled)


def test_the_same_fleet(small_trainer, traced_only):
    members = {
        setting: [
            small_trainer(*options("ewc", f"trainer.compile={setting}", f"seed={seed}"), checkpoint=f"{setting}{seed}")
            for seed in (0, 1)
        ]
        for setting in ("off", "max")
    }
    for fleet in members.values():
        Fleet(fleet).fit()
    assert traced_only
    for eager, compiled in zip(members["off"], members["max"], strict=True):
        assert_same_curve(eager, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("model", [["model.hidden=[16]"], ["model=slim_resnet18", "model.width=2"]])
def test_the_same_curve_with_real_kernels(model, small_trainer):
    chosen = ["strategy=er", "strategy.memory_size=40", "scenario.increment=5", *model]
    eager, compiled = (
        small_trainer(*chosen, checkpoint="eager"),
        small_trainer(*chosen, "trainer.compile=max", checkpoint="compiled"),
    )
    torch._dynamo.reset()
    for trainer in (eager, compiled):
        in_double_precision(trainer).fit()
    assert compiled.learner.compilation.active
    assert_same_curve(eager, compiled)


def failing(function, mode):
    @functools.wraps(function)
    def fails(*arguments):
        raise torch._dynamo.exc.Unsupported("a tree cannot be compiled")

    return fails


def test_auto_goes_on_without(small_trainer, monkeypatch, caplog):
    trainer = small_trainer(*options("finetune"))
    trainer.learner.compilation = Compilation("auto", CUDA)
    monkeypatch.setattr(torch, "compile", failing)
    trainer.fit()
    assert trainer.learner.compilation.done == "eager"
    warnings = [record.message for record in caplog.records if "torch.compile fails" in record.message]
    assert warnings == ["torch.compile fails, training goes on without it (Unsupported: a tree cannot be compiled)"]


def test_max_says_that_it_is_impossible(small_trainer, monkeypatch):
    trainer = small_trainer(*options("finetune", "trainer.compile=max"))
    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ConfigError, match=r"trainer\.compile=max is not possible here .*: choose trainer\.compile=off"):
        trainer.fit()
