"""What several methods share. A method imports one of these, or takes it as its base.

``memory``         which samples are kept: reservoirs and class-balanced memories, as ids; ``slot_memory`` with more than ids
``replay_policy``  which of them are replayed, and which are kept of classes and of tasks
``replay_losses``  cross-entropies for new and replayed samples
``exemplars``      samples that the network chooses at a task's end
``teacher``        the network as it was before the task; ``initial_weights`` as it was when the run began
``shadow_weights``  weights that follow those that are trained
``rollouts``       answers drawn from the network as from a policy
``importance``     how much single weights are worth to earlier tasks
``fisher``         the Fisher information of weights, by several estimators
``sample_gradients``  gradients of single samples
``frozen_features``, ``least_squares``, ``random_representation``, ``class_statistics``  classifiers that are fitted without
gradients
``masked_layers``, ``sparsity``, ``task_statistics``  a subnetwork for each task
``prompting``      prompts in a frozen transformer
``unit_resets``    units that begin anew
"""
