"""``reproduce``: runs, the page, going on, and mistakes."""

import csv
import json

import pytest

from clbench import reproduction
from clbench.published.committed import of_strategy

TABLE = """\
# Someone 2020 (arXiv:2001.00001), Table 1: on digits.
paper: Someone 2020 (arXiv:2001.00001), Table 1
figures: someone/code@1234567 README
code: the same
seeds: 3
spread_kind: std
common:
  - model.hidden=[8]
  - trainer.epochs=null
  - trainer.max_steps_per_task=2
  - evaluator.every=0
  - progress=false
  - device=cpu
settings: {class: [scenario=split_digits]}
cells:
  none: {method: Nothing, setting: class, mean: 20.0, spread: 1.0, tolerance: 100.0, overrides: [strategy=finetune], why: found}
  none_forgets: {method: Nothing, setting: class, mean: 0.0, tolerance: 0.001, metric: FORG, runs_of: none}
  l2: {method: L2, setting: class, mean: -99.0, spread: 0.1, tolerance: 1.0, overrides: [strategy=l2], note: other digits}
  any: {method: None, setting: class, mean: 20.0, spread: 1.0, tolerance: 90.0, weak: true, runs_of: none}
  rare: {method: Rare, mean: 50.0, tolerance: 1.0, missing: dropout, overrides: [model.dropout=0.5]}
  wrong: {method: Wrong, mean: 50.0, tolerance: 1.0, overrides: [strategy=er, strategy.memory_size=3]}
"""


@pytest.fixture
def table(clb, tmp_path):
    (tmp_path / "my" / "table").mkdir(parents=True)
    (tmp_path / "my" / "table" / "mine.yaml").write_text(TABLE)

    def call(*words: str) -> tuple[int, str, str]:
        return clb("reproduce", "mine", "--config-dir", "my", "hydra.launcher.way=in_turn", *words)

    return call


