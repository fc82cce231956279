"""Optuna's journal of a study's trials: which configurations were drawn, and what became of them.

One file next to the runs holds the trials of all methods. A trial is one line from the moment it is drawn, so that a process
that is killed at any instant leaves either the whole trial or none of it.
"""

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from clbench.protocol.search_space import SearchSpace, Values, frozen_trial

FILE = "optuna.journal"

FINAL = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_journal(folder: Path) -> JournalStorage:
    """The journal in a study's folder, which no other process may have open.

    What a killed process can leave is removed: its lock, and a line it did not finish.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / FILE
    file.with_name(FILE + ".lock").unlink(missing_ok=True)
    if file.exists():
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            file.write_bytes(whole)
    return JournalStorage(JournalFileBackend(str(file)))


class TrialLog:
    """The trials of one method under one kind of tuning.

    Args:
        storage: of the whole study.
        name: unique within it.
        space: what is drawn from.
    """

    def __init__(self, storage: JournalStorage, name: str, space: SearchSpace) -> None:
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        self._space = space

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in the order in which they were drawn."""
        return self._study.get_trials(deepcopy=False)

    def add(self, values: Values) -> None:
        """Record a configuration that has been drawn."""
        self._study.add_trial(frozen_trial(values, self._space))

    def close(self, number: int, state: TrialState, score: float | None) -> None:
        """Record what became of a trial; nothing where that is known already."""
        if self.trials[number].state in FINAL:
            return
        if state == TrialState.PRUNED and score is not None:
            optuna.trial.Trial(self._study, self.trials[number]._trial_id).report(score, step=0)
        self._study.tell(number, score if state == TrialState.COMPLETE else None, state=state)
