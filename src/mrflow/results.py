"""What the verbs give back: drafts and finished pictures, with their recipes and the seconds they took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from mrflow.errors import ImageError
from mrflow.files import load_image, read_recipe, save_image
from mrflow.images import pixels_sha256, to_pil, to_tensor
from mrflow.recipe import Recipe
from mrflow.sizes import draft_size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mrflow.backbones import Conditioning


@dataclass(frozen=True, eq=False)
class Draft:
    """A picture at draft size, with what is needed to finish it.

    pixels: (1, 3, h, w) in [0, 1], float32, on the device that made it.
    base_recipe: of the picture it is to become: final size, plan, prompt, seed. Its input_sha256 is that of the
        8-bit image that the pixels were read from, None for pixels that never were an image.
    conditioning: the encoded prompt, so that finishing does not encode it again; None after a round trip
        through a file, where the prompt is encoded anew from the recipe.
    """

    pixels: Tensor
    base_recipe: Recipe
    conditioning: Conditioning | None = None

    @cached_property
    def image(self) -> Image.Image:
        """The draft as an 8-bit RGB image."""
        return to_pil(self.pixels)[0]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the draft itself, with the hash of its pixels, as it is saved."""
        return replace(self.base_recipe, pixels_sha256=pixels_sha256(self.image), input_sha256=None)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the draft as an image that `Draft.from_image` reads back. Returns the path."""
        return save_image(self.image, path, self.recipe, overwrite=overwrite)

    @classmethod
    def from_image(cls, path: str | Path) -> Draft:
        """Return the draft that `save` wrote.

        The file holds 8 bits a channel, so finishing it differs from finishing the draft in memory by
        rounding (at most 1/510 in the pixels that the upscaler sees); such a recipe says mode "finish".
        Raises ImageError for a file that is no image or no draft, RecipeError for a broken recipe.
        """
        recipe = read_recipe(path)
        if recipe.mode != "draft":
            raise ImageError(f"{path} is a picture of mode {recipe.mode!r}; it must be a draft. Try enhance.")
        image = load_image(path)
        expected = draft_size(recipe.width, recipe.height, recipe.plan)
        if image.size != expected:
            shown = "{}x{}, its recipe says {}x{}".format(*image.size, *expected)
            raise ImageError(f"{path} is {shown}; a draft must keep its size. Try enhance.")
        return cls._of_image(image, recipe)

    def rounded(self) -> Draft:
        """Return the draft as it would come back from a file."""
        return self._of_image(self.image, self.base_recipe)

    @classmethod
    def _of_image(cls, image: Image.Image, recipe: Recipe) -> Draft:
        base = replace(recipe, pixels_sha256=None, input_sha256=pixels_sha256(image))
        return cls(to_tensor([image]), base)


@dataclass(frozen=True, eq=False)
class Drafts(Sequence[Draft]):
    """Drafts in the order of their prompts and seeds, and the seconds that each stage took."""

    drafts: tuple[Draft, ...]
    seconds: Mapping[str, float]

    @property
    def images(self) -> list[Image.Image]:
        """The drafts as 8-bit RGB images."""
        return [draft.image for draft in self.drafts]

    @property
    def recipes(self) -> list[Recipe]:
        """One recipe per draft."""
        return [draft.recipe for draft in self.drafts]

    @overload
    def __getitem__(self, index: int) -> Draft: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Draft, ...]: ...
    def __getitem__(self, index: int | slice) -> Draft | tuple[Draft, ...]:
        return self.drafts[index]

    def __iter__(self) -> Iterator[Draft]:
        return iter(self.drafts)

    def __len__(self) -> int:
        return len(self.drafts)


@dataclass(frozen=True, eq=False)
class Result:
    """Finished pictures.

    images: 8-bit RGB, one per prompt and seed. recipes: the same order.
    seconds: stage to seconds, summed over batches; "total" is end to end. On CUDA each stage is timed with
        the device synchronized.
    drafts: what the pictures were finished from; empty for native and enhance.
    upscaled: the pictures after step 4, before refining, if they were asked for (stages=True); else empty.
    """

    images: list[Image.Image]
    recipes: list[Recipe]
    seconds: Mapping[str, float]
    drafts: Sequence[Draft] = ()
    upscaled: list[Image.Image] = field(default_factory=list)
