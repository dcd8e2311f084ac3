"""What is counted, read back as a scrape would see it."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.request import Request, urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from asr_server.metrics import Counts, Metrics, Model
from asr_server.metrics_http import serve_metrics


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_step_gives_the_real_time_factor_and_its_parts() -> None:
    metrics = Metrics()
    metrics.step("en", 3, 0.04, 0.6, {"acoustic_model": 0.03, "decoder": 0.008})
    metrics.step("en", 1, 0.02, 0.2, {"acoustic_model": 0.02})
    metrics.step("de", 1, 1.0, 0.2, {})
    processing = value(metrics, "earsight_processing_seconds_total", model="en")
    audio = value(metrics, "earsight_processed_audio_seconds_total", model="en")
    assert processing == pytest.approx(0.06) and audio == pytest.approx(0.8)
    assert value(metrics, "earsight_batch_streams_sum", model="en") == 4
    assert value(metrics, "earsight_batch_streams_bucket", model="en", le="2.0") == 1
    assert value(metrics, "earsight_step_duration_seconds_bucket", model="en", le="0.02") == 1
    assert value(metrics, "earsight_stage_duration_seconds_sum", stage="acoustic_model") == pytest.approx(0.05)
    assert value(metrics, "earsight_stage_duration_seconds_count", stage="decoder") == 1
    assert value(metrics, "earsight_stage_duration_seconds_count", stage="endpoint") == 0


@dataclass
class Step:
    audio: float
    seconds: dict[str, float]


def test_the_schedulers_observer() -> None:
    metrics = Metrics()
    metrics.stepped("en", 2, Step(0.4, {"features": 0.01, "decoder": 0.02}), [0.004, 0.3])
    assert value(metrics, "earsight_processing_seconds_total", model="en") == pytest.approx(0.03)
    assert value(metrics, "earsight_processed_audio_seconds_total", model="en") == 0.4
    assert value(metrics, "earsight_batch_streams_sum", model="en") == 2
    assert value(metrics, "earsight_stage_duration_seconds_sum", stage="decoder") == 0.02
    assert value(metrics, "earsight_queue_wait_seconds_count") == 2
    assert value(metrics, "earsight_queue_wait_seconds_sum") == pytest.approx(0.304)


def test_streams_audio_queue_and_results() -> None:
    metrics = Metrics()
    metrics.streams_open("en", 1)
    metrics.streams_open("en", 1)
    metrics.streams_open("en", -1)
    metrics.audio("en", 0.5)
    metrics.audio("en", 0.25)
    metrics.queue_of(lambda: 4)
    metrics.waited(0.004)
    metrics.final_latency(0.2)
    metrics.interims()
    metrics.interims(2)
    metrics.finals()
    assert value(metrics, "earsight_streams", model="en") == 1
    assert value(metrics, "earsight_audio_seconds_total", model="en") == 0.75
    assert value(metrics, "earsight_queue_streams") == 4
    assert value(metrics, "earsight_queue_wait_seconds_bucket", le="0.005") == 1
    assert value(metrics, "earsight_queue_wait_seconds_bucket", le="0.002") == 0
    assert value(metrics, "earsight_final_latency_seconds_bucket", le="0.2") == 1
    assert value(metrics, "earsight_final_latency_seconds_bucket", le="0.15") == 0
    assert value(metrics, "earsight_interim_results_total") == 3
    assert value(metrics, "earsight_final_results_total") == 1


def test_calls_and_refusals() -> None:
    metrics = Metrics()
    metrics.rpc_begins("/a.S/M")
    metrics.rpc_begins("/a.S/M")
    metrics.rpc("/a.S/M", "OK", 0.2)
    metrics.rejected("overload")
    assert value(metrics, "earsight_rpcs_in_progress", method="/a.S/M") == 1
    assert value(metrics, "earsight_rpcs_total", method="/a.S/M", code="OK") == 1
    assert value(metrics, "earsight_rpc_duration_seconds_sum", method="/a.S/M") == 0.2
    assert value(metrics, "earsight_rejected_total", reason="overload") == 1
    # A series that is there from the start is one that an alert can compare with.
    assert value(metrics, "earsight_rejected_total", reason="quota") == 0


def test_models_come_and_go() -> None:
    metrics = Metrics()
    old, new, other = Model("en", "1", "speech"), Model("en", "2", "speech"), Model("cat", "1", "language_model")
    metrics.models([old, other])
    metrics.models([new, other])
    metrics.reload("speech", True)
    metrics.reload("speech", False)
    seen = {tuple(value(metrics, "earsight_model_info", **each._asdict()) for each in (old, new, other))}
    assert seen == {(None, 1, 1)}
    assert value(metrics, "earsight_reloads_total", kind="speech", result="ok") == 1
    assert value(metrics, "earsight_reloads_total", kind="speech", result="failed") == 1


def test_what_models_count_by_themselves_is_read_at_each_scrape() -> None:
    metrics, counted = Metrics(), [Counts("cats", "1", {"nv_inference_count": 3})]
    metrics.read_at_scrapes({"nv_inference_count": "Images that the model has computed."}, lambda: counted)
    assert value(metrics, "nv_inference_count", model="cats", version="1") == 3
    counted[:] = [Counts("cats", "2", {"nv_inference_count": 5})]
    text = generate_latest(metrics.registry).decode()
    assert "# TYPE nv_inference_count untyped" in text and 'nv_inference_count{model="cats",version="2"} 5.0' in text
    assert 'version="1"' not in text
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    assert b"# TYPE nv_inference_count unknown" in encode(metrics.registry)


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.finals()
    assert value(first, "earsight_final_results_total") == 1
    assert value(second, "earsight_final_results_total") == 0


def test_every_name_follows_the_conventions_and_has_a_help() -> None:
    metrics = Metrics()
    families = [each for each in metrics.registry.collect() if each.name.startswith("earsight_")]
    assert len(families) == 18
    assert all(each.documentation.endswith(".") for each in families)
    histograms = {each.name for each in families if each.type == "histogram"}
    assert {name for name in histograms if not name.endswith("_seconds")} == {"earsight_batch_streams"}
    names = {each.name for each in metrics.registry.collect()}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_gc_collections", "python_info"} <= names


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(500):
            metrics.step("en", 2, 0.001, 0.1, {"decoder": 0.001})
            metrics.streams_open("en", 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "earsight_streams", model="en") == 2000
    assert value(metrics, "earsight_batch_streams_sum", model="en") == 4000


def scrape(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}


def test_a_scrape_over_http() -> None:
    metrics = Metrics()
    with serve_metrics(metrics, "127.0.0.1", 0) as port:
        lengths = iter((3, 5, 5))
        metrics.queue_of(lambda: next(lengths))
        assert scrape(port)["earsight_queue_streams"] == 3
        assert scrape(port)["earsight_queue_streams"] == 5
        with urlopen(Request(f"http://127.0.0.1:{port}/", headers={"Accept-Encoding": "gzip"}), timeout=10) as reply:
            assert b"earsight_queue_streams 5.0" in gzip.decompress(reply.read())


def test_the_endpoint_is_gone_with_its_context() -> None:
    before = threading.active_count()
    with serve_metrics(Metrics(), "127.0.0.1", 0) as port:
        assert threading.active_count() == before + 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    assert threading.active_count() == before
    with serve_metrics(Metrics(), "127.0.0.1", port) as again:
        assert again == port


def test_a_taken_port_is_one_line() -> None:
    with serve_metrics(Metrics(), "127.0.0.1", 0) as port:
        with pytest.raises(ValueError, match=rf"^metrics cannot be served on 127\.0\.0\.1:{port}: .+") as caught:
            with serve_metrics(Metrics(), "127.0.0.1", port):
                pass
    assert "\n" not in str(caught.value)


def test_a_host_that_is_none_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"metrics cannot be served on 203\.0\.113\.1:0"):
        with serve_metrics(Metrics(), "203.0.113.1", 0):
            pass


def test_a_silent_peer_and_one_that_hangs_up_stop_nobody() -> None:
    metrics = Metrics()
    with serve_metrics(metrics, "127.0.0.1", 0) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            gone = HTTPConnection("127.0.0.1", port, timeout=10)
            gone.request("GET", "/metrics")
            gone.close()
            assert "earsight_queue_streams" in scrape(port)
        deadline = time.monotonic() + 20
        while any("process_request" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "a connection that was closed keeps its thread"
            time.sleep(0.01)


def test_the_exposition_is_what_the_registry_holds() -> None:
    metrics = Metrics()
    metrics.rejected("quota")
    assert b'earsight_rejected_total{reason="quota"} 1.0' in generate_latest(metrics.registry)
