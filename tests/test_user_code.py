"""A method outside the package: one module and an entry point, and it is used, listed and resumed like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import clbench

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

RUN_DESCRIBE_AND_MISUSE = """
import sys
from clbench.__main__ import main
for words in (["strategy=mine", "strategy.lam=2", "debug=fast", "hydra.run.dir=run"], ["describe", "mine"],
              ["strategy=mine", "strategy.lam=-1"]):
    sys.argv = ["clbench", *words]
    main()
"""


def test_entry_point(tmp_path):
    (tmp_path / "my_package.py").write_text(MODULE)
    information = tmp_path / "my_package-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[clbench]\nmine = my_package\n")
    places = os.pathsep.join([str(tmp_path), str(Path(clbench.__file__).parents[1])])  # whichever clbench is installed
    environment = {**os.environ, "PYTHONPATH": places, "COLUMNS": "160"}
    # In a process of its own, which finds the entry point, and in one for all: starting it takes seconds.
    command = [sys.executable, "-c", RUN_DESCRIBE_AND_MISUSE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["strategy"], summary["status"]) == ("mine", "finished")
    assert "mean(theta ** 2)" in done.stdout
    assert "strategy.lam=-1.0 is out of range" in done.stderr
