"""The soak of vision: what is sent, what clients note of answers, figures by hand, and that it runs as a whole."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from benchmarks import vision_images, vision_soak, vision_soak_clients
from benchmarks.soak import Look
from benchmarks.vision_kinds import KINDS, read_kinds
from benchmarks.vision_soak_clients import Choice, Seen, single, stream
from vision_zoo.images import PIXEL_LIMIT, ImageError, decode
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionServicer, add_VisionServicer_to_server

ROOT = Path(__file__).resolve().parent.parent
Reply = Callable[[bytes], pb.ClassifyResponse | pb.Error | None]  # None: the call ends with UNAVAILABLE
Client = Callable[[str, float, Seen], Coroutine[Any, Any, None]]
GOOD = pb.ClassifyResponse(predictions=[pb.Prediction(label="a", probability=1.0)])
INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    folder = tmp_path_factory.mktemp("soak") / "images"
    vision_images.write_kinds(vision_images.photographs(None, 2), folder)
    return read_kinds(folder)


def test_shares_are_whole() -> None:
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)


def test_bad_files_are_small_and_refused(files: dict[str, list[bytes]]) -> None:
    for kind in ("truncated", "bomb"):
        for file in files[kind]:
            assert len(file) < 1 << 20
            with pytest.raises(ImageError):
                decode(file)
    assert all(len(file) > 16 << 20 for file in files["oversized"])


def test_good_files_are_good(files: dict[str, list[bytes]]) -> None:
    assert [decode(file).shape[1:] for file in files["good"]] == [(375, 500)] * 4
    pixels = [decode(file).shape[1:].numel() for file in files["huge"]]
    assert pixels == [PIXEL_LIMIT] * 3


class Server(VisionServicer):  # its other methods answer UNIMPLEMENTED
    """Answers as it is told."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        answer = self._reply(request.image)
        if isinstance(answer, pb.ClassifyResponse):
            return answer
        code = grpc.StatusCode.UNAVAILABLE
        if answer is not None:
            code = next(each for each in grpc.StatusCode if each.value[0] == answer.code)
        await context.abort(code, "because")
        raise AssertionError

    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], context: Any
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        async for each in requests:
            answer = self._reply(each.request.image)
            if answer is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "because")
            elif isinstance(answer, pb.Error):
                yield pb.ClassifyStreamResponse(error=answer)
            else:
                yield pb.ClassifyStreamResponse(response=answer)


def seen_by(client: Client, reply: Reply, made: Callable[[Reply], Any] = Server) -> Seen:
    async def run() -> Seen:
        server = grpc.aio.server()
        add_VisionServicer_to_server(made(reply), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        seen = Seen()
        await client(f"127.0.0.1:{port}", time.monotonic() + 1.0, seen)
        await server.stop(None)
        return seen

    return asyncio.run(run())


def replies(image: bytes) -> pb.ClassifyResponse | pb.Error | None:
    answers: dict[bytes, pb.ClassifyResponse | pb.Error] = {
        b"good": GOOD,
        b"empty": pb.ClassifyResponse(),
        b"bad": pb.Error(code=INVALID, message="no image"),
    }
    return answers.get(image)


FILES = {
    "good": [b"good", b"empty"],
    "huge": [b"good"],
    "oversized": [b"good"],
    "truncated": [b"bad"],
    "bomb": [b"end"],
}
EXPECTED = {"good OK", "good EMPTY_ANSWER", "huge OK", "oversized OK", "truncated INVALID_ARGUMENT", "bomb UNAVAILABLE"}


async def by_stream(server: str, until: float, seen: Seen) -> None:
    await stream(server, Choice(FILES, random.Random(0)), until, seen)


async def by_calls(server: str, until: float, seen: Seen) -> None:
    await single(server, Choice(FILES, random.Random(0)), until, seen, random.Random(0))


def test_a_stream_goes_on_after_bad_images_and_in_a_new_call() -> None:
    seen = seen_by(by_stream, replies)
    check(seen)
    assert seen.refusals == 0


def test_single_calls_note_every_status() -> None:
    check(seen_by(by_calls, replies))


def check(seen: Seen) -> None:
    assert set(seen.answers) == EXPECTED
    assert set(seen.said) == {"good EMPTY_ANSWER", "oversized OK", "bomb UNAVAILABLE"}
    assert seen.said["bomb UNAVAILABLE"] == "because"
    assert len(seen.latencies) == seen.answers["good OK"] + seen.answers["good EMPTY_ANSWER"]


def test_a_full_server_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_soak_clients, "BACK_OFF", (0.001, 0.002))
    turn = iter(range(10**9))
    full = pb.Error(code=FULL)
    seen = seen_by(by_calls, lambda image: GOOD if next(turn) % 3 == 2 else full)
    assert {name.partition(" ")[2] for name in seen.answers} == {"OK"}  # whatever the kind
    assert seen.refusals == 2 * sum(seen.answers.values())


