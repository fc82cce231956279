"""N-LoRA's penalty against its sum written out, in the paper's form and in the code's, and what each does to updates."""

import pytest
import torch

from clbench.errors import ConfigError
from clbench.testing.small_runs import small_network

N_LORA = ["strategy=n_lora", "strategy.rank=2", "strategy.targets=[q,v]", *small_network("n_lora"),
          "trainer.optimizer=adam", "trainer.lr=0.01", "evaluator.every=0"]  # fmt: skip


def draw(strategy, seed):
    """Put weights into the adapters, as training might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in strategy.adapters().values():
            adapter.A.copy_(torch.randn(adapter.A.shape, generator=generator))
            adapter.B.copy_(torch.randn(adapter.B.shape, generator=generator))


@pytest.mark.parametrize("form", ["update", "inner"])
def test_penalty_is_the_sum_of_all_absolute_entries(form, small_setup, task_of, batch_of):
    """No mean, over layers neither, without the factor α / r; from the first task on, and of the present update alone."""
    setup = small_setup(*N_LORA, "strategy.lam=0.7", f"strategy.form={form}")
    strategy, batch = setup.learner.strategies[0], batch_of(setup, setup.scenario.train.ids(0)[:4])
    for index in range(2):
        setup.learner.begin_task(task_of(setup, index))
        draw(strategy, index)
        total = 0.0
        for adapter in strategy.adapters().values():
            A, B = adapter.A.tolist(), adapter.B.tolist()
            if form == "update":
                total += sum(abs(sum(B[i][k] * A[k][j] for k in range(2))) for i in range(8) for j in range(8))
            else:
                total += sum(abs(sum(A[k][i] * B[i][m] for i in range(8))) for k in range(2) for m in range(2))
        assert setup.learner.loss(batch)["n_lora"].item() == pytest.approx(0.7 * total, rel=1e-5)
        setup.learner.end_task(task_of(setup, index))


def test_the_codes_form_is_blind_to_dense_updates(small_setup, task_of, batch_of):
    """A looks at one half of the inputs and B writes to the other: A B is 0, and B A has as many entries as before."""
    penalties = {}
    for form in ("update", "inner"):
        setup = small_setup(*N_LORA, "strategy.lam=1.0", f"strategy.form={form}")
        strategy = setup.learner.strategies[0]
        setup.learner.begin_task(task_of(setup, 0))
        draw(strategy, 0)
        with torch.no_grad():
            for adapter in strategy.adapters().values():
                adapter.A[:, :4] = 0
                adapter.B[4:] = 0
        penalties[form] = setup.learner.loss(batch_of(setup, setup.scenario.train.ids(0)[:4]))["n_lora"].item()
    assert penalties["inner"] == 0
    assert penalties["update"] > 10


def test_penalty_makes_updates_sparse(small_trainer, learn_tasks):
    shares, sizes = {}, {}
    for lam in (0.0, 0.03):
        trainer = small_trainer(*N_LORA, "strategy.targets=[q,v,mlp]", f"strategy.lam={lam}",
                                "trainer.max_steps_per_task=60", checkpoint=str(lam))  # fmt: skip
        updates, end_task = [], trainer.learner.end_task

        def note_and_end(task, trainer=trainer, updates=updates, end_task=end_task):
            adapters = trainer.learner.strategies[0].adapters().values()
            updates.append([adapter.product().detach().abs() for adapter in adapters])
            end_task(task)

        trainer.learner.end_task = note_and_end
        learn_tasks(trainer, 2)
        shares[lam] = trainer.method[trainer.method.quantity == "near_zero"].value.tolist()
        for share, update in zip(shares[lam], updates, strict=True):
            small = sum(int((size < 0.01 * size.max()).sum()) for size in update)
            assert share == pytest.approx(small / sum(size.numel() for size in update))
        sizes[lam] = [sum(float(size.sum()) for size in update) for update in updates]
    assert all(sparse > 2 * dense for sparse, dense in zip(shares[0.03], shares[0.0], strict=True))
    assert all(small < large for small, large in zip(sizes[0.03], sizes[0.0], strict=True))


def test_the_codes_form_is_refused_where_weights_are_not_square(small_setup):
    with pytest.raises(ConfigError, match=r"strategy\.form=inner multiplies A by B, which the 32×8 weight of .*fc1"):
        small_setup(*N_LORA, "strategy.targets=[q,mlp]", "strategy.form=inner")
