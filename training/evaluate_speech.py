"""Word and character error rates of a speech bundle on a manifest of transcribed audio.

Recordings take the serving path: the bundle's features, network, beam search and tuned options. By default the network
sees each recording to its end; --chunked cuts it as a stream would, --streaming feeds it piece by piece through the
server's recogniser, --compare-streaming does both and demands equal texts. Rates are percentages of all words and
characters of the manifest; `seconds` is wall time without loading the bundle, and rtf is seconds per second of audio.
"""

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from training.error_rate import Edits, character_edits, word_edits
from training.recognition import Recognition, Setting, find_bundle
from training.speech_manifest import Utterance, read_manifest

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Heard:
    """What became of one utterance. `offline`: the text of the chunked pass, when it was asked for."""

    utterance: Utterance
    text: str
    audio_seconds: float
    offline: str | None = None

    @property
    def words(self) -> Edits:
        return word_edits(self.utterance.text, self.text)

    @property
    def characters(self) -> Edits:
        return character_edits(self.utterance.text, self.text)


@dataclass(frozen=True)
class Figures:
    """The sums of a manifest, and what they were measured with."""

    words: Edits
    characters: Edits
    utterances: int
    audio_seconds: float
    seconds: float
    different: tuple[str, ...] | None = None  # audio files whose stream and offline texts differ

    def as_json(self) -> dict[str, object]:
        figures: dict[str, object] = {
            "wer": round(self.words.rate, 4),
            "cer": round(self.characters.rate, 4),
            "utterances": self.utterances,
            "audio_seconds": round(self.audio_seconds, 3),
            "seconds": round(self.seconds, 3),
            "rtf": round(self.seconds / max(self.audio_seconds, 1e-9), 5),
            "words": self.words.reference,
            "substitutions": self.words.substitutions,
            "deletions": self.words.deletions,
            "insertions": self.words.insertions,
        }
        if self.different is not None:
            figures |= {"streaming_equal": self.utterances - len(self.different), "different": list(self.different)}
        return figures

    def as_table(self) -> str:
        lines = [f"{'':12}{'rate':>8}{'errors':>8}{'sub':>6}{'del':>6}{'ins':>6}{'of':>8}"]
        for name, sums in (("words", self.words), ("characters", self.characters)):
            kinds = f"{sums.substitutions:6}{sums.deletions:6}{sums.insertions:6}"
            lines.append(f"{name:12}{sums.rate:7.2f}%{sums.errors:8}{kinds}{sums.reference:8}")
        speed = self.audio_seconds / max(self.seconds, 1e-9)
        lines.append(
            f"{self.utterances} utterances, {self.audio_seconds / 60:.1f} min of audio in {self.seconds:.1f} s "
            f"({speed:.1f} times real time)"
        )
        if self.different is not None:
            equal = self.utterances - len(self.different)
            lines.append(f"streaming equals offline in the same chunking: {equal} of {self.utterances}")
            lines += [f"  differs: {name}" for name in self.different]
        return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, help="a bundle's folder, or the name of a shipped one")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="JSON lines of transcribed audio")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--chunked", action="store_true", help="offline, with the backward recurrence cut as in a stream")
    how.add_argument("--streaming", action="store_true", help="through the server's recogniser, piece by piece")
    how.add_argument(
        "--compare-streaming", action="store_true", help="as --streaming, and compare each text with --chunked"
    )
    parser.add_argument("--endpointing", action="store_true", help="let pauses end utterances, with --streaming")
    parser.add_argument("--piece", type=float, default=0.1, metavar="SECONDS", help="message of a stream (default 0.1)")
    parser.add_argument("--greedy", action="store_true", help="the likeliest symbol of each frame, no beam, no words")
    add_decoding_arguments(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write each utterance and its text as JSON lines")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """What replaces the bundle's tuned decoding options."""
    parser.add_argument("--language-model", metavar="FILE", help="instead of the bundle's; 'none' for no model")
    parser.add_argument("--beam-width", type=int, metavar="N", help="prefixes kept (default: the bundle's)")
    parser.add_argument("--alpha", type=float, help="weight of the language model (default: the bundle's)")
    parser.add_argument("--beta", type=float, help="reward for a word (default: the bundle's)")
    parser.add_argument(
        "--lexicon",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="complete only words of the language model's list (default: the bundle's)",
    )


def run(args: argparse.Namespace) -> None:
    setting = setting_of(args)
    if args.jobs < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError(f"--limit is {args.limit} and --jobs {args.jobs}: at least 1")
    utterances = read_manifest(args.manifest)[: args.limit]
    loaded = _recognition(setting) if args.jobs == 1 else setting.load()  # before the clock runs; finds errors early
    task = functools.partial(_hear, setting, args.compare_streaming)
    start = time.perf_counter()
    heard = list(tqdm(spread(task, utterances, args.jobs), setting.bundle.name, len(utterances), disable=None))
    figures = summarise(heard, time.perf_counter() - start)
    if args.out:
        args.out.write_text("".join(f"{json.dumps(_line(each))}\n" for each in heard), encoding="utf-8")
    print(figures.as_table())
    if args.json:
        print(json.dumps({**figures.as_json(), **_circumstances(loaded)}))
    if figures.different:
        raise ValueError(f"{len(figures.different)} streams differ from the offline pass in the same chunks, see above")


def setting_of(args: argparse.Namespace) -> Setting:
    mode = "streaming" if args.streaming or args.compare_streaming else "chunked" if args.chunked else "whole"
    if args.endpointing:
        if not args.streaming:
            raise ValueError("--endpointing needs --streaming: only a stream is cut at pauses")
        mode = "endpointed"
    names = ("beam_width", "alpha", "beta", "lexicon")
    replaced = tuple((name, getattr(args, name)) for name in names if getattr(args, name) is not None)
    return Setting(find_bundle(args.bundle), mode, args.greedy, args.language_model, replaced, args.piece)


def spread(task: Callable[[Item], Outcome], items: Sequence[Item], jobs: int) -> Iterator[Outcome]:
    """`task` of each item in order, in this process or in `jobs` others."""
    if jobs == 1:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context) as pool:
        yield from pool.map(task, items)


