"""The examples as their readers run them, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from asr_server.options import ServerOptions
from asr_server.security_options import SecurityOptions
from tests.certificates import Authority
from tests.speech_fixtures import RATE, save_toy_bundle, serving, speak
from tests.test_secure_server import make_token
from tests.test_stream import both

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Secured:
    folder: Path
    identity: tuple[str, ...]  # options that a client of this server needs
    without_token: tuple[str, ...]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with TLS and tokens, and recordings beside it."""
    folder = tmp_path_factory.mktemp("examples")
    save_toy_bundle(folder / "models")
    authority = Authority("toy")
    (folder / "ca.pem").write_bytes(authority.certificate)
    certificate, key = authority.issue("localhost").write(folder, "server")
    token = make_token(folder / "tokens.json", "captions")
    soundfile.write(folder / "either.wav", both("a", "b"), RATE, subtype="PCM_16")
    soundfile.write(folder / "two.wav", [*speak("ab"), *speak("cd")], RATE, subtype="PCM_16")
    security = SecurityOptions(certificate, key, None, folder / "tokens.json")
    options = ServerOptions(port=0, models=(folder / "models",), drain_seconds=0.5, security=security)
    with serving(options) as server:
        address = f"localhost:{server.address.rpartition(':')[2]}"
        reach = ("--server", address, "--ca", str(folder / "ca.pem"))
        yield Secured(folder, (*reach, "--token", token), reach)


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def texts(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[::2]


@pytest.mark.parametrize("letter", ["a", "b"])
def test_hot_words(secured: Secured, letter: str) -> None:
    recording = str(secured.folder / "either.wav")
    done = run("google_settings.py", recording, "--phrase", letter, "--boost", "12", *secured.identity)
    assert texts(done) == [letter]


def test_settings(secured: Secured) -> None:
    recording = str(secured.folder / "two.wav")
    assert texts(run("google_settings.py", recording, *secured.identity)) == ["abcd"]
    short = run("google_settings.py", recording, "--set", "stop-history=400", *secured.identity)
    assert texts(short) == ["ab", "cd"]
    wrong = run("google_settings.py", recording, "--set", "stop-history=long", *secured.identity)
    assert "stop_history is 'long'; it must be a number" in wrong.stderr
    assert "needs a bearer token" in run("google_settings.py", recording, *secured.without_token).stderr
