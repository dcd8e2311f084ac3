"""Image files to pixels: JPEG, PNG, WebP, BMP and the first frame of a GIF, within a stated bound of memory.

The header is read first and the pixel limit is checked there, so that a small file that claims a huge picture costs
nothing. Decoding then needs at most `BYTES_PER_PIXEL` bytes for each pixel that the header states, and
`FIXED_BYTES` beside the file itself (text chunks of a PNG, of which Pillow unpacks 64 MiB at most).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF")
PIXEL_LIMIT = 25_000_000
BYTES_PER_PIXEL = 32
FIXED_BYTES = 80 * 2**20
_STRIP = 64  # rows

# What Pillow's decoders raise on bytes that are not what they claim to be, beside its own OSError. Its warning about
# bombs is an error to whoever runs Python with -W error.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# (offset, bytes, name): enough to name what was sent.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif", "HEIF"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or XML"),
    (0, b"qoif", "QOI"),
)

# EXIF orientation -> what brings pixels (H, W, 3) upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


class ImageError(ValueError):
    """The bytes are no image that can be classified; the text names the rule."""


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT, at_least: int = 0) -> Tensor:
    """The bytes of an image file -> uint8 RGB (3, H, W), upright by its EXIF orientation, transparency over white.

    at_least: both sides may shrink to this many pixels; a JPEG is then decoded at 1/2, 1/4 or 1/8 (0: full size).
    Raises ImageError.
    """
    name = _format_name(data)
    if name not in FORMATS:
        found = f"{name} is not supported" if name else "these bytes are not an image" if data else "the image is empty"
        raise ImageError(f"{found}; send one of {', '.join(FORMATS)}")
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper()]) as image:
            width, height = image.size
            if width * height > pixel_limit:
                raise ImageError(f"{width} x {height} pixels are too many; the limit is {pixel_limit:,} pixels")
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
            pixels = _TURNS[_orientation(image)](_pixels(image))
            return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError(f"too many pixels; the limit is {pixel_limit:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"broken {name}: its header cannot be read") from error
    except _BROKEN as error:
        raise ImageError(f"broken {name}: {error}") from error


def _format_name(data: bytes) -> str | None:
    for offset, signature, name in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return name
    return None


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3). Strips of rows: converting the whole picture at once would double the memory bound."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        pixels[top : top + strip.height] = _rgb(strip)
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion to 8 bits would clip instead of scale
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[:, :, None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """1 (upright) to 8; 1 where the tag is missing or its block is broken, which is no reason to refuse a picture."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*_BROKEN, Warning):
        return 1
    return orientation if orientation in _TURNS else 1
