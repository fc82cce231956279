"""From uint8 images to network inputs, batched on the device."""

import torch
from torch import Tensor

from clbench.config import AugmentConfig
from clbench.data.augment import Augmentation
from clbench.errors import ConfigError
from clbench.scenarios.scenario import Samples, Scenario, Split
from clbench.seeding import stream_seed


class InputPipeline:
    """Scales to [0, 1], augments (training only) and normalises.

    The augmentation of step s of task t is drawn from a generator seeded by (seed, "augmentation", t) and s alone, so
    that it does not depend on what was drawn before, and a resumed run draws the same.

    Args:
        scenario: gives mean and standard deviation.
        augment: what is done at random to training images.
        seed: the run's seed.
        device: the training device.
        memory_format: order of the inputs in memory. Convolutions on a processor are faster over channels-last inputs (slim
            ResNet-18, two cores: 1.5 times in evaluation, 1.1 in training); their weights need not follow.
    """

    def __init__(
        self,
        scenario: Scenario,
        augment: AugmentConfig,
        seed: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.seed, self._of_images = seed, scenario.reads == "images"
        self._memory_format = memory_format
        shape = (1, -1, 1, 1)
        std = torch.tensor(scenario.std)
        self._scale = (1 / (255 * std)).view(shape).to(device)
        self._shift = (-torch.tensor(scenario.mean) / std).view(shape).to(device)
        if not self._of_images and Augmentation.changes_anything(augment):
            raise ConfigError(
                f"scenario.augment is for images, and the samples of {scenario.name} are {scenario.reads}: leave it out"
            )
        self.augmentation = Augmentation(augment) if Augmentation.changes_anything(augment) else None
        self._generator = torch.Generator(device=device)

    def normalise(self, images: Tensor) -> Tensor:
        """float (B, C, H, W): (pixels / 255 − mean) / std of uint8 or float images in 0..255. Other inputs stay as they are."""
        if not self._of_images:
            return images
        x = torch.addcmul(self._shift, images.to(self._scale.dtype), self._scale)
        return x.contiguous(memory_format=self._memory_format)

    def plain(self, split: Split, ids: Tensor) -> Samples:
        """The samples ``ids`` without augmentation."""
        images, labels, tasks = split.take(ids)
        return Samples(self.normalise(images), labels, tasks)

    def training(self, split: Split, ids: Tensor, task: int, step: int) -> Samples:
        """The samples ``ids`` as training sees them at ``step`` of ``task``."""
        images, labels, tasks = split.take(ids)
        if self.augmentation is not None:
            images = self.augmentation.apply(images, self.draw(images.shape, task, step))
        return Samples(self.normalise(images), labels, tasks)

    def draw(self, shape: torch.Size, task: int, step: int) -> list[Tensor]:
        """The augmentation's parameters for a batch of ``shape`` (B, C, H, W) at ``step`` of ``task``."""
        assert self.augmentation is not None
        self._generator.manual_seed(stream_seed(self.seed, "augmentation", task) + step)
        return self.augmentation.draw(shape[0], shape[-2], shape[-1], self._generator)
