"""What a served model has done since it was loaded, under the names that Triton's operators know."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vision_zoo.batcher import BatchFacts, Dropped

# Metric name of Triton -> what it counts here: images, by whichever contract they came.
DESCRIPTIONS = {
    "nv_inference_request_success": "Images that the model has answered since it was loaded.",
    "nv_inference_request_failure": "Images that failed in the model, were cancelled, came too late or were refused.",
    "nv_inference_count": "Images that the model has computed.",
    "nv_inference_exec_count": "Runs of the model, each of one batch.",
    "nv_inference_request_duration_us": "Microseconds that answered images spent in queue and model, summed.",
    "nv_inference_queue_duration_us": "Microseconds that computed images waited in the queue, summed.",
    "nv_inference_compute_infer_duration_us": "Microseconds that the model ran.",
    "nv_inference_pending_request_count": "Images that wait in the queue now.",
}


@dataclass(frozen=True)
class Totals:
    """Counts and seconds since the model was loaded. batches: size -> runs of that size; a bounded set of sizes."""

    succeeded: int = 0
    failed: int = 0
    executions: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0  # of runs, each once
    request_seconds: float = 0.0  # queue and compute of each successful request
    cancelled: int = 0
    expired: int = 0
    refused: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)

    def as_metrics(self, waiting: int) -> dict[str, float]:
        """The values of DESCRIPTIONS; durations in microseconds, as Triton has them. waiting: in the queue now."""
        return {
            "nv_inference_request_success": self.succeeded,
            "nv_inference_request_failure": self.failed + self.cancelled + self.expired + self.refused,
            "nv_inference_count": self.succeeded,
            "nv_inference_exec_count": self.executions,
            "nv_inference_request_duration_us": 1e6 * self.request_seconds,
            "nv_inference_queue_duration_us": 1e6 * self.queue_seconds,
            "nv_inference_compute_infer_duration_us": 1e6 * self.compute_seconds,
            "nv_inference_pending_request_count": waiting,
        }


class Statistics:
    """An Observer of a batcher that adds up; `totals` may be read in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    @property
    def totals(self) -> Totals:
        return self._totals

    def ran(self, facts: BatchFacts) -> None:
        size, queued = len(facts.queued), sum(facts.queued)
        with self._lock:
            now = self._totals
            if facts.failed:
                self._totals = replace(now, failed=now.failed + size)
                return
            self._totals = replace(
                now,
                succeeded=now.succeeded + size,
                executions=now.executions + 1,
                queue_seconds=now.queue_seconds + queued,
                compute_seconds=now.compute_seconds + facts.run,
                request_seconds=now.request_seconds + queued + size * facts.run,
                batches={**now.batches, size: now.batches.get(size, 0) + 1},
            )

    def clear(self) -> None:
        """As if nothing had been asked yet."""
        with self._lock:
            self._totals = Totals()

    def dropped(self, reason: Dropped) -> None:
        with self._lock:
            now = self._totals
            match reason:
                case "cancelled":
                    self._totals = replace(now, cancelled=now.cancelled + 1)
                case "expired":
                    self._totals = replace(now, expired=now.expired + 1)
                case "full":
                    self._totals = replace(now, refused=now.refused + 1)
