"""What a client may take: streams at once, requests a minute, seconds of audio an hour.

An account belongs to a client's name, whatever number of connections and tokens it uses, and outlives a change of its
quotas. Rates are leaky buckets used as meters: what was taken drains away at the quota's rate, and something more is
granted while it fits under the quota. So a client that was idle may take a whole period's worth at once, and over a
long time never gets more than the rate. The clock is monotonic: setting the system's time changes nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields

Clock = Callable[[], float]  # seconds since any moment, never backwards

MINUTE = 60.0
HOUR = 3600.0
_ROUNDING = 1e-9  # of a quota: what sums of many small charges may be off


class QuotaError(Exception):
    """A client asked for more than its quota. `retry_after`: seconds, None where waiting alone will not help."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Quotas:
    """None: as much as the server's own limits allow. ValueError for what could never be granted."""

    streams: int | None = None  # speech calls at once, unary ones too
    requests_per_minute: float | None = None  # calls begun, of any kind
    audio_seconds_per_hour: float | None = None  # of audio, summed over channels as the speech service charges it

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
                raise ValueError(
                    f"quota {item.name} is {value!r}: give a number of at least 1, or leave it out for none"
                )
            if item.name == "streams" and not isinstance(value, int):
                raise ValueError(f"quota streams is {value!r}: give a whole number")


class _Meter:
    """A leaky bucket. Only what was used is kept, so that a new limit needs no conversion of the old state."""

    def __init__(self, period: float, clock: Clock) -> None:
        self._period = period
        self._clock = clock
        self._used = 0.0
        self._at = clock()

    def take(self, amount: float, limit: float) -> float:
        """0 when `amount` was taken, otherwise the seconds until it would fit (inf: never)."""
        now = self._clock()
        self._used = max(0.0, self._used - (now - self._at) * limit / self._period)
        self._at = now
        if amount > limit:
            return math.inf
        excess = self._used + amount - limit
        if excess > _ROUNDING * limit:
            return excess * self._period / limit
        self._used += amount
        return 0.0


class Account:
    """What one client has taken. Its methods may be called from any thread."""

    def __init__(self, name: str, quotas: Quotas, clock: Clock = time.monotonic) -> None:
        self.name = name
        self.quotas = quotas  # may be replaced at any time; what was taken stays taken
        self._lock = threading.Lock()
        self._streams = 0
        self._requests = _Meter(MINUTE, clock)
        self._audio = _Meter(HOUR, clock)

    @property
    def open_streams(self) -> int:
        return self._streams

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Holds one of the client's streams. QuotaError when all are taken."""
        with self._lock:
            limit = self.quotas.streams
            if limit is not None and self._streams >= limit:
                raise QuotaError(
                    f"Quota streams of client '{self.name}': {self._streams} calls are in progress and {limit} may be. "
                    "Try again when one of them has ended."
                )
            self._streams += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams -= 1

    def count_request(self) -> None:
        """QuotaError when this minute's requests are spent; a refused one is not counted."""
        limit = self.quotas.requests_per_minute
        self._take(self._requests, 1.0, limit, "requests_per_minute")

    def charge_audio(self, seconds: float) -> None:
        """QuotaError when this hour's audio is spent; what is refused is not charged."""
        limit = self.quotas.audio_seconds_per_hour
        self._take(self._audio, seconds, limit, "audio_seconds_per_hour")

    def _take(self, meter: _Meter, amount: float, limit: float | None, quota: str) -> None:
        if limit is None:
            return
        with self._lock:
            wait = meter.take(amount, limit)
        if wait == math.inf:
            raise QuotaError(
                f"Quota {quota} of client '{self.name}': {amount:g} at once is more than all of {limit:g}."
            )
        if wait:
            raise QuotaError(
                f"Quota {quota} of client '{self.name}': all of {limit:g} is used. "
                f"Try again in {math.ceil(wait)} seconds.",
                wait,
            )


@dataclass(frozen=True)
class Client:
    """Who calls: a name for logs and metrics, and the account that the call is charged to."""

    name: str
    quota: Account = field(compare=False, repr=False)
    services: frozenset[str] | None = None  # full names of what it may call; None: everything

    def may_call(self, service: str) -> bool:
        return self.services is None or service in self.services


def without_quota(name: str) -> Client:
    return Client(name, Account(name, Quotas()))


ANONYMOUS = without_quota("anonymous")  # has no quotas, so nothing accumulates in its account

# Set for each call before its handler runs. The default serves tests and code that runs outside of a call.
CURRENT: ContextVar[Client] = ContextVar("asr_server_client", default=ANONYMOUS)


class Accounts:
    """Accounts by client name. A name that leaves is forgotten; its live streams still end on the account they hold."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def update(self, quotas: Mapping[str, Quotas]) -> Mapping[str, Account]:
        """The accounts of these clients, known ones with what they have used and the limits given now."""
        accounts = {}
        for name, limits in quotas.items():
            account = self._accounts.get(name) or Account(name, limits, self._clock)
            account.quotas = limits
            accounts[name] = account
        self._accounts = accounts
        return accounts
