"""A teacher holds what can change of the network before the task, and shares its frozen weights."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from clbench.learning.parts import teacher as parts
from clbench.learning.parts.teacher import Teacher
from clbench.testing.small_runs import STREAMS, in_double_precision, small_network, small_options
from clbench.testing.stepping import fit_until
from clbench.training.fleet import Fleet

VIT = [*STREAMS["class"], *small_network("lora")]
CASES = {
    "lora": [*small_options("lora"), *VIT, "strategy.plus=[lwf]"],
    "merged": [*small_options("reglora"), *VIT, "strategy.plus=[featkd]"],
    "frozen stages": ["strategy=predkd", *STREAMS["class"], "model=mlp", "model.hidden=[16,12]", "model.frozen=1"],
    "batch norm": ["strategy=lwf", *STREAMS["class"], "model=slim_resnet18", "model.width=2", "model.frozen=3"],
    "exemplars": ["strategy=icarl", *STREAMS["class"], "model=mlp", "model.hidden=[16,12]", "model.frozen=1",
                  "strategy.memory_size=40"],
}  # fmt: skip
in_every_case = pytest.mark.parametrize("case", CASES)
in_three_cases = pytest.mark.parametrize(
    "case",
    [
        "frozen stages",
        "merged",
        "batch norm",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("lora", "exemplars")),
    ],
)


class WholeCopy(nn.Module):
    """A teacher that copies the whole network."""

    def __init__(self, model) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        object.__setattr__(self, "_model", model)

    def remember(self) -> None:
        self.network.load_state_dict(self._model.state_dict())

    def train(self, mode: bool = True) -> "WholeCopy":
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.features(x)


def teacher_of(trainer) -> Teacher:
    return next(strategy.teacher for strategy in trainer.learner if hasattr(strategy, "teacher"))


@in_three_cases
def test_curves_are_those_of_a_whole_copy(case, small_trainer, monkeypatch):
    ours = small_trainer(*CASES[case], checkpoint="ours")
    monkeypatch.setattr(parts, "Teacher", WholeCopy)
    theirs = small_trainer(*CASES[case], checkpoint="theirs")
    assert isinstance(teacher_of(theirs), WholeCopy)
    for trainer in (ours, theirs):
        trainer.fit()
    for table in ("curve", "tasks", "training"):
        pd.testing.assert_frame_equal(getattr(ours, table), getattr(theirs, table), check_exact=True)
    frozen = sum(4 * p.numel() for p in ours.learner.model.parameters() if not p.requires_grad)
    assert frozen
    assert ours.learner.extra_bytes() == theirs.learner.extra_bytes() - frozen


@in_every_case
def test_it_is_the_network_at_the_start_of_the_task(case, small_trainer):
    """In evaluation mode, with merged adapters and statistics as they are then, however the network goes on."""
    trainer = small_trainer(*CASES[case])
    trainer.fit_task()
    trainer.begin_task()
    model, teacher = trainer.learner.model, teacher_of(trainer)
    x = trainer.inputs.plain(trainer.scenario.train, torch.arange(8)).x
    with torch.no_grad():
        model.eval()
        at_start = model(x), model.features(x)
    trainer.train_mode()
    trainer.advance()
    trainer.advance()
    with torch.no_grad():
        assert torch.equal(teacher(x), at_start[0])
        assert torch.equal(teacher.features(x), at_start[1])
        assert not torch.equal(model.eval()(x), at_start[0])


@in_three_cases
def test_a_fleet_member_equals_its_run_alone(case, small_trainer):
    """Two seeds, so that frozen weights differ between the members, of which one teacher makes do with its own."""
    common = [*CASES[case], "evaluator.every=0"]
    together = [in_double_precision(small_trainer(*common, f"seed={s}", checkpoint=f"fleet{s}")) for s in (0, 1)]
    Fleet(together).fit()
    for seed, member in enumerate(together):
        alone = in_double_precision(small_trainer(*common, f"seed={seed}", checkpoint=f"alone{seed}"))
        alone.fit()
        pd.testing.assert_frame_equal(member.training, alone.training, rtol=1e-6, atol=1e-7)
        pd.testing.assert_frame_equal(member.tasks, alone.tasks, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["lora", pytest.param("batch norm", marks=pytest.mark.slow)])
def test_an_older_checkpoint_with_the_whole_teacher_loads(case, small_trainer):
    whole = small_trainer(*CASES[case], checkpoint="whole")
    whole.fit()
    killed = small_trainer(*CASES[case], "record.checkpoint_seconds=0", checkpoint="killed")
    fit_until(killed, 6)
    teacher = teacher_of(killed)
    name = next(name for name, module in killed.learner.named_modules() if module is teacher)
    state = torch.load(killed.checkpoint, weights_only=True)
    del state["left_out"]
    now = killed.learner.state_dict()
    state["learner"] = {key: tensor for key, tensor in now.items() if not key.startswith(f"{name}.")}
    state["learner"] |= {f"{name}.{key}": tensor for key, tensor in teacher.weights().items()}
    torch.save(state, killed.checkpoint)
    resumed = small_trainer(*CASES[case], checkpoint="killed")
    resumed.fit()
    pd.testing.assert_frame_equal(resumed.curve, whole.curve)
    pd.testing.assert_frame_equal(resumed.training, whole.training)


def test_what_it_shares_may_not_become_trained(small_trainer):
    trainer = small_trainer(*CASES["lora"])
    next(p for p in trainer.learner.model.parameters() if not p.requires_grad).requires_grad_(True)
    with pytest.raises(AssertionError, match="which were frozen when the teacher was made"):
        teacher_of(trainer).remember()


def test_tensors_with_two_names_are_there_under_both(small_setup):
    model = small_setup("strategy=finetune", "model=mlp", "model.hidden=[16,16,16]").learner.model
    layers = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    layers[2].weight, layers[2].bias = layers[1].weight, layers[1].bias
    teacher, x = Teacher(model), torch.randn(4, 1, 8, 8)
    expected = model.eval()(x)
    with torch.no_grad():
        layers[2].weight.add_(1)
    assert torch.equal(teacher(x), expected)
    teacher.remember()
    assert torch.equal(teacher(x), model(x))


@pytest.mark.slow
def test_compiled_it_is_the_same(small_trainer):
    """Alone and in a fleet, where others' weights are put in."""
    common = [*CASES["frozen stages"], "evaluator.every=0", "scenario.tasks=2", "trainer.max_steps_per_task=2"]
    eager, alone, *members = (
        small_trainer(*common, f"trainer.compile={how}", f"seed={seed}", checkpoint=tag)
        for how, seed, tag in (("off", 0, "eager"), ("max", 0, "alone"), ("max", 0, "first"), ("max", 1, "second"))
    )
    eager.fit()
    alone.fit()
    Fleet(members).fit()
    for trainer in (alone, members[0]):
        pd.testing.assert_frame_equal(trainer.training, eager.training, rtol=1e-3, atol=1e-4)
