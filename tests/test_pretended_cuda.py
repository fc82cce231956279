"""The GPU tests on a machine without a GPU: on the device of pretended_cuda.py, in a process of their own."""

import subprocess
from pathlib import Path

import pytest
from pretended_cuda import KNOWN, command_for, why_not

TESTS = Path(__file__).parent
RULES, GPU = "tests/rules_of_a_gpu.py", "tests/test_gpu.py"

CHOSEN = [
    "test_no_host_sync_within_the_loop[ewc-fp32]",
    "test_no_host_sync_within_the_loop[gem-bf16]",
    "test_no_host_sync_within_the_loop[continual_backprop-fp16 and Adam]",
    "test_no_host_sync_within_a_fleets_loop[dst]",
    "test_no_host_sync_where_members_differ[host]",
    "test_same_curve_as_on_the_cpu[lwf]",
    "test_same_tables_as_on_the_cpu[adaptive]",
    "test_resumed_on_the_same_or_the_other_device[er-cuda-cpu]",
    "test_resumed_on_the_same_or_the_other_device[er-cpu-cuda]",
    "test_a_tasks_first_step_overflows[ewc]",
]
"""Of the GPU tests, those that cover most in the least time."""


WHOLE_RUNS = ["test_mistakes_are_found", "test_and_without_them_nothing", "test_tables_have_left_the_device"]
"""Of the rules, those that take whole runs, as the chosen GPU tests do."""


@pytest.fixture
def on_pretended_device(tmp_path):
    """A function: pytest's arguments → runs it with the device in place, and fails where it does."""
    reason = why_not()
    if reason:
        pytest.skip(f"no pretended CUDA device: {reason}")

    def run(*arguments: str) -> None:
        command, environment = command_for(arguments, tmp_path)
        done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"

    return run


@pytest.mark.timeout(1200)
def test_chosen_ones(on_pretended_device):
    """What the device refuses, and the GPU tests that cover most."""
    whole_runs = [word for name in WHOLE_RUNS for word in ("--deselect", f"{RULES}::{name}")]
    on_pretended_device(RULES, *(f"{GPU}::{name}" for name in CHOSEN), *whole_runs)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_all(on_pretended_device):
    """Every GPU test but those of compiled code, and eleven mistakes put into clbench, each of which is found."""
    on_pretended_device(RULES, GPU, "-k", "not compiled")


def test_other_versions_of_torch_are_left_alone(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.11.0+cu130")
    assert why_not() == (
        f"it hangs on private parts of torch, and is known to work with {', '.join(KNOWN)}, not with 2.11.0"
    )
