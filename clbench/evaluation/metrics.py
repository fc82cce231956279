"""All metrics, as pure functions of the tables that a run writes.

Notation (De Lange et al. 2023, arXiv:2205.13452): A(E_i, f_t) is the accuracy on task i's evaluation set after iteration t,
e_i the end of task i, k the number of tasks. Accuracies are fractions in [0, 1].

A method may act when a task is over, and predict otherwise from then on. e_i is the moment after that. The curve then has two
evaluations of a task's last iteration, before and after (``consolidated``), and every metric says below which it takes.

From the full test sets at task ends (``tasks``), R[k, i] = A(E_i, f_{e_k}):

* ACC = (1/k) Σ_i R[k, i], the mean over the tasks (GEM; A_N of the prompt literature, OVOR)
* ACC_pooled = Σ_i correct[k, i] / Σ_i n_i, the share of all test samples of the tasks seen that are right, each sample with the
  same weight: what iCaRL and PyCIL call the accuracy after task k
* FORG = (1/(k−1)) Σ_{i<k} (R[i, i] − R[k, i])            just learned minus final; BWT = −FORG (GEM)
* forgetting_max = (1/(k−1)) Σ_{i<k} (max_{i≤l<k} R[l, i] − R[k, i])   best since learned minus final (Chaudhry et al. 2018)
* FWT = (1/(k−1)) Σ_{i≥2} (R[i−1, i] − b_i), b_i at random initialisation (GEM); undefined where outputs grow
* average_incremental_macro = (1/k) Σ_j (1/j) Σ_{i≤j} R[j, i], the mean over task ends of what ACC is there
* average_incremental_pooled = the mean over task ends of what ACC_pooled is there: the "average incremental accuracy" of iCaRL
  and PyCIL. Where all tasks have equally many test samples, pooled and not pooled are the same. Where the first task is half of
  the classes they are far apart
* LA = (1/k) Σ_i R[i, i], each task when it was just learned (learning accuracy, Riemer et al. 2019, arXiv:1810.11910). Where a
  task is evaluated on its training samples, as on random labels, it is the trainability of Kumar et al. 2023
  (arXiv:2308.11958) and Lewandowski et al. 2024 (arXiv:2406.06811); on test samples their generalisation
* LA_slope = the least-squares slope of R[i, i] on i over the tasks 2..k, in accuracy per task; below 0 where plasticity is
  lost. Undefined below three tasks. The first task is left out, since it is learned from the initial weights

From the per-iteration table on fixed subsets (``curve``):

* min-ACC = (1/(k−1)) Σ_{i<k} min_{n > e_i} A(E_i, f_n)   strictly after the task was learned: over every evaluation since the
  next task began, before and after the hooks at the ends of later tasks. The evaluation after the task's own end is the state
  that was just learned, and does not count
* WC-ACC = (1/k) A(E_k, f) + (1 − 1/k) min-ACC            A(E_k, f) is the last evaluation, after e_k; a lower bound on ACC
* WF^w = mean over tasks of max_t max_{m<n in a window of w evaluations} (A_m − A_n), at least 0;  WP^w with the sign reversed
* LCA_10 = (1/11) Σ_{b=0..10} Z_b with Z_b = (1/k) Σ_i a_{i,b}, a_{i,b} the accuracy on task i after b of its own batches: the
  learning curve area of A-GEM (Chaudhry et al. 2019, arXiv:1812.00420, equation 5, β = 10). a_{i,0}, the zero-shot accuracy, is
  that of the state before the task begins, which ``tasks`` has on full test sets; it is undefined where outputs grow. So are
  tasks shorter than ten steps, and curves that leave one of the ten out
* LCA = mean over tasks of the mean of the first 10 accuracies evaluated while the task is learned: the same without the
  zero-shot point, for every setting and period
* AAA = mean over evaluations of the mean accuracy on the tasks seen so far (Caccia et al. 2022; ocl_survey)
* AAUC = mean over evaluations, but for that before the first step, of the share of all samples of the classes seen so far that
  are right: the area under the curve of accuracy to samples (Koh et al. 2022, arXiv:2110.10031; Moon et al. 2023), each class
  from its first sample on. Where classes arrive each with its task, these are the samples of the tasks seen so far

Windows, LCA, AAA and AAUC count evaluations, not iterations, so they belong to one evaluation period (:func:`coarsened`) and
take one evaluation of every iteration: the last, at a task's end that after e_i. Where the curve was recorded adaptively they,
recovery and gap_area are computed on the curve with its gaps :func:`filled`; the minima and what follows from them rest on
evaluated iterations alone.

Ours, labelled as such, each the mean over the tasks i that are followed by another, looking at A(E_i) while task i + 1 is
learned; its *plateau* is the mean of the last tenth of those evaluations. A(E_i, f_{e_i}) is that after the end of task i.
The last two take one evaluation of every iteration, the last:

* gap_depth = A(E_i, f_{e_i}) − min A(E_i) over task i + 1, every evaluation counted as in min-ACC
* recovery_iterations = iterations after the switch until A(E_i) is back at 95 % of its plateau for good. 0 where it never falls
  below that and nothing is lost. Undefined where accuracy falls and stays down (the plateau regains less than 5 % of what was
  lost); the mean is over the other switches, ``switches_recovered`` of ``switches``
* gap_area = Σ max(0, plateau − A(E_i)) over the evaluations of task i + 1, in accuracy × iterations: what is lost in passing;
  what stays lost is in FORG

What has no meaning for a run is None, and ``undefined`` says why. For a method that learns nothing of a task before the task
is over (RanPAC) that holds of LCA and WP, which say how fast a task is learned, and of recovery and gap_area, which say how a
task comes back while the next is learned. Its curve is flat within a task, but its minima, drops (WF) and what it would have
answered at any time (AAA) are what they are. WF^w and WP^w are undefined where no task has more evaluations than the next
shorter window: they would be the same numbers again. Where a network is trained once, on all tasks together, ACC and ACC_pooled
are all there is.

The rehearsal-free literature's global and local forgetting need predictions restricted to class subsets, which the table does
not hold; they are left out.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd

from clbench.evaluation import refinement

WINDOWS = (10, 100)
"""Window lengths of WF and WP, in evaluations."""

LCA_LENGTH = 10
RECOVERED = 0.95
REGAINED = 0.05
PLATEAU_SHARE = 0.1
SMALLEST_SUBSET = 500
"""Below this many evaluation samples a minimum over iterations is dominated by the subset's own noise."""

