"""google-cloud-speech as its users run it against a server with TLS and tokens; the server's settings as metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_server.options import ServerOptions
from asr_server.security_options import SecurityOptions
from tests.certificates import Authority
from tests.speech_fixtures import RATE, save_toy_bundle, serving, speak
from tests.test_secure_server import make_token

SCRIPT = Path(__file__).with_name("google_client.py")
PAUSE = np.zeros(round(1.2 * RATE), np.float32)
TWO, ONE = ["go north", " it's"], ["go northit's"]  # with the usual pauses, and where only longer ones end utterances


@dataclass(frozen=True)
class Secured:
    address: str
    ca: Path
    token: str
    recording: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("google")
    save_toy_bundle(folder / "models")
    recording, ca, tokens = folder / "talk.wav", folder / "ca.pem", folder / "tokens.json"
    soundfile.write(recording, np.concatenate([speak("go north"), PAUSE, speak("it's")]), RATE, subtype="PCM_16")
    authority = Authority("toy")
    ca.write_bytes(authority.certificate)
    certificate, key = authority.issue("localhost").write(folder, "server")
    token = make_token(tokens, "captions")
    security = SecurityOptions(certificate, key, tokens=tokens)
    options = ServerOptions(port=0, models=(folder / "models",), drain_seconds=0.5, security=security)
    with serving(options) as server:
        yield Secured(f"localhost:{server.address.rpartition(':')[2]}", ca, token, recording)


def run(secured: Secured, way: str, *metadata: str, token: str | None = None) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), secured.address, str(secured.recording), "--way", way]
    command += ["--ca", str(secured.ca), f"--metadata=authorization=Bearer {token or secured.token}"]
    command += [f"--metadata={pair}" for pair in metadata]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout
    answer: dict[str, Any] = json.loads(printed)
    return answer


@pytest.mark.parametrize("way", ["plain", "async"])
def test_tls_and_token(secured: Secured, way: str) -> None:
    assert run(secured, way) == {"streaming": TWO, "unary": TWO}


@pytest.mark.parametrize("way", ["plain", "async"])
def test_settings_as_metadata(secured: Secured, way: str) -> None:
    metadata = ("earsight-stop_history=4000", "earsight-alpha=0.5", "earsight-beam-width=16")
    assert run(secured, way, *metadata) == {"streaming": ONE, "unary": ONE}


@pytest.mark.parametrize("way", ["plain", "async"])
def test_wrong_setting(secured: Secured, way: str) -> None:
    refused = run(secured, way, "earsight-alpha=much")["refused"]
    assert refused == "InvalidArgument: 400 Invalid settings: alpha is 'much'; it must be a number."


@pytest.mark.parametrize("way", ["plain", "async"])
def test_wrong_token(secured: Secured, way: str) -> None:
    assert run(secured, way, token="ear_wrong")["refused"].startswith("Unauthenticated: 401 The bearer token is not")
