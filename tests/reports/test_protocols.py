"""Tuning protocols compared, from studies with chosen scores."""

import json
import math

import numpy as np
import pytest
from made_runs import write_study
from scipy import stats

from clbench.reports.loading import load
from clbench.reports.protocols import FEWEST_TRIALS, protocol_reports, sensitivities

EVALUATIONS = {
    "er": {"two_phase": {100: 0.70, 101: 0.72, 102: 0.71}, "conventional": {100: 0.75, 101: 0.78, 102: 0.75}},
    "ewc": {"two_phase": {100: 0.60, 101: 0.61, 102: 0.62}, "conventional": {100: 0.60, 101: 0.61, 102: 0.62}},
    "lwf": {"two_phase": {100: 0.50, 101: 0.51, 102: 0.52}, "conventional": {100: 0.80, 101: 0.81, 102: 0.82}},
}
SCORES = {
    "er": {"two_phase": [0.30, 0.50], "conventional": [0.95, 0.90]},
    "ewc": {"two_phase": [0.80, 0.10], "conventional": [0.85, 0.20]},
    "lwf": {"two_phase": [0.20, None], "conventional": [0.99, 0.10]},
}


@pytest.fixture
def report(tmp_path):
    [report] = protocol_reports(load([write_study(tmp_path, EVALUATIONS, SCORES)]))
    return report


def result(report, method, kind):
    return report.results.set_index(["method", "kind"]).loc[method, kind]


def test_results(report):
    er = result(report, "er", "two_phase")
    assert (er.tuning_score, er.selected, er.trials, er.complete_trials) == (0.50, "lr=0.1", 2, 2)
    assert er.evaluation == pytest.approx(0.71)
    low, high = stats.ttest_1samp([0.70, 0.72, 0.71], 0).confidence_interval(0.95)
    assert er.half_width == pytest.approx((high - low) / 2)
    assert (er.seeds, er.tuning_runs, er.tuning_hours, er.evaluation_hours) == (3, 2, 1.0, 3.0)
    lwf = result(report, "lwf", "two_phase")
    assert (lwf.trials, lwf.complete_trials, lwf.failed_runs) == (2, 1, 1)


def test_ranks_and_taus(report):
    by_kind = report.results.set_index(["kind", "method"])
    assert by_kind.tuning_rank["two_phase"].to_dict() == {"er": 2, "ewc": 1, "lwf": 3}
    assert by_kind.evaluation_rank["two_phase"].to_dict() == {"er": 1, "ewc": 2, "lwf": 3}
    assert by_kind.evaluation_rank["conventional"].to_dict() == {"er": 2, "ewc": 3, "lwf": 1}
    assert report.tuning_tau == pytest.approx({"two_phase": 1 / 3, "conventional": 1.0})
    [row] = report.kind_tau.to_dict("records")
    assert row == {"kind": "two_phase", "other": "conventional", "tau": pytest.approx(-1 / 3), "methods": 3}


def test_optimism_gap_is_between_evaluations_and_paired(report):
    gaps = report.optimism.set_index("method")
    low, high = stats.ttest_rel([0.75, 0.78, 0.75], [0.70, 0.72, 0.71]).confidence_interval(0.95)
    assert gaps.loc["er"].to_dict() == pytest.approx({"gap": 0.05, "low": low, "high": high, "pairs": 3})
    assert gaps.loc["ewc"].to_dict() == pytest.approx({"gap": 0, "low": 0, "high": 0, "pairs": 3})
    assert gaps.gap["lwf"] == pytest.approx(0.3)  # whereas tuning score minus evaluation is 0.20 − 0.51 and 0.99 − 0.81
    [table] = [table for table in report.tables if "optimism" in table.title]
    assert [row[1].text for row in table.rows] == ["5.0", "0.0", "30.0"]
    assert "streams differ in difficulty" in table.caption


def test_pairs_are_shared_evaluation_seeds(tmp_path):
    evaluations = {"er": {"two_phase": {100: 0.5, 101: 0.6}, "conventional": {101: 0.9, 102: 0.1}}}
    scores = {"er": {"two_phase": [0.5], "conventional": [0.5]}}
    [report] = protocol_reports(load([write_study(tmp_path, evaluations, scores)]))
    [gap] = report.optimism.to_dict("records")
    assert (gap["gap"], gap["pairs"]) == (pytest.approx(0.3), 1)
    assert math.isnan(gap["low"])
    assert "Under two_phase, er rests on 2 of 3 evaluation seeds." in report.notes
    assert math.isnan(report.tuning_tau["two_phase"])  # one method has no ranking


