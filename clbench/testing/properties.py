"""What every strategy has to satisfy in every setting it is defined for, one function a property.

Each takes a :class:`clbench.testing.small_runs.Case` and raises an AssertionError whose sentence says what is wrong, and what
usually causes it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clbench.errors import DamagedRecord
from clbench.evaluation.evaluator import COLUMNS, as_table
from clbench.learning.base import Batch, Strategy
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples
from clbench.testing.guards import Guarded, HostRead, OperationCount
from clbench.testing.small_runs import WATCHED, Case, in_double_precision, state_of, whole_run
from clbench.testing.stepping import fit_until
from clbench.training.fleet import Fleet
from clbench.training.optimizers import flatten_gradients
from clbench.training.trainer import Trainer

CLOSE = {"rtol": 1e-6, "atol": 1e-7}
"""How close two runs in double precision are that compute the same in another order."""


def require(holds: bool, sentence: str) -> None:
    """Raise AssertionError with the sentence, where something does not hold."""
    if not holds:
        raise AssertionError(sentence)


def require_close(mine: Tensor, its: Tensor, sentence: str, **close: float) -> None:
    """Compare two tensors, within what rounding explains unless told how close."""
    try:
        torch.testing.assert_close(mine, its, rtol=close.get("rtol"), atol=close.get("atol"))
    except AssertionError as error:
        raise AssertionError(f"{sentence}: {error}") from None


def different(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """The names under which two states differ, be it in a bit."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        n for n in names if n not in first or n not in second or not torch.equal(first[n], second[n])
    ]  # torch.equal: NaN differs from itself


def require_same_tables(mine: Trainer, its: Trainer, names: Sequence[str], sentence: str, **close: Any) -> None:
    """Compare the tables of two runs, exactly unless told how close."""
    for name in names:
        try:
            pd.testing.assert_frame_equal(getattr(mine, name), getattr(its, name), **(close or {"check_exact": True}))
        except AssertionError as error:
            raise AssertionError(f"{sentence} (in the table {name}: {error})") from None


# ---- reproducibility ---------------------------------------------------------------------------------------------------


def check_undisturbed_by_evaluation(case: Case) -> None:
    """Evaluated after every step, or at the switches of tasks only: weights and buffers are the same to the bit."""
    watched, _ = whole_run(case)
    trainer = case.trainer("trainer.scheduler=cosine", "evaluator.every=0")
    torch.rand(1)  # whatever happened to torch's own generator before may not matter
    trainer.fit()
    names = different(state_of(watched), state_of(trainer))
    sentence = (
        f"two runs of {case} end in different states, of which one is evaluated after every step and the other when tasks "
        f"switch: {', '.join(names)}; usually predict or prepare_for_eval changes a buffer that training reads, or a hook draws "
        "from torch's own generator instead of task.torch_generator(purpose)"
    )
    require(not names, sentence)
    require_same_tables(watched, trainer, ["tasks"], sentence)
    place = ["iteration", "task_learning", "task_eval", "consolidated"]
    both = trainer.curve.merge(watched.curve, how="left", on=place, suffixes=("", "_watched"))
    require(bool((both.correct == both.correct_watched).all()), sentence)


KILL_AT = (1, 5, 8, 10)
"""Steps, of tasks of four, before which a run is killed: within a task, right after its first step, and at its end."""


def check_resumes(case: Case, folder: Path, kill_at: Sequence[int] = ()) -> None:
    """Killed again and again, it ends in the same weights and tables.

    Args:
        case: the run.
        folder: an empty one, for its checkpoint.
        kill_at: steps before which it is killed; by default within a task, right after its first step, at its end, and after
            the first step of every further stage of the last task.
    """
    whole, stages = whole_run(case)
    begins = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1] and stages[i][0] == stages[-1][0]]
    of_stages = [i + 1 for i in begins if stages[i][1:] != ("main",) and i + 1 < len(stages)]
    try:
        for iteration in kill_at or sorted({*(i for i in KILL_AT if i < len(stages)), *of_stages}):
            killed = case.trainer(*WATCHED, "record.checkpoint_seconds=0", folder=folder)
            fit_until(killed, iteration)
        last = case.trainer(*WATCHED, folder=folder)
        last.fit()
    except DamagedRecord as error:
        raise AssertionError(
            f"a killed run of {case} cannot be resumed: {error}; usually a buffer changes its shape as tasks end, which has to "
            "have its full size from __init__ on"
        ) from error
    names = different(state_of(whole), state_of(last))
    sentence = (
        f"a run of {case} that is killed and resumed ends otherwise than one that is not: {', '.join(names)}; usually something "
        "is kept in an attribute that has to be a buffer, random numbers come from elsewhere than task.torch_generator(purpose), "
        "or plan or stages change state, which are called again on resuming"
    )
    require(not names, sentence)
    require_same_tables(last, whole, ["curve", "tasks", "training", "method"], sentence)


