"""One run: from a configuration to a complete run folder."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from clbench import config as configuration
from clbench.config import RunConfig
from clbench.data.location import data_root
from clbench.data.text import refuse_foreign_tokens
from clbench.errors import ConfigError, Diverged, Interrupted
from clbench.evaluation.adaptive import AdaptiveEvaluator
from clbench.evaluation.connectivity import INTERPOLATED
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.evaluation.metrics import summarise
from clbench.learning.compilation import Compilation
from clbench.learning.composition import refuse, refuse_network, refuse_stream
from clbench.learning.learner import Learner
from clbench.machine_errors import explanation, in_sentences
from clbench.models.continual import ContinualModel
from clbench.models.timm_backbone import write_attention_out
from clbench.models.weights import load_backbone, origin, refuse_seen_classes, weights_hash
from clbench.progress import ProgressDisplay
from clbench.records.continuity import (
    refuse_other_stream,
    refuse_other_weights,
    surroundings_before,
    with_absolute_paths,
)
from clbench.records.log_file import log_files
from clbench.records.peak_memory import PeakMemory
from clbench.records.run_folder import RunFolder, environment
from clbench.records.wandb_log import WandbLog
from clbench.registry import MODELS, STRATEGIES
from clbench.scenarios.build import build
from clbench.scenarios.cached_prefix import cached, refuse_cache
from clbench.scenarios.frozen import check_frozen
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.own_data import refuse_borrowed_name, with_own_note
from clbench.scenarios.scenario import Scenario
from clbench.seeding import torch_draws_from
from clbench.training.interruption import signals_noted
from clbench.training.precision import Precision, allow_tf32
from clbench.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass
class Setup:
    """Everything a run needs, built and checked, before the first step."""

    config: RunConfig
    device: torch.device
    scenario: Scenario
    learner: Learner
    inputs: InputPipeline
    evaluator: ContinualEvaluator
    pretrained: dict[str, str] | None
    """Where the network's weights come from."""


def set_up(composed: DictConfig) -> Setup:
    """Check the configuration and build what it names.

    Raises:
        ConfigError: a value or a combination of values cannot be run.
        DataError: data are missing or not those the scenario was defined on.
    """
    config = configuration.typed(composed)
    if config.trainer.epochs is None and config.trainer.max_steps_per_task is None:
        raise ConfigError("trainer.epochs and trainer.max_steps_per_task are both null: one of them has to be set")
    if config.evaluator.split == "validation" and not config.scenario.validation:
        raise ConfigError("evaluator.split=validation needs scenario.validation above 0, e.g. scenario.validation=0.1")
    if config.evaluator.kind == "adaptive" and config.evaluator.every != 1:
        raise ConfigError(
            f"evaluator.every={config.evaluator.every} has no meaning with evaluator=adaptive, which chooses among all "
            "iterations: leave it at 1, or choose evaluator=periodic"
        )
    if config.evaluator.connectivity_points in (1, 2):
        raise ConfigError(
            f"evaluator.connectivity_points={config.evaluator.connectivity_points} has no point between the two ends. Valid "
            "choices: 0 for never, or at least 3, e.g. 11"
        )
    refuse_borrowed_name(config)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    allow_tf32(config.trainer.tf32)
    strategies = [config.strategy, *_added_strategies(config)]
    refuse(strategies, config)
    device = _device(config.device)
    scenario = build(config.scenario, config.data, config.seed, device)
    if config.evaluator.split == "validation":
        scenario = dataclasses.replace(scenario, test_locked=True)
    scenario = with_own_note(config, check_frozen(config.scenario, scenario))
    model = network_of(config, scenario).to(device)
    pretrained = origin(config.model, model.backbone)
    refuse_stream(strategies, scenario, config.trainer)
    if device.type == "cpu":
        write_attention_out(model)
    memory_format = _memory_format(model, device)
    inputs = InputPipeline(scenario, config.scenario.augment, config.seed, device, memory_format)
    precision = Precision(config.trainer.precision, device)
    if config.data.cache_prefix:
        refuse_cache(scenario, inputs, config.model.frozen)
        scenario, rest = cached(scenario, model.backbone, config.model.frozen, inputs, precision)
        model.frozen = 0
        model.replace_backbone(rest)
        inputs = InputPipeline(scenario, config.scenario.augment, config.seed, device)
    learner = learner_of(config, strategies, model, scenario)
    _refuse_one_logit(scenario, config, learner)
    evaluator = _evaluator_class(config.evaluator.kind)(
        learner, scenario, inputs, config.evaluator, config.seed, precision
    )
    return Setup(config, device, scenario, learner, inputs, evaluator, pretrained)


