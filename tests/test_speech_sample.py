"""The shipped bundle hears the shipped sample: offline, as a stream, and less than perfectly recorded."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import soxr

from asr_server import bundle
from asr_server.pcm import Samples
from asr_server.recognizer import Engine, Result
from asr_server.smoke import SPEECH_SAMPLES

SAMPLES = sorted(SPEECH_SAMPLES.glob("*.wav"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(bundle.load(bundle.SHIPPED / "deepspeech-an4"))


def read(name: str) -> Samples:
    samples, rate = soundfile.read(SPEECH_SAMPLES / f"{name}.wav", dtype="float32")
    assert rate == 16000
    return np.asarray(samples)


def test_there_is_a_sample() -> None:
    assert SAMPLES


@pytest.mark.parametrize("name", [path.stem for path in SAMPLES])
def test_sample(engine: Engine, name: str) -> None:
    (result,) = engine.transcribe(read(name))
    assert result.text == name.replace("-", " ")
    assert [word.text for word in result.alternatives[0].words] == name.split("-")


@pytest.mark.parametrize("name", [path.stem for path in SAMPLES])
def test_streamed_sample(engine: Engine, name: str) -> None:
    stream, samples = engine.stream(), read(name)
    events = [event for start in range(0, len(samples), 1000) for event in stream.feed(samples[start : start + 1000])]
    finals = [event for event in [*events, *stream.finish()] if isinstance(event, Result)]
    assert finals == engine.transcribe(samples)


def test_quieter_and_resampled(engine: Engine) -> None:
    """Half the level and once through 24 kHz, as another sound card would have had it."""
    name = SAMPLES[0].stem
    detour = soxr.resample(soxr.resample(read(name) / 2, 16000, 24000), 24000, 16000)
    assert engine.transcribe(detour)[0].text == name.replace("-", " ")
