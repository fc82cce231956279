"""Files with published figures: all that are committed, and what is wrong with others."""

import csv
import shlex

import pytest

from clbench.conf_files import add_config_dirs, group_choices, published_dir
from clbench.errors import ConfigError
from clbench.options import check_fields, to_dataclass
from clbench.published.comparison import VERDICTS
from clbench.published.tables import METRICS, merged, read_table
from clbench.reports import tables as reports_tables
from clbench.testing.small_runs import composed

NAMES = group_choices("table")


@pytest.mark.parametrize("name", NAMES)
def test_committed_table(name):
    """Its sources are named to the commit or the article, and its first line is what ``list`` shows."""
    table = read_table(name)
    assert len(table.title) > 20
    assert "arXiv:" in table.paper
    assert table.cells
    for cell in table.cells.values():
        assert 0 <= abs(cell.mean) <= 100, cell.name
        assert cell.name.replace("_", "").isalnum()
        assert cell.name.islower()
        assert cell.evidence != "primary" or "@" in table.figures, "a file of the authors' has a commit"


@pytest.mark.parametrize("name", NAMES)
def test_cells_compose(name):
    """All but those that clbench lacks something for; and two cells are never the same runs under two names."""
    runs = {}
    for cell in read_table(name).cells.values():
        if cell.missing:
            continue
        if cell.runs_of in runs:
            assert runs[cell.runs_of] == cell.overrides
            continue
        config = to_dataclass(composed(*cell.overrides))
        check_fields(config, "")
        assert config.evaluator.every == 0, cell.name  # tables print accuracies at task ends
        runs[cell.runs_of] = cell.overrides
    assert len(set(runs.values())) == len(runs)


def test_committed_comparisons_are_of_the_tables_as_they_are():
    """What is committed says of every cell what its file says: no figure or setting has changed since."""
    for file in sorted(published_dir().glob("*.csv")):
        cells = read_table(file.stem).cells
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert [row["cell"] for row in rows] == list(cells), file.name
        for row in rows:
            cell = cells[row["cell"]]
            assert (float(row["published"]), float(row["tolerance"])) == (cell.mean, cell.tolerance)
            assert (row["metric"], row["weak"], row["why"], row["note"]) == (
                cell.metric,
                str(cell.weak),
                cell.why,
                cell.note,
            )
            assert row["verdict"] in VERDICTS
            if row["clbench"]:
                assert set(cell.overrides) <= set(shlex.split(row["command"])), cell.name


def test_metrics_are_those_that_are_shown_in_percent():
    assert all(reports_tables.METRICS[name].scale == 100 for name in METRICS)


def test_later_overrides_hold_and_each_option_is_there_once():
    words = merged(
        ["experiment=a", "trainer.lr=1", "+plus.er.memory_size=2"], ["trainer.lr=2"], ["++plus.er.memory_size=3"]
    )
    assert words == ("experiment=a", "trainer.lr=2", "++plus.er.memory_size=3")


GOOD = """\
# Someone 2020 (arXiv:2001.00001), Table 1: on digits.
paper: Someone 2020 (arXiv:2001.00001), Table 1
figures: someone/code@1234567 README
code: the same
seeds: 3
spread_kind: std
common: [strategy=finetune, trainer.lr=0.1]
settings: {class: [trainer.lr=0.2, seed=1]}
cells:
  a: {method: none, setting: class, mean: 20.0, spread: 1.0, tolerance: 2.0, overrides: [seed=2]}
  b: {method: none, setting: class, mean: 1.0, tolerance: 2.0, metric: BWT, runs_of: a, seeds: 7}
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function: content → the table of a user's file."""
    monkeypatch.setattr("clbench.conf_files._added_dirs", [])

    def write(text: str, name: str = "mine"):
        (tmp_path / "table").mkdir(exist_ok=True)
        (tmp_path / "table" / f"{name}.yaml").write_text(text)
        add_config_dirs([tmp_path])
        return read_table(name)

    return write


def test_what_a_cell_gets_from_its_table(written):
    table = written(GOOD)
    a, b = table.cells["a"], table.cells["b"]
    assert a.overrides == b.overrides == ("strategy=finetune", "trainer.lr=0.2", "seed=2")
    assert (a.seeds, a.spread_kind, a.metric, a.evidence, a.runs_of) == (3, "std", "ACC", "primary", "a")
    assert (b.seeds, b.spread_kind, b.metric, b.runs_of) == (7, "none", "BWT", "a")  # it has no spread
    assert table.title == "Someone 2020 (arXiv:2001.00001), Table 1: on digits"


def test_cells_are_chosen_by_name_and_pattern_in_the_order_of_the_table(written):
    table = written(GOOD)
    assert [cell.name for cell in table.chosen(None)] == ["a", "b"]
    assert [cell.name for cell in table.chosen("b,a")] == ["a", "b"]
    assert [cell.name for cell in table.chosen("[bc]")] == ["b"]
    with pytest.raises(ConfigError, match=r"unknown cell of mine 'c\*': Valid choices: a, b"):
        table.chosen("a,c*")


def test_what_is_missing_for_the_runs_is_missing_for_every_figure_of_them(written):
    table = written(GOOD.replace("tolerance: 2.0, overrides", "tolerance: 2.0, missing: dropout, overrides"))
    assert table.cells["b"].missing == "dropout"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("setting: class, mean: 20.0", "setting: clas, mean: 20.0", "cells.a: unknown setting 'clas': did you mean 'class'"),
        ("metric: BWT", "metric: BTW", "cells.b: unknown metric 'BTW': did you mean 'BWT'"),
        ("spread_kind: std", "spread_kind: sdt", "unknown spread_kind 'sdt': did you mean 'std'"),
        ("seeds: 3", "evidence: primry", "unknown evidence 'primry': did you mean 'primary'"),
        ("runs_of: a", "runs_of: c", "unknown cell in runs_of 'c'"),
        ("runs_of: a", "runs_of: a, overrides: [seed=3]", "runs_of=a: a cell that has its runs needs its setting"),
        ("setting: class, mean: 1.0", "mean: 1.0", "runs_of=a: a cell that has its runs needs its setting"),
        ("tolerance: 2.0, overrides", "tolerance: 0, overrides", "tolerance=0.0 is out of range"),
        ("mean: 20.0", "mean: high", "cells.a.mean"),
        ("mean: 20.0", "men: 20.0", "men"),
        ("overrides: [seed=2]", "overrides: [plus=[er]]", "is no YAML"),
        ("code: the same\n", "", "code"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(old, new, said, written):
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        written(GOOD.replace(old, new))
    assert said in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_table():
    with pytest.raises(ConfigError, match="did you mean 'hsu2018'"):
        read_table("hsu2081")
