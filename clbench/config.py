"""The configuration of a run: one dataclass per group."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, open_dict

from clbench.options import check_fields, option, to_dataclass
from clbench.protocol.options import ProtocolConfig


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
    frozen_dtype: str = option(
        "fp32",
        help="how weights of layers that nothing trains are held: fp32, or rounded to bf16, for half of their memory; what is "
        "computed in is trainer.precision",
        choices=("fp32", "bf16"),
    )

    head: str = option(
        "linear",
        help="layer that makes logits: linear; cosine to every class's weights; cosine to the fixed corners of a simplex; or "
        "verbaliser: a language model's own output layer, whose token a class's answer is",
        choices=("linear", "cosine", "fixed", "verbaliser"),
    )
    head_scale: float | None = option(
        None, help="head=cosine or fixed: factor of the cosines; null: learned, from 1 on", above=0
    )
    head_proxies: int = option(1, help="head=cosine: rows of weights for every class", at_least=1)


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
    pad: int | None = option(
        None,
        help="pixels of value 0 added on each side of every image, after resizing and before anything else, so that they are "
        "normalised, permuted and turned with the image; null: none",
        at_least=1,
    )
    tasks: int | None = option(None, help="only the first so many tasks of the stream; null: all", at_least=1)
    drift: float | None = option(
        None,
        help="training samples change from each task to the next over this share of the smaller of the two, in which the next "
        "one's share grows linearly; they then arrive in one order; null: at once, and shuffled",
        above=0,
        at_most=1,
    )
    boundaries: Any = option(
        None,
        help="told: methods are told where a task begins; hidden: they are not; a number: they are told of a boundary after "
        "every so many samples, wherever tasks begin; null: told, but for kinds of streams whose boundaries are blurred",
    )
    skip_tasks: int | None = option(
        None,
        help="leave out the first so many tasks, on which options were chosen, say (A-GEM: 3 of 20); tasks counts from there; "
        "null: none",
        at_least=1,
    )
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
    optimizer: str | None = option(
        None, help="optimizer in the first task", choices=(None, "sgd", "adam", "adamw", "adagrad")
    )
    lr: float | None = option(None, help="learning rate in the first task", above=0)
    momentum: float | None = option(None, help="momentum of SGD in the first task", at_least=0, at_most=1)
    weight_decay: float | None = option(None, help="weight decay in the first task", at_least=0)
    scheduler: str | None = option(
        None,
        help="learning-rate schedule in the first task",
        choices=(None, "constant", "cosine", "step", "warm_restarts"),
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
    budget: float | None = option(
        None,
        help="computation for every batch that arrives, in units of a step of finetuning on it; a method whose steps cost more "
        "misses batches; null: the stream waits",
        above=0,
    )
    steps_per_batch: int = option(
        1,
        help="optimizer steps on every batch before the next one comes; with epochs=1, online learning with several updates",
        at_least=1,
    )
    drop_last: bool = option(
        False,
        help="leave out an epoch's last batch where it is not full (and not the only one), as van de Ven et al. 2022 do",
    )
    microbatch: int | None = option(
        None,
        help="samples of a batch (and of a run) that pass through the network at a time; the step is that of the whole batch, "
        "for one more forward pass; what strategies send through a network by themselves is not cut; null: all",
        at_least=1,
    )
    optimizer: str = option("sgd", help="optimizer", choices=("sgd", "adam", "adamw", "adagrad"))
    lr: float = option(0.01, help="learning rate", above=0)
    momentum: float = option(0.9, help="momentum of SGD", at_least=0, at_most=1)
    weight_decay: float = option(0.0, help="weight decay of the optimizer", at_least=0)
    scheduler: str = option(
        "constant",
        help="learning-rate schedule within each task",
        choices=("constant", "cosine", "step", "warm_restarts"),
    )
    milestones: list[float] = option(
        [0.5, 0.75], help="scheduler=step: fractions of the task's steps at which lr drops"
    )
    gamma: float = option(0.1, help="scheduler=step: factor by which lr drops", above=0)
    restarts: int = option(
        7,
        help="scheduler=warm_restarts: a task's steps are cut into 2^restarts equal parts (with 7, an epoch each of 128); lr is "
        "a tenth in the first, then falls by half a cosine over 1, 2, 4, … parts, and starts anew with each",
        at_least=1,
        at_most=20,
    )
    lr_min: float = option(0.0, help="scheduler=warm_restarts: what lr falls towards", at_least=0)
    reset_optimizer: bool = option(True, help="new optimizer state (momentum, moments) for every task")
    adam_steps: str = option(
        "all",
        help="optimizer=adam or adamw: steps that bias correction counts, all of the optimizer; or each weight's own, from 0 "
        "again where a task draws it anew, as torch counts those of heads that are modules of their own",
        choices=("all", "own"),
    )
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
    kl_from: int | None = option(
        None,
        help="at every task's end, record the KL divergence of the network's answers from those it gave after so many tasks; "
        "0: at the start of the run, 1: after a first task that warms it up; null never",
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
    step_cost: bool = option(
        False,
        help="count the floating-point operations of a step in the last task, in units of a step of finetuning; the report then "
        "says what each method computes, and its ACC per unit of that",
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
    protocol: ProtocolConfig | None = None
    plus: dict[str, Any] = option({}, help="options of the strategies in strategy.plus, by name")
    seed: int = option(0, help="seed of every random stream of the run", at_least=0)
    device: str = option("auto", help="auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    progress: bool = option(True, help="show the progress bar")


def typed(composed: DictConfig) -> RunConfig:
    """The checked configuration of a run, as dataclasses; Hydra's own part is left out.

    Raises:
        ConfigError: a value is missing, out of bounds or not among the choices.
    """
    config = to_dataclass(without_hydra(composed))
    check_fields(config, "")
    return config


def without_hydra(composed: DictConfig) -> DictConfig:
    """The run's own part of a configuration: the same one where it is all."""
    if "hydra" not in composed:
        return composed
    own = composed.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own
