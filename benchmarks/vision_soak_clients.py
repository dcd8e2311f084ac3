"""Some of the clients of benchmarks.vision_soak, each with a connection of its own.

python -m benchmarks.vision_soak_clients --server 127.0.0.1:50051 --images DIR --clients 50 --door stream --seed 0

It writes {} when it is ready. A line of JSON on standard input, {"until": ...} on the monotonic clock, begins: every
client sends one image after the other, of a kind that chance chooses by vision_kinds.KINDS, until that time. The reply
is one line: how often each kind was answered with which status, what the first unexpected answers said, the latencies
of good images, and how often a call was refused because the server was full, which is waited out and tried again.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.vision_kinds import KINDS, read_kinds
from vision_zoo.wire import vision_pb2 as pb
from vision_zoo.wire.vision_pb2_grpc import VisionStub

DOORS = ("stream", "single")
PATIENCE = 120.0  # seconds until an image that has no answer counts as DEADLINE_EXCEEDED
FULL, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED.name, grpc.StatusCode.DEADLINE_EXCEEDED.name
BACK_OFF = (0.05, 0.5)  # seconds, between two tries
EMPTY = "EMPTY_ANSWER"  # a status OK without a prediction
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass
class Seen:
    """By all clients of a process. answers: "KIND STATUS" -> how many; said: the same -> the first text."""

    answers: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)  # of good images, seconds
    refusals: int = 0

    def note(self, kind: str, code: str, text: str, seconds: float) -> None:
        self.answers[f"{kind} {code}"] = self.answers.get(f"{kind} {code}", 0) + 1
        if code != KINDS[kind].expected:
            self.said.setdefault(f"{kind} {code}", text)
        if kind == "good":
            self.latencies.append(seconds)


class Choice:
    """Which image a client sends next."""

    def __init__(self, files: dict[str, list[bytes]], chance: random.Random) -> None:
        self._files, self._chance = files, chance
        self._kinds, self._shares = [*KINDS], [kind.share for kind in KINDS.values()]

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while True:
            kind = self._chance.choices(self._kinds, self._shares)[0]
            yield kind, self._chance.choice(self._files[kind])


@asynccontextmanager
async def _connected(server: str) -> Any:
    # Without the option channels to one address share a connection.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server, options=options) as channel:
        yield VisionStub(channel)


async def stream(server: str, choice: Choice, until: float, seen: Seen) -> None:
    """Images one after the other in one call; another call follows where one ends."""
    async with _connected(server) as stub:
        call = None
        for kind, image in choice:
            if (begin := time.monotonic()) >= until:
                break
            call = call or stub.ClassifyStream()
            code, text, goes_on = await _in_stream(call, image)
            seen.note(kind, code, text, time.monotonic() - begin)
            if not goes_on:
                call = None
        if call is not None:
            await call.done_writing()


async def _in_stream(call: Any, image: bytes) -> tuple[str, str, bool]:
    """Status and text of one image, and whether the call goes on."""
    try:
        async with asyncio.timeout(PATIENCE):
            await call.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(image=image, top_k=1)))
            answer = await call.read()
    except TimeoutError:
        call.cancel()
        return LATE, f"no answer after {PATIENCE:g} s", False
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        answer = grpc.aio.EOF
    if answer is grpc.aio.EOF:
        return (await call.code()).name, await call.details() or "the call ended", False
    if answer.WhichOneof("result") == "error":
        return _CODES[answer.error.code], answer.error.message, True
    return ("OK" if answer.response.predictions else EMPTY), "", True


async def single(server: str, choice: Choice, until: float, seen: Seen, chance: random.Random) -> None:
    """A call an image; where the server is full, the same again a little later."""
    async with _connected(server) as stub:
        for kind, image in choice:
            if (begin := time.monotonic()) >= until:
                break
            request = pb.ClassifyRequest(image=image, top_k=1)
            while True:
                code, text = await _one(stub, request, begin + PATIENCE - time.monotonic())
                if code != FULL or time.monotonic() > begin + PATIENCE:
                    break
                seen.refusals += 1
                await asyncio.sleep(chance.uniform(*BACK_OFF))
            seen.note(kind, code, text, time.monotonic() - begin)


async def _one(stub: Any, request: pb.ClassifyRequest, timeout: float) -> tuple[str, str]:
    try:
        answer = await stub.Classify(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return ("OK", "") if answer.predictions else (EMPTY, "")


async def run(args: argparse.Namespace, files: dict[str, list[bytes]], until: float) -> Seen:
    seen, clients = Seen(), []
    for number in range(args.clients):
        chance = random.Random(f"{args.seed} {number}")
        choice = Choice(files, chance)
        if args.door == "stream":
            clients.append(stream(args.server, choice, until, seen))
        else:
            clients.append(single(args.server, choice, until, seen, chance))
    await asyncio.gather(*clients)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_soak_clients")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--clients", type=int, required=True, metavar="N")
    parser.add_argument("--door", choices=DOORS, required=True)
    parser.add_argument("--seed", required=True)
    args = parser.parse_args(arguments)
    files = read_kinds(args.images)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(run(args, files, json.loads(line)["until"])))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
