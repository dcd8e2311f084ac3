"""Images that clients send: photographs of a folder, or pictures made up; and files that nobody should send."""

import io
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vision_zoo.images import PIXEL_LIMIT, decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
USUAL = (500, 375)  # pixels of a made-up picture, as those of ImageNet
LARGEST_FILE = 16 << 20  # bytes, of one image, that the contract allows
SETTINGS: Mapping[str, Mapping[str, int]] = {"JPEG": {"quality": 90}, "WEBP": {"quality": 90, "method": 0}}
CLAIMED = 60_000  # pixels along both sides that a bomb's header states
BOMB_ROWS = 10_000  # that are there
_JPEG_SIZE = b"\xff\xc0"  # the marker of a baseline frame, before its length, precision, height and width


def photographs(folder: Path | None, count: int, seed: int = 0) -> list[bytes]:
    """At most `count` JPEG files, evenly from all of a folder and those in it; None: made-up pictures. ValueError."""
    if folder is None:
        return [made_up(seed + number) for number in range(count)]
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no image in {folder} or the folders in it; looked for {', '.join(SUFFIXES)}")
    count = min(count, len(files))
    return [_as_jpeg(files[number * len(files) // count].read_bytes()) for number in range(count)]


def made_up(seed: int, size: tuple[int, int] = USUAL, kind: str = "JPEG") -> bytes:
    """Coloured clouds with some grain, which compress and shrink about as a photograph does."""
    chance = np.random.default_rng(seed)
    clouds = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = chance.normal(0, 6, (size[1], size[0], 1))
    pixels = (np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8)
    return _encoded(Image.fromarray(pixels), kind)


def write_kinds(good: Sequence[bytes], folder: Path, seed: int = 0) -> None:
    """Files of every kind of vision_kinds, KIND-NUMBER, good ones the given and made-up ones of other formats."""
    chance = random.Random(seed)
    usual = [*good, made_up(seed, kind="PNG"), made_up(seed, kind="WEBP")]
    bombs = [_png_bomb(), _text_bomb(), _claiming_jpeg(), _claiming_gif()]
    by_kind = {
        "good": usual,
        "huge": _huge(),
        "oversized": [usual[0] + bytes(LARGEST_FILE)],
        "truncated": [file[: chance.randrange(len(file) // 4, 3 * len(file) // 4)] for file in usual],
        "bomb": bombs,
    }
    folder.mkdir()
    for kind, files in by_kind.items():
        for number, file in enumerate(files):
            (folder / f"{kind}-{number:04}").write_bytes(file)


def _as_jpeg(file: bytes) -> bytes:
    if file.startswith(b"\xff\xd8\xff"):
        return file
    return _encoded(Image.fromarray(decode(file).permute(1, 2, 0).numpy()), "JPEG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **SETTINGS.get(kind, {}))
    return buffer.getvalue()


def _huge() -> list[bytes]:
    """One with as much in it as a photograph, and two plain ones, which are small files."""
    side = int(PIXEL_LIMIT**0.5)
    plain = Image.new("RGB", (side, side), (90, 120, 150))
    return [
        _encoded(Image.radial_gradient("L").resize((side, side)), "JPEG"),
        *(_encoded(plain, k) for k in ("PNG", "WEBP")),
    ]


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Grey, one bit a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    whole = ((b"IHDR", header), *chunks, (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in whole
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png_bomb() -> bytes:
    """75 MB of rows, of a picture of 3.6 billion pixels, in 80 KB."""
    squeeze, row = zlib.compressobj(), bytes(1 + CLAIMED // 8)
    rows = b"".join(squeeze.compress(row) for _ in range(BOMB_ROWS)) + squeeze.flush()
    return _png(CLAIMED, CLAIMED, (b"IDAT", rows))


def _text_bomb() -> bytes:
    """A picture of one pixel with 512 MB of text."""
    text = b"comment\0\0" + zlib.compress(bytes(8 << 20), 9)
    return _png(1, 1, *[(b"zTXt", text)] * 64, (b"IDAT", zlib.compress(bytes(2))))


def _claiming_jpeg() -> bytes:
    file = made_up(0, (64, 64))
    place = file.index(_JPEG_SIZE) + 5
    return file[:place] + struct.pack(">HH", CLAIMED, CLAIMED) + file[place + 4 :]


def _claiming_gif() -> bytes:
    """A canvas that is filled by one frame of its size, which says nothing."""
    size = struct.pack("<HH", CLAIMED, CLAIMED)
    frame = b"," + bytes(4) + size + b"\0" + b"\2\2\x44\1\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + frame + b";"
