"""The shipped bundles hear the shipped samples: offline, as a stream, and less than perfectly recorded."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import soxr

from asr_server import bundle
from asr_server.pcm import Samples
from asr_server.recognizer import Engine, Result
from asr_server.smoke import SPEECH_SAMPLES

HEARD_BY = {  # samples by the bundle in whose manner they are spoken
    "deepspeech-an4": "one-five-two-one-seven",
    "deepspeech-en": "he-had-never-seen-so-many-stars-in-the-sky-before",
}


@pytest.fixture(scope="module", params=sorted(HEARD_BY))
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(bundle.load(bundle.SHIPPED / request.param))


@pytest.fixture
def name(engine: Engine) -> str:
    return HEARD_BY[engine.name]


def read(name: str) -> Samples:
    samples, rate = soundfile.read(SPEECH_SAMPLES / f"{name}.wav", dtype="float32")
    assert rate == 16000
    return np.asarray(samples)


def test_every_sample_is_heard_by_some_bundle() -> None:
    assert {path.stem for path in SPEECH_SAMPLES.glob("*.wav")} == set(HEARD_BY.values())
    assert bundle.SHIPPED_DEFAULT in HEARD_BY


def test_sample(engine: Engine, name: str) -> None:
    (result,) = engine.transcribe(read(name))
    assert result.text == name.replace("-", " ")
    assert [word.text for word in result.alternatives[0].words] == name.split("-")


def test_streamed_sample(engine: Engine, name: str) -> None:
    stream, samples = engine.stream(), read(name)
    events = [event for start in range(0, len(samples), 1000) for event in stream.feed(samples[start : start + 1000])]
    finals = [event for event in [*events, *stream.finish()] if isinstance(event, Result)]
    assert finals == engine.transcribe(samples)


def test_quieter_and_resampled(engine: Engine, name: str) -> None:
    """Half the level and once through 24 kHz, as another sound card would have had it."""
    detour = soxr.resample(soxr.resample(read(name) / 2, 16000, 24000), 24000, 16000)
    assert engine.transcribe(detour)[0].text == name.replace("-", " ")
