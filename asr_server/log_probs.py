"""What a decoder is fed: natural-log probabilities (T, V), T frames by V symbols, and what is refused as such."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-3  # how far above 0 a log probability may be: a softmax in half precision rounds
UNNORMALISED = 0.05  # how far from 1 the sum of a row may be


def as_matrix(log_probs: NDArray[Any], symbols: int) -> NDArray[Any]:
    """(T, V) in single or double precision, row by row. ValueError for what is no such matrix."""
    array = np.asarray(log_probs)
    if array.ndim != 2 or array.shape[1] != symbols:
        raise ValueError(f"log probabilities have shape {array.shape}: (frames, {symbols}) fits the alphabet")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"log probabilities are of type {array.dtype}: they are floating-point numbers")
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float32 else np.float64)


def checked(log_probs: NDArray[Any], symbols: int) -> NDArray[np.float64]:
    """(T, V) in double precision. ValueError for what are no log probabilities."""
    array = as_matrix(log_probs, symbols).astype(np.float64)
    for frame, row in enumerate(array):
        highest = row.max()
        if np.isnan(highest):
            raise ValueError(f"log probabilities hold NaN, first in frame {frame}")
        if highest > ROUNDING:
            raise ValueError(
                f"log probabilities reach {highest:g} in frame {frame}: they are natural logarithms, at most 0"
            )
        total = np.exp(row).sum()
        if abs(total - 1) > UNNORMALISED and highest > -math.inf:
            raise ValueError(f"probabilities of frame {frame} add up to {total:g}, not to 1: apply log_softmax")
    return array
