"""What the peers have in common: the data they are given, and requests on standard input.

python -m benchmarks.peers.pyctcdecode_peer --posteriors FILE.npz --language-model LM --words FILE --alpha A --beta B

A request is a line {"beam": 100, "hot_words": []}, the reply to it a line {"texts": [...], "seconds": 1.5}: processor
time of decoding alone. The peer stays alive between requests, so that loading is paid once and runs can be interleaved
with those of other decoders. Only numpy and the standard library: this runs where the peers are installed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

LogProbs: TypeAlias = "NDArray[np.float32]"  # (T, V), contiguous
Decode: TypeAlias = Callable[[LogProbs], str]
Prepare: TypeAlias = Callable[[int, Sequence[str]], Decode]  # of a beam and hot words


@dataclass(frozen=True)
class Job:
    """What is to be decoded, and how."""

    log_probs: list[LogProbs]
    labels: list[str]  # "" is the blank
    language_model: str  # a KenLM file
    words: list[str]
    alpha: float  # weighs natural logarithms
    beta: float


def read_job(arguments: Sequence[str] | None = None) -> Job:
    parser = argparse.ArgumentParser()
    for name in ("posteriors", "language-model", "words"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("alpha", "beta"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args(arguments)
    words = args.words.read_text(encoding="utf-8").split()
    with np.load(args.posteriors) as arrays:
        log_probs, labels = split(arrays["log_probs"], arrays["lengths"]), arrays["labels"].tolist()
    return Job(log_probs, labels, str(args.language_model), words, args.alpha, args.beta)


def split(log_probs: LogProbs, lengths: NDArray[Any]) -> list[LogProbs]:
    """Utterances that lie one after the other, (N, V), apart."""
    return [np.ascontiguousarray(part) for part in np.split(log_probs, np.cumsum(lengths)[:-1])]


def serve(job: Job, prepare: Prepare) -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        decode = prepare(request["beam"], request["hot_words"])
        start = time.process_time()
        texts = [decode(matrix) for matrix in job.log_probs]
        seconds = time.process_time() - start
        print(json.dumps({"texts": texts, "seconds": seconds}), flush=True)