def _evaluator_class(kind: str) -> type[ContinualEvaluator]:
    return ContinualEvaluator if kind == "periodic" else AdaptiveEvaluator


def run(composed: DictConfig, path: Path, reuse: bool = False) -> dict[str, Any]:
    """Train and evaluate, writing everything to the folder ``path``; continues from a checkpoint found there.

    Args:
        composed: the configuration.
        path: the run folder.
        reuse: take the result that is there where this very configuration has been run, as sweeps do that are repeated.

    Returns:
        The content of ``summary.json``.

    Raises:
        ClbenchError: the run cannot start. A run that diverges does not raise; its summary says so.
    """
    with in_sentences(), RunFolder(path).owned():
        known = recorded(composed, path) if reuse else None
        if known is not None:
            return known
        job = Run(composed, path)
        with log_files([path]):
            return _run(job)


def _run(job: "Run") -> dict[str, Any]:
    with job.recording_failure():
        trainer = job.begin(live=True)
        try:
            progress = ProgressDisplay(trainer.scenario.n_tasks, job.composed.progress)
            with signals_noted(), progress as trainer.on_progress:
                trainer.fit()
        except Diverged as error:
            return job.finish(error)
        return job.finish()


def recorded(composed: DictConfig, path: Path) -> dict[str, Any] | None:
    """The content of ``summary.json`` where ``path`` holds a run of this very configuration that came to its end."""
    folder = RunFolder(path)
    if folder.status not in ("finished", "diverged"):
        return None
    same = _recorded_configuration(path) == with_absolute_paths(composed, _working_directory())
    return folder.read_json("summary.json") if same else None


def _recorded_configuration(path: Path) -> DictConfig | None:
    """The configuration in a run folder, or None where there is none."""
    file = path / "config.yaml"
    if not file.exists():
        return None
    return with_absolute_paths(configuration.load_run_config(file), _working_directory())


def _working_directory() -> Path:
    """What relative paths of the command line are relative to, also for a job that is run elsewhere."""
    return Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()


