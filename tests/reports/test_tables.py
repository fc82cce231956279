"""Tables of a report, read back cell by cell."""

import json

import numpy as np
import pytest
from made_runs import write_run, write_sweep
from scipy import stats

from clbench.errors import ConfigError
from clbench.reports.comparison import compare
from clbench.reports.tables import Table

ER, EWC, LWF = [0.90, 0.91, 0.92, 0.90, 0.93], [0.50, 0.52, 0.51, 0.55, 0.51], [0.41, 0.40, 0.44, 0.43, 0.40]


def cells(table: Table) -> dict[tuple[str, str], object]:
    """(label of the row, heading of the column) → cell."""
    return {
        (row[0].text, column.heading): cell
        for row in table.rows
        for column, cell in zip(table.columns, row, strict=True)
    }


def test_main_table_has_mean_and_interval_in_percent(tmp_path):
    write_sweep(tmp_path, {"er": ER, "ewc": EWC, "lwf": LWF})
    [table] = compare([tmp_path]).main
    cell = cells(table)["er", "ACC ↑"]
    low, high = stats.ttest_1samp(ER, 0).confidence_interval(0.95)
    assert cell.text == f"{100 * np.mean(ER):.1f} ± {50 * (high - low):.1f}"
    assert cell.value == pytest.approx(100 * np.mean(ER))
    assert cell.mark == "best"
    assert cells(table)["ewc", "ACC ↑"].mark == ""
    assert cells(table)["er", "FORG ↓"].mark == ""  # the deciding metric alone is marked
    assert cells(table)["er", "peak memory (MiB) ↓"].text == "1024 ± 0"
    assert cells(table)["er", "recovery (iterations) ↓"].text == "12.5 ± 0.0"
    assert "Bold: better than every other method in ACC" in table.caption
    assert "5 seeds (0, 1, 2, 3, 4)" in table.caption
    assert table.heading == "stream: results (mean ± 95 % t-interval)"
    assert "FWT ↑" not in [column.heading for column in table.columns]


def test_columns_say_what_they_were_measured_on(tmp_path):
    write_sweep(tmp_path, {"er": ER})
    notes = {column.heading: column.note for column in compare([tmp_path]).main[0].columns}
    assert notes["ACC ↑"] == "full sets, task ends, test split"
    assert notes["min-ACC ↑"] == "subsets, every=1, n=5"  # what was evaluated, not evaluator.subset=1000
    assert "ACC, average incremental, FORG: full sets" in compare([tmp_path]).main[0].notes


def test_tied_methods_have_daggers_and_the_caption_says_so(tmp_path):
    write_sweep(tmp_path, {"er": ER, "ewc": [value - 0.001 * (-1) ** i for i, value in enumerate(ER)], "lwf": LWF})
    [table] = compare([tmp_path]).main
    assert [cells(table)[method, "ACC ↑"].mark for method in ("er", "ewc", "lwf")] == ["tied", "tied", ""]
    assert "†: cannot be told from the best mean in ACC" in table.caption


def test_few_seeds_mark_nothing_and_the_caption_says_why(tmp_path):
    write_sweep(tmp_path, {"er": ER[:3], "ewc": EWC[:3]})
    [table] = compare([tmp_path]).main
    assert {cell.mark for row in table.rows for cell in row} == {""}
    assert "it takes at least 4 for 2 methods" in table.caption


def test_one_seed_has_no_interval(tmp_path):
    write_sweep(tmp_path, {"er": [0.9], "ewc": [0.5]})
    assert cells(compare([tmp_path]).main[0])["er", "ACC ↑"].text == "90.0"


def test_unfinished_runs_are_counted_and_not_averaged(tmp_path):
    write_sweep(tmp_path, {"er": ER})
    write_run(tmp_path / "x", "ewc", 0, ACC=0.5)
    write_run(tmp_path / "y", "ewc", 1, status="diverged", ACC=0.1)
    write_run(tmp_path / "z", "gem", 0, status="failed")
    comparison = compare([tmp_path])
    table = cells(comparison.main[0])
    assert table["er", "finished"].text == "5 of 5"
    assert table["ewc", "finished"].text == "1 of 5 (3 missing, 1 diverged)"
    assert table["ewc", "ACC ↑"].text.startswith("37.5 ±")  # 50 % and, of the diverged run, a guess among four classes
    assert table["gem", "ACC ↑"].text == "–"
    assert len(comparison.failures.rows) == 1 + 3 + 1 + 4
    assert compare([tmp_path / "stream-er-0"]).failures is None


