"""What all trainings share: Muon for matrices, a schedule that can stop at any time, averaged weights."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the nearest semi-orthogonal matrices, roughly: singular values pulled to about 1.

    matrices: (N, rows, columns), float32. Quintic Newton-Schulz iteration with the coefficients of
    Muon (Jordan et al., 2024). `torch.optim.Muon` always works in bfloat16, which a CPU without
    hardware for it multiplies fifty times slower: here `dtype` says.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; takes matrices and convolution kernels (one row an output).

    The update's root mean square matches AdamW's (0.2 * sqrt(max(rows, columns))), so learning rates
    of the same size serve both. Parameters of one shape are orthogonalised in one batch.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, params in alike.items():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, buffer, group["momentum"]).flatten(1))
                size = 0.2 * max(updates[0].shape) ** 0.5
                for p, update in zip(params, orthogonalize(torch.stack(updates), dtype=self.dtype), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view(shape), alpha=-group["lr"] * size)


def make_optimizers(
    model: nn.Module,
    matrices: Iterable[nn.Parameter],
    lr: float,
    matrix_lr: float,
    weight_decay: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters of `model` but `matrices`, and Muon, which works in `dtype`, for those."""
    chosen = list(matrices)
    ids = {id(p) for p in chosen}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    optimizers = [
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0),
        Muon(chosen, matrix_lr, weight_decay=weight_decay, dtype=dtype),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def set_lr(
    optimizers: list[torch.optim.Optimizer], step: int, progress: float, warmup: int, decay: float
) -> float:
    """Scale all learning rates: linear warm-up over steps, flat, linear to 2% in the last `decay` of the time.

    progress: fraction of the time budget used, 0 to 1. Flat in the middle, so that a later run can go on
    from here without having known the length of this one. Returns the factor.
    """
    fall = (1 - progress) / decay if decay else 1.0
    factor = min(1.0, (step + 1) / warmup, max(0.02, fall))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
    return factor


class Average:
    """An exponential moving average of a model's weights, in `model`; short-sighted at the start."""

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
