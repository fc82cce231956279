"""clbench: a continual-learning result is a curve, and this is the fastest honest way to get it.

A run is composed (``compose``), checked and built (``set_up``: data → scenario → network → learner), trained (``training``, which
asks ``evaluation`` for the curve) and recorded (``recording`` writes what ``records`` describes). ``run`` leads it through all of
this; reports read run folders alone. To read the code, begin with ``run`` and ``set_up``, then ``learning`` and ``training``.

What there is, the lowest first. A module imports from the lines above its own and from its own folder, never from a line below;
``tests/test_layers.py`` holds the code to this list.

``errors``                                     what a user can do wrong, in one sentence each
``registry``, ``options``, ``machine_errors``  names on the command line; documented fields; what the machine refuses
``seeding``, ``precision``, ``progress``       named random streams; autocast; the progress bar
``protocol.options``                           the options of protocols, which are part of a configuration
``config``, ``conf_files``                     a run's configuration as dataclasses; where YAML files lie
``data``                                       sources of samples, and the store that holds them
``scenarios``                                  streams of tasks, as indices into a store
``models``                                     backbones, heads, and what methods put into them
``learning``                                   what a method is, and how it is carried through training
``strategies``, ``evaluation``                 the methods, a file each; the curve and its metrics
``records``                                    the run folder
``training``, ``reports``                      the training loop; tables and figures
``compose``                                    configurations from YAML files and overrides
``published``                                  figures of papers beside those of runs
``set_up``                                     from a configuration to all that a run needs
``recording``                                  what is written of a run
``run``                                        the life of a run
``protocol``, ``sweeps``                       tuning apart from evaluation; many runs together
``command_line``                               from words to one of these
``listing``, ``pretraining``, ``reproduction``, ``language_models``, ``scenarios.freeze``  further commands
``testing``                                    tests for methods, also for one's own
``__main__``                                   ``python -m clbench``
"""

__version__ = "0.1.0"
