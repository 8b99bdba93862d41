"""Any picture, twice as large, with fine detail by the model: of landscapes here, for vista knows nothing else.

    python examples/enhance_photo.py photo.jpg "a lake at noon with mountains and pine trees"

writes photo-enhanced.png beside it. A larger refine_sigma repaints more, a smaller one keeps more.
"""

import sys
from pathlib import Path

from mrflow import MrFlow, MrFlowError, save_image

if len(sys.argv) != 3:
    sys.exit(f"usage: python {sys.argv[0]} PICTURE PROMPT, the prompt in quotes: what the picture shows")
path, prompt = Path(sys.argv[1]), sys.argv[2]
if not path.is_file():
    sys.exit(f"{path} is no file. usage: python {sys.argv[0]} PICTURE PROMPT")

fast = MrFlow.from_pretrained("vista")
enhanced = path.with_name(f"{path.stem}-enhanced.png")
try:
    result = fast.enhance(path, prompt, refine_sigma=0.2, seed=7)
    print(save_image(result.images[0], enhanced, result.recipes[0], overwrite=True))
except MrFlowError as error:  # a file that is no picture, a prompt that is none
    sys.exit(str(error))
