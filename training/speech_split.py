"""Hold out speakers of a manifest for tuning.

    python -m training.speech_split an4-train.jsonl --speakers 8 --train fit.jsonl --development dev.jsonl

Whole speakers are held out, because an utterance of a known voice says little about an unknown one.
"""

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from training.speech_manifest import said


def split(manifest: Path, speakers: int, seed: int, train: Path, development: Path) -> tuple[int, int]:
    """Write both parts, with audio paths relative to their new folders; returns their sizes."""
    entries = _entries(manifest)
    names = sorted({said(entry, "speaker") for entry in entries})
    if not 0 < speakers < len(names):
        raise ValueError(f"cannot hold out {speakers} speakers of {manifest}: it has {len(names)}, some must be left")
    held = set(random.Random(seed).sample(names, speakers))
    parts = {
        train: [e for e in entries if said(e, "speaker") not in held],
        development: [e for e in entries if said(e, "speaker") in held],
    }
    for path, part in parts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for entry in part:
                audio = os.path.relpath(manifest.parent / entry["audio_filepath"], path.parent)
                file.write(json.dumps({**entry, "audio_filepath": audio}) + "\n")
    return len(parts[train]), len(parts[development])


def _entries(manifest: Path) -> list[dict[str, Any]]:
    """The lines as they are, with all that they say; ValueError names one that is none."""
    entries = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest}, line {number}: not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("audio_filepath"), str):
            raise ValueError(f"{manifest}, line {number}: {line[:80]!r} is no object with an 'audio_filepath'")
        entries.append(entry)
    return entries


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.speech_split", description="Hold out speakers.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--speakers", type=int, default=8, help="how many speakers to hold out (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, required=True, help="manifest to write for training")
    parser.add_argument("--development", type=Path, required=True, help="manifest to write for the held-out speakers")
    args = parser.parse_args()
    try:
        kept, held = split(args.manifest, args.speakers, args.seed, args.train, args.development)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{kept} utterances in {args.train}, {held} in {args.development}")


if __name__ == "__main__":
    main()
