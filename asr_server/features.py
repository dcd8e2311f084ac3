"""Spectrogram features: 80 linearly spaced log filter banks and the log energy, every 10 ms (Deep Speech, section 4).

Dimension letters: B batch, S samples, T frames, W samples of a window, F features.
A frame is a complete window; the incomplete last one is dropped, so a stream has nothing to flush.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FLOOR = 1e-8  # added before the logarithm: about the power of the 16-bit quantisation noise in one filter


@dataclass(frozen=True)
class FeatureConfig:
    """What the front end computes. Times in seconds, sample rate in Hz."""

    sample_rate: int = 16000
    window_seconds: float = 0.02
    hop_seconds: float = 0.01
    filters: int = 80

    def __post_init__(self) -> None:
        if self.hop < 1 or self.window < self.hop:
            raise ValueError(
                f"window of {self.window} and hop of {self.hop} samples: the hop is at least 1, the window no shorter"
            )
        if not 1 <= self.filters <= self.transform // 2 - 1:
            raise ValueError(f"filters is {self.filters}: select from 1 to {self.transform // 2 - 1} for this window")

    @property
    def window(self) -> int:
        """Samples in a window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop(self) -> int:
        """Samples from one window to the next."""
        return round(self.hop_seconds * self.sample_rate)

    @property
    def transform(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    @property
    def size(self) -> int:
        """Features in a frame: the filters and the energy."""
        return self.filters + 1


@dataclass(frozen=True)
class FeatureState:
    """Samples that belong to windows not yet complete; shorter than window + hop."""

    tail: Tensor  # (S,)


class Features(nn.Module):
    """Samples in [-1, 1] to normalised log features. `mean` and `std` (F,) are the training data's, kept in the bundle.

    Chunked and whole results are equal to float rounding (a matrix product may sum in another order).
    """

    mean: Tensor
    std: Tensor
    window: Tensor
    bank: Tensor

    def __init__(self, config: FeatureConfig | None = None) -> None:
        super().__init__()
        self.config = config or FeatureConfig()
        self.register_buffer("mean", torch.zeros(self.config.size))
        self.register_buffer("std", torch.ones(self.config.size))
        self.register_buffer("window", torch.hann_window(self.config.window, periodic=True), persistent=False)
        self.register_buffer("bank", _linear_filters(self.config), persistent=False)

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S), (B,) -> (B, T, F), (B,). Frames after an utterance's end are zero, which is the mean."""
        features = self.normalise(self.spectrum(samples))
        frames = self.frames(lengths)
        valid = torch.arange(features.shape[1], device=features.device) < frames[:, None]
        return features * valid[..., None], frames

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and standard deviation (F,), (F,) of the training data."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def initial_state(self) -> FeatureState:
        """State of a stream that has heard nothing."""
        return FeatureState(self.mean.new_zeros(0))

    def step(self, samples: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """(S,) -> (T, F) for the windows that these samples complete; T may be 0."""
        (features,), (state,) = self.step_all([samples], [state])
        return features, state

    def step_all(
        self, samples: Sequence[Tensor], states: Sequence[FeatureState]
    ) -> tuple[list[Tensor], list[FeatureState]]:
        """`step` of many streams at once: (S,) each -> (T, F) each."""
        heard = [torch.cat([state.tail, new]) for new, state in zip(samples, states, strict=True)]
        windows = [self._windows(samples) for samples in heard]
        counts = [len(rows) for rows in windows]
        features = self.normalise(self._spectrum(torch.cat(windows))).split(counts)
        tails = [
            FeatureState(rest[count * self.config.hop :].clone()) for rest, count in zip(heard, counts, strict=True)
        ]
        return list(features), tails

    def frames(self, lengths: Tensor) -> Tensor:
        """Complete windows in so many samples."""
        return ((lengths - self.config.window) // self.config.hop + 1).clamp(min=0)

    def spectrum(self, samples: Tensor) -> Tensor:
        """(..., S) -> (..., T, F): log filter banks and log energy before normalisation."""
        return self._spectrum(self._windows(samples))

    def _windows(self, samples: Tensor) -> Tensor:
        """(..., S) -> (..., T, W): the windows that are complete."""
        if samples.shape[-1] < self.config.window:
            return samples.new_zeros(*samples.shape[:-1], 0, self.config.window)
        return samples.unfold(-1, self.config.window, self.config.hop)

    def _spectrum(self, windows: Tensor) -> Tensor:
        """(..., T, W) -> (..., T, F)."""
        power = torch.fft.rfft(windows * self.window, n=self.config.transform).abs().square()
        energy = windows.square().sum(-1, keepdim=True)
        return torch.cat([power @ self.bank, energy], dim=-1).add(FLOOR).log()

    def normalise(self, spectrum: Tensor) -> Tensor:
        """Zero mean and unit variance by the training data's statistics."""
        return (spectrum - self.mean) / self.std


def _linear_filters(config: FeatureConfig) -> Tensor:
    """Triangles of equal width from 0 Hz to half the sample rate, (transform / 2 + 1, filters)."""
    bins = torch.linspace(0, config.filters + 1, config.transform // 2 + 1)  # in units of the filters' spacing
    centres = torch.arange(1, config.filters + 1)
    return (1 - (bins[:, None] - centres).abs()).clamp(min=0)
