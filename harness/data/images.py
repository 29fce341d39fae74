"""Read images of many formats: every image is converted to RGB, and errors name the image.

The format is recognised from the content; the file name decides only for the few formats without a signature.
"""

from __future__ import annotations

import io
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from harness.core.errors import UserError, one_line

IMAGE_FORMATS = (
    *("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000"),
    *("ICO", "ICNS", "DDS", "PSD", "QOI", "SGI", "SUN"),
)
"""Formats that Pillow itself decodes and that are recognised from their first bytes. Not included: formats
that start another program (EPS), videos, documents, and scientific arrays (FITS, GRIB, HDF5)."""
BY_NAME_ONLY = ("DIB", "PCX", "TGA", "XBM", "XPM")
"""Formats without a clear signature, which are recognised from the file name."""
NO_PICTURES = frozenset(
    ".3fr .arw .cr2 .dcr .dng .erf .iiq .kdc .mef .mos .nef .nrw .orf .pef .raf .rw2 .sr2 .srw .thm".split()
) | frozenset(".bak .crdownload .lnk .orig .part .partial .tmp".split())
"""Suffixes of files that look like images but are skipped: of raw photographs, which are TIFF files, Pillow
reads only a thumbnail, and partial downloads and backups are not separate images."""
DECODING = "2"
"""Change this whenever this module gives different pixels for the same file, so that older cached pixels are
not used."""
THUMBNAIL = 96
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100
LEAST_COLOUR = 16
"""An image with 16 bits per colour uses at most 12 of them if its brightest of 256 levels is below this."""

# Pillow warns of damaged metadata, without the name of the file, and from 89 megapixels on. Neither changes
# the pixels, and the limits above decide here.
warnings.filterwarnings("ignore", module=r"PIL\.")


def shown(path: Path | str) -> str:
    """A path for messages; line breaks and bytes that are not UTF-8 are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


@cache
def image_suffixes() -> dict[str, str]:
    """Suffix -> format, for the formats that are read, e.g. ".jpg": "JPEG"."""
    read = {*_by_content(), *BY_NAME_ONLY, "MPO"}  # MPO: several JPEG images in one file
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in read}


@cache
def _by_content() -> tuple[str, ...]:
    """The IMAGE_FORMATS that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its suffix if that is known, else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in image_suffixes():
        return True
    if suffix in NO_PICTURES or path.name.endswith("~"):
        return False
    try:
        with Image.open(path, formats=_by_content()):
            return True
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        return False


def open_header(path: Path) -> Image.Image:
    """Open an image without decoding its pixels; raises whatever Pillow raises."""
    return Image.open(path, formats=_formats(path.suffix))


def read_header(content: bytes, suffix: str) -> tuple[int, int, str] | None:
    """Width, height and mode of the image in the bytes of a file; None if it is not an image."""
    try:
        with Image.open(io.BytesIO(content), formats=_formats(suffix)) as image:
            return image.width, image.height, image.mode
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        return None


def open_image(path: Path) -> Image.Image:
    """An image file as RGB; see `decode_image`."""
    return decode_image(path, shown(path), path.suffix)


def decode_image(source: Path | io.BytesIO, name: str, suffix: str) -> Image.Image:
    """An image file, or the bytes of one, as RGB; see `to_rgb`.

    Args:
        source: the file, or its bytes.
        name: name of the image for messages.
        suffix: suffix of the file name; "" if there is none.

    Raises:
        UserError: naming the image, if it cannot be decoded.
    """
    # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
    with (
        one_line(f"image {name} cannot be read"),
        Image.open(source, formats=_formats(suffix)) as image,
    ):
        return to_rgb(image, name)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image to RGB: first frame, EXIF rotation applied, transparency on white. 16-bit grey
    levels are stretched so that the darkest becomes 0 and the brightest 255, since cameras and scanners
    use 10, 12 or 14 of the bits and do not record how many.

    Args:
        image: image opened by Pillow.
        name: name for messages.

    Raises:
        UserError: if it has more than 100 megapixels, one side more than 100 times as long as the other,
            values of more than 16 bits, or 16 bits per colour of which it uses 12 or fewer.
    """
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"image {name} is {width} x {height} pixels: too large or too narrow")
    deep_colour = ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image), name))
    elif deep_colour and (most := int(np.asarray(image.convert("RGB")).max())) < LEAST_COLOUR:
        raise UserError(
            f"image {name} has 16 bits per channel but no value above {256 * most + 255}, so it would be "
            "almost black; save it with 8 bits, scaled by the largest value"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _formats(suffix: str) -> tuple[str, ...]:
    own = image_suffixes().get(suffix.lower(), "")
    return (*_by_content(), own) if own in BY_NAME_ONLY else _by_content()


def _eight_bits(deep: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Stretch 16-bit grey levels to 8 bits; Pillow would clip them."""
    low, high = deep.min(), deep.max()
    if deep.dtype.kind == "f" or low < 0 or high > 0xFFFF:
        raise UserError(
            f"image {name} has {deep.dtype} pixels in [{low:g}, {high:g}]; save it with 8 or 16 unsigned bits"
        )
    stretched = (deep.astype(np.float64) - low) * (255 / max(int(high) - int(low), 1))
    levels: NDArray[np.uint8] = np.round(stretched).astype(np.uint8)
    return levels


def as_jpeg(pixels: torch.Tensor) -> bytes:
    """A (3, s, s) uint8 image as a JPEG file of at most THUMBNAIL pixels a side."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()
