"""What only a CUDA device can show: no host sync within the loop, and the same result as on the CPU."""

import pytest
import torch

from clbench.registry import STRATEGIES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def options(name: str) -> list[str]:
    memory = ["strategy.memory_size=40"] if STRATEGIES[name].needs.memory else []
    return [f"strategy={name}", "trainer.max_steps_per_task=10", *memory]


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_no_host_sync_within_the_loop(name, small_trainer, monkeypatch):
    trainer = small_trainer(*options(name), "device=cuda", "scenario.augment.flip=true")

    def refuse_syncs(owner, method):
        call = getattr(owner, method)

        def guarded(*arguments):
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                return call(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        monkeypatch.setattr(owner, method, guarded)

    refuse_syncs(trainer, "_train_step")
    refuse_syncs(trainer.evaluator, "evaluate")
    trainer.fit()


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_same_curve_as_on_the_cpu(name, small_trainer):
    """Same batches and initial weights on both devices; losses agree within float tolerance over a short run."""
    cpu = small_trainer(*options(name), checkpoint="cpu")
    cuda = small_trainer(*options(name), "device=cuda", checkpoint="cuda")
    cpu.fit()
    cuda.fit()
    torch.testing.assert_close(
        torch.tensor(cuda.curve.loss.to_numpy()), torch.tensor(cpu.curve.loss.to_numpy()), rtol=1e-2, atol=1e-2
    )
    assert (cuda.curve.correct - cpu.curve.correct).abs().max() <= 1
