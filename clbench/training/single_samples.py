"""Training batches of one sample, from which BatchNorm cannot tell a variance.

A BatchNorm layer that trains refuses to see a single value per channel: one sample, where nothing of height and width is left.
Which networks have such a layer is found by sending one sample through. For them a single sample that an epoch leaves over joins
the batch before it; where batches would have one sample anyhow, the run is refused before anything is trained.
"""

import torch
from torch import nn
from torch.func import functional_call

from clbench.config import TrainerConfig
from clbench.errors import ConfigError
from clbench.learning.learner import Learner
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Scenario


def smallest_batch(model: ContinualModel, shape: tuple[int, ...]) -> int:
    """The fewest samples (C, H, W) that ``model`` can be trained on at a time, in the modes that its modules are in: 1 or 2."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        return 1
    weight = next(model.parameters())
    device, sample = weight.device, torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            functional_call(model, buffers, (sample,))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return 2
    return 1


def refuse_single_samples(scenario: Scenario, learner: Learner, config: TrainerConfig) -> None:
    """Refuse a run in which a network that needs two samples at a time would be given one.

    Raises:
        ConfigError: by the batch size, a task's size, or the samples that a strategy looks at beside the batch.
    """
    trained_later = [] if config.batch_norm == "freeze_after_first_task" else range(1, scenario.n_tasks)
    why = (
        "is too few for this network, in which BatchNorm sees one value per channel of a single sample. Valid choices: at least "
        "2, or trainer.batch_norm=frozen"
    )
    for where, size in (("", config.batch_size), ("first_task.", config.of_task(0).batch_size)):
        if size < 2:
            raise ConfigError(f"trainer.{where}batch_size={size} {why}")
    for task in (0, *trained_later):
        if len(scenario.arriving(task)) < 2:
            raise ConfigError(f"one training sample, all that task {scenario.task_names[task]!r} has, {why}")
    for strategy in learner if trained_later else ():
        fewest = strategy.fewest_looked_at
        if fewest is not None and fewest < 2:
            raise ConfigError(f"one sample, which {strategy.name} would look at by itself at a step, {why}")


def notes_of_joined(scenario: Scenario, learner: Learner, config: TrainerConfig) -> list[str]:
    """What a reader has to know where the last sample of an epoch joins the batch before it."""
    sizes = [len(scenario.arriving(task)) for task in range(scenario.n_tasks)]
    batches = [config.of_task(task).batch_size for task in range(scenario.n_tasks)]
    left_over = any(size % batch == 1 for size, batch in zip(sizes, batches, strict=True)) or any(
        s.needs.all_data for s in learner
    )
    if not left_over or config.batch_norm == "frozen" or config.drop_last:
        return []
    smallest = smallest_batch(learner.model.train(), scenario.input_shape)
    learner.model.eval()
    if smallest == 1:
        return []
    return [
        "where an epoch leaves a single sample over, it joins the batch before: BatchNorm cannot train on one sample"
    ]