def summarise(heard: Sequence[Heard], seconds: float) -> Figures:
    compared = any(each.offline is not None for each in heard)
    different = tuple(str(each.utterance.audio) for each in heard if each.offline not in (None, each.text))
    return Figures(
        sum((each.words for each in heard), Edits()),
        sum((each.characters for each in heard), Edits()),
        len(heard),
        sum(each.audio_seconds for each in heard),
        seconds,
        different if compared else None,
    )


@functools.cache
def _recognition(setting: Setting) -> Recognition:
    """Loaded once in each process."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of --jobs: the processes are the parallelism
    return setting.load()


def _hear(setting: Setting, compare: bool, utterance: Utterance) -> Heard:
    recognition = _recognition(setting)
    samples = utterance.samples(recognition.rate)
    text = recognition.transcribe(samples)
    offline = _recognition(replace(setting, mode="chunked")).transcribe(samples) if compare else None
    return Heard(utterance, text, len(samples) / recognition.rate, offline)


def _line(heard: Heard) -> dict[str, object]:
    return {
        "audio_filepath": str(heard.utterance.audio),
        "text": heard.utterance.text,
        "heard": heard.text,
        "word_errors": heard.words.errors,
        "character_errors": heard.characters.errors,
    }


def _circumstances(recognition: Recognition) -> dict[str, object]:
    setting, decoding = recognition.setting, recognition.bundle.decoding
    searched = {} if setting.greedy else {name: getattr(decoding, name) for name in ("beam_width", "alpha", "beta")}
    return {"bundle": recognition.bundle.name, "mode": setting.mode, "greedy": setting.greedy, **searched}
