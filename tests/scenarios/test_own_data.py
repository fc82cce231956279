"""Own data are never recorded under the name of other data."""

import json

import numpy as np
import pytest
from PIL import Image

from clbench.compose import compose
from clbench.errors import ConfigError
from clbench.run import run
from clbench.set_up import set_up

FEW = ["strategy=finetune", "trainer.max_steps_per_task=1", "trainer.batch_size=4", "record.figure=false", "progress=false",
       "model.hidden=[4]", "scenario.increment=2"]  # fmt: skip


@pytest.fixture
def leaves(tmp_path):
    rng = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "herbarium" / "leaves" / label).mkdir(parents=True)
        for i in range(5):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(tmp_path / "herbarium" / "leaves" / label / f"{i}.png")
    return [*FEW, "scenario.source=folder", f"data.root={tmp_path}", "data.folder=herbarium/leaves"]


@pytest.mark.parametrize("frozen", [[], ["scenario.frozen=null"]])
def test_own_data_under_the_name_of_other_data_are_refused_with_a_name_to_take(leaves, frozen):
    with pytest.raises(ConfigError) as error:
        set_up(compose([*leaves, *frozen]))
    assert str(error.value) == (
        "scenario.source=folder is not digits, the data of scenario split_digits, under whose name the run would be recorded: "
        "give it a name of its own, e.g. scenario.name=leaves"
    )


def test_own_data_are_recorded_under_their_name_with_what_was_not_chosen_for_them(leaves, tmp_path):
    summary = run(compose([*leaves, "scenario.name=leaves"]), tmp_path / "run")
    stream = json.loads((tmp_path / "run" / "scenario.json").read_text())
    assert summary["scenario"] == stream["name"] == "leaves"
    assert "not the frozen stream split_digits/v1" in summary["scenario_note"]
    assert (
        "own data: 20 epochs, 1 steps a task at most, batch 4, lr=0.05 and model=mlp suit other data" in stream["note"]
    )
    assert summary["scenario_note"] == stream["note"]
    assert summary["costs"]["peak_memory_of"] in ("run", None)
