"""What only a CUDA device can show: no host sync within the loop, and the same result as on the CPU.

Without a device most of it runs on one that is pretended, see pretended_cuda.py. How far results deviate from those of the CPU is
recorded as a property of the test (``--junitxml``), and printed.
"""

import warnings

import pandas as pd
import pytest
import torch
from streams import digits_for

from clbench.registry import STRATEGIES
from clbench.testing.small_runs import small_network, small_options
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def options(name: str, *more: str) -> list[str]:
    return [
        *small_options(name),
        f"scenario={digits_for(name)}",
        "scenario.increment=5",
        *small_network(name),
        "trainer.max_steps_per_task=6",
        *more,
    ]


def on_gpu(*more: str) -> list[str]:
    return ["device=cuda", "trainer.compile=off", *more]


def refuse_syncs(owner, method: str, monkeypatch) -> None:
    """Let CUDA raise where ``owner.method`` makes the host wait for the device."""
    call = getattr(owner, method)

    def guarded(*arguments):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(owner, method, guarded)
    enter = Trainer.enter_where_due

    def permitted(trainer):
        """What a strategy does between two steps may wait for the device."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        enter(trainer)
        torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(Trainer, "enter_where_due", permitted)


PRECISIONS = {
    "fp32": ["trainer.precision=fp32"],
    "bf16": ["trainer.precision=bf16"],
    "fp16": ["trainer.precision=fp16"],
    "fp16 and Adam": ["trainer.precision=fp16", "trainer.optimizer=adam"],
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for name in STRATEGIES.names()
        for precision in PRECISIONS
        if "Adam" not in precision or "adam" in STRATEGIES[name].needs.optimizers
    ],
)
def test_no_host_sync_within_the_loop(name, precision, small_trainer, monkeypatch):
    trainer = small_trainer(*options(name, *PRECISIONS[precision], "scenario.augment.flip=true"), *on_gpu())
    refuse_syncs(trainer, "advance", monkeypatch)
    trainer.fit()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_no_host_sync_within_a_fleets_loop(name, small_trainer, monkeypatch):
    chosen = options(name, *on_gpu("scenario.augment.flip=true"))
    fleet = Fleet([small_trainer(*chosen, f"seed={seed}", checkpoint=str(seed)) for seed in (0, 1)])
    refuse_syncs(fleet, "train_step", monkeypatch)
    fleet.fit()


def unlike_members(placement: str) -> list[list[str]]:
    """Two runs whose classes come in another order, so that their tasks take 9 and 10 steps, and 10 and 9."""
    common = [*small_options("er"), "scenario=split_digits", *small_network("er"), "scenario.increment=2"]
    common += ["scenario.classes=[8,2,3,1]", "trainer.epochs=1", "trainer.max_steps_per_task=null"]
    common += ["trainer.batch_size=32", f"data.placement={placement}"]
    return [on_gpu(*common, f"scenario.class_order={order}") for order in ("[8,2,3,1]", "[3,1,8,2]")]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_no_host_sync_where_members_differ(placement, small_trainer, monkeypatch):
    """Some step, and are evaluated, while others have no more steps."""
    chosen = unlike_members(placement)
    members = [small_trainer(*member, checkpoint=f"fleet{i}") for i, member in enumerate(chosen)]
    fleet = Fleet(members)
    refuse_syncs(fleet, "train_step", monkeypatch)
    fleet.fit()
    steps = [member.training.groupby("task_learning").iteration.nunique().tolist() for member in members]
    assert steps == [[9, 10], [10, 9]]
    for i, member in enumerate(members):
        alone = small_trainer(*chosen[i], checkpoint=f"alone{i}")
        alone.fit()
        assert_close(member, alone)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_same_curve_as_on_the_cpu(name, small_trainer, record_property):
    """Same batches and initial weights on both devices; losses agree within float tolerance over a short run."""
    cpu = small_trainer(*options(name), checkpoint="cpu")
    cuda = small_trainer(*options(name), *on_gpu(), checkpoint="cuda")
    cpu.fit()
    cuda.fit()
    report(name, cuda, cpu, record_property)
    assert_close(cuda, cpu)


CASES = {
    "adaptive": ["strategy=er", "evaluator=adaptive", "evaluator.window=3"],
    "measures": [
        *["strategy=ewc", "evaluator.diagnostics_every=2", "evaluator.plasticity_every=3"],
        "evaluator.connectivity_points=3",
    ],
    "clipped and scheduled": ["strategy=gem", "trainer.clip_grad_norm=0.5", "trainer.scheduler=cosine"],
    "convolutions": ["strategy=er", "model=slim_resnet18", "model.width=4", "trainer.max_steps_per_task=3"],
}


@pytest.mark.parametrize("case", CASES)
def test_same_tables_as_on_the_cpu(case, small_trainer, record_property):
    memory = ["strategy.memory_size=40"] if CASES[case][0] in ("strategy=er", "strategy=gem") else []
    chosen = ["scenario=split_digits", "scenario.increment=5", "model=mlp", *CASES[case], *memory]
    chosen = [option for option in chosen if option != "model=mlp" or "model=slim_resnet18" not in chosen]
    cpu, cuda = small_trainer(*chosen, checkpoint="cpu"), small_trainer(*chosen, *on_gpu(), checkpoint="cuda")
    cpu.fit()
    cuda.fit()
    report(case, cuda, cpu, record_property)
    assert_close(cuda, cpu)
    for measured in ("diagnostics", "plasticity", "connectivity"):
        mine, its = (getattr(trainer, measured).table() for trainer in (cuda, cpu))
        pd.testing.assert_frame_equal(mine, its, rtol=0.05, atol=0.02)


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("name", ["er", "dst", "slda", "continual_backprop"])
def test_resumed_on_the_same_or_the_other_device(name, first, then, small_trainer, monkeypatch):
    chosen = options(name, "trainer.compile=off", "trainer.optimizer=adam", "record.checkpoint_seconds=0")
    whole = small_trainer(*chosen, "device=cpu", checkpoint="whole")
    whole.fit()
    killed = small_trainer(*chosen, f"device={first}", checkpoint="killed")
    step = killed._train_step

    def step_or_die(*arguments):
        if killed.iteration == 9:
            raise Killed
        step(*arguments)

    monkeypatch.setattr(killed, "_train_step", step_or_die)
    with pytest.raises(Killed):
        killed.fit()
    resumed = small_trainer(*chosen, f"device={then}", checkpoint="killed")
    resumed.fit()
    assert_close(resumed, whole)
    assert {tensor.device.type for tensor in resumed.learner.state_dict().values()} == {then}


def test_batches_copied_from_the_host_are_those_on_the_device(small_trainer):
    """To the bit, over so many steps that a copy that is overtaken by the next batch would show."""
    chosen = options("er", *on_gpu("trainer.max_steps_per_task=60", "evaluator.every=0"))
    tables = []
    for placement in ("device", "host"):
        trainer = small_trainer(*chosen, f"data.placement={placement}", checkpoint=placement)
        trainer.fit()
        tables.append(trainer.training)
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gem", "agem"])
def test_gradients_of_a_fleet_of_transformers(name, precision, small_trainer):
    """So wide that a GPU chooses its fused attention, the backward pass of which cannot be vmapped."""
    vit = ["model=small_vit", "model.width=64", "model.depth=2", "model.heads=4", "model.image_size=8"]
    chosen = [*small_options(name), "scenario=split_digits", "scenario.increment=5", *vit]
    chosen += on_gpu("trainer.max_steps_per_task=3", f"trainer.precision={precision}", "trainer.lr=0.01")
    together = [small_trainer(*chosen, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in range(2)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")
        Fleet(together).fit()
    for seed, member in enumerate(together):
        alone = small_trainer(*chosen, f"seed={seed}", checkpoint=f"alone{seed}")
        alone.fit()
        assert_close(member, alone, within=1e-2 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("name", ["ewc", "dst"])
def test_a_tasks_first_step_overflows(name, small_trainer, monkeypatch):
    """The momentum it leaves behind is 0, and not what the memory held."""
    trainer = small_trainer(*options(name), *on_gpu("trainer.precision=fp16", "trainer.optimizer=sgd"))
    scale = trainer.precision._scaler.scale
    monkeypatch.setattr(
        trainer.precision._scaler, "scale", lambda loss: scale(loss) * (2.0**100 if trainer.step == 0 else 1)
    )
    trainer.begin()
    for _ in range(2):
        trainer.begin_task()
        before = [parameter.detach().clone() for parameter in trainer.parameters]
        trainer.advance()
        for parameter, old in zip(trainer.parameters, before, strict=True):
            assert torch.equal(parameter, old)
            assert not trainer.optimizer.state[parameter]["momentum_buffer"].any()
        trainer._run_task()
        trainer.end_task()
    assert trainer.training.loss.notna().all()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_the_same_again_and_without_evaluation(name, small_trainer, record_property):
    """The same run a second time, and with fewer evaluations; which of them agree to the bit is recorded, see the README."""
    runs = [
        small_trainer(*options(name), *on_gpu(f"evaluator.every={every}"), checkpoint=f"{number}")
        for number, every in enumerate((1, 1, 0))
    ]
    for trainer in runs:
        trainer.fit()
    first, *others = [torch.cat([p.detach().reshape(-1).cpu() for p in t.learner.parameters()]) for t in runs]
    for other, what in zip(others, ("again", "with fewer evaluations"), strict=True):
        is_same = torch.equal(first, other)
        record_property(f"bit-identical {what}", is_same)
        print(f"{name} {what}: {'bit-identical' if is_same else 'not bit-identical'}")
        torch.testing.assert_close(first, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("setting", ["auto", "max"])
@pytest.mark.parametrize("name", ["er", "ewc", "gem"])
def test_same_curve_when_compiled(name, setting, small_trainer):
    chosen = [*options(name), "device=cuda"]
    eager = small_trainer(*chosen, "trainer.compile=off", checkpoint="eager")
    compiled = small_trainer(*chosen, f"trainer.compile={setting}", checkpoint="compiled")
    eager.fit()
    compiled.fit()
    assert compiled.learner.compilation.active
    assert_close(compiled, eager)


@pytest.mark.parametrize("model", [["model=mlp"], ["model=slim_resnet18", "model.width=4"]])
def test_a_fleet_member_equals_its_solo_run(model, small_trainer):
    common = on_gpu("trainer.max_steps_per_task=3", "scenario.increment=5")
    chosen = [*small_options("er"), f"scenario={digits_for('er')}", *model, *common]
    together = [small_trainer(*chosen, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in range(3)]
    Fleet(together).fit()
    for seed, member in enumerate(together):
        alone = small_trainer(*chosen, f"seed={seed}", checkpoint=f"alone{seed}")
        alone.fit()
        assert_close(member, alone)


def assert_close(first, second, within: float = 1e-2) -> None:
    assert len(first.curve) == len(second.curve)
    torch.testing.assert_close(
        torch.tensor(first.curve.loss.to_numpy()), torch.tensor(second.curve.loss.to_numpy()), rtol=within, atol=within
    )
    assert (first.curve.correct - second.curve.correct).abs().max() <= 1


def report(name: str, first, second, record_property) -> None:
    """Record and print how far two runs are apart: summed losses as a share, and answers."""
    loss = ((first.curve.loss - second.curve.loss).abs() / second.curve.loss.abs().clip(lower=1e-6)).max()
    correct = (first.curve.correct - second.curve.correct).abs().max()
    record_property("largest relative deviation of a loss", float(loss))
    record_property("largest deviation of a number of correct answers", int(correct))
    print(f"{name}: losses within {loss:.1e}, correct answers within {correct}")
