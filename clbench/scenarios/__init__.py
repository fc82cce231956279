"""Scenario builders: a scenario is a list of tasks, and a task is index tensors into a Store."""
