"""Name → class for everything a user can name on the command line.

A class registers itself with a decorator in the file that defines it; the files of the package are found by walking
its folders, so that a new method is one new file. Code outside the package registers through an entry point of the
group ``clbench`` (any module whose import runs the decorators).
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from clbench.errors import ConfigError, choose_from

T = TypeVar("T")


class Registry:
    """The names of one kind of thing (strategies, sources, ...), in one visible mapping."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make ``name`` mean the decorated class or function. A name is taken only once."""

        def decorate(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and known.__qualname__ != entry.__qualname__:  # type: ignore[attr-defined]
                raise ConfigError(f"the {self.kind} name {name!r} is already taken by {known.__module__}")
            self._entries[name] = entry
            return entry

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        _import_all(self.package)
        return sorted(self._entries)

    def __getitem__(self, name: str) -> Any:
        """The entry called ``name``; raises ConfigError with the nearest match and all choices."""
        _import_all(self.package)
        if name not in self._entries:
            raise ConfigError(choose_from(self.kind, name, self._entries))
        return self._entries[name]


@cache
def _import_all(package: str) -> None:
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{info.name}")
    load_entry_points()


@cache
def load_entry_points() -> None:
    """Import the modules that installed packages announce under the entry-point group ``clbench``."""
    for entry in entry_points(group="clbench"):
        entry.load()


SOURCES = Registry("data source", "clbench.data")
SCENARIOS = Registry("scenario kind", "clbench.scenarios")
MODELS = Registry("model", "clbench.models")
STRATEGIES = Registry("strategy", "clbench.strategies")
