"""In which order the images of a run lie in memory."""

import pytest
import torch

SLIM = ["strategy=finetune", "model=slim_resnet18"]


@pytest.mark.parametrize(
    ("model", "is_last"),
    [
        ([*SLIM, "model.width=20"], True),
        ([*SLIM, "model.width=2"], False),  # short cuts of 2, 4 and 8 inputs, where torch writes beyond its memory
        (["strategy=finetune", "model=resnet32", "model.depth=8"], True),
        (["strategy=finetune", "model=mlp"], False),
    ],
)
def test_channels_last_where_it_is_safe(model, is_last, small_setup):
    setup = small_setup(*model, "scenario.increment=5")
    layout = torch.channels_last if is_last else torch.contiguous_format
    assert setup.inputs._memory_format == layout