def test_an_answer_that_never_comes_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_soak_clients, "PATIENCE", 0.2)

    class Silent(Server):
        async def ClassifyStream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            await asyncio.sleep(60)
            yield

    seen = seen_by(by_stream, replies, Silent)
    assert {name.partition(" ")[2] for name in seen.answers} == {"DEADLINE_EXCEEDED"}


def options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"clients": 2, "seconds": 10.0, "warm_up": 0.0, "growth": 10.0, "memory": 200.0, **changes}
    )


def test_figures_by_hand() -> None:
    one = Seen({"good OK": 7, "bomb INVALID_ARGUMENT": 1}, {}, [0.1] * 7, 2)
    two = Seen(
        {"good OK": 2, "good INTERNAL": 1, "bomb OK": 1}, {"good INTERNAL": "fault", "bomb OK": ""}, [0.1, 0.3, 0.2], 1
    )
    looks = [Look(minute, resident, 9, 9) for minute, resident in enumerate((500.0, 600, 600, 630, 606))]
    found = vision_soak.figures(options(), [one, two], looks)
    assert found["answers"]["good"] == {"OK": 9, "INTERNAL": 1} and found["answers"]["huge"] == {}
    assert (found["good"], found["errors_good"], found["errors_others"], found["refusals"]) == (10, 1, 1, 3)
    assert found["images"] == 12 and found["images_per_second"] == pytest.approx(1.2)
    assert (found["p50_ms"], found["p99_ms"]) == (pytest.approx(100), pytest.approx(300))
    assert (found["rss_before"], found["rss_max"]) == (500, 630)
    assert (found["rss_first_quarter"], found["rss_last_quarter"]) == (600, 606)
    assert found["rss_growth_percent"] == pytest.approx(1), "of the means; the highest look is another bar's"
    met = {bar.key: bar.met(found) for bar in vision_soak.bars(options(memory=120))}
    assert met == {
        "good": True,
        "errors_good": False,
        "errors_others": False,
        "rss_growth_percent": True,
        "rss_added": False,
    }


def test_the_whole_soak(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--clients", "3", "--processes", "2", "--seconds", "4", "--warm-up", "0", "--every", "0.2", "--good", "2"]
    status = vision_soak.main([*words, "--growth", "1000", "--json"])
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert status == 0, output
    assert found["good"] > 0 and found["errors_good"] == found["errors_others"] == 0
    assert found["p99_ms"] >= found["p50_ms"] > 0 and found["rss_max"] >= found["rss_before"] > 0
    assert len(found["rss"]) > 4 and found["door"] == "stream"


def test_wrong_words_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in ((["--clients", "0"], "--clients is 0: at least 1"), (["--every", "0"], "--every 0 and")):
        with pytest.raises(SystemExit) as stopped:
            vision_soak.main(words)
        assert stopped.value.code == 2 and text in capsys.readouterr().err


def test_the_clients_need_no_framework() -> None:
    code = "import sys, benchmarks.vision_soak_clients; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
