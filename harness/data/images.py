"""How is a picture file read? Every kind becomes RGB, and what cannot be read is named."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from harness.errors import UserError, first_line

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100

# Pillow warns on stderr from 89 megapixels on; the limits above decide here.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def shown(path: Path) -> str:
    """A path in words, also where its name is no text (bytes that are not UTF-8, line breaks)."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def open_image(path: Path) -> Image.Image:
    """One image as RGB: EXIF rotation applied, 16-bit scaled to 8, transparency on white, first frame.

    Raises:
        UserError: naming the file, when it cannot be decoded, has more than 100 megapixels, is more
            than 100 times longer than wide (or wider than long), or has pixels of more than 16 bits.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise UserError(
                    f"image {shown(path)} is {width} x {height} pixels: too large or too narrow"
                )
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                image = Image.fromarray(_eight_bits(np.asarray(image), path))
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"image {shown(path)} cannot be read: {first_line(error)}") from error


def _eight_bits(deep: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """16-bit grey levels scaled to 8 bits; Pillow would clip them."""
    if deep.dtype.kind == "f" or deep.min() < 0 or deep.max() > 0xFFFF:
        raise UserError(
            f"image {shown(path)} holds {deep.dtype} pixels in [{deep.min():g}, {deep.max():g}]: want 8 "
            "or 16 bits without sign"
        )
    return (deep.astype(np.uint32) >> 8).astype(np.uint8)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False
