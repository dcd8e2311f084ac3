"""The server as a process of its own, with Google's client and ours; and its one-line errors."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asr_server.cli import main
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, speak

ROOT = Path(__file__).resolve().parent.parent
PAUSE = np.zeros(round(1.2 * RATE), np.float32)


@dataclass(frozen=True)
class Process:
    """`asr-server serve` on a free port, and a recording of two utterances."""

    process: subprocess.Popen[str]
    address: str
    models: Path
    recording: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    models, recording = folder / "models", folder / "talk.wav"
    save_toy_bundle(models)
    soundfile.write(recording, np.concatenate([speak("go north"), PAUSE, speak("it's")]), RATE, subtype="PCM_16")
    command = [sys.executable, "-m", "asr_server", "serve", "--port", "0", "--models", str(models)]
    command += ["--drain-seconds", "100"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Process(process, _address(process), models, recording)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    for line in process.stdout:
        if found := re.match(r"listening on (\S+)", line):
            return found[1]
    raise AssertionError(f"the server ended with status {process.wait()}")


def test_googles_client(server: Process) -> None:
    """Streamed in real time: interims before the audio has ended, then the finals; and the same text at once."""
    script = ROOT / "tests" / "google_client.py"
    command = [sys.executable, str(script), server.address, str(server.recording)]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout)
    interims = [result for result in answer["streaming"] if not result["final"]]
    finals = [result for result in answer["streaming"] if result["final"]]
    assert [result["transcript"] for result in finals] == ["go north", " it's"]
    assert answer["unary"] == ["go north", " it's"]
    assert len([result for result in interims if result["at"] < answer["sent"]]) >= 3
    assert interims[0]["at"] < answer["sent"] - 1  # the first letters come seconds before the end
    assert all(0 < result["stability"] <= 1 for result in interims)
    assert finals[0]["at"] < answer["sent"]
    assert [word for word, _ in finals[0]["words"]] == ["go", "north"]
    assert finals[0]["words"][1][1] == pytest.approx(0.9, abs=0.03)
    assert answer["refused"].startswith(
        "InvalidArgument: 400 Invalid recognition 'config': model 'nobody' is not known"
    )


def transcribe(server: Process, *arguments: str) -> int:
    return main(["transcribe", "--server", server.address, *arguments])


def test_transcribe(server: Process, capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe(server, str(server.recording)) == 0
    assert capsys.readouterr().out == "go north\nit's\n"


def test_transcribe_without_a_server_says_the_same(server: Process, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--format", "json", str(server.recording)]
    assert transcribe(server, *arguments) == 0
    remote = json.loads(capsys.readouterr().out)
    assert main(["transcribe", "--local", "--models", str(server.models), *arguments]) == 0
    local = json.loads(capsys.readouterr().out)
    assert remote["text"] == local["text"] == "go north it's"
    for ours, theirs in zip(local["segments"], remote["segments"], strict=True):
        assert ours["text"] == theirs["text"]
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-6)
        assert [word["start"] for word in ours["words"]] == [word["start"] for word in theirs["words"]]


def test_transcribe_into_a_folder(server: Process, tmp_path: Path) -> None:
    other = tmp_path / "other.flac"
    soundfile.write(other, speak("bye", rate=48000), 48000)
    assert transcribe(server, "--format", "srt", "--output", str(tmp_path), str(server.recording), str(other)) == 0
    assert (tmp_path / "talk.srt").read_text().startswith("1\n00:00:00,300 --> 00:00:0")
    assert (tmp_path / "other.srt").read_text().splitlines()[2] == "bye"


def test_transcribe_into_a_file_in_real_time(server: Process, tmp_path: Path) -> None:
    output, start = tmp_path / "out", time.monotonic()
    assert transcribe(server, "--format", "vtt", "--realtime", "--output", str(output), str(server.recording)) == 0
    assert time.monotonic() - start > soundfile.info(server.recording).duration - 0.2
    assert output.read_text().startswith("WEBVTT\n\n00:00:00.300 --> 00:00:0")


def test_interims_in_place(
    server: Process, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert transcribe(server, str(server.recording)) == 0
    shown = capsys.readouterr()
    assert shown.out == "go north\nit's\n"
    assert "\r\x1b[Kgo n\r\x1b[Kgo no\r\x1b[K" in shown.err
    assert transcribe(server, "--no-interim", str(server.recording)) == 0
    assert "go n" not in capsys.readouterr().err


# --- errors are one line ---


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    return printed.err


def test_client_errors(server: Process, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    to_server = ("transcribe", "--server", server.address)
    recording, text = str(server.recording), tmp_path / "notes.txt"
    text.write_text("not audio")
    assert "name one or more files, or say --microphone" in failed(capsys, *to_server)
    assert "cannot be read as audio" in failed(capsys, *to_server, str(text))
    assert "cannot be read as audio" in failed(capsys, *to_server, str(tmp_path / "missing.wav"))
    assert "is not a folder" in failed(capsys, *to_server, "--output", str(text), recording, recording)
    assert "INVALID_ARGUMENT: Invalid recognition 'config': model 'x'" in failed(
        capsys, *to_server, "--model", "x", recording
    )
    assert "Start one with: asr-server serve" in failed(
        capsys, "transcribe", "--server", f"127.0.0.1:{free_port()}", recording
    )


def test_microphone_without_a_device(
    server: Process, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "needs the Python package sounddevice" in failed(
        capsys, "transcribe", "--server", server.address, "--microphone"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_server_errors(server: Process, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    taken = server.address.rpartition(":")[2]
    serve = ("serve", "--port")
    assert f"127.0.0.1:{taken} cannot be listened on" in failed(capsys, *serve, taken, "--models", str(server.models))
    assert "no bundles under" in failed(capsys, *serve, "0", "--models", str(tmp_path))
    assert "cannot be listed: No such file" in failed(capsys, *serve, "0", "--models", str(tmp_path / "missing"))
    other = tmp_path / "other" / "models"
    save_toy_bundle(other)
    assert "two speech models are called 'tones'" in failed(
        capsys, *serve, "0", "--models", str(server.models), "--models", str(other)
    )
    assert "port 70000 must be between 0 and 65535" in failed(capsys, *serve, "70000")
    assert "threads 0 and calls 256 must be at least 1" in failed(capsys, *serve, "0", "--threads", "0")
    assert "batch 0 of vision must be at least 1" in failed(capsys, *serve, "0", "--vision-batch", "0")
    assert "vision's batches is 2.0: 0 to 1 second" in failed(capsys, *serve, "0", "--vision-delay", "2")
    broken = save_toy_bundle(tmp_path, "broken")
    (broken / "model.safetensors").write_bytes(b"damaged")
    assert "cannot be read as safetensors" in failed(capsys, *serve, "0", "--models", str(tmp_path))


@pytest.mark.parametrize("command", [[], ["serve"], ["transcribe"]])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "asr-server" in capsys.readouterr().out


def test_models_change_while_it_runs(server: Process, capsys: pytest.CaptureFixture[str]) -> None:
    """On SIGHUP a new bundle is there, a broken one is not, and what was there stays."""
    broken = save_toy_bundle(server.models, "broken")
    (broken / "model.safetensors").write_bytes(b"damaged")
    save_toy_bundle(server.models, "added")
    arguments = ["transcribe", "--server", server.address, "--model"]
    deadline = time.monotonic() + 60
    while main([*arguments, "added", str(server.recording)]) != 0:
        server.process.send_signal(signal.SIGHUP)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "go north" in capsys.readouterr().out
    assert main([*arguments, "broken", str(server.recording)]) == 1
    assert "model 'broken' is not known" in capsys.readouterr().err
    assert main([*arguments, "tones", str(server.recording)]) == 0


def test_sigterm_lets_calls_end(server: Process) -> None:
    """The last test of this file: it stops the server that the others have used, in the middle of a call."""
    samples, stopped = pcm(speak("go north")), threading.Event()
    half = len(samples) // 4 * 2

    def requests() -> Iterator[pb.StreamingRecognizeRequest]:
        config = pb.RecognitionConfig(
            encoding=pb.RecognitionConfig.LINEAR16, sample_rate_hertz=RATE, language_code="en-US"
        )
        yield pb.StreamingRecognizeRequest(
            streaming_config=pb.StreamingRecognitionConfig(config=config, interim_results=True)
        )
        yield pb.StreamingRecognizeRequest(audio_content=samples[:half])
        stopped.wait(120)
        yield pb.StreamingRecognizeRequest(audio_content=samples[half:])

    with grpc.insecure_channel(server.address) as channel:
        responses = speech_pb2_grpc.SpeechStub(channel).StreamingRecognize(requests(), timeout=180)
        first = next(responses)
        server.process.send_signal(signal.SIGTERM)
        while _answers(server.address):
            time.sleep(0.05)
        stopped.set()
        last = list(responses)[-1]
    assert not first.results[0].is_final
    assert last.results[0].is_final
    assert last.results[0].alternatives[0].transcript == "go north"
    out, _ = server.process.communicate(timeout=120)
    assert (server.process.returncode, out) == (0, "stopped\n")


STARTING = """
import asyncio, contextlib, time
from asr_server import server
from asr_server.options import ServerOptions

@contextlib.asynccontextmanager
async def loading(options, wake):
    print("starting", flush=True)
    await asyncio.to_thread(time.sleep, 60)
    yield

server.running = loading
asyncio.run(server.serve(ServerOptions(), print))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_still_loading_is_stopped_at_once(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTING], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "starting\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number


def _answers(address: str) -> bool:
    """Whether new calls are still taken."""
    with grpc.insecure_channel(address) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return True
