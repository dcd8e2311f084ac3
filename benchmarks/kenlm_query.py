"""A language model score through the kenlm module and in the native core: nanoseconds each, both in one run.

    python -m benchmarks.kenlm_query --language-model lm.binary
    python -m benchmarks.kenlm_query --language-model lm.binary --json

Scores the words of the model's .words file in random order, each after the one before it, as a search does at the end
of a word. The two take turns, and each one's best turn counts.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from asr_server.alphabet import Alphabet
from asr_server.language_model import LanguageModel
from asr_server.native import core


def through_module(model: LanguageModel, words: Sequence[str]) -> float:
    """ln P of the words in a row."""
    state, total = model.begin(), 0.0
    for word in words:
        log_prob, state = model.score(state, word)
        total += log_prob
    return total


def measure(model: LanguageModel, count: int, repeats: int, seed: int) -> dict[str, float]:
    """Nanoseconds a word."""
    if core is None:
        raise ValueError("the native core was not built, so there is nothing to compare")
    if model.lexicon is None:
        raise ValueError(f"{str(model.path)!r} has no .words file beside it; training.language_model writes one")
    words = random.Random(seed).choices(list(model.lexicon), k=count)
    native = model.native(Alphabet())
    ways: dict[str, Callable[[], float]] = {
        "module": lambda: through_module(model, words),
        "native": lambda: native.score(words),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    totals = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            totals[name] = way()
            times[name].append(1e9 * (time.process_time() - start) / count)
    assert abs(totals["module"] - totals["native"]) < 1e-6 * abs(totals["native"])
    best = {name: min(values) for name, values in times.items()}
    return {**best, "ratio": best["module"] / best["native"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language-model", type=Path, required=True, metavar="FILE", help="with its .words beside it")
    parser.add_argument("--words", type=int, default=200_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    args = parser.parse_args(arguments)
    try:
        figures = measure(LanguageModel(args.language_model), args.words, args.repeats, args.seed)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"through the kenlm module {figures['module']:7.0f} ns a word")
    print(f"in the native core       {figures['native']:7.0f} ns a word, {figures['ratio']:.1f} times faster")
    if args.json:
        print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
