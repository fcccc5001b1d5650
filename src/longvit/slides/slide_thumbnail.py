"""Thumbnail of a slide as HTML for notebooks, with name, size and resolution."""

from __future__ import annotations

import base64
import html as html_text
import io
from typing import TYPE_CHECKING

from PIL import Image

from longvit.errors import InputError

if TYPE_CHECKING:
    from longvit.slides.reader import Slide

_SIDE_PX = 320


def html(slide: Slide) -> str:
    """HTML of a slide; a slide that cannot be read gives its reason in place of the image."""
    try:
        width_px, height_px = slide.size_px
        mpp = slide.mpp
        resolution = "µm per pixel not known" if mpp is None else f"{mpp.x:.4g} µm/px ({mpp.source})"
        caption = f"{slide.path.name}: {width_px:,} × {height_px:,} px, {resolution}"
        canvas = slide.canvas(_SIDE_PX, "pad", decode="reduced")
        box = canvas.placement.image_box
        image = Image.fromarray(canvas.pixels).crop((int(box.x), int(box.y), int(box.right), int(box.bottom)))
    except InputError as error:
        return f"<p>{html_text.escape(str(error))}</p>"
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    text = html_text.escape(caption)
    return f'<div><img src="{source}" alt="{text}"><br><small>{text}</small></div>'