def test_a_diverged_evaluation_run_counts_at_chance_and_a_method_with_a_failed_one_has_no_rank(tmp_path):
    folder = write_study(tmp_path, EVALUATIONS, SCORES)
    file = folder / "evaluation/er/two_phase/seed_102/summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "diverged", "reason": "nan"}))
    (folder / "evaluation/er/two_phase/seed_101/summary.json").write_text('{"status": "failed", "reason": "no"}')
    [report] = protocol_reports(load([folder]))
    er = result(report, "er", "two_phase")
    assert er.evaluation == pytest.approx((0.70 + 0.25) / 2)  # a guess among the four classes of the stream
    assert (er.seeds, er.diverged_runs, er.failed_runs) == (2, 1, 1)
    assert math.isnan(er.evaluation_rank)
    assert result(report, "ewc", "two_phase").evaluation_rank == 1
    assert math.isnan(report.results.set_index(["method", "kind"]).tuning_rank["er", "two_phase"]) is False
    assert report.kind_tau.methods[0] == 2
    gaps = report.optimism.set_index("method")
    assert (gaps.gap["er"], gaps.pairs["er"]) == (pytest.approx((0.75 - 0.70 + 0.75 - 0.25) / 2), 2)
    assert (
        "Under two_phase, er had 1 diverged and 1 failed runs; a diverged one counts at chance level." in report.notes
    )
    assert "Under two_phase, er rests on 2 of 3 evaluation seeds and has no rank: the others have more." in report.notes


def test_unequal_budgets_are_said(tmp_path):
    scores = SCORES | {"er": {"two_phase": [0.1, 0.2, 0.3], "conventional": [0.9, 0.8]}}
    [report] = protocol_reports(load([write_study(tmp_path, EVALUATIONS, scores)]))
    assert "Under two_phase the methods did not get the same number of trials: er 3, ewc 2, lwf 2." in report.notes
    assert not any("conventional" in note and "same number" in note for note in report.notes)


def test_a_running_study(tmp_path):
    folder = write_study(tmp_path, EVALUATIONS, SCORES)
    content = json.loads((folder / "study.json").read_text()) | {"status": "running"}
    content["methods"][0]["protocols"]["two_phase"] |= {"selected": None, "evaluation": None}
    (folder / "study.json").write_text(json.dumps(content))
    [report] = protocol_reports(load([folder]))
    er = result(report, "er", "two_phase")
    assert er.selected == "not selected yet"
    assert math.isnan(er.evaluation)
    assert report.optimism.set_index("method").pairs["er"] == 0
    assert report.notes[0].startswith("The study is not finished")
    assert report.tables[0].rows[0][4].text == "–"
    assert report.kind_tau.methods[0] == 2


def test_one_protocol_has_no_optimism_gap(tmp_path):
    evaluations = {method: {"two_phase": kinds["two_phase"]} for method, kinds in EVALUATIONS.items()}
    [report] = protocol_reports(load([write_study(tmp_path, evaluations, SCORES)]))
    assert report.optimism.empty
    assert report.kind_tau.empty
    assert not any("optimism" in table.title for table in report.tables)


def test_streams_are_written_down(report):
    facts = {row[0].text: row[1].text for row in report.tables[-1].rows}
    assert facts["evaluation stream"] == "0123456789abcdef0123456789abcdef (seeds 100, 101, 102)"
    assert facts["tuning stream of two_phase"] == f"{'e' * 32} (seeds 0)"
    assert (facts["classes while tuning"], facts["samples in common"]) == ("0, 1", "0")


def tuned(tmp_path, trials: int, score):
    """The sensitivity of a study whose trial i has the i-th lr of 3 and the i-th lam of 2, scored by ``score(lr, lam)``."""
    search = {"trainer.lr": [0.01, 0.1, 1.0], "strategy.lam": [1, 10], "trainer.momentum": [0.9]}
    scores = [score(search["trainer.lr"][i % 3], search["strategy.lam"][i % 2]) for i in range(trials)]
    evaluations = {"er": {"two_phase": {100: 0.5}}}
    [found] = sensitivities(load([write_study(tmp_path, evaluations, {"er": {"two_phase": scores}}, search)]))
    return found


