"""Model parallelism of the paper (Hannun et al. 2014, section 3.2): an utterance split in time over two ranks.

    first half    layers 1-3   forward states --.  .-> backward states   layer 5, softmax --.  .-> loss
                                                 \\/                                         \\/
                                                 /\\                                         /\\
    second half   layers 1-3   backward states -'  '-> forward states    layer 5, softmax --'  '-> loss

Each rank runs one direction over its half, the two swap their states at the mid-point, and each runs the other
direction. What layer 1 sees across the mid-point comes from the input, which both have. The log probabilities are
swapped too, so both know the whole utterance's loss.

Gradients: the derivative of a swap is a swap. Both ranks hold the loss, so a rank's gradients are its half's share of
twice the loss, and their mean over both ranks, which DistributedDataParallel makes, is the utterance's gradient. With
world = 2 x data ranks the mean over the world is therefore the mean over the data, without another word about it.

More recurrent layers swap their states one after the other; the paper's network has one.

Dimension letters: B batch, T input frames, N output frames, F features, H hidden, V symbols, K chunks, W frames of a
window: a chunk with its right context, or the whole half.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.nn import functional

from asr_server.model import Chunking, DeepSpeech, _cut
from asr_server.recurrence import recur


@dataclass(frozen=True)
class Pair:
    """One rank's place in a pair. Neighbours are paired, because they mostly share a machine."""

    half: int  # 0: has the first half of each utterance, 1: the second
    peer: int  # rank in the world
    group: distributed.ProcessGroup

    @property
    def first(self) -> bool:
        return self.half == 0


