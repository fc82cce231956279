"""Texts: tokens, digests, and networks that read them."""

import json

import numpy as np
import pytest
import torch

from clbench.config import DataConfig
from clbench.data.text import library, model_folder, text_set, tokens
from clbench.errors import ConfigError
from clbench.set_up import network_of, set_up
from clbench.testing.small_runs import composed
from clbench.training.trainer import Trainer

TEXTS = {
    "banking": {"balance": ["how much is there", "my balance please"], "transfer": ["send ten euros", "move money über"]},
    "kitchen": {"recipe": ["how do i cook rice", "a recipe for soup"], "oven": ["is the oven on", "turn the oven off"]},
    "travel": {"visa": ["do i need a visa", "visa for japan"], "flight": ["book a flight", "when does it leave"]},
}  # fmt: skip


@pytest.fixture
def clinc(tmp_path):
    """A folder laid out as CLINC150, with three domains of two intents; the same texts for test in capitals."""
    folder = tmp_path / "clinc150"
    folder.mkdir()
    rows = [[text, intent] for intents in TEXTS.values() for intent, texts in intents.items() for text in texts * 4]
    capitals = [[text.upper(), intent] for text, intent in rows[::4]]
    (folder / "domains.json").write_text(json.dumps({domain: list(intents) for domain, intents in TEXTS.items()}))
    (folder / "data_full.json").write_text(json.dumps({"train": rows, "val": [], "test": capitals, "oos_test": []}))
    return tmp_path


@pytest.fixture
def setup_of(clinc, monkeypatch):
    monkeypatch.setattr("clbench.data.text_sources.verified", lambda source, data, location: data)

    def make(*overrides):
        return set_up(composed("scenario=clinc150_bytes", f"data.root={clinc}", "device=cpu", "progress=false",
                               "record.figure=false", "evaluator.every=1", "trainer.epochs=null", "trainer.max_steps_per_task=3",
                               "trainer.batch_size=4", *overrides))  # fmt: skip

    return make


def config(**options):
    return DataConfig(**options)


def test_bytes_are_raised_by_one_cut_off_and_padded():
    table = tokens(["ab", "ü", "", "abcdef"], config(length=4))
    assert table.dtype == np.int32
    assert table.tolist() == [[98, 99, 0, 0], [0xC3 + 1, 0xBC + 1, 0, 0], [0] * 4, [98, 99, 100, 101]]


def test_a_tokenizer_of_a_folder(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "visa": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = tokens(["a visa", "no visa"], config(tokenizer=str(tmp_path), length=3))
    assert table.tolist() == [[2, 3, 0], [1, 3, 0]]


@pytest.mark.parametrize("name", ["/nowhere", "package:nobody_has_this"])
def test_a_tokenizer_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"data.tokenizer={name}"):
        tokens(["a"], config(tokenizer=name))


def test_the_hash_is_of_the_texts_and_not_of_how_they_are_read():
    whole, cut = (text_set(["how much", "when"], [0, 1], config(length=n)) for n in (16, 3))
    assert whole.content_hash == cut.content_hash
    assert whole.content_hash != text_set(["how much", "When"], [0, 1], config()).content_hash
    assert whole.content_hash != text_set(["how much", "when"], [1, 0], config()).content_hash
    assert whole.content_hash == text_set(["when", "how much"], [1, 0], config()).content_hash


def test_a_domain_is_a_task(setup_of):
    scenario = setup_of("strategy=finetune").scenario
    assert [[scenario.class_names[c] for c in classes] for classes in scenario.task_classes] == [
        list(intents) for intents in TEXTS.values()
    ]
    assert scenario.reads == "tokens"
    assert scenario.input_shape == (64,)


def test_the_network_is_that_of_transformers_with_its_own_mask(setup_of):
    """Text by text, without padding: features are the mean of the last hidden states of transformers' model."""
    setup = setup_of("strategy=finetune", "data.length=24")
    encoder = network_of(setup.config, setup.scenario).backbone.eval()
    x = torch.from_numpy(tokens(["how much", "a recipe for soup", "x"], config(length=24)))
    with torch.no_grad():
        found = encoder(x)
        for row, features in zip(x, found, strict=True):
            alone = row[row > 0][None].long() - 1
            hidden = encoder.network(input_ids=alone).last_hidden_state[0]
            torch.testing.assert_close(features, hidden.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [["strategy=er", "strategy.memory_size=12"], ["strategy=icarl", "strategy.memory_size=12"],
                                     ["strategy=derpp", "strategy.memory_size=12"], ["strategy=ewc"], ["strategy=slda"],
                                     ["strategy=gem", "strategy.memory_size=12"], ["strategy=lwf"], ["strategy=joint"]],
                         ids=lambda options: options[0])  # fmt: skip
