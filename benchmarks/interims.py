"""How restless interim results are, how soon words stand, and whether `stability` says which of them will last.

python -m benchmarks.interims --bundle deepspeech-an4 --manifest dev.jsonl --json

Each recording passes the engine as a stream, in pieces of 100 ms and with the engine's own steps; time is time of
audio, so what the machine takes to compute is not in it. Words are compared by place. A last word that only grew by
letters was not changed: it was not yet whole.

Flicker: an interim that changes a word of the one before it or takes it back. Stability is judged by whether the final
text begins with the interim one: its AUC is the chance that of an interim that lasted and one that did not the former
had the higher stability (0.5: it says nothing), and the table has the share that lasted beside what was promised.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr_server import bundle
from asr_server.pcm import Samples
from asr_server.recognizer import Engine, Event, Result, StreamOptions
from asr_server.transcripts import Word
from training.recognition import find_bundle
from training.speech_manifest import read_manifest

BORDERS = (0.0, 0.5, 0.8, 0.95, 1.0)  # of the stabilities that are counted together

Told = tuple[float, Result]  # seconds of audio that had been sent when the result came


@dataclass(frozen=True)
class Utterance:
    """What was told of one: interims in their order, and the final."""

    interims: tuple[Told, ...]
    final: Told

    @property
    def words(self) -> tuple[Word, ...]:
        """The final ones."""
        return self.final[1].alternatives[0].words

    def losses(self) -> Iterator[int]:
        """For each result after the first: how many words of the one before it were changed or taken back."""
        results = [result for _, result in (*self.interims, self.final)]
        for before, after in itertools.pairwise(results):
            yield _lost(before.text.split(), after.text.split())

    def standing(self) -> list[float]:
        """When each final word was first shown in its place and from then on kept, in seconds of audio sent."""
        return [self._since(place, word) for place, word in enumerate(self.final[1].text.split())]

    def _since(self, place: int, word: str) -> float:
        since = self.final[0]
        for at, result in reversed(self.interims):
            if result.text.split()[place : place + 1] != [word]:
                break
            since = at
        return since


def _lost(before: Sequence[str], after: Sequence[str]) -> int:
    kept = sum(one == other for one, other in zip(before, after, strict=False))
    last = len(before) - 1
    grew = 0 <= last < len(after) and before[last] != after[last] and after[last].startswith(before[last])
    return len(before) - kept - grew


def utterances(events: Iterable[tuple[float, Event]]) -> Iterator[Utterance]:
    """The results of a stream, each with its time, by utterance; interims that no final followed are nobody's."""
    interims: list[Told] = []
    for at, event in events:
        if not isinstance(event, Result):
            continue
        if event.is_final:
            yield Utterance(tuple(interims), (at, event))
            interims = []
        else:
            interims.append((at, event))


def stream(engine: Engine, samples: Samples, piece: float) -> Iterator[tuple[float, Event]]:
    """The events of a recording, each with the seconds of audio that had been sent."""
    stream = engine.stream(StreamOptions(interim_results=True))
    size = max(1, round(piece * engine.sample_rate))
    for start in range(0, len(samples), size):
        sent = min(start + size, len(samples)) / engine.sample_rate
        yield from ((sent, event) for event in stream.feed(samples[start : start + size]))
    yield from ((len(samples) / engine.sample_rate, event) for event in stream.finish())


def figures(found: Sequence[Utterance]) -> dict[str, object]:
    """Of all utterances together. ValueError where there is no final word or no interim."""
    told = [(result, utterance) for utterance in found for _, result in utterance.interims]
    words = sum(len(utterance.words) for utterance in found)
    if not told or not words:
        raise ValueError("no interim result or no final word: there is nothing to measure")
    losses = [list(utterance.losses()) for utterance in found]
    of_interims = [lost for each in losses for lost in each[:-1]]  # the last one is the final's
    marks = [(result.stability, utterance.final[1].text.startswith(result.text)) for result, utterance in told]
    delays = [
        since - word.end
        for utterance in found
        for word, since in zip(utterance.words, utterance.standing(), strict=True)
    ]
    return {
        "utterances": len(found),
        "final_words": words,
        "interims": len(told),
        "interims_per_utterance": round(len(told) / len(found), 2),
        "flicker_rate": round(sum(lost > 0 for lost in of_interims) / len(told), 4),
        "finals_that_change_a_word": round(sum(each[-1] > 0 for each in losses if each) / len(found), 4),
        "words_taken_back_per_final_word": round(sum(map(sum, losses)) / words, 4),
        "final_words_in_last_interim": round(sum(map(_shown_last, found)) / words, 4),
        "word_delay_mean": round(statistics.mean(delays), 3),
        "word_delay_p50": round(float(np.percentile(delays, 50)), 3),
        "word_delay_p95": round(float(np.percentile(delays, 95)), 3),
        **_judged(marks),
    }


def _shown_last(utterance: Utterance) -> int:
    """Final words that the last interim had in their place."""
    shown = utterance.interims[-1][1].text.split() if utterance.interims else []
    return sum(one == word for one, word in zip(shown, utterance.final[1].text.split(), strict=False))


def _judged(marks: Sequence[tuple[float, bool]]) -> dict[str, object]:
    """Stabilities, each with whether its text lasted."""
    lasted = [stability for stability, kept in marks if kept]
    gone = [stability for stability, kept in marks if not kept]
    return {
        "interims_that_lasted": round(len(lasted) / len(marks), 4),
        "stability_of_those": round(statistics.mean(lasted), 4) if lasted else None,
        "stability_of_others": round(statistics.mean(gone), 4) if gone else None,
        "stability_auc": _auc(lasted, gone),
        "stability_table": [row for row in (_row(*borders, marks) for borders in itertools.pairwise(BORDERS)) if row],
    }


def _auc(higher: Sequence[float], lower: Sequence[float]) -> float | None:
    if not higher or not lower:
        return None
    ours, theirs = np.array(higher)[:, None], np.array(lower)[None]
    return round(float((ours > theirs).mean() + 0.5 * (ours == theirs).mean()), 4)


def _row(low: float, high: float, marks: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The interims between two stabilities; the upper border belongs to the last row only."""
    inside = [mark for mark in marks if low <= mark[0] < high or (high == BORDERS[-1] and mark[0] == high)]
    if not inside:
        return {}
    mean, lasted = (round(statistics.mean(column), 4) for column in zip(*inside, strict=True))
    return {"from": low, "to": high, "interims": len(inside), "mean_stability": mean, "lasted": lasted}


def measure(engine: Engine, manifest: Path, piece: float, limit: int | None) -> dict[str, object]:
    found: list[Utterance] = []
    for each in tqdm(read_manifest(manifest)[:limit], "recordings", disable=None):
        found += utterances(stream(engine, each.samples(engine.sample_rate), piece))
    return figures(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "benchmarks.interims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="deepspeech-an4", help="folder or shipped name (default: %(default)s)")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="JSON lines of transcribed audio")
    parser.add_argument(
        "--piece", type=float, default=0.1, metavar="SECONDS", help="of a message (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N recordings")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on one line")
    args = parser.parse_args(arguments)
    try:
        found = measure(Engine(bundle.load(find_bundle(args.bundle))), args.manifest, args.piece, args.limit)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(found) if args.json else "\n".join(f"{name:34}{value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
