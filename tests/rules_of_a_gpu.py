"""What the pretended device of pretended_cuda.py refuses. Collected by name alone, with the device in place."""

import inspect
import textwrap
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from pretended_cuda import OnDevice
from test_gpu import Killed, on_gpu, options, refuse_syncs, unlike_members

from clbench.data.store import Store
from clbench.evaluation.evaluator import ContinualEvaluator
from clbench.evaluation.stacked import StackedEvaluation
from clbench.learning.base import Strategy
from clbench.scenarios.inputs import InputPipeline
from clbench.training.fleet import Fleet
from clbench.training.trainer import Trainer

HOST, CUDA = torch.arange(6.0), torch.arange(6.0, device="cuda")


@pytest.fixture
def watched():
    """A function that calls with the host's waits as errors."""

    def call(function: Callable):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return call


def test_it_computes():
    assert isinstance(CUDA, OnDevice)
    assert CUDA.is_cuda
    assert CUDA.device == torch.device("cuda:0")
    weights = torch.ones(6, device="cuda", requires_grad=True)
    (CUDA * weights).square().sum().backward()
    assert weights.grad.is_cuda
    assert torch.equal(weights.grad.cpu(), 2 * HOST.square())
    with torch.autocast("cuda", torch.float16):
        assert (CUDA[None] @ CUDA[:, None]).dtype == torch.float16


def test_generators_are_apart():
    torch.manual_seed(3)
    first = torch.rand(4, device="cuda").cpu(), torch.rand(4)
    torch.manual_seed(3)
    torch.rand(2)
    torch.testing.assert_close(torch.rand(4, device="cuda").cpu(), first[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: HOST + CUDA,
        lambda: HOST.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda")),
        lambda: CUDA.index_select(0, torch.zeros(2, dtype=torch.int64)),
        lambda: HOST[torch.zeros(2, dtype=torch.int64, device="cuda")],
        lambda: torch.cat([HOST, CUDA]),
        lambda: HOST.add_(CUDA[0]),
        lambda: torch.nn.functional.linear(CUDA, HOST[None]),
    ],
)
def test_two_devices_do_not_mix(mistake):
    with pytest.raises(RuntimeError, match="same device"):
        mistake()


def test_but_where_they_may(watched):
    assert torch.equal((CUDA * torch.tensor(2.0)).cpu(), 2 * HOST)
    assert torch.equal(CUDA[torch.tensor([1, 2])].cpu(), HOST[1:3])
    assert torch.equal(CUDA.masked_fill(CUDA > 3, 0).cpu(), HOST.masked_fill(HOST > 3, 0))
    watched(lambda: HOST.to("cuda", non_blocking=True))


def test_a_generator_draws_for_its_device():
    generator = torch.Generator("cuda").manual_seed(0)
    assert torch.rand(3, device="cuda", generator=generator).is_cuda
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=generator)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


def test_numpy_takes_a_copy():
    with pytest.raises(TypeError, match="numpy"):
        CUDA.numpy()
    assert CUDA.cpu().numpy().tolist() == HOST.tolist()


@pytest.mark.parametrize(
    "waiting",
    [
        lambda: CUDA.sum().item(),
        lambda: float(CUDA[0]),
        lambda: bool(CUDA[0] > 0),
        lambda: CUDA.tolist(),
        lambda: CUDA.cpu(),
        lambda: HOST.to("cuda"),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: CUDA[CUDA > 2],
        lambda: CUDA.nonzero(),
        lambda: CUDA[[0, 1]],
        lambda: CUDA.masked_select(CUDA > 2),
        lambda: torch.equal(CUDA, CUDA),
        lambda: torch.linalg.cholesky(torch.eye(2, device="cuda")),
        lambda: CUDA.new_tensor([2.0]),
    ],
)
def test_the_host_waits(waiting, watched):
    waiting()
    with pytest.raises(RuntimeError, match="synchronizing"):
        watched(waiting)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="synchronizing"):
        watched(waiting)


def test_files_remember_the_device(tmp_path):
    torch.save({"a": CUDA, "b": HOST}, tmp_path / "state.pt")
    for where, devices in ((None, ("cuda", "cpu")), ("cpu", ("cpu", "cpu")), ("cuda", ("cuda", "cuda"))):
        state = torch.load(tmp_path / "state.pt", map_location=where, weights_only=True)
        assert tuple(state[key].device.type for key in "ab") == devices
        assert state["a"].tolist() == HOST.tolist()


