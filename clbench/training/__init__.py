"""The training loop, and what it needs. Begin with ``trainer``.

``trainer``     the only loop: tasks, stages, steps; ``steps`` what a step is handed
``fleet``       the same for many runs as one computation
``checkpoint``  what is saved, so that a kill at any instant leaves a whole file; ``frozen_weights`` what need not be
``optimizers``  by name; ``eager_optimizers``, ``elementwise_adam`` and ``stacked_optimizer`` are variants of torch's
``held``        weights that a stage leaves as they are, or trains more slowly
``compute_budget``  what a step costs, for streams that do not wait
``loss_record``, ``single_samples``, ``interruption``  losses to the record; batches of one sample; Ctrl-C and SIGTERM
"""
