"""One image from bytes to labels: decode -> transform -> batcher -> model -> predictions.

Everything here is synchronous. `read` may run in any thread and is where the time of a large file goes; `submit`
returns at once; the model runs in the batcher's thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_zoo import images
from vision_zoo.batcher import Batcher, BatchOptions
from vision_zoo.bundle import VisionBundle
from vision_zoo.transforms import normalise, resize_and_crop

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Prediction:
    """index: position in the bundle's labels. probability: 0 to 1."""

    index: int
    label: str
    probability: float


class Classifier:
    """A bundle ready to serve; shared by all requests. Close it to end its thread."""

    def __init__(
        self, bundle: VisionBundle, batching: BatchOptions | None = None, pixel_limit: int = images.PIXEL_LIMIT
    ) -> None:
        self.bundle, self.pixel_limit = bundle, pixel_limit
        self.batching = batching or BatchOptions()
        self._batcher: Batcher[Tensor, Tensor] = Batcher(self._infer, self.batching, bundle.name)

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

    def submit(self, pixels: Tensor) -> Future[Tensor]:
        """uint8 (3, S, S) -> the probabilities (K,) to come. Raises QueueFullError."""
        return self._batcher.submit(pixels)

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

    def close(self) -> None:
        self._batcher.close()

    @torch.inference_mode()
    def _infer(self, pixels: list[Tensor]) -> tuple[Tensor, ...]:
        """B times uint8 (3, S, S) -> B times probabilities (K,)."""
        batch = normalise(torch.stack(pixels), self.bundle.preprocessing)
        logits: Tensor = self.bundle.model(batch)
        return logits.softmax(dim=1).unbind()
