"""What a run is measured by: the curve, and everything that is computed from it. Begin with ``evaluator``.

``evaluator``     accuracy on every task seen so far, after every so many steps
``adaptive``      the same from fewer evaluations; ``refinement`` chooses where
``stacked``       many states in one forward pass, for fleets and snapshots
``metrics``       every metric, as a pure function of the tables that a run writes; ``chance`` what guessing is worth
``spoken``        the same of what a language model says
``per_sample``    refuses predictions that depend on other samples of the batch
``diagnostics``, ``plasticity``, ``connectivity``, ``policy_shift``  optional measures of the network
"""
