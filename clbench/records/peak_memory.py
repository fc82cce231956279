"""The peak memory of one run, where the system can tell it from that of earlier runs of the same process."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to :data:`CLEAR_REFS`, it sets the peak of the process's resident memory to what is resident now (Linux, proc(5))."""

STATM = Path("/proc/self/statm")
"""Its second number is the resident memory in pages (Linux, proc(5))."""

SLACK = 1.02
"""A peak this close to what is resident now counts as that of now: pages come and go while it is read."""


class PeakMemory:
    """Measures from now on: on a GPU what torch allocates there, else the resident memory of the process.

    Args:
        device: the training device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):  # no such file, or not allowed to write it
            CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
        self._before = _peak_of_process()
        self._was_reset = STATM.exists() and self._before <= SLACK * _resident_now()

    def read(self) -> int | None:
        """Bytes at the peak since the start, or None where an earlier peak of the process was higher and hides it."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        peak = _peak_of_process()
        return peak if self._was_reset or peak > self._before else None


def _resident_now() -> int:
    return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _peak_of_process() -> int:
    """Bytes; Linux counts in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