UNRESOLVED = 0.002
"""An adaptively recorded min-ACC that may be lower by more, in accuracy, is unresolved: an upper limit, with a warning."""

POOLED = {"ACC": "ACC_pooled", "average_incremental_macro": "average_incremental_pooled"}
"""Means over the tasks, and the same as shares of all samples of the tasks."""

NOT_COUNTED = (
    "classes arrive otherwise than task by task, and an adaptive evaluation does not count over those seen so far"
)

NO_SWITCH = "no task is followed by another"
NO_ZERO_SHOT = "it takes the accuracy on every task before it is learned, and after each of its first ten steps"
TRAINED_ONCE = "the network is trained once, on all tasks together"

Summary = dict[str, float | int | str | list[str] | dict[str, str] | None]

OF_LEARNING_WITHIN_A_TASK = ("LCA", "LCA_10", *(f"WP{w}" for w in WINDOWS), "recovery_iterations", "gap_area")
"""Metrics without a meaning for a method that learns nothing of a task before the task is over."""


def summarise(
    curve: pd.DataFrame,
    tasks: pd.DataFrame,
    every: int,
    adaptive: bool = False,
    learns_at_task_end: bool = False,
    seen: pd.DataFrame | None = None,
    trains_once: bool = False,
) -> Summary:
    """Every metric of the module docstring, plus what a reader needs to judge them.

    Args:
        curve: per-iteration table on subsets (columns: task_learning, iteration, task_eval, n, correct, loss, consolidated).
        tasks: the same columns but the last, on full test sets at task ends; task_learning −1 is the untrained network.
        every: the evaluation period, in iterations; 0 where only task switches are evaluated.
        adaptive: whether only some iterations were evaluated, at irregular distances, in place of all.
        learns_at_task_end: whether the method learns nothing of a task before the task is over.
        seen: per-iteration counts over the classes seen so far (columns: iteration, n, correct), where classes need not arrive
            each with its task; empty where nobody has counted.
        trains_once: whether all tasks but the last have no steps.

    Returns:
        Metric → value; None where it has no meaning (fewer than two tasks, a run that diverged in its first task), and then
        ``undefined`` has the metric → a clause that says why.
        ``tasks_learned`` is the k of the metrics on full test sets, less than the stream's length where a run diverged;
        ``warning`` exists only where a subset is smaller than :data:`SMALLEST_SUBSET`, or where ``min_ACC_unresolved``
        exceeds :data:`UNRESOLVED`. Where ``adaptive``, ``evaluations`` is the number of evaluated iterations,
        ``interpolated`` names the metrics computed on the filled curve, ``min_ACC_unresolved`` is that of
        :func:`unresolved_minimum`, and ``min_ACC_resolved`` says whether it is at most :data:`UNRESOLVED`. Where it is more,
        min-ACC and WC-ACC are upper limits and gap_depth is a lower one.
    """
    matrix = accuracy_matrix(tasks)
    if trains_once:
        curve = curve[:0]
    minimum, stderr = minimum_accuracy(curve)
    regular = filled(curve) if adaptive else curve
    traces = accuracy_traces(regular)
    recovery = recovery_per_switch(regular)
    on_regular_grid = {
        **{f"WF{w}": windowed_forgetting(traces, w) for w in WINDOWS},
        **{f"WP{w}": windowed_plasticity(traces, w) for w in WINDOWS},
        "LCA": learning_curve_area(regular),
        "LCA_10": learning_curve_area_from_zero_shot(regular, tasks),
        "AAA": average_anytime_accuracy(regular),
        "AAUC": area_under_accuracy(regular if seen is None else seen),
        "recovery_iterations": _mean(recovery),
        "gap_area": gap_area(regular),
    }
    pooled = pooled_accuracies(tasks)
    of_tasks = {
        "ACC": final_accuracy(matrix),
        "ACC_pooled": float(pooled[-1]) if len(pooled) else math.nan,
        "FORG": forgetting(matrix),
        "forgetting_max": forgetting_max(matrix),
        "BWT": backward_transfer(matrix),
        "FWT": forward_transfer(matrix, untrained_accuracy(tasks)),
        "average_incremental_macro": average_incremental(matrix),
        "average_incremental_pooled": float(pooled.mean()) if len(pooled) else math.nan,
        "LA": learning_accuracy(matrix),
        "LA_slope": learning_accuracy_slope(matrix),
    }
    of_curve = {
        "min_ACC": minimum,
        "min_ACC_stderr": stderr,
        "WC_ACC": worst_case_accuracy(curve),
        "gap_depth": gap_depth(curve),
        **on_regular_grid,
    }
    undefined = _why_undefined(of_tasks, len(matrix)) | _why_undefined_on_curve(of_curve, traces, learns_at_task_end)
    if trains_once:
        undefined |= dict.fromkeys([*(of_tasks.keys() - {"ACC", "ACC_pooled"}), *of_curve], TRAINED_ONCE)
    summary: Summary = {name: None if name in undefined else v for name, v in {**of_tasks, **of_curve}.items()}
    summary["undefined"] = undefined
    summary["switches"] = len(recovery)
    summary["switches_recovered"] = None if learns_at_task_end or trains_once else int(np.isfinite(recovery).sum())
    summary["tasks_learned"] = len(matrix)
    summary["every"] = every
    summary["smallest_subset"] = int(curve.n.min()) if len(curve) else None
    warnings = []
    if len(curve) and curve.n.min() < SMALLEST_SUBSET:
        warnings.append(_small_subset_warning(curve, tasks))
    if adaptive:
        unresolved = unresolved_minimum(curve)
        summary["evaluations"] = curve.iteration.nunique()
        summary["interpolated"] = list(on_regular_grid)
        summary["min_ACC_unresolved"] = None if math.isnan(unresolved) else unresolved
        summary["min_ACC_resolved"] = not unresolved > UNRESOLVED
        if math.isnan(unresolved):
            undefined["min_ACC_unresolved"] = undefined["min_ACC"]
        if unresolved > UNRESOLVED:
            warnings.append(
                "min-ACC, WC-ACC and gap depth are limits and no values: between the evaluations min-ACC may be up to "
                f"{100 * unresolved:.1f} points lower, which is an estimate: evaluate every iteration"
            )
    if warnings:
        summary["warning"] = "; ".join(warnings)
    return summary


