"""Batching with a gate in the model's place, so that what shares a batch is decided by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from vision_zoo.batcher import Arrivals, Batcher, BatchOptions, ExpiredError, QueueFullError, Urgency
from vision_zoo.statistics import DESCRIPTIONS, Statistics

WAIT = 20.0


class Gate:
    """run(items) -> squares; each batch waits for one `open()` and is recorded."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self._entered = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self._entered.release()
        assert self._opened.acquire(timeout=WAIT)
        return [item * item for item in items]

    def wait_inside(self) -> None:
        assert self._entered.acquire(timeout=WAIT)

    def open(self, times: int = 1) -> None:
        self._opened.release(times)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher[int, int]]:
    made = Batcher(gate.run, BatchOptions(max_batch=3, max_delay=0.0, capacity=5))
    yield made
    gate.open(100)
    made.close()


def test_what_waits_while_a_batch_runs_shares_the_next_ones(gate: Gate, batcher: Batcher[int, int]) -> None:
    futures = [batcher.submit(1)]
    gate.wait_inside()
    futures += [batcher.submit(item) for item in (2, 3, 4, 5, 6)]
    gate.open(3)
    assert [future.result(WAIT) for future in futures] == [1, 4, 9, 16, 25, 36]
    assert gate.batches == [[1], [2, 3, 4], [5, 6]]
    assert len(gate.threads) == 1 and threading.get_ident() not in gate.threads


def test_a_full_queue_refuses_and_recovers(gate: Gate, batcher: Batcher[int, int]) -> None:
    batcher.submit(0)
    gate.wait_inside()
    waiting = [batcher.submit(item) for item in range(5)]
    with pytest.raises(QueueFullError, match="5 images are waiting already"):
        batcher.submit(9)
    gate.open(3)
    assert [future.result(WAIT) for future in waiting] == [0, 1, 4, 9, 16]
    gate.open()
    assert batcher.submit(9).result(WAIT) == 81


def test_cancelled_items_never_run(gate: Gate, batcher: Batcher[int, int]) -> None:
    batcher.submit(0)
    gate.wait_inside()
    first, second, third = (batcher.submit(item) for item in (1, 2, 3))
    assert second.cancel()
    gate.open(2)
    assert (first.result(WAIT), third.result(WAIT)) == (1, 9)
    assert gate.batches == [[0], [1, 3]]
    with pytest.raises(CancelledError):
        second.result(WAIT)


def test_a_batch_of_cancelled_items_is_not_run(gate: Gate, batcher: Batcher[int, int]) -> None:
    batcher.submit(0)
    gate.wait_inside()
    assert all(batcher.submit(item).cancel() for item in (1, 2))
    gate.open()
    while batcher.waiting:
        time.sleep(0.001)
    last = batcher.submit(7)
    gate.open()
    assert last.result(WAIT) == 49
    assert gate.batches == [[0], [7]]


def test_an_item_in_work_cannot_be_cancelled(gate: Gate, batcher: Batcher[int, int]) -> None:
    future = batcher.submit(5)
    gate.wait_inside()
    assert not future.cancel()
    gate.open()
    assert future.result(WAIT) == 25


def test_the_delay_gathers_company() -> None:
    batches: list[int] = []

    def run(items: list[int]) -> list[int]:
        batches.append(len(items))
        return items

    batcher = Batcher(run, BatchOptions(max_batch=4, max_delay=1.0, capacity=8, adaptive=False))
    start = time.monotonic()
    futures = [batcher.submit(item) for item in range(4)]
    assert [future.result(WAIT) for future in futures] == [0, 1, 2, 3]
    assert batches == [4]
    assert time.monotonic() - start < 0.9, "a full batch does not wait for the delay"
    batcher.close()


