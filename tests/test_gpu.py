"""What only a CUDA device can show: no host sync within the loop, and the same result as on the CPU."""

import pytest
import torch
from streams import digits_for, small_network, small_options

from clbench.registry import STRATEGIES
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def options(name: str, *more: str) -> list[str]:
    return [
        *small_options(name),
        f"scenario={digits_for(name)}",
        *small_network(name),
        "trainer.max_steps_per_task=10",
        *more,
    ]


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
    pause = Trainer.pause_where_due

    def permitted(trainer):
        """What a strategy does between two steps may wait for the device."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        pause(trainer)
        torch.cuda.set_sync_debug_mode(before)

    monkeypatch.setattr(Trainer, "pause_where_due", permitted)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_no_host_sync_within_the_loop(name, precision, small_trainer, monkeypatch):
    trainer = small_trainer(
        *options(name),
        "device=cuda",
        "scenario.augment.flip=true",
        f"trainer.precision={precision}",
        "trainer.compile=off",
    )
    refuse_syncs(trainer, "advance", monkeypatch)
    trainer.fit()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_no_host_sync_within_a_fleets_loop(name, small_trainer, monkeypatch):
    chosen = [*options(name), "device=cuda", "scenario.augment.flip=true", "trainer.compile=off"]
    fleet = Fleet([small_trainer(*chosen, f"seed={seed}", checkpoint=str(seed)) for seed in (0, 1)])
    refuse_syncs(fleet, "train_step", monkeypatch)
    fleet.fit()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_same_curve_as_on_the_cpu(name, small_trainer):
    """Same batches and initial weights on both devices; losses agree within float tolerance over a short run."""
    cpu = small_trainer(*options(name), checkpoint="cpu")
    cuda = small_trainer(*options(name), "device=cuda", "trainer.compile=off", checkpoint="cuda")
    cpu.fit()
    cuda.fit()
    assert_close(cuda, cpu)


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
    common = ["device=cuda", "trainer.compile=off", "trainer.max_steps_per_task=3"]
    chosen = [*small_options("er"), f"scenario={digits_for('er')}", *model, *common]
    together = [small_trainer(*chosen, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in range(3)]
    Fleet(together).fit()
    for seed, member in enumerate(together):
        alone = small_trainer(*chosen, f"seed={seed}", checkpoint=f"alone{seed}")
        alone.fit()
        assert_close(member, alone)


def assert_close(first, second) -> None:
    torch.testing.assert_close(
        torch.tensor(first.curve.loss.to_numpy()), torch.tensor(second.curve.loss.to_numpy()), rtol=1e-2, atol=1e-2
    )
    assert (first.curve.correct - second.curve.correct).abs().max() <= 1
