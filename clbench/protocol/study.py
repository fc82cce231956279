"""A study: every method tuned, the selected configurations evaluated, all of it recorded in one folder.

===================================  =========================================================================================
``study.json``                       methods, streams, trials, what was selected, which runs evaluate it
``optuna.journal``                   the trials (Optuna's journal storage)
``tuning/<kind>/<scenario>/…``       a run folder for every configuration and tuning seed
``evaluation/<scenario>/…``          a run folder for every selected configuration and evaluation seed
===================================  =========================================================================================

Two kinds of tuning that select the same configuration share its evaluation runs.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clbench.config import without_hydra
from clbench.errors import ConfigError, RunFailed
from clbench.options import override_value
from clbench.protocol.journal import TrialLog, open_journal
from clbench.protocol.methods import Method
from clbench.protocol.options import ProtocolConfig
from clbench.protocol.search_space import Values, as_overrides
from clbench.protocol.streams import Compose, Streams, classes_of, plan_streams, refuse_leak, scenario_of
from clbench.protocol.tuned_values import write_tuned_values
from clbench.protocol.tuning import ENDED, RunRequest, TrialResult, Tuning, run_record
from clbench.records.run_folder import RunFolder
from clbench.scenarios.build import sources_kept
from clbench.set_up import set_up

log = logging.getLogger(__name__)

Launch = Callable[[list[RunRequest]], None]
"""Has runs made somewhere, and returns (or raises) when no more will come of it. What became of each is in its folder."""

FORMAT = 1


@dataclass(frozen=True)
class _Cell:
    """A method with its streams and searches."""

    method: Method
    streams: Streams
    tunings: dict[str, Tuning]


class Study:
    """See the module docstring.

    Args:
        folder: where everything goes; continued if a study of the same command lies there.
        methods: what is compared.
        options: of the protocol.
        compose: makes configurations.
        launch: has runs made.
        command: the user's command line, for the record.
        tuned_values: folder for the tuned values, or None.
        expect: told how many runs there will be at most, before the first is launched.

    Raises:
        ConfigError: the folder holds another study, the streams have something in common, or a method cannot be run on them.
    """

    def __init__(
        self,
        folder: Path,
        methods: list[Method],
        options: ProtocolConfig,
        compose: Compose,
        launch: Launch,
        command: str,
        tuned_values: Path | None = None,
        expect: Callable[[int], None] | None = None,
    ) -> None:
        self.folder, self.options = folder, options
        self._files = RunFolder(folder)
        self._methods, self._compose, self._launch_runs = methods, compose, launch
        self._command, self._tuned_values, self._expect = command, tuned_values, expect
        self._launched: Counter[str] = Counter()
        self._overlaps: dict[str, dict[str, Any]] = {}
        self._compared: set[tuple] = set()
        self._cells: list[_Cell] = []
        self._started = time.time()

    def run(self) -> None:
        """Make everything that is missing.

        Raises:
            RunFailed: for some method no configuration could be selected, or none of its evaluation runs came to its end.
        """
        with self._alone():
            self._refuse_another_study()
            with sources_kept():
                streams = [self._checked_streams(method) for method in self._methods]
            self._plan(streams)
            if self._expect is not None:
                self._expect(self.n_runs())
            self._write("running")
            self._tune()
            self._evaluate()
            self._write("finished")
        if self._tuned_values is not None:
            self._write_tuned_values()
        self._complain_of_failures()

    def n_runs(self) -> int:
        """How many runs the study has at most: two kinds of tuning that select the same configuration share its evaluation."""
        evaluation = len(self.options.kinds) * len(self.options.evaluation_seeds)
        return sum(sum(tuning.n_runs() for tuning in cell.tunings.values()) + evaluation for cell in self._cells)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(self._files.owned(wait=False))
            except BlockingIOError:
                raise ConfigError(f"the study in {self.folder} is being run by another process") from None
            yield

    def _definition(self) -> dict[str, Any]:
        """What may not change when a study is continued."""
        own = asdict(self.options)
        for name in ("retries", "best", "label"):  # the label is in the methods' names
            own.pop(name)
        methods = [[m.name, m.scenario, sorted(m.overrides), m.space.described()] for m in self._methods]
        return json.loads(json.dumps({"protocol": own, "methods": methods}))

    def _refuse_another_study(self) -> None:
        before = self._files.read_json("study.json")
        if before is not None and before["definition"] != self._definition():
            changed = [
                f"protocol.{name}={value} (there {before['definition']['protocol'].get(name)})"
                for name, value in self._definition()["protocol"].items()
                if before["definition"]["protocol"].get(name) != value
            ]
            raise ConfigError(
                f"{self.folder} holds another study: {', '.join(changed) or 'other methods, or other options of theirs'}. "
                "Choose another hydra.sweep.dir"
            )
        self._before = before or {}

    def _checked_streams(self, method: Method) -> Streams:
        streams = plan_streams(method.overrides, self.options, self._compose)
        self._check(method, streams)
        return streams

    def _check(self, method: Method, streams: Streams) -> None:
        """Build each of the method's streams once, and the method on it; compare those of two phases."""
        seeds = self.options.tuning_seeds[0], self.options.evaluation_seeds[0]
        for seed, every in zip(seeds, (streams.tuning.values(), [streams.evaluation]), strict=True):
            for overrides in every:
                composed = self._compose([*method.overrides, *overrides, "device=cpu", f"seed={seed}"])
                set_up(without_hydra(composed))
        pair = OmegaConf.to_yaml(method.composed.scenario), method.composed.data.root, tuple(streams.evaluation)
        if "two_phase" in streams.tuning and pair not in self._compared:
            self._compared.add(pair)
            tuning = scenario_of(self._compose([*method.overrides, *streams.tuning["two_phase"]]), seeds[0])
            evaluation = scenario_of(self._compose([*method.overrides, *streams.evaluation]), seeds[1])
            common = refuse_leak(tuning, evaluation)
            self._overlaps[method.scenario] = {
                "tuning_scenario": tuning.name,
                "classes": {"tuning": classes_of(tuning), "evaluation": classes_of(evaluation)},
                "common_classes": common.classes,
                "common_samples": common.images,
                "samples_compared": common.n_images,
            }

    def _plan(self, streams: list[Streams]) -> None:
        """The searches of every method. Which study this is, is written down before the first trial is."""
        if not self._before:
            self._write("planned")
        storage = open_journal(self.folder)
        for method, own in zip(self._methods, streams, strict=True):
            tunings = {}
            for kind in self.options.kinds:
                place = f"tuning/{kind}/{method.scenario}/{method.name}"
                overrides = [*method.overrides, *own.tuning[kind], *self._marks("tuning", kind, method)]
                trials = TrialLog(storage, f"{kind}/{method.scenario}/{method.name}", method.space)
                tunings[kind] = Tuning(
                    method.name, self.folder, place, overrides, method.space, self.options, trials, self._is_given_up
                )
            self._cells.append(_Cell(method, own, tunings))

    @staticmethod
    def _marks(phase: str, kind: str | None, method: Method) -> list[str]:
        """Overrides that every run of the study has."""
        marks = [f"study.phase={phase}", f"study.method={override_value(method.name)}", "progress=false"]
        return marks + ([f"study.protocol={kind}", "record.figure=false"] if kind else [])

    def _tune(self) -> None:
        while True:
            due = [request for cell in self._cells for tuning in cell.tunings.values() for request in tuning.due()]
            if not due:
                return
            self._launch(due, "tuning")
            self._write("running")

    def _evaluate(self) -> None:
        while True:
            due = {
                r.folder: r for cell in self._cells for r in self._evaluation_runs(cell) if not self._is_over(r.folder)
            }
            if not due:
                return
            self._launch(list(due.values()), "evaluation")
            self._write("running")

    def _evaluation_runs(self, cell: _Cell) -> Iterator[RunRequest]:
        for tuning in cell.tunings.values():
            best = tuning.best()
            if best is None:
                continue
            for seed in self.options.evaluation_seeds:
                overrides = [*cell.method.overrides, *cell.streams.evaluation, *as_overrides(best.values)]
                overrides += [*self._marks("evaluation", None, cell.method), f"seed={seed}"]
                yield RunRequest(overrides, self._evaluation_folder(cell.method, best.values, seed))

    @staticmethod
    def _evaluation_folder(method: Method, values: Values, seed: int) -> str:
        digest = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"evaluation/{method.scenario}/{method.name}/{digest}/seed_{seed}"

    def _launch(self, requests: list[RunRequest], phase: str) -> None:
        log.info("%s: %d runs", phase, len(requests))
        gave_up: Exception | None = None
        try:
            self._launch_runs(requests)
        except Exception as error:  # a launcher gives up when a worker dies; what became of each run is in its folder
            gave_up = error
            log.warning("the launcher stopped with %s: %s", type(error).__name__, (str(error).splitlines() or [""])[0])
        status = {request.folder: RunFolder(self.folder / request.folder).status for request in requests}
        began = [folder for folder, known in status.items() if known is not None]
        # Runs that were still waiting when others went down with their worker have not had their turn.
        self._launched.update(began or list(status))
        if gave_up is not None and not began and all(self._is_given_up(folder) for folder in status):
            raise gave_up  # no run's fault
        lost = sum(known not in ENDED for known in status.values())
        if lost:
            log.warning("%s: %d of %d runs have not come to their end", phase, lost, len(requests))

    def _is_over(self, folder: str) -> bool:
        return RunFolder(self.folder / folder).status in ENDED or self._is_given_up(folder)

    def _is_given_up(self, folder: str) -> bool:
        """Whether a run that has not come to its end is not tried again: its options are wrong, or it was tried often enough."""
        launched = self._launched[folder]
        summary = RunFolder(self.folder / folder).read_summary()
        reason = "" if summary is None else summary.get("reason") or ""
        at_fault = reason.startswith(("ConfigError", "DataError", "DamagedRecord"))
        return launched > 0 and (at_fault or launched > self.options.retries)

    def _write(self, status: str) -> None:
        seconds = self._before.get("seconds", 0.0) + time.time() - self._started
        self._files.write_json(
            "study.json",
            {
                "format": FORMAT,
                "status": status,
                "command": self._command,
                "seconds": seconds,
                "protocol": asdict(self.options),
                "streams": self._streams(),
                "methods": [self._method(cell) for cell in self._cells],
                "definition": self._definition(),
            },
        )

    def _streams(self) -> list[dict[str, Any]]:
        """The streams' hashes, as the runs recorded them, by seed."""
        streams: dict[str, dict[str, Any]] = {}
        for cell in self._cells:
            stream = streams.setdefault(
                cell.method.scenario,
                {
                    "scenario": cell.method.scenario,
                    "evaluation": {},
                    "tuning": {kind: {} for kind in cell.tunings},
                    "note": cell.streams.note,
                    **self._overlaps.get(cell.method.scenario, {}),
                },
            )
            for kind, tuning in cell.tunings.items():
                for result in tuning.results():
                    for seed, run in result.runs.items():
                        self._note_hash(stream["tuning"][kind], seed, run["folder"])
            for request in self._evaluation_runs(cell):
                self._note_hash(stream["evaluation"], int(request.folder.rpartition("_")[2]), request.folder)
        return list(streams.values())

    def _note_hash(self, hashes: dict[str, str], seed: int, folder: str) -> None:
        if str(seed) not in hashes:
            content = RunFolder(self.folder / folder).read_json("scenario.json")
            if content is not None:
                hashes[str(seed)] = content["hash"]

    def _method(self, cell: _Cell) -> dict[str, Any]:
        method = cell.method
        return {
            "method": method.name,
            "scenario": method.scenario,
            "overrides": method.overrides,
            "search": method.space.described(),
            "protocols": {kind: self._outcome(cell, tuning) for kind, tuning in cell.tunings.items()},
        }

    def _outcome(self, cell: _Cell, tuning: Tuning) -> dict[str, Any]:
        best = tuning.best() if not tuning.due() else None
        evaluation = None
        if best is not None:
            folders = {
                seed: self._evaluation_folder(cell.method, best.values, seed) for seed in self.options.evaluation_seeds
            }
            evaluation = {str(seed): run_record(self.folder, folder) for seed, folder in folders.items()}
        return {
            "trials": [_as_json(result) for result in tuning.results()],
            "selected": None if best is None else {"trial": best.number, "values": best.values, "score": best.score},
            "evaluation": evaluation,
        }

    def _write_tuned_values(self) -> None:
        assert self._tuned_values is not None
        kind = self.options.kinds[0]
        for cell in self._cells:
            best = cell.tunings[kind].best()
            if best is not None:
                file = write_tuned_values(
                    self._tuned_values,
                    cell.method.scenario,
                    cell.method.name,
                    best.values,
                    self._provenance(kind, best),
                )
                log.info("tuned values of %s on %s: %s", cell.method.name, cell.method.scenario, file)

    def _provenance(self, kind: str, best: TrialResult) -> dict[str, Any]:
        return {
            "protocol": kind,
            "metric": self.options.metric,
            "score": best.score,
            "trials": self.options.trials,
            "tuning_seeds": list(self.options.tuning_seeds),
            "command": self._command,
        }

    def _complain_of_failures(self) -> None:
        missing = []
        for cell in self._cells:
            for kind, tuning in cell.tunings.items():
                best = tuning.best()
                folders = (
                    []
                    if best is None
                    else [
                        self._evaluation_folder(cell.method, best.values, seed)
                        for seed in self.options.evaluation_seeds
                    ]
                )
                if not any(RunFolder(self.folder / folder).status in ENDED for folder in folders):
                    missing.append(f"{cell.method.name} on {cell.method.scenario} ({kind})")
        if missing:
            raise RunFailed(f"no result for {', '.join(missing)}: see study.json in {self.folder} for the reasons")


def _as_json(result: TrialResult) -> dict[str, Any]:
    return {
        "trial": result.number,
        "values": result.values,
        "state": result.state,
        "score": result.score,
        "diverged_seeds": result.diverged_seeds,
        "runs": {str(seed): run for seed, run in result.runs.items()},
    }
