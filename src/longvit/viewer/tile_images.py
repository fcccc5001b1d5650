"""Images that the viewer sends: JPEG of pixels, and a tile with the reason why a slide has no pixels."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from longvit.slides.pixel_reader import Block

QUALITY = 80


def jpeg(pixels: Block) -> bytes:
    """JPEG of uint8 RGBX (height, width, 4)."""
    import simplejpeg

    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGBX", colorsubsampling="422"
    )
    return bytes(encoded)


def reason_image(reason: str, width: int = 512, height: int = 512) -> bytes:
    """JPEG with a text: the reason why there are no pixels."""
    image = Image.new("RGB", (width, height), (244, 241, 236))
    draw = ImageDraw.Draw(image)
    size = max(11, width // 28)
    lines = textwrap.wrap(reason, max(12, int(width / (0.62 * size))))[: max(1, height // (size + 6))]
    draw.multiline_text((size, size), "\n".join(lines), fill=(120, 30, 20), font=ImageFont.load_default(size))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
