"""Eight cheap drafts on one sheet, of which the chosen one is finished.

python examples/draft_choose_finish.py 3     # writes drafts.png and chosen.png, the draft counted from 0
"""

import sys

from mrflow import MrFlow, save_image
from mrflow.images import make_grid

PROMPT = "a green meadow at dawn with rolling hills and a yellow hot air balloon on the right"
DRAFTS = 8

chosen = sys.argv[1] if len(sys.argv) == 2 else "0"
if len(sys.argv) > 2 or chosen not in map(str, range(DRAFTS)):
    sys.exit(f"usage: python {sys.argv[0]} [DRAFT], a number from 0 to {DRAFTS - 1}")

fast = MrFlow.from_pretrained("vista")
drafts = fast.draft([PROMPT] * DRAFTS, seed=range(DRAFTS))
print(save_image(make_grid(drafts.images, columns=4), "drafts.png", overwrite=True))

result = fast.finish(drafts[int(chosen)])  # the same picture that a call with this seed gives
print(save_image(result.images[0], "chosen.png", result.recipes[0], overwrite=True))
