"""A small part of what benchmarks.fuzz does a hundred thousand times, and that it would notice what it looks for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from benchmarks import fuzz
from benchmarks.malformed import Case, Malformed, Method, methods
from benchmarks.server_process import ServerProcess, command
from tests.speech_fixtures import pcm, save_toy_bundle, speak

CASES = 1000
# Before anything is read, because this server keeps nothing that clients bring.
REFUSED = {f"/earsight.vision.v1.Vision/{name}" for name in ("Register", "RegisterEmbeddings")}
FOLDER = "fuzz"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.getbasetemp() / FOLDER
    folder.mkdir()
    save_toy_bundle(folder / "models")
    words = [*command(folder / "models", 256, None), "--max-stream-seconds", "60", "--idle-seconds", "10"]
    with ServerProcess(words, folder / "log") as process:
        yield process


@pytest.fixture(scope="module")
def cases(server: ServerProcess) -> Malformed:
    return Malformed(methods(server.address), seed=0)


def test_every_malformed_call_is_answered(
    server: ServerProcess, cases: Malformed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By a status that says whose fault it was; and the server goes on."""
    fuzzer, log = fuzz.Fuzzer(server, pcm(speak("go north"))), tmp_path_factory.getbasetemp() / FOLDER / "log"
    found = asyncio.run(fuzzer.run(cases, range(CASES), concurrency=32))
    assert found.wrong == []
    assert fuzzer.expected == "go north"
    assert found.done == CASES == found.statuses.total()
    assert {kind for kind, _ in found.statuses} >= {"audio", "bytes", "connections", "fields", "metadata", "order"}
    assert {status for _, status in found.statuses} >= {"OK", "INVALID_ARGUMENT", "CANCELLED"}
    assert fuzz.judge(found, log.read_text(), growth=100) == 0


def test_all_methods_are_found(cases: Malformed, server: ServerProcess) -> None:
    paths = {method.path for method in methods(server.address)}
    assert paths >= {
        "/earsight.speech.v1.Speech/StreamingRecognize",
        "/google.cloud.speech.v1.Speech/Recognize",
        "/earsight.riva.v1.RivaSpeechRecognition/Recognize",
        "/earsight.vision.v1.Vision/Classify",
        "/grpc.health.v1.Health/Watch",
    }
    called = {cases.case(number).path for number in range(3 * CASES)}
    assert called >= paths


def test_bytes_that_are_no_message_are_their_senders_fault(server: ServerProcess) -> None:
    """Of every method, for gRPC parses them before any handler is asked."""
    with grpc.insecure_channel(server.address) as channel:
        for method in methods(server.address):
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method.path)
            with pytest.raises(grpc.RpcError) as error:
                list(call(iter([b"\xff\xff\xff"]), timeout=60))
            if method.path in REFUSED:
                assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
                continue
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.path
            assert "Malformed message of 3 bytes. Error parsing" in (error.value.details() or ""), method.path


def test_a_case_follows_from_seed_and_number(cases: Malformed, server: ServerProcess) -> None:
    others = [Malformed(methods(server.address), seed) for seed in (0, 1)]
    for number in range(50):
        assert cases.case(number) == others[0].case(number)
    assert any(cases.case(number) != others[1].case(number) for number in range(50))


class Asked(Malformed):
    """One case, over and over."""

    def __init__(self, served: list[Method], case: Case) -> None:
        super().__init__(served, 0)
        self._case = case

    def case(self, number: int) -> Case:
        return self._case


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("Traceback (most recent call last):", "the server logged 1 x Traceback"),
        ("code=INTERNAL code=INTERNAL", "the server logged 2 x code=INTERNAL"),
    ],
)
def test_what_the_server_logs_is_noticed(log: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.judge(fuzz.Findings(), log, growth=10) == 1
    assert text in capsys.readouterr().out


def test_growth_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzz.Findings(samples=[fuzz.Sample(1000 * i, 700.0 + 5 * i, 16, 20) for i in range(30)])
    assert fuzz.judge(found, "", growth=10) == 1
    assert "resident memory grew by 18.2 %" in capsys.readouterr().out
    assert fuzz.judge(found, "", growth=20) == 0


def test_a_call_that_does_not_end_is_noticed(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching health goes on until the caller ends it."""
    monkeypatch.setattr(fuzz, "PATIENCE", 2.0)
    watch = Asked(methods(server.address), Case("fields", "/grpc.health.v1.Health/Watch", (b"",)))
    found = asyncio.run(fuzz.Fuzzer(server, pcm(speak("go"))).run(watch, [0], concurrency=1))
    assert [(number, kind) for number, kind, _ in found.wrong] == [(0, "fields")]
    assert "HANGS" in found.wrong[0][2]
