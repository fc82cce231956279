"""``trainer.microbatch``: gradients from pieces of a batch are those of the whole batch, or the run is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from streams import IN_TURN
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from clbench.errors import ConfigError
from clbench.evaluation.evaluator import COLUMNS, as_table
from clbench.learning.base import Batch, Outputs
from clbench.learning.microbatch import backward_in_pieces, pieces_of
from clbench.learning.traits import traits_of
from clbench.registry import STRATEGIES
from clbench.scenarios.scenario import Samples
from clbench.testing.small_runs import STREAMS, in_double_precision, small_network, small_options
from clbench.testing.stepping import finish_stage
from clbench.training.fleet import Fleet
from clbench.training.optimizers import flatten_gradients
from clbench.training.trainer import Trainer


@pytest.mark.parametrize("case", IN_TURN)
def test_gradients_are_those_of_the_whole_batch(case, monkeypatch):
    """At every step of two tasks, for every strategy that accepts it."""
    name = case.strategy
    if name in ("dualprompt", "ilora", "l2p"):
        with pytest.raises(ConfigError, match=f"{name} looks at what the whole batch leaves within the network"):
            case.trainer("trainer.microbatch=3")
        return
    whole = in_double_precision(
        case.trainer("trainer.microbatch=3", "evaluator.every=0", "trainer.max_steps_per_task=2")
    )
    options = whole.learner.strategies[0].options
    follow, n_compared = whole._follow_gradient, 0

    def gradient() -> list[torch.Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in whole.parameters]

    def compared(task: int, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal n_compared
        whole.optimizer.zero_grad()
        terms, outputs = whole.learner.loss_and_outputs(batch)
        sum(terms.values()).backward()
        of_whole = gradient()
        in_pieces, found = whole._differentiate_in_pieces(batch, 3)
        assert terms.keys() == in_pieces.keys()
        for term, of_pieces in zip(terms.values(), in_pieces.values(), strict=True):
            torch.testing.assert_close(of_pieces, term, rtol=1e-10, atol=1e-10)
        for one, other in zip(of_whole, gradient(), strict=True):
            assert (one is None) == (other is None)  # optimizers leave out what has no gradient
            if one is not None:
                torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
        if outputs is not None:
            torch.testing.assert_close(found.logits, outputs.logits, rtol=1e-10, atol=1e-10)
        n_compared += 1
        return follow(task, batch)

    monkeypatch.setattr(whole, "_follow_gradient", compared)
    monkeypatch.setattr(whole.evaluator, "evaluate_full", lambda *_: as_table(np.empty((0, len(COLUMNS)))))
    whole.fit_task()
    whole.begin_task()
    finish_stage(whole)
    while whole.begin_stage():
        finish_stage(whole)
    assert n_compared or "learns without gradients" in traits_of(STRATEGIES[name], options)


def sizes_seen(trainer: Trainer) -> set[int]:
    """A set that fills with the numbers of samples that pass through the network's head at a time in training."""
    seen: set[int] = set()
    head = trainer.learner.model.head
    head.register_forward_hook(lambda head, inputs, output: seen.add(len(output)) if head.training else None)
    return seen


ER = ["strategy=er", "strategy.memory_size=40", "scenario.increment=5", "trainer.lr=0.05"]
DERPP = ["strategy=derpp", *ER[1:]]


