"""What a network is made of, in the order in which an image passes through it.

A backbone may have a method ``stages()``: modules by name, whose application one after another is its ``forward``, bit for
bit. Together they hold every parameter and buffer of the backbone, each in one of them. ``model.frozen`` counts these
stages, and what the frozen ones make of an evaluation subset is computed once. A backbone without the method is one stage.
"""

from collections.abc import Callable

from torch import Tensor, nn


class Stage(nn.Module):
    """A stage that is no module of its own in its network: some of the network's methods, and what these work with.

    Made when it is asked for and not kept, so that the parts are those that the network has at that moment.

    Args:
        run: computes the stage.
        parts: the modules and parameters that ``run`` uses, by any name.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], **parts: nn.Module | Tensor | None) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """What ``run`` makes of x."""
        return self.run(x)


def numbered(name: str, modules: nn.Sequential) -> dict[str, nn.Module]:
    """The items of a sequence as stages ``name.0``, ``name.1``, …"""
    return {f"{name}.{index}": module for index, module in enumerate(modules)}
