"""One image from bytes to labels: decode -> transform -> batcher -> model -> predictions.

Everything here is synchronous. `read` may run in any thread and is where the time of a large file goes; `submit` and
its sisters return at once; the model runs in the batcher's thread only.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vision_zoo import images
from vision_zoo.attribution import Attribution, attribute
from vision_zoo.batcher import Batcher, BatchOptions, Urgency
from vision_zoo.bundle import VisionBundle
from vision_zoo.head import cut, embed
from vision_zoo.precision import AUTO, for_serving
from vision_zoo.statistics import Statistics
from vision_zoo.transforms import normalise, resize_and_crop

DEFAULT_TOP_K = 5
WARM_UP_SECONDS = 3.0
# What one thread of this process sets, torch gives to every thread that begins later: asked before there are any.
THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Prediction:
    """index: position in the bundle's labels. probability: 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class _Work:
    """pixels: uint8 (3, S, S), or float32 where they are normalised already. index: the label to explain."""

    pixels: Tensor
    want: Literal["probabilities", "embedding", "attribution"] = "probabilities"
    index: int | None = None


class Classifier:
    """A bundle ready to serve; shared by all requests.

    precision: one of vision_zoo.precision's, or "auto" for what this machine computes fastest; the attribute says which
    it became. ValueError where it cannot be.

    Close it to end its thread. Where nobody does, the thread ends when the last request that holds the classifier has
    let go of it: so a version that has been replaced drains by itself.
    """

    def __init__(
        self,
        bundle: VisionBundle,
        batching: BatchOptions | None = None,
        pixel_limit: int = images.PIXEL_LIMIT,
        precision: str = AUTO,
        threads: int = THREADS,
    ) -> None:
        self.bundle, self.pixel_limit = bundle, pixel_limit
        self.batching, self.statistics = batching or BatchOptions(), Statistics()
        network, self.precision = for_serving(bundle.model, bundle.preprocessing.size, precision, threads)
        # The batcher's thread must not hold the classifier, which would then never be let go of.
        run = _Runner(bundle, network)
        self._batcher: Batcher[_Work, Any] = Batcher(run, self.batching, bundle.name, self.statistics)
        weakref.finalize(self, self._batcher.close, wait=False)

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._batcher.waiting

    def classify(self, files: list[bytes], top_k: int = DEFAULT_TOP_K) -> list[list[Prediction]]:
        """The predictions of each image, most probable first. Raises ImageError, ValueError for top_k."""
        return list(self.classify_each(files, top_k))

    def classify_each(self, files: list[bytes], top_k: int = DEFAULT_TOP_K) -> Iterator[list[Prediction]]:
        """As `classify`, in whole batches and with the results as they come."""
        self.check_top_k(top_k)
        size = min(self.batching.max_batch, self.batching.capacity)
        for start in range(0, len(files), size):
            waiting = [self.submit(self.read(file)) for file in files[start : start + size]]
            for future in waiting:
                yield self.predictions(future.result(), top_k)

    def read(self, file: bytes) -> Tensor:
        """Bytes of an image file -> uint8 (3, S, S), what waits in the queue. Raises ImageError."""
        preprocessing = self.bundle.preprocessing
        # A JPEG may be shrunk while it is decoded, to no less than twice the pixels that the network sees.
        at_least = 2 * round(preprocessing.size / preprocessing.crop)
        return resize_and_crop(images.decode(file, self.pixel_limit, at_least), preprocessing)

    def coming(self, count: int) -> AbstractContextManager[None]:
        """While `count` images are read that are then submitted: those that are ready wait for them, within limits."""
        return self._batcher.coming(count)

    def submit(self, pixels: Tensor, urgency: Urgency | None = None) -> Future[Tensor]:
        """uint8 (3, S, S), or normalised float32 -> the calibrated probabilities (K,) to come.

        Raises QueueFullError; the future raises ExpiredError where the deadline passes in the queue.
        """
        return self._batcher.submit(_Work(pixels), urgency)

    def submit_embedding(self, pixels: Tensor, urgency: Urgency | None = None) -> Future[Tensor]:
        """-> the pooled features (D,) to come. Raises as `submit`, and ValueError for a network without them."""
        cut(self.bundle.model)
        return self._batcher.submit(_Work(pixels, "embedding"), urgency)

    def submit_attribution(
        self, pixels: Tensor, index: int | None = None, urgency: Urgency | None = None
    ) -> Future[Attribution]:
        """-> what speaks for label `index` (None: the most probable) to come. Raises as `submit`, and ValueError."""
        if index is not None and not 0 <= index < len(self.bundle.labels):
            raise ValueError(f"label index {index} must be 0 to {len(self.bundle.labels) - 1}")
        return self._batcher.submit(_Work(pixels, "attribution", index), urgency)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits (..., K) -> probabilities by the bundle's temperature."""
        return _calibrated(self.bundle, logits)

    def predictions(self, probabilities: Tensor, top_k: int = DEFAULT_TOP_K) -> list[Prediction]:
        """(K,) -> the min(top_k, K) most probable."""
        values, indices = probabilities.topk(min(top_k, len(self.bundle.labels)))
        return [
            Prediction(index, self.bundle.labels[index], value)
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def check_top_k(self, top_k: int) -> None:
        if top_k < 1:
            raise ValueError(f"top_k {top_k} must be at least 1")

    def warm_up(self, seconds: float = WARM_UP_SECONDS) -> None:
        """Runs the network once, because one that cannot run should not be served, and then batches of other sizes.

        The first batch of a size is slow and takes memory for good (oneDNN compiles kernels for it and keeps them), so
        as many sizes as `seconds` allow have had theirs before anybody waits; the largest comes first.
        """
        side = self.bundle.preprocessing.size
        image, begin = torch.zeros(3, side, side, dtype=torch.uint8), time.monotonic()
        for size in (1, *range(min(self.batching.max_batch, self.batching.capacity), 1, -1)):
            with self.coming(size):
                waiting = [self.submit(image) for _ in range(size)]
            for future in waiting:
                future.result()
            if time.monotonic() - begin > seconds:
                break
        self.statistics.clear()  # nobody asked for these

    def close(self) -> None:
        self._batcher.close()


class _Runner:
    """A batch of works -> their results, in order."""

    def __init__(self, bundle: VisionBundle, network: nn.Module) -> None:
        self._bundle, self._network = bundle, network

    @torch.inference_mode()
    def __call__(self, works: list[_Work]) -> list[Any]:
        torch.set_num_threads(THREADS)  # the decoders' threads have taken one each
        model, batch = self._network, self._normalised([work.pixels for work in works])
        batch = batch.contiguous(memory_format=torch.channels_last)
        results: dict[int, Any] = {}
        places: dict[str, list[int]] = {}
        for place, work in enumerate(works):
            places.setdefault(work.want, []).append(place)
        if chosen := places.get("probabilities"):
            results |= zip(chosen, _calibrated(self._bundle, model(batch[chosen])).unbind(), strict=True)
        if chosen := places.get("embedding"):
            results |= zip(chosen, embed(model, batch[chosen]).unbind(), strict=True)
        for place in places.get("attribution", ()):
            results[place] = attribute(model, batch[place], works[place].index)
        return [results[place] for place in range(len(works))]

    def _normalised(self, pixels: list[Tensor]) -> Tensor:
        """B times (3, S, S) -> float32 (B, 3, S, S)."""
        if all(each.dtype == torch.uint8 for each in pixels):
            return normalise(torch.stack(pixels), self._bundle.preprocessing)
        ready = [each if each.is_floating_point() else self._normalised([each])[0] for each in pixels]
        return torch.stack(ready)


def _calibrated(bundle: VisionBundle, logits: Tensor) -> Tensor:
    return (logits / bundle.temperature).softmax(dim=-1)
