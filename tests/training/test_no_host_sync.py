"""Within the loop no tensor's value is read on the host, and nothing is done sample by sample.

On a GPU such a read makes the host wait for the device (tests/test_gpu.py has CUDA itself watch). On a processor it costs nothing
and goes unnoticed, so that it is forbidden here: by looking at the operations that are dispatched, and at the methods of a
tensor that hand its values to Python.
"""

import pytest
import torch
from streams import IN_TURN, STREAMS, setting_of, small_network, small_options
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.registry import STRATEGIES
from clbench.strategies.finetune import Finetune
from clbench.training.fleet import Fleet

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result, or its shape, the host has to know."""

METHODS = ("tolist", "numpy", "__array__", "cpu")
"""Methods of a tensor that hand its values to the host past the dispatcher."""


class HostRead(Exception):
    """A value was read on the host."""


class NoHostReads(TorchDispatchMode):
    """Raises where an operation needs a tensor's value on the host; counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        by_counts = name == "repeat_interleave" and function._overloadname == "Tensor"
        if name in READING or by_mask or by_counts:
            raise HostRead(f"aten::{name}")
        return function(*args, **(kwargs or {}))


def guarded(call, monkeypatch, *more: str):
    """``call`` under the guard, which refuses ``more`` methods too; counts of operations are appended to ``guarded.counts``."""

    def refuse(name):
        def method(*_arguments, **_options):
            raise HostRead(f"Tensor.{name}")

        return method

    def run(*arguments):
        with monkeypatch.context() as patch, NoHostReads() as mode:
            for name in (*METHODS, *more):
                patch.setattr(torch.Tensor, name, refuse(name))
            result = call(*arguments)
        run.counts.append(mode.count)
        return result

    run.counts = []
    return run


def trainer_of(small_trainer, name: str, setting: str, *more: str):
    chosen = [*small_options(name), *STREAMS[setting], *small_network(name)]
    return small_trainer(
        *chosen, "scenario.augment.flip=true", "trainer.max_steps_per_task=2", *more, checkpoint="".join(more)
    )


@pytest.mark.parametrize(("name", "setting"), IN_TURN)
def test_no_value_is_read_within_the_loop(name, setting, small_trainer, monkeypatch):
    trainer = trainer_of(small_trainer, name, setting)
    trainer.advance = guarded(trainer.advance, monkeypatch)
    trainer.fit()
    assert len(trainer.advance.counts) == trainer.iteration >= 2 * trainer.scenario.n_tasks


@pytest.mark.parametrize(("name", "setting"), IN_TURN)
def test_nor_within_that_of_a_fleet(name, setting, small_trainer, monkeypatch):
    fleet = Fleet([trainer_of(small_trainer, name, setting, f"seed={seed}") for seed in (0, 1)])
    fleet.train_step = guarded(fleet.train_step, monkeypatch)
    fleet.fit()
    assert not fleet.diverged
    assert fleet.train_step.counts


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("name", ["er", "redo", "continual_backprop"])
def test_nor_by_a_loss_scale(name, optimizer, small_trainer, monkeypatch):
    """GradScaler reads whether the step overflowed, unless the optimizer takes that as a tensor."""
    trainer = trainer_of(small_trainer, name, "class", "trainer.precision=fp16", f"trainer.optimizer={optimizer}")
    trainer.advance = guarded(trainer.advance, monkeypatch, "item")
    trainer.fit()
    assert trainer.advance.counts


SAMPLE_BY_SAMPLE = {"gss"}
"""Methods whose every sample is judged by what the one before it has changed."""


@pytest.mark.parametrize("name", [name for name in STRATEGIES.names() if name not in SAMPLE_BY_SAMPLE])
def test_as_many_operations_for_many_samples_as_for_few(name, small_trainer, monkeypatch):
    counts = []
    for batch in (4, 32):
        setting = setting_of(name, "class")
        trainer = trainer_of(
            small_trainer,
            name,
            setting,
            f"trainer.batch_size={batch}",
            f"evaluator.subset={batch}",
            "evaluator.batch_size=4096",
        )
        trainer.advance = guarded(trainer.advance, monkeypatch)
        trainer.fit()
        counts.append(trainer.advance.counts)
    if (
        getattr(trainer.config.strategy, "extractor", None) == "first_task"
    ):  # small batches take more steps for its one pass
        counts = [set(of_steps) for of_steps in counts]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "careless",
    [
        lambda logits: logits.mean() * logits.sum().item(),
        lambda logits: logits.mean() if logits.sum() > 0 else -logits.mean(),
        lambda logits: logits[logits > 0].mean(),
        lambda logits: logits[: int(logits.argmax())].sum(),
        lambda logits: logits.mean() * max(logits.detach()[0].tolist()),
        lambda logits: logits.mean() * float(logits.detach().cpu().numpy().mean()),
        lambda logits: logits.detach().masked_select(logits > 0).sum() * logits.mean(),
    ],
)
def test_the_guard_sees(careless, small_trainer, monkeypatch):
    monkeypatch.setattr(Finetune, "penalty", lambda self, batch, outputs: careless(outputs.logits))
    trainer = trainer_of(small_trainer, "finetune", "class")
    trainer.advance = guarded(trainer.advance, monkeypatch)
    with pytest.raises(HostRead):
        trainer.fit()
