"""Tests for a strategy of your own: the ones that clbench's strategies have to pass.

In the package of your method, a file ``tests/test_my_method.py``::

    from clbench.testing import StrategyTests

    class TestMyMethod(StrategyTests):
        strategy = "my_method"
        options = ("strategy.period=2",)  # what lets it act within four steps, if anything does

and pytest (which clbench does not install) checks on three tiny tasks of scikit-learn's digits, in every setting that the
method's :class:`~clbench.learning.base.Needs` name, that

* evaluating at any period leaves weights and buffers as they are, to the bit;
* a run that is killed, in any stage, and resumed ends in the same weights and tables;
* the prediction for an image depends neither on the others of its batch nor, where it is hidden, on the task;
* memory and the cost of a step do not grow from task to task, and nothing is done sample by sample;
* the gradient that the optimizer gets is that of the named loss terms, edited by the hook for that;
* no step reads a tensor's value on the host, alone or in a fleet, and a member of a fleet is the run that it is alone;
* with every other strategy, in both orders, it either acts beside it or is refused in a sentence;
* replayed samples have a loss that the method chose: the default one trains on their labels;
* options are checked, held as buffers where they are real, and shown by ``python -m clbench describe``.

What fails says in a sentence what is wrong and what usually causes it. Each property is a function as well, to be called without
pytest: it takes a :class:`Case`, a strategy in a setting with further overrides, and raises AssertionError::

    from clbench.testing import Case, check_resumes
    check_resumes(Case("my_method", "class", ("strategy.period=2",)), folder)

``Case(…).trainer()`` is a run that has not begun, for tests of your own: ``fit()`` trains it, ``advance()`` takes a step after
``begin()`` and ``begin_task()``, and its strategy is ``trainer.learner.strategies[0]``. The tests of a method of a few lines
take about half a minute of processor time. A test for the equation of the method is not among them: write it first.

What lies where: ``suite`` has the class, ``properties`` and ``declarations`` the checks, of what a method does and of what it
says of itself, ``pairs`` those of two strategies together; ``small_runs`` makes the runs, ``stepping`` takes them through a task
by hand, ``guards`` watches the operations of a step.
"""

from clbench.testing.declarations import (
    check_described,
    check_documented,
    check_needs,
    check_options_are_buffers,
    check_options_are_validated,
    check_search,
)
from clbench.testing.pairs import check_pair
from clbench.testing.properties import (
    check_flat_cost,
    check_fleet_equals_solo,
    check_gradient_is_sum_of_terms,
    check_no_host_reads,
    check_no_host_reads_in_fleet,
    check_prediction_is_per_sample,
    check_replay_has_a_loss,
    check_resumes,
    check_same_operations_for_any_batch,
    check_task_stays_hidden,
    check_undisturbed_by_evaluation,
)
from clbench.testing.small_runs import Case
from clbench.testing.suite import StrategyTests

__all__ = [
    "Case",
    "StrategyTests",
    "check_described",
    "check_documented",
    "check_flat_cost",
    "check_fleet_equals_solo",
    "check_gradient_is_sum_of_terms",
    "check_needs",
    "check_no_host_reads",
    "check_no_host_reads_in_fleet",
    "check_options_are_buffers",
    "check_options_are_validated",
    "check_pair",
    "check_prediction_is_per_sample",
    "check_replay_has_a_loss",
    "check_resumes",
    "check_same_operations_for_any_batch",
    "check_search",
    "check_task_stays_hidden",
    "check_undisturbed_by_evaluation",
]
