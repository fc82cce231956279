"""The run folder: everything a run leaves behind, and the only thing reports read."""
