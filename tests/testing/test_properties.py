"""The checks of clbench.testing find what they are there for: each careless strategy fails one, and is told why."""

import dataclasses

import pytest
import torch

from clbench import testing
from clbench.config import StrategyConfig
from clbench.errors import BatchDependence
from clbench.learning.base import Needs, Strategy
from clbench.learning.learner import Learner
from clbench.learning.stage import Stage
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.testing import Case
from clbench.testing.pairs import options_of


@dataclasses.dataclass
class CarelessConfig(StrategyConfig):
    """Options of the strategies here."""

    lam: float = option(0.5, help="weight", at_least=0)


class Careless(Strategy):
    """A penalty on all weights."""

    config = CarelessConfig
    needs = Needs(settings=("class", "task"))

    def penalty(self, batch, outputs):
        return self.lam * self.flat_parameters().square().mean()


class CountsPredictions(Careless):
    def __init__(self, config, model, scenario):
        super().__init__(config, model, scenario)
        self.register_buffer("asked", torch.zeros(()))

    def predict(self, x, task):
        self.asked.add_(1)
        return super().predict(x, task)


class DrawsForItself(Careless):
    def predict(self, x, task):
        torch.rand(1)
        return super().predict(x, task)

    def penalty(self, batch, outputs):
        return outputs.logits.mean() * torch.rand(())


class KeepsAnAttribute(Careless):
    seen = 0.0

    def penalty(self, batch, outputs):
        return self.lam * self.seen * self.flat_parameters().square().mean()

    def after_step(self, step, batch):
        self.seen = self.seen + 1.0


class ForgetsItsStage(Careless):
    """What is kept in an attribute matters in the second stage alone."""

    kept = 0.0

    def begin(self, task):
        self.kept = 1.0

    def stages(self, task, n_steps):
        return [Stage("late", None, trainer={"max_steps_per_task": 2}, begin=self.begin)] if task.index == 2 else []

    def penalty(self, batch, outputs):
        return self.kept * self.flat_parameters().square().mean()


class LooksAtTheBatch(Careless):
    def predict(self, x, task):
        logits = self.model(x)
        return self.model.answer.restrict(logits - logits.mean(0), task, predicting=True)


class TakesTheTask(Careless):
    def predict(self, x, task):
        logits = super().predict(x, None)
        return logits if task is None else logits + task[:, None] * torch.arange(logits.shape[1])


class Grows(Careless):
    def end_task(self, task):
        self.register_buffer(f"anchor_{task.index}", self.flat_parameters().detach().clone())


class LoopsOverTasks(Careless):
    def penalty(self, batch, outputs):
        return sum(super(LoopsOverTasks, self).penalty(batch, outputs) for _ in range(self.tasks_seen))


class ChangesGradientsElsewhere(Careless):
    def __init__(self, config, model, scenario):
        super().__init__(config, model, scenario)
        model.head.weight.register_post_accumulate_grad_hook(self.halve)

    def halve(self, weight):
        weight.grad.mul_(0.5)


class ReadsTheHost(Careless):
    def penalty(self, batch, outputs):
        return outputs.logits.mean() if outputs.logits.sum() > 0 else -outputs.logits.mean()


class LoopsOverSamples(Careless):
    def penalty(self, batch, outputs):
        return torch.stack([row.square().sum() for row in outputs.logits]).mean()


class ReadsItsOptions(Careless):
    def penalty(self, batch, outputs):
        return self.options.lam * self.flat_parameters().square().mean()


class ReplaysForItsPenalty(Careless):
    """The default loss trains on the replayed samples as well."""

    def plan(self, task, plan):
        return plan._replace(replay=[torch.arange(4)] * len(plan.new))


class LengthensABuffer(Careless):
    def __init__(self, config, model, scenario):
        super().__init__(config, model, scenario)
        self.register_buffer("ends", torch.zeros(0))

    def end_task(self, task):
        self.ends = torch.cat([self.ends, torch.ones(1)])


