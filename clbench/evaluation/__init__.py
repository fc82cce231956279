"""The continual evaluator, and the metrics computed from its table."""
