"""The command line: what is asked for, whether it is possible, and handing it to Hydra. Begin with ``launch``.

``launch``        runs, sweeps, studies and going on with one of them
``arguments``     the words, taken apart
``checks``        what is wrong with them, found before Hydra makes anything of them
``explanations``  sentences for what Hydra and OmegaConf refuse
``folders``       where a run or a sweep is written
``single_run``    one run, without Hydra's composing it anew
``help``          ``--help`` and ``--version``
"""
