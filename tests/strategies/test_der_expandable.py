"""DER (Yan et al. 2021): what grows, what stays, and the losses of its two stages."""

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.testing.stepping import finish_stage, finish_task

DER = ["strategy=der_expandable", "strategy.memory_size=40", "strategy.tuning_epochs=1"]
NETWORKS = [["model=mlp", "model.hidden=[16]"], ["model=slim_resnet18", "model.width=2"]]


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_earlier_extractors_stay_bit_identical_and_their_weights_of_the_head_are_kept(network, small_trainer):
    """With momentum, weight decay and BatchNorm, over all stages of later tasks."""
    trainer = small_trainer(*DER, *network, "trainer.momentum=0.9", "trainer.weight_decay=0.01")
    model = trainer.learner.model
    trainer.begin()
    width, sizes, kept = model.backbone.width, [], []
    for task in range(3):
        head = state_of(model.head)
        trainer.begin_task()
        assert len(model.backbone.extractors) == task + 1
        assert model.head.in_features == width * (task + 1)
        earlier = model.answer.class_task < task
        assert torch.equal(model.head.weight[earlier, : width * task], head["weight"][earlier, : width * task])
        assert torch.equal(model.head.bias[earlier], head["bias"][earlier])
        assert (model.head.weight[:, width * task :] != 0).any(1).all()
        if task:
            begun, before = (state_of(extractor) for extractor in model.backbone.extractors[-2:])
            assert all(torch.equal(begun[name], before[name]) for name in before)
        finish_task(trainer)
        sizes.append(sum(p.numel() for p in model.backbone.parameters()))
        kept.append(state_of(model.backbone.extractors[task]))
        for extractor, then in zip(model.backbone.extractors, kept, strict=True):
            assert all(torch.equal(tensor, then[name]) for name, tensor in extractor.state_dict().items())
    assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]]
    assert not torch.equal(kept[1]["layers.0.weight"] if "layers.0.weight" in kept[1] else next(iter(kept[1].values())),
                           next(iter(kept[0].values())))  # fmt: skip


def test_what_every_stage_trains(small_trainer):
    """The last extractor, the head and the auxiliary classifier; then the head alone, from new weights."""
    trainer = small_trainer(*DER)
    model, strategy = trainer.learner.model, trainer.learner.strategies[0]
    trainer.fit_task()
    trainer.begin_task()
    before, auxiliary = state_of(model), state_of(strategy.auxiliary)
    finish_stage(trainer)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "extractors.1." in name or name.startswith("head.")}
    assert not torch.equal(strategy.auxiliary.weight, auxiliary["weight"])
    trained = state_of(model)
    assert trainer.begin_stage()
    exemplars = strategy.memory.of_classes()
    assert {c: len(ids) for c, ids in exemplars.items()} == dict.fromkeys(range(4), 40 // 4)
    assert set(torch.cat([step.ids for step in trainer.steps]).tolist()) <= set(
        torch.cat([*exemplars.values()]).tolist()
    )
    assert not torch.equal(model.head.weight, trained["head.weight"])
    begun = state_of(model.head)
    finish_stage(trainer)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, trained[name])}
    assert moved == {"head.weight", "head.bias"}
    assert not torch.equal(model.head.weight, begun["weight"])


@pytest.mark.parametrize("sizes", [(4, 3), (2, 4)])
def test_the_losses_are_those_of_the_paper(sizes, small_trainer, batch_of):
    """Sample by sample; tasks of different sizes, so that the auxiliary classifier has outputs that are not in use."""
    stream = [f"scenario.base={sizes[0]}", f"scenario.increment={sizes[1]}"]
    trainer = small_trainer(*DER, "strategy.lam=0.7", *stream, "scenario.frozen=null")
    model, strategy = trainer.learner.model, trainer.learner.strategies[0]
    trainer.fit_task()
    trainer.begin_task()
    for _ in range(3):  # the new extractor begins as a copy of the one before, and is to differ from it here
        trainer.advance()
    split = trainer.scenario.train
    batch = batch_of(trainer, split.ids(1)[:5], split.ids(0)[:4])
    terms = trainer.learner.loss(batch)
    x, y = batch.samples.x, batch.samples.y
    seen = sum(len(classes) for classes in trainer.scenario.task_classes[:2])
    of_task = trainer.scenario.task_classes[1]
    features = [extractor(x) for extractor in model.backbone.extractors]
    new, auxiliary = [], []
    for row, label in enumerate(y.tolist()):
        logits = model.head(torch.cat([f[row] for f in features]))[:seen]
        new.append(F.cross_entropy(logits, torch.tensor(label)))
        logits = strategy.auxiliary(features[1][row])[: 1 + len(of_task)]
        auxiliary.append(F.cross_entropy(logits, torch.tensor(1 + of_task.index(label) if label in of_task else 0)))
    torch.testing.assert_close(terms["new"], torch.stack(new).mean())
    torch.testing.assert_close(terms["auxiliary"], 0.7 * torch.stack(auxiliary).mean())
    finish_stage(trainer)
    assert trainer.begin_stage()
    (term,) = trainer.learner.loss(batch).values()
    logits = model.head(model.features(x))[:, :seen]
    torch.testing.assert_close(term, F.cross_entropy(logits / 5, y))


def test_the_first_task_is_that_of_finetuning(small_trainer):
    mine, finetune = small_trainer(*DER), small_trainer("strategy=finetune", checkpoint="other")
    mine.fit_task(), finetune.fit_task()
    within = ~mine.curve.consolidated
    assert mine.curve[within].equals(finetune.curve)


def test_momentum_of_what_was_there_is_kept_where_the_optimizer_is(small_trainer):
    trainer = small_trainer(*DER, "trainer.momentum=0.9", "trainer.reset_optimizer=false", "strategy.tuning_epochs=1")
    trainer.fit_task()
    auxiliary, head = trainer.learner.strategies[0].auxiliary, trainer.learner.model.head
    trainer.begin_task()
    trainer.advance()
    before = trainer.optimizer.state[auxiliary.weight]["momentum_buffer"].clone()
    known = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert id(head.weight) not in known  # it has become wider
    assert all(id(p) not in known for p in trainer.learner.model.backbone.extractors[0].parameters())
    finish_task(trainer)
    trainer.begin_task()
    assert torch.equal(trainer.optimizer.state[auxiliary.weight]["momentum_buffer"] != 0, before != 0)


def test_looking_between_networks_of_other_sizes_is_refused(small_setup):
    with pytest.raises(ConfigError, match=r"connectivity_points=3 .* der_expandable adds weights"):
        small_setup(*DER, "evaluator.connectivity_points=3")
