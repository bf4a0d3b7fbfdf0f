"""LAMB: Adam whose step in each tensor is as long as the tensor allows.

    optimizer = Lamb(model.parameters(), lr=2e-3, weight_decay=0.1)

Source: You et al. 2020, "Large Batch Optimization for Deep Learning", arXiv:1904.00962,
algorithm 2, with the norm itself as its function phi.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """For each tensor w, with Adam's means m and v, both corrected for their start at zero:

        u = m / (sqrt(v) + eps) + weight_decay * w
        w = w - lr * |w| / |u| * u

    Where |w| or |u| is zero, as of a bias at the start, their ratio counts as 1.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step. closure: computes the loss and the gradients again; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.sub_(group["lr"] * self.direction(w, group))
        return loss

    def direction(self, w: Tensor, group: dict) -> Tensor:
        """u |w| / |u|, like w. Keeps its means up to date."""
        state, (beta1, beta2) = self.state[w], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(w), torch.zeros_like(w)
        state["step"] += 1
        mean, square, step = state["exp_avg"], state["exp_avg_sq"], state["step"].item()
        mean.lerp_(w.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        u = (mean / (1 - beta1**step)).div_(root).add_(w, alpha=group["weight_decay"])
        length, of_w = u.norm(), w.norm()
        return u * torch.where((length > 0) & (of_w > 0), of_w / length, 1.0)
