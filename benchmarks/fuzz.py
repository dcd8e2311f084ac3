"""Malformed calls by the hundred thousand against a server that has to answer every one and go on.

python -m benchmarks.fuzz
python -m benchmarks.fuzz --requests 100000 --seed 0
python -m benchmarks.fuzz --case 4711            the one call again

The server is a process of its own; its methods are found by reflection. benchmarks.malformed makes the calls, and many
of them are in progress at once. After every 1,000 a recording must still be understood as it was at the beginning.
What counts as a failure: INTERNAL or UNKNOWN, a call that does not end, a server that ends or logs a traceback,
resident memory that grows by more than --growth per cent after the first tenth, descriptors that stay open.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from asr_server.bundle import SHIPPED
from asr_server.wire import speech_pb2 as pb
from benchmarks import machine, recordings
from benchmarks.malformed import Case, Malformed, methods
from benchmarks.schedule import RATE
from benchmarks.server_process import ServerProcess, command

PATIENCE = 60.0  # seconds after which a call that its caller has not ended counts as hanging
CONTROL_EVERY = 1000
PROGRESS_EVERY = 10_000
CHANNELS = 16
WRONG = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "HANGS")
LOGGED_WRONG = ("Traceback", "code=INTERNAL", "code=UNKNOWN")
RECOGNIZE = "/{}/Recognize".format(pb.DESCRIPTOR.services_by_name["Speech"].full_name)


@dataclass(frozen=True)
class Sample:
    """Of the server after some calls. Memory in MiB."""

    done: int
    resident: float
    descriptors: int
    threads: int


@dataclass
class Findings:
    """What has been seen so far."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, status)
    wrong: list[tuple[int, str, str]] = field(default_factory=list)  # number of the case, kind, what happened
    samples: list[Sample] = field(default_factory=list)
    peak: float = 0.0
    done: int = 0


def sample(pid: int, done: int) -> Sample:
    process = machine.PROC / str(pid)
    threads, descriptors = (len(list((process / name).iterdir())) for name in ("task", "fd"))
    return Sample(done, machine.status(pid).get("VmRSS", 0.0), descriptors, threads)


