"""A tiny data set that a network can learn: every letter is a tone of its own."""

import json
import random
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
PITCHES = {"a": 600.0, "b": 1500.0, "c": 3000.0}


def write_tones(folder: Path, utterances: int, speakers: int = 4) -> Path:
    """Recordings of two to four letters and their manifest, tones.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, entries = random.Random(0), []
    time = np.arange(RATE // 10) / RATE
    for index in range(utterances):
        text = "".join(generator.choices(list(PITCHES), k=2 + index % 3))
        tones = [0.3 * np.hanning(len(time)) * np.sin(2 * np.pi * PITCHES[letter] * time) for letter in text]
        samples = np.concatenate(tones)
        soundfile.write(folder / f"{index}.wav", samples, RATE)
        name, speaker = f"{index}.wav", f"speaker{index % speakers}"
        entries.append({"audio_filepath": name, "duration": len(samples) / RATE, "text": text, "speaker": speaker})
    manifest = folder / "tones.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return manifest