class Run:
    """A configuration and the folder that its run is recorded in.

    Args:
        composed: the configuration.
        path: the run folder.

    Raises:
        ConfigError: the folder holds a finished run, or an unfinished one of another configuration.
    """

    def __init__(self, composed: DictConfig, path: Path) -> None:
        self.composed, self.folder = with_absolute_paths(composed, _working_directory()), RunFolder(path)
        if self.folder.status == "finished":
            raise ConfigError(f"{path} already holds a finished run: choose another hydra.run.dir")
        self._goes_on = self._recorded_is_this_run()
        self._wandb_log: WandbLog | None = None

    def begin(self, live: bool = False, fleet: dict[str, Any] | None = None) -> Trainer:
        """Set everything up and write what is known before the first step.

        Args:
            live: send results to wandb while training, and not only at the end; one run of a process can.
            fleet: how many runs train together with this one and in which way, for the record.
        """
        # From here on, but for what the system counts in: of runs in one process each has its own.
        self._memory, self._memory_is_shared = PeakMemory(_device(self.composed.device)), fleet is not None
        folder = self.folder
        if not self._goes_on:  # what an earlier run left that never got to its first checkpoint
            (folder.path / "scenario.json").unlink(missing_ok=True)
        folder.write_text("config.yaml", OmegaConf.to_yaml(self.composed, resolve=True))  # now: resume starts from it
        setup = self.setup = set_up(self.composed)
        config, scenario = setup.config, setup.scenario
        stream = {
            "name": scenario.name,
            "hash": scenario.hash,
            "frozen": scenario.frozen,
            "note": scenario.note,
            **scenario.content,
            "evaluation_subsets": [ids.tolist() for ids in setup.evaluator.subset_ids],
        }
        now = environment(_device_name(setup.device))
        earlier: list[dict[str, Any]] = []
        if self._goes_on:
            refuse_other_stream(folder.path, folder.read_json("scenario.json"), stream)
            recorded_environment = folder.read_json("environment.json") if folder.checkpoint.exists() else None
            refuse_other_weights(folder.path, recorded_environment, setup.pretrained)
            earlier = surroundings_before(folder.path, recorded_environment, now)
        folder.write_json("scenario.json", stream)
        own = {
            "data_root": str(data_root(config.data)),
            "earlier": earlier,
            "initial_weights_sha256": weights_hash(setup.learner.model),
            "tf32": {
                "products": torch.backends.cuda.matmul.allow_tf32,
                "convolutions": torch.backends.cudnn.allow_tf32,
            },
            "cuda": _cuda_versions() if setup.device.type == "cuda" else None,
            "pretrained": setup.pretrained,
            "fleet": fleet,
            "compiled": None,  # known at the end
            "interpolated": INTERPOLATED if config.evaluator.connectivity_points else None,
        }
        folder.write_json("environment.json", now | own)
        folder.write_json("summary.json", {"status": "running"})
        if live and config.wandb.mode != "disabled":
            self._wandb_log = self._open_wandb()
        self.trainer = Trainer(
            config,
            scenario,
            setup.learner,
            setup.inputs,
            setup.evaluator,
            folder.checkpoint,
            on_task_end=self._on_task_end,
        )
        return self.trainer

    def finish(self, diverged: Diverged | None = None) -> dict[str, Any]:
        """Write what is known after the last step; returns the content of ``summary.json``."""
        config, scenario, trainer = self.setup.config, self.setup.scenario, self.trainer
        write_tables(self.folder, trainer)
        is_adaptive = config.evaluator.kind == "adaptive"
        summary = {
            "status": "finished" if diverged is None else "diverged",
            "reason": None if diverged is None else str(diverged),
            "strategy": "+".join(s.name for s in self.setup.learner),
            "scenario": scenario.name,
            "scenario_hash": scenario.hash,
            "scenario_note": scenario.note,
            "notes": [*self.setup.learner.notes(), *trainer.notes(), *_notes_of_cache(config)],
            "seed": config.seed,
            "split": config.evaluator.split,
            "metrics": summarise(
                trainer.curve,
                trainer.tasks,
                config.evaluator.every,
                is_adaptive,
                self.setup.learner.learns_at_task_end,
            ),
            "costs": _costs(self.setup, trainer) | self._peak_memory(),
        }
        compiled = {"compiled": self.setup.learner.compilation.done}
        self.folder.write_json("environment.json", self.folder.read_json("environment.json") | compiled)
        figure = self.folder.path / "curve.png"
        if config.record.figure:
            from clbench.reports.curve_figure import draw_curves  # with matplotlib, which takes a second

            title = f"{summary['strategy']} on {scenario.name}"
            draw_curves(trainer.curve, trainer.tasks, figure, title, scenario.task_names)
        if config.wandb.mode != "disabled":
            log = self._wandb_log or self._open_wandb()
            log.log_curve(trainer.curve)
            log.finish(summary, figure)
        self.folder.write_json("summary.json", summary)
        if diverged is None:  # after the record, so that a run that is killed between the two is still finished
            trainer.keep_what_is_asked_for()
        return summary

    def _peak_memory(self) -> dict[str, Any]:
        """Bytes and whose they are: of this run, of the fleet that it was trained in, or of none that could be measured."""
        peak = self._memory.read()
        whose = None if peak is None else "fleet" if self._memory_is_shared else "run"
        return {"peak_memory_bytes": peak, "peak_memory_of": whose}

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Let an error of the run leave its mark in the folder on its way out."""
        try:
            with self.recording_interruption():
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # recorded, not swallowed
            said = explanation(error) or error
            reason = f"{type(said).__name__}: {said}"
            try:
                self.folder.write_json("summary.json", {"status": "failed", "reason": reason})
            except OSError as unwritable:  # the disk that made it fail may be full for this as well
                log.error("%s cannot be marked as failed: %s", self.folder.path, unwritable)
            raise

    @contextmanager
    def recording_interruption(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM leave its mark in the folder."""
        try:
            yield
        except KeyboardInterrupt as error:
            signal = getattr(error, "signal", None)
            reason = "SIGTERM" if signal == SIGTERM else "Ctrl-C"
            self.folder.write_json("summary.json", {"status": "interrupted", "reason": reason})
            raise Interrupted(str(self.folder.path), signal) from error

    def _recorded_is_this_run(self) -> bool:
        """Whether the folder holds the record of this configuration, begun and not finished.

        Raises:
            ConfigError: it holds a checkpoint of another one. That may only be continued under the configuration that made it,
                or its record would be of another run.
        """
        same = _recorded_configuration(self.folder.path) == self.composed
        if self.folder.checkpoint.exists() and not same:
            raise ConfigError(
                f"{self.folder.path} holds an unfinished run of another configuration: continue that one with "
                f"python -m clbench resume {self.folder.path}, or choose another hydra.run.dir"
            )
        return same

    def _open_wandb(self) -> WandbLog:
        resolved = OmegaConf.to_container(self.composed, resolve=True)
        return WandbLog(self.setup.config.wandb, resolved, self.folder.path)  # type: ignore[arg-type]

    def _on_task_end(self, _task: int) -> None:
        write_tables(self.folder, self.trainer)
        if self._wandb_log is not None:
            self._wandb_log.log_curve(self.trainer.curve)


