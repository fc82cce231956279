"""A method outside the package: one module and an entry point, and it is used, listed and resumed like any other."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import clbench
from clbench.testing import StrategyTests

MODULE = '''
"""Noise: adds random noise to nothing; a method for this test.

    L = CE(new) + lam * mean(theta ** 2)
"""
from dataclasses import dataclass

from clbench.config import StrategyConfig
from clbench.options import option
from clbench.registry import STRATEGIES
from clbench.learning.base import Needs, Strategy


@dataclass
class MineConfig(StrategyConfig):
    lam: float = option(0.5, help="weight", at_least=0)


@STRATEGIES.register("mine")
class Mine(Strategy):
    config = MineConfig
    needs = Needs(boundaries=False)

    def penalty(self, batch, outputs):
        return self.lam * self.flat_parameters().square().mean()
'''

EXAMPLE = Path(__file__).parent.parent / "examples" / "stable_sgd"

USE_AND_TEST = """
import sys
import pytest
from clbench.__main__ import main
for words in (["strategy=mine", "strategy.lam=2", "debug=fast", "hydra.run.dir=run"], ["describe", "mine"],
              ["list", "strategy"], ["describe", "stable_sgd"],
              ["-m", "strategy=stable_sgd,finetune", "debug=fast", "record.report=false", "hydra.sweep.dir=sweep"]):
    sys.argv = ["clbench", *words]
    main()
try:
    sys.argv = ["clbench", "strategy=mine", "strategy.lam=-1"]
    main()
except SystemExit as wrong:
    print("status of misuse", wrong.code)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_stable_sgd.py", *CHOSEN]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with two packages as pip installs them: one module without a YAML file, and the example's wheel."""
    folder = tmp_path_factory.mktemp("packages")
    site = folder / "site"
    information = site / "my_package-0.1.dist-info"
    information.mkdir(parents=True)
    (site / "my_package.py").write_text(MODULE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[clbench]\nmine = my_package\n")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=shutil.copytree(EXAMPLE, folder / "source"), check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def used(site: Path, folder: Path, chosen: list[str]) -> subprocess.CompletedProcess:
    """Use both, and test the second, in a process that finds the entry points: one for all, since starting takes seconds."""
    shutil.copy(EXAMPLE / "tests" / "test_stable_sgd.py", folder)
    places = os.pathsep.join([str(site), str(Path(clbench.__file__).parents[1])])  # whichever clbench is installed
    environment = {**os.environ, "PYTHONPATH": places, "COLUMNS": "200"}
    command = [sys.executable, "-c", USE_AND_TEST.replace("CHOSEN", repr(chosen))]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_packages_of_ones_own(site, tmp_path):
    """They are run, listed, described and swept, their options are checked, and the tests of the example pass."""
    one_setting = "not stable_sgd-domain and not stable_sgd-task and (not composes or acil or ewc)"
    done = used(site, tmp_path, ["-k", one_setting])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["strategy"], summary["status"]) == ("mine", "finished")
    assert "mean(theta ** 2)" in done.stdout
    assert "status of misuse 2" in done.stdout
    assert "strategy.lam=-1.0 is out of range" in done.stderr
    line = "Stable SGD: smaller and smaller steps, task after task (Mirzadeh et al. 2020, arXiv:2006.06958)."
    assert done.stdout.count(line) == 2  # in list and in describe
    assert "η_t = γ^(t − 1) η_1" in done.stdout
    summaries = {file.parent: json.loads(file.read_text()) for file in (tmp_path / "sweep").rglob("summary.json")}
    folders = {summary["strategy"]: folder for folder, summary in summaries.items() if summary["status"] == "finished"}
    assert folders.keys() == {"stable_sgd", "finetune"}
    assert "decay: 0.8" in (folders["stable_sgd"] / "config.yaml").read_text()  # from the YAML file in the package


@pytest.mark.slow
def test_the_example_passes_all_tests(site, tmp_path):
    """In every setting, and beside every other strategy."""
    done = used(site, tmp_path, [])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_method_that_is_not_installed_is_named():
    class TestMissing(StrategyTests):
        strategy = "no_such_method"

    with pytest.raises(
        AssertionError, match="there is no strategy 'no_such_method'; usually its package is not installed"
    ):
        TestMissing().pytest_generate_tests(None)
