"""The noisy test of the Deep Speech paper (section 5.2), from recordings that anyone can get, the same every time.

python -m training.noisy_speech --speech test-clean.jsonl --noise noise-*.jsonl --out noisy-test --seed 0
python -m training.noisy_speech --speech test-clean.jsonl --noise noise-*.jsonl --out noisy-test --no-paired

As in the paper there are 100 clean and 100 noisy utterances of at least 10 speakers (here 20, to know more about how
voices differ), five kinds of backgrounds (training.backgrounds) and 2 to 6 dB of SNR. Speakers and kinds are balanced:
each speaker says as many sentences as any other, and one in each background before one is repeated. In the paper the
two halves are different sentences. Here they are the same ones, so that what noise costs is not mixed up with how hard
a sentence is; --no-paired takes different ones of the same speakers.

Written are FLAC files of 16 bits and clean.jsonl and noisy.jsonl with "snr_db", "kind", "noise" (ids of recordings),
"gain_db" and what the speech manifest says. The printed digest is of all samples and the same wherever the set was
built: the same seed gives the same samples.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from tqdm import tqdm

from training import backgrounds
from training.backgrounds import KINDS, Whole, below
from training.noise import held_out
from training.speech_manifest import Utterance, read_manifest

Item = TypeVar("Item")

RATE = 16000  # Hz
SNR = (2.0, 6.0)  # decibels
FULL_SCALE = 32768
FEWEST_SPEAKERS = 10  # the paper's, for a test


@dataclass(frozen=True)
class Noises:
    """Held-out recordings by their ids, and those that each layer of a kind may use."""

    recordings: Mapping[str, Whole]
    candidates: Mapping[str, tuple[tuple[str, ...], ...]]


def choose(utterances: Sequence[Utterance], speakers: int, count: int, chance: random.Random) -> list[Utterance]:
    """`count` utterances of so many speakers, the same number of each, ordered speaker by speaker within a round."""
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda each: each.name):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    rounds = -(-count // speakers)
    able = [name for name, said in sorted(by_speaker.items()) if name and len(said) >= rounds]
    if len(able) < speakers:
        raise ValueError(
            f"{len(able)} of {len(by_speaker)} speakers have {rounds} utterances or more: {speakers} are needed for "
            f"{count} utterances; take more speakers or fewer utterances"
        )
    chosen = [_shuffled(by_speaker[name], chance)[:rounds] for name in _shuffled(able, chance)[:speakers]]
    return [said[turn] for turn in range(rounds) for said in chosen][:count]


def _shuffled(items: Sequence[Item], chance: random.Random) -> list[Item]:
    """Fisher and Yates's way, by `random()` alone."""
    left = list(items)
    return [left.pop(below(len(left), chance)) for _ in items]


def file_names(utterances: Sequence[Utterance]) -> list[str]:
    """After their names; ValueError where two would be the same file."""
    found: dict[str, Utterance] = {}
    for utterance in utterances:
        name = f"{utterance.name.replace('/', '_')}.flac"
        if (other := found.setdefault(name, utterance)) is not utterance:
            raise ValueError(f"{other.audio} and {utterance.audio} would both be {name}: give them ids of their own")
    return list(found)


