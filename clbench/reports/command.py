"""The sub-command ``report``."""

import shlex
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from clbench.reports.arguments import Parser
from clbench.reports.comparison import Comparison, compare
from clbench.reports.statistics import TESTS
from clbench.reports.tables import METRICS, Cell, Table
from clbench.reports.text_formats import (
    connectivity_numbers,
    latex,
    main_numbers,
    markdown,
    measurement_numbers,
    plasticity_numbers,
    write_runs,
)

LABELS = 2
"""Columns of the main table before its metrics: the method and how many runs finished."""

TERMINAL_METRICS = ("ACC", "FORG", "min_ACC", "seconds")
"""Beside the deciding metric, the columns of the main table that fit into a terminal."""


def report(arguments: list[str]) -> None:
    """``python -m clbench report <folders or globs>``: compare runs and write a report.

    Raises:
        ConfigError: a wrong argument, no run, or runs that cannot be compared.
    """
    parser = Parser(prog="python -m clbench report", description="Compare runs and write a report.")
    parser.add_argument("paths", nargs="+", metavar="FOLDER", help="run folders, folders that hold some, or patterns")
    parser.add_argument(
        "--by", help="what makes a method: columns or options, e.g. method,trainer.epochs (default: method)"
    )
    parser.add_argument("--metric", default="ACC", help=f"decides who is best: {', '.join(METRICS)}")
    parser.add_argument("--test", help=f"{' or '.join(TESTS)} (default: what suits the number of seeds)")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: report/ in the study or sweep, or reports/<date>)"
    )
    parser.add_argument("--title", help="heading of the report")
    options = parser.parse_args(arguments)
    by = options.by.split(",") if options.by else None
    out = options.out or _default_folder(options.paths)
    command = shlex.join(["python", "-m", "clbench", "report", *arguments])
    comparison = compare(options.paths, by, options.metric, options.test, options.title, command)
    page = _write(comparison, out)
    _show(comparison, options.metric)
    console = Console()
    console.print(Text(f"report: {page}", overflow="fold"))
    console.print(Text(f"also there: {', '.join(sorted(file.name for file in out.iterdir() if file != page))}"))


def show_comparison(paths: list[str], out: Path | None, metric: str = "ACC") -> None:
    """Print the comparison of runs, and write the report where ``out`` says to which folder.

    Raises:
        ConfigError: no run, or runs that cannot be compared.
    """
    command = shlex.join(["python", "-m", "clbench", "report", *paths])
    comparison = compare(paths, None, metric, None, None, command)
    _show(comparison, metric)
    if out is not None:
        Console().print(Text(f"report: {_write(comparison, out)}", overflow="fold"))


def _show(comparison: Comparison, metric: str) -> None:
    console = Console()
    for table in comparison.main:
        console.print(terminal_table(table, metric, console.width))
        for number, note in enumerate(table.footnotes, start=1):
            console.print(Text(f"[{number}] {note}", "yellow"))
    if comparison.failures is not None:
        console.print(
            Text(f"{len(comparison.failures.rows)} runs are missing or did not finish: see the report", "yellow")
        )


def write_report(
    paths: Iterable[str | Path],
    out: Path | None = None,
    by: list[str] | None = None,
    metric: str = "ACC",
    test: str | None = None,
    title: str | None = None,
) -> Path:
    """What the sub-command ``report`` does, without printing.

    Args:
        out: folder to write to; None: as the sub-command's default. The others: see :func:`clbench.reports.comparison.compare`.

    Returns:
        The file ``report.html``.

    Raises:
        ConfigError: no run, or runs that cannot be compared.
    """
    paths = list(paths)
    out = out or _default_folder(paths)
    options = {"--by": ",".join(by or []), "--metric": metric, "--test": test, "--title": title, "--out": str(out)}
    given = [word for name, value in options.items() if value for word in (name, value)]
    command = shlex.join(["python", "-m", "clbench", "report", *map(str, paths), *given])
    return _write(compare(paths, by, metric, test, title, command), out)


def _write(comparison: Comparison, out: Path) -> Path:
    from clbench.reports.page import write_page  # plotly, matplotlib: only where a report is made
    from clbench.reports.print_figures import draw_all

    out.mkdir(parents=True, exist_ok=True)
    figures = draw_all(comparison, out)
    (out / "report.md").write_text(markdown(comparison, figures), encoding="utf-8")
    (out / "tables.tex").write_text(latex(comparison), encoding="utf-8")
    write_runs(comparison, out / "runs.csv")
    main_numbers(comparison).to_csv(out / "comparison.csv", index=False)
    if comparison.reported:
        measurement_numbers(comparison).to_csv(out / "reported.csv", index=False)
    if comparison.plasticity_tables:
        plasticity_numbers(comparison).to_csv(out / "plasticity.csv", index=False, float_format="%.6g")
    if comparison.connectivity_tables:
        connectivity_numbers(comparison).to_csv(out / "connectivity.csv", index=False, float_format="%.6g")
    write_page(comparison, out / "report.html")
    return out / "report.html"


def _default_folder(paths: list[str | Path]) -> Path:
    first = Path(paths[0])
    is_study_or_sweep = (first / "study.json").is_file() or (first / "multirun.yaml").is_file()
    return first / "report" if is_study_or_sweep else Path("reports") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


NARROWEST_LABELS = 24
"""Characters of a method's label that are to stay in one line: metrics are left out until they do."""


def terminal_table(table: Table, metric: str, width: int) -> RichTable:
    """The main table for a terminal of ``width`` characters, with fewer metrics; ``metric`` is the deciding one."""
    widths = [
        2 + max(len(column.heading), *(len(_terminal_cell(row[i])) for row in table.rows))
        for i, column in enumerate(table.columns)
    ]
    widths[0] = min(widths[0], NARROWEST_LABELS)
    chosen = [i for i, column in enumerate(table.columns) if i < LABELS or column.metric in (metric, *TERMINAL_METRICS)]
    deciding = next(i for i in chosen if table.columns[i].metric == metric)
    while sum(widths[i] for i in chosen) > width and chosen[-1] not in (LABELS - 1, deciding):
        chosen.pop()
    shown = RichTable(title=table.heading, caption=table.caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.title_justify = shown.caption_justify = "left"
    for i in chosen:
        justify: Literal["left", "right"] = "right" if table.columns[i].is_number else "left"
        shown.add_column(table.columns[i].heading, justify=justify, overflow="fold", no_wrap=i > 0)
    for row in table.rows:
        shown.add_row(*(_terminal_cell(row[i]) for i in chosen))
    return shown


def _terminal_cell(cell: Cell) -> Text:
    marks = [" †"] if cell.mark == "tied" else []
    marks += [f" [{number}]" for number in cell.footnotes]
    return Text(cell.text + "".join(marks), style="bold" if cell.mark == "best" else "")
