"""Protocols that keep tuning apart from evaluation: ``protocol=…`` on the command line. Begin with ``study``.

``study``         every method tuned, the selected values evaluated, all recorded in one folder
``options``       what can be chosen
``methods``       which methods the command line names
``streams``       what is tuned on, and what is evaluated on
``search_space``  what is tried, and the draws from it
``tuning``        which runs are due, and which values are best; ``journal`` remembers the draws
``tuned_values``  what a study leaves for later runs, ``+best=true``
"""
