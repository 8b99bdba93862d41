"""What a model does when a caller does not say: size, steps, negative prompt, text length."""

from __future__ import annotations

from dataclasses import dataclass

from mrflow.plan import DEFAULT_PLAN, Plan


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A model's own defaults; what a call gives wins over them.

    width, height: pixels of the finished picture; 1024 x 1024 is what FLUX.1 was trained for.
    plan: of the staged run. Its guidance and its solver also fill in for plans where these are None.
    native_steps: of the plain pipeline; 50 is the baseline of arXiv 2607.01642.
    negative_prompt: used where classifier-free guidance runs and no other is given.
    max_sequence_length: text tokens; None keeps the pipeline's default.
    """

    width: int = 1024
    height: int = 1024
    plan: Plan = DEFAULT_PLAN
    native_steps: int = 50
    negative_prompt: str = ""
    max_sequence_length: int | None = None
