"""Hold out speakers of a manifest for tuning.

    python -m training.speech_split an4-train.jsonl --speakers 8 --train fit.jsonl --development dev.jsonl

Whole speakers are held out, because an utterance of a known voice says little about an unknown one.
"""

import argparse
import json
import os
import random
from pathlib import Path


def split(manifest: Path, speakers: int, seed: int, train: Path, development: Path) -> tuple[int, int]:
    """Write both parts, with audio paths relative to their new folders; returns their sizes."""
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = sorted({entry.get("speaker", "") for entry in entries})
    if not 0 < speakers < len(names):
        raise ValueError(f"cannot hold out {speakers} speakers of {manifest}: it has {len(names)}, some must be left")
    held = set(random.Random(seed).sample(names, speakers))
    parts = {
        train: [e for e in entries if e.get("speaker", "") not in held],
        development: [e for e in entries if e.get("speaker", "") in held],
    }
    for path, part in parts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for entry in part:
                audio = os.path.relpath(manifest.parent / entry["audio_filepath"], path.parent)
                file.write(json.dumps({**entry, "audio_filepath": audio}) + "\n")
    return len(parts[train]), len(parts[development])


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
