"""Within the loop no tensor's value is read on the host, and nothing is done sample by sample.

On a GPU such a read makes the host wait for the device (tests/test_gpu.py has CUDA itself watch). On a processor it costs nothing
and goes unnoticed, so that it is forbidden here, by the guard of clbench.testing.
"""

import pytest
from streams import IN_TURN, ONCE

from clbench import testing
from clbench.registry import STRATEGIES
from clbench.strategies.finetune import Finetune
from clbench.testing import Case
from clbench.testing.guards import Guarded, HostRead
from clbench.testing.small_runs import setting_of


@pytest.mark.parametrize("case", IN_TURN)
def test_no_value_is_read_within_the_loop(case):
    testing.check_no_host_reads(case)


IN_FLEETS = ("er", "gss", "gem", "dgr", "redo", "slda", "dst")
"""What a fleet does around its hooks: late replay, gradients that are edited, networks beside, resets, no gradients, masks. In
the hooks themselves vmap raises at a read, so that the other strategies are slow to test and were tested with the fleet."""


@pytest.mark.parametrize(
    "name", [n if n in IN_FLEETS else pytest.param(n, marks=pytest.mark.slow) for n in STRATEGIES.names()]
)
def test_nor_within_that_of_a_fleet(name):
    testing.check_no_host_reads_in_fleet(Case(name, setting_of(name, "class")))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad"])
@pytest.mark.parametrize("name", ["er", "redo", "continual_backprop"])
def test_nor_by_a_loss_scale(name, optimizer):
    """GradScaler reads whether the step overflowed, unless the optimizer takes that as a tensor."""
    trainer = Case(name, "class").trainer(
        "trainer.max_steps_per_task=2", "trainer.precision=fp16", f"trainer.optimizer={optimizer}"
    )
    trainer.advance = Guarded(trainer.advance, "item")
    trainer.fit()
    assert trainer.advance.counts


SAMPLE_BY_SAMPLE = {"gss", "igmn"}
"""Methods whose every sample is judged by what the one before it has changed."""


@pytest.mark.parametrize("case", [case for case in ONCE if case.values[0].strategy not in SAMPLE_BY_SAMPLE])
def test_as_many_operations_for_many_samples_as_for_few(case):
    testing.check_same_operations_for_any_batch(case)


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
def test_the_guard_sees(careless, monkeypatch):
    monkeypatch.setattr(Finetune, "penalty", lambda self, batch, outputs: careless(outputs.logits))
    with pytest.raises(
        AssertionError, match="a step of finetune-class reads a tensor's value on the host, by"
    ) as error:
        testing.check_no_host_reads(Case("finetune", "class"))
    assert isinstance(error.value.__cause__, HostRead)
