"""``python -m clbench reproduce TABLE``: makes the runs of a table of published figures, and compares.

Every cell of the table (:mod:`clbench.published.tables`) is a sweep over seeds, by the command that its page prints, so every
launcher works. What has ended is not made again: the command goes on where it was stopped, and more seeds or cells are added to
those that are there.
"""

import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig

from clbench.command_line.checks import check_overrides
from clbench.command_line.help import COMMANDS
from clbench.command_line.launch import sweep
from clbench.config import without_hydra
from clbench.errors import ConfigError, DataError
from clbench.options import override_value
from clbench.published.page import counts, write_pages
from clbench.published.results import Result, read_result
from clbench.published.tables import PublishedCell, PublishedTable, merged, read_table
from clbench.records.continuity import with_absolute_paths
from clbench.reports.arguments import Parser
from clbench.reports.labels import is_of_the_method
from clbench.training.interruption import SIGNAL_STATUS

SEEDS = 5
"""Runs of a cell whose source says of one run, or not of how many."""

FAILED, INTERRUPTED = 1, 130

OF_EVERY_RUN = ("hydra/launcher=fleet", "record.figure=false", "record.report=false", "record.checkpoint=none")
"""How cells are run where the command line does not say otherwise."""

CHOSEN_HERE = ("seed", "study", "protocol", "scenario.name", "scenario.frozen", "strategy.search")
"""Options that are no part of a method, and are not the user's here."""


def reproduce(words: list[str]) -> int:
    """Run cells of a table, and write the page; returns the exit status: 1 where runs have failed.

    Raises:
        ConfigError: an unknown table or cell, or an override that would change what is computed.
    """
    parser = Parser(prog="python -m clbench reproduce", description="Make the runs of a published table, and compare.")
    parser.add_argument("table", metavar="TABLE", help="a name that python -m clbench list table shows")
    parser.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help="launcher, device and the like")
    parser.add_argument("--cells", help="which, separated by commas, also patterns such as 'task_*' (default: all)")
    parser.add_argument("--seeds", type=int, help=f"runs of each cell (default: as published, or {SEEDS})")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: reproductions/TABLE)")
    parser.add_argument("--page", type=Path, help="folder for TABLE.md and TABLE.csv (default: that of the runs)")
    parser.add_argument("--page-only", action="store_true", help="make no runs: the page of those that are there")
    options = parser.parse_intermixed_args(words)
    table = read_table(options.table)
    chosen = table.chosen(options.cells)
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds} is out of range: it has to be at least 1")
    for text in options.overrides:
        _refuse_change(text)
    work = Reproduction(table, options.out or Path("reproductions") / table.name)
    command = shlex.join(["python", "-m", "clbench", "reproduce", *_without_folders(words)])
    status = 0
    try:
        if not options.page_only:
            for cell in _with_own_runs(table, chosen):
                work.run(cell, options.seeds, options.overrides)
    except KeyboardInterrupt as error:
        print("clbench: interrupted; the same command goes on", file=sys.stderr)
        status = SIGNAL_STATUS.get(getattr(error, "signal", None), INTERRUPTED)
    results = work.results()
    page = write_pages(table, results, options.page or work.folder, command)
    print(f"{counts(results)}\npage: {page}")
    failed = {cell.name for cell in chosen} & {result.cell.name for result in results if result.verdict == "failed"}
    return status or (FAILED if failed else 0)


class Reproduction:
    """A table's runs in a folder: ``<cell>/seed_<n>/``.

    Args:
        table: the published figures.
        folder: of the runs.
    """

    def __init__(self, table: PublishedTable, folder: Path) -> None:
        self.table, self.folder = table, folder
        self._reasons: dict[str, str] = {}
        self._configs: dict[str, DictConfig | None] = {}

    def run(self, cell: PublishedCell, n_seeds: int | None, overrides: list[str]) -> None:
        """Make the runs of a cell that have not ended yet. Why it cannot be run, or failed, is kept for the page."""
        if cell.missing or self._config(cell) is None:
            return
        published = cell.seeds if cell.seeds and cell.seeds > 1 else SEEDS
        seeds = ",".join(map(str, range(n_seeds or published)))
        folder = override_value(str((self.folder / cell.name).absolute()))
        words = merged(OF_EVERY_RUN, cell.overrides, overrides)
        print(f"\n{self.table.name}: {cell.name}", file=sys.stderr)
        where = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=seed_${seed}"]
        try:
            failures = sweep(["-m", *words, f"seed={seeds}", *where], list(COMMANDS))
        except (ConfigError, DataError) as error:  # of this cell: the others are run
            failures = [str(error)]
        for failure in failures:
            print(f"clbench: {cell.name}: {failure}", file=sys.stderr)
        reasons = (failure.rpartition(" failed: ")[2] for failure in failures)
        self._reasons[cell.name] = "; ".join(dict.fromkeys(reasons))

    def results(self) -> list[Result]:
        """What the folder holds, for every cell of the table."""
        return [self._result(cell) for cell in self.table.cells.values()]

    def _result(self, cell: PublishedCell) -> Result:
        folder = self.folder / cell.runs_of
        if not cell.missing and not folder.is_dir() and not self._reasons.get(cell.runs_of):
            return Result(cell, "not run")  # without composing its configuration, which takes half a second
        return read_result(cell, folder, self._config(cell), self._reasons.get(cell.runs_of, ""))

    def _config(self, cell: PublishedCell) -> DictConfig | None:
        """The configuration of a cell's runs; None where its overrides make none, with the reason kept."""
        if cell.runs_of not in self._configs:
            self._configs[cell.runs_of] = None
            try:
                config = without_hydra(check_overrides(list(cell.overrides)))
                self._configs[cell.runs_of] = with_absolute_paths(config, Path.cwd())
            except ConfigError as error:
                if not cell.missing:
                    self._reasons[cell.runs_of] = str(error)
        return self._configs[cell.runs_of]


def _with_own_runs(table: PublishedTable, chosen: list[PublishedCell]) -> list[PublishedCell]:
    """The cells whose runs the chosen ones are read from, each once."""
    return [table.cells[name] for name in dict.fromkeys(cell.runs_of for cell in chosen)]


def _refuse_change(text: str) -> None:
    """Raise where an override is none, or would change what a cell computes."""
    key = text.partition("=")[0].lstrip("+~")
    is_launcher = key == "hydra/launcher" or key.startswith("hydra.launcher.")
    of_the_machine = not is_of_the_method(key) and not key.startswith(CHOSEN_HERE)
    if "=" not in text or not (is_launcher or of_the_machine):
        raise ConfigError(
            f"{text}: the cells of a table are run as published, so that only options of the machine may be set beside it, such "
            "as hydra/launcher=, hydra.launcher.way=, device=, data.root=, trainer.threads= (seeds: --seeds)"
        )


def _without_folders(words: list[str]) -> list[str]:
    """The words of the command without where its results lie, which is of no interest to others."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word in ("--out", "--page"):
            next(left, None)
        elif not word.startswith(("--out=", "--page=", "data.root=")) and word != "--page-only":
            kept.append(word)
    return kept
