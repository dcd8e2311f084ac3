"""What a classifier said about labelled images, and the figures that follow from it. N images, K classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.calibration_fit import Cases
from training.reliability import calibration_error
from training.vision_calibration import confidences, negative_log_likelihood
from training.vision_files import ImageFiles

BINS = 15


@dataclass(frozen=True)
class ClassRow:
    """Of one class, all in percent: how many of those called so are; how many of those that are were called so."""

    label: str
    images: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confused:
    """`count` images of `label` were called `predicted`."""

    label: str
    predicted: str
    count: int
    share: float  # of the label's images, percent


@dataclass(frozen=True)
class Answers:
    """log_probabilities: float64 (N, K), of the files in order, uncalibrated. temperature: what they are served at."""

    files: ImageFiles
    log_probabilities: Tensor
    temperature: float = 1.0

    @cached_property
    def targets(self) -> Tensor:
        return torch.tensor(self.files.targets)

    @cached_property
    def choices(self) -> Tensor:
        """(N,)"""
        return self.log_probabilities.argmax(dim=1)

    @cached_property
    def right(self) -> Tensor:
        """bool (N,)"""
        return self.choices == self.targets

    @cached_property
    def calibrated(self) -> Tensor:
        """Probabilities as served, (N, K)."""
        return (self.log_probabilities / self.temperature).softmax(dim=1)

    def top(self, k: int) -> float:
        """Percent of the images whose label is among the first k choices; k above K counts as K."""
        ranked = self.log_probabilities.topk(min(k, self.log_probabilities.shape[1])).indices
        return 100 * float((ranked == self.targets[:, None]).any(dim=1).double().mean())

    @cached_property
    def confusion(self) -> Tensor:
        """int64 (K, K): row the label, column the choice."""
        classes = len(self.files.labels)
        return torch.bincount(self.targets * classes + self.choices, minlength=classes**2).view(classes, classes)

    def classes(self) -> list[ClassRow]:
        """In the order of the labels; 0 where nothing is to be divided by."""
        hits, images, called = self.confusion.diag(), self.confusion.sum(dim=1), self.confusion.sum(dim=0)
        rows = []
        for label, hit, n, m in zip(self.files.labels, hits.tolist(), images.tolist(), called.tolist(), strict=True):
            rows.append(ClassRow(label, n, m, 100 * hit / max(1, m), 100 * hit / max(1, n), 200 * hit / max(1, n + m)))
        return rows

    def confused(self, count: int) -> list[Confused]:
        """The `count` most frequent mistakes, the larger share first among equals."""
        wrong = self.confusion - torch.diag(self.confusion.diag())
        images = self.confusion.sum(dim=1)
        pairs = [
            Confused(self.files.labels[i], self.files.labels[j], n, 100 * n / int(images[i]))
            for i, j in wrong.nonzero().tolist()
            if (n := int(wrong[i, j]))
        ]
        return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.label, pair.predicted))[:count]

    def worst(self, count: int) -> list[int]:
        """Indices of the wrong images to whose label the least probability was given, the worst first."""
        given = self.calibrated.gather(1, self.targets[:, None])[:, 0]
        order = given.argsort(stable=True).tolist()
        return [index for index in order if not self.right[index]][:count]

    def calibration_error(self, temperature: float) -> float:
        """Expected calibration error of the first choices, 0 to 1, in 15 bins of equal width."""
        return calibration_error(confidences(self.log_probabilities, temperature).numpy(), self.right.numpy(), BINS)

    def log_loss(self, temperature: float) -> float:
        return negative_log_likelihood(self.log_probabilities, self.targets, temperature)

    def cases(self, temperature: float) -> Cases:
        """The first choices' confidences and whether each was right; every image is a group of its own."""
        confidence = confidences(self.log_probabilities, temperature).numpy()
        return Cases(confidence, self.right.numpy(), torch.arange(len(self.targets)).numpy())
