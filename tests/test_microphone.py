"""The microphone client on a sounddevice that plays tones, and on machines that have none."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asr_server import client
from asr_server.cli import main
from asr_server.client import ClientError
from tests.speech_fixtures import RATE, save_toy_bundle, speak


class PortAudioError(Exception):
    """As sounddevice calls it."""


class InputStream:
    """Says "go up" as fast as it can, then Ctrl-C is pressed; silence goes on, as it does in a room."""

    def __init__(
        self, callback: Callable[..., None], blocksize: int, samplerate: int, device: object, **_: object
    ) -> None:
        if device == 7:
            raise PortAudioError("Invalid device")
        assert samplerate == RATE
        self._callback, self._size, self._over = callback, blocksize, threading.Event()

    def __enter__(self) -> InputStream:
        self._thread = threading.Thread(target=self._play)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _play(self) -> None:
        spoken = np.concatenate([speak("go up"), np.zeros(RATE, np.float32)])[:, None]
        for start in range(0, len(spoken), self._size):
            self._callback(spoken[start : start + self._size], self._size, None, None)
        os.kill(os.getpid(), signal.SIGINT)
        while not self._over.wait(0.01):
            self._callback(np.zeros((self._size, 1), np.float32), self._size, None, None)


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("sounddevice")
    monkeypatch.setattr(module, "InputStream", InputStream, raising=False)
    monkeypatch.setattr(module, "PortAudioError", PortAudioError, raising=False)
    devices = [{"name": "desk", "max_input_channels": 1}, {"name": "speaker", "max_input_channels": 0}]
    monkeypatch.setattr(module, "query_devices", lambda: devices, raising=False)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_listens_until_interrupted(
    sounddevice: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the recording, and what was said until then is still recognised."""
    save_toy_bundle(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    assert main(["transcribe", "--local", "--models", str(tmp_path), "--microphone"]) == 0
    assert capsys.readouterr().out == "go up\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_no_such_device(sounddevice: types.ModuleType) -> None:
    with pytest.raises(ClientError, match=r"no microphone could be opened \(Invalid device\)\. Input devices: desk$"):
        next(client.microphone_chunks(threading.Event(), "7"))


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ClientError, match="needs the Python package sounddevice and the PortAudio library"):
        next(client.microphone_chunks(threading.Event()))
