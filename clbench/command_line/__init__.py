"""The command line: what is asked for, whether it is possible, and handing it to Hydra."""
