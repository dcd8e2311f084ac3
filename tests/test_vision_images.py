"""Image files to pixels: formats, modes, orientation; bombs, truncated files and other things are refused cheaply."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.vision_fixtures import encoded, noise, pixels_of
from vision_zoo import images
from vision_zoo.images import ImageError, decode

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def png(width: int, height: int, body: bytes = b"", colour: int = 2, depth: int = 8) -> bytes:
    """A PNG of one claim and any body."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_exact_pixels(kind: str) -> None:
    image = noise(33, 17)
    settings = {"lossless": True} if kind == "WEBP" else {}
    out = decode(encoded(image, kind, **settings))
    assert out.dtype == torch.uint8 and out.shape == (3, 17, 33)
    assert torch.equal(out, pixels_of(image))


def test_rows_of_a_tall_image_are_in_order() -> None:
    """More rows than one strip of the conversion."""
    image = noise(3, 3 * images._STRIP + 5)
    assert torch.equal(decode(encoded(image, "PNG")), pixels_of(image))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_close(kind: str) -> None:
    image = Image.new("RGB", (20, 10), (200, 40, 90))
    out = decode(encoded(image, kind))
    assert (out.int() - pixels_of(image).int()).abs().max() <= 4


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    for kind in ("GIF", "WEBP"):
        settings = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)
        assert torch.equal(decode(data), pixels_of(frames[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    """The file holds what the camera saw; upright it is the reference."""
    upright = noise(5, 3)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the inverse of turning by 270
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert torch.equal(decode(encoded(stored, "PNG", exif=exif)), pixels_of(upright))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_meaningless_orientations_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = noise(5, 3)
    assert torch.equal(decode(encoded(image, "PNG", exif=exif)), pixels_of(image))


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF data:UserWarning")
def test_a_broken_exif_block_is_no_reason_to_refuse() -> None:
    image = noise(16, 8)
    data = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20), quality=95)
    assert decode(data).shape == (3, 8, 16)


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)]):
        image.putpixel((x, 0), pixel)
    out = decode(encoded(image, "PNG"))
    assert out[:, 0, 0].tolist() == [10, 20, 30] and out[:, 0, 1].tolist() == [255] * 3
    assert out[0, 0, 2].item() == pytest.approx(127, abs=1)


def test_a_transparent_palette_entry_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        out = decode(encoded(image, kind, transparency=1))
        assert out[:, 0, 0].tolist() == [10, 20, 30] and out[:, 0, 1].tolist() == [255] * 3


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert decode(encoded(image, "PNG"))[:, 0].tolist() == [[0, 1, 128, 255]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (4, 4), "#ffffff").convert(mode)
    out = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert out.shape == (3, 4, 4) and out.min() >= 254


def test_jpeg_is_shrunk_while_it_is_decoded_but_not_below_the_need() -> None:
    data = encoded(Image.new("RGB", (1600, 800), (200, 40, 90)), "JPEG")
    assert decode(data).shape == (3, 800, 1600)
    small = decode(data, at_least=100)
    assert small.shape == (3, 100, 200)
    assert (small[0].float().mean() - 200).abs() < 4
    assert decode(data, at_least=101).shape == (3, 200, 400)
    assert decode(encoded(noise(64, 64), "PNG"), at_least=8).shape == (3, 64, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    data = encoded(noise(64, 64), kind)
    with pytest.raises(ImageError, match="broken"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_gives_pixels_or_an_image_error(kind: str) -> None:
    """Every header byte and many others, one at a time: nothing else may come out."""
    data = encoded(noise(12, 9), kind)
    refused = 0
    for position in [*range(min(64, len(data))), *range(64, len(data), 13)]:
        for value in (0x00, 0xFF, data[position] ^ 0x10):
            damaged = data[:position] + bytes([value]) + data[position + 1 :]
            try:
                assert decode(damaged, pixel_limit=100_000).dtype == torch.uint8
            except ImageError:
                refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the image is empty; send one of JPEG, PNG, WebP, BMP, GIF"),
        (b"hello, world", "these bytes are not an image; send one of JPEG"),
        (b"II*\0" + bytes(100), "TIFF is not supported; send one of JPEG"),
        (b"\0\0\0\x1cftypavif" + bytes(100), "AVIF is not supported"),
        (b"\0\0\0\x1cftypheic" + bytes(100), "HEIC is not supported"),
        (b"%PDF-1.7" + bytes(100), "PDF is not supported"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not supported"),
        (b"\xff\xd8\xff", "broken JPEG"),
        (b"\x89PNG\r\n\x1a\n", "broken PNG"),
        (b"GIF89a", "broken GIF"),
        (b"BM" + bytes(60), "broken BMP"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(8), "broken WebP"),
    ],
)
def test_what_is_not_an_image_is_named(data: bytes, text: str) -> None:
    with pytest.raises(ImageError, match=text):
        decode(data)


def test_tiff_is_refused_although_pillow_reads_it() -> None:
    with pytest.raises(ImageError, match="TIFF is not supported"):
        decode(encoded(noise(4, 4), "TIFF"))


def test_the_pixel_limit_is_inclusive_and_named() -> None:
    data = encoded(noise(20, 10), "PNG")
    assert decode(data, pixel_limit=200).shape == (3, 10, 20)
    with pytest.raises(ImageError, match="20 x 10 pixels are too many; the limit is 199 pixels"):
        decode(data, pixel_limit=199)


@pytest.mark.parametrize("side", [5001, 10_000, 30_000, 2**31 - 1])
def test_a_header_that_claims_too_much_is_refused(side: int) -> None:
    """Around our limit, where Pillow warns, where Pillow refuses, and where nobody counts any more."""
    with pytest.raises(ImageError, match=r"too many|broken"):
        decode(png(side, side))


MEASURE = """
import sys
from pathlib import Path
from vision_zoo.images import ImageError, decode

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

for number, file in enumerate(sys.argv[1:]):
    data = Path(file).read_bytes()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is in use
    before = peak()
    try:
        decode(data)
    except ImageError:
        pass
    if number:  # what the first picture loads is no part of the bound
        print(peak() - before)
"""


def test_memory_stays_within_the_stated_bound(tmp_path: Path) -> None:
    """One process decodes: a bomb, text that unpacks to much, and the worst formats found, RGBA turned by EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    large = noise(200, 200).convert("RGBA").resize((1200, 1200))
    small = encoded(noise(4, 4), "PNG")
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(70 * 2**20), 1)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    files = {
        "first": encoded(Image.new("RGBA", (2, 2)), "PNG"),
        "bomb": png(30_000, 30_000, bytes(30_000_000)),
        "text": small[:33] + chunk + small[33:],
        "png": encoded(large, "PNG", exif=exif, compress_level=1),
        "webp": encoded(large, "WEBP", exif=exif, lossless=True, method=0, quality=0),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    bomb, unpacked, png_peak, webp_peak = map(int, done.stdout.split())
    assert bomb < 16 * 2**20, "refused by its header"
    assert unpacked < images.FIXED_BYTES
    for peak in (png_peak, webp_peak):
        assert 6 * 1200 * 1200 < peak < images.BYTES_PER_PIXEL * 1200 * 1200


def test_the_result_owns_its_memory() -> None:
    data = encoded(noise(4, 4), "PNG")
    first = decode(data)
    first += 1  # would fail on Pillow's own read-only memory
    assert not torch.equal(first, decode(data))
