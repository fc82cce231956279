"""``trainer.compile``: the same run, and what happens where compiling fails."""

import functools

import pandas as pd
import pytest
import torch
from functorch.compile import make_boxed_func
from streams import digits_for
from torch._dynamo.backends.common import aot_autograd

from clbench.errors import ConfigError
from clbench.learning.compilation import Compilation
from clbench.testing.small_runs import in_double_precision, small_network, small_options
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
    "er",
    "ilora",
    "o_lora",
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


@pytest.mark.parametrize("name", ["ewc", "gem", "dst", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
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


# ---- what fails only compiled -----------------------------------------------------------------------------------------


def no_kernel(*_):
    raise RuntimeError("no kernel for the backward pass")


def as_it_is(graph, _inputs):
    return make_boxed_func(graph.forward)


BACKWARD = {
    "compiling": no_kernel,  # as where Triton finds no C compiler
    "launching": lambda graph, inputs: make_boxed_func(no_kernel),
}


@pytest.fixture
def without_backward(request, monkeypatch):
    """torch.compile with a backend that fails in the backward pass."""
    backend = aot_autograd(fw_compiler=as_it_is, bw_compiler=BACKWARD[request.param])
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile_function(function, backend=backend))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("without_backward", "precision"),
    [
        ("compiling", "fp32"),
        ("launching", "fp16"),
        pytest.param("compiling", "fp16", marks=pytest.mark.slow),
        pytest.param("launching", "fp32", marks=pytest.mark.slow),
    ],
    indirect=["without_backward"],
)
def test_auto_goes_on_without_where_the_backward_pass_fails(precision, without_backward, small_trainer, caplog):
    chosen = options("ewc", f"trainer.precision={precision}", "evaluator.diagnostics_every=2")
    eager, trainer = small_trainer(*chosen, checkpoint="eager"), small_trainer(*chosen, checkpoint="compiled")
    trainer.learner.compilation = Compilation("auto", CUDA)
    eager.fit()
    trainer.fit()
    assert trainer.learner.compilation.done == "eager"
    pd.testing.assert_frame_equal(eager.training, trainer.training)
    assert len(eager.diagnostics.rows()) == len(trainer.diagnostics.rows())
    assert sum("no kernel for the backward pass" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("without_backward", ["compiling"], indirect=True)
def test_so_does_a_fleet(without_backward, small_trainer):
    members = [small_trainer(*options("ewc"), f"seed={seed}", checkpoint=str(seed)) for seed in (0, 1)]
    members[0].learner.compilation = Compilation("auto", CUDA)
    Fleet(members).fit()
    assert members[0].learner.compilation.done == "eager"


@pytest.mark.parametrize("without_backward", ["launching"], indirect=True)
def test_max_says_so_too(without_backward, small_trainer):
    with pytest.raises(ConfigError, match=r"trainer\.compile=max is not possible here .*no kernel"):
        small_trainer(*options("finetune", "trainer.compile=max")).fit()


@pytest.mark.parametrize("setting", ["auto", "max"])
def test_what_fails_eagerly_too_is_raised_as_it_is(setting):
    compilation = Compilation(setting, CUDA)

    def out_of_memory():
        raise torch.OutOfMemoryError("the batch is too large")

    with pytest.raises(torch.OutOfMemoryError, match="the batch is too large"):
        compilation.guarded(out_of_memory)
    assert compilation.active


# ---- transformers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile has made, which run as they are."""
    made = []
    compile_function = torch.compile

    def backend(graph, _inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, mode: compile_function(function, backend=backend))
    torch._dynamo.reset()
    return made


def test_evaluations_behind_frozen_stages_are_traced_once(graphs, small_trainer):
    trainer = small_trainer(
        *["strategy=finetune", "model=small_vit", "model.width=8", "model.depth=2", "model.heads=2"],
        *["model.image_size=8", "model.frozen=2", "scenario.increment=5", "trainer.compile=max"],
        *["trainer.max_steps_per_task=1"],
    )
    trainer.begin()
    trainer.begin_task()
    assert trainer.evaluator._stages_done == 2
    torch._dynamo.utils.counters.clear()
    trainer.evaluator.evaluate(0, 0)
    n = len(graphs)
    trainer.evaluator.evaluate(0, 0)
    assert len(graphs) == n
    assert not torch._dynamo.utils.counters["graph_break"]


def test_stacks_of_transformers_are_not_compiled(graphs, small_trainer, caplog):
    chosen = [*small_options("lora"), *small_network("lora"), "scenario.increment=5", "trainer.max_steps_per_task=1"]
    members = [small_trainer(*chosen, "trainer.compile=max", f"seed={seed}", checkpoint=str(seed)) for seed in (0, 1)]
    fleet = Fleet(members)
    fleet.begin_task()  # whose first evaluation is of each by itself
    graphs.clear()
    fleet.train_step()
    assert not graphs
    sentence = "trainer.compile=max: stacks of vision transformers are not compiled"
    assert [record.message for record in caplog.records].count(sentence) == 1
    assert members[0].learner.compilation.done.endswith(", stacks of vision transformers eager")
