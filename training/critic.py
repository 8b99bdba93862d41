"""A critic against which the decoder and the upscaler learn texture in their last minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class Critic(nn.Sequential):
    """A small patch discriminator with spectral norm: (B, 3, H, W) in [-1, 1] to logits (B, 1, H/4, W/4)."""

    def __init__(self, width: int = 32):
        norm, slope = nn.utils.parametrizations.spectral_norm, 0.2
        super().__init__(
            norm(nn.Conv2d(3, width, 3, 1, 1)),
            nn.LeakyReLU(slope),
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(slope),
            norm(nn.Conv2d(2 * width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(slope),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )


def balance(main: Tensor, other: Tensor, weight: nn.Parameter, share: float) -> Tensor:
    """Return `main` + c * `other`, c their gradients on `weight`, the last kernel, being 1 to `share`.

    A fixed c is soon too small or too large, since a critic's gradients grow and fade (Esser et al., 2021).
    """
    size, small = (torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (main, other))
    return main + (share * size / (small + 1e-6)).clamp(max=1e3).detach() * other


class Contest:
    """One critic and its optimiser through a training: it joins in after `start` of the time, at full weight
    once a fifth of what is left has gone by."""

    def __init__(self, share: float, start: float) -> None:
        self.critic = Critic().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), 4e-4, betas=(0.5, 0.99))
        self._share, self._start = share, start

    def begun(self, progress: float) -> bool:
        """Return whether the critic takes part at this progress in [0, 1]."""
        return progress > self._start

    def against(self, loss: Tensor, made: Tensor, weight: nn.Parameter, progress: float) -> tuple[Tensor, float]:
        """Return `loss` with the critic's opinion of `made` in its share, and that opinion as a number."""
        self.critic.requires_grad_(False)
        opinion = softplus(-self.critic(made)).mean()
        self.critic.requires_grad_(True)
        full = min(1.0, (progress - self._start) / (0.2 * (1 - self._start)))
        return balance(loss, opinion, weight, self._share * full), opinion.item()

    def learn(self, real: Tensor, made: Tensor) -> float:
        """Let the critic learn to tell the two apart; return its loss."""
        loss = softplus(-self.critic(real)).mean() + softplus(self.critic(made.detach())).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
