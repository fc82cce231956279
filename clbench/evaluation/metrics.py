"""Stub during bring-up."""


def summarise(curve, tasks, every):
    last = tasks[tasks.task_learning == tasks.task_learning.max()]
    return {"ACC": float((last.correct / last.n).mean())}
