"""Gradient checkpointing of one cell: its activations are computed again in the backward pass instead of kept.

The second computation must leave no trace: batch norms would otherwise count every batch twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_checkpointed(cell: nn.Module, *inputs: Tensor | None) -> Tensor:
    """cell(*inputs), with the same random draws, gradients and running statistics, in less memory."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(cell)

    output: Tensor = checkpoint(cell, *inputs, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode normalise by the batch as ever, and their running statistics stay."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # without running statistics the backward pass would see other tensors than before
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
