"""The pytest class of :mod:`clbench.testing`. It imports no pytest, which clbench does not need to run."""

from pathlib import Path
from typing import Any, ClassVar

from clbench.registry import STRATEGIES, broken_plug_ins
from clbench.testing import declarations, properties
from clbench.testing.pairs import check_pair, options_of
from clbench.testing.properties import require
from clbench.testing.small_runs import Case, setting_of


class StrategyTests:
    """All properties of one strategy, as tests: subclass it, with a name that begins with ``Test``.

    Attributes:
        strategy: the registered name.
        options: overrides that let the method act within three tasks of two to four steps of eight samples, on a network of one
            hidden layer of 16 units; for instance a period that is short enough. Its memory is of 40 samples.
        sample_by_sample: whether a sample is judged by what the one before it has changed, so that a step of more samples takes
            more operations.
        adds_nothing: strategies that change nothing where they are added to another one.
    """

    strategy: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    sample_by_sample: ClassVar[bool] = False
    adds_nothing: ClassVar[tuple[str, ...]] = ("finetune",)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """A test with ``case`` is made for every setting of the strategy, one with ``other`` for every other strategy."""
        require(
            self.strategy in STRATEGIES.names(),
            f"there is no strategy {self.strategy!r}; usually its package is not installed (pip install -e .), or has no entry "
            f"point of the group clbench that names the module with @STRATEGIES.register{broken_plug_ins()}",
        )
        if "case" in metafunc.fixturenames:
            cases = [Case(self.strategy, setting, self.options) for setting in STRATEGIES[self.strategy].needs.settings]
            metafunc.parametrize("case", cases, ids=str, scope="class")
        if "other" in metafunc.fixturenames:
            metafunc.parametrize("other", [name for name in STRATEGIES.names() if name != self.strategy])

    @property
    def one_case(self) -> Case:
        """A case for what does not depend on the setting."""
        return Case(self.strategy, setting_of(self.strategy, "class"), self.options)

    # ---- declarations

    def test_needs_are_declared(self) -> None:
        declarations.check_needs(self.strategy)

    def test_is_documented(self) -> None:
        declarations.check_documented(self.strategy)
        declarations.check_described(self.strategy)

    def test_options_are_validated(self) -> None:
        declarations.check_options_are_validated(self.strategy)

    def test_real_valued_options_are_buffers(self) -> None:
        declarations.check_options_are_buffers(self.one_case)

    def test_search_can_be_run(self) -> None:
        declarations.check_search(self.strategy)

    # ---- in every setting

    def test_evaluation_leaves_training_as_it_is(self, case: Case) -> None:
        properties.check_undisturbed_by_evaluation(case)

    def test_killed_and_resumed_is_the_same_run(self, case: Case, tmp_path: Path) -> None:
        properties.check_resumes(case, tmp_path)

    def test_prediction_is_per_sample(self, case: Case) -> None:
        properties.check_prediction_is_per_sample(case)

    def test_task_stays_hidden(self, case: Case) -> None:
        properties.check_task_stays_hidden(case)

    def test_replay_has_a_loss(self) -> None:
        properties.check_replay_has_a_loss(self.one_case)

    def test_gradient_is_the_sum_of_the_terms(self, case: Case) -> None:
        properties.check_gradient_is_sum_of_terms(case)

    def test_no_value_is_read_on_the_host(self, case: Case) -> None:
        properties.check_no_host_reads(case)

    def test_fleet_equals_runs_alone(self, case: Case) -> None:
        if not STRATEGIES[self.strategy].needs.alone:
            properties.check_fleet_equals_solo(case)
            properties.check_no_host_reads_in_fleet(case)

    # ---- once

    def test_cost_does_not_grow_with_tasks(self) -> None:
        properties.check_flat_cost(self.one_case)

    def test_nothing_is_done_sample_by_sample(self) -> None:
        if not self.sample_by_sample:
            properties.check_same_operations_for_any_batch(self.one_case)

    # ---- with every other strategy

    def test_composes_or_is_refused(self, other: str) -> None:
        mine, its = options_of(self.strategy, self.options), options_of(other)
        check_pair(mine, its, self.adds_nothing)
        check_pair(its, mine, self.adds_nothing)
