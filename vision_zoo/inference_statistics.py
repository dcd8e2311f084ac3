"""What the requests of the Open Inference Protocol have cost: counts and times of a model, as Triton tells them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vision_zoo.wire import inference_pb2 as pb


@dataclass(frozen=True)
class RequestTimes:
    """Seconds of one request that succeeded. infer holds the wait for a batch too, which is the batcher's to know."""

    input: float
    infer: float
    output: float

    @property
    def total(self) -> float:
        return self.input + self.infer + self.output


class InferenceStatistics:
    """Of one model under one name. Written and read in the event loop only, so it needs no lock."""

    def __init__(self, name: str, version: str) -> None:
        self._counts = pb.ModelStatistics(name=name, version=version)

    def succeeded(self, images: int, times: RequestTimes) -> None:
        counts = self._counts
        counts.last_inference = time.time_ns() // 1_000_000
        counts.inference_count += images
        counts.execution_count += 1
        stats = counts.inference_stats
        _add(stats.success, times.total)
        _add(stats.compute_input, times.input)
        _add(stats.compute_infer, times.infer)
        _add(stats.compute_output, times.output)

    def failed(self, seconds: float) -> None:
        _add(self._counts.inference_stats.fail, seconds)

    def message(self) -> pb.ModelStatistics:
        """A copy."""
        copy = pb.ModelStatistics()
        copy.CopyFrom(self._counts)
        return copy


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += round(1e9 * seconds)
