"""``python -m clbench runs``: the runs as a table that fits the terminal, the latest first."""

import os
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from clbench.errors import ConfigError, choose_from, nearest
from clbench.reports.arguments import Parser
from clbench.reports.counting import BOUNDS
from clbench.reports.labels import differing_options, shown_value
from clbench.reports.loading import Runs, load
from clbench.reports.tables import METRICS

DEFAULT_FOLDERS = ("outputs", "multirun")

SHOWN_COLUMNS = ("folder", "strategy", "scenario", "seed", "status", "ACC", "FORG", "min_ACC", "seconds")
"""Beside the options in which runs of one strategy differ."""

LATEST = 20
"""Runs that are listed where it is not said how many."""

MOST_OPTIONS = 4
"""Columns for options in which runs differ; of more, ``--columns`` names those of interest."""

NARROWEST = 20
"""Characters that the name of a folder is cut to at most, from its beginning."""

GAP = 2
"""Blanks between columns."""


def runs(arguments: list[str]) -> None:
    """``python -m clbench runs [folders]``: list runs, filtered and sorted.

    Raises:
        ConfigError: a wrong argument or column, or no run.
    """
    parser = Parser(prog="python -m clbench runs", description="List runs, the latest first.")
    parser.add_argument(
        "paths", nargs="*", metavar="FOLDER", help="folders or patterns (default: outputs and multirun)"
    )
    parser.add_argument("--where", help="which runs, e.g. \"strategy == 'ewc' and ACC > 0.5\"")
    parser.add_argument("--sort", metavar="COLUMN", help="largest first; text in alphabetical order")
    parser.add_argument(
        "--columns",
        help="what is shown, columns or options such as trainer.lr, separated by commas (default: "
        f"{','.join(SHOWN_COLUMNS)} and the options in which runs differ, without what is the same for all)",
    )
    parser.add_argument("-n", "--number", type=int, default=LATEST, help=f"how many are listed (default: {LATEST})")
    parser.add_argument("--all", action="store_true", help="list all")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every column of these runs to a CSV file")
    options = parser.parse_args(arguments)
    if options.number < 1:
        raise ConfigError(f"--number {options.number} is out of range: it has to be at least 1")
    paths = options.paths or [name for name in DEFAULT_FOLDERS if Path(name).exists()]
    if not paths:
        raise ConfigError(f"there is neither of the folders {' and '.join(DEFAULT_FOLDERS)} here: name some")
    found = load(paths)
    table = _filtered(found.table, options.where)
    if options.sort:
        _check_column(options.sort, table)
        ascending = not pd.api.types.is_numeric_dtype(table[options.sort])
        table = table.sort_values(options.sort, ascending=ascending, kind="stable")
        listed = table
    else:
        listed = table.iloc[sorted(range(len(table)), key=lambda row: -_time_of(table.folder.iloc[row]))]
    listed = listed if options.all else listed.head(options.number)
    console = Console()
    if options.columns:
        shown = _with_options(listed, found, options.columns.split(","))
        console.print(_listing(_as_shown(shown, listed)), soft_wrap=True)
    else:
        _print_fitting(console, listed, found)
    more = f" of {len(table)} runs, --all lists all" if len(listed) < len(table) else " runs"
    console.print(Text(f"{len(listed)}{more}"))
    for sentence in _notes_on_streams(listed):
        console.print(Text(sentence, "yellow"))
    if options.csv:
        table.to_csv(options.csv, index=False)
        console.print(Text(f"written: {options.csv}"))


def _print_fitting(console: Console, listed: pd.DataFrame, found: Runs) -> None:
    """The default columns: what is the same for all is said above the table, and the last ones go where space is short."""
    names = [name for name in SHOWN_COLUMNS if name in listed and not listed[name].isna().all()]
    options = _differing(listed, found)
    table = _as_shown(_with_options(listed, found, [*names[:2], *options, *names[2:]]), listed)
    if len(table) > 1:
        same = [name for name in table if name in (*SHOWN_COLUMNS[1:5], *options) and table[name].nunique() == 1]
        if same:
            console.print(Text("all: " + ", ".join(f"{name} {table[name].iloc[0]}" for name in same), "dim"))
        table = table.drop(columns=same)
    droppable = [name for name in ("seconds", "min-ACC %", "FORG %", *reversed(_last_parts(options))) if name in table]
    while droppable and _width(table.drop(columns="folder")) + GAP + NARROWEST > console.width:
        table = table.drop(columns=droppable.pop(0))
    width = max(NARROWEST, console.width - _width(table.drop(columns="folder")) - GAP)
    if _width(table) > console.width:
        table["folder"] = _without_common_start(list(table["folder"]))
    table["folder"] = [name if len(name) <= width else "…" + name[1 - width :] for name in table["folder"]]
    console.print(_listing(table))


