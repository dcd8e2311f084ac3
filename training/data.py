"""Check manifests before a model is trained on them.

python -m training.data check train.jsonl dev.jsonl --test test.jsonl
python -m training.data check train.jsonl --noise noise.jsonl --test test.jsonl --jobs 4 --json
python -m training.data check train.jsonl --test test.jsonl --allow test-text   # known, and wanted

Exit status: 0 without errors (warnings may be), 1 with errors, 2 when a manifest cannot be read or an option is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from training.data_check import CheckOptions, Report, Summary, check
from training.data_entries import Finding
from training.data_rules import Limits


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="check")
    command = commands.add_parser("check", help="look for what spoils a training or an evaluation")
    command.add_argument("manifests", type=Path, nargs="*", metavar="MANIFEST", help="of training and validation")
    command.add_argument(
        "--noise", type=Path, nargs="+", default=[], metavar="MANIFEST", help="recordings without text"
    )
    command.add_argument("--test", type=Path, nargs="+", default=[], metavar="MANIFEST", help="nothing may be shared")
    command.add_argument("--allow", nargs="+", default=[], metavar="RULE", help="errors that count as warnings")
    command.add_argument("--headers", action="store_true", help="read no samples: quick, and blind for loudness")
    command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads; default: %(default)s")
    command.add_argument("--show", type=int, default=10, help="findings of a rule and manifest; default: %(default)s")
    command.add_argument("--json", action="store_true", help="everything as one JSON object, instead of the text")
    limits = command.add_argument_group("limits", "what is odd")
    for name, value in asdict(Limits()).items():
        limits.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s")
    return parser


def options(args: argparse.Namespace) -> CheckOptions:
    return CheckOptions(
        tuple(args.manifests),
        tuple(args.noise),
        tuple(args.test),
        Limits(**{name: getattr(args, name) for name in asdict(Limits())}),
        frozenset(args.allow),
        args.jobs,
        args.headers,
    )


def table(summaries: Sequence[Summary]) -> str:
    """A line for each manifest."""
    width = max(len("manifest"), *(len(str(summary.manifest)) for summary in summaries))
    head = f"{'manifest':{width}}  kind      utterances   hours speakers    words chars/s  errors warnings"
    return "\n".join([head, *(_row(summary, width) for summary in summaries)])


def _row(summary: Summary, width: int) -> str:
    speed = f"{summary.characters_per_second:.1f}" if summary.words else "-"
    return (
        f"{summary.manifest!s:{width}}  {summary.kind:8} {summary.utterances:11}{summary.hours:8.2f}"
        f"{summary.speakers or '-':>9}{summary.words or '-':>9}{speed:>8}{summary.errors:8}{summary.warnings:9}"
    )


def shown(findings: Sequence[Finding], limit: int) -> Iterator[str]:
    """The first of each manifest and rule, and how many more there are."""
    left = Counter((finding.manifest, finding.severity, finding.rule) for finding in findings)
    seen: Counter[tuple[Path, str, str]] = Counter()
    for finding in findings:
        kind = (finding.manifest, finding.severity, finding.rule)
        seen[kind] += 1
        if seen[kind] <= limit:
            yield str(finding)
        elif seen[kind] == left[kind]:
            yield f"{finding.manifest}: {finding.severity}: {finding.rule}: {left[kind] - limit} more"


def as_json(report: Report) -> str:
    """The report, with every finding."""
    parts: dict[str, Sequence[Summary | Finding]] = {"summaries": report.summaries, "findings": report.findings}
    lists = {name: [asdict(item) for item in items] for name, items in parts.items()}
    return json.dumps({"clean": report.clean, **lists}, default=str, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        report = check(options(args))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog} {args.command}: {error}\n")
    if args.json:
        print(as_json(report))
    else:
        print("\n".join([*shown(report.findings, args.show), table(report.summaries)]))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