def _notes_of_cache(config: RunConfig) -> list[str]:
    """What a reader has to know where the frozen stages are not part of the network that is trained."""
    if not config.data.cache_prefix:
        return []
    return [
        f"data.cache_prefix: what the frozen stages (model.frozen={config.model.frozen}) make of the samples was computed once; "
        "parameters and operations are those of the rest"
    ]


def write_tables(folder: RunFolder, trainer: Trainer) -> None:
    """Write the curve, the task table and the training losses as they are now."""
    folder.write_table("curve.parquet", trainer.curve)
    folder.write_table("tasks.parquet", trainer.tasks)
    folder.write_table("training.parquet", trainer.training)
    if len(trainer.method):
        folder.write_table("method.parquet", trainer.method)
    if trainer.diagnostics.every:
        folder.write_table("diagnostics.parquet", trainer.diagnostics.table())
    if trainer.plasticity.every:
        folder.write_table("plasticity.parquet", trainer.plasticity.table())
    if trainer.connectivity.points:
        folder.write_table("connectivity.parquet", trainer.connectivity.table())


def _added_strategies(config: RunConfig) -> list[Any]:
    """The options of the strategies in ``strategy.plus``: those of their YAML files, changed by ``plus.<name>.*``."""
    unused = set(config.plus) - set(config.strategy.plus)
    if unused:
        raise ConfigError(
            f"options for {', '.join(sorted(unused))} are set under plus, but strategy.plus={config.strategy.plus} does not "
            "name it"
        )
    for name in config.strategy.plus:
        if name == config.strategy.name or config.strategy.plus.count(name) > 1:
            raise ConfigError(f"strategy.plus={config.strategy.plus} names {name} twice")
    return [added_strategy(name, config.plus.get(name) or {}) for name in config.strategy.plus]


def added_strategy(name: str, changes: dict[str, Any]) -> Any:
    """Options of a strategy in ``strategy.plus``: those of its YAML file, with ``changes``.

    Raises:
        ConfigError: an option does not exist, or its value is of the wrong type or not possible.
    """
    options = STRATEGIES[name].config
    file = configuration.config_file("strategy", name)
    values = OmegaConf.create({"name": name}) if file is None else OmegaConf.load(file)
    values.pop("defaults", None)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options), values, changes)
    except Exception as error:  # OmegaConf has no common base for "no such key" and "wrong type"
        raise ConfigError(f"plus.{name}: {str(error).splitlines()[0]}") from error
    options = configuration.to_dataclass(merged)
    configuration.check_fields(options, f"plus.{name}.")
    return options