def _why_undefined(of_tasks: dict[str, float], k: int) -> dict[str, str]:
    """Why metrics on full test sets after ``k`` task ends are NaN, by name, for those that are."""
    reasons = {}
    for name in (name for name, value in of_tasks.items() if math.isnan(value)):
        if k == 0:
            reasons[name] = "no task was learned to its end"
        elif name == "LA_slope":
            reasons[name] = "a slope takes three tasks"
        elif k == 1:
            reasons[name] = NO_SWITCH
        else:
            reasons[name] = "outputs grow with the tasks, so that there is no accuracy on a task before it is learned"
    return reasons


def _why_undefined_on_curve(
    of_curve: dict[str, float], traces: list[np.ndarray], learns_at_task_end: bool
) -> dict[str, str]:
    """Why metrics on the curve, whose accuracies are ``traces``, have no meaning, by name, for those that have none."""
    if not traces:
        return dict.fromkeys(of_curve, "nothing was evaluated")
    reasons = {}
    if learns_at_task_end:
        reasons = dict.fromkeys(
            OF_LEARNING_WITHIN_A_TASK, "the method learns nothing of a task before the task is over"
        )
    longest = max(map(len, traces))
    for shorter, window in pairwise(WINDOWS):
        if longest <= shorter:
            clause = f"no task has more than {shorter} evaluations, so that it would be that of {shorter} again"
            reasons = {f"WF{window}": clause, f"WP{window}": clause} | reasons
    for name in (name for name, value in of_curve.items() if math.isnan(value) and name not in reasons):
        if name in ("LCA_10", "AAUC"):
            reasons[name] = NO_ZERO_SHOT if name == "LCA_10" else NOT_COUNTED
            continue
        lost = name == "recovery_iterations" and not math.isnan(of_curve["gap_area"])
        reasons[name] = "what is lost at a switch stays lost" if lost else NO_SWITCH
    return reasons


