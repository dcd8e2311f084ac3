"""A speech bundle small enough to check by hand: it hears tones.

Every symbol but the blank has a pitch, 250 Hz apart, and the network's weights are written down here so that a pitch
makes its symbol certain and silence makes the blank certain. `speak` turns text into such tones, so tests can demand
exact transcripts, word times and pauses from the real engine, service and server.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from asr_server import bundle
from asr_server.alphabet import Alphabet
from asr_server.beam_search import DecodingOptions
from asr_server.bundle import SpeechBundle
from asr_server.features import FeatureConfig, Features
from asr_server.model import DeepSpeech, DeepSpeechConfig
from asr_server.options import Running, ServerOptions
from asr_server.pcm import Samples
from asr_server.recognizer import Engine
from asr_server.server import running

RATE = 16000
TONE, GAP = 0.12, 0.08  # seconds of one letter and of the silence after it
ALPHABET = Alphabet()
PITCH = 250.0  # Hz between two symbols


def speak(text: str, pause: float = 0.3, rate: int = RATE) -> Samples:
    """Tones for a text, with `pause` seconds of silence on both sides."""
    time = np.arange(round(TONE * rate)) / rate
    ramp = np.minimum(1, np.minimum(time, TONE - time) / 0.005)  # no clicks, which would be every pitch at once
    letters = [
        np.concatenate([0.3 * ramp * np.sin(2 * np.pi * PITCH * i * time), np.zeros(round(GAP * rate))])
        for i in ALPHABET.encode(text)
    ]
    silence = np.zeros(round(pause * rate))
    return np.concatenate([silence, *letters, silence]).astype(np.float32)


def pcm(samples: Samples) -> bytes:
    """LINEAR16."""
    return (samples * 32767).astype("<i2").tobytes()


def tone_model() -> DeepSpeech:
    """One hidden unit for each pitch, carried through all layers to its symbol."""
    symbols = len(ALPHABET)
    config = DeepSpeechConfig(width=symbols - 1, context=1, stride=2, dropout=0.0, chunk=5, right=2)
    model = DeepSpeech(config)
    features = FeatureConfig()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, *others = [cast(nn.Linear, layer.linear) for layer in model.dense]
        for unit in range(config.width):
            nearest = round(PITCH * (unit + 1) * (features.filters + 1) / (RATE / 2)) - 1  # the filter at that pitch
            first.weight[unit, features.size + nearest] = 1.0  # of the middle frame of three
        first.bias.fill_(-1.0)  # tones give about +6 in their filter, everything else less than 0
        for layer in (*others, model.merge.linear):
            layer.weight.copy_(torch.eye(config.width))
        model.recurrent_input.weight.copy_(torch.eye(config.width))
        model.forward_weight.copy_(0.1 * torch.eye(config.width))
        model.backward_weight.copy_(0.1 * torch.eye(config.width))
        model.output.weight[1:].copy_(2 * torch.eye(config.width))
        model.output.bias[0] = 8.0  # silence is blank
    return model.eval()


def save_toy_bundle(models: Path, name: str = "tones", language_code: str = "en-US") -> Path:
    """Write the bundle into a models directory; returns the bundle's folder."""
    toy = SpeechBundle(
        name=name,
        version="1",
        folder=models / name,
        features=Features(),
        model=tone_model(),
        alphabet=ALPHABET,
        language_model=None,
        decoding=DecodingOptions(beam_width=8),
        language_code=language_code,
        card="# Tones",
    )
    bundle.save(toy)
    return toy.folder


def toy_engine(models: Path) -> Engine:
    """The engine of a toy bundle written into a models directory."""
    return Engine(bundle.load(save_toy_bundle(models)))


@contextmanager
def serving(options: ServerOptions) -> Iterator[Running]:
    """The whole server on a loopback port, in a thread with an event loop of its own."""
    answers: queue.Queue[Running | BaseException] = queue.Queue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        try:
            async with running(options) as server:
                answers.put(server)
                await stop.wait()
        except BaseException as error:
            answers.put(error)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        answer = answers.get(timeout=300)
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
