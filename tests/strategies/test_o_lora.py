"""O-LoRA's penalty against its sum written out, and what it does to directions."""

import pytest
import torch

from clbench.testing.small_runs import small_network

O_LORA = ["strategy=o_lora", "strategy.rank=2", "strategy.targets=[q,v,mlp]", *small_network("o_lora"),
          "trainer.optimizer=adam", "trainer.lr=0.01", "evaluator.every=0"]  # fmt: skip


def draw(strategy, seed):
    """Put weights into the adapters, as training might; the layers differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, adapter in enumerate(strategy.adapters().values()):
            adapter.A.copy_((1 + number) * torch.randn(adapter.A.shape, generator=generator))
            adapter.B.copy_(torch.randn(adapter.B.shape, generator=generator))


@pytest.mark.parametrize(("form", "of_entry"), [("absolute", abs), ("squared", lambda x: x * x)])
def test_penalty_is_a_sum_over_layers_earlier_tasks_and_pairs_of_rows(form, of_entry, small_setup, task_of, batch_of):
    """No mean over any of them, every earlier task as much as the last one, and without the factor α / r."""
    setup = small_setup(*O_LORA, f"strategy.form={form}", "strategy.lam=0.7")
    learner = setup.learner
    strategy, batch = learner.strategies[0], batch_of(setup, setup.scenario.train.ids(0)[:4])
    earlier = {name: [] for name in strategy.adapters()}
    assert len(earlier) == 2 * 4
    for index in range(3):
        learner.begin_task(task_of(setup, index))
        draw(strategy, index)
        losses = learner.loss(batch)
        if index:
            total = sum(
                of_entry(sum(a * b for a, b in zip(old, new, strict=True)))
                for name, adapter in strategy.adapters().items()
                for A in earlier[name]
                for old in A.tolist()
                for new in adapter.A.tolist()
            )
            assert losses["o_lora"].item() == pytest.approx(0.7 * total, rel=1e-5)
        else:
            assert "o_lora" not in losses
        for name, adapter in strategy.adapters().items():
            earlier[name].append(adapter.A.detach().clone())
        learner.end_task(task_of(setup, index))


def test_penalty_moves_the_new_directions_alone(small_setup, task_of, batch_of):
    """Its gradient is λ Σ sign(A_i A_tᵀ) on the side of A_t, and nothing for B."""
    setup = small_setup(*O_LORA, "strategy.lam=0.3")
    strategy = setup.learner.strategies[0]
    setup.learner.begin_task(task_of(setup, 0))
    draw(strategy, 0)
    old = {name: adapter.A.detach().clone() for name, adapter in strategy.adapters().items()}
    setup.learner.end_task(task_of(setup, 0))
    setup.learner.begin_task(task_of(setup, 1))
    draw(strategy, 1)
    strategy.penalty(batch_of(setup, setup.scenario.train.ids(1)[:4]), None).backward()
    for name, adapter in strategy.adapters().items():
        torch.testing.assert_close(adapter.A.grad, 0.3 * (old[name] @ adapter.A.T).sign().T @ old[name])
        assert adapter.B.grad is None


def test_directions_become_orthogonal_and_updates_stay_apart(small_trainer, learn_tasks):
    overlaps = {}
    for lam in (0.0, 5.0):
        trainer = small_trainer(*O_LORA, "strategy.form=squared", f"strategy.lam={lam}", "trainer.max_steps_per_task=40",
                                checkpoint=str(lam))  # fmt: skip
        learn_tasks(trainer, 3)
        found = trainer.method[trainer.method.quantity == "overlap"]
        assert found.task_learning.tolist() == [1, 2]  # with what before the first?
        overlaps[lam] = found.value.tolist()
        strategy = trainer.learner.strategies[0]
        cosines = []
        for name, adapter in strategy.adapters().items():
            rows = strategy.get_buffer("earlier_" + name.replace(".", "_"))
            assert torch.equal(rows[4:6], adapter.A)  # of the third task, after those of the first two
            assert rows.shape == (5 * 2, adapter.A.shape[1])
            assert not rows[6:].any()
            cosines += [
                torch.cosine_similarity(old, new, dim=0).abs() for old in rows[:4] for new in adapter.A.detach()
            ]
        assert overlaps[lam][1] == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-5)
    assert max(overlaps[5.0]) < min(overlaps[0.0]) / 3