def _small_subset_warning(curve: pd.DataFrame, tasks: pd.DataFrame) -> str:
    subset, whole = curve.groupby("task_eval").n.max(), tasks.groupby("task_eval").n.max()
    task = subset.idxmin()
    remedy = "all there are" if subset[task] == whole.get(task) else "evaluator.subset can be raised"
    return (
        f"worst-case metrics rest on {subset[task]} samples per task, fewer than {SMALLEST_SUBSET} ({remedy}): "
        "read min-ACC with its standard error"
    )


# ---- full test sets at task ends ------------------------------------------------------------------------------------


def accuracy_matrix(tasks: pd.DataFrame) -> np.ndarray:
    """R (k, T): accuracy on task i after task j at [j, i]; NaN where it was not measured."""
    trained = tasks[tasks.task_learning >= 0]
    if not len(trained):
        return np.empty((0, 0))
    shape = trained.task_learning.max() + 1, trained.task_eval.max() + 1
    matrix = np.full(shape, np.nan)
    matrix[trained.task_learning, trained.task_eval] = trained.correct / trained.n
    return matrix


def untrained_accuracy(tasks: pd.DataFrame) -> np.ndarray | None:
    """b (T,): accuracy of the network at initialisation, or None where it was not measured."""
    rows = tasks[tasks.task_learning == -1].sort_values("task_eval")
    return (rows.correct / rows.n).to_numpy() if len(rows) else None


def final_accuracy(R: np.ndarray) -> float:
    """ACC: mean accuracy over the tasks seen, after the last of them."""
    return float(R[-1, : len(R)].mean()) if len(R) else math.nan


def pooled_accuracies(tasks: pd.DataFrame) -> np.ndarray:
    """The share (k,) of all test samples of the tasks seen that are right, after every task."""
    seen = tasks[(tasks.task_learning >= 0) & (tasks.task_eval <= tasks.task_learning)]
    counts = seen.groupby("task_learning")[["correct", "n"]].sum()
    return (counts.correct / counts.n).to_numpy(float)


def forgetting(R: np.ndarray) -> float:
    """FORG: just learned minus final, mean over all tasks but the last."""
    k = len(R)
    return float(np.mean([R[i, i] - R[-1, i] for i in range(k - 1)])) if k > 1 else math.nan


def forgetting_max(R: np.ndarray) -> float:
    """Best accuracy since a task was learned and before the last task, minus final; may be negative."""
    k = len(R)
    return float(np.mean([R[i : k - 1, i].max() - R[-1, i] for i in range(k - 1)])) if k > 1 else math.nan


def backward_transfer(R: np.ndarray) -> float:
    """BWT: final minus just learned."""
    return -forgetting(R)


