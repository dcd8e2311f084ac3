"""What a stream is by its first bytes.

A marker of several bytes counts whatever encoding was announced, so that a contradiction is told to the sender. The
sync code of an MP3 frame is so short that loud samples imitate it: it counts only where samples cannot be meant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asr_server import amr, flac, mp3, ogg, wav, webm
from asr_server.amr import AmrSource
from asr_server.flac import FlacSource
from asr_server.mp3 import Mp3Source
from asr_server.ogg import OggReader
from asr_server.opus import OpusSource
from asr_server.pcm import PcmSource
from asr_server.wav import WavSource
from asr_server.webm import WebmReader

Source = PcmSource | WavSource | FlacSource | OpusSource | Mp3Source | AmrSource


@dataclass(frozen=True)
class Opening:
    """How streams of one kind begin."""

    magics: tuple[bytes, ...]
    size: int  # bytes that decide
    agrees: Callable[[bytes], bool]  # what else has to be true of the first `size` bytes
    source: Callable[[], Source]
    container: str


def _always(data: bytes) -> bool:
    return True


WAV = Opening(wav.MAGICS, 12, lambda data: data[8:12] == b"WAVE", WavSource, "WAV")
# By encoding, the headers without which its bytes cannot be read. Of MP3 frames, see `sniff`.
OPENINGS = {
    "FLAC": Opening((flac.MAGIC,), 4, _always, FlacSource, "FLAC"),
    "OGG_OPUS": Opening((ogg.MAGIC,), 4, _always, lambda: OpusSource(OggReader()), "Ogg"),
    "WEBM_OPUS": Opening((webm.MAGIC,), 4, _always, lambda: OpusSource(WebmReader()), "WebM"),
    "MP3": Opening((mp3.ID3_MAGIC,), 10, mp3.is_id3, Mp3Source, "MP3"),
    "AMR": Opening((amr.AMR.magic,), 6, _always, lambda: AmrSource(amr.AMR), "AMR"),
    "AMR_WB": Opening((amr.AMR_WB.magic,), 9, _always, lambda: AmrSource(amr.AMR_WB), "AMR"),
}
_FRAME_SIZE = 4  # bytes of an MP3 frame's header


def sniff(data: bytes, encoding: str) -> Opening | None:
    """How the stream of which `data` are the first bytes begins; None where it has no header of its own."""
    for opening in (WAV, *OPENINGS.values()):
        if len(data) >= opening.size and data.startswith(opening.magics) and opening.agrees(data):
            return opening
    if encoding == "MP3" or (not encoding and len(data) >= _FRAME_SIZE and mp3.is_frame(data)):
        return OPENINGS["MP3"]
    return None


def undecided(data: bytes, encoding: str) -> bool:
    """Whether more bytes could still become a header."""
    if encoding in ("", "MP3") and data[:1] == b"\xff" and len(data) < _FRAME_SIZE:
        return True
    for opening in (WAV, *OPENINGS.values()):
        for magic in opening.magics:
            if len(data) < opening.size and magic.startswith(data[: len(magic)]):
                return True
    return False
