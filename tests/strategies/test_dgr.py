"""DGR: the bound of the generator, and what is replayed with which labels."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clbench.models.vae import VAE
from clbench.seeding import hashed_normal
from clbench.testing.stepping import finish_stage

DGR = ["strategy=dgr", "strategy.hidden=[12]", "strategy.latent=5", "trainer.optimizer=adam"]


def keyed(seed):
    return {"dgr.key": torch.tensor([seed])}


def noise_of(columns, n):
    return hashed_normal(columns["dgr.key"][0], 3 * n * 5).float().view(3, n, 5)


def test_the_bound_is_that_of_its_definition():
    """Against torch.distributions, image by image; and its mean over draws is below the exact log likelihood."""
    torch.manual_seed(0)
    vae, pixels = VAE(6, [7], 2).double(), torch.rand(4, 6).double()
    noise = torch.randn(4, 2).double()
    found = vae.losses(pixels, noise)
    for row in range(4):
        h = vae.encoder(pixels[row])
        posterior = torch.distributions.Normal(vae.mean(h), (vae.log_variance(h) / 2).exp())
        z = posterior.loc + noise[row] * posterior.scale
        p = vae.decoder(z).sigmoid()
        log_likelihood = (pixels[row] * p.log() + (1 - pixels[row]) * (1 - p).log()).sum()
        prior = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
        divergence = torch.distributions.kl_divergence(posterior, prior).sum()
        torch.testing.assert_close(found[row], -(log_likelihood - divergence) / 6)
    binary = pixels.round()
    z = torch.randn(20_000, 2).double()
    each = -F.binary_cross_entropy_with_logits(
        vae.decoder(z)[:, None].expand(-1, 4, -1), binary.expand(20_000, 4, 6), reduction="none"
    )
    exact = each.sum(2).logsumexp(0) - torch.tensor(20_000.0).log()
    bound = -6 * torch.stack([vae.losses(binary, torch.randn(4, 2).double()) for _ in range(500)]).mean(0)
    assert (bound <= exact).all()


@pytest.mark.parametrize("setting", [["scenario=split_digits"], ["scenario=split_digits", "scenario.logit_scope=all"],
                                     ["scenario=split_digits_task"]])  # fmt: skip
def test_the_losses_are_those_of_the_paper(setting, small_trainer, batch_of):
    trainer = small_trainer(*DGR, *setting)
    strategy, model = trainer.learner.strategies[0], trainer.learner.model
    for _ in range(2):
        trainer.fit_task()
    teacher, decoder = copy.deepcopy(model), copy.deepcopy(strategy.generator.decoder)
    trainer.begin_task()
    for _ in range(3):
        trainer.advance()
    batch = batch_of(trainer, trainer.scenario.train.ids(2)[:6], columns=keyed(11))
    terms = trainer.learner.loss(batch)
    noise, x = noise_of(batch.columns, 6), batch.samples.x
    pixels = decoder(noise[1]).sigmoid()
    generated = (pixels.view_as(x) - strategy.mean) / strategy.std
    z, z_before = model(generated), teacher(generated)
    heads = [[2 * t, 2 * t + 1] for t in range(2)]
    replay = []
    if "scenario=split_digits_task" in setting:
        for row in range(6):
            of_heads = [F.cross_entropy(z[row, head], z_before[row, head].argmax()) for head in heads]
            replay.append(torch.stack(of_heads).mean())
    else:
        seen = 10 if len(setting) > 1 else 6
        replay = [F.cross_entropy(z[row, :seen], z_before[row, :4].argmax()) for row in range(6)]
    torch.testing.assert_close(terms["replay"], 2 / 3 * torch.stack(replay).mean())
    torch.testing.assert_close(terms["new"], 1 / 3 * strategy.cross_entropy(model(x), batch.samples).mean())
    own = x.flatten(1) * strategy.std.item() + strategy.mean.item()
    new, old = strategy.generator.losses(own, noise[0]).mean(), strategy.generator.losses(pixels, noise[2]).mean()
    torch.testing.assert_close(terms["generator"], new / 3 + 2 * old / 3)


def test_classifier_and_generator_do_not_train_each_other(small_trainer, record_terms):
    trainer = small_trainer(*DGR)
    rows = record_terms(trainer)
    trainer.fit_task()
    trainer.fit_task()
    n_model = trainer.learner.strategies[0].flat_parameters().numel()
    for task, _, gradients in rows:
        assert not gradients["generator"][:n_model].any()
        assert not gradients["new"][n_model:].any()
        assert gradients["generator"][n_model:].any()
        if task:
            assert gradients["replay"][:n_model].any()
            assert not gradients["replay"][n_model:].any()


def test_what_replays_is_the_generator_as_it_was_before_the_task(small_trainer):
    trainer = small_trainer(*DGR)
    strategy = trainer.learner.strategies[0]
    trainer.fit_task()
    before = copy.deepcopy(strategy.generator.decoder.state_dict())
    trainer.fit_task()
    assert all(torch.equal(tensor, before[name]) for name, tensor in strategy.previous.state_dict().items())
    assert not all(
        torch.equal(tensor, before[name]) for name, tensor in strategy.generator.decoder.state_dict().items()
    )


def test_every_step_has_noise_of_its_own(small_trainer):
    trainer = small_trainer(*DGR)
    trainer.begin()
    keys = []
    for _ in range(2):
        trainer.begin_task()
        keys += [int(step.columns["dgr.key"]) for step in trainer.steps]
        finish_stage(trainer)
        trainer.end_task()
    assert len(set(keys)) == len(keys) == 8


def test_a_projection_beside_it_leaves_the_generators_gradient_alone(small_trainer):
    """A-GEM's projection is of the network's weights; the gradients of others' own weights pass by it."""
    trainer = small_trainer(*DGR, "strategy.plus=[agem]", "+plus.agem.memory_size=20")
    learner, seen = trainer.learner, []
    edit = learner.edit_gradients
    learner.edit_gradients = lambda gradient, batch: seen.append((gradient, edit(gradient, batch))) or seen[-1][1]
    for _ in range(3):
        trainer.fit_task()
    n_model = learner.strategies[0].flat_parameters().numel()
    assert all(torch.equal(before[n_model:], after[n_model:]) for before, after in seen)
    assert any(not torch.equal(before[:n_model], after[:n_model]) for before, after in seen)
    assert all(before[n_model:].any() for before, _ in seen)
