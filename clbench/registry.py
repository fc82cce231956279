"""Name → class for everything a user can name on the command line.

A class registers itself with a decorator in the file that defines it; the files of the package are found by walking
its folders, so that a new method is one new file. Code outside the package registers through an entry point of the
group ``clbench`` (any module whose import runs the decorators). YAML files of such a package (scenarios, experiments, …) lie in
a folder ``conf`` within it, arranged as in clbench's own.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from clbench.errors import ConfigError, choose_from

T = TypeVar("T")

ENTRY_POINTS = "clbench"
"""The group of entry points under which packages announce their modules."""


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

    def leave_out(self, names: set[str]) -> None:
        """Forget what a plug-in has registered before it broke; clbench's own, which it may have imported, stays."""
        for name in names:
            if self._entries[name].__module__.partition(".")[0] != "clbench":
                del self._entries[name]

    def __getitem__(self, name: str) -> Any:
        """The entry called ``name``; raises ConfigError with the nearest match and all choices."""
        _import_all(self.package)
        if name not in self._entries:
            raise ConfigError(choose_from(self.kind, name, self._entries) + broken_plug_ins())
        return self._entries[name]


@cache
def _import_all(package: str) -> None:
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{info.name}")
    load_entry_points()


_broken: dict[str, str] = {}
"""Entry point → why its module cannot be imported."""


@cache
def load_entry_points() -> None:
    """Import the modules that installed packages announce under the entry-point group ``clbench``.

    One that cannot be imported is named on stderr, and the rest goes on without it.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        known = [set(registry._entries) for registry in REGISTRIES]
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever code of the user's raises while it is imported
            for registry, names in zip(REGISTRIES, known, strict=True):
                registry.leave_out(set(registry._entries) - names)
            first = (str(error).splitlines() or [""])[0]
            _broken[entry.name] = f"{type(error).__name__}: {first}"
            print(
                f"clbench: the plug-in {entry.name} ({entry.value}) cannot be loaded and is left out: {_broken[entry.name]}",
                file=sys.stderr,
            )


def broken_plug_ins() -> str:
    """What to add to the sentence about a name that does not exist, where a plug-in that may have it cannot be loaded."""
    return "".join(f" (the plug-in {name} cannot be loaded: {reason})" for name, reason in _broken.items())


@cache
def plug_in_folders() -> list[Path]:
    """The ``conf`` folders of the packages that the entry points name: YAML files of theirs, as in clbench's own ``conf/``."""
    folders = []
    for entry in entry_points(group=ENTRY_POINTS):
        package = find_spec(entry.module.partition(".")[0])
        for location in (package.submodule_search_locations if package else None) or []:
            folder = Path(location) / "conf"
            if folder.is_dir() and folder not in folders:
                folders.append(folder)
    return folders


SOURCES = Registry("data source", "clbench.data")
SCENARIOS = Registry("scenario kind", "clbench.scenarios")
MODELS = Registry("model", "clbench.models")
STRATEGIES = Registry("strategy", "clbench.strategies")
REGISTRIES = SOURCES, SCENARIOS, MODELS, STRATEGIES
