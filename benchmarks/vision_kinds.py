"""What the clients of benchmarks.vision_soak send; without torch, which every one of their processes would carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """What a client may send: how often, and the status that has to come back."""

    share: float
    expected: str


KINDS: Mapping[str, Kind] = {
    "good": Kind(0.80, "OK"),
    "huge": Kind(0.02, "OK"),  # as many pixels as are allowed
    "oversized": Kind(0.01, "INVALID_ARGUMENT"),  # more bytes than are allowed
    "truncated": Kind(0.10, "INVALID_ARGUMENT"),
    "bomb": Kind(0.07, "INVALID_ARGUMENT"),  # small files that would unpack to gigabytes
}


def read_kinds(folder: Path) -> dict[str, list[bytes]]:
    """What write_kinds wrote."""
    found: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for path in sorted(folder.iterdir()):
        found[path.name.partition("-")[0]].append(path.read_bytes())
    return found
