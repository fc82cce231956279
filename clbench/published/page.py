"""Published figures beside those of runs: ``<table>.md`` to be read, ``<table>.csv`` to be computed with."""

import math
import shlex
from pathlib import Path

import pandas as pd

from clbench.published.comparison import LEVEL, VERDICTS
from clbench.published.results import Result
from clbench.published.tables import PublishedTable
from clbench.records.run_folder import replacing
from clbench.reports.tables import METRICS, Cell, Column, Table
from clbench.reports.text_formats import markdown_table

SPREADS = {
    "std": "standard deviations over runs",
    "population_std": "standard deviations over runs, with n and not n − 1 in the denominator, as the source's code has it",
    "sem": "standard errors of the mean",
    "reading": "errors of reading the figure; the spread over runs is not known",
}
"""What ± is in a source."""

EVIDENCE = {
    "primary": "read in the authors' own file",
    "digitised": "measured off a figure",
    "secondary": "as others quote it",
}


def write_pages(table: PublishedTable, results: list[Result], folder: Path, command: str) -> Path:
    """Write ``<table>.md`` and ``<table>.csv``; returns the former.

    Args:
        table: the published table.
        results: of its cells, in their order.
        folder: where to; made where it is not there.
        command: that made the runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{table.name}.md"
    with replacing(page) as unfinished:
        unfinished.write_text(markdown(table, results, command), encoding="utf-8")
    with replacing(folder / f"{table.name}.csv") as unfinished:
        numbers(results).to_csv(unfinished, index=False, float_format="%.6g")
    return page


def counts(results: list[Result]) -> str:
    """How many cells came out how, a sentence; those that any method passes are counted apart."""
    strong = [result for result in results if not result.cell.weak]
    of_each = {verdict: sum(result.verdict == verdict for result in strong) for verdict in VERDICTS}
    said = ", ".join(f"{n} {verdict}" for verdict, n in of_each.items() if n)
    weak = [result for result in results if result.cell.weak]
    passed = sum(result.verdict == "within tolerance" for result in weak)
    apart = f"; not counted: {len(weak)} weak, of which {passed} within tolerance" if weak else ""
    return f"{len(strong)} figures: {said or 'none'}{apart}"


def markdown(table: PublishedTable, results: list[Result], command: str) -> str:
    """The page."""
    parts = [
        f"# {table.title}",
        f"{table.paper}. Figures: {table.figures}. Settings: {table.code}. {table.note}".rstrip(),
        f"**{counts(results)}.**",
        f"Made by\n\n```bash\n{command}\n```",
        markdown_table(figures_table(table, results)),
        "## The words",
        "\n".join(f"* **{word}**: {meaning}" for word, meaning in VERDICTS.items()),
        _on_numbers(results),
        "## Runs",
        _facts(results),
        "## A command for every cell",
        "The same runs, in a folder of their own. A seed alone: without `-m` and `hydra/launcher=fleet`, with `seed=0`.",
        "\n".join(f"* {result.cell.name}: `{command_of(result)}`" for result in results if _has_own_runs(result)),
    ]
    return "\n\n".join(parts) + "\n"


def figures_table(table: PublishedTable, results: list[Result]) -> Table:
    """A row for every cell, with what is to be known of it in footnotes."""
    headings = ["cell", "method", "metric", "published", "clbench", "seeds", "difference", "tolerance", "p", "verdict"]
    is_number = {"published", "clbench", "seeds", "difference", "tolerance", "p"}
    columns = [Column(heading, is_number=heading in is_number) for heading in headings]
    footnotes: list[str] = []
    rows = [_row(result, footnotes) for result in results]
    caption = (
        "Accuracies in percent, differences in percentage points. clbench: mean ± standard deviation over seeds; seeds: ours, of "
        "those of the source. Weak: any method without memory has this figure, so that it tests the stream and not the method."
    )
    return Table("Figures", caption, columns, rows, footnotes=footnotes)


def _row(result: Result, footnotes: list[str]) -> list[Cell]:
    cell, found = result.cell, result.compared
    said = []
    for text in (
        result.reason,
        f"Known to differ: {cell.note}" if cell.note else "",
        f"Why: {cell.why}" if cell.why else "",
    ):
        if text:
            if text not in footnotes:
                footnotes.append(text)
            said.append(footnotes.index(text) + 1)
    published = f"{cell.mean:.2f}" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")
    ours, difference, p = "–", "–", "–"
    if found is not None:
        ours = f"{found.mean:.2f}" + ("" if math.isnan(found.deviation) else f" ± {found.deviation:.2f}")
        difference = f"{found.difference:+.2f}".replace("-", "−")
        p = "–" if math.isnan(found.p) else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    seeds = f"{len(result.seeds)} of {cell.seeds or '?'}"
    verdict = f"{result.verdict} (weak)" if cell.weak else result.verdict
    texts = [published, ours, seeds, difference, f"{cell.tolerance:g}", p]
    return [
        Cell(cell.name, footnotes=tuple(said)),
        Cell(" ".join(filter(None, [cell.method, f"({cell.setting})" if cell.setting else ""]))),
        Cell(METRICS[cell.metric].heading),
        *map(Cell, texts),
        Cell(verdict),
    ]


def _on_numbers(results: list[Result]) -> str:
    kinds = {result.cell.spread_kind for result in results if result.cell.spread is not None}
    evidence = {result.cell.evidence for result in results}
    tested = sum(result.compared is not None and not math.isnan(result.compared.p) for result in results)
    sentences = [f"Published ±: {'; '.join(SPREADS[kind] for kind in SPREADS if kind in kinds)}." if kinds else ""]
    sentences.append(f"Published figures: {'; '.join(EVIDENCE[kind] for kind in EVIDENCE if kind in evidence)}.")
    sentences.append(
        "p: two-sided Welch test of the two means, from the published mean and spread and our runs; a dash where a spread or the "
        f"number of runs is not known. {tested} tests at {100 * LEVEL:.0f} %: where all means were the same, "
        f"{tested * LEVEL:.1f} of them would still be below it."
    )
    return " ".join(filter(None, sentences))


def _facts(results: list[Result]) -> str:
    """How much was computed, and with what."""
    tables = [result.runs for result in results if _has_own_runs(result) and len(result.runs)]
    if not tables:
        return "None yet."
    runs = pd.concat(tables, ignore_index=True)
    done = runs[runs.status == "finished"]
    lines = [f"* {len(runs)} runs, of which {len(done)} finished"]
    if len(done):
        lines.append(
            f"* {done.iterations.sum():,.0f} optimizer steps, networks of {done.parameters.min():,.0f} to "
            f"{done.parameters.max():,.0f} parameters"
        )
        lines.append(
            f"* {done.seconds.sum() / 3600:.2f} hours of training and evaluation, on {_each(done.device)}; runs trained "
            "together have their share of the time"
        )
        lines.append(f"* clbench {_each(done.clbench)} at {_each(done.git_commit)}, torch {_each(done.torch)}")
    return "\n".join(lines)


def _each(values: pd.Series) -> str:
    return ", ".join(sorted(map(str, values.dropna().unique()))) or "unknown"


def _has_own_runs(result: Result) -> bool:
    return result.cell.runs_of == result.cell.name and not result.cell.missing


def command_of(result: Result) -> str:
    """The sweep that makes a cell's runs."""
    seeds = ",".join(map(str, result.seeds)) or "0"
    words = ["-m", "hydra/launcher=fleet", *result.cell.overrides, f"seed={seeds}"]
    return shlex.join(["python", "-m", "clbench", *words])