def pair_up() -> Pair:
    """The pair of this rank. Every rank of the world has to call it, as each group is made by all of them.

    ValueError when the world cannot be paired.
    """
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    if world % 2:
        raise ValueError(f"{world} processes cannot be paired: splitting utterances in time takes an even number")
    rank = distributed.get_rank()
    groups = [cast(distributed.ProcessGroup, distributed.new_group([i, i + 1])) for i in range(0, world, 2)]
    return Pair(rank % 2, rank ^ 1, groups[rank // 2])


def data_rank_and_world(rank: int, world: int) -> tuple[int, int]:
    """Which share of the data a rank reads, of how many: both of a pair read the same."""
    return rank // 2, world // 2


def split_forward(
    model: DeepSpeech, features: Tensor, lengths: Tensor, pair: Pair, chunking: Chunking | None = None
) -> tuple[Tensor, Tensor]:
    """`model(features, lengths, chunking)`, of which this rank computes its half: (B, T, F), (B,) -> (B, N, V), (B,).

    Both ranks get the whole result, equal to a single rank's to rounding. Dropout draws for each half by itself.
    """
    if model.gated:
        raise ValueError(
            "utterances are split in time for the cell 'clipped-relu' only: train 'gated' with data parallelism"
        )
    frames = -(-features.shape[1] // model.config.stride)
    middle = mid_point(frames, chunking)
    begin, end = (0, middle) if pair.first else (middle, frames)
    seam = _Seam(pair, model.config.clip, chunking)
    windows = _windows(model, features, lengths, begin, end, chunking)
    states, received = _states(model, windows, seam)
    mine = model._log_probs(states.transpose(0, 1).flatten(0, 1)[: end - begin])
    theirs = swap(mine, (frames - len(mine), *mine.shape[1:]), pair, received)
    halves = [mine, theirs] if pair.first else [theirs, mine]
    return torch.cat(halves).transpose(0, 1), -(-lengths // model.config.stride)


def mid_point(frames: int, chunking: Chunking | None) -> int:
    """How many output frames the first rank has: half of them, in whole chunks when the backward pass is cut."""
    size = 1 if chunking is None else chunking.frames
    chunks = -(-frames // size)
    return min(frames, (chunks + 1) // 2 * size)


def swap(mine: Tensor, shape: tuple[int, ...], pair: Pair, after: Tensor | None = None) -> Tensor:
    """The peer's tensor for mine; of the given shape and of my type.

    `after`: the result of an earlier swap. A swap whose result is used nowhere would have no backward pass, and the
    peer would wait for it for ever; this keeps it in the graph.
    """
    return cast(Tensor, _Swap.apply(mine, after, shape, pair))


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, after: Tensor | None, shape: tuple[int, ...], pair: Pair) -> Tensor:
        ctx.shape, ctx.pair = tuple(mine.shape), pair
        return _exchange(mine, shape, pair)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return _exchange(gradient, ctx.shape, ctx.pair), None, None, None


def _exchange(mine: Tensor, shape: tuple[int, ...], pair: Pair) -> Tensor:
    mine, theirs = mine.contiguous(), mine.new_empty(shape)
    ways = [
        distributed.P2POp(call, tensor, pair.peer, pair.group)
        for call, tensor in ((distributed.isend, mine), (distributed.irecv, theirs))
        if tensor.numel()  # both know the shapes: nothing is waited for where nothing is sent
    ]
    for work in distributed.batch_isend_irecv(ways) if ways else []:
        work.wait()
    return theirs


@dataclass(frozen=True)
class _Seam:
    """What the recurrences need to know about the mid-point. Backward states cross it only where they are not cut."""

    pair: Pair
    clip: float
    chunking: Chunking | None

    @property
    def right(self) -> int:
        return 0 if self.chunking is None else self.chunking.right


def _windows(
    model: DeepSpeech, features: Tensor, lengths: Tensor, begin: int, end: int, chunking: Chunking | None
) -> Tensor:
    """Inputs of the first recurrence for the output frames from begin to end, as windows (W, K, B, H).

    The right context of the last chunk belongs to the other half: both ranks compute layers 1 to 3 of it.
    """
    context, stride = model.config.context, model.config.stride
    valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
    padded = functional.pad(features * valid[..., None], (0, 0, context, context))
    stop = end if chunking is None else min(-(-features.shape[1] // stride), end + chunking.right)
    seen = padded[:, begin * stride : stop * stride + 2 * context + 1 - stride]  # the windows of these frames only
    inputs = model._recurrent_inputs(model._windows(seen)[:, : stop - begin]).transpose(0, 1)
    ended = torch.arange(begin, stop, device=lengths.device)[:, None] >= -(-lengths // stride)
    inputs = inputs.masked_fill(ended[..., None], float("-inf"))
    if chunking is None:
        return inputs[:, None]
    if begin == end:  # of a short batch the first rank has it all; the other's part stays in the graph
        return inputs.reshape(chunking.frames + chunking.right, 0, *inputs.shape[1:])
    return _cut(inputs, chunking)[:, : -(-(end - begin) // chunking.frames)]


def _states(model: DeepSpeech, windows: Tensor, seam: _Seam) -> tuple[Tensor, Tensor]:
    """Through all recurrences: sums of the directions of the last one, and what its swap received."""
    nothing = windows[..., :1] == float("-inf")
    weights = (model.forward_weight, model.backward_weight)
    sums, received = _both(windows, weights, seam, bool(model.deeper), None)
    path = None
    layer: Any  # a module list forgets what is in it
    for place, layer in enumerate(model.deeper, 1):
        path, inputs = layer(path, sums)
        weights = (layer.forward_weight, layer.backward_weight)
        more = place < len(model.deeper)
        sums, received = _both(inputs.masked_fill(nothing, float("-inf")), weights, seam, more, received)
    return sums, received


def _both(
    windows: Tensor, weights: tuple[Tensor, Tensor], seam: _Seam, more: bool, after: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both directions of one recurrence, (W, K, B, H): the direction that begins here, the swap, the other one.

    -> their sum, of the chunks or with `more` of the whole windows, and what was received.
    """
    size, chunks, batch, width = windows.shape
    frames, clip, whole = size - seam.right, seam.clip, seam.chunking is None
    main = windows[:frames].transpose(0, 1).reshape(chunks * frames, batch, width)
    beside = windows.flatten(1, 2)
    start, none = main.new_zeros(batch, width), beside.new_zeros(beside.shape[1:])
    if seam.pair.first:
        ahead = recur(main, weights[0], start, clip)
        received = swap(ahead[-1], (batch, width) if whole else (0, width), seam.pair, after)
        behind = recur(beside, weights[1], received if whole else none, clip, reverse=True)
    else:
        behind = recur(beside, weights[1], none, clip, reverse=True)
        edge = torch.cat([behind[:1], start[None]])[0] if whole else behind[:0]  # of an empty half: the start
        received = swap(edge, (batch, width), seam.pair, after)
        ahead = recur(main, weights[0], received, clip)
    ahead = ahead.unflatten(0, (chunks, frames))
    sums = ahead.transpose(0, 1)
    if more and seam.right:
        tail = recur(beside[frames:], weights[0], ahead[:, -1].flatten(0, 1), clip)
        sums = torch.cat([sums, tail.unflatten(1, (chunks, batch))])
    return sums + behind.unflatten(1, (chunks, batch))[: len(sums)], received
