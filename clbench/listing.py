"""``python -m clbench list`` and ``describe``: what there is, read from the registry, the docstrings and the YAML files."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clbench import config as configuration
from clbench.config import DataConfig, EvaluatorConfig
from clbench.errors import ConfigError, choose_from
from clbench.evaluation import adaptive, evaluator
from clbench.protocol import streams as protocol_streams
from clbench.protocol.options import ProtocolConfig
from clbench.registry import MODELS, SCENARIOS, SOURCES, STRATEGIES
from clbench.scenarios.scenario import EXAMPLES

GROUPS = ("strategy", "scenario", "model", "evaluator", "experiment", "protocol", "search_space")
SETTING_LETTERS = {"class": "C", "task": "T", "domain": "D"}


def list_everything() -> None:
    """Print every strategy, scenario, model, evaluator, experiment and data source with a line each."""
    console = Console()
    for group in GROUPS:
        table = Table(
            title=f"{group}=", title_justify="left", show_header=group == "strategy", box=None, padding=(0, 2)
        )
        table.add_column("name", style="bold", no_wrap=True)
        if group == "strategy":
            table.add_column("settings", no_wrap=True)
            table.add_column("memory", no_wrap=True)
        table.add_column("what it is")
        for name in configuration.group_choices(group):
            needs = _needs_columns(name) if group == "strategy" else ()
            table.add_row(name, *needs, escape(one_line(group, name)))
        console.print(table, "")
    table = Table(title="scenario.source=", title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is")
    for name in SOURCES.names():
        table.add_row(name, escape(one_line("source", name)))
    console.print(table, "")
    console.print("settings: C class-, T task-, D domain-incremental. More about one: python -m clbench describe NAME")


def one_line(group: str, name: str) -> str:
    """The line that ``list`` shows: the first of a strategy's or data source's docstring, else of the YAML file's comment.

    A model of the user's that comes without a YAML file has its docstring as well.
    """
    file = configuration.conf_dir() / group / f"{name}.yaml"
    if group == "strategy":
        text = _module_docstring(STRATEGIES[name])
    elif group == "source":
        text = inspect.getdoc(SOURCES[name]) or ""
    elif file.exists():
        text = _comment(file)
    else:
        text = _module_docstring(MODELS[name])
    return text.partition("\n")[0].replace("``", "")


def describe(name: str) -> None:
    """Print the equation, options, defaults and sources of one strategy, scenario, model, experiment or data source.

    Raises:
        ConfigError: nothing has this name.
    """
    console = Console()
    found = [group for group in GROUPS if name in configuration.group_choices(group)]
    if not found and name not in SOURCES.names():
        known = {n for group in GROUPS for n in configuration.group_choices(group)} | set(SOURCES.names())
        raise ConfigError(choose_from("name", name, known))
    for group in found:
        console.rule(f"{group}={name}", align="left")
        file = configuration.conf_dir() / group / f"{name}.yaml"
        if group == "strategy":
            console.print(escape(_module_docstring(STRATEGIES[name])), "", sep="\n", highlight=False)
            _print_needs(console, name)
            _print_options(console, STRATEGIES[name].config, file, group)
            training = configuration.conf_dir() / "training" / f"{name}.yaml"
            if training.exists():
                console.print(
                    "[bold]changes the schedule[/bold]", escape(training.read_text()), sep="\n", highlight=False
                )
        elif group == "model":
            kind = OmegaConf.load(file).kind if file.exists() else name
            console.print(
                escape(_comment(file)), "", escape(_module_docstring(MODELS[kind])), "", sep="\n", highlight=False
            )
            _print_options(console, MODELS[kind].config, file, group)
        elif group == "scenario":
            kind = OmegaConf.load(file).scenario.kind
            console.print(
                escape(_comment(file)), "", escape(_module_docstring(SCENARIOS[kind])), "", sep="\n", highlight=False
            )
            _print_options(console, SCENARIOS[kind].config, file, group)
            console.print("[bold]the file[/bold]", escape(file.read_text()), sep="\n", highlight=False)
        elif group == "evaluator":
            documented = adaptive if name == "adaptive" else evaluator
            console.print(escape(inspect.getdoc(documented) or ""), "", sep="\n", highlight=False)
            _print_options(console, EvaluatorConfig, file, group)
        elif group == "protocol":
            console.print(
                escape(_comment(file)),
                "",
                escape(inspect.getdoc(protocol_streams) or ""),
                "",
                sep="\n",
                highlight=False,
            )
            _print_options(console, ProtocolConfig, file, group)
        else:
            console.print(escape(file.read_text()), highlight=False)
        console.print(f"[bold]run it[/bold]  {_command(group, name)}\n", highlight=False)
    if name in SOURCES.names():
        console.rule(f"scenario.source={name}", align="left")
        console.print(escape(inspect.getdoc(SOURCES[name]) or ""), "", sep="\n", highlight=False)
        _print_options(console, DataConfig, Path(), "data")
        streams = [scenario for scenario in configuration.group_choices("scenario") if _source_of(scenario) == name]
        own = " scenario.name=<a name for it> data.folder=<its folder>" if name == "folder" else ""
        commands = [f"python -m clbench scenario={scenario}" for scenario in streams] or [
            f"python -m clbench scenario.source={name}{own} scenario.frozen=null scenario.increment=<classes per task>"
        ]
        console.print("[bold]run it[/bold]  " + "\n        ".join(commands), highlight=False)


def strategies_markdown() -> str:
    """The README's table of strategies."""
    rows = ["| strategy | what it is | settings | memory |", "|---|---|---|---|"]
    for name in STRATEGIES.names():
        settings, memory = _needs_columns(name)
        rows.append(f"| `{name}` | {one_line('strategy', name)} | {settings} | {memory} |")
    return "\n".join(rows)


