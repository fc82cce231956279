"""The boundary to machine and libraries: what they raise becomes a sentence for the user, with the file's or option's name.

An exception that is not among these is a fault of clbench's or of the user's code, and keeps its traceback.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clbench.errors import ClbenchError, ConfigError, MachineError

ADVICE = {
    errno.ENOSPC: "free some space there, or choose a hydra.run.dir elsewhere",
    errno.EDQUOT: "free some of your quota there, or choose a hydra.run.dir elsewhere",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use another file system",
    errno.EACCES: "give yourself the right to it, or choose a hydra.run.dir and a data.root elsewhere",
    errno.EPERM: "give yourself the right to it, or choose a hydra.run.dir and a data.root elsewhere",
    errno.EROFS: "choose a hydra.run.dir where files can be written",
    errno.ENAMETOOLONG: "choose a shorter hydra.run.dir, or hydra.sweep.dir and hydra.sweep.subdir",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EEXIST: "a file is in the way: choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: try again later",
}
"""What to do about an error of the system's, by its number."""

OUT_OF_MEMORY = "a smaller trainer.batch_size, evaluator.batch_size or network, or data.placement=mmap, needs less"


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Let an OSError within this context name ``file``, where the system does not say which one it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(file)
        raise


@contextmanager
def in_sentences() -> Iterator[None]:
    """Turn what machine and libraries raise within this context into errors of one sentence.

    Raises:
        ClbenchError: from the exception that it explains.
    """
    try:
        yield
    except ClbenchError:
        raise
    except Exception as error:  # passed on as it is where it is nothing that the user could do about
        explained = explanation(error)
        if explained is None:
            raise
        raise explained from error


def explanation(error: BaseException) -> ClbenchError | None:
    """The error of one sentence that ``error`` amounts to, or None where it is no matter of machine, files or configuration."""
    if isinstance(error, ClbenchError):
        return error
    if isinstance(error, OSError):
        return MachineError(_of_system(error))
    if is_out_of_memory(error):
        return MachineError(f"the memory does not suffice ({_first_line(error)}): {OUT_OF_MEMORY}")
    if _is_a(error, "hydra.errors", "HydraException") or _is_a(error, "omegaconf.errors", "OmegaConfBaseException"):
        return ConfigError(_first_line(error))
    if _is_a(error, "wandb.errors", "Error"):
        return MachineError(f"wandb: {_first_line(error)} (wandb.mode=offline needs no network)")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on the device; for lack of the former torch has no class of its own."""
    if isinstance(error, MemoryError) or _is_a(error, "torch", "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_a(error: BaseException, module: str, name: str) -> bool:
    """Whether an exception is of a library's class; a library that is not imported, and may be slow to, has raised nothing."""
    library = sys.modules.get(module)
    return library is not None and isinstance(error, getattr(library, name))


def _of_system(error: OSError) -> str:
    files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    said = error.strerror or _first_line(error)
    advice = ADVICE.get(error.errno or 0)
    return (f"{files}: " if files else "") + said + (f"; {advice}" if advice else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
