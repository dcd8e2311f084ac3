"""What can be set about a server. Plain data: reading it loads no model and no framework."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What one speech call may take."""

    content_bytes: int = 10 << 20  # of a unary request
    unary_seconds: float = 600.0
    stream_seconds: float = 4 * 3600.0
    idle_seconds: float = 60.0  # between two messages of a stream
    calls: int = 200  # at once; more are refused, because queueing would only make all of them late


@dataclass(frozen=True)
class ServerOptions:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one
    models: tuple[Path, ...] = ()  # folders that hold bundles of both kinds; none: the shipped ones
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # that work on speech
    message_bytes: int = 32 << 20  # largest message taken in
    drain_seconds: float = 10.0  # for calls in progress when the server is told to stop
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port} must be between 0 and 65535")
        if self.threads < 1 or self.limits.calls < 1:
            raise ValueError(f"threads {self.threads} and calls {self.limits.calls} must be at least 1")


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    address: str  # HOST:PORT
    speech_models: tuple[str, ...]
    vision_models: tuple[str, ...]
