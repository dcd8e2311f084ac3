"""What Opus says about itself outside of its codec: the identification header and the length of a packet.

Containers (ogg.py, webm.py) hand these on, opus.py decodes them. Numbers of samples are those of one channel at
48 kHz, the rate at which Opus counts whatever rate its input had.
"""

from __future__ import annotations

from dataclasses import dataclass

RATE = 48000  # Hz
HEAD_MAGIC = b"OpusHead"
MAX_CHANNELS = 8
# 48 frames of 1275 bytes for each of as many elementary streams as there may be channels.
LONGEST_PACKET = 1 << 19  # bytes

_LONGEST_DURATION = 5760  # 120 ms
_SILK_OR_HYBRID = (480, 960, 1920, 2880)  # 10 to 60 ms
_CELT = (120, 240, 480, 960)  # 2.5 to 20 ms


@dataclass(frozen=True)
class OpusHead:
    """The identification header (RFC 7845, section 5.1)."""

    channels: int
    pre_skip: int  # samples at the start that only settle the decoder
    data: bytes


@dataclass(frozen=True)
class OpusPacket:
    data: bytes  # never empty
    duration: int  # samples it stands for; 0 where it is damaged
    keep: int  # samples before the container's end trimming


def parse_head(data: bytes, container: str) -> OpusHead:
    """Check what a decoder would otherwise have to trust."""
    damaged = f"damaged {container} header: its OpusHead"
    if len(data) < 19 or not data.startswith(HEAD_MAGIC):
        raise ValueError(f"{damaged} is incomplete")
    if data[8] >= 16:  # the upper four bits change where old decoders must not go on
        raise ValueError(f"{damaged} has version {data[8]}; versions 0 to 15 are known")
    channels, family = data[9], data[18]
    if not 1 <= channels <= (MAX_CHANNELS if family else 2):
        raise ValueError(
            f"{damaged} says {channels} channels in mapping family {family}; "
            f"it must be 1 or 2 in family 0, 1 to {MAX_CHANNELS} in others"
        )
    if family:
        _check_mapping(data[19:], channels, damaged)
    return OpusHead(channels, int.from_bytes(data[10:12], "little"), data)


def _check_mapping(table: bytes, channels: int, damaged: str) -> None:
    """Which elementary stream each channel comes from (RFC 7845, section 5.1.1)."""
    if len(table) < 2 + channels:
        raise ValueError(f"{damaged} lacks its channel mapping")
    streams, coupled = table[0], table[1]
    if not (1 <= streams <= channels and coupled <= streams and streams + coupled <= channels):
        raise ValueError(f"{damaged} maps {channels} channels to {streams} streams, {coupled} of them in stereo")
    if any(source >= streams + coupled and source != 255 for source in table[2 : 2 + channels]):
        raise ValueError(f"{damaged} maps a channel to a stream that does not exist")


def duration(data: bytes) -> int:
    """Samples a packet stands for by its first bytes (RFC 6716, section 3.1); 0 where they make no sense."""
    configuration, code = data[0] >> 3, data[0] & 3
    if configuration >= 16:
        frame = _CELT[configuration & 3]
    else:
        frame = _SILK_OR_HYBRID[configuration & (3 if configuration < 12 else 1)]
    frames = (1, 2, 2, data[1] & 63 if len(data) > 1 else 0)[code]
    samples = frame * frames
    return samples if samples <= _LONGEST_DURATION else 0
