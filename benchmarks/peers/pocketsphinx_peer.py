"""Real-time streams of pocketsphinx in one process, as benchmarks.sphinx_load talks to it.

python -m benchmarks.peers.pocketsphinx_peer --recordings DIR

Requests and replies are lines of JSON:

{"prepare": N}                                             N decoders are loaded -> {}
{"rtf": true}                                              every recording, live in chunks -> {"seconds", "texts"}
{"streams", "warm_up", "seconds", "begin", "numbers"}      a level, of which this process has the streams `numbers`
                                                           -> {"finals", "texts", "gave_up"}

It has its own US English model, dictionary and language model with their default settings. There is no network between:
the audio is in the process already, and one thread takes the streams' chunks in the order in which they are due. After
each chunk it asks for the text so far, as a stream with interim results would.
"""

import argparse
import heapq
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pocketsphinx import Decoder

from benchmarks.schedule import Pace, chunk_ends, cut, seconds_of

GIVE_UP = 5.0  # seconds behind the timetable: it will not catch up


class Due(NamedTuple):
    """A chunk of a stream and when it is spoken."""

    time: float
    stream: int
    recording: int
    chunk: int


def timetable(pace: Pace, streams: Sequence[int], durations: Sequence[float]) -> Iterator[Due]:
    """All chunks of several streams in the order in which they are due."""
    return heapq.merge(*(_of_stream(pace, stream, durations) for stream in streams))


def _of_stream(pace: Pace, stream: int, durations: Sequence[float]) -> Iterator[Due]:
    for recording, start in pace.turns(stream, durations):
        for chunk, end in enumerate(chunk_ends(durations[recording])):
            yield Due(start + end, stream, recording, chunk)


class Streams:
    """Decoders of one process, one a stream."""

    def __init__(self, recordings: Sequence[bytes]) -> None:
        self._chunks = [cut(audio) for audio in recordings]
        self._durations = [seconds_of(audio) for audio in recordings]
        self._decoders: list[Any] = []

    def prepare(self, count: int) -> None:
        while len(self._decoders) < count:
            self._decoders.append(Decoder(loglevel="FATAL"))

    def hear(self, decoder: Any, recording: int, chunk: int) -> str | None:
        """One chunk; the text after the last one."""
        chunks = self._chunks[recording]
        if chunk == 0:
            decoder.start_utt()
        decoder.process_raw(chunks[chunk], no_search=False, full_utt=False)
        if chunk + 1 < len(chunks):
            decoder.hyp()
            return None
        decoder.end_utt()
        found = decoder.hyp()
        return str(found.hypstr) if found else ""

    def real_time_factor(self) -> dict[str, Any]:
        """Every recording as fast as it goes; processor seconds, because a shared machine only ever adds time."""
        self.prepare(1)
        start, texts = time.process_time(), []
        for recording, chunks in enumerate(self._chunks):
            for chunk in range(len(chunks)):
                text = self.hear(self._decoders[0], recording, chunk)
            texts.append(text)
        return {"seconds": time.process_time() - start, "texts": texts}

    def level(self, pace: Pace, begin: float, numbers: Sequence[int]) -> dict[str, Any]:
        """Paced; final latencies of the window in seconds."""
        decoders = dict(zip(numbers, self._decoders, strict=False))
        finals: list[float] = []
        texts: list[tuple[int, str]] = []
        talking: set[int] = set()
        for due in timetable(pace, numbers, self._durations):
            late = time.monotonic() - begin - due.time
            if late > GIVE_UP:
                for stream in talking:
                    decoders[stream].end_utt()  # or the next level could not begin one
                return {"finals": finals, "texts": texts, "gave_up": True}
            time.sleep(max(0.0, -late))
            text = self.hear(decoders[due.stream], due.recording, due.chunk)
            (talking.add if text is None else talking.discard)(due.stream)
            if text is not None and pace.measured(due.time):
                finals.append(time.monotonic() - begin - due.time)
                texts.append((due.recording, text))
        return {"finals": finals, "texts": texts, "gave_up": False}


def answer(streams: Streams, request: dict[str, Any]) -> dict[str, Any]:
    if "prepare" in request:
        streams.prepare(request["prepare"])
        return {}
    if "rtf" in request:
        return streams.real_time_factor()
    pace = Pace(request["streams"], request["warm_up"], request["seconds"])
    return streams.level(pace, request["begin"], request["numbers"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.pocketsphinx_peer")
    parser.add_argument("--recordings", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(arguments)
    streams = Streams([path.read_bytes() for path in sorted(args.recordings.glob("*.raw"))])
    for line in sys.stdin:
        print(json.dumps(answer(streams, json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
