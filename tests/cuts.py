"""Cutting at random places, which streaming must not notice."""

import random

from torch import Tensor


def random_cuts(rows: Tensor, seed: int, longest: int) -> list[Tensor]:
    """The rows in consecutive chunks of 0 to `longest`."""
    generator, chunks, start = random.Random(seed), [], 0
    while start < len(rows):
        end = start + generator.randint(0, longest)
        chunks.append(rows[start:end])
        start = end
    return chunks
