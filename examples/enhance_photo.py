"""Any picture, twice as large and with the model's own texture.

    python examples/enhance_photo.py photo.jpg "a lake at noon with mountains and pine trees"

writes photo-enhanced.png beside it. A larger refine_sigma repaints more, a smaller one keeps more.
"""

import sys
from dataclasses import replace
from pathlib import Path

from mrflow import MrFlow, load_image, save_image

path, prompt = Path(sys.argv[1]), sys.argv[2]

fast = MrFlow.from_pretrained("vista")
plan = replace(fast.model.defaults.plan, refine_sigma=0.2)
result = fast.enhance(load_image(path), prompt, plan=plan, seed=7)

save_image(result.images[0], path.with_name(f"{path.stem}-enhanced.png"), result.recipes[0], overwrite=True)
