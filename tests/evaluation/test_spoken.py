"""Superficial and essential forgetting, by hand."""

import pandas as pd
import pytest

from clbench.evaluation.spoken import SPOKEN, summarise_answers

ROWS = [
    # learning, iteration, eval, n, exact, valid, consolidated, correct
    (0, 0, 0, 10, 0, 0, False, 5),
    (0, 4, 0, 10, 6, 8, False, 6),
    (0, 4, 0, 10, 7, 10, True, 8),
    (1, 5, 0, 10, 0, 1, False, 7),
    (1, 5, 1, 20, 1, 1, False, 1),
    (1, 8, 0, 10, 2, 3, False, 6),
    (1, 8, 1, 20, 15, 19, False, 16),
    (1, 8, 0, 10, 1, 3, True, 5),
    (1, 8, 1, 20, 14, 20, True, 16),
]
COLUMNS = ["task_learning", "iteration", "task_eval", "n", "exact", "valid", "consolidated", "correct"]


def of(rows):
    table = pd.DataFrame(rows, columns=COLUMNS)
    return summarise_answers(table.drop(columns="correct"), table)


def test_the_last_evaluation_counts_and_each_task_when_it_was_just_learned():
    found = of(ROWS)
    assert tuple(found) == SPOKEN
    assert found["exact_ACC"] == pytest.approx((0.1 + 0.7) / 2)
    assert found["valid"] == pytest.approx((0.3 + 1) / 2)
    assert found["superficial"] == pytest.approx((0.4 + 0.1) / 2)
    assert found["essential"] == pytest.approx(0.8 - 0.5)


def test_one_task_and_none():
    assert of(ROWS[:3]) == {"exact_ACC": 0.7, "valid": 1.0, "superficial": pytest.approx(0.1), "essential": None}
    assert of([]) == dict.fromkeys(SPOKEN)
