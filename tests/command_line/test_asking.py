"""What the command line says of itself, completion, and files and methods of the user's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_commands import SMALL

from clbench import registry
from clbench.command_line.help import COMMANDS
from clbench.records.run_folder import COMMAND_VARIABLE, known_command_line


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["strategy=er", "--help"]])
def test_help_names_every_command_and_the_statuses(words, clb):
    status, out, _ = clb(*words)
    assert status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in out
    assert "--hydra-help" in out
    assert "3 the run has diverged" in out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("report", "reproduce", "runs", "help")])
def test_help_of_a_command(command, clb):
    for words in ([command, "--help"], [command, "-h"], ["help", command]):
        status, out, _ = clb(*words)
        assert status == 0
        assert out.startswith(f"usage: python -m clbench {command} ")


@pytest.mark.parametrize("command", ["report", "reproduce", "runs"])
def test_help_of_a_command_with_options_of_its_own(command, clb):
    with pytest.raises(SystemExit) as ended:
        clb("help", command)
    assert ended.value.code == 0


def test_a_command_is_forgotten_when_it_is_over(clb, monkeypatch):
    """A program that calls clbench twice has each command in its own records, and neither in those of what it starts later."""
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    with known_command_line():
        assert os.environ[COMMAND_VARIABLE].startswith("clbench")
    before = list(sys.argv)
    clb("--cfg", "job", "seed=3")
    assert COMMAND_VARIABLE not in os.environ
    assert sys.argv == before


def test_version_is_clbenchs(clb):
    status, out, _ = clb("--version")
    assert (status, out.split()[0]) == (0, "clbench")
    assert "torch" in out


def test_hydras_own_help_is_there(clb):
    with pytest.raises(SystemExit):
        clb("--hydra-help")


def test_list_of_one_kind(clb):
    status, out, _ = clb("list", "model")
    assert status == 0
    assert "slim_resnet18" in out
    assert "split_digits" not in out


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("ACC", "(1/k) Σ_i R[k, i]"),
        ("acc", "(1/k) Σ_i R[k, i]"),
        ("BWT", "BWT = −FORG"),
        ("WF10", "max_{m<n in a window of w evaluations}"),
        ("WP100", "with the sign reversed"),
        ("min_ACC", "strictly after the task was learned"),
        ("gap depth", "min A(E_i) over task i + 1"),
    ],
)
def test_describe_a_metric(name, definition, clb):
    status, out, _ = clb("describe", *name.split())
    assert status == 0
    assert definition.replace(" ", "") in out.replace("\n", "").replace(" ", "")


def test_completion(tmp_path):
    """In a process of its own, as a shell asks for it."""
    query = {"COMP_LINE": "clbench strategy=ew", "COMP_POINT": "19"}
    code = """
import sys
from clbench.__main__ import main
for words in (["-sc", "install=bash"], ["-sc", "query=bash"]):
    sys.argv = ["clbench", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **query}, capture_output=True, text=True, timeout=200
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for expected in ("complete -o nospace", "strategy=ewc"):
        assert expected in done.stdout
    assert list(tmp_path.iterdir()) == []


SCENARIO = """\
# @package _global_
# Three tasks of mine.
defaults:
  - schema/class_incremental@scenario
  - _self_
scenario: {name: mine, kind: class_incremental, source: digits, classes: [0, 1, 2, 3, 4, 5], increment: 2}
"""


@pytest.mark.parametrize(
    "way", [["--config-dir", "my"], ["--config-dir=my"], ["-cd", "my"], ["hydra.searchpath=[file://my]"]]
)
def test_scenario_files_of_the_users(way, clb, tmp_path):
    (tmp_path / "my" / "scenario").mkdir(parents=True)
    (tmp_path / "my" / "scenario" / "mine.yaml").write_text(SCENARIO)
    status, _, errors = clb(*way, "scenario=mine", *SMALL, "hydra.run.dir=run")
    assert status == 0, errors
    assert "mine" in (tmp_path / "run" / "scenario.json").read_text()
    status, _, errors = clb(*way, "scenario=min", *SMALL)
    assert "did you mean 'mine'?" in errors


