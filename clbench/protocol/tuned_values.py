"""Tuned values: written by a study, picked up by ``+best=true``.

``best/<scenario>/<method>.yaml`` holds the selected values and where they come from. ``+best=true`` looks there from where the
command is given, and then in conf/best/ (values that come with clbench); ``+best=FOLDER`` looks in another such folder. A value
that the command line sets itself is left as it is.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clbench.conf_files import conf_dir, yaml_mapping
from clbench.errors import ConfigError
from clbench.records.run_folder import RunFolder

OVERRIDE = "best"
FOLDER = "best"


def write_tuned_values(
    folder: Path, scenario: str, method: str, values: dict[str, Any], provenance: dict[str, Any]
) -> Path:
    """Write one method's file; returns its path."""
    file = folder / scenario / f"{method}.yaml"
    RunFolder(file.parent).write_text(file.name, OmegaConf.to_yaml({"values": values, "from": provenance}))
    return file


def with_tuned_values(composed: DictConfig, given: list[str]) -> tuple[DictConfig, str]:
    """The configuration with tuned values, where it says ``best``, and a sentence about them (else an empty one).

    Args:
        composed: a run's configuration.
        given: the overrides of the command line.

    Raises:
        ConfigError: there is no file of tuned values for this method on this scenario, or it names an option that does not exist.
    """
    wanted = composed.get(OVERRIDE)
    composed = composed.copy()
    with open_dict(composed):
        composed.pop(OVERRIDE, None)
    if wanted is None or wanted is False:
        return composed, ""
    method = "+".join([composed.strategy.name, *composed.strategy.plus])
    file = _file(wanted, composed, method)
    content = yaml_mapping(file)
    own = {override.partition("=")[0].lstrip("+") for override in given}
    applied = {name: value for name, value in content["values"].items() if name not in own}
    try:
        from clbench.protocol.search_space import with_values  # with Optuna, which most runs do without

        composed = with_values(composed, {str(name): value for name, value in applied.items()})
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    source = content["from"]
    shown = ", ".join(f"{name}={value}" for name, value in applied.items()) or "none that the command line leaves open"
    kept = [str(name) for name in content["values"] if name in own]
    sentence = (
        f"tuned values from {file} ({source['protocol']}, {source['trials']} trials × {len(source['tuning_seeds'])} seeds, "
        f"{source['metric']}): {shown}"
    )
    return composed, sentence + (f"; set on the command line instead: {', '.join(kept)}" if kept else "")


def _file(wanted: Any, composed: DictConfig, method: str) -> Path:
    scenario = composed.scenario.name
    folders = [Path(FOLDER), conf_dir() / FOLDER] if wanted is True else [Path(str(wanted))]
    # A study that compares networks as well has the network in its methods' names.
    files = [
        folder / scenario / f"{name}.yaml" for folder in folders for name in (method, f"{method}-{composed.model.name}")
    ]
    for file in files:
        if file.is_file():
            return file
    known = sorted(
        {path.relative_to(folder).with_suffix("").as_posix() for folder in folders for path in folder.glob("*/*.yaml")}
    )
    strategy, *added = method.split("+")
    words = f"strategy={strategy}" + (f" strategy.plus=[{','.join(added)}]" if added else "")
    raise ConfigError(
        f"no tuned values of {method} on {scenario}: there is no {files[0]}. Run a protocol first (python -m clbench -m "
        f"protocol=two_phase {words} scenario={scenario})" + (f"; there are: {', '.join(known)}" if known else "")
    )
