"""Shared by the tests of single strategies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench.config import compose
from clbench.run import Setup, set_up
from clbench.scenarios.task import Task
from clbench.strategies.base import Batch
from clbench.training.trainer import Trainer

SETTINGS = {
    "class": ["scenario=split_digits"],
    "task": ["scenario=split_digits_task"],
    "domain": [
        "scenario=permuted_mnist",
        "scenario.source=digits",
        "scenario.frozen=null",
        "scenario.n_tasks=3",
        "model=mlp",
    ],
}
"""Overrides for a small stream of every setting."""

WITH_BATCH_NORM = [
    "model=slim_resnet18",
    "model.width=2",
    "trainer.epochs=null",
    "trainer.max_steps_per_task=4",
    "trainer.batch_size=8",
    "trainer.lr=0.05",
    "evaluator.subset=20",
    "device=cpu",
]


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> list[str]:
    """The overrides of each setting in turn."""
    return [*SETTINGS[request.param], "model.hidden=[16]"]


@pytest.fixture
def small_trainer_with_batch_norm(tmp_path: Path) -> Callable[..., Trainer]:
    """A function: overrides → a trainer of a small run of a narrow slim ResNet-18."""

    def make(*overrides: str, checkpoint: str = "unused") -> Trainer:
        setup = set_up(compose([*WITH_BATCH_NORM, *overrides]))
        file = tmp_path / checkpoint / "state.pt"
        return Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, file)

    return make


@pytest.fixture
def task_of() -> Callable[[Setup, int], Task]:
    """A function: the task with an index, as the trainer gives it to the hooks (of a setup or a trainer)."""

    def make(setup: Setup | Trainer, index: int) -> Task:
        scenario = setup.scenario
        return Task(
            index,
            scenario.n_tasks,
            scenario.task_classes[index],
            setup.config.trainer,
            setup.config.seed,
            scenario.train,
            setup.inputs,
        )

    return make


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """A function: a batch of training samples, without augmentation."""

    def make(
        setup: Setup, new: Tensor, replayed: Tensor | None = None, reference: Tensor | None = None, **further: Any
    ) -> Batch:
        split = setup.scenario.train
        ids = new if replayed is None else torch.cat([new, replayed])
        looked_at = None if reference is None else setup.inputs.plain(split, reference)
        return Batch(setup.inputs.plain(split, ids), ids, len(new), looked_at, **further)

    return make


@pytest.fixture
def learn_tasks() -> Callable[[Trainer, int], None]:
    """A function: train on the stream's first tasks only."""

    def learn(trainer: Trainer, n_tasks: int) -> None:
        for _ in range(n_tasks):
            trainer.fit_task()

    return learn


@pytest.fixture
def record_terms(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], list[tuple[int, int, dict[str, Tensor]]]]:
    """A function: trainer → a list that fills, as it trains, with (task, step, gradient of every loss term)."""

    def record(trainer: Trainer) -> list[tuple[int, int, dict[str, Tensor]]]:
        rows: list[tuple[int, int, dict[str, Tensor]]] = []
        loss = trainer.learner.loss_and_outputs

        def spy(batch: Batch) -> tuple[dict[str, Tensor], Any]:
            terms, outputs = loss(batch)
            gradients = {}
            for name, term in terms.items():
                parts = torch.autograd.grad(term, trainer.parameters, retain_graph=True, materialize_grads=True)
                gradients[name] = torch.cat([part.reshape(-1) for part in parts])
            rows.append((trainer.task, trainer.step, gradients))
            return terms, outputs

        monkeypatch.setattr(trainer.learner, "loss_and_outputs", spy)
        return rows

    return record
