"""torch's optimizers without its compiler, which they import in their first call.

Their methods are wrapped for use within ``torch.compile``, and the wrappers import ``torch._dynamo``, which takes about as long
as torch itself. Nothing of clbench compiles an update, so the methods are taken as they are below the wrappers: the same
arithmetic to the bit.
"""

from inspect import unwrap

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer whose bookkeeping is not wrapped for a compiler."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(EagerOptimizer, torch.optim.SGD):
    """``torch.optim.SGD``."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Adam(EagerOptimizer, torch.optim.Adam):
    """``torch.optim.Adam``."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class Adagrad(EagerOptimizer, torch.optim.Adagrad):
    """``torch.optim.Adagrad``."""

    step = torch.no_grad()(unwrap(torch.optim.Adagrad.step))


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """``torch.optim.AdamW``."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
