"""``list`` and ``describe`` show everything that can be named."""

import pytest

from clbench import listing
from clbench.conf_files import group_choices
from clbench.errors import ConfigError
from clbench.registry import MODELS, SOURCES


def test_list_has_a_line_for_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listing.list_everything()
    text = capsys.readouterr().out
    for name in SOURCES.names():
        assert listing.one_line("source", name) in text
    for group in listing.GROUPS:
        for name in group_choices(group):
            assert name in text
            assert len(listing.one_line(group, name)) > 10, f"{group}={name} has no description"


def test_describe_gives_a_command_that_runs_and_names_a_changed_schedule(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listing.describe("dst")
    assert "python -m clbench strategy=dst scenario=split_digits_task" in capsys.readouterr().out
    listing.describe("hypernetwork")
    text = capsys.readouterr().out
    assert "optimizer: adam" in text
    assert text.rstrip().endswith("python -m clbench strategy=hypernetwork")


@pytest.mark.parametrize("name", ["split_digits", "mlp", "digits", "kmnist", "split_mnist_er"])
def test_describe_other_things(name, capsys):
    listing.describe(name)
    assert name in capsys.readouterr().out


def shown_defaults(name: str, capsys, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "200")
    listing.describe(name)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    return {row[1].strip(): row[2].strip() for row in rows}


def test_defaults_are_those_of_the_file_not_of_the_dataclass(capsys, monkeypatch):
    shown = shown_defaults("cifar100_b50_10x5", capsys, monkeypatch)
    assert shown["scenario.increment"] == "5"
    assert shown["scenario.augment.crop_padding"] == "4"
    assert shown["scenario.augment.flip"] == "true"
    assert shown["scenario.augment.contrast"] == "0.0"
    assert shown["scenario.classes"] == "null"


def test_a_scenario_has_what_the_one_has_that_it_builds_on(capsys, monkeypatch):
    own, base = (shown_defaults(name, capsys, monkeypatch) for name in ("si_blurry_cifar100", "blurry_cifar100"))
    different = {name for name in own if own[name] != base[name]}
    assert different == {"scenario.name", "scenario.stochastic"}
    assert listing._source_of("si_blurry_cifar100") == "cifar100"


def test_model_that_a_user_registered_without_a_yaml_file(capsys, monkeypatch):
    monkeypatch.setitem(MODELS._entries, "mine", MODELS["mlp"])
    listing.list_everything()
    listing.describe("mine")
    assert "model=mine" in capsys.readouterr().out


def test_describe_unknown_name():
    with pytest.raises(ConfigError, match="did you mean 'split_digits'"):
        listing.describe("split_digit")


def test_readme_table_is_the_registry():
    """Regenerate with: python -c "from clbench.listing import strategies_markdown as s; print(s())"."""
    from pathlib import Path

    readme = Path(__file__).parent.parent / "README.md"
    _, rest = readme.read_text(encoding="utf-8").split("<!-- strategies -->")
    assert rest.split("<!-- end strategies -->")[0].strip() == listing.strategies_markdown()
