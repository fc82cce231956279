"""A method outside the package: one module and an entry point, and it is used, listed and resumed like any other."""

import json
import os
import subprocess
import sys

MODULE = '''
"""Noise: adds random noise to nothing; a method for this test.

    L = CE(new) + lam * mean(theta ** 2)
"""
from dataclasses import dataclass

from clbench.config import StrategyConfig, option
from clbench.registry import STRATEGIES
from clbench.strategies.base import Needs, Strategy


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

DESCRIBE_AND_MISUSE = """
import sys
from clbench.__main__ import main
sys.argv = ["clbench", "describe", "mine"]
main()
sys.argv = ["clbench", "strategy=mine", "strategy.lam=-1"]
main()
"""


def test_entry_point(tmp_path):
    (tmp_path / "my_package.py").write_text(MODULE)
    information = tmp_path / "my_package-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[clbench]\nmine = my_package\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "160"}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    done = python("-m", "clbench", "strategy=mine", "strategy.lam=2", "debug=fast", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["strategy"], summary["status"]) == ("mine", "finished")
    both = python("-c", DESCRIBE_AND_MISUSE)  # in one process: starting one takes seconds
    assert "mean(theta ** 2)" in both.stdout
    assert "strategy.lam=-1.0 is out of range" in both.stderr