def test_a_metric_that_some_runs_lack_says_in_how_many_it_is_defined(tmp_path):
    write_run(tmp_path / "a", seed=0, recovery_iterations=10.0)
    write_run(tmp_path / "b", seed=1, recovery_iterations=None)
    assert cells(compare([tmp_path]).main[0])["er", "recovery (iterations) ↓"].text == "10.0 (1 run)"


def test_another_deciding_metric(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"er{seed}", "er", seed, FWT=0.01 * seed)
        write_run(tmp_path / f"ewc{seed}", "ewc", seed, FWT=0.5 + 0.01 * seed**2)
    table = compare([tmp_path], metric="FWT").main[0]
    assert table.columns[2].heading == "FWT ↑"
    assert cells(table)["ewc", "FWT ↑"].mark == "best"
    with pytest.raises(ConfigError, match="unknown metric 'min-ACC': did you mean 'min_ACC'"):
        compare([tmp_path], metric="min-ACC")
    with pytest.raises(ConfigError, match=r"unknown test 't': .*Valid choices: bootstrap, wilcoxon"):
        compare([tmp_path], test="t")


def test_a_metric_that_no_run_has(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"none of the runs has the metric FWT. Valid choices here: ACC"):
        compare([tmp_path], metric="FWT")


def test_costs(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed, seconds=2.0 + seed, evaluation_seconds=1.0)
    table = cells(compare([tmp_path]).costs[0])
    assert table["er", "time (s)"].text == "2.5 ± 6.4"
    assert table["er", "of which evaluation (%)"].value == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)
    assert table["er", "parameters (10³)"].text == "1.0"
    assert table["er", "kept beside the model (MiB)"].text == "1.00"
    assert table["er", "device"].text == "cpu, 1 threads"


def test_accuracy_per_computation_where_operations_were_counted(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"er{seed}", "er", seed, step_cost=2.0, iterations=500, ACC=0.6)
        write_run(tmp_path / f"ewc{seed}", "ewc", seed, step_cost=None, iterations=500)
    table = cells(compare([tmp_path]).costs[0])
    assert table["er", "step (× finetuning)"].text == "2.00"
    assert table["er", "computed (10³ steps of finetuning)"].text == "1.00"
    assert table["er", "ACC per 10³ steps of finetuning"].text == "60.00"
    assert table["ewc", "ACC per 10³ steps of finetuning"].text == "–"


def test_costs_that_all_seeds_share_have_no_interval_however_their_mean_is_rounded(tmp_path):
    values = [0.2 * 1e6] * 3
    assert np.std([value / 1e6 for value in values], ddof=1) > 0
    for seed, flops in enumerate(values):
        write_run(tmp_path / str(seed), seed=seed, forward_flops_per_sample=flops)
    assert cells(compare([tmp_path]).costs[0])["er", "forward pass (MFLOP)"].text == "0.20"


def test_tests_table(tmp_path):
    write_sweep(tmp_path, {"er": ER, "ewc": EWC})
    comparison = compare([tmp_path])
    [row] = comparison.tests[0].rows
    assert [cell.text for cell in row[:3]] == ["ewc", "5", "39.4"]
    assert float(row[5].text) == pytest.approx(comparison.statistics["stream"].comparisons.p["ewc"], abs=1e-4)


def test_provenance_has_the_stream_and_every_value_that_differs(tmp_path):
    write_run(tmp_path / "a", "er", 0, stream_hash="a" * 32)
    write_run(tmp_path / "b", "er", 1, stream_hash="b" * 32)
    facts = {row[0].text: row[1].text for row in compare([tmp_path]).provenance[0].rows}
    assert facts["stream"] == "stream/v1"
    assert facts["scenario hash"] == f"seed 0: {'a' * 32}, seed 1: {'b' * 32}"
    assert facts["tasks"] == "2 (class-incremental): 0, 1; 2, 3"
    assert facts["budget per task"] == "20 epochs, batch 32"
    assert facts["seeds"] == "0, 1"