def forward_transfer(R: np.ndarray, untrained: np.ndarray | None) -> float:
    """FWT: accuracy on a task before learning it, minus the untrained network's."""
    k = len(R)
    if untrained is None or k < 2:
        return math.nan
    return float(np.mean([R[i - 1, i] - untrained[i] for i in range(1, k)]))


def average_incremental(R: np.ndarray) -> float:
    """Mean over task ends of the mean accuracy on the tasks seen by then."""
    return float(np.mean([R[j, : j + 1].mean() for j in range(len(R))])) if len(R) else math.nan


def learning_accuracy(R: np.ndarray) -> float:
    """LA: mean over the tasks of the accuracy on a task when it was just learned."""
    return float(just_learned(R).mean()) if len(R) else math.nan


def learning_accuracy_slope(R: np.ndarray) -> float:
    """LA_slope: least-squares slope, per task, of the accuracy on a task when it was just learned; without the first task."""
    accuracy = just_learned(R)[1:]
    if len(accuracy) < 2:
        return math.nan
    task = np.arange(len(accuracy)) - (len(accuracy) - 1) / 2  # centred, so that the intercept drops out
    return float((task * accuracy).sum() / (task**2).sum())


def just_learned(R: np.ndarray) -> np.ndarray:
    """R[i, i] (k,): the accuracy on every task when it was just learned; R (k, k) as :func:`accuracy_matrix` gives it."""
    return np.diagonal(R)


# ---- per-iteration table on subsets -----------------------------------------------------------------------------------


