"""Staged low-to-high-resolution sampling as ComfyUI nodes: a small draft, upscaled, refined in one step.

The nodes stand on mrflow's core, which needs nothing that ComfyUI has not: an installed mrflow, or else the copies
that lie in `core` (tools/comfyui_pack.py puts them there). A folder without __init__.py comes after any installed
package, wherever it stands in the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("core")))


async def comfy_entrypoint():
    """Return the extension; ComfyUI calls this once it has started."""
    from .nodes import Extension

    return Extension()
