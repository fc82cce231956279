"""The page, read back with a parser; what a browser makes of it is in test_page_in_browser.py."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from made_comparison import METHODS, made_comparison

from clbench.reports.page import write_page
from clbench.reports.tables import with_footnotes

VOID = {"meta", "link", "input"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Elements with their attributes, texts by element, and whether everything that was opened is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def texts_of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]

    def having(self, tag: str, attribute: str) -> list[str]:
        return [found[attribute] or "" for name, found in self.elements if name == tag and attribute in found]


def parsed(comparison, tmp_path) -> Page:
    write_page(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return parsed(made_comparison(title="A < B & C"), tmp_path_factory.mktemp("page"))


def plots(page: Page) -> list[dict]:
    """The figures' plotly JSON; a script's text comes in one piece."""
    return [json.loads(text) for text in page.texts_of("script") if text.startswith('{"data"')]


def test_sections_and_contents(page):
    headings = page.texts_of("h2")
    assert headings == [
        "Failures and missing runs", "What was compared", "Results", "Figures", "Tuning protocols",
        "Hyperparameter sensitivity", "Cost", "Provenance",
    ]  # fmt: skip
    targets = page.having("a", "href")
    assert targets == [f"#{anchor}" for anchor in page.having("h2", "id")]
    assert page.texts_of("title") == page.texts_of("h1") == ["A < B & C"]
    assert "Every method had the same budget." in page.texts_of("p")


def test_nothing_that_is_not_there_is_shown(tmp_path):
    comparison = made_comparison(scenarios=("one",), failures=False)
    page = parsed(dataclasses.replace(comparison, protocols=[], sensitivity=[], ranks=None, tests=[]), tmp_path)
    assert page.texts_of("h2") == ["What was compared", "Results", "Figures", "Cost", "Provenance"]


def test_a_report_without_any_finished_run_still_lists_the_failures(tmp_path):
    comparison = made_comparison(scenarios=("one",))
    bare = dataclasses.replace(
        comparison, included=comparison.included[:0], main=[], tests=[], costs=[], provenance=[], ranks=None,
        protocols=[], sensitivity=[],
    )  # fmt: skip
    page = parsed(bare, tmp_path)
    assert page.texts_of("h2") == ["Failures and missing runs", "What was compared"]
    assert "0 finished runs are compared, of 9 found" in page.texts_of("dd")


def test_tables_have_marks_notes_and_values_to_sort_by(page):
    assert page.texts_of("strong").count("90.0 ± 0.5") >= 3  # the best, in bold
    assert "full test sets" in page.texts_of("small")
    values = page.having("td", "data-value")
    assert {"90.0", "80.5", "71.0", ""} <= set(values)


def test_tied_methods_carry_a_dagger(tmp_path):
    comparison = made_comparison(scenarios=("one",))
    table = comparison.main[0]
    tied = [dataclasses.replace(table.rows[0][1], mark="tied"), *table.rows[0][2:]]
    changed = dataclasses.replace(table, rows=[[table.rows[0][0], *tied]])
    page = parsed(dataclasses.replace(comparison, main=[changed]), tmp_path)
    assert "90.0 ± 0.5 †" in page.texts_of("td")


def test_every_figure_has_a_caption_and_a_drawing(page):
    figures = page.having("figure", "id")
    assert len(figures) == len(set(figures)) == 3 * 5 + 5
    assert len(page.texts_of("figcaption")) == len(figures)
    assert len(plots(page)) == len(figures) + 3 * (len(METHODS) - 1)  # a matrix per method
    assert all(plot["data"] for plot in plots(page))


def test_the_filter_knows_every_method_of_every_figure(page):
    filtered = set(page.having("input", "value"))
    assert filtered == set(METHODS)
    assert set(page.having("div", "data-method")) == set(METHODS)
    assert {trace["meta"] for plot in plots(page) for trace in plot["data"] if "meta" in trace} == filtered


def test_nothing_is_loaded_from_anywhere(page):
    policy = next(found["content"] for tag, found in page.elements if found.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag, value) == ("link", "data:,")
    style = page.texts_of("style")[0]
    assert not re.search(r"@import|url\(", style)


def test_plotly_is_there_once(page):
    libraries = [text for text in page.texts_of("script") if "plotly.js v" in text[:200]]
    assert len(libraries) == 1


def test_markup_in_names_is_text(tmp_path):
    comparison = made_comparison([EVIL, "</script><b>", "er"], (EVIL,), title=EVIL)
    comparison = dataclasses.replace(comparison, command=EVIL)
    page = parsed(comparison, tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert page.texts_of("h1") == page.texts_of("code") == [EVIL]
    assert set(page.having("input", "value")) == {EVIL, "</script><b>", "er"}
    assert not any(tag == "b" for tag, _ in page.elements)
    assert any(trace.get("meta") == EVIL for plot in plots(page) for trace in plot["data"])


def test_the_page_is_the_same_every_time_and_a_few_megabytes(tmp_path):
    comparison = made_comparison(scenarios=("one",))
    for name in ("a", "b"):
        write_page(comparison, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 7e6


def test_many_seeds_are_a_range(tmp_path):
    page = parsed(made_comparison(["er"], ("one",), n_tasks=2, seeds=7), tmp_path)
    assert "0 to 6" in page.texts_of("dd")


def test_notes_stand_at_the_methods_names_and_below_the_table(tmp_path):
    comparison = made_comparison(scenarios=("one",))
    table = with_footnotes(comparison.main[0], {"ewc": [f"ewc: {EVIL}"], "er": ["er: ours.", "er: a guess."]})
    page = parsed(dataclasses.replace(comparison, main=[table]), tmp_path)
    assert page.texts_of("li")[-3:] == ["er: ours.", "er: a guess.", f"ewc: {EVIL}"]
    assert page.texts_of("sup") == ["1, 2", "3"]
    assert "What has to be known of the methods:" in page.texts_of("strong")


def test_what_methods_report_plasticity_and_connectivity_have_sections_with_table_and_figures(tmp_path):
    comparison = made_comparison(scenarios=("one",), reporting=("er", "ewc"), plasticity=("er",), connectivity=("er",))
    page = parsed(comparison, tmp_path)
    headings = page.texts_of("h2")
    at = headings.index("Figures") + 1
    assert headings[at : at + 3] == ["Plasticity", "Mode connectivity", "What the methods report"]
    assert {"Plasticity: one", "Connectivity: one", "Reported: one", "Measures of plasticity: one"} <= set(
        page.texts_of("h3")
    )
    assert {"just_learned-one", "plasticity-one", "connectivity-one"} <= set(page.having("figure", "id"))
    reported = [name for name in page.having("figure", "id") if "sparse" in name]
    assert reported == ["quantities-one-sparse", "parts-one-sparse-free_share", "tasks-one-sparse-overlap"]
    maps = [plot for plot in plots(page) if plot["data"][0]["type"] == "heatmap"]
    assert [plot["data"][0]["meta"] for plot in maps].count("er") == 1 + 2  # the accuracy matrix, and these two
