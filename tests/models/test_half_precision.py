"""``model.frozen_dtype=bf16``: frozen weights take half the memory, and nothing else changes but their rounding."""

import pandas as pd
import pytest
import torch
from torch import nn

from clbench.errors import ConfigError
from clbench.models.half_precision import hold_frozen_in_half
from clbench.testing.small_runs import STREAMS, in_double_precision, small_network, small_options
from clbench.testing.stepping import fit_until
from clbench.training.fleet import Fleet

LORA = [*small_options("lora"), *STREAMS["class"], *small_network("lora")]
BF16 = "model.frozen_dtype=bf16"
CASES = {
    "lora": LORA,
    "prompts": [*small_options("l2p"), *STREAMS["class"], *small_network("l2p")],
    "teacher": ["strategy=lwf", *STREAMS["class"], "model=mlp", "model.hidden=[16,12]", "model.frozen=1"],
    "teacher of lora": [*LORA, "strategy.plus=[lwf]"],
    "convolutions": [*small_options("icarl"), *STREAMS["class"], "model=slim_resnet18", "model.width=2", "model.frozen=3",
                     "trainer.batch_norm=frozen"],
}  # fmt: skip


def rounded(trainer):
    """The trainer, not begun, with frozen weights that are rounded and held in float32."""
    layers = [m for m in trainer.learner.model.modules() if type(m) in (nn.Linear, nn.Conv2d, nn.Embedding)]
    for layer in layers:
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.weight.data.copy_(layer.weight.to(torch.bfloat16).float())
    return trainer


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c in ("prompts", "convolutions") else ()) for c in CASES],
)
def test_the_run_is_that_of_rounded_weights(case, small_trainer):
    """In fp32 to the bit: with adapters, prompts, teachers, herding outside of autocast and evaluations."""
    held, reference = small_trainer(*CASES[case], BF16), rounded(small_trainer(*CASES[case], checkpoint="reference"))
    types = {p.dtype for p in held.learner.model.parameters() if p.requires_grad}
    assert types == {torch.float32}
    assert any(p.dtype == torch.bfloat16 for p in held.learner.model.parameters())
    assert {buffer.dtype for buffer in held.learner.buffers()} == {b.dtype for b in reference.learner.buffers()}
    for trainer in (held, reference):
        trainer.fit()
    for table in ("curve", "tasks", "training"):
        pd.testing.assert_frame_equal(getattr(held, table), getattr(reference, table), check_exact=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_under_autocast(precision, small_trainer):
    """bf16 rounds the weights for every product anyhow."""
    held, usual = (
        small_trainer(*LORA, f"trainer.precision={precision}", *options, checkpoint=f"{len(options)}")
        for options in ([BF16], [])
    )
    for trainer in (held, usual):
        trainer.fit()
    if precision == "bf16":
        pd.testing.assert_frame_equal(held.training, usual.training, check_exact=True)
    assert held.training.loss.notna().all()


def test_frozen_weights_take_half_the_memory(small_setup):
    options = ["strategy=lora", "scenario=split_digits", "model=small_vit"]
    usual, held = (
        [p for p in small_setup(*options, *more).learner.model.parameters() if not p.requires_grad]
        for more in ([], [BF16])
    )
    n_bytes = [sum(p.numel() * p.element_size() for p in parameters) for parameters in (usual, held)]
    assert n_bytes[1] < 0.52 * n_bytes[0]


def test_members_of_a_fleet_share_it(small_trainer):
    together = [small_trainer(*LORA, BF16, f"seed={seed}", checkpoint=f"fleet{seed}") for seed in (0, 1)]
    Fleet(together).fit()
    for seed, member in enumerate(together):
        alone = small_trainer(*LORA, BF16, f"seed={seed}", checkpoint=f"alone{seed}")
        alone.fit()
        pd.testing.assert_frame_equal(member.training, alone.training, rtol=1e-3, atol=1e-4)
        types = [[p.dtype for p in trainer.learner.parameters()] for trainer in (member, alone)]
        assert types[0] == types[1]


def test_a_killed_run_goes_on(small_trainer):
    whole = small_trainer(*LORA, BF16, checkpoint="whole")
    whole.fit()
    killed = small_trainer(*LORA, BF16, "record.checkpoint_seconds=0", checkpoint="killed")
    fit_until(killed, 6)
    resumed = small_trainer(*LORA, BF16, checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(resumed.training, whole.training)


def test_double_precision_is_kept(small_trainer):
    """A layer computes in the precision of what it gets."""
    trainer = in_double_precision(small_trainer(*CASES["teacher"], BF16))
    trainer.fit()
    assert {p.dtype for p in trainer.learner.parameters()} == {torch.float64}


def test_layers_of_other_types_and_trained_ones_are_left_alone():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.MultiheadAttention(4, 2), nn.Embedding(5, 4))
    network[1:].requires_grad_(False)
    names = {name for name, _ in network.named_parameters()}
    assert hold_frozen_in_half(network) == 9 + 20
    assert hold_frozen_in_half(network) == 0
    assert {name for name, _ in network.named_parameters()} == names
    assert network[0].weight.dtype == network[1].bias.dtype == torch.float32
    assert {p.dtype for p in network[2].parameters()} == {torch.float32}
    assert network[1].weight.dtype == network[3].weight.dtype == torch.bfloat16
    assert isinstance(network[1], nn.Linear)
    assert network[3](torch.arange(5)).dtype == torch.float32


def test_where_nothing_is_frozen_and_where_adapters_are_merged_it_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"model\.frozen_dtype=bf16 has no meaning where all layers are trained"):
        small_setup("strategy=finetune", BF16)
    with pytest.raises(ConfigError, match=r"would round away what strategy=reglora merges .* model\.frozen_dtype=fp32"):
        small_setup(*small_options("reglora"), *STREAMS["class"], *small_network("reglora"), BF16)


def test_stages_that_are_cached_are_rounded_too(small_setup):
    options = [*CASES["teacher"], "data.cache_prefix=true"]
    usual, held = (small_setup(*options, *more).scenario.train.store.samples for more in ([], [BF16]))
    difference = (torch.as_tensor(usual) - torch.as_tensor(held)).abs().max()
    assert 0 < difference < 0.1