def learner_of(config: RunConfig, strategies: list[Any], model: ContinualModel, scenario: Scenario) -> Learner:
    """The network and its strategies, with these options, the main one first; they have been through ``refuse``.

    Raises:
        ConfigError: a strategy is not defined for this network or setting, or its options are of no use there.
    """
    device = model.head.weight.device
    for options in strategies:
        refuse_network(options, model, scenario)
    with torch_draws_from(config.seed, "strategy_initialisation"):  # weights of the strategies' own
        built = [STRATEGIES[options.name](options, model, scenario) for options in strategies]
    return Learner(model, built, Compilation(config.trainer.compile, device)).to(device)


def network_of(config: RunConfig, scenario: Scenario) -> ContinualModel:
    """The network, its weights drawn from the stream (seed, "initialisation") without touching torch's own generator."""
    with torch_draws_from(config.seed, "initialisation"):
        kind = MODELS[config.model.kind]
        reads = getattr(kind, "reads", "images")
        if reads != scenario.reads:
            fitting = [name for name in MODELS.names() if getattr(MODELS[name], "reads", "images") == scenario.reads]
            raise ConfigError(
                f"model.kind={config.model.kind} reads {reads}, and the samples of {scenario.name} are {scenario.reads}. Valid "
                f"choices: {', '.join(fitting)}"
            )
        backbone = kind(config.model, scenario.input_shape)
        if reads == "tokens":
            tokenizer = config.data.tokenizer
            refuse_foreign_tokens(scenario.train.store.samples, backbone.vocabulary, tokenizer, config.model.path)
        if config.model.checkpoint is not None:
            refuse_seen_classes(config.model.checkpoint, scenario)
            load_backbone(backbone, config.model.checkpoint)
        return ContinualModel(
            backbone,
            scenario.task_classes,
            scenario.setting,
            config.scenario.logit_scope,
            config.model.frozen,
            config.trainer.zero_head,
            config.model.trained,
            scenario.first_seen,
        )


def _refuse_one_logit(scenario: Scenario, config: RunConfig, learner: Learner) -> None:
    """Refuse a stream with a task in which training, or every answer, sees one class alone."""
    alone = next((task for task, classes in enumerate(scenario.task_classes) if len(classes) == 1), None)
    if alone is None:
        return
    of_task = f"task {scenario.task_names[alone]!r} of {scenario.name} has one class"
    if scenario.setting == "task" or scenario.n_classes == 1:
        raise ConfigError(f"{of_task}, so that every answer is right: set scenario.increment to at least 2")
    if config.scenario.logit_scope == "current" and learner.learns_by_gradient:
        raise ConfigError(
            f"{of_task}, and with scenario.logit_scope=current the loss over its one logit is always 0: set "
            "scenario.logit_scope=seen, or scenario.increment to at least 2"
        )


def _memory_format(model: ContinualModel, device: torch.device) -> torch.memory_format:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions or device.type != "cpu" or any(map(_is_written_beyond, convolutions)):
        return torch.contiguous_format
    return torch.channels_last


def _is_written_beyond(layer: nn.Conv2d) -> bool:
    """Whether the gradient of the layer's weights overwrites foreign memory over channels-last inputs.

    It does in oneDNN, which torch computes it with on a processor (https://github.com/uxlfoundation/oneDNN/issues/6035): where
    kernels of 1 × 1 with a stride have fewer inputs than a block of the processor's vectors, of 8 or 16 numbers.
    """
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels // layer.groups < 16


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device. Valid choices here: auto, cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _cuda_versions() -> dict[str, Any]:
    """Versions of CUDA and cuDNN that torch computes with, and of the kernel's driver (None where Linux does not tell)."""
    file = Path("/proc/driver/nvidia/version")
    driver = re.search(r"\d+\.[\d.]+\d", file.read_text()) if file.exists() else None
    return {
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver and driver.group(),
    }


def _costs(setup: Setup, trainer: Trainer) -> dict[str, Any]:
    """Seconds, sizes and floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = setup.learner.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(setup.scenario.blank(setup.device))
    return {
        "seconds": trainer.seconds,
        "evaluation_seconds": setup.evaluator.seconds,
        "iterations": trainer.iteration,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in trainer.parameters),
        "strategy_bytes": setup.learner.extra_bytes(),
        "forward_flops_per_sample": counter.get_total_flops(),
    }
