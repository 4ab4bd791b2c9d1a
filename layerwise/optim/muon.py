"""Muon: momentum whose matrices are made orthogonal before they are applied.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io,
2024); the size of the update follows Liu et al., "Muon is Scalable for LLM Training",
arXiv:2502.16982, so that a learning rate and weight decay tuned for AdamW carry over. Filters
(o, i, k, k) are taken as matrices (o, i k k). Vectors and the last layer go to AdamW.

Shapes: m x n matrix, m <= n after turning it where needed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from layerwise import runtime
from layerwise.errors import OptionError, unknown
from layerwise.optim.eager import Eager

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values grow by 3.4 per step


def orthogonal(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """U S' V^T for U S V^T = matrix, with S' between about 0.7 and 1.2 after 5 steps.

    Newton-Schulz iteration of an odd quintic polynomial of the singular values: products only, no
    decomposition, so it runs in bf16 too. matrix: (m, n), any dtype; returns its dtype.
    """
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)  # the largest singular value is at most 1
    x = x.to(dtype)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T  # (m, m)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(Eager):
    """Muon for matrices and filters, AdamW (or SGD) for the rest, in one optimiser.

    params: parameters or groups of them; a group may set any option below for itself, and
        "lr_scale", which the learning-rate schedule multiplies into it. Where a group has
        "names" of its parameters, those of the layer "head" go to AdamW although matrices.
    lr: learning rate; an update of a matrix has about 0.2 lr root mean square, as AdamW's.
    weight_decay: decoupled. momentum: Nesterov's, of the matrices. betas, eps: of AdamW.
    ns_steps: of the orthogonalisation.
    renormalise: matrices keep the norm they started with, and a step of `lr` turns them by a share
        of that norm instead (lr 0.24 in the CIFAR-10 record). Right where a normalisation follows
        each layer, since only the direction of its filters counts there; no weight decay then.
    rest: "adamw", or "sgd" with Nesterov's momentum `betas[0]` and weight decay in the gradient.
    Errors: OptionError for options out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
        renormalise: bool = False,
        rest: str = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        if lr < 0 or not 0 <= momentum < 1 or ns_steps < 1:
            raise OptionError(
                "Muon takes lr >= 0, 0 <= momentum < 1 and ns_steps >= 1; "
                f"lr {lr}, momentum {momentum}, ns_steps {ns_steps} were given"
            )
        if rest not in RESTS:
            raise unknown("optimizer of the rest", rest, RESTS)
        matrices = {"momentum": momentum, "ns_steps": ns_steps, "renormalise": renormalise}
        defaults = {"lr": lr, "lr_scale": 1.0, "weight_decay": weight_decay, "matrices": True}
        super().__init__(params, {**defaults, **matrices, "rest": rest, "betas": betas, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add one group as two: its matrices, and its vectors and head; empty ones are left out."""
        group = {**self.defaults, **param_group}
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        names = group.pop("names", [""] * len(params))
        for matrices in (True, False):
            named = zip(params, names, strict=True)
            chosen = [p for p, name in named if orthogonalised(p, name) == matrices]
            if chosen:
                super().add_param_group({**group, "params": chosen, "matrices": matrices})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads
        """One update from the gradients; parameters without one are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                for p in params:
                    self.orthogonal_step(p, group)
            elif params:
                RESTS[group["rest"]](self, params, group)
        return loss

    def orthogonal_step(self, p: Tensor, group: dict[str, Any]) -> None:
        """Muon's update of one matrix or filter."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
            state["norm"] = p.norm().float()
        momentum, gradient = state["momentum"], p.grad
        assert gradient is not None
        momentum.mul_(group["momentum"]).add_(gradient)
        gradient = gradient.add(momentum, alpha=group["momentum"])
        dtype = torch.bfloat16 if runtime.native_bf16(p.device.type) else torch.float32
        flat = gradient.reshape(len(p), -1)
        update = orthogonal(flat, group["ns_steps"], dtype).view_as(p)
        if group["renormalise"] and (norm := float(state["norm"])) > 0:
            p.mul_(norm / p.norm())
            p.add_(update, alpha=-group["lr"] * norm / len(p) ** 0.5)
        else:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-0.2 * group["lr"] * max(flat.shape) ** 0.5)

    def adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """AdamW's update of vectors and head, one kernel over the group."""
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        for s in states:
            s["step"] += 1
        gradients = [p.grad for p in params if p.grad is not None]
        means, squares, steps = ([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq", "step"))
        options = {"beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}
        options |= {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        options |= {"amsgrad": False, "maximize": False}
        torch._fused_adamw_(params, gradients, means, squares, [], steps, **options)

    def sgd(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Nesterov's update of vectors and head, weight decay as part of the gradient."""
        momentum = group["betas"][0]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            gradient, velocity = p.grad, self.state[p]["momentum"]
            gradient = gradient.add(p, alpha=group["weight_decay"])
            velocity.mul_(momentum).add_(gradient)
            p.add_(gradient.add(velocity, alpha=momentum), alpha=-group["lr"])


def orthogonalised(p: Tensor, name: str) -> bool:
    """Two axes or more, more than one row and column once flattened, and not the head's."""
    in_head = name.split(".")[0] in ("head", "token_embed", "pos_embed")
    return p.ndim >= 2 and len(p) > 1 and p.numel() > len(p) and not in_head


RESTS = {"adamw": Muon.adamw, "sgd": Muon.sgd}