def _needs_columns(name: str) -> tuple[str, str]:
    needs = STRATEGIES[name].needs
    settings = " ".join(letter for setting, letter in SETTING_LETTERS.items() if setting in needs.settings)
    return settings, "all data" if needs.all_data else "samples" if needs.memory else "–"


def _print_needs(console: Console, name: str) -> None:
    needs = STRATEGIES[name].needs
    settings = ", ".join(f"{setting}-incremental" for setting in needs.settings)
    facts = [f"settings: {settings}"]
    facts += ["stores training samples"] if needs.memory else []
    facts += ["reads earlier tasks' data in full: an upper bound"] if needs.all_data else []
    facts += ["acts at task boundaries"] if needs.boundaries else []
    facts += (
        ["acts within a vision transformer: model=small_vit, or a plain ViT of model=timm"] if needs.transformer else []
    )
    facts += (
        ["puts modules into the network: it has to be the main strategy"] if STRATEGIES[name].changes_network else []
    )
    facts += ["a step costs more the more tasks have been learned"] if needs.cost_grows else []
    facts += [f"cannot train in a fleet: {needs.alone}"] if needs.alone else ["can train in a fleet"]
    console.print("[bold]needs[/bold]  " + "; ".join(facts) + "\n", highlight=False)


def _print_options(console: Console, schema: type, file: Path, group: str) -> None:
    """A table of the fields of ``schema`` with the defaults of the YAML file, and the comments there (their sources)."""
    defaults = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    if group in ("scenario", "protocol"):
        defaults = defaults[group]
    comments = _line_comments(file) if file.is_file() else {}
    table = Table(title="options", title_justify="left")
    for column in ("option", "default", "what it does"):
        table.add_column(column, no_wrap=column == "option")
    for field in dataclasses.fields(schema):
        nested = dataclasses.is_dataclass(field.type)
        values = defaults.get(field.name, {}) if nested else defaults
        for leaf in dataclasses.fields(field.type) if nested else [field]:
            name = f"{field.name}.{leaf.name}" if nested else leaf.name
            default = _as_typed(values.get(leaf.name, _default(leaf)))
            table.add_row(f"{group}.{name}", escape(default), escape(_help(leaf, comments.get(leaf.name, ""))))
    console.print(table, highlight=False)


def _command(group: str, name: str) -> str:
    if group == "protocol":
        return f"python -m clbench -m protocol={name} strategy=er,ewc"
    if group == "search_space":
        return f"python -m clbench -m protocol=two_phase search_space={name} strategy=er,ewc"
    if group == "strategy" and "class" not in STRATEGIES[name].needs.settings:  # which the default scenario is
        return f"python -m clbench strategy={name} scenario={EXAMPLES[STRATEGIES[name].needs.settings[0]]}"
    return f"python -m clbench {group}={name}"


def _as_typed(value: Any) -> str:
    """A value as it is written on the command line: null, true, [1, 2]."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _source_of(scenario: str) -> str:
    return OmegaConf.load(configuration.conf_dir() / "scenario" / f"{scenario}.yaml").scenario.source


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)" if field.default in (MISSING, dataclasses.MISSING) else field.default


def _help(field: dataclasses.Field, comment: str) -> str:
    text = field.metadata.get("help", "")
    if field.metadata.get("choices"):
        text += f" [{' | '.join(_as_typed(choice) for choice in field.metadata['choices'])}]"
    return f"{text}. In the file: {comment}" if comment else text


def _module_docstring(entry: Any) -> str:
    """The docstring of the module that defines a class, which holds a method's equations."""
    return inspect.getdoc(inspect.getmodule(entry)) or inspect.getdoc(entry) or ""


def _comment(file: Path) -> str:
    """The comment at the head of a YAML file, without the package line."""
    if not file.exists():
        return ""
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines) or file.stem


def _line_comments(file: Path) -> dict[str, str]:
    """Key → the comment on its line."""
    found = re.findall(r"^\s*(\w+):[^#\n]*#\s*(.+)$", file.read_text(), flags=re.MULTILINE)
    return dict(found)
