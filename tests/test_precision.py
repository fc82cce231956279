"""bf16 and fp16: what they compute in, what stays in float32, and what a checkpoint holds."""

import pandas as pd
import pytest
import torch

OPTIONS = ["strategy=er", "strategy.memory_size=40", "scenario.increment=5", "trainer.lr=0.05"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_forward_passes_are_in_the_precision_and_weights_are_not(name, dtype, small_trainer, monkeypatch):
    trainer = small_trainer(*OPTIONS, f"trainer.precision={name}")
    seen = set()
    trainer.learner.model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.fit()
    assert seen == {dtype}
    assert {tensor.dtype for tensor in trainer.parameters} == {torch.float32}
    assert trainer.training.loss.notna().all()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_training_is_nearly_that_of_float32(name, small_trainer):
    runs = [small_trainer(*OPTIONS, f"trainer.precision={p}", checkpoint=p) for p in ("fp32", name)]
    for trainer in runs:
        trainer.fit()
    exact, rough = (trainer.training.loss for trainer in runs)
    assert not exact.equals(rough)
    assert (exact - rough).abs().max() < 0.1


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def test_the_loss_scale_is_resumed(small_trainer, monkeypatch):
    chosen = [*OPTIONS, "trainer.precision=fp16", "record.checkpoint_seconds=0"]
    whole, first = small_trainer(*chosen, checkpoint="whole"), small_trainer(*chosen, checkpoint="killed")
    for trainer in (whole, first):  # a scale that overflows is halved at every step, so that it is a part of the state
        trainer.precision._scaler._init_scale = 2.0**40
    whole.fit()
    step = first._train_step

    def step_or_die(*arguments):
        if first.iteration == 3:
            raise Killed
        step(*arguments)

    monkeypatch.setattr(first, "_train_step", step_or_die)
    with pytest.raises(Killed):
        first.fit()
    second = small_trainer(*chosen, checkpoint="killed")
    second.fit()
    assert second.precision.state_dict() == whole.precision.state_dict()
    pd.testing.assert_frame_equal(second.training, whole.training)
    assert whole.precision.state_dict()["scale"] < 2.0**40
