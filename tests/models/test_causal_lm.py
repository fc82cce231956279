"""Causal language models: transformers' own forward pass and generation are what they are held against."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clbench.config import DataConfig
from clbench.data.text import tokens
from clbench.errors import ConfigError
from clbench.models.answers import SpokenLabels
from clbench.models.causal_lm import CausalLM, CausalLMConfig
from clbench.models.continual import ContinualModel
from clbench.scenarios.scenario import Samples

SIZES = {"kind": "causal_lm", "name": "causal_lm"}
TEXTS = ["please cook", "a", "ride the bus to the end:", "pay"]
ANSWERS = [ord(letter) for letter in "xyzab"]


@pytest.fixture(scope="module")
def whole():
    """transformers' language model with weights that are large enough for its next token to depend on the text."""
    from transformers import LlamaForCausalLM

    import clbench.models.causal_lm as module

    torch.manual_seed(0)
    made: LlamaForCausalLM = module._random(CausalLMConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def saved(whole, tmp_path):
    whole.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def network(saved, length=32):
    return CausalLM(CausalLMConfig(**SIZES, path=str(saved)), (length,)).eval()


def rows(length=32):
    return torch.from_numpy(tokens(TEXTS, DataConfig(length=length)))


def speaker(saved, setting="class", length=32):
    """A model that says one of five letters, two of them in the first task."""
    return ContinualModel(
        network(saved, length), [[0, 1], [2, 3, 4]], setting, head="verbaliser", answer_tokens=ANSWERS
    ).eval()


def test_the_blocks_compute_what_transformers_computes_bit_for_bit(whole, saved):
    x = rows()
    with torch.no_grad():
        states = whole.model(input_ids=(x - 1).clamp(min=0).long()).last_hidden_state
        found = network(saved)(x)
    assert torch.equal(found, states[torch.arange(len(x)), (x > 0).sum(1) - 1])


def test_what_fills_a_row_up_and_other_texts_change_nothing(saved):
    lm = network(saved)
    with torch.no_grad():
        together, longer = lm(rows()), lm(rows(length=64))
        alone = torch.cat([lm(row[row > 0][None]) for row in rows()])
    torch.testing.assert_close(longer, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("n", range(6))
def test_it_goes_on_after_any_of_its_stages(n, saved):
    model, x = speaker(saved), rows()
    with torch.no_grad():
        whole = model(x)
        h = model.prefix(x, n)
        with model.after_prefix(n):
            assert torch.equal(model(h), whole)
    assert len(model.stages()) == 5


def test_it_runs_under_vmap(saved):
    lm = network(saved)
    with torch.no_grad():
        stacked = torch.vmap(lm)(torch.stack([rows(), rows().flip(0)]))
        torch.testing.assert_close(stacked[1].flip(0), lm(rows()), rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_language_models_own_over_the_vocabulary(whole, saved):
    """Twice: as transformers computes it, and as cross-entropy with one column for all tokens that are no answers."""
    model, y = speaker(saved), torch.tensor([4, 0, 2, 1])
    with torch.no_grad():
        logits = model(rows())
        loss = model.answer.losses(logits, Samples(rows(), y, torch.zeros(4, dtype=torch.int64)))
        for row, label, found in zip(rows(), y.tolist(), loss, strict=True):
            text = row[row > 0].long() - 1
            ids = torch.cat([text, torch.tensor([ANSWERS[label]])])[None]
            expected = whole(input_ids=ids, labels=ids.clone().index_fill_(1, torch.arange(len(text)), -100)).loss
            torch.testing.assert_close(found, expected)
        of_all = F.linear(model.features(rows()), whole.lm_head.weight)
        others = of_all.index_fill(1, torch.tensor(ANSWERS), -torch.inf).logsumexp(1, keepdim=True)
        with_one_more = torch.cat([of_all[:, ANSWERS], others], 1)
        torch.testing.assert_close(loss, F.cross_entropy(with_one_more, y, reduction="none"))


def test_exact_is_what_greedy_generation_says(whole, saved):
    """Over random texts, of which some are answered right, some with another answer of the task, some with neither."""
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(97, 123, rng.integers(1, 20))) for _ in range(200)]
    x = torch.from_numpy(tokens(texts, DataConfig(length=24)))
    said = []
    for text in texts:
        ids = torch.tensor([list(text.encode())])
        said.append(int(whole.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1]))
    # the five tokens that are said most often are the answers, so that all cases occur
    answers = [int(token) for token in np.argsort(-np.bincount(said, minlength=256), kind="stable")[:5]]
    model = ContinualModel(
        network(saved, 24), [[0, 1], [2, 3, 4]], "class", head="verbaliser", answer_tokens=answers
    ).eval()
    model.answer.current_task.fill_(1)
    y = torch.arange(200) % 5
    with torch.no_grad(), model.judged():
        scores = model.answer.judge(model.answer.restrict(model(x), None, predicting=True), y)
    own = [{0, 1} if label < 2 else {2, 3, 4} for label in y.tolist()]
    assert scores[:, 2].tolist() == [float(token == answers[label]) for token, label in zip(said, y, strict=True)]
    assert scores[:, 3].tolist() == [
        float(token in {answers[c] for c in of}) for token, of in zip(said, own, strict=True)
    ]
    assert 0 < scores[:, 2].sum() < scores[:, 3].sum() < 200
    assert (scores[:, 0] >= scores[:, 2]).all()  # of all answers that may be given the likeliest


