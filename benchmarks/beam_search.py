"""Our beam search beside pyctcdecode and flashlight: speed and word error rate, in one run.

python -m benchmarks.beam_search
python -m benchmarks.beam_search --wikitext word_language_model/data/wikitext-2 --json
python -m benchmarks.beam_search --wikitext wikitext-2 --manifest an4-test.jsonl --language-model books.binary \\
    --plot docs/beam_search.svg --json

On synthetic posteriors of sentences from WikiText-2, and with --manifest on a bundle's outputs for recorded speech.
--wikitext is a folder with test.txt and valid.txt, as pytorch/examples has it in word_language_model/data/wikitext-2;
without it the sentences come from the topics of Python's help(), an easier text. The 3-gram is made here (`make kenlm`
builds the programs) and kept in .benchmarks/, like the environment that the peers are installed into.

All decoders take turns with the same data, language model, alpha and beta, each on one thread; of the repeats the best
processor time counts, because shared machines only ever add time. flashlight needs a lexicon, the words of the language
model; ours and pyctcdecode have an open vocabulary, and `ours-lexicon` is ours with flashlight's. At beam 100 follow
hot words, 100 streams advanced in turn and all cores at once.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from asr_server.beam_search import DecodingOptions
from asr_server.native import core
from benchmarks import loads, posteriors, text
from benchmarks.decoders import OURS, PEERS, ROOT, Decoder, Ours, Peer, Run, peers_python
from benchmarks.posteriors import Task
from benchmarks.results import BEAM, Figures, Row, bars, figures, plot, table

LONG = 15.0  # seconds; a run that takes longer is not repeated
USUAL = DecodingOptions()


def compare(
    task: Task, decoders: Sequence[Decoder], beams: Sequence[int], peer_beams: Sequence[int], repeats: int
) -> list[Row]:
    """All decoders in turns."""
    runs: dict[tuple[str, int], list[Run]] = {}
    for _, beam in tqdm(list(itertools.product(range(repeats), beams)), task.name, disable=None):
        for decoder in decoders:
            done = runs.setdefault((decoder.name, beam), [])
            if (decoder.name in OURS or beam in peer_beams) and not (done and done[-1].seconds > LONG):
                done.append(decoder.run(beam))
    return [row_of(task, name, beam, done) for (name, beam), done in runs.items() if done]


def row_of(task: Task, name: str, beam: int, runs: Sequence[Run]) -> Row:
    best = min(run.seconds for run in runs)
    return Row(task.name, name, beam, 1e6 * best / task.frames, posteriors.error_rate(task.texts, runs[-1].texts))


def under_load(ours: Ours, peers: Sequence[Decoder], repeats: int, seed: int) -> Figures:
    """Hot words, streams and cores at beam 100. These ratios are near 1, so they take more repeats than the others."""
    more = 3 * repeats
    extra = loads.hot_words_extra(ours, BEAM, more, seed)
    found: Figures = {f"hot_words_{count}_extra": share for count, share in extra.items()}
    words = ours.task.words.read_text(encoding="utf-8").split()
    for peer in peers:
        if peer.name == "pyctcdecode":  # flashlight has none
            share = loads.peer_hot_words_extra(peer, words, BEAM, repeats, seed)
            found[f"hot_words_{loads.HOT_WORDS[0]}_extra_{peer.name}"] = share
    found[f"streams_{loads.STREAMS}_ratio"] = loads.streams_ratio(ours, BEAM, more)
    for turn in loads.SHORT_TURNS:
        found[f"streams_{loads.STREAMS}_ratio_turns_of_{turn}"] = loads.streams_ratio(ours, BEAM, more, turn)
    found["batch_speedup"] = loads.batch_speedup(ours, BEAM, more)
    return found


def measure(task: Task, args: argparse.Namespace, python: Path | None) -> tuple[list[Row], Figures]:
    """One task from end to end; it prints as it goes."""
    options = DecodingOptions(**dict(args.option))
    print(f"\n{task.name}: {len(task.texts)} utterances, {task.frames:,} frames, {len(task.alphabet)} symbols")
    print(f"alpha {task.alpha}, beta {task.beta}, greedy WER {task.greedy_error_rate:.2f} %", flush=True)
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(name, task, python)) for name in PEERS if python and name in args.decoders]
        ours = [Ours(task, options, name == "ours-lexicon") for name in OURS if name in args.decoders]
        rows = compare(task, [*ours, *peers], args.beams, args.peer_beams or args.beams, args.repeats)
        print(table(rows, task.name), flush=True)
        found = figures(rows, task.name)
        if task.name == "synthetic" and "ours" in args.decoders:
            found |= under_load(ours[0], peers, args.repeats, args.seed)
    found |= {"frames": task.frames, "greedy_wer": task.greedy_error_rate}
    for name, value in found.items():
        print(f"{name:32} {value:10.3f}")
    for bar in bars(found, task.name == "synthetic"):
        print(f"{'met   ' if bar.met(found) else 'MISSED'} {bar.text}: {found[bar.key]:.3f}")
    return rows, found


def make_cache(folder: Path) -> None:
    """What it holds is for no repository, as with other tools' caches."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n")


