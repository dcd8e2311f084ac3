"""What each change of the training data is worth: the same short training without it, a row each.

    python -m training.ablation --out runs/ablation --manifest dev.jsonl noisy-dev.jsonl -- \
        --initial runs/speech/last.ckpt --train train.jsonl --validation dev.jsonl --noise noise.jsonl --epochs 1 ...

What stands after `--` are options of `training.fit speech`, the same for every row but for the one that a row switches
off. A row begins with the same weights, sees the same utterances in the same order, and every other change draws the
same random numbers. Each ends in a bundle, whose greedy word and character error rates on each manifest are in the
table, and what they are more than the first row's. `--row` makes rows of your own, here another seed, which shows how
much chance there is in the differences, and more data:

    ... --row "another seed" "--seed 2" --row "synthetic speech" "--train train.jsonl synthetic.jsonl" -- ...

Rows that are finished are kept: a run that was cut goes on where it stopped, and two runs with the same --out can make
different rows at the same time.
"""

import argparse
import json
import shlex
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
    """Greedy error rates in percent, of words and characters, by manifest."""

    name: str
    rates: dict[str, tuple[float, float]]


def run(args: argparse.Namespace) -> list[Row]:
    """Train and measure every row; a program that fails ends this one. ValueError where two rows or manifests would be
    kept under one name."""
    rows = []
    switches = {name: ROWS[name] for name in args.rows} | {name: shlex.split(options) for name, options in args.row}
    names = [*args.rows, *(name for name, _ in args.row)]
    _refuse_equals("--row", [(name, _folder(name)) for name in names])
    _refuse_equals("--manifest", [(str(each), each.stem) for each in args.manifest])
    for name, options in switches.items():
        folder = args.out / _folder(name)
        fit = [*args.fit, *options]
        rows.append(Row(name, {str(each): _measured(folder, each, fit, args.jobs) for each in args.manifest}))
        print(table(rows), flush=True)
    return rows


def _folder(row: str) -> str:
    return row.replace(" ", "-")


def _refuse_equals(option: str, kept: Sequence[tuple[str, str]]) -> None:
    """`kept`: what was given, and the name under which its results are kept."""
    found: dict[str, str] = {}
    for given, name in kept:
        if name in found:
            raise ValueError(f"{option}: the results of {found[name]} and {given} would both be kept as {name}")
        found[name] = given


def _measured(folder: Path, manifest: Path, fit: Sequence[str], jobs: int) -> tuple[float, float]:
    kept, of = folder / f"{manifest.stem}.json", str(manifest.resolve())
    if not kept.exists():
        program = ["training.evaluate", "speech", "--bundle", str(_bundle(folder, fit)), "--manifest", str(manifest)]
        printed = _python(*program, "--greedy", "--json", "--jobs", str(jobs))
        figures = {"manifest": of, **json.loads(printed.splitlines()[-1])}
        kept.write_text(json.dumps(figures), encoding="utf-8")
    figures = json.loads(kept.read_text(encoding="utf-8"))
    if figures.get("manifest", of) != of:
        raise ValueError(f"{kept} is of {figures['manifest']}, not of {of}: rename a manifest, or remove that result")
    return float(figures["wer"]), float(figures["cer"])


def _bundle(folder: Path, fit: Sequence[str]) -> Path:
    bundle = folder / "bundle"
    if not bundle.exists():
        _python("training.fit", "speech", "--out", str(folder), *fit, "--quiet", "--resume")
        checkpoint = str(folder / "last.ckpt")
        _python("training.export", "speech", "--checkpoint", checkpoint, "--name", "ablation", "--out", str(bundle))
    return bundle


def _python(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def table(rows: Sequence[Row]) -> str:
    """Markdown: the rates, and how much more they are than the first row's."""
    manifests = list(rows[0].rates)
    heads = [f"{Path(manifest).stem}, {rate} %" for manifest in manifests for rate in ("WER", "CER")]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for row in rows:
        pairs = [pair for each in manifests for pair in zip(row.rates[each], rows[0].rates[each], strict=True)]
        cells = [f"{rate:.2f} ({rate - first:+.2f})" for rate, first in pairs]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each row goes in here")
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, metavar="JSONL", help="what is recognised")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), metavar="ROW", help=f"of {list(ROWS)}; default: all")
    parser.add_argument(
        "--row",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help="one more row: options of training.fit, in one argument",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes of an evaluation; default: %(default)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--" not in given:
        parser.error("options of training.fit speech are to follow after --")
    cut = given.index("--")
    args = parser.parse_args(given[:cut])
    args.fit = given[cut + 1 :]
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.exit(2, f"{parser.prog}: rows {unknown} are not known. Select from {list(ROWS)}\n")
    if not args.rows and not args.row:
        parser.error("no rows: give names after --rows, or --row")
    try:
        run(args)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"{parser.prog}: {' '.join(error.cmd[2:4])} ended with status {error.returncode}, see above\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