def rows(folder) -> dict[str, dict[str, str]]:
    with (folder / "mine.csv").open(newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_runs_and_their_comparison(table, tmp_path, monkeypatch, capsys):
    status, out, errors = table("--seeds", "2", "--page", "pages")
    assert status == 1  # one cell is wrong: the others are run
    folder = tmp_path / "reproductions" / "mine"
    found = rows(tmp_path / "pages")
    accuracies = [
        100 * json.loads((folder / "none" / f"seed_{seed}" / "summary.json").read_text())["metrics"]["ACC"]
        for seed in (0, 1)
    ]
    none = found["none"]
    assert float(none["clbench"]) == pytest.approx(sum(accuracies) / 2, abs=1e-3)
    assert (none["verdict"], none["seeds"], none["published_seeds"], none["strategy"]) == (
        "within tolerance", "0 1", "3", "finetune",
    )  # fmt: skip
    assert (found["none_forgets"]["verdict"], found["none_forgets"]["metric"]) == ("differs", "FORG")
    assert float(none["p"]) > 0
    assert found["none_forgets"]["p"] == ""
    assert found["l2"]["verdict"] == "differs"
    assert (found["rare"]["verdict"], found["rare"]["reason"]) == ("not possible", "dropout")
    assert not (folder / "none_forgets").exists()
    assert not (folder / "rare").exists()
    assert found["wrong"]["verdict"] == "failed"
    assert "memory_size=3 is too small" in found["wrong"]["reason"]
    assert not list(folder.rglob("curve.png"))

    page = (tmp_path / "pages" / "mine.md").read_text()
    assert (
        "5 figures: 1 within tolerance, 2 differs, 1 failed, 1 not possible; not counted: 1 weak, of which 1 within"
        in page
    )
    assert "2 of 3" in page
    assert "Why: found" in page
    assert "Known to differ: other digits" in page
    assert "within tolerance (weak)" in page
    assert "python -m clbench reproduce mine" in page
    assert str(tmp_path) not in page
    assert "none: `python -m clbench -m hydra/launcher=fleet" in page
    assert page.count("seed=0,1`") == 2  # a command for each of the two that were run
    assert "6 runs, of which 4 finished" in page
    assert "wrong: job 0 (seed=0) failed: strategy.memory_size=3 is too small" in errors
    assert out.splitlines()[-1].endswith("pages/mine.md")

    by_strategy = of_strategy("finetune", tmp_path / "pages")
    assert [(entry.table, entry.cell, entry.verdict) for entry in by_strategy] == [
        ("mine", "none", "within tolerance"),
        ("mine", "none_forgets", "differs"),
    ]
    assert of_strategy("er", tmp_path / "pages") == []  # no runs
    monkeypatch.setattr("clbench.published.committed.published_dir", lambda: tmp_path / "pages")
    monkeypatch.setenv("COLUMNS", "200")
    from clbench.listing import describe

    describe("finetune")
    shown = capsys.readouterr().out
    assert "published figures" in shown
    assert "20.00 ± 1.00" in shown


def test_what_has_ended_is_not_made_again_and_more_seeds_are_added(table, tmp_path):
    folder = tmp_path / "reproductions" / "mine" / "none"
    assert table("--cells", "none", "--seeds", "1")[0] == 0
    first = (folder / "seed_0" / "summary.json").stat().st_mtime_ns
    assert table("--cells", "none*", "--seeds", "2")[0] == 0
    assert (folder / "seed_0" / "summary.json").stat().st_mtime_ns == first
    assert rows(tmp_path / "reproductions" / "mine")["none"]["seeds"] == "0 1"
    assert rows(tmp_path / "reproductions" / "mine")["l2"]["verdict"] == "not run"


@pytest.mark.slow
def test_runs_that_do_not_count(table, tmp_path):
    """Of another configuration, damaged, diverged; none of which is overwritten."""
    assert table("--cells", "none", "--seeds", "2", "--out", "runs")[0] == 0
    folder = tmp_path / "runs" / "none"
    summary = folder / "seed_1" / "summary.json"
    summary.write_text(summary.read_text().replace('"finished"', '"diverged"'))
    assert table("--page-only", "--out", "runs")[0] == 0
    found = rows(tmp_path / "runs")["none"]
    assert (found["verdict"], found["seeds"]) == ("diverged", "0")
    alone = json.loads((folder / "seed_0" / "summary.json").read_text())["metrics"]["ACC"]
    assert float(found["clbench"]) == pytest.approx(100 * alone, abs=1e-3)
    (folder / "seed_1" / "config.yaml").write_text("nothing: of this\n")
    assert table("--page-only", "--out", "runs")[0] == 0
    found = rows(tmp_path / "runs")["none"]
    assert (found["verdict"], found["seeds"]) == ("within tolerance", "0")
    file = tmp_path / "my" / "table" / "mine.yaml"
    file.write_text(TABLE.replace("[strategy=finetune]", "[strategy=finetune, trainer.lr=0.3]"))
    assert table("--page-only", "--out", "runs")[0] == 0
    found = rows(tmp_path / "runs")
    assert (found["none"]["verdict"], found["none"]["clbench"]) == ("not run", "")
    assert "another configuration" in found["none"]["reason"]
    status, _, errors = table("--cells", "none", "--seeds", "1", "--out", "runs")
    assert status == 1
    assert "choose another" in errors


def test_a_run_that_was_killed_while_it_was_set_up_counts_as_not_made(table, tmp_path):
    assert table("--cells", "none", "--seeds", "1")[0] == 0
    folder = tmp_path / "reproductions" / "mine" / "none"
    killed = folder / "seed_1"
    killed.mkdir()
    (killed / "config.yaml").write_text((folder / "seed_0" / "config.yaml").read_text())
    assert table("--page-only")[0] == 0
    assert rows(tmp_path / "reproductions" / "mine")["none"]["verdict"] == "within tolerance"
    (folder / "seed_0" / "summary.json").unlink()
    assert table("--page-only")[0] == 0
    found = rows(tmp_path / "reproductions" / "mine")["none"]
    assert (found["verdict"], found["reason"]) == ("not run", "")


def test_an_interruption_leaves_the_page_of_what_is_done(table, tmp_path, monkeypatch):
    sweep = reproduction.sweep

    def until_the_second(words, commands):
        if "strategy=l2" in words:
            raise KeyboardInterrupt
        return sweep(words, commands)

    monkeypatch.setattr(reproduction, "sweep", until_the_second)
    status, _, errors = table("--seeds", "1")
    assert status == 130
    assert "interrupted; the same command goes on" in errors
    found = rows(tmp_path / "reproductions" / "mine")
    assert (found["none"]["verdict"], found["l2"]["verdict"]) == ("within tolerance", "not run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hsu2081"], "unknown table 'hsu2081': did you mean 'hsu2018'?"),
        (["hsu2018", "--cells", "task_l3"], "unknown cell of hsu2018 'task_l3': did you mean 'task_l2'?"),
        (["hsu2018", "--seeds", "0"], "--seeds 0 is out of range: it has to be at least 1"),
        (["hsu2018", "trainer.lr=0.1"], "trainer.lr=0.1: the cells of a table are run as published"),
        (["hsu2018", "strategy=er"], "strategy=er: the cells of a table are run as published"),
        (["hsu2018", "seed=3"], "seed=3: the cells of a table are run as published"),
        (["hsu2018", "task_l2"], "task_l2: the cells of a table are run as published"),
        (["hsu2018", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: the cells of a table are run as published"),
        (["hsu2018", "--sedes", "2"], "--sedes"),
        ([], "TABLE"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, said, clb, tmp_path):
    status, _, errors = clb("reproduce", *words)
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
