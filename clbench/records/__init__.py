"""The run folder: everything that a run leaves behind, and the only thing that reports read. Begin with ``run_folder``.

``run_folder``   its files, each written whole or not at all
``summary``      the fields and the format of ``summary.json``
``continuity``   whether a run that is gone on with is still the one that was begun
``plug_ins``     which code a method of another package has
``log_file``     ``clbench.log``
``peak_memory``  of one run among others in a process
``wandb_log``    the same numbers for Weights & Biases
"""
