"""Deep Speech (Hannun et al. 2014, arXiv 1412.5567): five layers, one of them recurrent, and a softmax over letters.

With `recurrent_layers` above 1 there are more recurrences between layers 4 and 5, as in Deep Speech 2 (Amodei et al.
2015, arXiv 1512.02595), each on a residual path. With the cell "gated" all of them have gates (gated.py).

Dimension letters: B batch, T input frames, N output frames (T / stride, rounded up), F features, C context frames on
each side, H hidden, V symbols, L recurrent layers, K chunks, W frames of a window: a chunk and its right context.
`forward` and `step` are two doors to the same private functions.

Streaming a bidirectional layer: the forward state is carried for ever; the backward recurrence starts from zero
`right` frames after the end of each chunk of `frames` and is kept for the chunk only. A deeper layer hears the same
window and no more, so its forward recurrence runs through the right context too, from the state at the chunk's end, and
forgets that. Latency: one chunk, its right context and the C frames of layer 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_server.features import FeatureConfig
from asr_server.gated import GatedLayer
from asr_server.recurrence import recur

NORMALISATIONS = ("none", "layer")
CELLS = ("clipped-relu", "gated")


@dataclass(frozen=True)
class Chunking:
    """How the backward recurrence is cut, in output frames: chunks of `frames`, each with `right` frames after it."""

    frames: int
    right: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.right < 0:
            raise ValueError(f"chunk of {self.frames} with right context {self.right}: at least 1 and 0 frames")


@dataclass(frozen=True)
class DeepSpeechConfig:
    """Size and shape. The paper: width 2048, context 5, 7 or 9, clip 20, dropout 0.05 to 0.1, no normalisation."""

    features: int = 81
    symbols: int = 29
    width: int = 2048
    context: int = 9
    stride: int = 2
    dropout: float = 0.05
    clip: float = 20.0
    normalisation: str = "none"
    recurrent_layers: int = 1  # the paper's; Deep Speech 2 has up to 7
    cell: str = "clipped-relu"  # of the recurrences
    chunk: int | None = None  # output frames; None: the backward recurrence waits for the end of the utterance
    right: int = 0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("features", "symbols", "width", "stride", "recurrent_layers")}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1")
        if self.stride > 2 * self.context + 1:
            raise ValueError(f"stride {self.stride} skips frames: at most 2 context + 1 = {2 * self.context + 1}")
        if self.context < 0 or not 0 <= self.dropout < 1 or self.clip <= 0:
            raise ValueError(
                f"context {self.context}, dropout {self.dropout}, clip {self.clip}: "
                "context is not negative, dropout in [0, 1), clip positive"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation is {self.normalisation!r}. Select one of {NORMALISATIONS}")
        if self.cell not in CELLS:
            raise ValueError(f"cell is {self.cell!r}. Select one of {CELLS}")
        _ = self.chunking

    @property
    def chunking(self) -> Chunking | None:
        """How a stream is cut; None when it is not."""
        return None if self.chunk is None else Chunking(self.chunk, self.right)


@dataclass(frozen=True)
class ModelState:
    """What a stream carries. `heard`: the input frames that later windows of layer 1 still need, with the zeros before
    the first frame. `pending`: inputs of the recurrence whose outputs wait for their right context."""

    heard: Tensor  # (T, F)
    pending: Tensor  # (N, H)
    forward: Tensor  # (L, H)


class DeepSpeech(nn.Module):
    """Normalised features to log probabilities of symbols (natural logarithm)."""

    def __init__(self, config: DeepSpeechConfig) -> None:
        super().__init__()
        self.config = config
        window = (2 * config.context + 1) * config.features
        self.dense = nn.ModuleList(_Dense(size, config) for size in (window, config.width, config.width))
        self.gated, self.deeper = nn.ModuleList(), nn.ModuleList()
        if config.cell == "gated":
            self.gated.extend(GatedLayer(config.width, config.dropout) for _ in range(config.recurrent_layers))
        else:
            self.recurrent_input = nn.Linear(config.width, config.width)  # W4 and b4, shared by the directions
            self.recurrent_norm = _normalisation(config)
            self.forward_weight = nn.Parameter(_recurrent_weight(config.width))
            self.backward_weight = nn.Parameter(_recurrent_weight(config.width))
            self.deeper.extend(_Deeper(config) for _ in range(config.recurrent_layers - 1))
            nn.init.zeros_(self.recurrent_input.bias)
        self.merge = _Dense(config.width, config)
        self.output = nn.Linear(config.width, config.symbols)

    def frame_seconds(self, features: FeatureConfig) -> float:
        """Seconds from one output frame to the next."""
        return features.hop_seconds * self.config.stride

    def forward(self, features: Tensor, lengths: Tensor, chunking: Chunking | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, N, V), (B,). What lies after an utterance's end never changes its result."""
        valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        edge = self.config.context
        padded = functional.pad(features * valid[..., None], (0, 0, edge, edge))
        lengths = (lengths + self.config.stride - 1) // self.config.stride
        inputs = self._recurrent_inputs(self._windows(padded)).transpose(0, 1)  # (N, B, H)
        ended = torch.arange(len(inputs), device=lengths.device)[:, None] >= lengths
        inputs = inputs.masked_fill(ended[..., None], float("-inf"))
        cut = chunking or Chunking(max(1, len(inputs)), 0)
        start = inputs.new_zeros(self.config.recurrent_layers, *inputs.shape[1:])
        states, _ = self._states(_cut(inputs, cut), start, cut.right)
        states = states.transpose(0, 1).flatten(0, 1)[: len(inputs)]
        return self._log_probs(states).transpose(0, 1), lengths

    def initial_state(self) -> ModelState:
        """State of a stream that has heard nothing: the context before the first frame is zero."""
        new = self.output.bias.new_zeros
        return ModelState(
            new(self.config.context, self.config.features),
            new(0, self.config.width),
            new(self.config.recurrent_layers, self.config.width),
        )

    def step(self, features: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """(T, F) -> (N, V) for the chunks that these frames complete; N may be 0."""
        (log_probs,), (state,) = self.step_all([features], [state], [False])
        return log_probs, state

    def finish(self, state: ModelState) -> Tensor:
        """The rest of the stream, (N, V): the context after the last frame is zero."""
        (log_probs,), _ = self.step_all([state.heard[:0]], [state], [True])
        return log_probs

    def step_all(
        self, features: Sequence[Tensor], states: Sequence[ModelState], last: Sequence[bool]
    ) -> tuple[list[Tensor], list[ModelState]]:
        """`step` of many streams at once, (T, F) each -> (N, V) each; `finish` too where `last` says so.

        Streams share matrix products and nothing else: company changes a result by rounding only.
        """
        pending, heard = self._hear(features, states, last)
        ahead = [state.forward for state in states]
        emitted: list[list[Tensor]] = [[] for _ in states]
        cut = self.config.chunking or Chunking(max(1, *(len(inputs) for inputs in pending)), 0)
        while ready := [i for i, inputs in enumerate(pending) if self._can_emit(len(inputs), last[i])]:
            log_probs, carried = self._emit([pending[i] for i in ready], torch.stack([ahead[i] for i in ready], 1), cut)
            for place, i in enumerate(ready):
                emitted[i].append(log_probs[: len(pending[i]), place])
                pending[i] = pending[i][cut.frames :]
                ahead[i] = carried[:, place]
        # Clones, because a view would keep all streams' rows alive.
        after = [
            ModelState(frames.clone(), inputs.clone(), state.clone())
            for frames, inputs, state in zip(heard, pending, ahead, strict=True)
        ]
        return [self._join(chunks) for chunks in emitted], after

    def _can_emit(self, frames: int, last: bool) -> bool:
        cut = self.config.chunking
        return frames > 0 if last else cut is not None and frames >= cut.frames + cut.right

    def _hear(
        self, features: Sequence[Tensor], states: Sequence[ModelState], last: Sequence[bool]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Carry new frames through layers 1 to 3 as far as their context is known: (N, H) and (T, F) of each stream."""
        nothing = self.output.bias.new_zeros(self.config.context, self.config.features)
        heard = [
            torch.cat([state.heard, frames, nothing] if ends else [state.heard, frames])
            for frames, state, ends in zip(features, states, last, strict=True)
        ]
        windows = [self._windows(frames) for frames in heard]  # (N, (2 C + 1) F)
        counts = [len(rows) for rows in windows]
        inputs = self._recurrent_inputs(torch.cat(windows)).split(counts)
        pending = [torch.cat([state.pending, rows]) for state, rows in zip(states, inputs, strict=True)]
        return pending, [frames[count * self.config.stride :] for frames, count in zip(heard, counts, strict=True)]

    def _emit(self, pending: Sequence[Tensor], start: Tensor, cut: Chunking) -> tuple[Tensor, Tensor]:
        """One chunk of each stream, (chunk, B, V), and the forward states (L, B, H) after it."""
        size = cut.frames + cut.right
        inputs = start.new_full((size, 1, len(pending), self.config.width), float("-inf"))
        for place, rows in enumerate(pending):
            inputs[: len(rows), 0, place] = rows[:size]
        states, carried = self._states(inputs, start, cut.right)
        return self._log_probs(states[:, 0]), carried

    def _join(self, chunks: list[Tensor]) -> Tensor:
        return torch.cat(chunks) if chunks else self.output.bias.new_zeros(0, self.config.symbols)

    def _windows(self, padded: Tensor) -> Tensor:
        """(..., T + 2 C, F) -> (..., N, (2 C + 1) F): every window that is complete."""
        size, stride = 2 * self.config.context + 1, self.config.stride
        if padded.shape[-2] < size:
            return padded.new_zeros(*padded.shape[:-2], 0, size * self.config.features)
        return padded.unfold(-2, size, stride).transpose(-1, -2).flatten(-2)

    def _recurrent_inputs(self, windows: Tensor) -> Tensor:
        """(..., (2 C + 1) F) -> (..., H): layers 1 to 3 and W4 h3 + b4; gated layers have their own products."""
        hidden = windows
        for layer in self.dense:
            hidden = layer(hidden)
        if self.gated:
            return hidden
        inputs: Tensor = self.recurrent_norm(self.recurrent_input(hidden))
        return inputs

    def _states(self, windows: Tensor, start: Tensor, right: int) -> tuple[Tensor, Tensor]:
        """Through all recurrences: inputs of the first (W, K, B, H) and states before the first chunk (L, B, H) ->
        sums of the last one's directions (chunk, K, B, H) and states after the last chunk. Chunks follow each other in
        the forward direction and run beside each other, as one larger batch, in all else."""
        nothing = windows[..., :1] == float("-inf")
        if self.gated:
            return self._gated_states(windows.masked_fill(nothing, 0.0), (~nothing).to(windows.dtype), start, right)
        sums, carried = self._both(windows, self, start[0], right, more=bool(self.deeper))
        after, path = [carried], None
        for place, layer in enumerate(self.deeper, 1):
            path, inputs = layer(path, sums)
            inputs = inputs.masked_fill(nothing, float("-inf"))
            sums, carried = self._both(inputs, layer, start[place], right, more=place < len(self.deeper))
            after.append(carried)
        return sums, torch.stack(after)

    def _gated_states(self, hidden: Tensor, heard: Tensor, start: Tensor, right: int) -> tuple[Tensor, Tensor]:
        after = []
        for place, layer in enumerate(self.gated):
            more = place < len(self.gated) - 1
            hidden, carried = layer(hidden, heard[: len(hidden)], start[place], right, more)
            after.append(carried)
        return hidden, torch.stack(after)

    def _both(self, windows: Tensor, layer: Any, start: Tensor, right: int, more: bool) -> tuple[Tensor, Tensor]:
        """The bidirectional recurrence with the weights of `layer`: inputs (W, K, B, H) and the state (B, H) before the
        first chunk -> the sum of both directions, of the chunks or with `more` of the whole windows, and the state
        after the last chunk."""
        size, chunks, batch, width = windows.shape
        frames, clip = size - right, self.config.clip
        main = windows[:frames].transpose(0, 1).reshape(chunks * frames, batch, width)
        ahead = recur(main, layer.forward_weight, start, clip).unflatten(0, (chunks, frames))
        beside = windows.flatten(1, 2)  # (W, K B, H)
        behind = recur(beside, layer.backward_weight, beside.new_zeros(beside.shape[1:]), clip, reverse=True)
        behind = behind.unflatten(1, (chunks, batch))
        sums = ahead.transpose(0, 1)
        if more and right:
            tail = recur(beside[frames:], layer.forward_weight, ahead[:, -1].flatten(0, 1), clip)
            sums = torch.cat([sums, tail.unflatten(1, (chunks, batch))])
        return sums + behind[: len(sums)], ahead[-1, -1]

    def _log_probs(self, states: Tensor) -> Tensor:
        """Layer 5 and the softmax on the summed directions, (N, B, H) -> (N, B, V)."""
        log_probs: Tensor = functional.log_softmax(self.output(self.merge(states)).float(), dim=-1)
        return log_probs


class _Dense(nn.Module):
    """A clipped-ReLU layer with dropout, the same weights at every frame."""

    def __init__(self, inputs: int, config: DeepSpeechConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, config.width)
        self.norm = _normalisation(config)
        self.dropout = nn.Dropout(config.dropout)
        self.clip = config.clip
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.dropout(self.norm(self.linear(inputs)).clamp(0, self.clip))
        return hidden


class _Deeper(nn.Module):
    """A recurrence above another: what leads to it, and its weights."""

    def __init__(self, config: DeepSpeechConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.width, config.width)
        self.linear = nn.Linear(config.width, config.width)
        self.norm = _normalisation(config)
        self.dropout = config.dropout
        self.forward_weight = nn.Parameter(_recurrent_weight(config.width))
        self.backward_weight = nn.Parameter(_recurrent_weight(config.width))
        nn.init.zeros_(self.linear.bias)
        for passing in (self.project, self.linear):  # at first a new layer passes on what the one below says
            with torch.no_grad():
                passing.weight.mul_(0.3).add_(torch.eye(config.width))

    def forward(self, path: Tensor | None, states: Tensor) -> tuple[Tensor, Tensor]:
        """The residual path so far and the states below, (..., H) -> the path (..., H) and this recurrence's inputs."""
        step = self.project(self._drop(states))
        path = step if path is None else path[: len(step)] + step
        return path, self.norm(self.linear(path))

    def _drop(self, states: Tensor) -> Tensor:
        """Dropout of whole units (Gal and Ghahramani 2016, arXiv 1512.05287): one mask for all frames of a window."""
        if not self.training or not self.dropout:
            return states
        kept = torch.empty_like(states[:1]).bernoulli_(1 - self.dropout)
        return states * kept.div_(1 - self.dropout)


def _cut(inputs: Tensor, cut: Chunking) -> Tensor:
    """(N, B, H) -> windows (W, K, B, H); -inf beyond the end."""
    chunks = -(-len(inputs) // cut.frames)
    after = chunks * cut.frames + cut.right - len(inputs)
    padded = functional.pad(inputs, (0, 0, 0, 0, 0, after), value=float("-inf")) if after else inputs
    return padded.unfold(0, cut.frames + cut.right, cut.frames).permute(3, 0, 1, 2)


def _normalisation(config: DeepSpeechConfig) -> nn.Module:
    return nn.LayerNorm(config.width) if config.normalisation == "layer" else nn.Identity()


def _recurrent_weight(width: int) -> Tensor:
    """A scaled identity plus a little noise: units that remember for between one and about ten frames.

    A ReLU recurrence learns from the identity (Le et al. 2015, arXiv 1504.00941); below one it cannot run away.
    """
    remembered = torch.diag(torch.empty(width).uniform_(0.0, 0.9))
    weight: Tensor = remembered + torch.randn(width, width) * (0.2 / width**0.5)
    return weight