def test_hyperparameters_that_differ_are_columns(tmp_path):
    write_run(tmp_path / "a", "er", options={"trainer.lr": 0.5, "strategy.memory_size": 100})
    write_run(tmp_path / "b", "ewc", options={"strategy.lam": 10.0})
    table = compare([tmp_path]).hyperparameters[0]
    assert [column.heading for column in table.columns] == ["method", "lr", "strategy's options"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["er", "0.5", "memory_size=100"],
        ["ewc", "0.05", "lam=10"],
    ]


def test_scenarios_have_tables_of_their_own_and_three_have_ranks(tmp_path):
    for scenario, accuracies in {"one": ER, "two": EWC, "three": LWF}.items():
        write_sweep(tmp_path, {"er": accuracies, "ewc": [value - 0.1 for value in accuracies]}, scenario)
    comparison = compare([tmp_path])
    assert [table.scenario for table in comparison.main] == ["one", "three", "two"]
    assert comparison.ranks.average_ranks.to_dict() == {"er": 1.0, "ewc": 2.0}
    assert comparison.ranks.scenarios == ["one", "three", "two"]
    assert comparison.tests[-1].title == "Ranks over scenarios"
    assert compare([f"{tmp_path}/one*", f"{tmp_path}/two*"]).ranks is None


# ---- what methods say of themselves -----------------------------------------------------------------------------------


def test_notes_are_footnotes_once_each_with_the_methods_that_they_apply_to(tmp_path):
    both, own = "hyper: a part is a reconstruction.", "hyper: this option is our reading."
    for seed in range(2):
        notes = [own, both] if seed == 0 else [both]  # a seed that lacks one takes nothing away
        write_run(tmp_path / f"a{seed}", "hyper", seed, options={"strategy.beta": 1}, notes=notes)
        write_run(tmp_path / f"b{seed}", "hyper", seed, options={"strategy.beta": 2}, notes=[both])
        write_run(tmp_path / f"c{seed}", "ewc", seed)  # from before there were notes
        write_run(tmp_path / f"d{seed}", "er", seed, notes=["er: of one method."])
    write_run(tmp_path / "e", "gem", 0, status="diverged", ACC=None, notes=["gem: it diverged."])
    [table] = compare([tmp_path]).main
    assert table.footnotes == [
        f"hyper (beta=1) – {own}",
        f"hyper (beta=1), hyper (beta=2) – {both}",
        "er: of one method.",
        "gem: it diverged.",
    ]
    numbers = {row[0].text: row[0].footnotes for row in table.rows}
    assert numbers == {"hyper (beta=1)": (1, 2), "hyper (beta=2)": (2,), "ewc": (), "er": (3,), "gem": (4,)}
    assert all(cell.footnotes == () for row in table.rows for cell in row[1:])


def test_notes_stay_with_their_scenario(tmp_path):
    write_run(tmp_path / "a", "er", scenario="one", notes=["er: of one."])
    write_run(tmp_path / "b", "er", scenario="two", notes=[])
    assert [table.footnotes for table in compare([tmp_path]).main] == [["er: of one."], []]


def measured(folder, name: str, strategy: str, seed: int, values: dict[str, list[float]]) -> None:
    """A run whose strategy reports a value of each quantity after every task, and one of a layer beside it."""
    rows = [
        (task, strategy, quantity, part, value + 100 * bool(part))
        for quantity, by_task in values.items()
        for task, value in enumerate(by_task)
        for part in ("", "head.weight")
    ]
    write_run(folder / f"{name}{seed}", strategy, seed, options={"strategy.name": strategy}, measurements=rows)