def run(args: argparse.Namespace) -> None:
    make_cache(args.cache)
    source = text.wikitext(args.wikitext) if args.wikitext else text.standard_library()
    tasks = [posteriors.synthetic(source, args.utterances, args.seed, args.alpha, args.beta, args.cache)]
    if args.manifest:
        real = (args.bundle, args.manifest, args.language_model, args.real_alpha, args.real_beta, args.real_utterances)
        tasks.append(posteriors.real(*real))
    python = peers_python(args.cache) if set(PEERS) & set(args.decoders) else None
    print(f"text: {source.name}" + ("" if args.wikitext else " (no --wikitext: its error rates are those of a toy)"))
    print(f"ours: {'the native core' if core else 'the reference in Python, for the native core was not built'}")
    rows: list[Row] = []
    named: dict[str, object] = {"native": core is not None, "text": source.name, "utterances": args.utterances}
    for task in tasks:
        more, found = measure(task, args, python)
        rows += more
        prefix = "" if task.name == "synthetic" else f"{task.name}_"
        named |= {f"{prefix}{name}": round(value, 4) for name, value in found.items()}
    if args.plot:
        plot(rows, args.plot)
    if args.json:
        print(json.dumps({**named, "runs": [asdict(row) for row in rows]}))


def option(text: str) -> tuple[str, float]:
    """NAME=VALUE of a number in DecodingOptions."""
    numbers = [field.name for field in fields(DecodingOptions) if field.type is float]
    name, _, value = text.partition("=")
    try:
        if name in numbers:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER. Select NAME from {numbers}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beam_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    beams = [16, 32, 64, 100, 256, 512, 1024]
    add("--beams", type=int, nargs="+", default=beams, metavar="N", help=f"default: {' '.join(map(str, beams))}")
    add("--peer-beams", type=int, nargs="+", metavar="N", help="those of them that the peers run (default: all)")
    both = (*OURS, *PEERS)
    add("--decoders", nargs="+", choices=both, default=both, help="default: all")
    add("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE", help="another threshold for ours")
    add("--wikitext", type=Path, metavar="DIR", help="WikiText-2: test.txt and valid.txt")
    add("--utterances", type=int, default=60, metavar="N", help="synthetic ones (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--alpha", type=float, default=0.8, help="weight of the language model (default: %(default)s)")
    add("--beta", type=float, default=1.5, help="reward for a word (default: %(default)s)")
    add("--manifest", type=Path, metavar="FILE", help="recorded speech, JSON lines; adds the real part")
    add("--bundle", default="deepspeech-an4", help="folder or name of the model that hears it (default: %(default)s)")
    add("--language-model", metavar="FILE", help="KenLM file with its .words (default: the bundle's)")
    add("--real-alpha", type=float, default=USUAL.alpha, help="of the real part (default: %(default)s)")
    add("--real-beta", type=float, default=USUAL.beta, help="of the real part (default: %(default)s)")
    add("--real-utterances", type=int, metavar="N", help="only the first N of the manifest")
    add("--cache", type=Path, default=ROOT / ".benchmarks", metavar="DIR", help="for the peers and the 3-gram")
    add("--plot", type=Path, metavar="FILE", help="write WER against time as .svg or .png")
    add("--json", action="store_true", help="print the figures as one JSON object on the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
