"""Have speech synthesisers read sentences of a text: more transcribed speech, of voices that nobody owns.

    python -m training.synthetic_speech --text books.txt --out data/synthetic --hours 2

Needs flite, espeak-ng or both (Debian packages of these names). Every utterance has a voice, a speed and a pitch drawn
from the seed, and sentences are drawn from all of the text, a normalised sentence a line. Written are FLAC files of
16 kHz and OUT.jsonl beside the folder. Whether such speech helps is for an ablation to say: synthesisers pronounce
everything the same way and have no rooms, noise or hesitation.
"""

import argparse
import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from asr_server.alphabet import Alphabet
from training.outputs import check_file

RATE = 16000  # Hz
FLITE = ("slt", "rms", "awb", "kal16")  # built in, 16 kHz
ESPEAK = tuple(
    f"{accent}+{variant}" for accent in ("en-us", "en-gb", "en-gb-scotland") for variant in ("m1", "m3", "f2", "f4")
)


@dataclass(frozen=True)
class Voice:
    """Of which program, and how it speaks. `speed` 1 and `pitch` 1 are the voice's own."""

    engine: str
    name: str
    speed: float
    pitch: float

    def command(self, text: str, file: Path) -> list[str]:
        """What makes it read `text` into a WAV file."""
        if self.engine == "flite":
            spoken = ["--setf", f"duration_stretch={1 / self.speed:.3f}"]
            spoken += ["--setf", f"int_f0_target_mean={(175 if self.name == 'slt' else 105) * self.pitch:.1f}"]
            return ["flite", "-voice", self.name, *spoken, "-t", text, "-o", str(file)]
        spoken = ["-v", self.name, "-s", f"{160 * self.speed:.0f}", "-p", f"{50 * self.pitch:.0f}"]
        return ["espeak-ng", *spoken, "-w", str(file), text]


VOICES = {"flite": FLITE, "espeak-ng": ESPEAK}
MOST_MISSES = 100_000  # unfit sentences in a row, before a text counts as having none


@dataclass(frozen=True)
class Reading:
    """What is to be read, by whom."""

    number: int
    voice: Voice
    text: str


def installed() -> list[str]:
    """The synthesisers that this machine has."""
    return [engine for engine in VOICES if shutil.which(engine)]


def readings(text: Path, engines: Sequence[str], words: tuple[int, int], seed: int) -> Iterator[Reading]:
    """Random sentences of `words` words that the alphabet can write, each in a voice of its own; without end, unless
    the text has none."""
    alphabet, generator = Alphabet(), random.Random(seed)
    size, number, misses = text.stat().st_size, 0, 0
    with text.open("rb") as file:
        while misses < MOST_MISSES and size:
            file.seek(generator.randrange(size))
            file.readline()  # the rest of a sentence
            sentence = file.readline().decode("utf-8", "replace").strip()
            if not words[0] <= len(sentence.split()) <= words[1] or not _writable(sentence, alphabet):
                misses += 1
                continue
            yield Reading(number, _draw(engines, generator), sentence)
            number, misses = number + 1, 0


def _draw(engines: Sequence[str], generator: random.Random) -> Voice:
    engine = generator.choice(list(engines))
    return Voice(engine, generator.choice(VOICES[engine]), generator.uniform(0.85, 1.2), generator.uniform(0.85, 1.2))


def _writable(sentence: str, alphabet: Alphabet) -> bool:
    try:
        alphabet.encode(sentence)
    except ValueError:
        return False
    return True


def speak(reading: Reading, folder: Path) -> dict[str, object]:
    """Writes the recording; its line of the manifest. ValueError when the synthesiser fails."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.wav"
        done = subprocess.run(reading.voice.command(reading.text, raw), capture_output=True, text=True)
        if done.returncode or not raw.exists():
            raise ValueError(f"{reading.voice.engine} failed at {reading.text!r}: {done.stderr.strip()[:200]}")
        samples, rate = soundfile.read(raw, dtype="float32")
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    file = folder / f"{reading.number:06}.flac"
    soundfile.write(file, np.clip(samples, -1, 1), RATE, subtype="PCM_16")
    speaker = f"synthetic:{reading.voice.engine}-{reading.voice.name}"
    return {
        "audio_filepath": f"{folder.name}/{file.name}",
        "duration": round(len(samples) / RATE, 3),
        "text": reading.text,
        "speaker": speaker,
        "source": "synthetic",
        "id": f"synthetic-{reading.number:06}",
    }


def build(args: argparse.Namespace) -> str:
    """Writes the recordings and the manifest; says what was made."""
    engines = args.engines or installed()
    if missing := [engine for engine in engines if not shutil.which(engine)] or (["flite"] if not engines else []):
        raise ValueError(f"{', '.join(missing)} not found: install flite or espeak-ng, and name it with --engines")
    if args.hours <= 0 or not 1 <= args.words[0] <= args.words[1]:
        raise ValueError(
            f"--hours is {args.hours} and --words {args.words}: above 0, and at least 1, the smaller first"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    manifest = args.out.with_name(f"{args.out.name}.jsonl")
    check_file("--out", manifest)
    chosen = readings(args.text, engines, tuple(args.words), args.seed)
    entries: list[dict[str, object]] = []
    seconds = 0.0
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            while seconds < 3600 * args.hours:
                some = itertools.islice(chosen, 4 * args.jobs)
                made = list(pool.map(functools.partial(speak, folder=args.out), some))
                if not made:
                    raise ValueError(f"{args.text}: has no sentence of {args.words[0]} to {args.words[1]} words")
                entries += made
                seconds += sum(float(str(entry["duration"])) for entry in made)
    finally:  # what was made until then is not lost
        if entries:
            manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return f"{len(entries)} utterances, {seconds / 3600:.2f} h, {manifest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.synthetic_speech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a normalised sentence a line")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--hours", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--words", type=int, nargs=2, default=(4, 25), metavar=("LEAST", "MOST"), help="default: 4 25")
    parser.add_argument("--engines", nargs="+", choices=list(VOICES), help="default: those that are installed")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="synthesisers at once; default: %(default)s")
    args = parser.parse_args(arguments)
    try:
        print(build(args))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; what was made until then is in the manifest\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
