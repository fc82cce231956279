"""Checkpoints hold what is trained or has changed, and the SHA-256 of the frozen weights that a run starts with."""

import pandas as pd
import pytest
import torch

from clbench.errors import DataError
from clbench.learning.stack import share_frozen
from clbench.testing.small_runs import STREAMS, small_network, small_options
from clbench.testing.stepping import fit_until
from clbench.training.frozen_weights import sha256_of


def options(name: str) -> list[str]:
    return [*small_options(name), *STREAMS["class"], *small_network(name), "trainer.lr=0.05"]


def saved(trainer) -> dict:
    return torch.load(trainer.checkpoint, weights_only=True)


def frozen_in(trainer) -> set[str]:
    return {n for n, p in trainer.learner.model.named_parameters(prefix="model") if not p.requires_grad}


def test_frozen_weights_are_named_and_everything_else_is_there(small_trainer):
    """LoRA that never merges: all frozen weights are left out, by the SHA-256 of their values, and no buffer is."""
    trainer = small_trainer(*options("lora"))
    trainer.fit_task()
    state, frozen = saved(trainer), frozen_in(trainer)
    assert frozen
    assert state["left_out"].keys() == frozen
    whole = trainer.learner.state_dict()
    assert state["learner"].keys() == whole.keys() - frozen
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state["learner"].items())
    assert state["left_out"] == {name: sha256_of(whole[name]) for name in frozen}


def test_frozen_weights_that_have_changed_are_there(small_trainer):
    """RegLoRA merges its adapters into the frozen weights at the end of a task."""
    trainer = small_trainer(*options("reglora"))
    before = {name: trainer.learner.state_dict()[name].clone() for name in frozen_in(trainer)}
    trainer.fit_task()
    state, after = saved(trainer), trainer.learner.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed < before.keys()
    assert changed == before.keys() & state["learner"].keys()
    assert state["left_out"].keys() == before.keys() - changed


def test_weights_that_are_frozen_later_are_there(small_trainer):
    """A grown network freezes what an earlier task has trained."""
    trainer = small_trainer(*options("der_expandable"))
    trainer.fit_task()
    trainer.begin_task()
    trainer.save()
    assert frozen_in(trainer)
    assert saved(trainer)["left_out"] == {}


def test_a_change_in_place_that_autograd_does_not_see_is_noticed(small_trainer):
    trainer = small_trainer(*options("lora"))
    name = sorted(frozen_in(trainer))[0]
    trainer.learner.get_parameter(name).data.add_(1)
    trainer.save()
    assert name in saved(trainer)["learner"]
    assert name not in saved(trainer)["left_out"]


@pytest.mark.parametrize("name", [pytest.param("lora", marks=pytest.mark.slow), "reglora"])
def test_an_older_checkpoint_with_everything_loads(name, small_trainer):
    whole = small_trainer(*options(name), checkpoint="whole")
    whole.fit()
    killed = small_trainer(*options(name), "record.checkpoint_seconds=0", checkpoint="killed")
    fit_until(killed, 6)
    state = saved(killed)
    del state["left_out"]
    state["learner"] = killed.learner.state_dict()
    torch.save(state, killed.checkpoint)
    resumed = small_trainer(*options(name), checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(resumed.curve, whole.curve)


def test_another_network_at_the_start_is_refused(small_trainer):
    killed = small_trainer(*options("lora"), "record.checkpoint_seconds=0")
    fit_until(killed, 2)
    name = sorted(frozen_in(killed))[0]
    other = small_trainer(*options("lora"))
    with torch.no_grad():
        other.learner.get_parameter(name).add_(1)
    again = type(other)(
        other.config, other.scenario, other.learner, other.inputs, other.evaluator, other.checkpoint
    )  # as a network from another file would be
    with pytest.raises(DataError, match=rf"other frozen weights .* \(1 of .* such as {name.removeprefix('model.')}\)"):
        again.fit()


def test_what_a_fleet_shares_stays_shared_when_it_goes_on(small_trainer):
    """Of RegLoRA's frozen weights only those get a tensor of their own that the checkpoint brings."""
    killed = small_trainer(*options("reglora"), "record.checkpoint_seconds=0")
    fit_until(killed, 5)
    first, other = small_trainer(*options("reglora"), checkpoint="first"), small_trainer(*options("reglora"))
    share_frozen(first.learner, other.learner)
    before = {name: parameter.clone() for name, parameter in first.learner.model.named_parameters()}
    other.begin()
    left_out = saved(killed)["left_out"]
    for name, parameter in first.learner.model.named_parameters():
        assert torch.equal(parameter, before[name])
        if f"model.{name}" in left_out:
            assert other.learner.model.get_parameter(name).data_ptr() == parameter.data_ptr()


def test_hashes_are_of_values_of_any_type():
    x = torch.arange(4.0)
    assert sha256_of(x) == sha256_of(x.clone().view(2, 2).t().t()) != sha256_of(x + 1)
    assert len({sha256_of(x.to(t)) for t in (torch.float32, torch.bfloat16, torch.int64)}) == 3
    assert sha256_of(torch.tensor(1.0)) == sha256_of(torch.ones(1))