def test_files_of_the_users_in_sweeps_lists_and_descriptions(clb, tmp_path):
    (tmp_path / "my" / "scenario").mkdir(parents=True)
    (tmp_path / "my" / "scenario" / "mine.yaml").write_text(SCENARIO)
    assert clb("-m", "--config-dir", "my", "scenario=mine,split_digits", *SMALL, "hydra.sweep.dir=s")[0] == 0
    assert (tmp_path / "s" / "1" / "summary.json").exists()
    assert "Three tasks of mine." in clb("list", "scenario", "--config-dir", "my")[1]
    assert "Three tasks of mine." in clb("describe", "mine", "--config-dir", "my")[1]


def installed(folder: Path, name: str, module: str) -> None:
    """Let a distribution announce ``module`` as a plug-in, as pip would install it."""
    information = folder / f"{name}-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text(f"[clbench]\n{name} = {module}\n")


@pytest.fixture
def fresh_plug_ins(tmp_path, monkeypatch):
    """Entry points are looked for anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_broken", {})
    yield
    registry.plug_in_folders.cache_clear()
    registry.load_entry_points.cache_clear()


def test_scenario_files_that_come_with_an_entry_point(clb, tmp_path, fresh_plug_ins):
    conf = tmp_path / "my_streams" / "conf" / "scenario"
    conf.mkdir(parents=True)
    (tmp_path / "my_streams" / "__init__.py").write_text("")
    (conf / "mine.yaml").write_text(SCENARIO)
    installed(tmp_path, "my_streams", "my_streams")
    registry.plug_in_folders.cache_clear()
    status, _, errors = clb("scenario=mine", *SMALL, "hydra.run.dir=run")
    assert status == 0, errors


def test_a_broken_plug_in_is_named_and_the_rest_works(clb, tmp_path, fresh_plug_ins, monkeypatch):
    (tmp_path / "my_broken.py").write_text(
        "from clbench.registry import STRATEGIES\nfrom clbench.strategies import finetune\n"
        "STRATEGIES.register('half')(type('Half', (), {}))\nimport no_such_module\n"
    )
    installed(tmp_path, "my_broken", "my_broken")
    registry.STRATEGIES.names()
    # The plug-in is the first to import finetune.
    monkeypatch.delitem(registry.STRATEGIES._entries, "finetune")
    monkeypatch.delitem(sys.modules, "clbench.strategies.finetune")
    monkeypatch.delattr("clbench.strategies.finetune")
    registry.load_entry_points.cache_clear()
    registry.load_entry_points()
    status, out, _ = clb("list", "strategy")
    assert status == 0
    assert "ewc" in out
    assert "half" not in out  # what it has registered before it broke
    assert "finetune" in registry.STRATEGIES.names()  # which it has imported, and may have been the first to
    status, _, errors = clb("strategy=my_method", *SMALL[1:])
    assert status == 2
    assert "the plug-in my_broken cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in errors


def test_a_strategy_file_without_its_schema_is_refused_in_a_sentence(clb, tmp_path, fresh_plug_ins):
    conf = tmp_path / "my_files" / "conf" / "strategy"
    conf.mkdir(parents=True)
    (tmp_path / "my_files" / "__init__.py").write_text("")
    (conf / "my_l2.yaml").write_text("# An L2 penalty of mine.\nname: l2\nlam: 1.0\n")
    installed(tmp_path, "my_files", "my_files")
    registry.plug_in_folders.cache_clear()
    status, _, errors = clb("strategy=my_l2", *SMALL[1:])
    assert status == 2
    assert "its defaults list has to begin with 'schema/<registered name>@_here_'" in errors


def test_what_is_slow_to_import_is_imported_where_it_is_needed(tmp_path):
    """torch._dynamo, scipy.stats and matplotlib together take longer than torch; no run needs them in its first task."""
    slow = [
        "torch._dynamo",
        "torchvision",
        "sklearn",
        "scipy",
        "matplotlib",
        "plotly",
        "timm",
        "wandb",
        "optuna",
        "sympy",
    ]
    code = f"""
import sys
from clbench.__main__ import status_of
from clbench.training.trainer import Trainer

def end_task(trainer):
    assert trainer.iteration == 2
    print([name for name in {slow} if name in sys.modules])
    sys.exit()

status_of(["list"])
status_of(["describe", "ewc"])
Trainer.end_task = end_task
status_of({SMALL[1:]})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
