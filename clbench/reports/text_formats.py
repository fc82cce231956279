"""A comparison as Markdown, LaTeX and CSV."""

import re
from pathlib import Path

import pandas as pd

from clbench.reports.comparison import Comparison
from clbench.reports.counting import is_bound
from clbench.reports.measurement_tables import last_of_whole
from clbench.reports.statistics import half_widths, t_interval
from clbench.reports.tables import FOOTNOTES_HEADING, MAIN, Cell, Table

# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison, figures: list[tuple[str, str]]) -> str:
    """The report as GitHub-flavoured Markdown.

    Args:
        figures: (file name relative to the Markdown file, caption) of every picture.
    """
    parts = [f"# {_escape_markdown(comparison.title)}"]
    if comparison.command:
        parts.append(f"Made by\n\n```bash\n{comparison.command}\n```")
    if comparison.failures is not None:
        parts += ["## Missing and failed runs", markdown_table(comparison.failures)]
    parts += _section("Results", [*comparison.main, *comparison.tests])
    parts += _section("Plasticity", comparison.plasticity_tables)
    parts += _section("Mode connectivity", comparison.connectivity_tables)
    parts += _section("What the methods report", comparison.reported)
    if figures:
        parts.append("## Figures")
        for name, caption in figures:
            headline = _escape_markdown(caption.partition(". ")[0])
            parts.append(f"![{headline}]({name})\n\n{_escape_markdown(caption)}")
    if comparison.protocols:
        parts.append("## Tuning protocols")
        for report in comparison.protocols:
            parts += [*map(markdown_table, report.tables), *(f"* {_escape_markdown(note)}" for note in report.notes)]
    if comparison.sensitivity:
        parts.append("## Importance of hyperparameters")
        for entry in comparison.sensitivity:
            shares = ""
            if entry.importance is not None:
                shares = "; ".join(f"`{name}` {100 * share:.0f} %" for name, share in entry.importance.items()) + ". "
            where = _escape_markdown(f"{entry.method} on {entry.scenario} ({entry.kind})")
            parts.append(f"* {where}: {shares}{_escape_markdown(entry.note)}")
    parts += _section("Costs", comparison.costs)
    parts += _section("What was compared", [*comparison.provenance, *comparison.hyperparameters])
    return "\n\n".join(parts) + "\n"


def _section(heading: str, tables: list[Table]) -> list[str]:
    return [f"## {heading}", *map(markdown_table, tables)] if tables else []


