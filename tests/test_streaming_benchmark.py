"""The benchmark of streaming: its timetable, its latencies and its verdicts by hand, and that it runs as a whole."""

import argparse
import asyncio
import importlib
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr_server import bundle
from asr_server.alphabet import BLANK
from asr_server.model import DeepSpeechConfig
from asr_server.wire import speech_pb2 as pb
from benchmarks import (
    levels,
    load_generator,
    machine,
    recordings,
    schedule,
    server_process,
    sphinx_load,
    streaming,
    streaming_bundles,
)
from benchmarks.calls import Call, Response, failures, percentile, percentiles
from benchmarks.levels import Level, Moment
from benchmarks.machine import Usage
from benchmarks.recordings import Recording
from benchmarks.schedule import Pace, Turn, chunk_ends, cut
from benchmarks.workers import Worker

ROOT = Path(__file__).resolve().parent.parent
CHUNK = b"ab" * 1600  # a tenth of a second
EVER = Pace(1, 0.0, 1e9)


# The timetable


def test_streams_begin_spread_over_the_warm_up_and_inside_a_chunk() -> None:
    pace = Pace(4, warm_up=0.2, seconds=1.0)  # two slots
    assert [pace.first(stream) for stream in range(4)] == pytest.approx([0.0, 0.025, 0.15, 0.175])
    without = Pace(4, warm_up=0.0, seconds=1.0)
    assert [without.first(stream) for stream in range(4)] == pytest.approx([0.0, 0.025, 0.05, 0.075])


def test_a_stream_speaks_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COOL_DOWN", 0.3)
    turns = list(Pace(2, 0.0, 0.5).turns(1, [0.25, 0.1, 0.2]))
    # The second stream of two: half a chunk later, from the second recording on. The next turn would begin at 0.95.
    assert [turn.recording for turn in turns] == [1, 2, 0, 1, 2]
    assert [turn.start for turn in turns] == pytest.approx([0.05, 0.15, 0.35, 0.65, 0.75])


@pytest.mark.parametrize(("duration", "ends"), [(0.25, [0.1, 0.2, 0.25]), (0.3, [0.1, 0.2, 0.3]), (0.05, [0.05])])
def test_chunks_go_out_when_they_are_complete(duration: float, ends: list[float]) -> None:
    assert chunk_ends(duration) == pytest.approx(ends)
    audio = b"ab" * round(duration * 16000)
    assert len(cut(audio)) == len(ends) and b"".join(cut(audio)) == audio
    assert [schedule.seconds_of(chunk) for chunk in cut(audio)] == pytest.approx(np.diff([0.0, *ends]))


def test_a_window_is_half_open() -> None:
    assert [Pace(1, 5.0, 20.0).measured(time) for time in (4.99, 5.0, 24.99, 25.0)] == [False, True, True, False]


@pytest.mark.parametrize("wrong", [(0, 5.0, 20.0), (1, -1.0, 20.0), (1, 5.0, 0.0)])
def test_a_pace_has_streams_and_a_window(wrong: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="at least 1, above 0, at least 0"):
        Pace(*wrong)


# Latencies

SPOKEN = Call(0, 10.0, 0.35, 11.0)  # chunks are due at 10.1, 10.2, 10.3 and 10.35


def heard(*responses: tuple[float, float, bool, str]) -> Call:
    return replace(SPOKEN, responses=tuple(Response(*each) for each in responses))


def test_a_chunk_waits_for_the_first_response_that_reaches_its_end() -> None:
    call = heard((10.15, 0.08, False, "a"), (10.22, 0.2, False, "a b"), (10.5, 0.34, True, "a b c"))
    assert call.interim_latencies(EVER) == pytest.approx([0.12, 0.02, 0.2])  # the last chunk is never reached
    assert call.interim_latencies(Pace(1, 10.15, 0.1)) == pytest.approx([0.02])
    assert call.interim_latencies(Pace(1, 10.32, 1.0)) == []
    assert heard((10.9, 0.35, True, "")).interim_latencies(EVER) == pytest.approx([0.8, 0.7, 0.6, 0.55])
    assert SPOKEN.interim_latencies(EVER) == []


