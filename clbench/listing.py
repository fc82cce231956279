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

from clbench.conf_files import config_file, group_choices, yaml_mapping
from clbench.config import DataConfig, EvaluatorConfig
from clbench.errors import ConfigError, choose_from, nearest
from clbench.protocol.options import ProtocolConfig
from clbench.published.committed import of_strategy
from clbench.registry import MODELS, SCENARIOS, SOURCES, STRATEGIES, broken_plug_ins
from clbench.scenarios.scenario import EXAMPLES

GROUPS = ("strategy", "scenario", "model", "evaluator", "experiment", "protocol", "search_space", "table")
SETTING_LETTERS = {"class": "C", "task": "T", "domain": "D"}


def list_everything(kind: str | None = None) -> None:
    """Print every strategy, scenario, model, evaluator, experiment and data source with a line each.

    Args:
        kind: only these: one of :data:`GROUPS` or ``source``; None for all.

    Raises:
        ConfigError: there is no such kind.
    """
    kinds = (*GROUPS, "source")
    if kind is not None and kind.rstrip("=") not in kinds:
        raise ConfigError(choose_from("kind", kind, kinds))
    console = Console()
    for group in kinds if kind is None else [kind.rstrip("=")]:
        title = "scenario.source=" if group == "source" else f"{group}="
        table = Table(title=title, title_justify="left", show_header=group == "strategy", box=None, padding=(0, 2))
        table.add_column("name", style="bold", no_wrap=True)
        if group == "strategy":
            table.add_column("settings", no_wrap=True)
            table.add_column("memory", no_wrap=True)
        table.add_column("what it is")
        for name in SOURCES.names() if group == "source" else group_choices(group):
            needs = _needs_columns(name) if group == "strategy" else ()
            table.add_row(name, *needs, escape(one_line(group, name)))
        console.print(table, "")
    if kind in (None, "strategy", "strategy="):
        console.print("settings: C class-, T task-, D domain-incremental")
    console.print("more about one: python -m clbench describe NAME")


def one_line(group: str, name: str) -> str:
    """The line that ``list`` shows: the first of a strategy's or data source's docstring, else of the YAML file's comment.

    A model of the user's that comes without a YAML file has its docstring as well.
    """
    file = _file(group, name)
    if group == "strategy":
        text = _module_docstring(STRATEGIES[name])
    elif group == "source":
        text = inspect.getdoc(SOURCES[name]) or ""
    elif file.is_file():
        text = _comment(file)
    else:
        text = _module_docstring(MODELS[name])
    return text.partition("\n")[0].replace("``", "")


def describe(name: str) -> None:
    """Print the equation, options, defaults and sources of one strategy, scenario, model, experiment or data source, or a metric.

    Raises:
        ConfigError: nothing has this name.
    """
    console = Console()
    found = [group for group in GROUPS if name in group_choices(group)]
    if not found and name not in SOURCES.names():
        metric = definition_of(name)
        if metric is None:
            raise ConfigError(_unknown(name))
        console.rule(f"metric {name}", align="left")
        console.print(escape(metric), highlight=False)
        return
    for group in found:
        console.rule(f"{group}={name}", align="left")
        file = _file(group, name)
        if group == "strategy":
            console.print(escape(_module_docstring(STRATEGIES[name])), "", sep="\n", highlight=False)
            _print_needs(console, name)
            _print_options(console, STRATEGIES[name].config, file, group)
            _print_published(console, name)
            training = _file("training", name)
            if training.is_file():
                console.print(
                    "[bold]changes the schedule[/bold]", escape(training.read_text()), sep="\n", highlight=False
                )
        elif group == "model":
            kind = yaml_mapping(file).kind if file.is_file() else name
            console.print(
                escape(_comment(file)), "", escape(_module_docstring(MODELS[kind])), "", sep="\n", highlight=False
            )
            _print_options(console, MODELS[kind].config, file, group)
        elif group == "scenario":
            kind = _scenario(name).kind
            console.print(
                escape(_comment(file)), "", escape(_module_docstring(SCENARIOS[kind])), "", sep="\n", highlight=False
            )
            _print_options(console, SCENARIOS[kind].config, file, group)
            console.print("[bold]the file[/bold]", escape(file.read_text()), sep="\n", highlight=False)
        elif group == "evaluator":
            from clbench.evaluation import adaptive, evaluator  # with what it needs: only where it is shown

            documented = adaptive if name == "adaptive" else evaluator
            console.print(escape(inspect.getdoc(documented) or ""), "", sep="\n", highlight=False)
            _print_options(console, EvaluatorConfig, file, group)
        elif group == "protocol":
            from clbench.protocol import streams as protocol_streams

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
        streams = [scenario for scenario in group_choices("scenario") if _source_of(scenario) == name]
        own = " scenario.name=<a name for it> data.folder=<its folder>" if name == "folder" else ""
        commands = [f"python -m clbench scenario={scenario}" for scenario in streams] or [
            f"python -m clbench scenario.source={name}{own} scenario.frozen=null scenario.increment=<classes per task>"
        ]
        console.print("[bold]run it[/bold]  " + "\n        ".join(commands), highlight=False)