def markdown_table(table: Table) -> str:
    """Heading, rows, footnotes and caption; best in bold, tied with a dagger."""
    headings = [_escape_markdown(column.heading) for column in table.columns]
    rules = ["--:" if column.is_number else "---" for column in table.columns]
    lines = [headings, rules, *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [f"{number}. {_escape_markdown(note)}" for number, note in enumerate(table.footnotes, start=1)]
    footnotes = "\n".join([f"**{FOOTNOTES_HEADING}**\n", *notes, "\n"]) if notes else ""
    return f"### {_escape_markdown(table.heading)}\n\n{body}\n\n{footnotes}{_escape_markdown(_below(table))}"


def _below(table: Table) -> str:
    return f"{table.caption} Measured on: {table.notes}." if table.notes else table.caption


def _markdown_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    marked = {"best": f"**{text}**", "tied": f"{text} †"}.get(cell.mark, text)
    return f"{marked} <sup>{_numbers(cell)}</sup>" if cell.footnotes else marked


def _numbers(cell: Cell) -> str:
    return ", ".join(map(str, cell.footnotes))


def _escape_markdown(text: str) -> str:
    """No character of a text from a file is markup, and none ends the cell."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))


# ---- LaTeX ----------------------------------------------------------------------------------------------------------

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "τ": r"$\tau$", "−": "$-$", "–": "--",
    "×": r"$\times$", "³": "$^3$", "λ": r"$\lambda$", "→": r"$\rightarrow$", "š": r"\v{s}",
    "α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\varepsilon$", "θ": r"$\theta$", "·": r"$\cdot$", "≤": r"$\le$",
    "≥": r"$\ge$", **{character: f"$^{digit}$" for digit, character in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹") if character != "³"},
    "⁻": "$^-$",
}  # fmt: skip


def latex(comparison: Comparison) -> str:
    """Main, test, protocol, cost, plasticity and connectivity tables and what methods report.

    Each is a ``table`` with booktabs rules, to be ``\\input``.

    Wide tables are scaled down to the line, for which the document loads ``graphicx`` beside ``booktabs``.
    """
    reports = [table for report in comparison.protocols for table in report.tables]
    every = [*comparison.main, *comparison.tests, *reports, *comparison.costs, *comparison.plasticity_tables]
    every += [*comparison.connectivity_tables, *comparison.reported]
    head = "% needs \\usepackage{booktabs,graphicx}\n"
    return head + "\n\n".join(latex_table(table) for table in every) + "\n"


def latex_table(table: Table) -> str:
    """One ``table`` environment; best in bold, tied with a dagger, footnotes below the rows."""
    alignment = "".join("r" if column.is_number else "l" for column in table.columns)
    rows = [
        [_latex(column.heading) for column in table.columns],
        *([_latex_cell(cell) for cell in row] for row in table.rows),
    ]
    head, *body = [f"    {' & '.join(row)} \\\\" for row in rows]
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex(f'{table.heading}. {_below(table)}')}}}",
            rf"  \label{{tab:{label}}}",
            # \width is the tabular's own: it is scaled down where it is too wide, never up
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            head,
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}}",
            *_latex_footnotes(table.footnotes),
            r"\end{table}",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    marked = {"best": rf"\textbf{{{text}}}", "tied": rf"{text}$^\dagger$"}.get(cell.mark, text)
    return f"{marked}$^{{{_numbers(cell)}}}$" if cell.footnotes else marked


def _latex_footnotes(footnotes: list[str]) -> list[str]:
    if not footnotes:
        return []
    notes = [rf"    \par $^{{{number}}}$ {_latex(note)}" for number, note in enumerate(footnotes, start=1)]
    return [r"  \par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright", *notes, r"  \end{minipage}"]


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


# ---- CSV ------------------------------------------------------------------------------------------------------------


def write_runs(comparison: Comparison, file: Path) -> None:
    """One row per run found, compared or not; the column ``compared`` says which."""
    table = comparison.runs.relabelled(comparison.by)
    table.assign(compared=table.folder.isin(comparison.included.folder)).to_csv(file, index=False)


def main_numbers(comparison: Comparison) -> pd.DataFrame:
    """The main tables as numbers: a row per scenario and method.

    Returns:
        ``scenario, method``, ``runs`` (finished) and ``diverged`` (counted at chance level in accuracies), ``not_best`` (why the
        method cannot be the best, where it cannot), then per metric in the recorded unit (fractions, seconds, bytes) its mean
        under its own name, ``…_half_width`` (95 %) and ``…_runs`` (in how many runs it is known); ``…_is_bound`` where the mean
        is only an upper bound (of gap depth: a lower one); ``mark`` as in the main table, and the comparison with the best
        method: ``difference_to_best`` (best minus this one), ``low`` and ``high`` (its 95 % t-interval), ``effect_size``, ``p``,
        ``p_holm`` (empty where so few seeds cannot reach 5 %).
    """
    counted = comparison.counted
    names = [
        name for name in dict.fromkeys([comparison.metric, *MAIN]) if name in counted and counted[name].notna().any()
    ]
    records = []
    for scenario, rows in comparison.counted.groupby("scenario", sort=False):
        against = comparison.statistics.get(str(scenario))
        bounds = [name for name in names if is_bound(rows, name)]
        for method in comparison.methods:
            own = rows[rows.method == method]
            if own.empty:
                continue
            record: dict[str, object] = {"scenario": scenario, "method": method}
            record |= {"runs": int((own.status == "finished").sum()), "diverged": int((own.status == "diverged").sum())}
            record["not_best"] = comparison.not_best[str(scenario)].get(method, "")
            for name in names:
                defined = own[name].dropna().to_numpy(float)
                mean, half = t_interval(defined)
                record |= {name: mean, f"{name}_half_width": half, f"{name}_runs": len(defined)}
                if name in bounds:
                    record[f"{name}_is_bound"] = is_bound(own, name)
            if against is not None:
                record["mark"] = against.marks.get(method, "")
                if method in against.comparisons.index:
                    test = against.comparisons.loc[method]
                    record |= {"difference_to_best": test.difference}
                    record |= {name: test[name] for name in ("low", "high", "effect_size", "p", "p_holm")}
            records.append(record)
    return pd.DataFrame(records)


def measurement_numbers(comparison: Comparison) -> pd.DataFrame:
    """What methods report of whole networks after the last task, as numbers: a row per scenario, method and quantity.

    Returns:
        ``scenario, method, strategy, quantity``, then ``mean`` and ``half_width`` (95 %) over the ``runs`` that report it.
    """
    keys = ["scenario", "method", "strategy", "quantity"]
    records = []
    for names, rows in last_of_whole(comparison.measurements).groupby(keys, sort=False):
        mean, half = t_interval(rows.value.to_numpy(float))
        records.append(dict(zip(keys, names, strict=True)) | {"mean": mean, "half_width": half, "runs": len(rows)})
    return pd.DataFrame(records)


def plasticity_numbers(comparison: Comparison) -> pd.DataFrame:
    """Measures of plasticity at the end of every task, in the recorded units.

    Returns:
        ``scenario, method, task_learning, probe, quantity, part``, then ``mean`` and ``half_width`` (95 %) over the ``runs`` that
        measured it.
    """
    keys = ["scenario", "method", "task_learning", "probe", "quantity", "part"]
    table = comparison.plasticity.groupby(keys, sort=False).value.agg(["mean", "std", "count"]).reset_index()
    numbers = table[[*keys, "mean"]]
    return numbers.assign(half_width=half_widths(table["std"], table["count"]), runs=table["count"])


def connectivity_numbers(comparison: Comparison) -> pd.DataFrame:
    """Accuracy (a fraction) and mean cross-entropy at every point of the lines between the states after successive tasks.

    Returns:
        ``scenario, method, task_learning, tasks, lam``, then ``accuracy`` and ``loss``, each the mean over the ``runs`` that
        evaluated the point and followed by its ``…_half_width`` (95 %).
    """
    keys = ["scenario", "method", "task_learning", "tasks", "lam"]
    groups = comparison.connectivity.groupby(keys, sort=False)
    means, deviations, counts = groups[["accuracy", "loss"]].mean(), groups[["accuracy", "loss"]].std(), groups.size()
    numbers: dict[str, pd.Series] = {}
    for name in means:
        numbers |= {name: means[name], f"{name}_half_width": half_widths(deviations[name], counts)}
    return pd.DataFrame(numbers).assign(runs=counts).reset_index()