def in_order(curve: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order in which they were evaluated: at a task's end, those after its hooks come last.

    Curves from before there were such rows have no column ``consolidated``; here they get it.
    """
    if "consolidated" not in curve:
        curve = curve.assign(consolidated=False)
    return curve.iloc[np.lexsort((curve.task_eval, curve.consolidated, curve.iteration))]


def last_of_iteration(curve: pd.DataFrame) -> pd.DataFrame:
    """One evaluation of every iteration, in order: the last, at a task's end that after its hooks."""
    ordered = in_order(curve)
    return ordered[~ordered.duplicated(["iteration", "task_eval"], keep="last")]


def accuracy_traces(curve: pd.DataFrame) -> list[np.ndarray]:
    """Accuracy of every task after every evaluated iteration, from its first one on."""
    table = last_of_iteration(curve)
    return [rows.to_numpy() for _, rows in (table.correct / table.n).groupby(table.task_eval)]


def minimum_accuracy(curve: pd.DataFrame) -> tuple[float, float]:
    """min-ACC, and its binomial standard error √(Σ_i p_i (1 − p_i) / n_i) / (k − 1)."""
    after = curve[curve.task_eval < curve.task_learning].reset_index(drop=True)
    if not len(after):
        return math.nan, math.nan
    after = after.assign(accuracy=after.correct / after.n)
    worst = after.loc[after.groupby("task_eval").accuracy.idxmin()]
    variance = (worst.accuracy * (1 - worst.accuracy) / worst.n).sum()
    return float(worst.accuracy.mean()), float(math.sqrt(variance) / len(worst))


def unresolved_minimum(curve: pd.DataFrame) -> float:
    """How much lower min-ACC may be between the evaluations of an adaptively recorded curve (ours).

    Mean over the tasks of how far :func:`clbench.evaluation.refinement.lowest_plausible`, over the intervals after every switch,
    lies below the lowest accuracy found. An estimate from a model of the curve, and no proof: how often it held is measured by
    ``benchmarks/adaptive_error.py``.
    """
    curve = in_order(curve)
    accuracy = curve.correct / curve.n
    ends = curve.groupby("task_learning").iteration.max()
    # Nothing lies between the two evaluations of a task's last iteration, so that one of them is left out here.
    steps = curve.assign(accuracy=accuracy)[~curve.consolidated]
    switches = []  # since each switch: evaluated steps (P,), accuracies on the earlier tasks (P, tasks)
    for task in range(1, len(ends)):
        rows = steps[(steps.task_learning == task) & (steps.task_eval < task)]
        after = rows.pivot(index="iteration", columns="task_eval", values="accuracy").sort_index()
        switches.append((after.index.to_numpy() - ends[task - 1], after.to_numpy()))
    suspected = refinement.suspected_depth([refinement.overall(refinement.roughness(*switch)) for switch in switches])
    bridges = [(a[:-1], a[1:], refinement.variances(at, a, suspected)) for at, a in switches]
    undercuts = []
    for task in range(len(ends) - 1):
        of_task = [[part[:, task] for part in parts] for parts in bridges[task:]]
        start, end, variance = (np.concatenate(parts) for parts in zip(*of_task, strict=True))
        lowest = accuracy[(curve.task_eval == task) & (curve.task_learning > task)].min()
        undercuts.append(lowest - refinement.lowest_plausible(start, end, variance, lowest))
    return float(np.mean(undercuts)) if undercuts else math.nan


def worst_case_accuracy(curve: pd.DataFrame) -> float:
    """WC-ACC at the end of the curve, after the hooks at a task's end; the accuracy on the first task while there is only one."""
    if not len(curve):
        return math.nan
    last_task = curve.task_learning.max()
    rows = curve[(curve.task_learning == last_task) & (curve.task_eval == last_task)]
    last = in_order(rows).iloc[-1]
    current = float(last.correct / last.n)
    k = last_task + 1
    return current if k == 1 else float(current / k + (1 - 1 / k) * minimum_accuracy(curve)[0])


def windowed_forgetting(traces: list[np.ndarray], window: int) -> float:
    """WF^w: the largest drop within ``window`` successive evaluations, mean over tasks."""
    if not traces:
        return math.nan
    return float(np.mean([(pd.Series(a).rolling(window, min_periods=1).max() - a).max() for a in traces]))


def windowed_plasticity(traces: list[np.ndarray], window: int) -> float:
    """WP^w: the largest rise within ``window`` successive evaluations, mean over tasks."""
    return windowed_forgetting([-trace for trace in traces], window)


def learning_curve_area(curve: pd.DataFrame) -> float:
    """LCA: mean of the first ten accuracies on each task while it is learned, mean over tasks."""
    learning = last_of_iteration(curve[(curve.task_eval == curve.task_learning) & (curve.iteration > 0)])
    accuracy = (learning.correct / learning.n).groupby(learning.task_eval)
    return float(accuracy.apply(lambda a: a.head(LCA_LENGTH).mean()).mean()) if len(learning) else math.nan


def learning_curve_area_from_zero_shot(curve: pd.DataFrame, tasks: pd.DataFrame) -> float:
    """LCA_10 of A-GEM: mean over tasks of the mean of the zero-shot accuracy and those after each of the first ten steps.

    NaN where a zero-shot accuracy was not measured, or one of the ten was not evaluated.
    """
    matrix, untrained = accuracy_matrix(tasks), untrained_accuracy(tasks)
    if not len(curve) or not len(matrix) or untrained is None:
        return math.nan
    ends = curve.groupby("task_learning").iteration.max()
    areas = []
    for task in range(len(matrix)):
        before = matrix[task - 1, task] if task else untrained[0]
        start = ends.get(task - 1, 0)
        own = last_of_iteration(curve[(curve.task_learning == task) & (curve.task_eval == task)])
        accuracy = (own.correct / own.n).set_axis(own.iteration - start)
        first = accuracy.reindex(range(1, LCA_LENGTH + 1))
        areas.append((before + first.sum(skipna=False)) / (1 + LCA_LENGTH))
    return float(np.mean(areas))


def average_anytime_accuracy(curve: pd.DataFrame) -> float:
    """AAA: mean over evaluations of the mean accuracy on the tasks seen so far."""
    if not len(curve):
        return math.nan
    last = last_of_iteration(curve)
    return float((last.correct / last.n).groupby(last.iteration).mean().mean())


def area_under_accuracy(counts: pd.DataFrame) -> float:
    """AAUC of a table with the columns iteration, n and correct, of all tasks or of all classes seen so far."""
    last = last_of_iteration(counts) if "task_eval" in counts else counts.drop_duplicates("iteration", keep="last")
    pooled = last[last.iteration > 0].groupby("iteration")[["correct", "n"]].sum()
    return float((pooled.correct / pooled.n).mean()) if len(pooled) else math.nan


def gap_depth(curve: pd.DataFrame) -> float:
    """How far accuracy on a task falls below its value at the switch while the next task is learned (ours).

    The value at the switch is that after the hooks at the task's end.
    """
    return _mean(_per_switch(curve, lambda iterations, accuracy, before: before - accuracy.min()))


def recovery_iterations(curve: pd.DataFrame) -> float:
    """Mean of :func:`recovery_per_switch` over the switches where it is defined (ours)."""
    return _mean(recovery_per_switch(curve))


def recovery_per_switch(curve: pd.DataFrame) -> np.ndarray:
    """Iterations after a switch until accuracy on the task before stays at 95 % of its plateau or above (ours).

    Returns:
        float (S,), a value for every task that is followed by another; NaN where accuracy falls and stays down.
    """

    def recovery(iterations: np.ndarray, accuracy: np.ndarray, before: float) -> float:
        plateau, lowest = _plateau(accuracy), accuracy.min()
        below = np.flatnonzero(accuracy < RECOVERED * plateau)
        if not len(below):
            # No dip: either nothing was lost, or what was lost stayed lost.
            return 0.0 if plateau >= RECOVERED * before else math.nan
        if plateau - lowest < REGAINED * (before - lowest):
            return math.nan  # a few samples that come and go after everything else is forgotten
        # The last evaluation lies within the plateau, but may itself be a dip: then there was no recovery.
        back = below[-1] + 1
        return math.nan if back == len(accuracy) else float(iterations[back])

    return _per_switch(last_of_iteration(curve), recovery)


def gap_area(curve: pd.DataFrame) -> float:
    """Accuracy missing to the plateau, summed over the iterations of the next task (ours)."""

    def area(iterations: np.ndarray, accuracy: np.ndarray, before: float) -> float:
        missing = np.maximum(0, _plateau(accuracy) - accuracy)
        return float((missing * np.diff(iterations, prepend=0)).sum())

    return _mean(_per_switch(last_of_iteration(curve), area))


def coarsened(curve: pd.DataFrame, every: int) -> pd.DataFrame:
    """The rows that ``evaluator.every=every`` would have left of a curve recorded at every iteration (0: switches only)."""
    first = curve.groupby("task_learning").iteration.transform("min")
    last = curve.groupby("task_learning").iteration.transform("max")
    start = (first - 1).clip(lower=0)  # iteration 0 belongs to the first task, whose steps begin at 1
    step = curve.iteration - start
    periodic = step % every == 0 if every else False
    return curve[(step <= 1) | (curve.iteration == last) | periodic]


def filled(curve: pd.DataFrame) -> pd.DataFrame:
    """The curve with a row for every iteration between a task's first and last evaluation while another is learned.

    ``correct`` (then a float) and ``loss`` are interpolated linearly between the evaluations next to the missing iteration;
    nothing is drawn across a task switch, nor to an evaluation after the hooks at a task's end, which stays as it is. Rows are
    in order, see :func:`in_order`.
    """
    curve = in_order(curve)
    if not len(curve):
        return curve
    parts = [curve[curve.consolidated]]
    for (learning, task), rows in curve[~curve.consolidated].groupby(["task_learning", "task_eval"]):
        iterations = np.arange(rows.iteration.iloc[0], rows.iteration.iloc[-1] + 1)
        part = {
            "task_learning": learning,
            "iteration": iterations,
            "task_eval": task,
            "n": rows.n.iloc[0],
            "correct": np.interp(iterations, rows.iteration, rows.correct),
            "loss": np.interp(iterations, rows.iteration, rows.loss),
            "consolidated": False,
        }
        parts.append(pd.DataFrame(part))
    return in_order(pd.concat(parts)).reset_index(drop=True)


def _plateau(accuracy: np.ndarray) -> float:
    return float(accuracy[-max(1, math.ceil(PLATEAU_SHARE * len(accuracy))) :].mean())


def _per_switch(curve: pd.DataFrame, measure: Callable[[np.ndarray, np.ndarray, float], float]) -> np.ndarray:
    """``measure(iterations since the switch, accuracies, accuracy at the switch)`` of every task while the next is learned."""
    table = in_order(curve.assign(accuracy=curve.correct / curve.n))
    own, following = table[table.task_eval == table.task_learning], table[table.task_eval + 1 == table.task_learning]
    at_switch = own.groupby("task_eval")[["iteration", "accuracy"]].last()
    values = []
    for task, rows in following.groupby("task_eval"):
        since = rows.iteration.to_numpy() - at_switch.iteration[task]
        values.append(measure(since, rows.accuracy.to_numpy(), at_switch.accuracy[task]))
    return np.array(values, np.float64)


def _mean(values: np.ndarray) -> float:
    """Mean of the defined values, NaN where there are none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan
