"""The sub-commands ``report`` and ``runs``."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from made_runs import write_run, write_study, write_sweep

from clbench.errors import ConfigError
from clbench.reports.command import report, write_report
from clbench.reports.run_list import runs

FILES = {"report.html", "report.md", "tables.tex", "runs.csv", "comparison.csv"}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A folder with a sweep of three methods, below the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_sweep(tmp_path / "multirun", {"er": [0.9, 0.8], "ewc": [0.5, 0.4], "lwf": [0.3, 0.2]})
    return tmp_path / "multirun"


@pytest.fixture
def no_pictures(monkeypatch):
    """Without those of print, which take most of the time and are looked at elsewhere."""
    monkeypatch.setattr("clbench.reports.print_figures.draw_all", lambda *_: [])


def test_report_writes_every_format_and_prints_the_main_table(sweep, tmp_path, capsys):
    report(["multirun", "--out", "here", "--title", "Three methods", "--metric", "FORG"])
    assert {file.name for file in (tmp_path / "here").iterdir()} >= FILES
    shown = capsys.readouterr().out
    assert "here/report.html" in shown
    assert re.search(r"ewc +2 of 2 +45\.0 ± 63\.5", shown)
    text = (tmp_path / "here" / "report.md").read_text()
    assert "# Three methods" in text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / "here" / picture).read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(tmp_path / "here" / "comparison.csv").method.tolist() == ["er", "ewc", "lwf"]


def test_report_of_methods_that_say_something_of_themselves(sweep, tmp_path, capsys):
    rows = [(task, "sparse", "free_share", part, 0.75 - 0.25 * task) for task in range(2) for part in ("", "a", "b")]
    for seed in range(2):
        write_run(
            sweep / f"x{seed}", "sparse", seed, notes=["sparse: [b]ours[/b]."], measurements=rows,
            plasticity=[(task, 10 * task + 10, "", "weight_rms", "", 0.5 * task + seed) for task in range(2)],
            connectivity=[(1, lam, task, 10, 5, 20.0) for lam in (0.0, 0.5, 1.0) for task in range(2)],
        )  # fmt: skip
    report(["multirun", "--out", "here"])
    shown = capsys.readouterr().out
    assert re.search(r"sparse \[1\] +2 of 2", shown)
    assert "[1] sparse: [b]ours[/b]." in shown
    text = (tmp_path / "here" / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"quantities-stream-sparse.png", "parts-stream-sparse-free_share.png"} <= set(pictures)
    assert {"just_learned-stream.png", "plasticity-stream.png", "connectivity-stream.png"} <= set(pictures)
    assert pd.read_csv(tmp_path / "here" / "connectivity.csv")[["accuracy", "loss", "runs"]].drop_duplicates().size == 3
    table = pd.read_csv(tmp_path / "here" / "plasticity.csv")
    assert table[["method", "task_learning", "mean", "runs"]].to_numpy().tolist() == [
        ["sparse", 0, 0.5, 2],
        ["sparse", 1, 1, 2],
    ]
    table = pd.read_csv(tmp_path / "here" / "reported.csv")
    assert table[["method", "quantity", "mean", "runs"]].to_numpy().tolist() == [["sparse", "free_share", 0.5, 2]]
    assert "ours" in (tmp_path / "here" / "tables.tex").read_text()


def test_report_of_methods_that_say_nothing_has_nothing_more(sweep, tmp_path):
    report(["multirun", "--out", "before"])
    for folder in sweep.iterdir():  # what a run of today adds where its method has nothing to say
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"notes": []}))
    report(["multirun", "--out", "after"])
    names = {file.name for file in (tmp_path / "before").iterdir()}
    assert {file.name for file in (tmp_path / "after").iterdir()} == names
    assert not names & {
        "reported.csv",
        "plasticity.csv",
        "connectivity.csv",
        "connectivity-stream.png",
        "just_learned-stream.png",
        "plasticity-stream.png",
    }
    for name in names:
        before, after = ((tmp_path / out / name).read_bytes() for out in ("before", "after"))
        assert after == before.replace(b"--out before", b"--out after"), name


def test_the_command_in_the_report_makes_it_again(sweep, tmp_path, no_pictures):
    page = write_report(["multirun"], by=["strategy"], metric="WC_ACC", test="wilcoxon", title="A 'quoted' title")
    first = (page.parent / "comparison.csv").read_text()
    command = re.search(r"```bash\n(.*)\n```", (page.parent / "report.md").read_text()).group(1)
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "clbench", "report"]
    shutil.rmtree(page.parent)
    report(words[4:])
    assert (page.parent / "comparison.csv").read_text() == first
    assert "# A 'quoted' title" in (page.parent / "report.md").read_text()


def test_the_default_folder_is_in_the_sweep_or_study_else_in_reports(sweep, tmp_path, no_pictures):
    assert write_report(["multirun"]).parent.parent.name == "reports"
    (sweep / "multirun.yaml").write_text("")
    assert write_report(["multirun"]).parent == sweep.relative_to(tmp_path) / "report"
    kinds = {"two_phase": {100: 0.8, 101: 0.7, 102: 0.8}}
    write_study(tmp_path / "study", {"er": kinds, "ewc": kinds}, {m: {"two_phase": [0.5, 0.4]} for m in ("er", "ewc")})
    page = write_report(["study"])
    assert page.as_posix() == "study/report/report.html"
    assert "Tuning protocols" in (page.parent / "report.md").read_text()
    assert write_report(["study"]) == page  # a report within the folder is no run


def test_report_of_runs_that_cannot_be_compared_writes_nothing(sweep, tmp_path, no_pictures):
    write_run(sweep / "x", "gem", options={"trainer.epochs": 1})
    with pytest.raises(ConfigError, match=r"differ in trainer\.epochs"):
        report(["multirun", "--out", "here"])
    assert not (tmp_path / "here").exists()
    report(["multirun", "--out", "here", "--by", "method,trainer.epochs"])
    assert "gem (epochs=1)" in (tmp_path / "here" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["multirun", "--metrics", "ACC"], "unrecognized arguments|ambiguous"),
        (["multirun", "--metric", "accuracy"], "unknown metric 'accuracy'"),
        (["multirun", "--test", "z"], "unknown test 'z'"),
        (["multirun", "--by", "modell"], "unknown column or option in --by 'modell': did you mean 'model'"),
        (["nowhere"], "no run in 'nowhere'"),
    ],
)
def test_wrong_arguments_are_answered_in_one_sentence(sweep, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        report(arguments)
    assert "\n" not in str(error.value)


def listed(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if "multirun/" in line]


def test_runs_lists_filters_and_sorts(sweep, tmp_path, capsys):
    runs([])  # the default folders
    assert len(listed(capsys.readouterr().out)) == 6
    runs(["multirun", "--where", "strategy != 'lwf' and ACC < 0.85", "--sort", "ACC", "--columns", "folder,ACC"])
    text = capsys.readouterr().out
    assert listed(text) == ["multirun/stream-er-1", "multirun/stream-ewc-0", "multirun/stream-ewc-1"]
    assert [line.split()[1] for line in text.splitlines() if "multirun/" in line] == ["80.0", "50.0", "40.0"]
    assert "3 runs" in text
    runs(["multirun", "--where", "seed == 1", "--csv", "out.csv"])
    assert pd.read_csv(tmp_path / "out.csv").ACC.tolist() == [0.8, 0.4, 0.2]


def test_runs_shows_bounds_and_says_what_the_streams_are(sweep, capsys):
    folder = write_run(sweep / "x", "er", 7, min_ACC=0.817, min_ACC_resolved=False)
    summary = json.loads((folder / "summary.json").read_text()) | {
        "scenario_note": "not the frozen stream s/v1: increment=5"
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    runs(["multirun", "--columns", "strategy,seed,min_ACC", "--where", "strategy == 'er'"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[2:] for line in lines if line[:1] == ["er"]] == [["≤", "81.7"], ["50.0"], ["50.0"]]
    assert " ".join(lines[-1]) == "stream (1 run): not the frozen stream s/v1: increment=5"


def test_runs_shows_those_that_failed(sweep, capsys):
    write_run(sweep / "x", "gem", 5, status="failed")
    runs(["multirun", "--where", "status != 'finished'", "--columns", "strategy,seed,status,ACC,reason"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "gem" in line)
    assert line.split()[:4] == ["gem", "5", "failed", "–"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multirun", "--sort", "AC"], "unknown column 'AC': did you mean 'ACC'"),
        (["multirun", "--columns", "seed,metod"], "unknown column 'metod': did you mean 'method'"),
        (["multirun", "--where", "accc > 1"], "unknown column in --where 'accc'"),
        (["multirun", "--where", "ACC >"], "cannot be applied"),
        (["multirun", "--where", "ACC + 1"], "cannot be applied|not a condition"),
        (["multirun", "--where", "strategy > 1"], "cannot be applied"),
    ],
)
def test_wrong_questions_are_answered_in_one_sentence(sweep, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        runs(arguments)
    assert "\n" not in str(error.value)


def test_runs_without_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="neither of the folders outputs and multirun"):
        runs([])


def test_reports_import_no_torch():
    modules = "clbench.reports.command, clbench.reports.page, clbench.reports.print_figures"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_five_hundred_runs_are_reported_in_twenty_seconds(sweep, tmp_path):
    template = {strategy: sweep / f"stream-{strategy}-0" for strategy in ("er", "ewc", "lwf")}
    iterations = pd.DataFrame(
        [(t, 200 * t + i, e, 1000, 900, 0.1) for t in range(5) for i in range(1, 201) for e in range(t + 1)],
        columns=["task_learning", "iteration", "task_eval", "n", "correct", "loss"],
    )
    for strategy, folder in template.items():
        iterations.to_parquet(folder / "curve.parquet")
        for seed in range(2, 168):
            copy = shutil.copytree(folder, sweep / f"{strategy}-{seed}")
            (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}"))
            summary = json.loads((copy / "summary.json").read_text()) | {"seed": seed}
            (copy / "summary.json").write_text(json.dumps(summary))
    started = time.perf_counter()
    write_report(["multirun"], tmp_path / "out")
    seconds = time.perf_counter() - started
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 504
    assert seconds < 20


def test_runs_fit_eighty_columns(sweep, capsys, monkeypatch):
    """What is the same for all is said once, numbers are whole, and folders end with what tells them apart."""
    monkeypatch.setenv("COLUMNS", "80")
    for number, lr in enumerate((0.01, 0.1)):
        folder = sweep / "a_long_name_of_a_folder_in_which_the_runs_of_a_sweep_lie" / f"a_run_with_a_long_name_{number}"
        write_run(folder, "gem", number)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(
            yaml.safe_dump(config | {"trainer": config.get("trainer", {}) | {"lr": lr}})
        )
    runs(["multirun/a_long_name_of_a_folder_in_which_the_runs_of_a_sweep_lie"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("all: strategy gem, scenario ")
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "2 runs"
    assert [line.split()[0][-6:] for line in lines[2:-1]] in (["name_1", "name_0"], ["name_0", "name_1"])
    assert {"lr", "seed", "ACC"} <= set(lines[1].split())
    assert {line.split()[1] for line in lines[2:-1]} == {"0.01", "0.1"}


def test_runs_are_limited_to_the_latest(sweep, capsys):
    for number, folder in enumerate(sorted(sweep.iterdir())):
        os.utime(folder / "summary.json", (number, number))
    latest = sorted(folder.name for folder in sweep.iterdir())[-2:]
    runs(["multirun", "-n", "2"])
    text = capsys.readouterr().out
    assert [name.rpartition("/")[2] for name in listed(text)] == latest[::-1]
    assert "2 of 6 runs, --all lists all" in text
    runs(["multirun", "-n", "2", "--all"])
    assert "6 runs" in capsys.readouterr().out