def test_an_error_reaches_everyone_in_the_batch_and_nobody_else() -> None:
    def run(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    batcher = Batcher(run, BatchOptions(max_batch=1, max_delay=0.0))
    bad, good = batcher.submit(0), batcher.submit(2)
    with pytest.raises(ZeroDivisionError):
        bad.result(WAIT)
    assert good.result(WAIT) == 0.5
    batcher.close()


def test_close_finishes_what_waits_and_takes_no_more(gate: Gate) -> None:
    batcher = Batcher(gate.run, BatchOptions(max_batch=2, max_delay=0.0, capacity=4))
    futures = [batcher.submit(1)]
    gate.wait_inside()
    futures += [batcher.submit(item) for item in (2, 3, 4)]
    gate.open(10)
    batcher.close()
    assert [future.result(0) for future in futures] == [1, 4, 9, 16]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(5)
    batcher.close()  # again is nothing


def test_many_threads_get_their_own_answers() -> None:
    def run(items: list[int]) -> list[int]:
        return [item * 10 for item in items]

    batcher = Batcher(run, BatchOptions(8, 0.001, 1000))
    answers: dict[int, int] = {}

    def ask(start: int) -> None:
        answers.update({item: batcher.submit(item).result(WAIT) for item in range(start, start + 50)})

    threads = [threading.Thread(target=ask, args=(100 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert len(answers) == 300
    assert all(answer == 10 * item for item, answer in answers.items())


@pytest.mark.parametrize(
    ("options", "text"),
    [((0, 0.0, 1), "max_batch 0"), ((1, 0.0, 0), "capacity 0"), ((1, -0.1, 1), "max_delay -0.1"), ((1, 2.0, 1), "2.0")],
)
def test_wrong_options_name_the_rule(options: tuple[int, float, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BatchOptions(*options)


def test_the_most_urgent_run_first_and_equals_in_their_order(gate: Gate, batcher: Batcher[int, int]) -> None:
    batcher.submit(0)
    gate.wait_inside()
    priorities = {1: 0, 2: -5, 3: 7, 4: 0, 5: 7}
    futures = [batcher.submit(item, Urgency(priority)) for item, priority in priorities.items()]
    gate.open(3)
    assert [future.result(WAIT) for future in futures] == [1, 4, 9, 16, 25]
    assert gate.batches == [[0], [3, 5, 1], [4, 2]]


def test_what_has_expired_is_never_run_and_makes_room(gate: Gate) -> None:
    statistics = Statistics()
    batcher = Batcher(gate.run, BatchOptions(max_batch=3, max_delay=0.0, capacity=2), observer=statistics)
    batcher.submit(0)
    gate.wait_inside()
    late, good = batcher.submit(1, Urgency(deadline=time.monotonic())), batcher.submit(2)
    more = batcher.submit(3)  # the queue was full, but for what cannot run any more
    with pytest.raises(QueueFullError):
        batcher.submit(4)
    gate.open(2)
    assert (good.result(WAIT), more.result(WAIT)) == (4, 9)
    with pytest.raises(ExpiredError, match="deadline passed in the queue"):
        late.result(WAIT)
    batcher.close()
    assert gate.batches == [[0], [2, 3]]
    totals = statistics.totals
    assert (totals.succeeded, totals.expired, totals.refused, totals.executions) == (3, 1, 1, 2)
    assert totals.batches == {1: 1, 2: 1}
    metrics = totals.as_metrics(3)
    assert metrics.keys() == DESCRIPTIONS.keys() and metrics["nv_inference_pending_request_count"] == 3
    assert metrics["nv_inference_request_success"] == 3 and metrics["nv_inference_request_failure"] == 2
    assert metrics["nv_inference_queue_duration_us"] > 0


def test_waiting_for_company_follows_the_pace_of_arrivals() -> None:
    arrivals = Arrivals()
    assert arrivals.worth_waiting_until(9.0) == 9.0, "nothing is known yet"
    arrivals.note(0.0)
    arrivals.note(0.5)
    assert arrivals.worth_waiting_until(0.6) == 0.5, "the next is expected at 1.0, after the budget: run now"
    assert arrivals.worth_waiting_until(1.2) == 1.2, "it is expected within the budget, which is all of it"
    assert arrivals.worth_waiting_until(9.0) == 2.0, "three gaps without anybody: the burst is over"
    arrivals.note(100.5)  # a pause counts for a second
    assert arrivals.worth_waiting_until(200.0) == pytest.approx(100.5 + 3 * (0.8 * 0.5 + 0.2 * 1.0))


def test_what_is_known_to_come_is_waited_for() -> None:
    batches: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        batches.append(items)
        time.sleep(0.05)
        return items

    batcher = Batcher(run, BatchOptions(max_delay=0.001, patience=1.0))
    batcher.submit(0).result(WAIT)  # from here on an item is known to take 0.05 s, so two are worth 0.1 s of waiting
    with batcher.coming():
        first = batcher.submit(1)
        time.sleep(0.02)
    batcher.submit(2).result(WAIT)
    assert batches == [[0], [1, 2]] and first.done()
    with batcher.coming():
        batcher.submit(3).result(WAIT)  # comes back though the other never does
    failed_beside = []

    def fail() -> None:
        with batcher.coming(15):
            failed_beside.append(batcher.submit(4))
            raise KeyError

    begin = time.monotonic()
    with pytest.raises(KeyError):
        fail()
    failed_beside[0].result(WAIT)
    assert time.monotonic() - begin < 0.7, "nobody comes any more, so the rest of the 0.8 s was not waited for"
    batcher.close()


def test_the_wait_is_a_share_of_what_the_batch_takes() -> None:
    options = BatchOptions(max_batch=8, max_delay=0.003, patience=0.05)
    assert options.budget(8, item_seconds=0.15) == pytest.approx(0.06)
    assert options.budget(100, item_seconds=0.15) == pytest.approx(0.06), "no more than a batch is waited for"
    assert options.budget(8, item_seconds=0.0) == 0.003
    assert options.budget(8, item_seconds=900.0) == 1.0
    assert BatchOptions(max_delay=0.003, adaptive=False).budget(8, item_seconds=0.15) == 0.003
    assert BatchOptions(max_delay=0.0).budget(8, item_seconds=0.15) == 0.0
    with pytest.raises(ValueError, match=r"patience 1\.5 must be 0 to 1"):
        BatchOptions(patience=1.5)


def test_an_idle_server_does_not_wait_for_company() -> None:
    """With a budget of a second, one caller after the other would otherwise take a second each."""
    batcher: Batcher[int, int] = Batcher(lambda items: items, BatchOptions(max_delay=1.0))
    batcher._arrivals.note(time.monotonic() - 900)
    batcher._arrivals.note(time.monotonic() - 450)
    batches_begin = batcher._arrivals.worth_waiting_until(time.monotonic() + 0.5)
    assert batches_begin < time.monotonic()
    batcher.close()
