"""What every registered strategy has to satisfy: the properties of clbench.testing. Settings in turn, all with ``-m ""``."""

import dataclasses

import pytest
from streams import IN_TURN, ONCE

from clbench import testing
from clbench.registry import STRATEGIES
from clbench.testing.small_runs import setting_of

# In the scope of a module, so that all tests of one case follow each other and share its run.
in_turn = pytest.mark.parametrize("case", IN_TURN, scope="module")
in_one_setting = pytest.mark.parametrize("case", ONCE)
of_every_strategy = pytest.mark.parametrize("name", STRATEGIES.names())


@in_turn
def test_deterministic_and_undisturbed_by_evaluation(case):
    testing.check_undisturbed_by_evaluation(case)


@in_turn
def test_resumes_to_the_same_run(case, tmp_path):
    testing.check_resumes(case, tmp_path)


@in_turn
def test_prediction_is_per_sample(case):
    testing.check_prediction_is_per_sample(case)


@in_turn
def test_prediction_does_not_know_a_hidden_task(case):
    testing.check_task_stays_hidden(case)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_memory_and_step_cost_are_flat_over_12_tasks(name):
    case = testing.Case(name, setting_of(name, "domain"))
    fewer = ("strategy.reference_size=2",) if name == "agem" else ()
    testing.check_flat_cost(dataclasses.replace(case, overrides=fewer))


@pytest.mark.parametrize("case", IN_TURN)
def test_term_gradients_add_up_to_the_applied_gradient(case):
    testing.check_gradient_is_sum_of_terms(case)


@in_one_setting
def test_replay_has_a_loss(case):
    testing.check_replay_has_a_loss(case)


@in_one_setting
def test_real_valued_options_are_buffers(case):
    testing.check_options_are_buffers(case)


@of_every_strategy
def test_options_are_validated(name):
    testing.check_options_are_validated(name)


@of_every_strategy
def test_every_strategy_declares_what_it_needs(name):
    testing.check_needs(name)


@of_every_strategy
def test_describe_shows_equation_options_and_source(name):
    testing.check_documented(name)
    testing.check_described(name)


@of_every_strategy
def test_a_strategys_search_names_options_that_exist_with_values_that_can_be_run(name):
    testing.check_search(name)
