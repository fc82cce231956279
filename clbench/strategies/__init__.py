"""Continual-learning methods, one file each, named after the method."""
