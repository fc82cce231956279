"""Many runs of a sweep, trained together in the fastest way: ``hydra/launcher=fleet``. Begin with ``fleet_runs``.

``fleet_runs``  trains a group of runs, each in its own run folder
``grouping``    which runs may train as one stack
``ways``        stacked, in turn or in processes, and how fast each is here
"""
