"""What can be set about a server. Plain data: reading it loads no model and no framework."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from asr_server.operations import OperationLimits
from asr_server.security_options import SecurityOptions

PRECISIONS = ("fp32", "bf16", "int8")
LONGEST = 7 * 24 * 3600.0  # seconds; gRPC counts milliseconds in 32 bits


@dataclass(frozen=True)
class BatchOptions:
    """How streams share steps (batching.py). Times in seconds."""

    max_batch: int = 64  # streams in a step
    target: float = 0.08  # a step takes no more streams than pass the line in this time
    live: float = 0.06  # how long audio that is being spoken may wait for company
    final: float = 0.02  # how long the end of an utterance may wait
    bulk: float = 0.5  # how long recordings sent at once may wait

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.target <= 0 or min(self.live, self.final, self.bulk) < 0:
            raise ValueError(
                f"max_batch {self.max_batch}, target {self.target}, live {self.live}, final {self.final}, "
                f"bulk {self.bulk}: at least one stream, a target above 0, waits that are not negative"
            )


@dataclass(frozen=True)
class Limits:
    """What one speech call may take."""

    content_bytes: int = 10 << 20  # of a unary request
    unary_seconds: float = 600.0
    stream_seconds: float = 4 * 3600.0
    idle_seconds: float = 60.0  # between two messages of a stream
    stall_seconds: float = 60.0  # for a caller to take a response, when those before it fill the connection's window
    ahead_seconds: float = 10.0  # of audio that a caller may be ahead of the recognizer; then it is read no further
    lag_seconds: float = 2.0  # by which the engine may be late before new calls are refused
    calls: int = 256  # at once; more are refused, because queueing would only make all of them late


@dataclass(frozen=True)
class VisionLimits:
    """What the vision services take in, all contracts together, and how images share batches."""

    images: int = 64  # accepted and not yet answered; single calls beyond them are refused, streams wait
    decoders: int = 2  # images decoded at once; each needs up to 880 MB
    batch: int = 16  # images at most
    delay_seconds: float = 0.003  # that an image may wait for company (docs/vision-api.md); 0: never

    def __post_init__(self) -> None:
        if min(self.images, self.decoders, self.batch) < 1:
            raise ValueError(
                f"images {self.images}, decoders {self.decoders} and batch {self.batch} of vision must be at least 1"
            )
        if not 0 <= self.delay_seconds <= 1:
            raise ValueError(f"the delay of vision's batches is {self.delay_seconds}: 0 to 1 second")


@dataclass(frozen=True)
class Telemetry:
    """What operators get to see."""

    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # of the Prometheus endpoint; None: none, 0: any free one
    trace_endpoint: str | None = None  # of an OTLP collector, http://HOST:4317


@dataclass(frozen=True)
class ServerOptions:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one
    models: tuple[Path, ...] = ()  # folders that hold bundles of both kinds; none: the shipped ones
    registry: Path | None = None  # where vision bundles are kept that clients register; None: they may not
    model_control: bool = False  # clients may load and unload vision models
    default_model: str | None = None  # for requests that name none; None: the shipped default, or else the first
    language_models: tuple[Path, ...] = ()  # folders of KenLM files that calls can name
    precision: str = "auto"  # of the network's products: PRECISIONS, or what this machine computes fastest
    vision_precision: str = "auto"  # of vision networks: vision_zoo.precision.PRECISIONS, or the fastest here
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # of the network and the searches
    message_bytes: int = 32 << 20  # largest message taken in
    keepalive_seconds: float = 30.0  # between two pings that find out whether a silent client is still there
    drain_seconds: float = 10.0  # for calls in progress when the server is told to stop
    reload_seconds: float = 10.0  # between looks at the models' folders; 0: only on SIGHUP
    limits: Limits = field(default_factory=Limits)
    vision_limits: VisionLimits = field(default_factory=VisionLimits)
    audio_folder: Path | None = None  # whose files LongRunningRecognize may read as file:// uris
    operations: OperationLimits = field(default_factory=OperationLimits)
    batching: BatchOptions = field(default_factory=BatchOptions)
    security: SecurityOptions = field(default_factory=SecurityOptions)
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} must be between 0 and 65535")
        if self.threads < 1 or self.limits.calls < 1:
            raise ValueError(f"threads {self.threads} and calls {self.limits.calls} must be at least 1")
        limits, metrics_port = self.limits, self.telemetry.metrics_port
        if not 0 <= (metrics_port or 0) <= 65535:
            raise ValueError(f"metrics port {metrics_port} must be between 0 and 65535")
        if not 0 < self.message_bytes < 1 << 31:
            raise ValueError(f"message_bytes {self.message_bytes} must be above 0 and below {1 << 31}")
        times = {name: value for name, value in vars(limits).items() if name.endswith("seconds")}
        times["keepalive_seconds"] = self.keepalive_seconds
        for name, value in times.items():
            if not 0 < value <= LONGEST:
                raise ValueError(f"{name} {value:g} must be above 0 and at most {LONGEST:g}")
        for name, value in (("drain_seconds", self.drain_seconds), ("reload_seconds", self.reload_seconds)):
            if not 0 <= value <= LONGEST:
                raise ValueError(f"{name} {value:g} must be between 0 and {LONGEST:g}")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}. Select one of {('auto', *PRECISIONS)}")


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    address: str  # HOST:PORT
    speech_models: tuple[str, ...]
    vision_models: tuple[str, ...]
    metrics_port: int | None = None  # of the Prometheus endpoint
