"""Files with published figures, ``conf/table/<name>.yaml``: where each was read, and the overrides that make it here.

A file holds what is the same for all cells, then a line or two for each cell::

    paper: Hsu et al. 2018 (arXiv:1810.12488), Table 2
    figures: GT-RIPL/Continual-Learning-Benchmark@d78b997 fig/results_split_mnist.png    where the figures were read
    code: the same, scripts/split_MNIST_incremental_*.sh                                 where the settings were read
    evidence: primary          primary: the authors' own file; digitised: off a figure; secondary: as others quote it
    metric: ACC                of clbench, in percent
    seeds: 10
    spread_kind: std           std (of n − 1), population_std (of n), sem, reading (of a digitised figure) or none
    common: [experiment=…]     overrides of all cells, then those of a setting, then the cell's own; the later hold
    settings: {task: [scenario=split_mnist_task]}
    cells:
      task_l2: {method: L2, setting: task, mean: 98.18, spread: 0.96, tolerance: 1.29, overrides: [strategy=l2, …]}

``evidence``, ``metric``, ``seeds`` and ``spread_kind`` may be set anew in a cell. ``weak`` marks a figure that any method has,
``missing`` names what clbench lacks for a cell, which is not run then, ``runs_of`` the cell whose runs have this figure too,
``note`` says what is known to differ from the source, and ``why`` what was found where the figures differ.
"""

from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clbench.conf_files import config_file, require_choice, yaml_mapping
from clbench.errors import ConfigError, choose_from

GROUP = "table"
"""Folder within ``conf/``."""

EVIDENCE = ("primary", "digitised", "secondary")
METRICS = (
    "ACC",
    "ACC_pooled",
    "average_incremental_macro",
    "average_incremental_pooled",
    "FORG",
    "forgetting_max",
    "BWT",
    "LA",
)
"""Metrics of the full test sets at task ends, which is what tables print. All are fractions in ``summary.json``."""

SPREAD_KINDS = ("std", "population_std", "sem", "reading", "none")
OF_ALL_CELLS = ("evidence", "metric", "seeds", "spread_kind")
"""What a table says of its cells where they do not say it themselves."""


@dataclass(frozen=True)
class PublishedCell:
    """One published figure."""

    name: str
    method: str
    """As the paper calls it."""

    mean: float
    """In percent, as printed."""

    tolerance: float
    """Percentage points: a difference up to this counts as the same."""

    metric: str
    """Name in ``summary.json``."""

    setting: str = ""
    spread: float | None = None
    spread_kind: str = "none"
    seeds: int | None = None
    """Runs that the mean is over; None where the source does not say."""

    evidence: str = "primary"
    overrides: tuple[str, ...] = ()
    """All of them: the table's, the setting's, the cell's."""

    runs_of: str = ""
    """The cell whose runs are read."""

    weak: bool = False
    missing: str = ""
    note: str = ""
    why: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A file with published figures."""

    name: str
    title: str
    paper: str
    figures: str
    code: str
    note: str
    cells: dict[str, PublishedCell]

    def chosen(self, patterns: str | None) -> list[PublishedCell]:
        """The cells that names or patterns such as ``task_*`` stand for, separated by commas; None: all.

        Raises:
            ConfigError: one of them stands for no cell.
        """
        if patterns is None:
            return list(self.cells.values())
        found: dict[str, PublishedCell] = {}
        for pattern in patterns.split(","):
            matching = {name: cell for name, cell in self.cells.items() if fnmatchcase(name, pattern.strip())}
            if not matching:
                raise ConfigError(choose_from(f"cell of {self.name}", pattern.strip(), self.cells))
            found |= matching
        return [cell for name, cell in self.cells.items() if name in found]


@dataclass
class _CellFields:
    """What a cell's entry may hold."""

    method: str
    mean: float
    tolerance: float
    setting: str = ""
    spread: float | None = None
    overrides: list[str] = field(default_factory=list)
    runs_of: str = ""
    weak: bool = False
    missing: str = ""
    note: str = ""
    why: str = ""
    evidence: str | None = None
    metric: str | None = None
    seeds: int | None = None
    spread_kind: str | None = None


@dataclass
class _TableFields:
    """What a file may hold."""

    paper: str
    figures: str
    code: str
    cells: dict[str, _CellFields]
    evidence: str = "primary"
    metric: str = "ACC"
    seeds: int | None = None
    spread_kind: str = "none"
    common: list[str] = field(default_factory=list)
    settings: dict[str, list[str]] = field(default_factory=dict)
    note: str = ""


def read_table(name: str) -> PublishedTable:
    """The table of ``conf/table/<name>.yaml``, checked.

    Raises:
        ConfigError: there is no such file, or something in it is not of the form that the module's docstring shows.
    """
    require_choice(GROUP, name)
    file = config_file(GROUP, name)
    assert file is not None
    try:
        merged = OmegaConf.merge(OmegaConf.structured(_TableFields), yaml_mapping(file))
        content: _TableFields = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{file}: {where}{str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    cells: dict[str, PublishedCell] = {}
    for key, entry in content.cells.items():
        try:
            cells[key] = _cell(key, entry, content)
        except ConfigError as error:
            raise ConfigError(f"{file}: cells.{key}: {error}") from error
    title = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip(".")
    return PublishedTable(name, title, content.paper, content.figures, content.code, content.note, cells)


def _cell(name: str, entry: _CellFields, table: _TableFields) -> PublishedCell:
    if entry.setting and entry.setting not in table.settings:
        raise ConfigError(choose_from("setting", entry.setting, table.settings))
    if entry.runs_of and entry.runs_of not in table.cells:
        raise ConfigError(choose_from("cell in runs_of", entry.runs_of, table.cells))
    source = table.cells[entry.runs_of] if entry.runs_of else entry
    if entry.runs_of and (entry.overrides or source.runs_of or source.setting != entry.setting):
        raise ConfigError(f"runs_of={entry.runs_of}: a cell that has its runs needs its setting, and no overrides")
    values: dict[str, Any] = asdict(entry)
    values |= {key: getattr(table, key) for key in OF_ALL_CELLS if values[key] is None}
    for key, valid in (("evidence", EVIDENCE), ("spread_kind", SPREAD_KINDS), ("metric", METRICS)):
        if values[key] not in valid:
            raise ConfigError(choose_from(key, values[key], valid))
    if values["tolerance"] <= 0:
        raise ConfigError(f"tolerance={values['tolerance']} is out of range: it has to be above 0")
    if values["spread"] is None:
        values["spread_kind"] = "none"
    values["overrides"] = merged(table.common, table.settings.get(entry.setting, []), source.overrides)
    values["runs_of"] = entry.runs_of or name
    values |= {"missing": entry.missing or source.missing}
    known = {f.name for f in fields(PublishedCell)}
    return PublishedCell(name=name, **{key: value for key, value in values.items() if key in known})


def merged(*lists: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of which the later hold: every option once."""
    last = {text.partition("=")[0].lstrip("+"): text for texts in lists for text in texts}
    return tuple(last.values())
