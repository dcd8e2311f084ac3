"""The whole server as production runs it: TLS, client certificates, tokens, quotas, metrics; with our own clients."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import soundfile

from asr_server import healthcheck
from asr_server.cli import main
from asr_server.connection import TOKEN_VARIABLE
from asr_server.options import Limits, ServerOptions, Telemetry
from asr_server.security_options import SecurityOptions
from asr_server.wire import speech_pb2 as pb
from asr_server.wire import speech_pb2_grpc
from tests.certificates import Authority
from tests.speech_fixtures import RATE, pcm, save_toy_bundle, serving, speak


@dataclass(frozen=True)
class Secured:
    address: str  # by name, as the certificate has it
    ca: Path
    certificate: Path
    key: Path
    tokens: Path
    token: str
    recording: Path
    metrics_port: int


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    save_toy_bundle(folder / "models")
    authority = Authority("toy")
    (folder / "ca.pem").write_bytes(authority.certificate)
    certificate, key = authority.issue("localhost").write(folder, "server")
    own_certificate, own_key = authority.issue("captions").write(folder, "client")
    tokens = folder / "tokens.json"
    token = make_token(tokens, "captions", "--audio-seconds-per-hour", "60")
    recording = folder / "talk.wav"
    soundfile.write(recording, speak("go north"), RATE, subtype="PCM_16")
    options = ServerOptions(
        port=0,
        models=(folder / "models",),
        limits=Limits(calls=4),
        drain_seconds=0.5,
        security=SecurityOptions(certificate, key, folder / "ca.pem", tokens),
        telemetry=Telemetry(metrics_port=0),
    )
    with serving(options) as server:
        port = server.address.rpartition(":")[2]
        assert server.metrics_port
        yield Secured(
            f"localhost:{port}",
            folder / "ca.pem",
            own_certificate,
            own_key,
            tokens,
            token,
            recording,
            server.metrics_port,
        )


def make_token(tokens: Path, client: str, *quotas: str) -> str:
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["tokens", "add", "--file", str(tokens), "--client", client, *quotas]) == 0
    found = re.search(r"ear_[A-Za-z0-9_-]+", printed.getvalue())
    assert found
    return found[0]


def transcribe(secured: Secured, *arguments: str) -> int:
    return main(["transcribe", "--server", secured.address, str(secured.recording), *arguments])


def identity(secured: Secured) -> list[str]:
    return ["--ca", str(secured.ca), "--certificate", str(secured.certificate), "--key", str(secured.key)]


def scrape(secured: Secured) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{secured.metrics_port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_our_client(secured: Secured, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, secured.token)
    assert transcribe(secured, *identity(secured)) == 0
    assert capsys.readouterr().out == "go north\n"


def test_without_what_is_asked_for(
    secured: Secured, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert transcribe(secured, *identity(secured)) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    monkeypatch.setenv(TOKEN_VARIABLE, "ear_wrong")
    assert transcribe(secured, *identity(secured)) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    assert transcribe(secured, "--ca", str(secured.ca)) == 1
    assert "no server answers" in capsys.readouterr().err
    assert transcribe(secured, "--certificate", str(secured.certificate)) == 1
    assert "belong together" in capsys.readouterr().err
    assert value(scrape(secured), 'earsight_rejected_total{reason="unauthenticated"}') > 0


def test_health_needs_no_token(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main([secured.address, *identity(secured)]) == 0
    assert healthcheck.main([secured.address, "--timeout", "1"]) == 1
    assert healthcheck.main([secured.address, "--ca", "missing.pem"]) == 1
    assert "missing.pem" in capsys.readouterr().err


def test_audio_quota(secured: Secured) -> None:
    """Three seconds of audio an hour: the stream that goes beyond it ends, and says when to come again."""
    token = make_token(secured.tokens, "small", "--audio-seconds-per-hour", "3")
    credentials = grpc.ssl_channel_credentials(
        secured.ca.read_bytes(), secured.key.read_bytes(), secured.certificate.read_bytes()
    )
    config = pb.RecognitionConfig(encoding=pb.RecognitionConfig.LINEAR16, sample_rate_hertz=RATE, language_code="en-US")

    def requests() -> Iterator[pb.StreamingRecognizeRequest]:
        yield pb.StreamingRecognizeRequest(streaming_config=pb.StreamingRecognitionConfig(config=config))
        for _ in range(3):
            yield pb.StreamingRecognizeRequest(audio_content=pcm(speak("go north")))

    with grpc.secure_channel(secured.address, credentials) as channel:
        stub = speech_pb2_grpc.SpeechStub(channel)
        authorization = (("authorization", f"Bearer {token}"), ("x-request-id", "mine"))
        while True:  # the token file is looked at once a second
            call = stub.StreamingRecognize(requests(), timeout=60, metadata=authorization)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            if caught.value.code() != grpc.StatusCode.UNAUTHENTICATED:
                break
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "audio_seconds_per_hour" in str(caught.value.details())
    trailers = {entry.key: str(entry.value) for entry in caught.value.trailing_metadata() or ()}
    assert trailers["x-request-id"] == "mine"
    assert float(trailers["retry-after"]) > 0


def test_metrics(secured: Secured, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, secured.token)
    before = value(scrape(secured), "earsight_final_results_total")
    assert transcribe(secured, *identity(secured)) == 0
    after = scrape(secured)
    assert value(after, "earsight_final_results_total") == before + 1
    assert value(after, 'earsight_streams{model="tones"}') == 0
    assert value(after, 'earsight_audio_seconds_total{model="tones"}') > 2
    assert value(after, 'earsight_processed_audio_seconds_total{model="tones"}') > 2
    assert value(after, "earsight_final_latency_seconds_count") > 0
    method = 'code="OK",method="/earsight.speech.v1.Speech/StreamingRecognize"'
    assert value(after, f"earsight_rpcs_total{{{method}}}") >= 1
    assert 'earsight_model_info{kind="speech",name="tones",version="1"} 1.0' in after


def value(scraped: str, name: str) -> float:
    for line in scraped.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_exposed_plaintext_needs_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_toy_bundle(tmp_path)
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--models", str(tmp_path)]) == 1
    assert "--allow-insecure" in capsys.readouterr().err
