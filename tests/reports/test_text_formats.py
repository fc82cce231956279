"""Markdown, LaTeX and CSV of a comparison, parsed back."""

import re
import shutil
import subprocess

import pandas as pd
import pytest
from made_runs import write_run, write_study, write_sweep
from scipy import stats

from clbench.reports.comparison import compare
from clbench.reports.tables import Cell, Column, Table
from clbench.reports.text_formats import (
    latex,
    latex_table,
    main_numbers,
    markdown,
    markdown_table,
    measurement_numbers,
    write_runs,
)

ER, EWC, LWF = [0.90, 0.91, 0.92, 0.90, 0.93], [0.50, 0.52, 0.51, 0.55, 0.51], [0.41, 0.40, 0.44, 0.43, 0.40]


@pytest.fixture
def comparison(tmp_path):
    write_sweep(tmp_path, {"er": ER, "ewc": EWC, "lwf": LWF})
    write_run(tmp_path / "x", "gem", 0, status="diverged", ACC=0.1)
    return compare([tmp_path], title="A_title with | and <script>", command="python -m clbench report x")


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the first Markdown table below a heading, split at unescaped bars."""
    lines = re.split(rf"### {heading}(?: \(.*\))?\n", text, maxsplit=1)[1].splitlines()
    table = [
        line
        for line in lines[
            : next(i for i, line in enumerate(lines[2:], 2) if line.startswith("#") or (not line and i > 3))
        ]
        if line
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_markdown_holds_the_tables(comparison):
    text = markdown(comparison, [("curves.png", "Curves. Of seeds.")])
    head, rule, *body = rows_of(text, "stream: results")
    assert head[:3] == ["method", "finished", "ACC ↑"]
    assert rule[:3] == ["---", "--:", "--:"]
    assert {len(row) for row in body} == {len(head)}
    assert body[1][0] == "ewc"
    assert body[0][2].startswith("**91.2 ±")
    assert "![Curves](curves.png)\n\nCurves. Of seeds." in text
    assert "python -m clbench report x" in text
    assert text.index("Missing and failed runs") < text.index("## Results")
    assert rows_of(text, "Runs that did not finish")[2][:4] == ["gem", "stream", "0", "diverged"]


def test_markdown_from_files_is_no_markup(comparison):
    assert r"# A\_title with \| and \<script\>" in markdown(comparison, [])
    table = Table("t", "c", [Column("a|b")], [[Cell("x | y\nz *bold*", mark="tied")]])
    assert r"| x \| y z \*bold\* † |" in markdown_table(table)
    assert r"| a\|b |" in markdown_table(table)


def test_latex_escapes_and_marks():
    columns = [Column("method_1"), Column("ACC ↑", "50 %", True)]
    rows = [[Cell("a_b & c"), Cell("91.2 ± 0.1", 91.2, "best")], [Cell(r"\input{x}"), Cell("90.0", 90.0, "tied")]]
    text = latex_table(Table("T_1", "About 100 %.", columns, rows))
    assert r"\begin{tabular}{lr}" in text
    assert r"method\_1 & ACC $\uparrow$ \\" in text
    assert r"a\_b \& c & \textbf{91.2 $\pm$ 0.1} \\" in text
    assert r"\textbackslash{}input\{x\} & 90.0$^\dagger$ \\" in text
    assert r"\caption{T\_1. About 100 \%. Measured on: ACC: 50 \%.}" in text
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 1


def test_latex_has_a_table_each_and_only_characters_that_plain_latex_knows(comparison, tmp_path):
    text = latex(comparison)
    assert text.count(r"\begin{table}") == len(comparison.main + comparison.tests + comparison.costs)
    assert len(set(re.findall(r"\\label\{(.*)\}", text))) == text.count(r"\label")
    assert text.isascii()


@pytest.mark.slow
def test_latex_compiles(comparison, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    both = {kind: {seed: 0.5 + 0.01 * seed for seed in (100, 101, 102)} for kind in ("two_phase", "conventional")}
    write_study(tmp_path / "study", {"er": both}, {"er": {kind: [0.5, 0.6] for kind in both}})
    study = compare([tmp_path / "study"])
    (tmp_path / "tables.tex").write_text(latex(comparison) + latex(study), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{tables}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_main_table_as_numbers(comparison, tmp_path):
    table = main_numbers(comparison).set_index("method")
    assert list(table.index) == ["er", "ewc", "lwf", "gem"]
    assert (table.runs["gem"], table.diverged["gem"], table.ACC["gem"]) == (0, 1, 0.25)
    assert table.not_best["gem"] == "4 of 5 seeds missing"
    table = table.drop(index="gem")
    assert table.ACC["er"] == pytest.approx(sum(ER) / 5)
    assert table.runs.tolist() == [5, 5, 5]
    assert table.mark["er"] == "best"
    assert table.difference_to_best["ewc"] == pytest.approx((sum(ER) - sum(EWC)) / 5)
    assert table.p_holm["ewc"] >= table.p["ewc"]
    assert table.ACC_half_width["er"] * 100 == pytest.approx(
        float(comparison.main[0].rows[0][2].text.split("± ")[1]), abs=0.05
    )
    assert all(
        pd.api.types.is_numeric_dtype(table[name]) for name in table if name not in ("scenario", "mark", "not_best")
    )


def test_every_run_found_is_in_the_csv(comparison, tmp_path):
    write_runs(comparison, tmp_path / "runs.csv")
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table) == 16
    assert table.compared.sum() == 15
    assert table[~table.compared].status.tolist() == ["diverged"]
    assert table[table.method == "er"].ACC.tolist() == ER


# ---- what methods say of themselves -----------------------------------------------------------------------------------


@pytest.fixture
def of_themselves(tmp_path):
    """Two seeds of a method with a note and of one that reports something."""
    for seed, density in enumerate([0.2, 0.3]):
        write_run(tmp_path / f"a{seed}", "hyper", seed, notes=["hyper: the option β_1 is a *reconstruction* & ours."])
        rows = [(task, "sparse", "density", "", density + task) for task in range(2)]
        write_run(tmp_path / f"b{seed}", "sparse", seed, notes=[], measurements=rows)
    return compare([tmp_path])


def test_markdown_has_notes_below_the_main_table_and_the_table_of_what_is_reported(of_themselves):
    text = markdown(of_themselves, [])
    assert [row[0] for row in rows_of(text, "stream: results")[2:]] == ["hyper <sup>1</sup>", "sparse"]
    note = r"1. hyper: the option β\_1 is a \*reconstruction\* & ours."
    assert text.count(note) == 1
    results = text[text.index("## Results") : text.index("## What the methods report")]
    assert f"**What has to be known of the methods:**\n\n{note}\n\nMean ± half the width" in results
    assert [row[0] for row in rows_of(text, "stream: what sparse reports")[2:]] == ["sparse"]
    assert rows_of(text, "stream: what sparse reports")[2][1].startswith("1.25 ± ")


def test_latex_has_notes_in_the_main_table_and_stays_ascii(of_themselves):
    text = latex(of_themselves)
    main = text[: text.index(r"\end{table}")]
    assert r"hyper$^{1}$ & 2 of 2" in main
    assert r"\par $^{1}$ hyper: the option $\beta$\_1 is a *reconstruction* \& ours." in main
    assert text.count("reconstruction") == 1
    assert r"\caption{stream: what sparse reports." in text
    assert text.isascii()
    assert "minipage" not in latex_table(of_themselves.reported[0])


def test_what_is_reported_as_numbers(of_themselves, tmp_path):
    [row] = measurement_numbers(of_themselves).to_dict("records")
    low, high = stats.ttest_1samp([1.2, 1.3], 0).confidence_interval(0.95)
    assert {name: row[name] for name in ("scenario", "method", "strategy", "quantity", "runs")} == {
        "scenario": "stream", "method": "sparse", "strategy": "sparse", "quantity": "density", "runs": 2,
    }  # fmt: skip
    assert (row["mean"], row["half_width"]) == pytest.approx((1.25, (high - low) / 2))