def test_the_final_is_the_last_one_after_the_audio() -> None:
    assert heard((10.4, 0.2, True, "a"), (10.6, 0.35, True, "b")).final_latency == pytest.approx(0.25)
    assert heard((10.4, 0.2, True, "a"), (10.6, 0.35, False, "b")).final_latency == pytest.approx(0.05)
    # A final before the end of audio may not be the last: only the end of the call says so.
    assert heard((10.2, 0.2, True, "a")).final_latency == pytest.approx(0.65)
    assert SPOKEN.final_latency == pytest.approx(0.65)


def test_the_text_is_that_of_the_finals() -> None:
    call = heard((10.1, 0.1, False, "x"), (10.2, 0.2, True, "a b"), (10.3, 0.3, False, "y"), (10.4, 0.3, True, " c"))
    assert call.text == "a b c" and SPOKEN.text == ""


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert asdict(percentiles(values)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.3, 0.34, 0.67, 1.0)] == [1, 1, 2, 3, 3]
    assert percentile([], 0.5) == math.inf


def test_failures_are_counted_by_status() -> None:
    full = replace(SPOKEN, code="RESOURCE_EXHAUSTED", details="4 calls")
    calls = [SPOKEN, full, replace(full, details="5 calls"), replace(SPOKEN, code="INTERNAL")]
    assert failures(calls) == {"RESOURCE_EXHAUSTED: 4 calls": 2, "INTERNAL: ": 1}


# Levels


def level_of(*calls: Call, meaningful: bool = True) -> Level:
    speech = [Recording(CHUNK, "a b"), Recording(CHUNK, "c d")]
    return levels.of_calls(calls, Pace(2, 10.0, 1.0), speech, ["a b", "c x"], meaningful)


GOOD = heard((10.25, 0.2, False, "a"), (10.45, 0.35, True, "a b"))


def test_a_level_by_hand() -> None:
    other = replace(heard((11.2, 0.35, True, "c d")), recording=1, start=10.7, late=(0.001, 0.004))  # ends at 11.05
    level = level_of(replace(GOOD, late=(0.002, 0.003)), other, replace(SPOKEN, code="INTERNAL"))
    assert (level.streams, level.calls, level.failed, level.finals) == (2, 3, {"INTERNAL: ": 1}, 1)
    assert level.final_p95 == pytest.approx(100)  # the other one ended after the window, the failed one does not count
    assert level.chunks == 6  # four, and two of the other: its chunk at 11.0 is outside
    assert (level.interim_p50, level.interim_p99) == pytest.approx((150, 400))
    assert (level.late_p99, level.late_max) == pytest.approx((4, 4))
    assert (level.wer, level.wer_alone) == (0.0, 25.0)
    assert level.transcripts_equal == 0.5  # what was heard under load is right, and not what was heard alone
    assert level_of(GOOD, meaningful=False).wer is None


def test_verdicts() -> None:
    level = level_of(replace(GOOD, late=(0.05,)))
    assert level.final_p95 == pytest.approx(100)
    assert level.verdict(101) == ""
    assert level.verdict(99) == "p95 final is not under 99 ms"
    assert replace(level, failed={"INTERNAL: no": 2}).verdict(101) == "2 INTERNAL: no"
    assert replace(level, late_p99=50.1).verdict(101).startswith("invalid: the generator was late by 50 ms")
    assert level_of().verdict(1e9) != ""  # nothing came: nothing holds


def test_the_machines_side() -> None:
    first = replace(level_of(GOOD), streams=1, server_rss_mb=100.0)
    start = Moment(Usage(5.0, 100.0, 120.0), 1.0, 50.0)
    end = Moment(Usage(8.0, 130.0, 150.0), 1.5, 53.75)
    assert levels.of_machine(start, end, Pace(4, 1.0, 2.0), first) == {
        "server_cores": 1.5,
        "generator_cores": 0.25,
        "other_cores": 0.125,
        "real_time_factor": 0.375,
        "server_rss_mb": 130.0,
        "server_peak_mb": 150.0,
        "mb_per_stream": 10.0,
    }
    assert levels.of_machine(start, end, Pace(4, 1.0, 2.0), None)["mb_per_stream"] is None


