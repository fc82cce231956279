"""Which code a method of another package has: what a record says of it."""

import hashlib
import inspect
from importlib.metadata import packages_distributions, version
from pathlib import Path


def is_plug_in(cls: type) -> bool:
    """Whether a class is defined outside clbench."""
    return cls.__module__.partition(".")[0] != "clbench"


def plug_in_record(cls: type) -> dict[str, str | None]:
    """The distribution of the class, its version, and the SHA-256 of the file that defines it; None where that is not known.

    The version of a package that is installed for editing may be that of the day it was installed; the file is that of today.
    """
    names = packages_distributions().get(cls.__module__.partition(".")[0], [])
    file = inspect.getsourcefile(cls)
    return {
        "distribution": names[0] if names else None,
        "version": version(names[0]) if names else None,
        "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None,
    }
