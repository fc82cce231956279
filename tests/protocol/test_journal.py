"""The journal of trials: what it holds, and what a killed process may leave of it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from clbench.protocol.journal import FILE, TrialLog, open_journal
from clbench.protocol.search_space import SearchSpace, distribution

SPACE = SearchSpace(
    {
        "strategy.lam": distribution("strategy.lam", {"low": 0.1, "high": 10.0, "log": True}),
        "trainer.batch_size": distribution("trainer.batch_size", {"low": 1, "high": 64}),
        "trainer.milestones": distribution("trainer.milestones", [[0.4, 0.8], [0.5]]),
        "trainer.clip_grad_norm": distribution("trainer.clip_grad_norm", [None, 1.0]),
    },
    frozenset(),
)

VALUES = [
    {
        "strategy.lam": 0.1 + 0.3 * i,
        "trainer.batch_size": 16 + i,
        "trainer.milestones": "[0.4,0.8]" if i % 2 else "[0.5]",
        "trainer.clip_grad_norm": None if i % 3 else 1.0,
    }
    for i in range(6)
]

Trials = list[tuple[dict, str, float | None]]


def read(folder: Path, name: str = "ewc") -> Trials:
    """Values, state and value of every trial, as a new process finds them."""
    trials = TrialLog(open_journal(folder), name, SPACE).trials
    return [(dict(trial.params), trial.state.name, trial.value) for trial in trials]


def write(folder: Path) -> list[tuple[int, Trials]]:
    """Trials of every fate; returns the size of the journal and what is to be found in it after each line."""
    log = TrialLog(open_journal(folder), "ewc", SPACE)
    steps = []

    def note() -> None:
        found = [(dict(trial.params), trial.state.name, trial.value) for trial in log.trials]
        steps.append(((folder / FILE).stat().st_size, found))

    note()
    for values in VALUES:
        log.add(values)
        note()
    for number, (state, score) in enumerate(
        [(TrialState.COMPLETE, 0.5), (TrialState.FAIL, None), (TrialState.COMPLETE, 1 / 3), (TrialState.PRUNED, 0.25)]
    ):
        log.close(number, state, score)
        note()
    return steps


def test_trials_come_back_as_they_were(tmp_path):
    [*_, (_, written)] = write(tmp_path)
    assert read(tmp_path) == written
    assert [values for values, _, _ in written] == VALUES
    assert [state for _, state, _ in written] == ["COMPLETE", "FAIL", "COMPLETE", "PRUNED", "RUNNING", "RUNNING"]
    assert [value for _, _, value in written] == [0.5, None, 1 / 3, 0.25, None, None]


def test_what_is_known_of_a_trial_stays(tmp_path):
    write(tmp_path)
    log = TrialLog(open_journal(tmp_path), "ewc", SPACE)
    before = read(tmp_path)
    for number in range(4):
        log.close(number, TrialState.COMPLETE, 0.99)
        log.close(number, TrialState.FAIL, None)
    assert read(tmp_path) == before


def test_methods_have_trials_of_their_own_in_one_file(tmp_path):
    write(tmp_path)
    TrialLog(open_journal(tmp_path), "conventional/split_digits/er", SPACE).add(VALUES[5])
    assert [values for values, _, _ in read(tmp_path, "conventional/split_digits/er")] == [VALUES[5]]
    assert len(read(tmp_path)) == 6
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_trial_is_one_line(tmp_path):
    """So that a kill leaves the whole of it or nothing."""
    log = TrialLog(open_journal(tmp_path), "ewc", SPACE)
    lines = (tmp_path / FILE).read_text().count("\n")
    log.add(VALUES[0])
    text = (tmp_path / FILE).read_text()
    assert text.count("\n") == lines + 1
    assert "strategy.lam" in json.dumps(json.loads(text.splitlines()[-1]))


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_line_that_was_cut_off_anywhere_is_as_if_it_had_not_been_begun(tmp_path_factory, place):
    """Cut at any byte of the file: what the whole lines before it say is found, and what is missing can be written again."""
    folder = tmp_path_factory.mktemp("study")
    steps = write(folder)
    content = (folder / FILE).read_bytes()
    cut = int(place * len(content))
    (folder / FILE).write_bytes(content[:cut])
    expected: Trials = []
    for size, trials in steps:
        expected = trials if size <= cut else expected
    # A trial that is pruned takes two lines, its score and its state: in between it is as it was before.
    assert read(folder) == expected
    log = TrialLog(open_journal(folder), "ewc", SPACE)
    for values in VALUES[len(expected) :]:
        log.add(values)
    for number, (_, state, value) in enumerate(steps[-1][1]):
        if state != "RUNNING":
            log.close(number, TrialState[state], value)
    assert read(folder) == steps[-1][1]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_last_line_cut_off_at_any_byte(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("study")
    log = TrialLog(open_journal(folder), "ewc", SPACE)
    log.add(VALUES[0])
    before, size = read(folder), (folder / FILE).stat().st_size
    log.add(VALUES[1])
    content = (folder / FILE).read_bytes()
    cut = data.draw(st.integers(size, len(content) - 1))
    (folder / FILE).write_bytes(content[:cut])
    assert read(folder) == before
    repaired = (folder / FILE).read_bytes()
    assert repaired.startswith(content[:size])
    assert all(json.loads(line) for line in repaired.splitlines())


def test_a_line_without_its_end_is_not_taken_for_whole(tmp_path):
    """All of the line is there but for the newline: the next line would be written behind it."""
    write(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-1])
    log = TrialLog(open_journal(tmp_path), "ewc", SPACE)
    log.add(VALUES[0])
    assert len(read(tmp_path)) == 7
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", ["its own file", "nowhere"])
def test_a_lock_that_a_killed_process_left_blocks_nobody(tmp_path, target):
    """Optuna's lock is a link; its owner is dead, since the study itself is locked while a process has it."""
    write(tmp_path)
    before = read(tmp_path)
    (tmp_path / f"{FILE}.lock").symlink_to(tmp_path / FILE if target == "its own file" else tmp_path / "gone")
    log = TrialLog(open_journal(tmp_path), "ewc", SPACE)
    log.add(VALUES[0])
    assert len(read(tmp_path)) == len(before) + 1
    assert not (tmp_path / f"{FILE}.lock").is_symlink()
