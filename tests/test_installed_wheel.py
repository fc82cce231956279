"""The wheel is complete: it runs outside the checkout, with its configuration and catalogue inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


def test_runs_from_the_wheel_outside_the_checkout(tmp_path):
    if not (CHECKOUT / "pyproject.toml").exists():
        pytest.skip("needs the checkout to build the wheel from")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = python(
        "-c", "import clbench, clbench.conf_files as c; print(clbench.__file__, c.conf_dir(), c.catalogue_dir())"
    )
    assert all(path.startswith(str(tmp_path)) for path in where.split())
    python("-m", "clbench", "debug=fast", "strategy=finetune", "hydra.run.dir=run")
    assert (tmp_path / "run" / "curve.parquet").exists()