CLASS, FOUND = "class", AssertionError
FAULTS = [
    (CountsPredictions, testing.check_undisturbed_by_evaluation, FOUND, "end in different states.* strategies.0.asked;"),
    (DrawsForItself, testing.check_undisturbed_by_evaluation, FOUND, r"instead of task\.torch_generator"),
    (LooksAtTheBatch, testing.check_prediction_is_per_sample, BatchDependence, "predicts otherwise for the same images"),
    (Grows, testing.check_flat_cost, FOUND, "keeps more and more bytes"),
    (LoopsOverTasks, testing.check_flat_cost, FOUND, "more operations or FLOPs in task 11"),
    (ChangesGradientsElsewhere, testing.check_gradient_is_sum_of_terms, FOUND, "is not that of its loss terms"),
    (ReadsTheHost, testing.check_no_host_reads, FOUND, "a step of .* reads a tensor's value on the host"),
    (LoopsOverSamples, testing.check_same_operations_for_any_batch, FOUND, "usually a loop goes over samples"),
    (ReplaysForItsPenalty, testing.check_replay_has_a_loss, FOUND, "trains on them with their labels, as ER does"),
    (ReadsItsOptions, testing.check_fleet_equals_solo, FOUND, "usually a real-valued option is read from self.options"),
]  # fmt: skip


@pytest.fixture
def registered(monkeypatch):
    """A function: registers a class under a name of its own, for the test."""

    def register(cls):
        name = cls.__name__.lower()
        monkeypatch.setitem(STRATEGIES._entries, name, cls)
        return name

    return register


@pytest.mark.parametrize(("cls", "check", "error", "sentence"), FAULTS)
def test_a_careless_strategy_is_found(cls, check, error, sentence, registered):
    with pytest.raises(error, match=sentence):
        check(Case(registered(cls), CLASS))


@pytest.mark.parametrize("cls", [KeepsAnAttribute, ForgetsItsStage])
def test_what_does_not_survive_a_kill_is_found(cls, registered, tmp_path):
    """Be it in the last stage of the last task alone."""
    with pytest.raises(AssertionError, match=r"killed and resumed ends otherwise.*has to be a buffer"):
        testing.check_resumes(Case(registered(cls), CLASS), tmp_path)


def test_a_buffer_that_changes_its_shape_is_found(registered, tmp_path):
    with pytest.raises(AssertionError, match=r"cannot be resumed: .* has to have its full size from __init__ on"):
        testing.check_resumes(Case(registered(LengthensABuffer), CLASS), tmp_path)


def test_two_that_overwrite_each_others_replay_are_told_so(registered):
    with pytest.raises(AssertionError, match=r"usually both strategies set plan\.replay"):
        testing.check_pair(options_of(registered(ReplaysForItsPenalty)), options_of("scr"))


def test_a_run_that_cannot_be_killed_so_late_is_an_error(registered, tmp_path):
    with pytest.raises(AssertionError, match="the run is over after 12 steps, and was to be killed after 40"):
        testing.check_resumes(Case(registered(Careless), CLASS), tmp_path, kill_at=(40,))


def test_a_task_that_is_not_hidden_is_found(registered, monkeypatch):
    case = Case(registered(TakesTheTask), CLASS)
    testing.check_task_stays_hidden(case)  # predict is not told
    monkeypatch.setattr(Learner, "predict", lambda self, x, task: self.strategies[0].predict(x, task))
    with pytest.raises(AssertionError, match="where it is told another task, which this setting hides"):
        testing.check_task_stays_hidden(case)


class DoesNothing(Strategy):
    needs = Needs()


def test_a_strategy_that_does_not_act_beside_another_is_found(registered):
    nothing = options_of(registered(DoesNothing))
    with pytest.raises(
        AssertionError, match=r"strategy=er strategy.plus=\[doesnothing\] predicts the same as er alone"
    ):
        testing.check_pair(options_of("er"), nothing)
    testing.check_pair(options_of("er"), nothing, adds_nothing=("doesnothing",))


def test_what_a_strategy_declares_wrongly_is_found(registered, monkeypatch):
    class Unbounded(Careless):
        """A strategy whose options forget to call super()."""

        def __init__(self, config, model, scenario):
            super().__init__(dataclasses.replace(config, lam=2.0), model, scenario)
            self.options = config

    with pytest.raises(
        AssertionError, match=r"the option lam of unbounded is 0\.5, and the buffer of this name holds 2"
    ):
        testing.check_options_are_buffers(Case(registered(Unbounded), CLASS))
    with pytest.raises(AssertionError, match="has no needs"):
        testing.check_needs(registered(Unbounded))
    monkeypatch.setattr("clbench.testing.declarations.check_fields", lambda config, prefix: None)
    with pytest.raises(AssertionError, match=r"strategy.lam=-1 is accepted, which its option\(…\) excludes"):
        testing.check_options_are_validated(registered(Careless))
    monkeypatch.setattr(Careless, "needs", Needs(memory=True))
    with pytest.raises(AssertionError, match="a method that stores samples has an option memory_size"):
        testing.check_needs(registered(Careless))