def test_whole_network_after_the_last_task_is_a_table_per_strategy(tmp_path):
    shares = [0.5, 0.52, 0.56]
    for seed, share in enumerate(shares):
        values = {"free_share": [0.9, share], "density": [0.2, 0.2], "flops": [1.0, 2.5e7], "masks": [3, 10 + seed]}
        measured(tmp_path, "a", "sparse", seed, values)
        measured(tmp_path, "b", "hyper", seed, {"parameters": [5.0, 190410.0]})
        write_run(tmp_path / f"c{seed}", "er", seed)
    sparse, hyper = compare([tmp_path]).reported
    assert (sparse.title, hyper.title) == ("stream: what sparse reports", "stream: what hyper reports")
    assert [column.heading for column in sparse.columns] == ["method", "free share", "density", "flops (10⁶)", "masks"]
    found = cells(sparse)
    low, high = stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert found["sparse", "free share"].text == f"{np.mean(shares):.3f} ± {(high - low) / 2:.3f}"
    assert (
        found["sparse", "density"].text == "0.200"
    )  # the same in every seed: no interval, however the mean is rounded
    assert found["sparse", "flops (10⁶)"].text == "25.0"
    assert found["sparse", "masks"].text == "11 ± 2"
    assert [[cell.text for cell in row] for row in hyper.rows] == [["hyper", "190410"]]


def test_seeds_that_report_nothing_are_counted(tmp_path):
    measured(tmp_path, "a", "sparse", 0, {"density": [0.2, 0.3]})
    write_run(tmp_path / "b", "sparse", 1)  # from before methods reported anything
    [table] = compare([tmp_path]).reported
    assert table.rows[0][1].text == "0.300 (1 run)"


def test_runs_that_report_nothing_have_no_such_table(tmp_path):
    write_run(tmp_path / "a", "er", notes=[])
    comparison = compare([tmp_path])
    assert comparison.reported == []
    assert comparison.measurements.empty
    assert comparison.main[0].footnotes == []


def test_what_is_undefined_is_left_out(tmp_path):
    undefined = {"reuse": [float("nan"), float("nan")], "ratio": [1.0, float("inf")]}
    measured(tmp_path, "a", "sparse", 0, {"density": [0.2, 0.3]} | undefined)
    [table] = compare([tmp_path]).reported
    assert [column.heading for column in table.columns] == ["method", "density"]


def test_pooled_accuracy_has_a_column_only_where_tasks_differ_in_size(tmp_path):
    write_run(tmp_path / "equal" / "er", "er", 0, ACC=0.5)
    (table,) = compare([tmp_path / "equal"]).main
    assert [c.heading for c in table.columns if "ACC" in c.heading or "incremental" in c.heading] == [
        "ACC ↑", "average incremental ↑", "min-ACC ↑", "WC-ACC ↑"
    ]  # fmt: skip
    assert "also the share of all their samples" in table.caption
    (by_pooled,) = compare([tmp_path / "equal"], metric="ACC_pooled").main
    assert [c.metric for c in by_pooled.columns if c.heading == "ACC ↑"] == ["ACC_pooled"]

    write_run(tmp_path / "unequal" / "er", "er", 0, ACC=0.29, ACC_pooled=0.172)
    write_run(tmp_path / "unequal" / "lwf", "lwf", 0, ACC=0.3, ACC_pooled=0.3)
    (table,) = compare([tmp_path / "unequal"]).main
    shown = cells(table)
    assert shown["er", "ACC (task mean) ↑"].text == "29.0"
    assert shown["er", "ACC (pooled) ↑"].text == "17.2"
    assert "every sample, as iCaRL and PyCIL report it" in table.caption


def test_runs_from_before_there_were_pooled_metrics(tmp_path):
    """Their average incremental accuracy is the mean over the tasks."""
    folder = write_run(tmp_path / "old", "er", 0)
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("ACC_pooled", "average_incremental_pooled", "average_incremental_macro"):
        del summary["metrics"][name]
    summary["metrics"]["average_incremental"] = 0.66
    (folder / "summary.json").write_text(json.dumps(summary))
    (table,) = compare([tmp_path]).main
    assert cells(table)["er", "average incremental ↑"].text == "66.0"
    assert not any("pooled" in column.heading for column in table.columns)
    with pytest.raises(ConfigError, match="none of the runs has the metric ACC_pooled"):
        compare([tmp_path], metric="ACC_pooled")
