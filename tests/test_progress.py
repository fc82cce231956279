"""How far a run is, on a terminal and without one."""

import logging

import pytest

from clbench import progress
from clbench.progress import ProgressDisplay, in_words, short_accuracies


def test_a_line_a_task_and_a_line_a_minute_where_there_is_no_terminal(capsys, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with caplog.at_level(logging.INFO, "clbench"), ProgressDisplay(2) as show:
        show(0, 0, 100, [])
        for step, seconds in ((10, 30.0), (20, 61.0), (30, 90.0), (100, 100.0), (100, 100.0)):
            now[0] = seconds
            show(0, step, 100, [0.5])
        now[0] = 200.0
        show(1, 100, 100, [0.25, 1.0])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "task 1/2, step 20/100: accuracy 50 %, 9 min left",
        "task 1/2: accuracy 50 %, 2 min left",
        "task 2/2: accuracy 25 100 %",
    ]
    assert [record.message for record in caplog.records] == lines
    assert not any("\x1b" in line for line in lines)


def test_silent_where_it_is_not_wanted(capsys):
    with ProgressDisplay(1, shown=False) as show:
        show(0, 5, 5, [1.0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("n_tasks", [5, 20, 500])
def test_the_bar_does_not_grow_with_the_tasks(n_tasks):
    assert len(short_accuracies([1.0] * n_tasks)) <= 30


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 s"), (90, "2 min"), (3 * 3600, "3.0 h"), (11160, "3.1 h"), (3 * 86400, "3.0 d")]
)
def test_lengths_of_time(seconds, words):
    assert in_words(seconds) == words