@pytest.mark.parametrize(("chosen", "size"), [(ER, 1), (DERPP, 3), (ER, 1000)], ids=["er-1", "derpp-3", "er-1000"])
def test_the_run_is_that_of_whole_batches(chosen, size, small_trainer):
    """With replay from the first step on, and what is kept of outputs; at 1000 no batch is cut."""
    runs = [
        in_double_precision(small_trainer(*chosen, f"trainer.microbatch={m}", checkpoint=str(m)))
        for m in ("null", size)
    ]
    sizes = sizes_seen(runs[1])
    for run in runs:
        run.fit()
    assert max(sizes) == min(size, max(len(step.ids) for step in runs[1].steps))
    for table in ("curve", "tasks", "training"):
        pd.testing.assert_frame_equal(*(getattr(run, table) for run in runs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["derpp", "hypernetwork", *(pytest.param(n, marks=pytest.mark.slow) for n in ("outliers", "lora", "dst"))],
)
def test_a_fleet_member_equals_its_run_alone_of_whole_batches(name, small_trainer):
    setting = STRATEGIES[name].needs.settings[0]
    common = [
        *small_options(name),
        *STREAMS[setting],
        *small_network(name),
        "trainer.clip_grad_norm=1.0",
        "evaluator.every=0",
    ]
    members = [[*common, f"seed={seed}", f"trainer.lr={lr}"] for seed, lr in ((0, 0.05), (1, 0.02))]
    together = [
        in_double_precision(small_trainer(*member, "trainer.microbatch=3", checkpoint=f"fleet{i}"))
        for i, member in enumerate(members)
    ]
    sizes = sizes_seen(together[0])
    Fleet(together).fit()
    assert name in ("hypernetwork", "dst") or max(sizes) == 3  # the two make the head's weights, and do not call it
    for number, (member, run) in enumerate(zip(together, members, strict=True)):
        alone = in_double_precision(small_trainer(*run, checkpoint=f"alone{number}"))
        alone.fit()
        pd.testing.assert_frame_equal(member.training, alone.training, rtol=1e-7, atol=1e-8)
        for mine, its in zip(member.parameters, alone.parameters, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision(precision, small_trainer):
    """Weights get gradients through their casts, and fp16's loss scale acts as on the whole batch."""
    runs = [
        small_trainer(*ER, f"trainer.precision={precision}", f"trainer.microbatch={m}", checkpoint=str(m))
        for m in ("null", 3)
    ]
    for run in runs:
        run.fit()
    first, second = (torch.cat([p.detach().flatten() for p in run.parameters]) for run in runs)
    start = torch.cat([p.detach().flatten() for p in small_trainer(*ER).parameters])
    assert (first - second).norm() < 0.1 * (first - start).norm()
    assert runs[0].precision.state_dict() == runs[1].precision.state_dict()


# ---- the pieces -------------------------------------------------------------------------------------------------------


def batch_of(x: torch.Tensor, n_new: int) -> Batch:
    n = torch.arange(len(x))
    return Batch(Samples(x, n, n), n, n_new, columns={"slots": n})


def test_pieces_hold_their_samples_alone():
    pieces = pieces_of(batch_of(torch.arange(8.0)[:, None], 5), 3)
    assert [piece.samples.x.flatten().tolist() for piece in pieces] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [piece.n_new for piece in pieces] == [3, 2, 0]
    assert all(piece.columns == {} for piece in pieces)


def network_and_loss():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()

    def outputs_of(piece: Batch) -> Outputs:
        features = network[1](network[0](piece.samples.x))
        return Outputs(features, network[2](features))

    def terms_of(batch: Batch, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Samples are compared with each other, features are looked at too, and a random number is drawn."""
        similar = F.normalize(outputs.features) @ F.normalize(outputs.features).T
        return {
            "contrast": similar.logsumexp(1).mean() * torch.rand(()),
            "largest": outputs.logits.max(0).values.square().sum(),
            "weights": network[0].weight.square().sum(),
        }

    return network, outputs_of, terms_of


def test_dropout_is_the_same_in_both_passes():
    """A loss that is no sum over samples; the numbers drawn are those of one pass in pieces, and so are the ones after it."""
    network, outputs_of, terms_of = network_and_loss()
    batch = batch_of(torch.randn(8, 4, dtype=torch.float64), 8)
    torch.manual_seed(1)
    outputs = Outputs(*(torch.cat(parts) for parts in zip(*map(outputs_of, pieces_of(batch, 3)), strict=True)))
    sum(terms_of(batch, outputs).values()).backward()
    expected, next_number = flatten_gradients(list(network.parameters())), torch.rand(1)
    network.zero_grad()
    torch.manual_seed(1)
    _, found = backward_in_pieces(batch, 3, outputs_of, terms_of)
    torch.testing.assert_close(flatten_gradients(list(network.parameters())), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.logits, outputs.logits)
    assert not found.logits.requires_grad
    assert torch.rand(1) == next_number


def test_casts_of_weights_lead_back_to_them():
    """Within one autocast context, which keeps casts of weights from the first pass on."""
    network, outputs_of, terms_of = network_and_loss()
    network[1].eval()
    network.float()
    batch, gradients = batch_of(torch.randn(8, 4), 8), []
    for size in (8, 3):
        network.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            backward_in_pieces(batch, size, outputs_of, terms_of)
        gradients.append(flatten_gradients(list(network.parameters())))
        assert network[2].weight.grad is not None
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05)


def test_less_is_kept_for_the_backward_pass(small_trainer):
    """Of a batch of 16 in pieces of 2, at no time more than an eighth of the activations, and some."""
    vit = ["model=small_vit", "model.width=16", "model.depth=4", "model.heads=2", "model.image_size=8"]
    trainer = small_trainer("strategy=finetune", "scenario=split_digits", *vit, "trainer.batch_size=16")
    trainer.begin()
    trainer.begin_task()
    samples = trainer.inputs.training(trainer.scenario.train, trainer.steps[0].ids, 0, 0)
    batch, peaks = Batch(samples, trainer.steps[0].ids, 16), []
    for size in (16, 2):
        held = peak = 0

        def pack(tensor: torch.Tensor) -> "Kept":
            nonlocal held, peak
            held += tensor.numel()
            peak = max(peak, held)
            return Kept(tensor)

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor

            def __del__(self) -> None:
                nonlocal held
                held -= self.tensor.numel()

        with saved_tensors_hooks(pack, lambda kept: kept.tensor):
            trainer._differentiate_in_pieces(batch, size)
        peaks.append(peak)
    n_weights = sum(parameter.numel() for parameter in trainer.parameters)
    assert peaks[1] < peaks[0] / 4 + n_weights


# ---- what is refused --------------------------------------------------------------------------------------------------

RESNET = ["model=slim_resnet18", "model.width=2", "scenario.increment=5", "trainer.microbatch=3"]


@pytest.mark.parametrize("policy", ["train", "freeze_after_first_task"])
def test_batch_norm_that_trains_is_refused(policy, small_trainer):
    trainer = small_trainer("strategy=finetune", *RESNET, f"trainer.batch_norm={policy}")
    with pytest.raises(ConfigError, match=r"trainer\.microbatch=3 .* set trainer\.batch_norm=frozen"):
        trainer.begin()
    assert trainer.iteration == 0


def test_batch_norm_that_is_frozen_is_accepted(small_trainer):
    runs = [
        in_double_precision(
            small_trainer(
                "strategy=finetune",
                *RESNET[:-1],
                "trainer.batch_norm=frozen",
                f"trainer.microbatch={m}",
                checkpoint=str(m),
            )
        )
        for m in ("null", 3)
    ]
    for run in runs:
        run.fit()
    pd.testing.assert_frame_equal(*(run.training for run in runs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("evaluator.diagnostics_every=1", r"evaluator\.diagnostics_every=0"),
        ("trainer.compile=max", r"trainer\.compile=auto"),
    ],
)
def test_options_that_need_the_whole_graph_are_refused(option, named, small_setup):
    with pytest.raises(ConfigError, match=named):
        small_setup("strategy=finetune", "trainer.microbatch=3", option)


def test_ilora_of_last_features_is_accepted(small_setup):
    small_setup(*small_options("ilora"), "strategy.layers=last", *small_network("ilora"), "trainer.microbatch=3")