def test_methods_learn_from_texts(options, setup_of, tmp_path):
    setup = setup_of(*options)
    trainer = Trainer(setup.config, setup.scenario, setup.learner, setup.inputs, setup.evaluator, tmp_path / "state.pt")
    trainer.fit()
    assert len(trainer.tasks) == 6
    assert trainer.tasks.loss.notna().all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            ["model=mlp"],
            "model.kind=mlp reads images, and the samples of clinc150_bytes are tokens. Valid choices: causal_lm, text_encoder",
        ),
        (["scenario=split_digits", "model=text_encoder"], "model.kind=text_encoder reads tokens"),
        (["strategy=dgr"], "strategy dgr generates images"),
        (["scenario.augment.flip=true"], "scenario.augment is for images"),
        (["scenario.mean=[0.5]"], "scenario.mean=[0.5] is of images"),
        (["scenario.pad=2"], "scenario.pad=2 is of images"),
        (["data.length=1000"], "data.length=1000 is more than the 512 tokens"),
        (["model.vocabulary=100"], "model.vocabulary=100 is fewer than the "),
        (["model.path=package:nobody"], "model.path=package:nobody: no such package"),
        (["model.heads=3"], "model.heads=3 does not divide model.width=32"),
    ],
)
def test_what_is_of_images_is_refused(options, part, setup_of):
    with pytest.raises(ConfigError) as error:
        setup_of("strategy=finetune", *options)
    assert part in str(error.value)


def test_a_token_that_only_a_test_text_has_is_counted_as_well(setup_of, clinc):
    """It had failed at the first evaluation, in torch's words."""
    file = clinc / "clinc150" / "data_full.json"
    texts = json.loads(file.read_text("utf-8"))
    texts["test"][0][0] += "\u07ff"  # bytes DF and BF; the highest of the training texts is the C3 of ü
    file.write_text(json.dumps(texts), "utf-8")
    with pytest.raises(ConfigError, match=r"model\.vocabulary=196 is fewer than the 224 tokens"):
        setup_of("strategy=finetune", "model.vocabulary=196")


def test_the_outermost_folder_of_a_package_is_taken(tmp_path, monkeypatch):
    for folder in ("reads_texts/deep/1_pooling", "reads_texts/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "reads_texts" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = model_folder("package:reads_texts", "model.path", "config.json")
    assert found == tmp_path / "reads_texts" / "model"


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match=r"need no_such_library, .* pip install 'clbench\[text\]'"):
        library("no_such_library")


def test_a_pretrained_network_reads_the_tokens_of_its_own_tokenizer(setup_of, tmp_path):
    setup = setup_of("strategy=finetune")
    network_of(setup.config, setup.scenario).backbone.network.save_pretrained(tmp_path / "weights")
    with pytest.raises(
        ConfigError, match=rf"data\.tokenizer=None makes others: set data\.tokenizer={tmp_path}/weights"
    ):
        setup_of("strategy=finetune", f"model.path={tmp_path}/weights")


def test_texts_that_are_cut_off_are_counted(setup_of):
    assert setup_of("strategy=finetune").scenario.note == ""
    noted = setup_of("strategy=finetune", "data.length=12").scenario.note
    texts = [text for intents in TEXTS.values() for of_intent in intents.values() for text in of_intent]
    n = 5 * sum(len(text.encode()) >= 12 for text in texts)  # each is there four times for training, and once for test
    assert noted.startswith(f"{n} of the {5 * len(texts)} texts fill all of data.length=12 tokens")


def test_a_cached_encoder_gives_every_text_its_own_features(setup_of):
    """Texts go through it in the order of their lengths, cut to the longest of a batch."""
    setup = setup_of("strategy=finetune", "model.frozen=1", "data.cache_prefix=true")
    plain = setup_of("strategy=finetune", "model.frozen=1")
    for cached, split in ((setup.scenario.train, plain.scenario.train), (setup.scenario.test, plain.scenario.test)):
        ids = torch.arange(len(split))
        with torch.no_grad():
            features = plain.learner.model.eval().features(plain.inputs.plain(split, ids).x)
        torch.testing.assert_close(cached.take(ids)[0], features, rtol=1e-4, atol=1e-5)
    assert setup.scenario.hash == plain.scenario.hash
