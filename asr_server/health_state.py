"""gRPC's health service, whose watches end where the server stops.

A balancer watches for as long as its connection lasts, and a server that drains waits for the calls in progress.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2

_STOPPING = "The server is stopping."


class HealthState(health.aio.HealthServicer):  # type: ignore[misc]  # which has no types
    """As grpc_health's. After `enter_graceful_shutdown`, and when watchers had time to read of it, `end_watches`."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()
        self._ended = False

    async def Watch(  # noqa: N802 (the method's name on the wire)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if self._ended:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STOPPING)
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            if not self._ended:  # by the caller
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STOPPING)
        finally:
            self._watches.discard(watch)

    def end_watches(self) -> None:
        self._ended = True
        for watch in self._watches:
            watch.cancel()