@pytest.mark.parametrize(
    ("capacity", "refine", "asked", "found"),
    [
        (20, False, [1, 8, 32], 8),
        (99, False, [1, 8, 32, 64], 64),
        (0, False, [1], 0),
        (20, True, [1, 8, 32, 20, 26, 23, 21], 20),
        (3, True, [1, 8, 4, 2, 3], 3),
        (0, True, [1], 0),
    ],
)
def test_levels_rise_to_the_first_that_fails(capacity: int, refine: bool, asked: list[int], found: int) -> None:
    seen: list[int] = []

    def holds(streams: int) -> bool:
        seen.append(streams)
        return streams <= capacity

    assert levels.search([8, 1, 64, 32], holds, refine) == found
    assert seen == asked


def test_a_row_has_a_cell_under_each_heading() -> None:
    row = levels.row(replace(level_of(GOOD), server_cores=1.25, late_p99=2.5, late_max=2.5), 500)
    assert row.split()[:7] == ["2", "100", "150", "150", "100", "100", "100"]
    assert row.split()[7:] == ["1.25", "0.00", "0.00", "0", "2.5", "0.00", "0.00", "100.0%"]
    assert len(row) == len(levels.HEADER)
    assert levels.row(level_of(meaningful=False), 500).split()[12:14] == ["-", "-"]


def test_what_bounds_a_server() -> None:
    counters = {
        "earsight_stage_duration_seconds_sum acoustic_model": 3.0,
        "earsight_stage_duration_seconds_sum decoder": 1.0,
        "earsight_processed_audio_seconds_total wide": 100.0,
        "earsight_batch_streams_sum wide": 90.0,
        "earsight_batch_streams_count wide": 20.0,
        "earsight_queue_wait_seconds_sum": 0.5,
        "earsight_queue_wait_seconds_count": 20.0,
    }
    level = replace(
        level_of(GOOD), streams=10, server_cores=1.5, generator_cores=0.2, other_cores=0.1, counters=counters
    )
    assert levels.bound(level, 2) == [
        "at 10 streams the server used 1.50 and the generator 0.20 of 2 cores; others took 0.10, 0.20 were left",
        "with every core busy at the same cost a stream it would carry 12",
        "ms of each stage for a second of audio: acoustic_model 30.00, decoder 10.00",
        "streams in a step, on average: 4.5 of 10",
        "audio waited for its step, on average: 25.0 ms",
    ]
    assert len(levels.bound(replace(level, counters={}), 2)) == 2


# Speech


def write_wav(path: Path, seconds: float, rate: int = 16000) -> None:
    draw = np.random.default_rng(0)
    soundfile.write(path, 0.1 * draw.standard_normal(round(seconds * rate)), rate, subtype="PCM_16")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    lines = []
    for index, seconds in enumerate((0.3, 0.25, 0.1)):
        write_wav(folder / f"{index}.wav", seconds)
        lines.append(json.dumps({"audio_filepath": f"{index}.wav", "duration": seconds, "text": f"said {index}"}))
    (folder / "all.jsonl").write_text("\n".join(lines))
    return folder / "all.jsonl"


def test_recordings_of_a_manifest(manifest: Path, tmp_path: Path) -> None:
    found = recordings.read(manifest, 60)
    assert [each.text for each in found] == ["said 0", "said 1", "said 2"]
    assert [each.duration for each in found] == [0.3, 0.25, 0.1]
    samples, _ = soundfile.read(manifest.parent / "0.wav", dtype="int16")
    assert found[0].audio == samples.astype("<i2").tobytes()
    assert [each.text for each in recordings.read(manifest, 2)] == ["said 0", "said 1"]
    recordings.write(found, tmp_path / "raw")
    files = sorted((tmp_path / "raw").glob("*.raw"))
    assert [path.read_bytes() for path in files] == [each.audio for each in found]


def test_recordings_that_cannot_be_used(manifest: Path) -> None:
    write_wav(manifest.parent / "1.wav", 0.2, 8000)
    with pytest.raises(ValueError, match="has 8000 Hz"):
        recordings.read(manifest, 60)
    write_wav(manifest.parent / "1.wav", 0.0)
    with pytest.raises(ValueError, match="without any audio"):
        recordings.read(manifest, 60)


def test_the_shipped_samples_are_read_without_a_manifest() -> None:
    found = recordings.read(None, 60)
    assert [each.text for each in found] == [
        "he had never seen so many stars in the sky before",
        "one five two one seven",
    ]
    assert found[1].duration == pytest.approx(1.6, abs=0.1)


