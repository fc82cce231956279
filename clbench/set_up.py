"""From a configuration to everything that a run needs, checked and built before the first step."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from clbench.compose import added_strategies
from clbench.config import RunConfig, typed
from clbench.data.text import refuse_foreign_tokens
from clbench.errors import ConfigError
from clbench.evaluation.adaptive import AdaptiveEvaluator
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.evaluation.policy_shift import refuse_without_policy
from clbench.learning.compilation import Compilation
from clbench.learning.composition import refuse, refuse_network, refuse_stream
from clbench.learning.learner import Learner
from clbench.learning.parts.frozen_features import FrozenFeatures
from clbench.models.answers import SpokenLabels, answer_tokens
from clbench.models.continual import ContinualModel
from clbench.models.half_precision import hold_frozen_in_half
from clbench.models.timm_backbone import write_attention_out
from clbench.models.weights import load_backbone, origin, refuse_seen_classes
from clbench.precision import Precision, allow_tf32
from clbench.registry import MODELS, STRATEGIES
from clbench.scenarios.build import build
from clbench.scenarios.cached_prefix import cached, refuse_cache
from clbench.scenarios.frozen import check_frozen
from clbench.scenarios.inputs import InputPipeline
from clbench.scenarios.own_data import refuse_borrowed_name, with_own_note
from clbench.scenarios.scenario import Scenario
from clbench.seeding import torch_draws_from


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
    config = typed(composed)
    if config.trainer.epochs is None and config.trainer.max_steps_per_task is None:
        raise ConfigError("trainer.epochs and trainer.max_steps_per_task are both null: one of them has to be set")
    if not config.trainer.reset_optimizer:
        for name in ("optimizer", "momentum", "weight_decay"):
            if name in config.trainer.first_task.given:
                raise ConfigError(
                    f"trainer.first_task.{name} has no end with trainer.reset_optimizer=false, where the optimizer of the first "
                    "task goes on: set trainer.reset_optimizer=true"
                )
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
    strategies = [config.strategy, *added_strategies(config)]
    refuse(strategies, config)
    if config.evaluator.kl_from is not None:
        refuse_without_policy(strategies)
    device = device_of(config.device)
    scenario = build(config.scenario, config.data, config.seed, device)
    if config.evaluator.split == "validation":
        scenario = dataclasses.replace(scenario, test_locked=True)
    scenario = with_own_note(config, check_frozen(config.scenario, scenario))
    model = network_of(config, scenario).to(device)
    pretrained = origin(config.model, model.backbone)
    n_half = hold_frozen_in_half(model) if config.model.frozen_dtype == "bf16" else 0
    refuse_stream(strategies, scenario, config)
    if config.evaluator.kl_from is not None and config.evaluator.kl_from >= scenario.n_tasks:
        raise ConfigError(
            f"evaluator.kl_from={config.evaluator.kl_from} leaves none of the {scenario.n_tasks} tasks of {scenario.name}: "
            f"it has to be at most {scenario.n_tasks - 1}"
        )
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
    _refuse_nothing_frozen(config, n_half, learner)
    _refuse_one_logit(scenario, config, learner)
    _refuse_silence(scenario, learner)
    evaluator = _evaluator_class(config.evaluator.kind)(
        learner, scenario, inputs, config.evaluator, config.seed, precision
    )
    return Setup(config, device, scenario, learner, inputs, evaluator, pretrained)


def _evaluator_class(kind: str) -> type[ContinualEvaluator]:
    return ContinualEvaluator if kind == "periodic" else AdaptiveEvaluator


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
            for split in [scenario.train] if scenario.test_locked else [scenario.train, scenario.test]:
                refuse_foreign_tokens(split.store.samples, backbone.vocabulary, tokenizer, config.model.path)
        if config.model.checkpoint is not None:
            refuse_seen_classes(config.model.checkpoint, scenario)
            load_backbone(backbone, config.model.checkpoint)
        return ContinualModel(
            backbone,
            scenario.task_classes,
            scenario.setting,
            logit_scope=config.scenario.logit_scope,
            frozen=config.model.frozen,
            zero_head=config.trainer.zero_head,
            trained=config.model.trained,
            first_seen=scenario.first_seen,
            head=config.model.head,
            head_scale=config.model.head_scale,
            head_proxies=config.model.head_proxies,
            init=getattr(config.model, "init", "default"),
            answer_tokens=_answer_tokens(config, scenario),
        )


def _answer_tokens(config: RunConfig, scenario: Scenario) -> list[int] | None:
    """The tokens that a head which speaks says; None for other heads."""
    if config.model.head != "verbaliser":
        return None
    if config.model.kind != "causal_lm":
        raise ConfigError(
            f"model.head=verbaliser is the output layer of a language model, and model.kind={config.model.kind} is none: choose "
            "model=causal_lm, or model.head=linear"
        )
    for name, value, default in (("scale", config.model.head_scale, None), ("proxies", config.model.head_proxies, 1)):
        if value != default:
            raise ConfigError(
                f"model.head_{name}={value} has no meaning with model.head=verbaliser: leave it at {default or 'null'}"
            )
    return answer_tokens(scenario, config.data.tokenizer)


def learner_of(config: RunConfig, strategies: list[Any], model: ContinualModel, scenario: Scenario) -> Learner:
    """The network and its strategies, with these options, the main one first; they have been through ``refuse``.

    Raises:
        ConfigError: a strategy is not defined for this network or setting, or its options are of no use there.
    """
    device = model.head.weight.device
    for options in strategies:
        refuse_network(options, model, scenario)
    with torch_draws_from(config.seed, "strategy_initialisation"):  # weights of the strategies' own
        built = []
        for options in strategies:
            built.append(STRATEGIES[options.name](options, model, scenario))
            # Those beside the main one may keep a copy of the network, with what that has frozen.
            if config.model.frozen_dtype == "bf16":
                hold_frozen_in_half(model)
    return Learner(model, built, Compilation(config.trainer.compile, device)).to(device)


def _refuse_nothing_frozen(config: RunConfig, n_half: int, learner: Learner) -> None:
    """Refuse bf16 for frozen weights where there are none; ``n_half`` were held in it before the learner was built."""
    held = any(parameter.dtype == torch.bfloat16 for parameter in learner.model.parameters())
    if config.model.frozen_dtype == "bf16" and not (n_half or held):
        raise ConfigError(
            "model.frozen_dtype=bf16 has no meaning where all layers are trained: set model.frozen, choose a strategy that "
            "freezes the network such as lora, or leave model.frozen_dtype at fp32"
        )


def _refuse_silence(scenario: Scenario, learner: Learner) -> None:
    """Refuse strategies that predict without the head, where that is to say the answers."""
    model = learner.model
    if not isinstance(model.answer, SpokenLabels):
        return
    device = model.head.weight.device
    # Those that learn features first predict with the head until then.
    apart = any(isinstance(strategy, FrozenFeatures) for strategy in learner)
    with model.in_evaluation_mode(), model.judged(), torch.no_grad():
        found = learner.prepare_and_predict(scenario.blank(device), torch.zeros(1, dtype=torch.int64, device=device))
    if apart or found.shape[1] == scenario.n_classes:
        raise ConfigError(
            f"strategy {'+'.join(s.name for s in learner)} predicts without the network's head, which is to say the answers with "
            "model.head=verbaliser: set model.head=linear"
        )


def _refuse_one_logit(scenario: Scenario, config: RunConfig, learner: Learner) -> None:
    """Refuse a stream with a task in which training, or every answer, sees one class alone."""
    alone = next((task for task, classes in enumerate(scenario.task_classes) if len(classes) == 1), None)
    if alone is None:
        return
    of_task = f"task {scenario.task_names[alone]!r} of {scenario.name} has one class"
    if scenario.setting == "task" or scenario.n_classes == 1:
        raise ConfigError(f"{of_task}, so that every answer is right: set scenario.increment to at least 2")
    if config.scenario.logit_scope == "current" and learner.main_stage.by_gradient:
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


def device_of(name: str) -> torch.device:
    """The device that ``device=`` names.

    Raises:
        ConfigError: there is none here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device. Valid choices here: auto, cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
