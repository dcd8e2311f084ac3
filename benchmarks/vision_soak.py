"""Many clients at once with good images and bad ones: nothing good may fail, and memory has to stay bounded.

python -m benchmarks.vision_soak --json
python -m benchmarks.vision_soak --models MODELS --images PHOTOGRAPHS --clients 200 --seconds 300 --json
python -m benchmarks.vision_soak --clients 8 --seconds 10 --warm-up 1    # a rehearsal

The server is `asr-server serve` with the bundles of --models in a process of its own, which a few processes of clients
share the machine with. Each client has a connection of its own and sends one image after the other: mostly good ones,
and, as vision_kinds.KINDS says how often, ones of as many pixels as are allowed, files of too many bytes, truncated
files, and bombs (small files that would unpack to gigabytes).

--door stream: one ClassifyStream a client, whose images wait while the server is full. --door single: a Classify call
an image; where the server is full it refuses, which is counted, and the client tries again a little later.

Held when every good image was answered OK, every other one with the status of its kind, and memory is bounded: after
--warm-up seconds the mean of its last quarter may lie at most --growth per cent above that of the first, and at no look
may it be more than --memory above what it was before the clients came. Single images of 25,000,000 pixels are peaks of
hundreds of MiB, which the means even out. Latencies are of good images, tries that were refused included.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine, vision_images, vision_kinds
from benchmarks.calls import percentile
from benchmarks.results import Bar
from benchmarks.server_process import ServerProcess, command
from benchmarks.soak import Look, growth, look
from benchmarks.streaming import rounded
from benchmarks.vision_soak_clients import DOORS, Seen
from benchmarks.workers import Worker
from vision_zoo.bundle import SHIPPED
from vision_zoo.images import BYTES_PER_PIXEL, PIXEL_LIMIT
from vision_zoo.service import Limits

USUAL_IMAGES = 16
# MiB that docs/vision-api.md promises at most: images that are decoded at once, and files of accepted ones
PROMISED = Limits.decoders * (BYTES_PER_PIXEL * PIXEL_LIMIT / 2**20 + 80) + Limits.images * Limits.image_bytes / 2**20


def bars(args: argparse.Namespace) -> list[Bar]:
    return [
        Bar("good images that were sent: at least 1", "good", at_least=1),
        Bar("good images that were not answered OK: none", "errors_good", at_most=0),
        Bar("others that were not answered with the status of their kind: none", "errors_others", at_most=0),
        Bar(f"growth of memory in per cent: at most {args.growth:g}", "rss_growth_percent", at_most=args.growth),
        Bar(f"memory above the idle server's in MiB: at most {args.memory:.0f}", "rss_added", at_most=args.memory),
    ]


def soak(args: argparse.Namespace, folder: Path) -> tuple[list[Seen], list[Look]]:
    """What every process of clients saw, and the server's memory over time, the first look before anybody came."""
    images = folder / "images"
    vision_images.write_kinds(vision_images.photographs(args.images, args.good, args.seed), images, args.seed)
    with (
        ServerProcess(command(args.models, 4 * args.clients + 16, None), folder / "server.log") as server,
        ExitStack() as stack,
    ):
        workers = [stack.enter_context(_clients(args, server.address, part, folder)) for part in range(args.processes)]
        for worker in workers:
            worker.reply()  # it is ready
        begun = time.monotonic()
        looks, until = [look(server.pid, begun)], begun + args.seconds
        for worker in workers:
            worker.tell({"until": until})
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(args.every, left))
            server.usage()  # ValueError where it has ended
            looks.append(look(server.pid, begun))
        seen = [Seen(**worker.reply()) for worker in workers]
        server.usage()
        return seen, looks


def _clients(args: argparse.Namespace, address: str, part: int, folder: Path) -> Worker:
    """The part-th of the processes, with its share of the clients."""
    count = len(range(part, args.clients, args.processes))
    words = ["--server", address, "--images", str(folder / "images"), "--clients", str(count)]
    words += ["--door", args.door, "--seed", f"{args.seed}.{part}"]
    return Worker("benchmarks.vision_soak_clients", words, folder / f"clients-{part}.log")


