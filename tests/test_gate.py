"""Who is let in, and with what status a call ends; a context that only notes what it is told."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest

from asr_server.gate import Gate, StatusError, status_of
from asr_server.metrics import Metrics
from asr_server.options import Limits
from asr_server.quotas import QuotaError
from asr_server.session import Line

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class AbortedError(Exception):
    """What `abort` raises, as grpc's does."""


class FakeContext:
    """A call's."""

    def __init__(self) -> None:
        self.ended: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.ended = code, details
        raise AbortedError


class FakeLine:
    """A line that is late by as much as it is told, which is its own scheduler."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.scheduler = self


def gate(line: FakeLine | None = None, **limits: Any) -> Gate:
    return Gate(cast(Line, line or FakeLine()), Limits(**limits), Metrics())


async def call(gate: Gate, error: Exception | None = None) -> tuple[grpc.StatusCode, str] | None:
    """How a call ends that raises this; None: well."""
    context = FakeContext()
    try:
        async with gate.answering(cast(Any, context)):
            if error:
                raise error
    except AbortedError:
        pass
    return context.ended


def test_calls_over_the_limit_are_refused_until_one_ends() -> None:
    full = gate(calls=2)

    async def work() -> None:
        async with full.answering(cast(Any, FakeContext())):
            assert await call(full) is None
            async with full.answering(cast(Any, FakeContext())):
                text = "2 calls are in progress, which is the limit. Try later."
                assert await call(full) == (RESOURCE_EXHAUSTED, text)
                assert await call(full) == (RESOURCE_EXHAUSTED, text)  # a refused one takes no place
            assert await call(full) is None

    asyncio.run(work())


def test_nobody_is_let_in_while_the_engine_is_late() -> None:
    line = FakeLine()
    late = gate(line, lag_seconds=1.5)

    async def work() -> None:
        line.lag = 1.5
        assert await call(late) is None
        line.lag = 1.75
        assert await call(late) == (
            RESOURCE_EXHAUSTED,
            "The server is 1.8 seconds behind, more than 1.5. Try later.",
        )
        line.lag = 0.0
        assert await call(late) is None

    asyncio.run(work())


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("wrong"), grpc.StatusCode.INVALID_ARGUMENT, "wrong"),
        (StatusError(grpc.StatusCode.OUT_OF_RANGE, "late"), grpc.StatusCode.OUT_OF_RANGE, "late"),
        (RuntimeError("ours"), grpc.StatusCode.INTERNAL, "The server failed on this call; its log says why."),
    ],
)
def test_errors_become_statuses_and_free_their_place(error: Exception, code: grpc.StatusCode, text: str) -> None:
    one = gate(calls=1)

    async def work() -> None:
        assert await call(one, error) == (code, text)
        assert await call(one) is None

    asyncio.run(work())


def test_a_spent_quota_is_left_to_the_interceptor() -> None:
    one = gate(calls=1)

    async def work() -> None:
        with pytest.raises(QuotaError, match="spent"):
            await call(one, QuotaError("spent", 3.0))
        assert await call(one) is None

    asyncio.run(work())


def test_long_errors_are_cut() -> None:
    """gRPC drops a status whose text does not fit into the metadata."""
    code, text = status_of(ValueError("x" * 100_000))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert len(text) < 1100
    assert text.endswith("...")