def check_replay_has_a_loss(case: Case) -> None:
    """Who replays says what is learned of the replayed samples: by default they are trained on, with their labels."""
    if STRATEGIES[case.strategy].data_loss is not Strategy.data_loss:
        return
    trainer = case.trainer()
    trainer.begin()
    trainer.fit_task()
    trainer.begin_task()
    plan = trainer._plan
    replays = plan.replay_slots is not None or any(map(len, plan.replay or []))
    require(
        not replays or not trainer.learner.learns_by_gradient,
        f"{case} replays samples and leaves data_loss as it is, which trains on them with their labels, as ER does: override it, "
        "with a term 'new' of the samples [: batch.n_new] alone, or with this very loss where it is what the method does",
    )


# ---- prediction --------------------------------------------------------------------------------------------------------


def _ready_to_predict(case: Case) -> tuple[Samples, Callable[[Tensor, Tensor], Tensor]]:
    """Some test samples of every task, and the predictions of a trained learner."""
    trainer, _ = whole_run(case)
    learner = trainer.learner.eval()
    learner.prepare_for_eval()
    split = trainer.scenario.test
    ids = torch.cat([split.ids(t)[:12] for t in range(trainer.scenario.n_tasks)])
    return trainer.inputs.plain(split, ids), torch.no_grad()(learner.predict)


def check_prediction_is_per_sample(case: Case) -> None:
    """The answer for an image does not depend on the batch it comes in."""
    samples, predict = _ready_to_predict(case)
    together = predict(samples.x, samples.task)
    alone = torch.cat([predict(samples.x[i : i + 1], samples.task[i : i + 1]) for i in range(len(samples.x))])
    order = torch.randperm(len(samples.x), generator=torch.Generator().manual_seed(0))
    for logits, how in (
        (alone, "one at a time"),
        (predict(samples.x[order], samples.task[order])[order.argsort()], "in another order"),
    ):
        require_close(
            logits,
            together,
            f"{case} predicts otherwise for the same images {how} than in one batch; usually a mean, a vote or a normalisation "
            "goes over the batch",
        )


def check_task_stays_hidden(case: Case) -> None:
    """Where the scenario hides the task of an image, the answer does not depend on it. In the task setting it may."""
    samples, predict = _ready_to_predict(case)
    if case.setting != "task":
        require(
            torch.equal(predict(samples.x, samples.task + 1), predict(samples.x, samples.task)),
            f"{case} predicts otherwise where it is told another task, which this setting hides; usually predict finds the task "
            "somewhere else than in its argument",
        )


# ---- costs -------------------------------------------------------------------------------------------------------------