def figures(args: argparse.Namespace, seen: Sequence[Seen], looks: Sequence[Look]) -> dict[str, Any]:
    """ValueError where too little was seen."""
    answers: Counter[str] = sum((Counter(each.answers) for each in seen), Counter())
    by_kind: dict[str, dict[str, int]] = {kind: {} for kind in vision_kinds.KINDS}
    for name, count in answers.items():
        kind, _, code = name.partition(" ")
        by_kind[kind][code] = count
    wrong = {
        kind: sum(count for code, count in codes.items() if code != vision_kinds.KINDS[kind].expected)
        for kind, codes in by_kind.items()
    }
    latencies = [each for part in seen for each in part.latencies]
    grown = growth(looks[1:], args.warm_up / 60)
    highest = max(each.resident for each in looks)
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        "images": answers.total(),
        "images_per_second": answers.total() / args.seconds,
        "answers": by_kind,
        "good": sum(by_kind["good"].values()),
        "errors_good": wrong["good"],
        "errors_others": sum(wrong.values()) - wrong["good"],
        "said": {name: text for part in reversed(seen) for name, text in part.said.items()},
        "refusals": sum(part.refusals for part in seen),
        "p50_ms": 1000 * percentile(latencies, 0.5),
        "p99_ms": 1000 * percentile(latencies, 0.99),
        "rss_before": looks[0].resident,
        "rss_max": highest,
        "rss_added": highest - looks[0].resident,
        "rss_first_quarter": grown.first,
        "rss_last_quarter": grown.last,
        "rss_growth_percent": 100 * (grown.last / grown.first - 1),
        "rss_mib_per_minute": grown.per_minute,
        "rss": [(60 * each.minute, each.resident) for each in looks],
    }


def report(found: dict[str, Any]) -> None:
    print(f"{'':12}{'expected':20}answered")
    for kind, codes in found["answers"].items():
        listed = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
        print(f"{kind:12}{vision_kinds.KINDS[kind].expected:20}{listed or 'none were sent'}")
    for name, text in found["said"].items():
        print(f"unexpected: {name}: {text}")
    print(
        f"good images: {found['good']}, p50 {found['p50_ms']:.0f}, p99 {found['p99_ms']:.0f} ms; all: "
        f"{found['images_per_second']:.1f} a second; calls refused while full: {found['refusals']}"
    )
    print(
        f"memory in MiB: {found['rss_before']:.0f} before, {found['rss_max']:.0f} at most, first quarter "
        f"{found['rss_first_quarter']:.0f}, last {found['rss_last_quarter']:.0f}, "
        f"slope {found['rss_mib_per_minute']:+.2f} a minute"
    )


def run(args: argparse.Namespace) -> int:
    for name in ("clients", "processes", "good"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}: at least 1")
    if args.every <= 0 or args.seconds <= 0:
        raise ValueError(f"--every {args.every:g} and --seconds {args.seconds:g} must be above 0")
    args.processes = min(args.processes, args.clients)
    print(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    with tempfile.TemporaryDirectory(prefix="earsight-vision-soak-") as name:
        found = figures(args, *soak(args, Path(name)))
    report(found)
    held = True
    for bar in bars(args):
        held &= bar.met(found)
        print(f"{'met   ' if bar.met(found) else 'MISSED'} {bar.text}: {found[bar.key]:.4g}")
    if args.json:
        print(json.dumps(rounded({"machine": machine.facts(), "door": args.door, **found})))
    return 0 if held else 1


def build_parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_soak", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--models", type=Path, default=SHIPPED, metavar="FOLDER", help="of bundles (default: the shipped ones)")
    add("--clients", type=int, default=200, help="default: %(default)s")
    add("--seconds", type=float, default=300.0, help="default: %(default)g")
    add("--door", choices=DOORS, default=DOORS[0], help="how images are sent (default: %(default)s)")
    add("--images", type=Path, metavar="FOLDER", help="of photographs, the good ones (default: made-up pictures)")
    add("--good", type=int, default=USUAL_IMAGES, metavar="N", help="at most so many of them (default: %(default)s)")
    add("--processes", type=int, default=4, help="that the clients are spread over (default: %(default)s)")
    add("--every", type=float, default=1.0, metavar="SECONDS", help="between looks at memory (default: %(default)g)")
    add("--warm-up", type=float, default=30.0, metavar="SECONDS", help="before growth counts (default: %(default)g)")
    add("--growth", type=float, default=10.0, metavar="PER CENT", help="of memory, at most (default: %(default)g)")
    add(
        "--memory",
        type=float,
        default=PROMISED,
        metavar="MIB",
        help="above the idle server's, at most (default: what the limits allow, %(default).0f)",
    )
    add("--seed", type=int, default=0, help="of what is sent (default: %(default)s)")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")


if __name__ == "__main__":
    sys.exit(main())
