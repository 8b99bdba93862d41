"""A model, a picture: writes lake.png, which carries its recipe (try `mrflow replay lake.png`).

For FLUX.1-dev on a GPU: MrFlow.from_pretrained("flux-dev", device="cuda").
"""

from mrflow import MrFlow, save_image

fast = MrFlow.from_pretrained("vista")
result = fast("a snowy lake at sunset with mountains and many pine trees", seed=7)

print(save_image(result.images[0], "lake.png", result.recipes[0], overwrite=True))
