"""An evaluation that does not fit into memory takes fewer samples at a time, alone and in a fleet."""

import pandas as pd
import pytest
import torch

from clbench.models.mlp import MLP
from clbench.training.fleet import Fleet

OPTIONS = [
    "strategy=er",
    "strategy.memory_size=40",
    "model=mlp",
    "scenario.increment=5",
    "trainer.max_steps_per_task=2",
]


@pytest.fixture
def memory(monkeypatch):
    """A function: samples → lets evaluations of more samples at a time run out of memory; what is tried is appended to it."""
    forward, tried = MLP.forward, []

    def limit(n: int) -> None:
        def limited(network, x):
            if not network.training:
                tried.append(len(x))
                if len(x) > n:
                    raise torch.OutOfMemoryError(f"no memory for {len(x)} samples")
            return forward(network, x)

        monkeypatch.setattr(MLP, "forward", limited)

    limit.tried = tried
    return limit


def assert_same(first, second) -> None:
    for table in ("curve", "tasks"):
        pd.testing.assert_frame_equal(getattr(first, table), getattr(second, table), rtol=1e-5)


@pytest.mark.parametrize("evaluator", ["periodic", "adaptive"])
def test_alone(evaluator, small_trainer, memory, caplog):
    options = [*OPTIONS, f"evaluator={evaluator}"]
    whole = small_trainer(*options, checkpoint="whole")
    whole.fit()
    limited = small_trainer(*options, checkpoint="limited")
    memory(30)
    limited.fit()
    assert_same(whole, limited)
    too_large = [n for n in memory.tried if n > 30]
    assert len(too_large) <= 9  # 8,192 are halved until 32 are 16, once for all
    assert any("half as many samples at a time" in record.message for record in caplog.records)


@pytest.mark.parametrize("order", [["0,1,2,3,4,5,6,7,8,9"] * 2, ["0,1,2,3,4,5,6,7,8,9", "9,8,7,6,5,4,3,2,1,0"]])
def test_in_a_fleet(order, small_trainer, memory):
    """Of runs that share their subsets, and of runs that do not."""
    members = [[*OPTIONS, f"seed={seed}", f"scenario.class_order=[{order[seed]}]"] for seed in (0, 1)]
    whole = [small_trainer(*member, checkpoint=f"whole{i}") for i, member in enumerate(members)]
    Fleet(whole).fit()
    limited = [small_trainer(*member, checkpoint=f"limited{i}") for i, member in enumerate(members)]
    memory(12)  # as many as are looked at for votes over a batch
    Fleet(limited).fit()
    for first, second in zip(whole, limited, strict=True):
        assert_same(first, second)


def test_where_not_even_one_fits(small_trainer, memory):
    trainer = small_trainer(*OPTIONS, "evaluator.batch_size=4")
    memory(0)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 1 samples"):
        trainer.fit()
    assert set(memory.tried) == {4, 2, 1}