def _differing(listed: pd.DataFrame, found: Runs) -> list[str]:
    """The options in which runs of one strategy on one scenario differ."""
    names: dict[str, None] = {}
    for _, rows in listed.groupby(["strategy", "scenario"], dropna=False):
        names |= dict.fromkeys(differing_options([found.config(folder) for folder in rows.folder]))
    return list(names)[:MOST_OPTIONS]


def _with_options(listed: pd.DataFrame, found: Runs, names: list[str]) -> pd.DataFrame:
    """The columns ``names``, of which those that are no column of the table are options, under their last parts."""
    known = {option for folder in listed.folder for option in found.config(folder)}
    columns = {}
    for name in names:
        if name in listed:
            columns[name] = listed[name]
        elif nearest(name, map(str, listed.columns)) and name not in known:
            _check_column(name, listed)
        elif name in known:
            values = [found.config(folder).get(name) for folder in listed.folder]
            columns[_last_parts([name])[0]] = ["–" if value is None else shown_value(value) for value in values]
        elif near := nearest(name, known):
            raise ConfigError(f"unknown column {name!r}: did you mean the option {near[0]!r}?")
        else:
            raise ConfigError(choose_from("column", name, map(str, listed.columns)))
    return pd.DataFrame(columns, index=listed.index)


def _last_parts(names: list[str]) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name in names]


def _as_shown(table: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text; fractions in percent with a decimal, which their headings say, and bounds as such."""
    resolved = listed.get("min_ACC_resolved", pd.Series(index=listed.index, dtype=object))
    shown = {}
    for name in table:
        metric = METRICS.get(str(name))
        if metric is None or not pd.api.types.is_numeric_dtype(table[name]):
            shown[str(name)] = [_text(value) for value in table[name]]
        else:
            heading = f"{metric.heading} %" if metric.scale == 100 else str(name)
            signs = [f"{BOUNDS[name]} " if name in BOUNDS and known is False else "" for known in resolved]
            shown[heading] = [
                "–" if pd.isna(value) else f"{sign}{metric.scale * value:.{metric.digits}f}"
                for value, sign in zip(table[name], signs, strict=True)
            ]
    return pd.DataFrame(shown, index=table.index)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else str(value).removesuffix(".0")


def _width(table: pd.DataFrame) -> int:
    return sum(GAP + max(len(str(name)), *(len(text) for text in table[name])) for name in table) - GAP


def _without_common_start(folders: list[str]) -> list[str]:
    """Folders without the part that all begin with; what remains is whole names."""
    if len(folders) < 2:
        return folders
    common = os.path.commonpath(folders)
    return [os.path.relpath(folder, common) for folder in folders] if common else folders


def _listing(table: pd.DataFrame) -> RichTable:
    shown = RichTable(box=None, header_style="dim", padding=(0, GAP, 0, 0), pad_edge=False)
    for name in table:
        is_number = all(text == "–" or text.lstrip("-≤≥ ").replace(".", "", 1).isdecimal() for text in table[name])
        shown.add_column(str(name), justify="right" if is_number else "left", no_wrap=True)
    for row in table.itertuples(index=False):
        shown.add_row(*(Text(text) for text in row))
    return shown


def _notes_on_streams(table: pd.DataFrame) -> list[str]:
    """What has to be known of the streams of runs, such as that they are not the frozen ones, each with the number of runs."""
    if "scenario_note" not in table:
        return []
    noted = table[table.scenario_note.notna() & (table.scenario_note != "")]
    counts = noted.groupby(["scenario", "scenario_note"], sort=False).size()
    return [f"{scenario} ({n} {'run' if n == 1 else 'runs'}): {note}" for (scenario, note), n in counts.items()]


def _time_of(folder: str) -> float:
    """When a run last wrote its summary."""
    file = Path(folder) / "summary.json"
    return (file if file.exists() else Path(folder)).stat().st_mtime


def _filtered(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    if where is None:
        return table
    try:
        chosen = table.query(where)
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise ConfigError(choose_from("column in --where", name, map(str, table.columns))) from error
    except Exception as error:  # pandas passes on whatever parsing and comparing raises
        raise ConfigError(f"--where {where!r} cannot be applied: {' '.join(str(error).split())}") from error
    if not isinstance(chosen, pd.DataFrame):
        raise ConfigError(f"--where {where!r} is not a condition, such as \"strategy == 'ewc' and ACC > 0.5\"")
    return chosen


def _check_column(name: str, table: pd.DataFrame) -> None:
    if name not in table.columns:
        raise ConfigError(choose_from("column", name, map(str, table.columns)))