def test_importance_finds_the_parameter_that_matters(tmp_path):
    found = tuned(tmp_path, 24, lambda lr, lam: 0.5 + 0.1 * math.log10(lr) + 0.001 * lam / 10)
    assert (found.method, found.kind, found.scenario) == ("er", "two_phase", "stream")
    assert list(found.importance.index) == ["trainer.lr", "strategy.lam"]  # what never varied has no importance
    assert found.importance["trainer.lr"] > 0.95
    assert found.importance.sum() == pytest.approx(1)
    assert found.note.startswith("fANOVA (Hutter et al. 2014) over 24 complete trials")


def test_importance_is_shared_where_both_matter_alike(tmp_path):
    found = tuned(tmp_path, 24, lambda lr, lam: 0.1 * (lr == 0.1) + 0.1 * (lam == 10))
    # variance of an indicator: 2/9 for one of three values, 1/4 for one of two
    assert found.importance["strategy.lam"] == pytest.approx((1 / 4) / (1 / 4 + 2 / 9), abs=0.1)


def test_importance_of_a_real_valued_option(tmp_path):
    rates = np.geomspace(1e-4, 1, 24).tolist()
    trials = [
        {
            "trial": i,
            "state": "complete",
            "score": 0.01 * (i % 2) - (math.log10(lr) + 2) ** 2,
            "values": {"trainer.lr": lr, "strategy.lam": i % 2},
            "runs": {},
        }
        for i, lr in enumerate(rates)
    ]
    folder = write_study(tmp_path, EVALUATIONS, SCORES)
    content = json.loads((folder / "study.json").read_text())
    content["methods"][0]["search"] = {"trainer.lr": {"low": 1e-4, "high": 1.0, "log": True}, "strategy.lam": [0, 1]}
    for protocol in content["methods"][0]["protocols"].values():
        protocol["trials"] = trials
    (folder / "study.json").write_text(json.dumps(content))
    found = sensitivities(load([folder]))[0]
    assert found.importance["trainer.lr"] > 0.9
    assert found.scores[found.scores.parameter == "trainer.lr"].value.tolist() == rates


def test_streams_that_were_not_held_against_each_other_yet(tmp_path):
    folder = write_study(tmp_path, EVALUATIONS, SCORES)
    content = json.loads((folder / "study.json").read_text())
    for name in ("classes", "common_samples", "common_classes"):
        del content["streams"][0][name]
    content["streams"][0]["tuning"]["two_phase"] = {}
    (folder / "study.json").write_text(json.dumps(content))
    facts = {row[0].text: row[1].text for row in protocol_reports(load([folder]))[0].tables[-1].rows}
    assert facts["tuning stream of two_phase"] == "not built yet"
    assert "samples in common" not in facts


def test_scores_by_value(tmp_path):
    found = tuned(tmp_path, 12, lambda lr, lam: lr / 10 + lam / 100)
    mean = found.scores[found.scores.parameter == "trainer.lr"].groupby("value").score.mean()
    assert mean.to_dict() == pytest.approx({lr: lr / 10 + 5.5 / 100 for lr in (0.01, 0.1, 1.0)})
    assert len(found.scores) == 3 * 12


@pytest.mark.parametrize(
    ("trials", "score", "note"),
    [
        (FEWEST_TRIALS - 1, lambda lr, lam: lr, "not computed from 9 complete trials"),
        (12, lambda lr, lam: 0.5, "all trials have the same score"),
    ],
)
def test_importance_that_is_undefined_says_why(tmp_path, trials, score, note):
    found = tuned(tmp_path, trials, score)
    assert found.importance is None
    assert note in found.note


def test_trials_that_failed_have_no_score(tmp_path):
    [_, lwf] = sensitivities(load([write_study(tmp_path, EVALUATIONS, SCORES)]))[-2:]
    assert lwf.method == "lwf"
    er = sensitivities(load([tmp_path]))[4]
    assert (er.method, er.kind) == ("lwf", "two_phase")
    assert er.scores.trial.tolist() == [0]
    assert np.isfinite(er.scores.score).all()
