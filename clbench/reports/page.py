"""The report as one HTML file that needs no network: tables that sort, figures that zoom, a filter over methods."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from clbench.reports.comparison import Comparison
from clbench.reports.figures import ReportFigure, figures_of, methods_of
from clbench.reports.interactive_figures import draw
from clbench.reports.palette import looks
from clbench.reports.tables import FOOTNOTES_HEADING, Table

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Plot:
    """A drawn figure as it stands in the page."""

    method: str
    """The method that it is about; empty where its traces are about several."""

    height: int
    """In pixels, kept free before it is drawn, so that the page does not jump."""

    content: Markup
    """Plotly's JSON, safe within ``<script>``."""


@dataclass(frozen=True)
class PageFigure:
    """A figure with its caption; heat maps are one plot per method."""

    figure: ReportFigure
    plots: list[Plot]


@dataclass(frozen=True)
class Section:
    """A heading of the page and what stands below it."""

    anchor: str
    heading: str
    tables: list[Table]
    figures: list[PageFigure]
    notes: list[str]


def write_page(comparison: Comparison, file: Path) -> None:
    """Write the report's page; the folder must exist."""
    methods = methods_of(comparison)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(TEMPLATE).render(
        comparison=comparison,
        facts=_facts(comparison),
        footnotes_heading=FOOTNOTES_HEADING,
        sections=_sections(comparison),
        looks=looks(methods),
        plotly_js=Markup(get_plotlyjs()),  # the library itself, not from any run folder
    )
    file.write_text(page, encoding="utf-8")


def _facts(comparison: Comparison) -> dict[str, str]:
    """What was compared, in a few lines."""
    included, found = comparison.included, comparison.runs.table
    seeds = sorted(included.seed.astype(int).unique())
    in_a_row = len(seeds) > 5 and seeds[-1] - seeds[0] + 1 == len(seeds)
    return {
        "Methods": ", ".join(comparison.methods),
        "Scenarios": ", ".join(map(str, included.scenario.unique())),
        "Seeds": f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds)),
        "Runs": f"{len(included)} finished runs are compared, of {len(found)} found",
        "Best by": comparison.metric,
    }


def _sections(comparison: Comparison) -> list[Section]:
    """The sections that have anything to show, in their order."""
    drawn: dict[str, list[PageFigure]] = {
        name: [] for name in ("figures", "plasticity", "connectivity", "reported", "protocols", "sensitivity", "cost")
    }
    method_looks = looks(methods_of(comparison))
    for figure in figures_of(comparison):
        pictures = draw(figure, method_looks)
        drawn[figure.section].append(PageFigure(figure, [_plot(name, picture) for name, picture in pictures.items()]))
    failures = [comparison.failures] if comparison.failures is not None else []
    protocol_tables = [table for report in comparison.protocols for table in report.tables]
    protocol_notes = [note for report in comparison.protocols for note in report.notes]
    sections = [
        Section("failures", "Failures and missing runs", failures, [], []),
        Section("compared", "What was compared", comparison.hyperparameters, [], []),
        Section("results", "Results", [*comparison.main, *comparison.tests], [], []),
        Section("figures", "Figures", [], drawn["figures"], []),
        Section("plasticity", "Plasticity", comparison.plasticity_tables, drawn["plasticity"], []),
        Section("connectivity", "Mode connectivity", comparison.connectivity_tables, drawn["connectivity"], []),
        Section("reported", "What the methods report", comparison.reported, drawn["reported"], []),
        Section("protocols", "Tuning protocols", protocol_tables, drawn["protocols"], protocol_notes),
        Section("sensitivity", "Hyperparameter sensitivity", [], drawn["sensitivity"], []),
        Section("cost", "Cost", comparison.costs, drawn["cost"], []),
        Section("provenance", "Provenance", comparison.provenance, [], []),
    ]
    return [section for section in sections if section.tables or section.figures or section.anchor == "compared"]


def _plot(method: str, picture: Figure) -> Plot:
    content = htmlsafe_json_dumps(picture, dumps=lambda figure: figure.to_json())
    return Plot(method, int(picture.layout.height), content)
