"""Streams that a causal language model learns from: with adapters, with replay, and saying its answers."""

import dataclasses

import pandas as pd
import pytest
import torch

from clbench.errors import ConfigError
from clbench.set_up import set_up
from clbench.testing.properties import check_resumes, require_close
from clbench.testing.small_runs import SMALL, Case, composed, in_double_precision, small_options, state_of, whole_run
from clbench.training.fleet import Fleet

REQUESTS = ["scenario=small_requests", "model.width=16", "model.depth=2", *SMALL, "trainer.optimizer=sgd"]
SPEAKS = "model.head=verbaliser"


class TextCase(Case):
    """A small run on texts."""

    def setup(self, *overrides):
        return set_up(composed(*small_options(self.strategy), *REQUESTS, *self.overrides, *overrides))


def case(strategy, *overrides):
    return TextCase(strategy, "class", overrides)


def close(mine, its, what, **tolerance):
    assert mine.keys() == its.keys()
    for name, tensor in mine.items():
        require_close(tensor, its[name], f"{name} of {what}", **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


@pytest.mark.parametrize(
    "strategy", ["finetune", "er", "ewc", "lwf", "gem", "agem", "lora", "reglora", "ilora", "o_lora", "osft"]
)
def test_methods_learn_from_texts_and_what_is_said_is_counted(strategy):
    trainer, _ = whole_run(case(strategy, SPEAKS))
    evaluator = trainer.evaluator
    answers, curve = evaluator.answers, trainer.curve
    place = ["task_learning", "iteration", "task_eval", "n", "consolidated"]
    pd.testing.assert_frame_equal(answers[place], curve[place])
    assert (answers.exact <= answers.valid).all()
    assert (answers.exact <= curve.correct).all()
    assert curve.loss.notna().all()
    before = case(strategy, SPEAKS).setup().learner.model
    trained, initial = trainer.learner.model.trained(), dict(before.named_parameters())
    assert trained
    assert all(not torch.equal(tensor, initial[name]) for name, tensor in trained.items() if not name.endswith(".B"))
    frozen = [name for name, p in trainer.learner.model.named_parameters() if not p.requires_grad]
    frozen = [name for name in frozen if not name.endswith("base.weight")]  # into which some merge their updates
    assert all(torch.equal(trainer.learner.model.get_parameter(name), initial[name]) for name in frozen)
    assert "backbone.embed.tokens.weight" in frozen


def test_a_language_model_learns_what_to_say():
    """In 40 steps on one domain: from no valid answer to valid ones alone, and to better ones than before."""
    trainer = case("finetune", SPEAKS).trainer(
        "scenario.tasks=1",
        "trainer.max_steps_per_task=40",
        "trainer.batch_size=16",
        "trainer.optimizer=adam",
        "trainer.lr=0.01",
        "evaluator.every=40",
    )
    trainer.fit()
    answers = trainer.evaluator.answers
    assert answers.valid.iloc[0] == 0
    assert answers.valid.iloc[-1] == answers.n.iloc[-1]


@pytest.mark.parametrize("head", [SPEAKS, "model.head=linear"])
def test_killed_and_resumed_it_is_the_same_run(head, tmp_path):
    one = case("ilora", head)
    check_resumes(one, tmp_path, kill_at=(2, 9))
    if head == SPEAKS:
        again = one.trainer("trainer.scheduler=cosine", "evaluator.every=1", folder=tmp_path)
        again.fit()  # it has been trained to the end: only its tables are read
        pd.testing.assert_frame_equal(again.evaluator.answers, whole_run(one)[0].evaluator.answers)


@pytest.mark.parametrize(
    ("strategy", "overrides"), [("er", ()), ("lora", ("model.frozen=2", "data.cache_prefix=true"))]
)
def test_a_member_of_a_fleet_is_the_run_alone(strategy, overrides):
    members = [["seed=0", "trainer.lr=0.05"], ["seed=1", "trainer.lr=0.02"]]
    together, alone = (
        [in_double_precision(case(strategy, SPEAKS, *overrides).trainer(*m)) for m in members] for _ in range(2)
    )
    Fleet(together).fit()
    for member, trainer in zip(together, alone, strict=True):
        trainer.fit()
        close(state_of(member), state_of(trainer), strategy)
        pd.testing.assert_frame_equal(member.evaluator.answers, trainer.evaluator.answers)
        pd.testing.assert_frame_equal(member.curve, trainer.curve, rtol=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_adapters_go_into_the_blocks_that_are_not_frozen(cached):
    """With their beginning computed once or in every step, the runs are the same."""
    frozen = case("lora", SPEAKS, "model.frozen=2", f"data.cache_prefix={str(cached).lower()}").trainer()
    frozen.fit()
    adapted = {name.split(".adapters")[0] for name in frozen.learner.model.trained()}
    block = "remaining.0" if cached else "blocks.1"
    assert adapted == {f"backbone.{block}.layer.self_attn.{part}_proj" for part in "qv"}
    if cached:
        plain = case("lora", SPEAKS, "model.frozen=2").trainer()
        plain.fit()
        mine, its = (list(trainer.learner.model.trained().values()) for trainer in (frozen, plain))
        for one, other in zip(mine, its, strict=True):
            require_close(one, other, "cached", rtol=1e-4, atol=1e-5)
        pd.testing.assert_frame_equal(frozen.evaluator.answers, plain.evaluator.answers)
        assert frozen.scenario.hash == plain.scenario.hash


def test_a_frozen_network_in_half_precision_is_nearly_the_same():
    half, full = (case("lora", SPEAKS, f"model.frozen_dtype={dtype}").trainer() for dtype in ("bf16", "fp32"))
    assert half.learner.model.head.weight.dtype == torch.bfloat16
    for trainer in (half, full):
        trainer.fit()
    assert (half.curve.loss / full.curve.loss - 1).abs().max() < 0.01


def test_adapters_in_bert():
    trainer = case("lora", "model=text_encoder", "model.width=16", "strategy.targets=[q,k,v,proj,mlp]").trainer()
    trainer.fit()
    adapted = {name.split(".adapters")[0] for name in trainer.learner.model.trained() if not name.startswith("head")}
    assert len(adapted) == 2 * 6
    with pytest.raises(ConfigError, match=r"strategy\.layers=all compares the hidden states of all tokens"):
        case("ilora", "model=text_encoder", "model.width=16").setup()


@pytest.mark.parametrize(
    ("strategy", "overrides", "said"),
    [
        ("icarl", (), "strategy icarl predicts without the network's head"),
        ("slda", (), "strategy slda predicts without the network's head"),
        (
            "l2p",
            ("model.head=linear",),
            "the samples of small_requests are tokens. Valid choices: strategies with adapters",
        ),
        ("lora", ("model.frozen=4",), "model.frozen leaves no block of the transformer to put adapters into"),
        ("er", ("model=text_encoder",), "model.head=verbaliser is the output layer of a language model, and "),
        ("er", ("model.head_scale=2.0",), "model.head_scale=2.0 has no meaning with model.head=verbaliser"),
        ("er", ("data.length=20",), "texts fill all of data.length=20 tokens"),
        ("er", ("trainer.zero_head=true",), "trainer.zero_head=true has no meaning with model.head=verbaliser"),
    ],
)
def test_what_cannot_be_is_refused(strategy, overrides, said):
    with pytest.raises(ConfigError) as error:
        case(strategy, SPEAKS, *overrides).setup()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, "small_requests has classes without any"),
        (("c", "w", "r", "h", "p", "save"), "the answer 'save' of small_requests is 4 tokens of data.tokenizer=None"),
        (("c", "w", "r", "h", "p", "c"), "the classes 'cook' and 'save' of small_requests have the same answer 'c'"),
    ],
)
def test_answers_have_to_be_sayable(answers, said):
    from clbench.models.answers import answer_tokens

    scenario = dataclasses.replace(case("er").setup().scenario, answers=answers)
    with pytest.raises(ConfigError) as error:
        answer_tokens(scenario, None)
    assert said in str(error.value)
    if answers is not None and len(set(answers)) < 6:  # those of two tasks that are told apart
        assert answer_tokens(dataclasses.replace(scenario, setting="task"), None) == [ord(answer) for answer in answers]
