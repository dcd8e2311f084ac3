"""Accounts on a clock that the test turns."""

from __future__ import annotations

import threading

import pytest

from asr_server.quotas import Account, Accounts, QuotaError, Quotas


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_requests_come_back_at_the_rate() -> None:
    clock = Clock()
    account = Account("a", Quotas(requests_per_minute=6), clock)
    for _ in range(6):
        account.count_request()
    with pytest.raises(
        QuotaError, match=r"requests_per_minute of client 'a': all of 6 is used.*in 10 seconds"
    ) as error:
        account.count_request()
    assert error.value.retry_after == pytest.approx(10)
    clock.now += 9.9
    with pytest.raises(QuotaError, match="in 1 seconds"):
        account.count_request()
    clock.now += 0.1
    account.count_request()
    with pytest.raises(QuotaError):
        account.count_request()


def test_an_idle_client_saves_one_period_and_no_more() -> None:
    clock = Clock()
    account = Account("a", Quotas(requests_per_minute=2), clock)
    clock.now += 3600
    account.count_request()
    account.count_request()
    with pytest.raises(QuotaError):
        account.count_request()


def test_audio_is_charged_in_any_pieces() -> None:
    clock = Clock()
    account = Account("a", Quotas(audio_seconds_per_hour=60), clock)
    for _ in range(600):  # 0.1 has no exact binary form
        account.charge_audio(0.1)
    with pytest.raises(QuotaError, match="audio_seconds_per_hour") as error:
        account.charge_audio(0.5)
    assert error.value.retry_after == pytest.approx(30)
    clock.now += 30
    account.charge_audio(0.5)


def test_what_is_refused_is_not_charged() -> None:
    account = Account("a", Quotas(audio_seconds_per_hour=10), Clock())
    account.charge_audio(8)
    with pytest.raises(QuotaError):
        account.charge_audio(3)
    account.charge_audio(2)


def test_more_at_once_than_the_quota_never_fits() -> None:
    account = Account("a", Quotas(audio_seconds_per_hour=10), Clock())
    with pytest.raises(QuotaError, match="11 at once is more than all of 10") as error:
        account.charge_audio(11)
    assert error.value.retry_after is None


def test_streams_are_given_back_however_they_end() -> None:
    account = Account("a", Quotas(streams=1))

    def fail() -> None:
        with account.stream():
            assert account.open_streams == 1
            with pytest.raises(QuotaError, match=r"streams of client 'a': 1 calls .* 1 may be"), account.stream():
                pass
            assert account.open_streams == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert account.open_streams == 0
    with account.stream():
        pass


def test_without_quotas_everything_passes() -> None:
    account = Account("a", Quotas())
    with account.stream(), account.stream():
        for _ in range(1000):
            account.count_request()
            account.charge_audio(1e6)
    assert account.open_streams == 0


def test_what_was_taken_outlives_new_limits() -> None:
    clock = Clock()
    accounts = Accounts(clock)
    first = accounts.update({"a": Quotas(audio_seconds_per_hour=10), "b": Quotas()})["a"]
    first.charge_audio(10)
    second = accounts.update({"a": Quotas(audio_seconds_per_hour=12)})["a"]
    assert second is first
    second.charge_audio(2)
    with pytest.raises(QuotaError, match="all of 12"):
        second.charge_audio(1)
    accounts.update({"a": Quotas()})["a"].charge_audio(100)


def test_a_client_that_left_is_forgotten() -> None:
    accounts = Accounts(Clock())
    first = accounts.update({"a": Quotas(streams=1)})["a"]
    accounts.update({})
    assert accounts.update({"a": Quotas(streams=1)})["a"] is not first


def test_threads_never_take_more_than_there_is() -> None:
    account = Account("a", Quotas(audio_seconds_per_hour=1000), Clock())
    granted = []

    def take() -> None:
        for _ in range(500):
            try:
                account.charge_audio(1)
                granted.append(1)
            except QuotaError:
                pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 1000


@pytest.mark.parametrize("value", [0, -1, 0.5, float("nan"), float("inf"), True, "8"])
def test_wrong_quotas_are_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"quota streams is .*: give a number of at least 1"):
        Quotas(streams=value)  # type: ignore[arg-type]


def test_streams_are_whole() -> None:
    with pytest.raises(ValueError, match=r"quota streams is 2\.5: give a whole number"):
        Quotas(streams=2.5)  # type: ignore[arg-type]
