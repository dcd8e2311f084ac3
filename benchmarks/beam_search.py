"""Processor time of the beam search per frame, on synthetic outputs about as peaked as a trained network's.

python benchmarks/beam_search.py
python benchmarks/beam_search.py --language-model lm.binary --beam-width 16 64 256 --json

Each letter of a random text stands in one frame among blanks; noise on the logits makes other symbols likely in some
frames, so that the beam stays full. `candidates` is the mean number of symbols a frame that pass the threshold.
A frame of the shipped models stands for 20 ms.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_server.alphabet import BLANK, Alphabet
from asr_server.beam_search import BeamSearch, DecodingOptions
from asr_server.language_model import LanguageModel

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "stop", "go", "help", "enter")
MARGIN = 9.0  # of the right symbol's logit


def synthetic(frames: int, noise: float, alphabet: Alphabet, seed: int = 0) -> NDArray[np.float32]:
    """(T, V) natural-log probabilities; `noise` is the deviation of the logits."""
    draw = np.random.default_rng(seed)
    path = np.full(frames, BLANK)
    letters = alphabet.encode(" ".join(draw.choice(WORDS, frames // 8)))
    spots = np.cumsum(draw.integers(2, 6, len(letters)))  # two frames at least, so that no letters merge
    spots = spots[spots < frames]
    path[spots] = letters[: len(spots)]
    logits = draw.normal(0, noise, (frames, len(alphabet)))
    logits[np.arange(frames), path] += MARGIN
    log_probs: NDArray[np.float32] = (logits - np.logaddexp.reduce(logits, axis=1)[:, None]).astype(np.float32)
    return log_probs


def measure(log_probs: NDArray[np.float32], options: DecodingOptions, model: LanguageModel | None) -> dict[str, object]:
    """Best of three runs."""
    times = []
    for _ in range(3):
        search = BeamSearch(options, Alphabet(), model)
        start = time.process_time()
        search.advance(log_probs)
        times.append(time.process_time() - start)
    start = time.process_time()
    search.best()
    best = time.process_time() - start
    return {
        "beam_width": options.beam_width,
        "us_per_frame": round(1e6 * min(times) / len(log_probs), 1),
        "best_us": round(1e6 * best, 1),
        "candidates": round(float((log_probs >= options.token_min_log_prob).sum(axis=1).mean()), 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--noise", type=float, default=1.5, help="deviation of the logits (default: %(default)s)")
    parser.add_argument("--beam-width", type=int, nargs="+", default=[16, 32, 64], help="default: 16 32 64")
    parser.add_argument("--language-model", type=Path, metavar="FILE", help="a KenLM model (default: none)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    args = parser.parse_args(arguments)
    try:
        model = LanguageModel(args.language_model) if args.language_model else None
        log_probs = synthetic(args.frames, args.noise, Alphabet())
        rows = [measure(log_probs, DecodingOptions(beam_width=width), model) for width in args.beam_width]
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        print(json.dumps({"frames": args.frames, "noise": args.noise, "runs": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