def test_classes_that_are_not_seen_are_no_options_and_still_spoil_exactness():
    answer = SpokenLabels([[0, 1], [2, 3, 4]], "class")
    logits = torch.log(torch.tensor([[0.3, 0.1, 0.4, 0.0, 0.0, 0.4], [0.3, 0.1, 0.2, 0.0, 0.0, 0.3]]))
    scores = answer.judge(answer.restrict(logits, None, predicting=True), torch.tensor([0, 0]))
    expected = [[1, -np.log(0.3), 0, 0], [1, -np.log(0.3), 1, 1]]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32))
    of_task = SpokenLabels([[0, 1], [2, 3, 4]], "task")
    scores = of_task.judge(of_task.restrict(logits[:1], torch.tensor([1]), predicting=True), torch.tensor([3]))
    assert scores[0, [0, 2, 3]].tolist() == [0, 0, 1]  # another answer of the task


def test_the_head_is_the_output_layer_and_not_trained(whole, saved):
    model = speaker(saved)
    assert model.head.weight is model.backbone.embed.tokens.weight  # tied, and held once
    assert not any(name.startswith(("head.", "backbone.embed.")) for name in model.trained())
    untied = CausalLMConfig(**SIZES, path=str(saved))
    lm = CausalLM(untied, (8,))
    assert torch.equal(lm.output_weight, whole.lm_head.weight)
    assert "output_weight" not in ContinualModel(lm, [[0, 1]], "class").backbone.__dict__
    assert not any("output" in name for name in lm.state_dict())


@pytest.mark.parametrize(
    ("sizes", "length", "said"),
    [
        ({"heads": 3}, 8, "model.heads=3 does not divide model.width=32 into heads of even width"),
        ({"heads": 32}, 8, "model.heads=32 does not divide model.width=32 into heads of even width"),
        ({"kv_heads": 3}, 8, "model.kv_heads=3 does not divide model.heads=4"),
        ({}, 5000, "data.length=5000 is more than the 4096 tokens"),
    ],
)
def test_sizes_are_checked(sizes, length, said):
    with pytest.raises(ConfigError) as error:
        CausalLM(dataclasses.replace(CausalLMConfig(**SIZES), **sizes), (length,))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral"}, "holds a network of the kind 'mistral'. Valid choices: llama"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "has rotary positions of the kind 'dynamic'. Valid choices: default, linear, llama3",
        ),
    ],
)
def test_other_networks_are_refused(change, said, saved):
    import json

    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError) as error:
        network(saved)
    assert said in str(error.value)
