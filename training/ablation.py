"""What each change of the training data is worth: the same short training without it, a row each.

    python -m training.ablation --out runs/ablation --manifest dev.jsonl noisy-dev.jsonl -- \
        --initial runs/speech/last.ckpt --train train.jsonl --validation dev.jsonl --noise noise.jsonl --epochs 1 ...

What stands after `--` are options of `training.fit speech`, the same for every row but for the one that a row switches
off. A row begins with the same weights, sees the same utterances in the same order, and every other change draws the
same random numbers. Each ends in a bundle, whose greedy word error rate on each manifest is in the table, and what it
loses against the first row. Rows that are finished are kept: a run that was cut goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The name of a row and the options of training.fit that switch its subject off.
ROWS: dict[str, tuple[str, ...]] = {
    "full recipe": (),
    "no noise": ("--noise-share", "0"),
    "no babble": ("--babble-share", "0"),
    "no rooms": ("--room-share", "0"),
    "no speed": ("--speed", "0"),
    "no jitter": ("--jitter", "0"),
    "no level": ("--level", "0", "--clipping-share", "0"),
    "no telephone": ("--telephone-share", "0"),
    "no pitch": ("--pitch", "0"),
    "no SpecAugment": ("--time-masks", "0", "--frequency-masks", "0"),
    "no augmentation": ("--no-augmentation",),
}


@dataclass(frozen=True)
class Row:
    """Greedy word error rates in percent, by manifest."""

    name: str
    rates: dict[str, float]


def run(args: argparse.Namespace) -> list[Row]:
    """Train and measure every row; a program that fails ends this one."""
    rows = []
    for name in args.rows:
        folder = args.out / name.replace(" ", "-")
        rows.append(Row(name, {str(manifest): _measured(folder, name, manifest, args) for manifest in args.manifest}))
        print(table(rows), flush=True)
    return rows


def _measured(folder: Path, name: str, manifest: Path, args: argparse.Namespace) -> float:
    kept = folder / f"{manifest.stem}.json"
    if not kept.exists():
        bundle = _bundle(folder, name, args.fit)
        program = ["training.evaluate", "speech", "--bundle", str(bundle), "--manifest", str(manifest), "--greedy"]
        printed = _python(*program, "--json", "--jobs", str(args.jobs))
        kept.write_text(printed.splitlines()[-1], encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))["wer"])


def _bundle(folder: Path, name: str, options: Sequence[str]) -> Path:
    bundle = folder / "bundle"
    if not bundle.exists():
        _python("training.fit", "speech", "--out", str(folder), *options, *ROWS[name], "--quiet", "--resume")
        checkpoint = str(folder / "last.ckpt")
        _python("training.export", "speech", "--checkpoint", checkpoint, "--name", "ablation", "--out", str(bundle))
    return bundle


def _python(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def table(rows: Sequence[Row]) -> str:
    """Markdown: the rates, and what they lose against the first row."""
    manifests = list(rows[0].rates)
    lines = ["| | " + " | ".join(f"{Path(manifest).stem}, WER %" for manifest in manifests) + " |"]
    lines.append("|---|" + "---|" * len(manifests))
    for row in rows:
        cells = [f"{row.rates[each]:.2f} ({row.rates[each] - rows[0].rates[each]:+.2f})" for each in manifests]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each row goes in here")
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, metavar="JSONL", help="what is recognised")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"of {list(ROWS)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes of an evaluation; default: %(default)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--" not in given:
        parser.error("options of training.fit speech are to follow after --")
    cut = given.index("--")
    args = parser.parse_args(given[:cut])
    args.fit = given[cut + 1 :]
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.exit(2, f"{parser.prog}: rows {unknown} are not known. Select from {list(ROWS)}\n")
    try:
        run(args)
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"{parser.prog}: {' '.join(error.cmd[2:4])} ended with status {error.returncode}, see above\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
