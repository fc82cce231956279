"""``list`` and ``describe`` show everything that can be named."""

import pytest

from clbench import listing
from clbench.config import group_choices
from clbench.errors import ConfigError
from clbench.registry import STRATEGIES


def test_list_has_a_line_for_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listing.list_everything()
    text = capsys.readouterr().out
    for group in listing.GROUPS:
        for name in group_choices(group):
            assert name in text
            assert len(listing.one_line(group, name)) > 10, f"{group}={name} has no description"


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_describe_shows_equation_options_and_source(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listing.describe(name)
    text = capsys.readouterr().out
    assert "=" in text
    assert f"strategy={name}" in text
    for field in vars(STRATEGIES[name].config(name=name)):
        assert f"strategy.{field}" in text


@pytest.mark.parametrize("name", ["split_digits", "mlp", "digits"])
def test_describe_other_things(name, capsys):
    listing.describe(name)
    assert name in capsys.readouterr().out


def test_describe_unknown_name():
    with pytest.raises(ConfigError, match="did you mean 'split_digits'"):
        listing.describe("split_digit")


def test_readme_table_is_the_registry():
    """Regenerate with: python -c "from clbench.listing import strategies_markdown as s; print(s())"."""
    from pathlib import Path

    readme = Path(__file__).parent.parent / "README.md"
    _, rest = readme.read_text(encoding="utf-8").split("<!-- strategies -->")
    assert rest.split("<!-- end strategies -->")[0].strip() == listing.strategies_markdown()