def check_flat_cost(case: Case) -> None:
    """Over 12 tasks, bytes kept, operations and FLOPs of a training step do not grow, unless ``needs.cost_grows``."""
    cls, is_domain = STRATEGIES[case.strategy], case.setting == "domain"
    trainer = dataclasses.replace(case, stream="domain").trainer(
        f"scenario.setting={case.setting}",
        "scenario.n_tasks=12",
        "trainer.max_steps_per_task=2",
        "trainer.batch_size=20",
        "evaluator.every=0",
        "evaluator.subset=2",
        # Room for a sample of every class, of which there are more where tasks have classes of their own.
        *([f"strategy.memory_size={100 if is_domain else 240}"] if cls.needs.memory else []),
    )
    costs: dict[int, tuple[int, int]] = {}
    bytes_kept: dict[int, int] = {}
    advance = trainer.advance

    def counted() -> None:
        task = trainer.task
        bytes_kept[task] = trainer.learner.extra_bytes()
        if task not in (2, 11):  # counting takes longer than the step
            advance()
            return
        with FlopCounterMode(display=False) as flops, OperationCount() as operations:
            advance()
        costs[task] = (operations.count, flops.get_total_flops())

    trainer.advance = counted  # type: ignore[method-assign]
    trainer.evaluator.after_step = lambda *_: None  # type: ignore[method-assign]  # of all tasks seen
    # With the task hidden, a method that runs a network per task takes 12³/2 passes for the full test sets at task ends.
    trainer.evaluator.evaluate_full = lambda *_: as_table(np.empty((0, len(COLUMNS))))  # type: ignore[method-assign]
    trainer.fit()
    require(
        len(set(bytes_kept.values())) == 1,
        f"{case} keeps more and more bytes: {bytes_kept} by task; usually a buffer is made longer at a task's end, where one of "
        "full size has to be made in __init__",
    )
    if cls.needs.cost_grows:
        require(
            costs[11] > costs[2],
            f"{case} is declared to cost more with every task, needs.cost_grows, and does not: {costs}",
        )
    else:
        require(
            costs[11] == costs[2],
            f"a step of {case} takes more operations or FLOPs in task 11 than in task 2: {costs}; usually a loop goes over "
            "earlier tasks; where the method is like that, Needs(cost_grows=True) says so",
        )


# ---- gradients ---------------------------------------------------------------------------------------------------------


