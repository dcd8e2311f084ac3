"""A bidirectional layer with gates: what each unit keeps of its state is decided by the inputs alone.

    c_t = f_t c_{t-1} + (1 - f_t) a_t        f = sigmoid of a product of the inputs, a = a product of the inputs
    y = x + W (silu(r) (c forward + c backward))

The recurrence of Bradbury et al. 2016 (QRNN, arXiv 1611.01576) and Lei et al. 2018 (SRU, arXiv 1709.02755), in the
place of the one in Deep Speech 2's gated networks (Amodei et al. 2015): no product waits for the frame before, so all
products of an utterance are one, and a state cannot run away, because it is an average of what was heard. The
directions are summed, as in Deep Speech.

Dimension letters: B batch, H hidden, K chunks, W frames of a window: a chunk and its right context.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_server.recurrence import scan

MEMORY = (1.5, 60.0)  # frames that units remember at first, spread evenly in the logarithm


class GatedLayer(nn.Module):
    """Residual; inputs are normalised by layer (Ba et al. 2016) before the products."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 5 * width)  # a forward and backward, f forward and backward, r
        self.project = nn.Linear(width, width)
        self.width, self.dropout = width, dropout
        with torch.no_grad():
            low, high = map(math.log, MEMORY)
            memory = torch.empty(2 * width).uniform_(low, high).exp()
            self.linear.bias.zero_()
            self.linear.bias[2 * width : 4 * width] = (memory - 1).log()

    def forward(self, inputs: Tensor, heard: Tensor, start: Tensor, right: int, more: bool) -> tuple[Tensor, Tensor]:
        """Inputs (W, K, B, H), which of them there are (W, K, B, 1) as 0 and 1, and the state (B, H) before the first
        chunk -> outputs of the chunks, or with `more` of the whole windows, and the state after the last chunk."""
        size, chunks, batch, width = inputs.shape
        frames = size - right
        values, gates, outwards = self.linear(self.norm(inputs)).float().split((2 * width, 2 * width, width), -1)
        kept = gates.sigmoid() * heard  # nothing is kept of what comes before a frame that there is not
        new = (1 - kept) * values * heard
        kept_ahead, kept_behind = kept.split(width, -1)
        new_ahead, new_behind = new.split(width, -1)
        ahead = scan(_chain(new_ahead[:frames]), _chain(kept_ahead[:frames]), start).unflatten(0, (chunks, frames))
        states = ahead.transpose(0, 1)
        if more and right:
            beyond = (new_ahead[frames:].flatten(1, 2), kept_ahead[frames:].flatten(1, 2))
            tail = scan(*beyond, ahead[:, -1].flatten(0, 1)).unflatten(1, (chunks, batch))
            states = torch.cat([states, tail])
        nothing = start.new_zeros(chunks * batch, width)
        behind = scan(new_behind.flatten(1, 2), kept_behind.flatten(1, 2), nothing, reverse=True)
        states = states + behind.unflatten(1, (chunks, batch))[: len(states)]
        return self._outputs(inputs[: len(states)], states, outwards[: len(states)]), ahead[-1, -1]

    def _outputs(self, inputs: Tensor, states: Tensor, outwards: Tensor) -> Tensor:
        opened = functional.silu(outwards) * states
        if self.training and self.dropout:
            # Whole units, one mask for all frames of a window (Gal and Ghahramani 2016, arXiv 1512.05287).
            opened = opened * opened.new_empty(opened[:1].shape).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        outputs: Tensor = inputs + self.project(opened)
        return outputs


def _chain(windows: Tensor) -> Tensor:
    """Chunks one after another: (frames, K, B, H) -> (K frames, B, H)."""
    return windows.transpose(0, 1).flatten(0, 1)
