"""What a server counts, for Prometheus.

One `Metrics` a server, with a registry of its own, so that two servers in one process do not meet. Every method is
a few microseconds of plain Python under prometheus_client's locks: the inference thread and the event loop call them
directly. Names and units: https://prometheus.io/docs/practices/naming/.

Label values are bounded by what the operator has loaded and registered, never by what a client sends: models are
names of loaded bundles, methods are registered ones or "unknown", codes are gRPC's seventeen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Stage: TypeAlias = Literal["features", "acoustic_model", "decoder", "endpoint"]
Reason: TypeAlias = Literal["overload", "draining", "unauthenticated", "forbidden", "quota"]
Kind: TypeAlias = Literal["speech", "language_model"]

# 1 ms to 10 s, close together around 500 ms, which final latencies are judged by.
LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2, 5, 10)
# Calls last from a health check to a stream of hours.
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

UNKNOWN_METHOD = "unknown"


class Model(NamedTuple):
    """A loaded bundle, as the labels of earsight_model_info."""

    name: str
    version: str
    kind: Kind


class Counts(NamedTuple):
    """What a loaded model has counted by itself: metric name -> value."""

    model: str
    version: str
    values: Mapping[str, float]


class Stepped(Protocol):
    """What a step reports of itself: seconds of audio, and seconds of work by Stage."""

    @property
    def audio(self) -> float: ...

    @property
    def seconds(self) -> Mapping[str, float]: ...


class Metrics:
    """The counters of one server. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._open_streams(self.registry)
        self._open_engine(self.registry)
        self._open_calls(self.registry)
        self._loaded: frozenset[Model] = frozenset()

    def _open_streams(self, registry: CollectorRegistry) -> None:
        self._streams = Gauge(
            "earsight_streams", "Streams of audio that are being recognised now.", ["model"], registry=registry
        )
        self._audio = Counter(
            "earsight_audio_seconds", "Seconds of audio taken in, after decoding.", ["model"], registry=registry
        )
        self._interims = Counter("earsight_interim_results", "Interim results handed out.", registry=registry)
        self._finals = Counter("earsight_final_results", "Final results handed out.", registry=registry)
        self._final_latency = Histogram(
            "earsight_final_latency_seconds",
            "Time from the last audio received to the final result handed out.",
            buckets=LATENCIES,
            registry=registry,
        )

    def _open_engine(self, registry: CollectorRegistry) -> None:
        self._processing = Counter(
            "earsight_processing_seconds",
            "Seconds that the inference thread spent in steps. The real-time factor is "
            "rate(earsight_processing_seconds_total) / rate(earsight_processed_audio_seconds_total).",
            ["model"],
            registry=registry,
        )
        self._processed = Counter(
            "earsight_processed_audio_seconds",
            "Seconds of audio that steps have worked through, summed over their streams.",
            ["model"],
            registry=registry,
        )
        self._batch = Histogram(
            "earsight_batch_streams", "Streams that shared one step.", ["model"], buckets=BATCHES, registry=registry
        )
        self._step = Histogram(
            "earsight_step_duration_seconds", "One step of a batch.", ["model"], buckets=LATENCIES, registry=registry
        )
        self._stage = Histogram(
            "earsight_stage_duration_seconds",
            "One stage of one step: features, acoustic_model, decoder or endpoint.",
            ["stage"],
            buckets=LATENCIES,
            registry=registry,
        )
        for stage in get_args(Stage):  # a series that is there from the start can be compared with
            self._stage.labels(stage)
        self._queue = Gauge("earsight_queue_streams", "Streams that wait for a step now.", registry=registry)
        self._waited = Histogram(
            "earsight_queue_wait_seconds",
            "Time from a stream's audio being ready to the start of its step.",
            buckets=LATENCIES,
            registry=registry,
        )

    def _open_calls(self, registry: CollectorRegistry) -> None:
        self._rejected = Counter(
            "earsight_rejected",
            "Calls turned away: overload, draining, unauthenticated, forbidden (by the client's token) or quota.",
            ["reason"],
            registry=registry,
        )
        for reason in get_args(Reason):
            self._rejected.labels(reason)
        self._calls = Gauge(
            "earsight_rpcs_in_progress", "Calls that have begun and not ended.", ["method"], registry=registry
        )
        self._ended = Counter(
            "earsight_rpcs",
            "Calls that have ended, by method and gRPC status code.",
            ["method", "code"],
            registry=registry,
        )
        self._durations = Histogram(
            "earsight_rpc_duration_seconds",
            "Time from a call's beginning to its end, of streams too.",
            ["method"],
            buckets=DURATIONS,
            registry=registry,
        )
        self._reloads = Counter(
            "earsight_reloads",
            "Attempts to load, replace or remove a bundle or language model; result is ok or failed.",
            ["kind", "result"],
            registry=registry,
        )
        for kind in get_args(Kind):
            for result in ("ok", "failed"):
                self._reloads.labels(kind, result)
        self._models = Gauge(
            "earsight_model_info", "1 for every version that is loaded.", Model._fields, registry=registry
        )

    def streams_open(self, model: str, delta: int) -> None:
        """+1 where a stream begins, -1 where it ends."""
        self._streams.labels(model).inc(delta)

    def audio(self, model: str, seconds: float) -> None:
        self._audio.labels(model).inc(seconds)

    def interims(self, count: int = 1) -> None:
        self._interims.inc(count)

    def finals(self, count: int = 1) -> None:
        self._finals.inc(count)

    def final_latency(self, seconds: float) -> None:
        self._final_latency.observe(seconds)

    def step(
        self, model: str, streams: int, seconds: float, audio_seconds: float, stage_seconds: Mapping[str, float]
    ) -> None:
        """One step over a batch: seconds it took, seconds of audio of all its streams together."""
        self._processing.labels(model).inc(seconds)
        self._processed.labels(model).inc(audio_seconds)
        self._batch.labels(model).observe(streams)
        self._step.labels(model).observe(seconds)
        for stage, value in stage_seconds.items():
            self._stage.labels(stage).observe(value)

    def stepped(self, model: str, streams: int, step: Stepped, waited: Sequence[float]) -> None:
        """As an observer of the scheduler: `step` and `waited` of each stream in one."""
        self.step(model, streams, sum(step.seconds.values()), step.audio, step.seconds)
        for seconds in waited:
            self.waited(seconds)

    def queue_of(self, length: Callable[[], int]) -> None:
        """What is asked at each scrape."""
        self._queue.set_function(length)

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def rejected(self, reason: Reason) -> None:
        self._rejected.labels(reason).inc()

    def rpc_begins(self, method: str) -> None:
        self._calls.labels(method).inc()

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """The end of a call that `rpc_begins` was told of. code: a name as DEADLINE_EXCEEDED."""
        self._calls.labels(method).dec()
        self._ended.labels(method, code).inc()
        self._durations.labels(method).observe(seconds)

    def reload(self, kind: Kind, ok: bool) -> None:
        self._reloads.labels(kind, "ok" if ok else "failed").inc()

    def models(self, loaded: Iterable[Model]) -> None:
        """All that is loaded now; what was loaded before and is not among it leaves the exposition."""
        now = frozenset(loaded)
        # New ones first: a scrape in between may see both versions, but never none.
        for model in now:
            self._models.labels(*model).set(1)
        for model in self._loaded - now:
            self._models.remove(*model)
        self._loaded = now

    def read_at_scrapes(self, descriptions: Mapping[str, str], read: Callable[[], Iterable[Counts]]) -> None:
        """Metrics that models count by themselves, under names that need not be ours. descriptions: of every name."""
        self.registry.register(_Reader(descriptions, read))


class _Reader(Collector):
    def __init__(self, descriptions: Mapping[str, str], read: Callable[[], Iterable[Counts]]) -> None:
        self._descriptions, self._read = descriptions, read

    def collect(self) -> Iterator[Metric]:
        counts = list(self._read())
        for name, description in self._descriptions.items():
            # Untyped, because the name of a counter would have to end in _total; rate() does not mind.
            metric = Metric(name, description, "unknown")
            for each in counts:
                metric.add_sample(name, {"model": each.model, "version": each.version}, each.values[name])
            yield metric
