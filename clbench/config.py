"""The configuration: one dataclass per group, stored where Hydra validates YAML files and the command line.

A field made with :func:`option` carries its help text, its valid choices and its bounds; the same metadata checks a run
before it starts and is printed by ``python -m clbench describe``.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from clbench.errors import ConfigError, DamagedRecord, choose_from


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: tuple[str | None, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A documented, checked field of a config dataclass.

    Without ``default`` the value has to come from the group's YAML file, which is where paper values and their sources
    are written down.
    """
    metadata = {"help": help, "choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class StrategyConfig:
    """Fields that every strategy has."""

    name: str = option(help="registered name of the strategy")
    plus: list[str] = option([], help="strategies added to this one, e.g. [ewc]; set their options with plus.ewc.lam=5")
    search: dict[str, Any] = option({}, help="values that a tuning protocol tries, by option; see conf/search_space/")


@dataclass
class ModelConfig:
    """Fields that every model has."""

    kind: str = option(help="registered model class")
    name: str = option(help="name of the architecture within its kind; for kind=timm any name timm knows")
    checkpoint: str | None = option(
        None, help="file with weights to start from (.safetensors, .pth, …); its classifier is left out"
    )
    frozen: int = option(
        0,
        help="stages of the network, counted from the input, that are not trained; their BatchNorm statistics stay too",
        at_least=0,
    )
    trained: str = option(
        "all",
        help="what is trained in the other stages: all, or of a vision transformer only the projections to queries, keys and "
        "values (blocks.*.attn.qkv), as Smith et al. 2023; the head always is",
        choices=("all", "attention"),
    )


@dataclass
class AugmentConfig:
    """Random transformations of training images, drawn per sample on the device."""

    resized_crop: float | None = option(
        None,
        help="random resized crop: smallest share of the image's area that is cut out and scaled up again; null: none",
        above=0,
        at_most=1,
    )
    crop_padding: int = option(0, help="zero padding in pixels before a random crop to the original size", at_least=0)
    flip: bool = option(False, help="flip left and right with probability 1/2")
    brightness: float = option(0.0, help="jitter: factor drawn from [1 - b, 1 + b]", at_least=0)
    contrast: float = option(0.0, help="jitter: factor drawn from [1 - c, 1 + c]", at_least=0)
    saturation: float = option(0.0, help="jitter: factor drawn from [1 - s, 1 + s]", at_least=0)


@dataclass
class ScenarioConfig:
    """Fields that every scenario has, whatever its kind."""

    name: str = option(help="name of the scenario, as in conf/scenario/")
    kind: str = option(help="how the stream is built: a registered scenario kind")
    source: str = option(help="data source the samples come from")
    image_size: int | None = option(
        None, help="resize to this height and width in pixels; null keeps the source's", at_least=1
    )
    tasks: int | None = option(None, help="only the first so many tasks of the stream; null: all", at_least=1)
    validation: float = option(0.0, help="fraction of every class's training samples held out", at_least=0, at_most=0.9)
    logit_scope: str = option(
        "seen",
        help="logits that training and prediction see in class-incremental scenarios: all classes of the stream, those "
        "seen so far (a growing head), or in training only those of the sample's own task",
        choices=("all", "seen", "current"),
    )
    mean: list[float] | None = option(None, help="per-channel mean for normalisation; null takes the source's")
    std: list[float] | None = option(None, help="per-channel standard deviation; null takes the source's")
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frozen: str | None = option(
        None, help="frozen definition in scenarios/ that the stream has to equal, e.g. split_mnist/v1"
    )


@dataclass
class FirstTaskConfig:
    """What differs in the first task, which recipes of class-incremental learning train longer, or with another weight decay.

    null: as in the other tasks.
    """

    epochs: int | None = option(None, help="passes over the first task's data", at_least=1)
    max_steps_per_task: int | None = option(None, help="optimizer steps of the first task at most", at_least=1)
    batch_size: int | None = option(None, help="new samples per step in the first task", at_least=1)
    optimizer: str | None = option(None, help="optimizer in the first task", choices=(None, "sgd", "adam", "adamw"))
    lr: float | None = option(None, help="learning rate in the first task", above=0)
    momentum: float | None = option(None, help="momentum of SGD in the first task", at_least=0, at_most=1)
    weight_decay: float | None = option(None, help="weight decay in the first task", at_least=0)
    scheduler: str | None = option(
        None, help="learning-rate schedule in the first task", choices=(None, "constant", "cosine", "step")
    )
    milestones: list[float] | None = option(None, help="fractions of the first task's steps at which lr drops")
    gamma: float | None = option(None, help="factor by which lr drops in the first task", above=0)
    clip_grad_norm: float | None = option(None, help="largest L2 norm of the gradient in the first task", above=0)
    backbone_rate: float | None = option(None, help="factor of the backbone's learning rate in the first task", above=0)

    @property
    def given(self) -> dict[str, Any]:
        """The options that are set, by name."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class TrainerConfig:
    """The training loop. Scenario files set these to the published schedule."""

    epochs: int | None = option(10, help="passes over a task's data; null leaves it to max_steps_per_task", at_least=1)
    max_steps_per_task: int | None = option(
        None, help="optimizer steps per task at most; with epochs=null, exactly", at_least=1
    )
    batch_size: int = option(128, help="new samples per step (replayed ones come on top)", at_least=1)
    optimizer: str = option("sgd", help="optimizer", choices=("sgd", "adam", "adamw"))
    lr: float = option(0.01, help="learning rate", above=0)
    momentum: float = option(0.9, help="momentum of SGD", at_least=0, at_most=1)
    weight_decay: float = option(0.0, help="weight decay of the optimizer", at_least=0)
    scheduler: str = option(
        "constant", help="learning-rate schedule within each task", choices=("constant", "cosine", "step")
    )
    milestones: list[float] = option(
        [0.5, 0.75], help="scheduler=step: fractions of the task's steps at which lr drops"
    )
    gamma: float = option(0.1, help="scheduler=step: factor by which lr drops", above=0)
    reset_optimizer: bool = option(True, help="new optimizer state (momentum, moments) for every task")
    zero_head: bool = option(
        False,
        help="set the head's weights and biases to 0 at the start of every task but the first (Dohare et al. 2024); the "
        "optimizer's state of them is kept unless reset_optimizer",
    )
    clip_grad_norm: float | None = option(None, help="largest L2 norm of the applied gradient", above=0)
    backbone_rate: float = option(
        1.0,
        help="factor of the learning rate for all weights but the head's, e.g. 0.01 for a pretrained backbone",
        above=0,
    )
    batch_norm: str = option(
        "train",
        help="BatchNorm layers: train as usual, keep their statistics after the first task, or never update them",
        choices=("train", "freeze_after_first_task", "frozen"),
    )
    first_task: FirstTaskConfig = field(default_factory=FirstTaskConfig)
    compile: str = option(
        "auto",
        help="torch.compile: on GPUs (auto), never (off), or anywhere with kernels tuned and CUDA graphs (max)",
        choices=("auto", "off", "max"),
    )
    precision: str = option(
        "fp32",
        help="precision of forward and backward passes, in training and evaluation; weights and optimizer stay in fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    tf32: bool = option(False, help="let NVIDIA GPUs round the inputs of fp32 products and convolutions to TF32")
    threads: int | None = option(None, help="CPU threads of torch; null leaves torch's choice", at_least=1)

    def of_task(self, task: int) -> "TrainerConfig":
        """The options in a task: in the first one those of ``first_task`` where they are set."""
        return dataclasses.replace(self, **self.first_task.given) if task == 0 else self


@dataclass
class EvaluatorConfig:
    """The continual evaluator (De Lange et al. 2023)."""

    split: str = option(
        "test",
        help="split that is evaluated; with validation the test stream is locked",
        choices=("test", "validation"),
    )
    kind: str = option(
        "periodic",
        help="periodic: after every `every` steps; adaptive: where the curve moves, on a grid of single steps",
        choices=("periodic", "adaptive"),
    )
    every: int = option(1, help="evaluate after every this many optimizer steps; 0 only at task switches", at_least=0)
    subset: int = option(1000, help="evaluation samples per task, drawn once", at_least=1)
    batch_size: int | None = option(
        None, help="samples per forward pass; null: 4096 on a GPU, what a processor's cache holds on a CPU", at_least=1
    )
    share: float = option(
        0.125, help="kind=adaptive: part of the steps that may be evaluated, long after a switch", above=0, at_most=1
    )
    dense: int = option(
        24,
        help="kind=adaptive: steps after a switch that may all be evaluated; around a later step t the part dense / t may be, "
        "until that is less than share",
        at_least=0,
    )
    tolerance: float = option(
        0.001, help="kind=adaptive: how much lower a minimum may be expected to be and not be looked for", above=0
    )
    window: int = option(64, help="kind=adaptive: steps whose weights are kept until it is decided", at_least=2)
    diagnostics_every: int = option(
        0, help="record gradient norms and feature drift every this many steps; 0 never", at_least=0
    )
    plasticity_every: int = option(
        0,
        help="record dormant units, ranks, norms and training accuracy every this many steps and at every task's start and end; "
        "0 never",
        at_least=0,
    )
    connectivity_points: int = option(
        0,
        help="at every task's end, evaluate so many points of the straight line from the state after the previous task to the "
        "present one, both ends included; 0 never, 11 for steps of a tenth",
        at_least=0,
    )


@dataclass
class DataConfig:
    """Where data lie and where they are held."""

    root: str | None = option(None, help="folder with the data sets; null: $CLBENCH_DATA, else the user's cache folder")
    folder: str | None = option(
        None,
        help="folder within the root to read instead of the source's usual place, e.g. PACS64 instead of PACS, or a folder "
        "that holds cifar-10-batches-py",
    )
    download: bool = option(True, help="download missing data where torchvision can")
    test_fraction: float = option(
        0.2,
        help="share of every class held out as test data, for folders that come without a split",
        above=0,
        at_most=0.9,
    )
    duplicates: str = option(
        "refuse",
        help="images of a folder of one's own that occur under two classes, or in training and test: refuse them, or keep them "
        "and say so in the record",
        choices=("refuse", "keep"),
    )
    image_size: int | None = option(
        None,
        help="height and width to which images of different sizes are decoded; set by scenario.image_size",
        at_least=1,
    )
    tokenizer: str | None = option(
        None,
        help="texts: folder with the tokenizer.json of the network that reads them, or package:<name> of an installed package; "
        "null: bytes",
    )
    length: int = option(64, help="texts: tokens that are kept of each", at_least=1)
    cache_prefix: bool = option(
        False, help="compute what the stages that model.frozen names make of the samples once, and train on that"
    )
    placement: str = option("auto", help="where decoded images are held", choices=("auto", "device", "host", "mmap"))


@dataclass
class RecordConfig:
    """The run folder."""

    checkpoint_seconds: float = option(60.0, help="time between checkpoints within a task", at_least=0)
    checkpoint: str = option(
        "last",
        help="what is kept of the learner once the run has finished (until then it can be resumed in any case): last: its "
        "state, without the optimizer's; all: besides, the whole state after every task, checkpoint/task_<n>.pt from 1 on; "
        "none: nothing",
        choices=("last", "all", "none"),
    )
    figure: bool = option(True, help="draw curve.png at the end")
    report: bool = option(True, help="write a comparison report at the end of a sweep or a study")


@dataclass
class WandbConfig:
    """Weights & Biases; imported only when mode is not disabled."""

    mode: str = option("disabled", help="disabled, offline or online", choices=("disabled", "offline", "online"))
    project: str = option("clbench", help="project name")
    group: str | None = option(None, help="group name")


@dataclass
class StudyConfig:
    """The place of a run in a study; set by the protocol that launches it (see clbench.protocol)."""

    phase: str | None = option(None, help="tuning or evaluation; null: the run is no part of a study")
    protocol: str | None = option(None, help="which protocol's tuning it belongs to")
    method: str | None = option(None, help="the method's name in the study")
    trial: int | None = option(None, help="number of the configuration that was drawn")


@dataclass
class RunConfig:
    """One run, fully described."""

    scenario: Any = MISSING
    strategy: Any = MISSING
    model: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    protocol: Any = None
    plus: dict[str, Any] = option({}, help="options of the strategies in strategy.plus, by name")
    seed: int = option(0, help="seed of every random stream of the run", at_least=0)
    device: str = option("auto", help="auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    progress: bool = option(True, help="show the progress bar")


def conf_dir() -> Path:
    """The Hydra tree: the checkout's ``conf/`` where there is one, else the copy inside the installed wheel."""
    return _shipped("conf", "_conf")


_added_dirs: list[Path] = []


def add_config_dirs(folders: list[Path]) -> None:
    """Let choices be looked for in these folders as well, as ``--config-dir`` and ``hydra.searchpath`` ask for."""
    _added_dirs.extend(folder for folder in folders if folder not in _added_dirs)


def added_config_dirs() -> list[Path]:
    """Folders with YAML files beside clbench's own: those that were added, and those of packages with an entry point."""
    from clbench.registry import plug_in_folders

    return [*_added_dirs, *plug_in_folders()]


def config_file(group: str, name: str) -> Path | None:
    """The YAML file of ``group=name`` in the first folder that has one, or None: code can be registered without a file."""
    for folder in (conf_dir(), *added_config_dirs()):
        file = folder / group / f"{name}.yaml"
        if file.is_file():
            return file
    return None


def catalogue_dir() -> Path:
    """The frozen scenario definitions: the checkout's ``scenarios/``, else the copy inside the installed wheel."""
    return _shipped("scenarios", "_catalogue")


def _shipped(in_checkout: str, in_wheel: str) -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent / in_checkout
    is_checkout = (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
    return checkout if is_checkout else package / in_wheel


def store_schemas() -> None:
    """Put the dataclass of every group, and of every registered name, into Hydra's ConfigStore.

    ``conf/strategy/ewc.yaml`` then begins with ``- schema/ewc@_here_`` in its defaults list, and a misspelt or mistyped
    option fails while the configuration is composed.
    """
    from clbench.protocol.options import ProtocolConfig
    from clbench.registry import MODELS, SCENARIOS, STRATEGIES
    from hydra_plugins.clbench_sweep import use_as_basic

    use_as_basic()
    _store(None, "run_schema", RunConfig)
    _store("protocol", "schema", ProtocolConfig)
    for group, registry in (("strategy", STRATEGIES), ("scenario", SCENARIOS), ("model", MODELS)):
        for name in registry.names():
            schema = registry[name].config
            _store(f"{group}/schema", name, schema)
            if group != "scenario" and config_file(group, name) is None:
                # Code of the user's, without a YAML file here: its dataclass has to have all defaults.
                named = {"name": name} if group == "strategy" else {"kind": name, "name": name}
                _store(group, name, schema(**named))


_STORED: dict[tuple[str | None, str], Any] = {}


def _store(group: str | None, name: str, node: Any) -> None:
    """Put a schema into the ConfigStore, once: that takes a third of the time of composing a configuration."""
    if _STORED.get((group, name)) != node:
        _STORED[group, name] = node
        ConfigStore.instance().store(group=group, name=name, node=node)


def compose(overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """The configuration that ``python -m clbench <overrides>`` would run, for tests, tools and notebooks.

    Args:
        overrides: as on the command line.
        with_hydra: keep Hydra's own part.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    store_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return hydra_compose("config", overrides=overrides, return_hydra_config=with_hydra)


def load_run_config(path: Path) -> DictConfig:
    """The configuration in a run folder's ``config.yaml``, typed and checked like a composed one.

    Raises:
        DamagedRecord: it is cut off, or not what a run has written.
    """
    from clbench.registry import MODELS, SCENARIOS, STRATEGIES

    try:
        saved = OmegaConf.load(path)
        typed = OmegaConf.structured(RunConfig)
        typed.scenario = OmegaConf.structured(SCENARIOS[saved.scenario.kind].config)
        typed.strategy = OmegaConf.structured(STRATEGIES[saved.strategy.name].config)
        typed.model = OmegaConf.structured(MODELS[saved.model.kind].config)
        return OmegaConf.merge(typed, saved)  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DamagedRecord(f"{path} is damaged, or not of this version of clbench: {first}") from error


def group_choices(group: str) -> list[str]:
    """The names that may follow ``group=`` on the command line."""
    from clbench.registry import MODELS, STRATEGIES

    registry = {"strategy": STRATEGIES, "model": MODELS}.get(group)
    names = {path.stem for folder in (conf_dir(), *added_config_dirs()) for path in (folder / group).glob("*.yaml")}
    return sorted(names | set(registry.names() if registry is not None else []))


def require_choice(group: str, name: str) -> None:
    """Raise ConfigError, with the nearest match and all choices, where ``group=name`` is not possible."""
    from clbench.registry import broken_plug_ins

    choices = group_choices(group)
    if name not in choices:
        raise ConfigError(choose_from(group, name, choices) + broken_plug_ins())


def override_value(value: Any) -> str:
    """A value as it is written in an override on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(override_value(part) for part in value)}]"
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


def typed(composed: DictConfig) -> RunConfig:
    """The checked configuration of a run, as dataclasses; Hydra's own part is left out.

    Raises:
        ConfigError: a value is missing, out of bounds or not among the choices.
    """
    config = to_dataclass(without_hydra(composed))
    check_fields(config, "")
    return config


def without_hydra(composed: DictConfig) -> DictConfig:
    """The run's own part of a configuration."""
    own = composed.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own


def to_dataclass(config: DictConfig) -> Any:
    """A typed dataclass instance of a composed config, every field checked by :func:`check_fields`.

    Raises:
        ConfigError: a value is missing, out of bounds or not among the choices.
    """
    _refuse_unknown(config, "")
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise ConfigError(f"no value for {', '.join(sorted(missing))}: set it on the command line")
    return OmegaConf.to_object(config)


def _refuse_unknown(config: DictConfig, prefix: str) -> None:
    """Refuse keys that ``+key=value`` has added to a group and that nothing would read."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return
    known = [spec.name for spec in dataclasses.fields(schema)]
    for key in config:
        if key not in known:
            raise ConfigError(choose_from("option", f"{prefix}{key}", [f"{prefix}{name}" for name in known]))
        if not OmegaConf.is_missing(config, key) and OmegaConf.is_dict(config[key]):
            _refuse_unknown(config[key], f"{prefix}{key}.")


def check_fields(config: Any, prefix: str) -> None:
    """Check every field of a config dataclass against the metadata given to :func:`option`, recursively."""
    for spec in dataclasses.fields(config):
        value, where = getattr(config, spec.name), f"{prefix}{spec.name}"
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{where}.")
            continue
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(choose_from(f"value for {where}", value, [override_value(choice) for choice in choices]))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        bounds = {
            "at least": (spec.metadata.get("at_least"), lambda v, b: v >= b),
            "above": (spec.metadata.get("above"), lambda v, b: v > b),
            "at most": (spec.metadata.get("at_most"), lambda v, b: v <= b),
        }
        for words, (bound, holds) in bounds.items():
            if bound is not None and not (math.isfinite(value) and holds(value, bound)):
                raise ConfigError(f"{where}={value} is out of range: it has to be {words} {bound:g}")
