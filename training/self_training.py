"""Transcribe speech that nobody has transcribed, for training on it: self-training (Kahn, Lee and Hannun 2020).

    python -m training.self_training --bundle deepspeech-en --manifest untranscribed.jsonl --out pseudo.jsonl
    python -m training.fit speech --train transcribed.jsonl pseudo.jsonl --initial runs/speech/last.ckpt ...

The bundle hears each recording whole, with its language model. Those that it is surest of are kept, by the mean
confidence of their words; recordings that it hears nothing in are left out. Where the manifest does have texts, they
are only compared with: how many words of all, and of what was kept, are wrong. Whether it helps is for an ablation to
say.
"""

import argparse
import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from asr_server.options import PRECISIONS
from training.error_rate import Edits, word_edits
from training.hearing import recognition_of, spread
from training.outputs import check_file
from training.recognition import Setting, find_bundle
from training.speech_manifest import Utterance, read_manifest


@dataclass(frozen=True)
class Guess:
    """What was heard in a recording; `confidence` is the mean of its words', 0 for none."""

    utterance: Utterance
    text: str
    confidence: float


def guess(setting: Setting, utterance: Utterance) -> Guess:
    recognition = recognition_of(setting)
    words = recognition.hypothesis(recognition.log_probs(utterance.samples(recognition.rate))).words
    confidence = math.fsum(word.confidence for word in words) / max(1, len(words))
    return Guess(utterance, " ".join(word.text for word in words), confidence)


def surest(guesses: Sequence[Guess], keep: float) -> list[Guess]:
    """The share `keep` of the recordings, in their order; of equals the earlier ones, of silent ones none."""
    count = math.ceil(keep * len(guesses))
    ranked = sorted(range(len(guesses)), key=lambda number: -guesses[number].confidence)[:count]
    return [guesses[number] for number in sorted(ranked) if guesses[number].text]


def line(found: Guess, folder: Path) -> str:
    """Of the new manifest, whose paths start at `folder`."""
    utterance = found.utterance
    entry = {
        "audio_filepath": os.path.relpath(utterance.audio, folder),
        "duration": utterance.duration,
        "text": found.text,
        "speaker": utterance.speaker,
        "source": utterance.source,
        "id": utterance.id,
        "confidence": round(found.confidence, 4),
    }
    return json.dumps({key: value for key, value in entry.items() if value != ""}) + "\n"


def transcribe(args: argparse.Namespace) -> dict[str, object]:
    """Writes the manifest; the figures. ValueError for what cannot be done."""
    if not 0 < args.keep <= 1:
        raise ValueError(f"--keep is {args.keep}: a share above 0 and up to 1")
    check_file("--out", args.out)
    utterances = [utterance for manifest in args.manifest for utterance in read_manifest(manifest, text=False)]
    setting = Setting(find_bundle(args.bundle), language_model=args.language_model, precision=args.precision)
    hear = functools.partial(guess, setting)
    guesses = list(tqdm(spread(hear, utterances, args.jobs), "heard", len(utterances), disable=None))
    kept = surest(guesses, args.keep)
    if not kept:
        raise ValueError(f"the bundle hears nothing in any of the {len(utterances)} recordings")
    args.out.write_text("".join(line(found, args.out.parent) for found in kept), encoding="utf-8")
    return {
        "recordings": len(guesses),
        "kept": len(kept),
        "hours": _hours(guesses),
        "kept_hours": _hours(kept),
        "confidence": round(min(found.confidence for found in kept), 4),
        "wer": _wer(guesses),
        "kept_wer": _wer(kept),
    }


def _hours(guesses: Sequence[Guess]) -> float:
    return round(math.fsum(found.utterance.duration for found in guesses) / 3600, 3)


def _wer(guesses: Sequence[Guess]) -> float | None:
    """Percent, of the recordings that have a text; None when none has."""
    edits = [word_edits(found.utterance.text, found.text) for found in guesses if found.utterance.text]
    return round(sum(edits, Edits()).rate, 2) if edits else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.self_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", required=True, help="a folder, or the name of a shipped bundle")
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, metavar="JSONL", help="texts are not needed")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="the manifest with what was heard")
    parser.add_argument("--keep", type=float, default=0.7, help="share of the recordings; default: %(default)s")
    parser.add_argument("--language-model", metavar="FILE", help="another one; none: without")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: %(default)s")
    args = parser.parse_args(arguments)
    try:
        print(json.dumps(transcribe(args)))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