class Fuzzer:
    """One server and the calls made to it. `control`: LINEAR16 at 16 kHz, and the text that it must have."""

    def __init__(self, server: ServerProcess, control: bytes) -> None:
        self.found = Findings()
        self._server = server
        self._control = control
        self.expected = ""

    async def run(self, cases: Malformed, numbers: Sequence[int], concurrency: int) -> Findings:
        # Without the option channels to one address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        before = sample(self._server.pid, 0)
        channels = [grpc.aio.insecure_channel(self._server.address, options=options) for _ in range(CHANNELS)]
        self.expected = await self._recognised(channels[0])
        if not self.expected:
            raise ValueError("the control recording has no text: it could not show that the server still works")
        self.found.samples.append(sample(self._server.pid, 0))
        for start in range(0, len(numbers), CONTROL_EVERY):
            waiting = list(reversed(numbers[start : start + CONTROL_EVERY]))
            workers = (self._work(cases, waiting, channels[i % CHANNELS]) for i in range(concurrency))
            await asyncio.gather(*workers)
            await self._check(channels[0])
        await asyncio.gather(*(channel.close() for channel in channels))
        await self._closed(before.descriptors)
        return self.found

    async def _work(self, cases: Malformed, waiting: list[int], channel: grpc.aio.Channel) -> None:
        while waiting:
            number = waiting.pop()
            case = cases.case(number)
            status, details = await (self._connect(case) if case.kind == "connections" else _call(channel, case))
            self.found.statuses[case.kind, status] += 1
            self.found.done += 1
            if status in WRONG:
                self.found.wrong.append((number, case.kind, f"{case.path} {status}: {details[:200]}"))

    async def _connect(self, case: Case) -> tuple[str, str]:
        host, _, port = self._server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(ConnectionError):
            writer.write(b"".join(case.messages))
            await writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read(1000)
        writer.close()
        return "closed", ""

    async def _check(self, channel: grpc.aio.Channel) -> None:
        """That the server is as it was."""
        heard = await self._recognised(channel)
        if heard != self.expected:
            self.found.wrong.append((self.found.done, "control", f"heard {heard!r} instead of {self.expected!r}"))
        usage = self._server.usage()
        self.found.peak = max(self.found.peak, usage.peak)
        now = sample(self._server.pid, self.found.done)
        self.found.samples.append(now)
        if now.done % PROGRESS_EVERY == 0:
            print(f"{now.done:8}  {now.resident:.0f} MiB, {now.descriptors} descriptors", flush=True)

    async def _recognised(self, channel: grpc.aio.Channel) -> str:
        config = pb.RecognitionConfig(
            encoding=pb.RecognitionConfig.LINEAR16, sample_rate_hertz=RATE, language_code="en-US"
        )
        request = pb.RecognizeRequest(config=config, audio=pb.RecognitionAudio(content=self._control))
        recognize: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RECOGNIZE)
        for _ in range(100):
            try:
                answer = await recognize(request.SerializeToString(), timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return f"{error.code().name}: {error.details()}"
                await asyncio.sleep(0.2)  # the last calls of the thousand still fill the server, as they may
                continue
            results = pb.RecognizeResponse.FromString(answer).results
            return "".join(result.alternatives[0].transcript for result in results)
        return "RESOURCE_EXHAUSTED for 20 seconds"

    async def _closed(self, before: int) -> None:
        """Waits until the server has as many descriptors as before."""
        end = time.monotonic() + PATIENCE
        while (last := sample(self._server.pid, self.found.done)).descriptors > before and time.monotonic() < end:
            await asyncio.sleep(0.2)
        self.found.samples.append(last)
        if last.descriptors > before:
            text = f"{last.descriptors} descriptors are open, {before} were before the calls"
            self.found.wrong.append((self.found.done, "end", text))


async def _call(channel: grpc.aio.Channel, case: Case) -> tuple[str, str]:
    """One call to its end. Any method is called as a stream of both: on the wire there is no difference."""
    compression = grpc.Compression.Gzip if case.compressed else None
    call: Any = channel.stream_stream(case.path)(
        metadata=case.metadata or None, timeout=case.seconds or PATIENCE, compression=compression
    )
    writing = asyncio.create_task(_write(call, case))
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    writing.cancel()
    code, details = await call.code(), await call.details() or ""
    ours = case.seconds is not None or case.cancel_after is not None
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not ours:
        return "HANGS", details
    if code is grpc.StatusCode.INTERNAL and "Internal error from Core" in details:
        return "closed", details  # a write that met the end of the call: grpc/grpc#36066, of the client
    return code.name, details


async def _write(call: Any, case: Case) -> None:
    try:
        for number, message in enumerate(case.messages):
            if number == case.cancel_after:
                break
            await call.write(message)
        if case.cancel_after is None:
            await call.done_writing()
        else:
            call.cancel()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the server has ended the call; reading finds its status


def grown(samples: Sequence[Sample]) -> float:
    """Per cent that resident memory grew after the first tenth, from which on a server is warm."""
    warm = samples[max(1, len(samples) // 10)]
    return 100 * (samples[-1].resident / warm.resident - 1)


def report(found: Findings) -> None:
    kinds = sorted({kind for kind, _ in found.statuses})
    for kind in kinds:
        counts = sorted((status, count) for (each, status), count in found.statuses.items() if each == kind)
        total = sum(count for _, count in counts)
        print(f"{kind:12}{total:8}  {', '.join(f'{count} {status}' for status, count in counts)}")
    first, last = found.samples[0], found.samples[-1]
    highest = max(each.resident for each in found.samples)
    growth = f"{grown(found.samples):+.1f} % after the first tenth"
    print(
        f"resident memory: {first.resident:.0f} MiB at the start, {last.resident:.0f} at the end ({growth}), "
        f"{highest:.0f} at most between calls, {found.peak:.0f} ever; descriptors {first.descriptors} with "
        f"{CHANNELS} connections, {last.descriptors} after them; threads {last.threads}"
    )


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="earsight-fuzz-") as folder:
        log = Path(folder) / "server.log"
        words = [*command(SHIPPED, 256, None), "--max-stream-seconds", "60", "--idle-seconds", "10"]
        with ServerProcess(words, log) as server:
            targets = methods(server.address)
            print(f"{len(targets)} methods: {', '.join(each.path for each in targets)}", flush=True)
            cases, fuzzer = Malformed(targets, args.seed), Fuzzer(server, recordings.read(None, 1)[0].audio)
            numbers = [args.case] if args.case is not None else range(args.requests)
            began = time.monotonic()
            found = asyncio.run(fuzzer.run(cases, numbers, args.concurrency))
            print(f"{found.done} calls in {time.monotonic() - began:.0f} s, seed {args.seed}")
            report(found)
        text = log.read_text(errors="replace")
        if args.log:
            args.log.write_text(text)
    return judge(found, text, args.growth)


def judge(found: Findings, log: str, growth: float) -> int:
    """Exit status; says what was wrong."""
    wrong = [f"case {number} ({kind}): {what}" for number, kind, what in found.wrong]
    wrong += [f"the server logged {log.count(text)} x {text}" for text in LOGGED_WRONG if text in log]
    if len(found.samples) > 20 and grown(found.samples) > growth:
        wrong.append(f"resident memory grew by {grown(found.samples):.1f} %")
    for line in wrong[:40]:
        print(f"WRONG {line}")
    print(f"{len(wrong)} wrong" if wrong else "nothing wrong")
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--requests", type=int, default=100_000, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--case", type=int, metavar="N", help="only this one")
    add("--concurrency", type=int, default=64, help="calls in progress (default: %(default)s)")
    add("--growth", type=float, default=10.0, metavar="PER CENT", help="of memory, at most (default: %(default)g)")
    add("--log", type=Path, metavar="FILE", help="keep the server's log")
    try:
        return run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