def definition_of(metric: str) -> str | None:
    """What a metric is, from the docstrings of :mod:`clbench.evaluation.metrics` and ``spoken``; None where it is none of theirs.

    Names may be written as in tables or in ``summary.json``, in capitals or not: min-ACC, min_acc; WF10 is WF of the window 10.
    """
    wanted = re.sub(r"^(w[fp])\d+$", r"\1", _plain(metric))
    for names, definition in _metrics():
        if wanted in names:
            return definition
    return None


def _metrics() -> list[tuple[dict[str, str], str]]:
    """Names (as compared and as written) and definition of every metric: the entries ``* name = …`` of the docstring."""
    from clbench.evaluation import metrics, spoken

    entries, heading = [], ""
    paragraphs = [
        paragraph for module in (metrics, spoken) for paragraph in (inspect.getdoc(module) or "").split("\n\n")
    ]
    for paragraph in paragraphs:
        if not paragraph.startswith("* "):
            heading = paragraph
            continue
        for entry in re.split(r"^\* ", paragraph, flags=re.MULTILINE)[1:]:
            names = re.findall(r"([A-Za-z][\w^-]*)(?= =| with the sign)", entry)
            text = entry.replace("``", "").replace("\n  ", "\n").rstrip()
            entries.append(({_plain(name.removesuffix("^w")): name for name in names}, f"{heading}\n\n{text}"))
    return entries


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _unknown(name: str) -> str:
    """The sentence for a name that nothing has, with the nearest ones."""
    known = {n for group in GROUPS for n in group_choices(group)} | set(SOURCES.names())
    known |= {metric for names, _ in _metrics() for metric in names.values()}
    near = nearest(name, sorted(known), n=3)
    hint = f": did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"unknown name {name!r}{hint} python -m clbench list shows all names" + broken_plug_ins()


def _file(group: str, name: str) -> Path:
    """The YAML file of a name; the empty path where it has none."""
    return config_file(group, name) or Path()


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
    facts += ["acts within a vision transformer: model=small_vit, or a plain ViT of model=timm"] if needs.vision else []
    facts += (
        ["acts within a transformer: of images, as model=small_vit, or of texts, as model=causal_lm"]
        if needs.transformer and not needs.vision
        else []
    )
    facts += (
        ["puts modules into the network: it has to be the main strategy"] if STRATEGIES[name].changes_network else []
    )
    facts += ["a step costs more the more tasks have been learned"] if needs.cost_grows else []
    facts += [f"cannot train in a fleet: {needs.alone}"] if needs.alone else ["can train in a fleet"]
    console.print("[bold]needs[/bold]  " + "; ".join(facts) + "\n", highlight=False)


def _print_published(console: Console, name: str) -> None:
    """What has been published of a strategy and compared with runs of clbench, where there is such a comparison."""
    figures = of_strategy(name)
    if not figures:
        return
    table = Table(title="published figures, in percent (reports/published)", title_justify="left")
    for column in ("table", "cell", "metric", "published", "clbench", "verdict"):
        table.add_column(column, no_wrap=column in ("published", "clbench"))
    for figure in figures:
        table.add_row(figure.table, figure.cell, figure.metric, figure.published, figure.clbench, figure.verdict)
    console.print(table, "", highlight=False)


def _print_options(console: Console, schema: type, file: Path, group: str) -> None:
    """A table of the fields of ``schema`` with the defaults of the YAML file, and the comments there (their sources)."""
    defaults = yaml_mapping(file) if file.is_file() else OmegaConf.create()
    if group == "scenario":
        defaults = _scenario(file.stem)
    elif group == "protocol":
        defaults = defaults[group]
    comments = _line_comments(file) if file.is_file() else {}
    table = Table(title="options", title_justify="left")
    for column in ("option", "default", "what it does"):
        table.add_column(column, no_wrap=column == "option")
    for field in dataclasses.fields(schema):
        group_type = field.type if isinstance(field.type, type) and dataclasses.is_dataclass(field.type) else None
        nested = group_type is not None
        values = defaults.get(field.name, {}) if nested else defaults
        for leaf in dataclasses.fields(group_type) if group_type is not None else [field]:
            name = f"{field.name}.{leaf.name}" if nested else leaf.name
            default = _as_typed(values.get(leaf.name, _default(leaf)))
            table.add_row(f"{group}.{name}", escape(default), escape(_help(leaf, comments.get(leaf.name, ""))))
    console.print(table, highlight=False)


def _command(group: str, name: str) -> str:
    if group == "protocol":
        return f"python -m clbench -m protocol={name} strategy=er,ewc"
    if group == "search_space":
        return f"python -m clbench -m protocol=two_phase search_space={name} strategy=er,ewc"
    if group == "table":
        return f"python -m clbench reproduce {name}"
    if group == "strategy" and "class" not in STRATEGIES[name].needs.settings:  # which the default scenario is
        return f"python -m clbench strategy={name} scenario={EXAMPLES[STRATEGIES[name].needs.settings[0]]}"
    return f"python -m clbench {group}={name}"


def _as_typed(value: Any) -> str:
    """A value as it is written on the command line: null, true, [1, 2]."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _source_of(scenario: str) -> str:
    return _scenario(scenario).source


def _scenario(name: str) -> Any:
    """What the file of a scenario sets under ``scenario``, and the files that it builds on."""
    content, known = yaml_mapping(_file("scenario", name)), group_choices("scenario")
    parents = [entry for entry in content.defaults if entry in known]
    return OmegaConf.merge(*map(_scenario, parents), content.scenario)


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
    if not file.is_file():
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
