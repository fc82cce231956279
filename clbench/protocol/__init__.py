"""Protocols that separate tuning from evaluation: search spaces, streams, selection, tuned values."""
