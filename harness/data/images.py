"""How is a picture file read? Every kind becomes RGB, and what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from harness.spec import UserError, first_line

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100


def open_image(path: Path) -> Image.Image:
    """One image as RGB: EXIF rotation applied, 16-bit scaled to 8, transparency on white, first frame.

    Raises:
        UserError: naming the file, when it cannot be decoded, has more than 100 megapixels, or is more
            than 100 times longer than wide (or wider than long).
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise UserError(
                    f"image {path} is {width} x {height} pixels: too large or too narrow"
                )
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"image {path} cannot be read: {first_line(error)}") from error
