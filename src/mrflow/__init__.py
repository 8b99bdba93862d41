"""Staged low-to-high-resolution sampling for flow-matching text-to-image models, without training.

    from mrflow import MrFlow

    fast = MrFlow(pipe)                                   # any supported diffusers pipeline
    image = fast("a lighthouse at dusk", seed=7).images[0]

The names are those of __init__.pyi. Each is imported when it is first used, so that `import mrflow` is instant and
takes no torch along.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
