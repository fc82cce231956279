"""Which figures a report has, and what their captions say."""

import dataclasses

import pandas as pd
import pytest
from made_comparison import made_comparison

from clbench.reports import interactive_figures, print_figures
from clbench.reports.figures import figures_of, file_name, methods_of

KINDS_PER_SCENARIO = ["accuracy_curves", "switch_zoom", "accuracy_matrices", "stability_plasticity", "cost_fronts"]


def test_every_figure_there_are_data_for():
    kinds = [figure.kind for figure in figures_of(made_comparison())]
    assert kinds == 3 * KINDS_PER_SCENARIO + [
        "critical_difference", "rank_changes", "optimism_gaps", "sensitivity", "sensitivity",
    ]  # fmt: skip
    assert (
        set(kinds) | {"just_learned", "connectivity", "quantities", "quantity_maps"}
        == set(print_figures.DRAW)
        == set(interactive_figures.DRAW)
    )


def test_no_figure_without_data():
    comparison = made_comparison(["er"], ("one",), n_tasks=1)
    bare = dataclasses.replace(comparison, ranks=None, protocols=[], sensitivity=[])
    assert [figure.kind for figure in figures_of(bare)] == ["accuracy_curves", "accuracy_matrices", "cost_fronts"]
    empty = dataclasses.replace(bare, included=comparison.included[:0])
    assert list(figures_of(empty)) == []


def test_names_are_unique_and_plain_file_names():
    names = [figure.name for figure in figures_of(made_comparison(["a/b", "a b", "<script>", "ü"]))]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").replace("_", "").isalnum() and name.isascii() for name in names)
    assert file_name("curves", "../Split digits") == "curves-___split_digits"


def test_captions_say_what_data_and_how_many_seeds():
    comparison = made_comparison()
    included = comparison.included.drop(index=comparison.included.index[0])  # er has lost a seed on the first scenario
    by_name = {figure.name: figure.caption for figure in figures_of(dataclasses.replace(comparison, included=included))}
    curves = by_name["curves-split_digits"]
    for words in ("split_digits", "test split", "every=1, n=1000", "2 to 3 seeds", "lowest to highest", "Hatched"):
        assert words in curves
    assert "3 seeds" in by_name["curves-rotated_mnist"]
    assert "2 to" not in by_name["curves-rotated_mnist"]
    assert "1.91" in by_name["critical_difference"]
    assert "3 scenarios" in by_name["critical_difference"]
    assert "12 trials" in by_name["sensitivity-split_digits-er-two_phase-1"]
    assert "1 − FORG" in by_name["plane-split_digits"]
    assert all(caption.endswith(".") for caption in by_name.values())


def test_lines_of_equal_acc_need_one_number_of_tasks():
    comparison = made_comparison(["er", "ewc"], ("one",))
    shorter = comparison.runs.tasks

    def tasks(folder: str) -> pd.DataFrame:
        table = shorter(folder)
        return table[table.task_learning < 3] if folder.startswith("one/1") else table

    comparison.runs.tasks = tasks
    figure = next(figure for figure in figures_of(comparison) if figure.kind == "stability_plasticity")
    assert figure.data["n_tasks"] is None
    assert "equal ACC" not in figure.caption


@pytest.mark.parametrize(("metric", "shown"), [("FORG", "FORG"), ("seconds", "ACC")])
def test_cost_is_shown_against_what_decides_but_not_against_cost(metric, shown):
    comparison = made_comparison(scenarios=("one",))
    included = comparison.included.assign(FORG=0.1)
    changed = dataclasses.replace(comparison, metric=metric, included=included, counted=included)
    figure = next(figure for figure in figures_of(changed) if figure.kind == "cost_fronts")
    assert figure.data["metric"].name == shown
    assert figure.title.startswith(shown)


def test_methods_that_only_a_study_knows_have_a_look_too():
    comparison = made_comparison()
    assert methods_of(dataclasses.replace(comparison, methods=["joint", "ewc"])) == ["joint", "ewc", "er", "finetune"]


def test_what_methods_report_is_drawn_by_the_shape_of_the_data():
    comparison = made_comparison(scenarios=("one",), reporting=("er", "ewc"))
    found = [figure for figure in figures_of(comparison) if figure.section == "reported"]
    assert [figure.name for figure in found] == [
        "quantities-one-sparse", "parts-one-sparse-free_share", "tasks-one-sparse-overlap",
    ]  # fmt: skip
    assert [figure.kind for figure in found] == ["quantities", "quantity_maps", "quantity_maps"]
    lines, parts, tasks = found
    assert list(lines.data["lines"]) == ["free_share", "flops"]  # the density never changes
    assert not parts.data["shown"].of_tasks
    assert tasks.data["shown"].of_tasks
    for figure in found:
        assert "3 seeds" in figure.caption
        assert "sparse" in figure.caption
        assert figure.caption.endswith(".")


def test_accuracy_on_tasks_just_learned_is_shown_of_ten_tasks_or_where_plasticity_was_measured():
    def kinds(**options) -> list[str]:
        return [figure.kind for figure in figures_of(made_comparison(["er"], ("one",), per_task=2, **options))]

    assert "just_learned" in kinds(n_tasks=10)
    assert "just_learned" not in kinds(n_tasks=9)
    assert "quantities" not in kinds(n_tasks=10)
    assert {"just_learned", "quantities"} <= set(kinds(n_tasks=2, plasticity=("er",)))


def test_plasticity_is_drawn_of_the_scenarios_where_it_was_measured():
    comparison = made_comparison(scenarios=("one", "two"), plasticity=("er", "ewc"))
    only = comparison.plasticity[comparison.plasticity.scenario == "two"]
    found = list(figures_of(dataclasses.replace(comparison, plasticity=only)))
    [figure] = [figure for figure in found if figure.section == "plasticity"]
    assert [one.name for one in found if one.kind == "just_learned"] == ["just_learned-two"]
    assert figure.name == "plasticity-two"
    assert figure.data["logarithmic"] == ["gradient norm"]
    assert "3 seeds" in figure.caption
    assert "sigma_max = largest singular value" in figure.caption


def test_no_figure_of_what_nobody_reports():
    assert not any(figure.section == "reported" for figure in figures_of(made_comparison()))