def check_gradient_is_sum_of_terms(case: Case) -> None:
    """The gradients of the named loss terms, and a projection's change, sum to what the optimizer gets."""
    trainer = case.trainer("trainer.max_steps_per_task=3")
    learner = trainer.learner
    loss, edit, step = learner.loss_and_outputs, learner.edit_gradients, trainer.optimizer.__class__.step
    pieces: dict[str, Any] = {}
    lost, checked = [], []

    def gradient_of(term: Tensor) -> Tensor:
        parts = torch.autograd.grad(term, trainer.parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    def loss_with_gradients(batch: Batch) -> Any:
        terms, outputs = loss(batch)
        pieces["terms"] = [gradient_of(term) for term in terms.values() if term.requires_grad]
        lost.append(trainer.iteration)
        return terms, outputs

    def edit_and_remember(gradient: Tensor, batch: Batch) -> Tensor:
        pieces["batch"] = batch
        return edit(gradient, batch)

    def checked_step(optimizer: Any, *arguments: Any) -> Any:
        if optimizer is not trainer.optimizer:  # a strategy looks where the next step would lead
            return step(optimizer, *arguments)
        applied = flatten_gradients(trainer.parameters)
        total = torch.stack(pieces["terms"]).sum(0)
        if learner.edits_gradients:
            total = edit(total, pieces["batch"])
        if trainer.held is not None:
            total = total.masked_fill(~trainer.held.trained, 0)
        require_close(
            applied,
            total,
            f"the gradient that the optimizer gets in {case} is not that of its loss terms; usually a gradient is changed "
            "elsewhere than in edit_gradients, or that hook is not pure",
            atol=1e-5,
            rtol=1e-4,
        )
        checked.append(trainer.iteration)
        return step(optimizer, *arguments)

    learner.loss_and_outputs = loss_with_gradients  # type: ignore[method-assign]
    learner.edit_gradients = edit_and_remember  # type: ignore[method-assign]
    with patch.object(trainer.optimizer.__class__, "step", checked_step):
        trainer.fit()
    require(checked == lost, f"{case} has taken optimizer steps {checked}, and named losses for {lost}")
    if STRATEGIES[case.strategy].learn is Strategy.learn:
        require(
            len(checked) == trainer.iteration >= 3 * trainer.scenario.n_tasks,
            f"{case} does not override learn, and has taken optimizer steps in {len(checked)} of {trainer.iteration} steps",
        )


# ---- what runs on a GPU, and in a fleet ---------------------------------------------------------------------------------


def check_no_host_reads(case: Case) -> None:
    """No step reads a tensor's value on the host."""
    trainer = case.trainer("scenario.augment.flip=true", "trainer.max_steps_per_task=2")
    guarded = Guarded(trainer.advance)
    trainer.advance = guarded  # type: ignore[method-assign]
    _fit_guarded(trainer, case, "")
    require(len(guarded.counts) == trainer.iteration >= 2 * trainer.scenario.n_tasks, f"{case} has taken too few steps")


def check_no_host_reads_in_fleet(case: Case) -> None:
    """No step of a fleet of two does."""
    common = "scenario.augment.flip=true", "trainer.max_steps_per_task=2"
    fleet = Fleet([case.trainer(*common, f"seed={seed}") for seed in (0, 1)])
    guarded = Guarded(fleet.train_step)
    fleet.train_step = guarded  # type: ignore[method-assign]
    _fit_guarded(fleet, case, " of a fleet")
    require(not fleet.diverged and bool(guarded.counts), f"a fleet of {case} has diverged: {fleet.diverged}")


def _fit_guarded(what: Trainer | Fleet, case: Case, of: str) -> None:
    try:
        what.fit()
    except HostRead as read:
        raise AssertionError(
            f"a step{of} of {case} reads a tensor's value on the host, by {read}; usually an if over a tensor, .item(), float() "
            "or an index by a mask: torch.where and products with the mask do it on the device (the traceback shows the line)"
        ) from read


def check_same_operations_for_any_batch(case: Case) -> None:
    """A step of 32 samples takes as many operations as one of 4: nothing is done sample by sample."""
    counts = []
    for size in (4, 32):
        trainer = case.trainer(
            "scenario.augment.flip=true",
            "trainer.max_steps_per_task=2",
            f"trainer.batch_size={size}",
            f"evaluator.subset={size}",
            "evaluator.batch_size=4096",
        )
        guarded = Guarded(trainer.advance)
        trainer.advance = guarded  # type: ignore[method-assign]
        _fit_guarded(trainer, case, "")
        counts.append(guarded.counts)
    takes_more_steps = len(counts[0]) != len(counts[1])  # a stage of one pass over the task's samples
    require(
        counts[0] == counts[1] or (takes_more_steps and set(counts[0]) == set(counts[1])),
        f"steps of {case} take {counts[0]} operations with 4 samples and {counts[1]} with 32; usually a loop goes over samples",
    )


def check_fleet_equals_solo(case: Case) -> None:
    """A member of a fleet is the run it would be alone; every real-valued option of the strategy differs between the two."""
    name = case.strategy
    # SGD: Adam makes a full step of a dead weight, whose gradient is nothing but rounding.
    sgd = "trainer.optimizer=sgd"
    decay = "trainer.weight_decay=0.01" if STRATEGIES[name].needs.weight_decay else "trainer.weight_decay=0.0"
    given = case.setup(sgd).learner.strategies[0].options
    fields = {field: value for field, value in vars(given).items() if isinstance(value, float)}
    halved = [f"strategy.{field}={value / 2 if value else 0.3}" for field, value in fields.items()]
    require_members_equal_solo_runs(
        case,
        [
            [sgd, "seed=0", "trainer.lr=0.05", "trainer.momentum=0.9"],
            [sgd, "seed=1", "trainer.lr=0.02", "trainer.momentum=0.5", decay, *halved],
        ],
    )


def require_members_equal_solo_runs(case: Case, members: Sequence[Sequence[str]]) -> None:
    """Train runs with these overrides as a fleet and alone, in double precision, and compare them."""
    together, alone = ([in_double_precision(case.trainer(*member)) for member in members] for _ in range(2))
    fleet = Fleet(together)
    fleet.fit()
    require(not fleet.diverged, f"a fleet of {case} has diverged: {fleet.diverged}")
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        require_same_run(member, trainer, str(case))


def require_same_run(member: Trainer, alone: Trainer, what: str) -> None:
    """Compare a member of a fleet with the run alone."""
    sentence = (
        f"a member of a fleet of {what} is not the run that it is alone; usually a real-valued option is read from self.options "
        "instead of its buffer, or a hook of a step keeps something that is not a buffer"
    )
    mine, its = state_of(member), state_of(alone)
    require(mine.keys() == its.keys(), sentence)
    for name, tensor in mine.items():
        require_close(tensor, its[name], f"{sentence} ({name})", **CLOSE)
    require_same_tables(member, alone, ["curve", "tasks", "training"], sentence, **CLOSE)