# Models


def test_random_weights_say_something(tmp_path: Path) -> None:
    config = DeepSpeechConfig(width=32, context=2, stride=2, chunk=10, right=20)
    draw = torch.Generator().manual_seed(0)
    # Noise whose loudness changes, so that frames differ as those of speech do.
    audio = [torch.randn(16000, generator=draw) * torch.rand(100, generator=draw).repeat_interleave(160)]
    before = torch.random.get_rng_state()
    models, name = streaming_bundles.random(tmp_path / "models", audio, config, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    loaded = bundle.load(models / name)
    features, lengths = loaded.features(audio[0][None], torch.tensor([len(audio[0])]))
    assert features.mean().abs() < 0.01 and features.std() == pytest.approx(1, abs=0.05)
    log_probs, _ = loaded.model(features, lengths)
    assert log_probs.isfinite().all()
    blank = (log_probs[0].argmax(dim=-1) == BLANK).float().mean()
    assert 0.4 < blank < 0.95
    again, _ = streaming_bundles.random(tmp_path / "again", audio, config, seed=3)
    other, _ = streaming_bundles.random(tmp_path / "other", audio, config, seed=4)
    weights = [(folder / name / bundle.WEIGHTS).read_bytes() for folder in (models, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_wide_model_is_the_one_that_the_bar_names() -> None:
    wide = streaming_bundles.WIDE
    assert (wide.width, wide.context, wide.stride, wide.chunk, wide.right) == (2048, 9, 2, 10, 20)


def test_the_shipped_bundle_stands_alone(tmp_path: Path) -> None:
    models, name = streaming_bundles.shipped(tmp_path / "models")
    assert bundle.find(models) == [models / name] and bundle.load(models / name).language_model is not None


# The machine


def test_usage_of_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    for pid, name, child in ((1, "a) (b", "2\n"), (2, "c", "")):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(child)
        zeros = " ".join(["0"] * 10)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {zeros} {3 * ticks} {ticks} 77 77")
        (tmp_path / str(pid) / "status").write_text(f"Name:\t{name}\nVmHWM:\t4096 kB\nVmRSS:\t{1024 * pid} kB\n")
    (tmp_path / "stat").write_text(f"cpu  {ticks} {ticks} {ticks} {9 * ticks} {9 * ticks} 0 0 {ticks} 5 5\ncpu0 1\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.busy_seconds() == 4.0
    assert machine.usage(1) == Usage(8.0, 3.0, 8.0)
    assert machine.usage(3) == Usage(0.0, 0.0, 0.0)


def test_facts_of_this_machine() -> None:
    found = machine.facts()
    assert found["cores"] == len(os.sched_getaffinity(0)) and found["torch"] and set(found) >= {"cpu", "cpu_flags"}
    own = machine.usage(os.getpid())
    assert own.cpu_seconds > 0 and 0 < own.resident <= own.peak


# The server

EXPOSITION = """\
# HELP earsight_stage_duration_seconds One stage.
# TYPE earsight_stage_duration_seconds histogram
earsight_stage_duration_seconds_bucket{le="0.1",stage="decoder"} 2.0
earsight_stage_duration_seconds_bucket{le="+Inf",stage="decoder"} 3.0
earsight_stage_duration_seconds_count{stage="decoder"} 3.0
earsight_stage_duration_seconds_sum{stage="decoder"} 1.5
# TYPE earsight_streams gauge
earsight_streams{model="m"} 7.0
# TYPE earsight_final_results_total counter
earsight_final_results_total 4.0
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 9.0
"""


def test_counters() -> None:
    found = server_process.read_counters(EXPOSITION)
    assert found == {
        "earsight_stage_duration_seconds_count decoder": 3.0,
        "earsight_stage_duration_seconds_sum decoder": 1.5,
        "earsight_final_results_total": 4.0,
    }
    before = {"earsight_final_results_total": 4.0, "earsight_stage_duration_seconds_sum decoder": 1.0}
    assert server_process.increase(before, found) == {
        "earsight_stage_duration_seconds_count decoder": 3.0,
        "earsight_stage_duration_seconds_sum decoder": 0.5,
    }


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('on the way'); print('error: no bundles'); raise SystemExit(3)"]
    with pytest.raises(ValueError, match="the server ended with status 3: error: no bundles"):
        server_process.ServerProcess(command, tmp_path / "log")


def test_a_server_without_counters_has_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('listening on 127.0.0.1:1', flush=True); time.sleep(600)"]
    metrics = f"http://127.0.0.1:{server_process.free_port()}/metrics"
    with server_process.ServerProcess(command, tmp_path / "log", metrics) as server:
        assert server.address == "127.0.0.1:1" and server.counters() == {}
        assert server.usage().resident > 0
    with pytest.raises(ValueError, match="the server ended with status -15"):
        server.usage()


def test_the_servers_arguments_are_understood() -> None:
    from asr_server import cli

    args = cli.parser().parse_args(server_process.command(Path("models"), 100, None)[3:])
    assert (args.port, args.models) == (0, [Path("models")])


# The generator

FAKE_SERVER = '''
"""Answers every second chunk and the end; refuses more than MOST calls at once."""
import asyncio, sys
import grpc
from asr_server.wire import speech_pb2 as pb

MOST, live = int(sys.argv[1]), 0

def response(heard, final):
    result = pb.StreamingRecognitionResult(is_final=final)
    result.alternatives.add(transcript=f"{heard} bytes")
    result.result_end_time.FromNanoseconds(heard * 31250)
    return pb.StreamingRecognizeResponse(results=[result])

async def recognize(requests, context):
    global live
    # Behind the first message, because grpc's client can lose a status that meets a message on its way.
    config = (await anext(requests)).streaming_config
    if live >= MOST:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    live += 1
    try:
        heard = 0
        assert config.interim_results and config.config.sample_rate_hertz == 16000
        async for request in requests:
            heard += len(request.audio_content)
            yield pb.StreamingRecognizeResponse(speech_event_type=2)
            if heard % 6400 == 0:
                yield response(heard, False)
        if heard:
            yield response(heard, True)
    finally:
        live -= 1

async def main():
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        recognize, pb.StreamingRecognizeRequest.FromString, pb.StreamingRecognizeResponse.SerializeToString
    )
    name = pb.DESCRIPTOR.services_by_name["Speech"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"StreamingRecognize": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port} (fake)", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
'''


def fake_command(tmp_path: Path, most: int) -> list[str]:
    script = tmp_path / "fake_server.py"
    script.write_text(textwrap.dedent(FAKE_SERVER))
    return [sys.executable, str(script), str(most)]


@pytest.fixture
def fake_server(tmp_path: Path) -> Iterator[str]:
    with server_process.ServerProcess(fake_command(tmp_path, 100), tmp_path / "server.log") as server:
        yield server.address


def ask(server: str, job: dict[str, Any], speech: list[bytes]) -> list[Call]:
    prepared = [load_generator.messages(audio) for audio in speech]
    return asyncio.run(load_generator.answer(job, server, prepared, load_generator.opening("m")))


def test_a_message_carries_a_chunk() -> None:
    audio = CHUNK + b"xy" * 5
    prepared = load_generator.messages(audio)
    found = [pb.StreamingRecognizeRequest.FromString(data).audio_content for data in prepared.chunks]
    assert found == [CHUNK, b"xy" * 5] and prepared.duration == pytest.approx(0.1003125)
    first = pb.StreamingRecognizeRequest.FromString(load_generator.opening("m")).streaming_config
    assert first.config.model == "m" and first.config.encoding == pb.RecognitionConfig.LINEAR16


def test_every_recording_is_streamed_alone_once(fake_server: str) -> None:
    calls = ask(fake_server, {"alone": True}, [CHUNK * 2, CHUNK * 3])
    assert [(call.recording, call.text, call.code) for call in calls] == [
        (0, "6400 bytes", "OK"),
        (1, "9600 bytes", "OK"),
    ]
    ends = [[response.end for response in call.responses] for call in calls]
    assert ends == [[0.2, 0.2], [0.2, 0.3]]  # events are no responses with results


def test_three_streams(fake_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COOL_DOWN", 0.0)
    pace = Pace(3, 0.1, 0.6)
    speech = [CHUNK * 2, CHUNK * 3 + CHUNK[:1600]]
    begin = time.monotonic() + 0.2
    calls = ask(fake_server, {**asdict(pace), "begin": begin}, speech)
    durations = [schedule.seconds_of(audio) for audio in speech]
    turns = [turn for stream in range(3) for turn in pace.turns(stream, durations)]
    assert sorted(Turn(call.recording, call.start) for call in calls) == sorted(turns)
    for call in calls:
        assert call.code == "OK" and call.text == f"{len(speech[call.recording])} bytes"
        assert len(call.late) == len(cut(speech[call.recording])) and min(call.late) >= 0
        assert call.ended >= call.responses[-1].time >= call.end_of_audio  # nothing is sent before it is spoken
        assert call.responses[0].time >= call.start + 0.2
    assert load_generator.call_of(json.loads(json.dumps(asdict(calls[0])))) == calls[0]


def test_a_refused_call_keeps_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COOL_DOWN", 0.0)
    with server_process.ServerProcess(fake_command(tmp_path, 0), tmp_path / "log") as server:
        job = {**asdict(Pace(1, 0.0, 0.2)), "begin": time.monotonic() + 0.2}
        calls = ask(server.address, job, [CHUNK * 5])
    assert [(call.code, call.details, call.responses) for call in calls] == [("RESOURCE_EXHAUSTED", "full", ())]


# pocketsphinx


class FakeDecoder:
    """Hears how many bytes came."""

    def __init__(self, **options: object) -> None:
        self._heard = 0
        self._ended = True

    def start_utt(self) -> None:
        assert self._ended
        self._heard, self._ended = 0, False

    def process_raw(self, data: bytes, no_search: bool, full_utt: bool) -> None:
        assert not (no_search or full_utt or self._ended)
        self._heard += len(data)

    def end_utt(self) -> None:
        self._ended = True

    def hyp(self) -> Any:
        return SimpleNamespace(hypstr=f"{self._heard} bytes") if self._heard else None


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("pocketsphinx")
    vars(module)["Decoder"] = FakeDecoder
    monkeypatch.setitem(sys.modules, "pocketsphinx", module)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.pocketsphinx_peer", raising=False)
    return importlib.import_module("benchmarks.peers.pocketsphinx_peer")


def test_pocketsphinx_takes_chunks_as_they_are_due(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "COOL_DOWN", 0.0)
    due = list(peer.timetable(Pace(2, 0.0, 0.2), [0, 1], [0.25, 0.2]))
    assert [each[1:] for each in due] == [(0, 0, 0), (1, 1, 0), (0, 0, 1), (0, 0, 2), (1, 1, 1)]
    assert [each.time for each in due] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.25])


def test_pocketsphinx_hears_a_level(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(schedule, "COOL_DOWN", 0.0)
    monkeypatch.setattr(peer.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(peer.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    streams = peer.Streams([CHUNK * 2, CHUNK * 3])
    assert peer.answer(streams, {"rtf": True})["texts"] == ["6400 bytes", "9600 bytes"]
    assert peer.answer(streams, {"prepare": 2}) == {}
    job = {"streams": 2, "warm_up": 0.0, "seconds": 0.4, "begin": 100.0, "numbers": [0, 1]}
    found = peer.answer(streams, job)
    # Two end inside the window, at 0.2 and 0.35; two more begin in it and end outside.
    assert found["texts"] == [(0, "6400 bytes"), (1, "9600 bytes")] and found["gave_up"] is False
    assert found["finals"] == pytest.approx([0.0, 0.0], abs=1e-9) and clock[0] == pytest.approx(100.55)


def test_pocketsphinx_that_fell_behind_goes_on(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(peer.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(peer.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds + 3.0))
    streams = peer.Streams([CHUNK * 4])
    job = {"streams": 2, "warm_up": 0.0, "seconds": 0.4, "numbers": [0, 1]}
    peer.answer(streams, {"prepare": 2})
    assert peer.answer(streams, {**job, "begin": 100.0}) == {"finals": [], "texts": [], "gave_up": True}
    monkeypatch.setattr(peer.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    found = peer.answer(streams, {**job, "begin": clock[0]})  # its decoders were in the middle of an utterance
    assert (found["gave_up"], found["texts"]) == (False, [])


def test_pocketsphinx_climbs_to_its_capacity() -> None:
    for start in (1, 3, 5, 9):
        assert sphinx_load.climb(start, lambda streams: streams <= 5) == 5
    assert sphinx_load.climb(3, lambda streams: False) == 0
    assert sphinx_load.deal(5, 2) == [[0, 2, 4], [1, 3]]


class FakeWorker:
    """A process that takes 0.25 s of processor for a second, and is too late from four streams on."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self._request: dict[str, Any] = {}

    def tell(self, request: dict[str, Any]) -> None:
        self._request = request

    def reply(self) -> dict[str, Any]:
        if "rtf" in self._request:
            return {"seconds": 0.25, "texts": ["a b", "x"]}
        if "prepare" in self._request:
            return {}
        assert self._request["begin"] > 0
        finals = [0.7 if self._request["streams"] > 3 else 0.2 for _ in self._request["numbers"]]
        return {"finals": finals, "texts": [], "gave_up": False}

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_pocketsphinx_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sphinx_load, "Worker", FakeWorker)
    speech = [Recording(CHUNK * 5, "a b"), Recording(CHUNK * 5, "c")]
    said: list[sphinx_load.SphinxLevel] = []
    found = sphinx_load.measure(speech, tmp_path / "recordings", 2, Pace(1, 0.0, 1.0), 500, said.append)
    assert (found.streams, found.real_time_factor) == (3, 0.25)
    assert found.wer == pytest.approx(100 / 3)
    assert [level.streams for level in found.levels] == [8, 7, 6, 5, 4, 3] and tuple(said) == found.levels
    assert (found.levels[0].final_p95, found.levels[-1].final_p95) == (700, 200)


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    with Worker("benchmarks.load_generator", ["--nonsense"], tmp_path / "log") as worker:
        with pytest.raises(ValueError, match=r"benchmarks.load_generator ended with status 2: .*required"):
            worker.ask({})


# The program


def test_it_runs_and_prints_its_figures(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fake_command(tmp_path, 4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(streaming, "command", lambda models, calls, port: fake)
    monkeypatch.setattr(levels, "LATE", math.inf)  # how late a busy machine is, is not what is tested
    monkeypatch.setattr(sphinx_load, "installed", lambda: False)
    arguments = ["--manifest", str(manifest), "--loads", "bundled", "--levels", "1,2,9,99", "--limit", "1e9", "--json"]
    assert streaming.main([*arguments, "--seconds", "0.6", "--warmup", "0.2"]) == 0
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert found["streams_bundled"] == 2 and "streams_2048" not in found
    assert "MISSED streams of the shipped model" in output and "pocketsphinx is not installed" in output
    one, two, nine = found["levels_bundled"]
    assert (one["streams"], two["streams"], nine["streams"]) == (1, 2, 9)
    assert "RESOURCE_EXHAUSTED: full" in nine["failed"] and one["failed"] == two["failed"] == {}
    for level in (one, two):
        assert level["transcripts_equal"] == 1 and level["finals"] > 0 and level["chunks"] > 0
        assert level["interim_p99"] >= level["interim_p50"] and level["final_p99"] >= level["final_p50"] > 0
        assert level["server_rss_mb"] > 0 and level["wer"] == level["wer_alone"] == 100.0
    assert one["mb_per_stream"] is None and found["machine"]["cores"] >= 1


def test_what_cannot_be_served_is_one_line(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fake_command(tmp_path, 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(streaming, "command", lambda models, calls, port: fake)
    with pytest.raises(SystemExit) as stopped:
        streaming.main(["--manifest", str(manifest), "--loads", "bundled"])
    assert stopped.value.code == 2
    assert "of 3 recordings streamed alone failed: " in capsys.readouterr().err


def test_json_has_no_infinities() -> None:
    assert streaming.rounded({"a": (math.inf, 1.23456), "b": 3}) == {"a": [None, 1.2346], "b": 3}


def test_numbers_of_streams() -> None:
    assert streaming.numbers("1,64") == [1, 64]
    for wrong in ("", "0", "1,-2", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole numbers of streams"):
            streaming.numbers(wrong)


def test_its_processes_need_no_framework() -> None:
    """The generator shares the machine with the server: it must not carry torch around."""
    code = "import sys, benchmarks.load_generator; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
