"""Streams: a scenario is a list of tasks, and a task is index tensors into a store. Begin with ``scenario``.

``scenario``       three splits, each a table of samples in the order of tasks; ``task`` one of these as a method sees it
``build``          from a configuration to that: the only place where data are split
``image_sizes``    images resized, and framed by zeros
``inputs``         from stored samples to what a network takes; ``stacked_inputs`` for many runs
``frozen``         definitions that a stream has to equal; ``freeze`` writes them
``own_data``       data of one's own
``cached_prefix``  a stream of what frozen stages make of the samples

Kinds of streams are registered classes: see ``class_incremental``, then ``domain_incremental``, ``label_shift``, ``blurry``,
``class_repetition``. ``arrival`` has what goes with every kind: gradual drift, and where boundaries are told.
"""