def numbers(results: list[Result]) -> pd.DataFrame:
    """A row for every cell: the published figure, ours, their comparison, what was run."""
    rows = []
    for result in results:
        cell, found, seeds = result.cell, result.compared, result.seeds
        done = result.runs[result.runs.status == "finished"] if len(result.runs) else result.runs
        rows.append(
            {
                "cell": cell.name,
                "method": cell.method,
                "setting": cell.setting,
                "strategy": result.strategy,
                "metric": cell.metric,
                "published": cell.mean,
                "published_spread": cell.spread,
                "spread_kind": cell.spread_kind,
                "published_seeds": cell.seeds,
                "evidence": cell.evidence,
                "clbench": found.mean if found else None,
                "clbench_std": found.deviation if found else None,
                "seeds": " ".join(map(str, seeds)),
                "difference": found.difference if found else None,
                "tolerance": cell.tolerance,
                "p": found.p if found else None,
                "verdict": result.verdict,
                "weak": cell.weak,
                "reason": result.reason,
                "note": cell.note,
                "why": cell.why,
                "iterations": done.iterations.sum() if len(done) else None,
                "seconds": done.seconds.sum() if len(done) else None,
                "commit": _each(done.git_commit) if len(done) else "",
                "command": command_of(result),
            }
        )
    return pd.DataFrame(rows)
