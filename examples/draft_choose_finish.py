"""Eight cheap drafts on one sheet, of which the chosen one is finished.

python examples/draft_choose_finish.py 3     # writes drafts.png and chosen.png, the draft counted from 0
"""

import sys

from mrflow import MrFlow, save_image
from mrflow.images import make_grid

PROMPT = "a green meadow at dawn with rolling hills and a yellow hot air balloon on the right"

choice = int(sys.argv[1]) if len(sys.argv) > 1 else 0

fast = MrFlow.from_pretrained("vista")
drafts = fast.draft([PROMPT] * 8, seed=range(8))
save_image(make_grid(drafts.images, columns=4), "drafts.png", overwrite=True)

result = fast.finish(drafts[choice])  # the same picture that a call with this seed gives
save_image(result.images[0], "chosen.png", result.recipes[0], overwrite=True)
