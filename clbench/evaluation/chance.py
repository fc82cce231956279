"""What a diverged run counts as: the accuracy of guessing. Tuning and reports share it; nothing here needs torch."""

from typing import Any

WORST = ("min_ACC", "WC_ACC")
"""Worst-case accuracies: a diverged run counts 0 in them, the lowest there is, so that nothing gains by diverging."""

OF_SINGLE_TASKS = ("LA", "LCA", "LCA_10")
"""Accuracies on each task while it is learned or when it was just learned, mean over tasks."""

AT_THE_END = ("ACC", "ACC_pooled")

POOLED = ("ACC_pooled", "average_incremental_pooled", "AAUC")
"""Shares of all samples, and no means over tasks."""

AVERAGED = ("average_incremental_macro", "average_incremental_pooled", "AAA", "AAUC")

ACCURACIES = (*AT_THE_END, *AVERAGED, *OF_SINGLE_TASKS, *WORST)
"""The metrics in which a diverged run has a value. Forgetting, plasticity, gaps and costs of such a run are unknown: a network
that guesses from the start forgets nothing, and would win."""


def chance_level(scenario: dict[str, Any], metric: str) -> float:
    """What guessing scores on a stream, from its ``scenario.json``.

    After task k a guess is right with probability 1 / (classes seen so far) in class-incremental streams, 1 / (classes of the
    task) where the task is given, 1 / classes in domain-incremental ones. Metrics that average over the stream average these;
    ACC has the last one, LA that of each task by itself, pooled accuracies weigh tasks by the samples they are
    measured on: those held out for validation where there are some, else the test samples. Worst-case metrics
    count 0.
    """
    if metric in WORST:
        return 0.0
    tasks = scenario["tasks"]
    sizes = [len(task["classes"]) for task in tasks]
    match scenario["setting"]:
        case "class":
            chances = [1 / sum(sizes[: k + 1]) for k in range(len(sizes))]
        case "task" if metric not in OF_SINGLE_TASKS:
            weights = [task.get("n_validation", task["n_test"]) if metric in POOLED else 1 for task in tasks]
            chances = [
                sum(weight / n for weight, n in zip(weights[: k + 1], sizes[: k + 1], strict=True))
                / sum(weights[: k + 1])
                for k in range(len(sizes))
            ]
        case _:
            chances = [1 / n for n in sizes]
    return chances[-1] if metric in AT_THE_END else sum(chances) / len(chances)
