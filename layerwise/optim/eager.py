"""PyTorch's optimisers without its compiler: a process that compiles nothing need not import it.

`torch.optim` marks its methods for the compiler by wrappers that import it on the first call,
which takes more than a second. These are the same classes with what is inside the wrappers.
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class Eager(Optimizer):
    """An optimiser whose own steps are never compiled; stands before the class to be unwrapped."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class AdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class SGD(Eager, torch.optim.SGD):
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class LBFGS(Eager, torch.optim.LBFGS):
    step = torch.no_grad()(unwrap(torch.optim.LBFGS.step))
