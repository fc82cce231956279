"""clbench: a continual-learning result is a curve, and this is the fastest honest way to get it."""

__version__ = "0.1.0"
