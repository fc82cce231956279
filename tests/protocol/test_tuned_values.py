"""Tuned values: written by a study, taken by ``+best=true``."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from clbench.conf_files import conf_dir
from clbench.config import typed
from clbench.errors import ConfigError
from clbench.protocol.tuned_values import with_tuned_values, write_tuned_values

FROM = {
    "protocol": "two_phase", "metric": "average_incremental_pooled", "score": 0.75, "trials": 30, "tuning_seeds": [0, 1, 2],
    "command": "python -m clbench -m protocol=two_phase strategy=ewc",
}  # fmt: skip


def tuned(compose, *arguments: str) -> tuple[DictConfig, str]:
    return with_tuned_values(compose(list(arguments)), list(arguments))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["strategy=ewc"], {"strategy.lam": 100.0, "trainer.lr": 1e-05, "trainer.scheduler": "cosine"}),
        (["strategy=finetune"], {"trainer.milestones": "[0.4,0.8]", "trainer.clip_grad_norm": None, "trainer.batch_size": 7}),
        (["strategy=er", "strategy.plus=[ewc,l2]"], {"plus.ewc.lam": 3.0, "plus.l2.lam": 0.5, "strategy.new_weight": 0.7}),
        (["strategy=finetune"], {"trainer.reset_optimizer": False}),
        (["strategy=finetune"], {}),
    ],
)  # fmt: skip
def test_what_is_written_is_what_a_run_gets(compose, arguments, values):
    plain = typed(compose(arguments))
    name = "+".join([plain.strategy.name, *plain.strategy.plus])
    file = write_tuned_values(Path("best"), "split_digits", name, values, FROM)
    assert file == Path("best") / "split_digits" / f"{name}.yaml"
    composed, sentence = tuned(compose, *arguments, "+best=true")
    assert "best" not in composed
    found = typed(composed)
    for option, value in values.items():
        group, _, own = option.partition(".")
        if group == "plus":
            strategy, _, own = own.partition(".")
            assert found.plus[strategy][own] == value
        else:
            assert getattr(getattr(found, group), own) == ([0.4, 0.8] if value == "[0.4,0.8]" else value)
    assert sentence.startswith(
        f"tuned values from {file} (two_phase, 30 trials × 3 seeds, average_incremental_pooled): "
    )
    for option, value in values.items():
        assert f"{option}={value}" in sentence
    # Everything else stays as it is.
    untouched = OmegaConf.to_container(composed)
    expected = OmegaConf.to_container(compose(arguments))
    for option in values:
        for config in (untouched, expected):
            *groups, last = option.split(".")
            for group in groups:
                config = config.setdefault(group, {})
            config.pop(last, None)
    for config in (untouched, expected):
        config.pop("hydra")
        config["plus"] = {}
    assert untouched == expected


def test_what_the_command_line_sets_wins(compose):
    values = {"strategy.lam": 100.0, "trainer.lr": 0.3, "trainer.weight_decay": 0.001}
    write_tuned_values(Path("best"), "split_digits", "ewc", values, FROM)
    composed, sentence = tuned(compose, "strategy=ewc", "+best=true", "trainer.lr=0.02", "++strategy.lam=5")
    assert (composed.trainer.lr, composed.strategy.lam, composed.trainer.weight_decay) == (0.02, 5, 0.001)
    assert sentence.endswith("): trainer.weight_decay=0.001; set on the command line instead: strategy.lam, trainer.lr")


def test_all_of_them_set_on_the_command_line(compose):
    write_tuned_values(Path("best"), "split_digits", "ewc", {"strategy.lam": 100.0}, FROM)
    _, sentence = tuned(compose, "strategy=ewc", "+best=true", "strategy.lam=5")
    assert "none that the command line leaves open; set on the command line instead: strategy.lam" in sentence


@pytest.mark.parametrize("words", [[], ["+best=false"], ["+best=null"]])
def test_without_asking_nothing_changes(compose, words):
    write_tuned_values(Path("best"), "split_digits", "ewc", {"strategy.lam": 100.0}, FROM)
    composed, sentence = tuned(compose, "strategy=ewc", *words)
    assert (composed.strategy.lam, sentence) == (10.0, "")
    assert "best" not in composed


def test_the_folder_can_be_chosen_and_values_belong_to_a_method_on_a_scenario(compose, tmp_path):
    write_tuned_values(Path("best"), "split_digits", "ewc", {"strategy.lam": 1.0}, FROM)
    write_tuned_values(Path("best"), "split_digits_task", "ewc", {"strategy.lam": 2.0}, FROM)
    write_tuned_values(Path("best"), "split_digits", "l2", {"strategy.lam": 3.0}, FROM)
    write_tuned_values(tmp_path / "elsewhere", "split_digits", "ewc", {"strategy.lam": 4.0}, FROM)
    assert tuned(compose, "strategy=ewc", "+best=true")[0].strategy.lam == 1
    assert tuned(compose, "strategy=ewc", "scenario=split_digits_task", "+best=true")[0].strategy.lam == 2
    assert tuned(compose, "strategy=l2", "+best=true")[0].strategy.lam == 3
    assert tuned(compose, "strategy=ewc", f"+best={tmp_path / 'elsewhere'}")[0].strategy.lam == 4
    assert tuned(compose, "strategy=ewc", "+best=elsewhere")[0].strategy.lam == 4


def test_values_that_come_with_clbench_are_taken_where_the_user_has_none(compose, tmp_path, monkeypatch):
    monkeypatch.setattr("clbench.protocol.tuned_values.conf_dir", lambda: tmp_path / "conf")
    write_tuned_values(tmp_path / "conf" / "best", "split_digits", "ewc", {"strategy.lam": 5.0}, FROM)
    assert tuned(compose, "strategy=ewc", "+best=true")[0].strategy.lam == 5
    write_tuned_values(Path("best"), "split_digits", "ewc", {"strategy.lam": 1.0}, FROM)
    assert tuned(compose, "strategy=ewc", "+best=true")[0].strategy.lam == 1


def test_a_missing_file_is_one_sentence(compose, monkeypatch, tmp_path):
    monkeypatch.setattr("clbench.protocol.tuned_values.conf_dir", lambda: tmp_path / "conf")
    with pytest.raises(ConfigError) as raised:
        tuned(compose, "strategy=er", "strategy.plus=[l2]", "+best=true")
    assert str(raised.value) == (
        "no tuned values of er+l2 on split_digits: there is no best/split_digits/er+l2.yaml. Run a protocol first "
        "(python -m clbench -m protocol=two_phase strategy=er strategy.plus=[l2] scenario=split_digits)"
    )


def test_the_sentence_says_what_there_is(compose):
    write_tuned_values(Path("best"), "split_digits", "ewc", {"strategy.lam": 100.0}, FROM)
    write_tuned_values(Path("best"), "split_mnist", "er", {}, FROM)
    with pytest.raises(ConfigError, match=r"no tuned values of l2 on split_digits.*; there are: .*split_digits/ewc.*"):
        tuned(compose, "strategy=l2", "+best=true")


@pytest.mark.parametrize("values", [{"strategy.lmabda": 1.0}, {"trainer.lr": "fast"}, {"strategie.lam": 1.0}])
def test_values_that_cannot_be_set_are_one_sentence(compose, values):
    """The file is of another version, or was written by hand."""
    write_tuned_values(Path("best"), "split_digits", "ewc", values, FROM)
    [(name, value)] = values.items()
    with pytest.raises(ConfigError, match=rf"best/split_digits/ewc\.yaml: {name}={value}") as raised:
        tuned(compose, "strategy=ewc", "+best=true")
    assert "\n" not in str(raised.value)


def test_the_values_that_come_with_clbench_can_be_set(compose):
    """Every file in conf/best, on its own method and scenario."""
    for file in (conf_dir() / "best").glob("*/*.yaml"):
        strategy, *plus = file.stem.split("+")
        words = [f"scenario={file.parent.name}", f"strategy={strategy}", f"strategy.plus=[{','.join(plus)}]"]
        typed(tuned(compose, *words, f"+best={conf_dir() / 'best'}")[0])