# ---- mistakes in clbench ------------------------------------------------------------------------------------------------


def put(monkeypatch, owner: type, method: str, right: str, wrong: str) -> None:
    """Put a mistake into a method: ``wrong`` in place of ``right`` in its source."""
    function = inspect.unwrap(getattr(owner, method))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{right} is not in {owner.__name__}.{method}"
    namespace: dict = {}
    exec(source.replace(right, wrong), function.__globals__, namespace)
    monkeypatch.setattr(owner, method, namespace[method])


def alone(small_trainer, monkeypatch, *more: str) -> None:
    trainer = small_trainer(*options("finetune", *on_gpu("scenario.augment.flip=true", *more)))
    refuse_syncs(trainer, "advance", monkeypatch)
    trainer.fit()


def unlike(small_trainer, monkeypatch) -> None:
    fleet = Fleet([small_trainer(*member, checkpoint=f"{i}") for i, member in enumerate(unlike_members("device"))])
    refuse_syncs(fleet, "train_step", monkeypatch)
    fleet.fit()


def resumed(small_trainer, monkeypatch) -> None:
    chosen = options("er", *on_gpu("record.checkpoint_seconds=0"))
    killed = small_trainer(*chosen, checkpoint="killed")
    step = killed._train_step

    def step_or_die(*arguments):
        if killed.iteration == 3:
            raise Killed
        step(*arguments)

    monkeypatch.setattr(killed, "_train_step", step_or_die)
    with pytest.raises(Killed):
        killed.fit()
    small_trainer(*chosen, checkpoint="killed").fit()


DATA_LOSS = "self.cross_entropy(outputs.logits, batch.samples).mean()"
MISTAKES = {
    "a table left on the host": (
        *(alone, InputPipeline, "__init__"),
        *("std).view(shape).to(device)", "std).view(shape)"),
    ),
    "a generator of the host for draws on the device": (
        *(alone, InputPipeline, "__init__"),
        *("torch.Generator(device=device)", "torch.Generator()"),
    ),
    "a value read in every step": (
        alone,
        Trainer,
        "_follow_gradient",
        "return terms\n\n    terms =",
        "total.item(); return terms\n\n    terms =",
    ),
    "an index by a mask": (alone, Strategy, "data_loss", DATA_LOSS, f"(lambda l: l[l >= 0].mean())({DATA_LOSS[:-7]})"),
    "a constant made on the device": (
        *(alone, Strategy, "data_loss", DATA_LOSS),
        f"{DATA_LOSS} * torch.tensor(1.0, device=outputs.logits.device)",
    ),
    "a constant made on the host": (alone, Strategy, "data_loss", DATA_LOSS, f"({DATA_LOSS} * torch.ones(1)).sum()"),
    "numbers for numpy from the device": (alone, ContinualEvaluator, "flush", ".cpu().numpy()", ".numpy()"),
    "a copy that blocks": (
        *(lambda *fixtures: alone(*fixtures, "data.placement=host"), Store, "take"),
        *("non_blocking=True", "non_blocking=False"),
    ),
    "a list as an index": (unlike, StackedEvaluation, "_sums", "table[chosen, part]", "table[runs, part]"),
    "a resumed generator's state on the device": (
        *(resumed, Trainer, "_resume"),
        *('torch.set_rng_state(state["rng"].cpu())', 'torch.set_rng_state(state["rng"])'),
    ),
    "resumed rows on the device": (
        *(resumed, Trainer, "_resume"),
        *('state["curve"].cpu().numpy()', 'state["curve"].numpy()'),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake, small_trainer, monkeypatch):
    run, *change = MISTAKES[mistake]
    put(monkeypatch, *change)
    with pytest.raises((RuntimeError, TypeError)):
        run(small_trainer, monkeypatch)


def test_and_without_them_nothing(small_trainer, monkeypatch):
    alone(small_trainer, monkeypatch)
    unlike(small_trainer, monkeypatch)
    resumed(small_trainer, monkeypatch)
    alone(small_trainer, monkeypatch, "data.placement=host")


def test_tables_have_left_the_device(small_trainer):
    trainer = small_trainer(*options("er", *on_gpu()))
    trainer.fit()
    assert isinstance(trainer.curve, pd.DataFrame)