def kinds(count: int, speakers: int) -> list[str]:
    """In the order of `choose`: in each round the speakers hear all kinds in turn, and each moves on by one a round."""
    names = list(KINDS)
    return [names[(index % speakers + index // speakers) % len(names)] for index in range(count)]


def whole(utterance: Utterance) -> Whole:
    """(S,) as 16-bit numbers; ValueError where there are none."""
    samples = utterance.samples(RATE).astype(np.float64)
    if not len(samples):
        raise ValueError(f"{utterance.audio}: has no samples")
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int64)  # files can be louder


def read_noises(manifests: Sequence[Path]) -> Noises:
    """ValueError where a kind has no recording, or two recordings one name."""
    clips: dict[str, Utterance] = {}
    for clip in (clip for manifest in manifests for clip in read_manifest(manifest, text=False)):
        if clips.setdefault(clip.name, clip).audio != clip.audio:
            raise ValueError(f"{clips[clip.name].audio} and {clip.audio} are both called {clip.name!r}: rename one")
    candidates = backgrounds.candidates(list(clips), held_out)
    needed = {clip for layers in candidates.values() for layer in layers for clip in layer}
    return Noises({clip: whole(clips[clip]) for clip in sorted(needed)}, candidates)


def build(args: argparse.Namespace) -> str:
    """Writes the set and returns the digest of its samples."""
    if not 1 <= args.speakers <= args.utterances:
        raise ValueError(
            f"--speakers is {args.speakers} and --utterances {args.utterances}: at least one speaker, and at least "
            "one utterance each"
        )
    if args.speakers < FEWEST_SPEAKERS:
        print(f"{args.speakers} speakers: good for decisions, too few for a test, which has {FEWEST_SPEAKERS} or more")
    chance = random.Random(args.seed)
    noises = read_noises(args.noise)
    said = read_manifest(args.speech)
    count = args.utterances
    if args.paired:
        clean = noisy = choose(said, args.speakers, count, chance)
    else:
        both = choose(said, args.speakers, 2 * args.speakers * -(-count // args.speakers), chance)
        clean, noisy = both[: len(both) // 2][:count], both[len(both) // 2 :][:count]
    digest = hashlib.sha256()
    names = file_names(clean), file_names(noisy)
    _write(args.out, "clean", names[0], ((each, whole(each), {"kind": "clean"}) for each in clean), digest)
    _write(args.out, "noisy", names[1], _with_noise(noisy, args.speakers, noises, chance), digest)
    return digest.hexdigest()


def _with_noise(
    utterances: Sequence[Utterance], speakers: int, noises: Noises, chance: random.Random
) -> Iterator[tuple[Utterance, Whole, dict[str, object]]]:
    for utterance, kind in zip(utterances, kinds(len(utterances), speakers), strict=True):
        speech = whole(utterance)
        background = backgrounds.draw(kind, noises.candidates[kind], noises.recordings, len(speech), chance)
        snr = SNR[0] + below(round(100 * (SNR[1] - SNR[0])), chance) / 100  # below the upper end, in whole hundredths
        samples, gain = backgrounds.mixed(speech, background.samples, snr)
        noise = list(background.clips)
        yield utterance, samples, {"snr_db": snr, "kind": kind, "noise": noise, "gain_db": round(gain, 2)}


def _write(
    out: Path,
    part: str,
    names: Sequence[str],
    recordings: Iterator[tuple[Utterance, Whole, dict[str, object]]],
    digest: "hashlib._Hash",
) -> None:
    folder = out / part
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    bar = tqdm(recordings, part, len(names), disable=None)
    for name, (utterance, samples, facts) in zip(names, bar, strict=True):
        digest.update(samples.astype("<i2").tobytes())
        soundfile.write(folder / name, samples.astype(np.int16), RATE, subtype="PCM_16")
        entry = {
            "audio_filepath": f"{part}/{name}",
            "duration": round(len(samples) / RATE, 3),
            "text": utterance.text,
            "speaker": utterance.speaker,
            "source": utterance.source,
            "id": utterance.name,
        }
        lines.append(json.dumps({**entry, **facts}) + "\n")
    (out / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.noisy_speech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--speech", type=Path, required=True, metavar="FILE", help="manifest of clean test utterances")
    parser.add_argument("--noise", type=Path, required=True, nargs="+", metavar="FILE", help="manifests of noise")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--utterances", type=int, default=100, metavar="N", help="of each half (default %(default)s)")
    parser.add_argument("--speakers", type=int, default=20, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--paired", action=argparse.BooleanOptionalAction, default=True, help="the same sentences in both halves"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        digest = build(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.utterances} clean and {args.utterances} noisy utterances in {args.out}")
    print(f"sha256 of all samples: {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
