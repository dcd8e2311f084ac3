"""Tables for `training.fit vision` of the unpacked tiny-imagenet-200 folder: train.csv and val.csv beside it.

    python scripts/tiny_imagenet.py FOLDER/tiny-imagenet-200

Labels are the first names that words.txt has; the images of its test folder have none.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path


def main(root: Path) -> None:
    words = (line.split("\t") for line in (root / "words.txt").read_text(encoding="utf-8").splitlines())
    names = {synset: meanings.split(",")[0].strip() for synset, meanings in words}
    train = ((path, names[path.parts[-3]]) for path in sorted((root / "train").glob("*/images/*.JPEG")))
    annotated = (line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    _write(root.parent / "train.csv", train)
    _write(root.parent / "val.csv", ((root / "val" / "images" / file, names[of]) for file, of, *_ in annotated))


def _write(file: Path, rows: Iterable[tuple[Path, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("path", "label"))
        table.writerows((path.relative_to(file.parent), label) for path, label in rows)
    print(f"wrote {file}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "words.txt").is_file():
        sys.exit(f"usage: {sys.argv[0]} FOLDER/tiny-imagenet-200, the folder that holds words.txt")
    main(Path(sys.argv[1]))
