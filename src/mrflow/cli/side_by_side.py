"""Pictures next to each other on one sheet, each with a caption, the prompt above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 16
_PAPER, _INK, _FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """A picture with a line about what it is and a line about what it took."""

    image: Image.Image
    label: str
    detail: str


def draw_side_by_side(panels: Sequence[Panel], title: str) -> Image.Image:
    """Return one RGB picture: the title, then the panels from left to right at their own sizes."""
    size = max(13, min(panel.image.width for panel in panels) // 22)
    font = ImageFont.load_default(size)
    line = round(size * 1.4)
    width = sum(panel.image.width for panel in panels) + _MARGIN * (len(panels) + 1)
    heading = _wrap(title, font, width - 2 * _MARGIN)
    top = _MARGIN + line * len(heading) + _MARGIN // 2
    tallest = max(panel.image.height for panel in panels)
    sheet = Image.new("RGB", (width, top + tallest + _MARGIN // 2 + 2 * line + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(heading):
        pen.text((_MARGIN, _MARGIN + number * line), text, fill=_INK, font=font)
    left, below = _MARGIN, top + tallest + _MARGIN // 2
    for panel in panels:
        sheet.paste(panel.image, (left, top))
        pen.text((left, below), panel.label, fill=_INK, font=font)
        pen.text((left, below + line), panel.detail, fill=_FAINT, font=font)
        left += panel.image.width + _MARGIN
    return sheet


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """Return the words of `text` in lines of at most `width` pixels, a longer word on a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
