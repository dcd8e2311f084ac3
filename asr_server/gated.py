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
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_server.native import core

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
        products = self.linear(self.norm(inputs))
        opened, carried = gated_scan(products, heard, start, right, more)
        if self.training and self.dropout:
            # Whole units, one mask for all frames of a window (Gal and Ghahramani 2016, arXiv 1512.05287).
            opened = opened * opened.new_empty(opened[:1].shape).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        outputs: Tensor = inputs[: len(opened)] + self.project(opened)
        return outputs, carried


def gated_scan(products: Tensor, heard: Tensor, start: Tensor, right: int, more: bool) -> tuple[Tensor, Tensor]:
    """Products of the inputs (W, K, B, 5 H): a forward and backward, f forward and backward, r; which frames there are
    (W, K, B, 1); the state before the first chunk (B, H) -> silu(r) (c forward + c backward), (W or W - right, K, B, H)
    and the forward state after the last chunk.

    Chunks follow each other forward; the backward recurrence starts from zero at the end of each window. On a CPU the
    native core does all of it, and its gradient, in one pass for each direction.
    """
    if core is not None and products.device.type == "cpu" and products.dtype in (torch.float32, torch.bfloat16):
        return cast(tuple[Tensor, Tensor], _NativeScan.apply(products, heard, start.float(), right, more))
    width = products.shape[-1] // 5
    products, start = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (products, start))
    values, gates, outwards = products.split((2 * width, 2 * width, width), -1)
    kept = gates.sigmoid() * heard  # nothing is kept of what comes before a frame that there is not
    new = (1 - kept) * values * heard
    frames, chunks = len(products) - right, products.shape[1]
    kept_ahead, new_ahead = kept[..., :width], new[..., :width]
    main = _averages(_chain(kept_ahead[:frames]), _chain(new_ahead[:frames]), start).unflatten(0, (chunks, frames))
    ahead = main.transpose(0, 1)
    if more and right:
        ahead = torch.cat([ahead, _averages(kept_ahead[frames:], new_ahead[frames:], main[:, -1])])
    behind = _averages(kept[..., width:].flip(0), new[..., width:].flip(0), torch.zeros_like(start)).flip(0)
    reach = len(ahead)
    return functional.silu(outwards[:reach]) * (ahead + behind[:reach]), main[-1, -1]


def _averages(kept: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """c_t = kept_t c_{t-1} + new_t over the first dimension, in as many steps as its length has binary digits (Hillis
    and Steele 1986): a loop over frames would keep a GPU waiting."""
    states = torch.cat([new[:1] + kept[:1] * start, new[1:]])
    reach = 1  # frames that each state has heard
    while reach < len(states):
        states, kept = (
            torch.cat([states[:reach], states[reach:] + kept[reach:] * states[:-reach]]),
            torch.cat([kept[:reach], kept[reach:] * kept[:-reach]]),
        )
        reach *= 2
    return states


def _chain(windows: Tensor) -> Tensor:
    """Chunks one after another: (frames, K, B, H) -> (K frames, B, H)."""
    return windows.transpose(0, 1).flatten(0, 1)


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, products: Tensor, heard: Tensor, start: Tensor, right: int, more: bool
    ) -> tuple[Tensor, Tensor]:
        products, start = products.detach().contiguous(), start.detach().contiguous()
        heard = heard.detach().float().squeeze(-1).contiguous()
        window, *beside, width = products.shape
        reach, width = window if more else window - right, width // 5
        ahead, behind = (start.new_empty(frames, *beside, width) for frames in (reach, window))
        opened = products.new_empty(reach, *beside, width)
        core.gated_scan(
            _bits(products), heard, start, right, more, torch.get_num_threads(), ahead, behind, _bits(opened)
        )
        ctx.save_for_backward(products, heard, start, ahead, behind)
        ctx.right, ctx.more = right, more
        return opened, ahead[window - right - 1, -1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        products, heard, start, ahead, behind = ctx.saved_tensors
        outer, last = (gradient.contiguous() for gradient in gradients)
        inner, start_gradient = torch.empty_like(products), torch.empty_like(start)
        numbers = (_bits(outer), last, _bits(products), heard, start)
        options = (ctx.right, ctx.more, torch.get_num_threads())
        core.gated_scan_backward(*numbers, *options, ahead, behind, _bits(inner), start_gradient)
        return inner, None, start_gradient, None, None


def _bits(tensor: Tensor) -> Tensor:
    """What the native core reads: bfloat16 as the integers of its bits."""
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
