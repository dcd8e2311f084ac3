import math

import pytest
import torch
from torch import Tensor

from asr_server.features import FeatureConfig
from asr_server.model import CELLS, NORMALISATIONS, Chunking, DeepSpeech, DeepSpeechConfig
from asr_server.recurrence import recur
from tests.cuts import random_cuts

CUTS = [None, Chunking(1, 0), Chunking(7, 4), Chunking(4, 9)]


def network(
    cut: Chunking | None = None,
    normalisation: str = "none",
    stride: int = 2,
    dropout: float = 0.1,
    recurrent_layers: int = 1,
    cell: str = "clipped-relu",
) -> DeepSpeech:
    torch.manual_seed(0)
    config = DeepSpeechConfig(
        features=5,
        symbols=6,
        width=16,
        context=3,
        stride=stride,
        dropout=dropout,
        normalisation=normalisation,
        recurrent_layers=recurrent_layers,
        cell=cell,
        chunk=cut.frames if cut else None,
        right=cut.right if cut else 0,
    )
    return DeepSpeech(config).eval().requires_grad_(False)


def speech(frames: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, 5, generator=torch.Generator().manual_seed(seed))


def by_the_paper(model: DeepSpeech, x: Tensor) -> Tensor:
    """The paper's equations frame by frame for one utterance, (T, F) -> (N, V)."""
    config, weights = model.config, model.state_dict()
    frames = []
    for t in range(0, len(x), config.stride):
        around = [
            x[u] if 0 <= u < len(x) else torch.zeros(5) for u in range(t - config.context, t + config.context + 1)
        ]
        h = torch.cat(around)
        for layer in range(3):
            h = (weights[f"dense.{layer}.linear.weight"] @ h + weights[f"dense.{layer}.linear.bias"]).clamp(0, 20)
        frames.append(weights["recurrent_input.weight"] @ h + weights["recurrent_input.bias"])
    sums = both_ways(torch.stack(frames), model.forward_weight, model.backward_weight)
    path = torch.zeros_like(sums)
    for layer in range(config.recurrent_layers - 1):  # of Deep Speech 2
        weight = {name: weights[f"deeper.{layer}.{name}"] for name in ("project.weight", "linear.weight")}
        path = path + sums @ weight["project.weight"].T + weights[f"deeper.{layer}.project.bias"]
        inputs = path @ weight["linear.weight"].T + weights[f"deeper.{layer}.linear.bias"]
        sums = both_ways(inputs, *(weights[f"deeper.{layer}.{way}_weight"] for way in ("forward", "backward")))
    symbols = []
    for s in sums:
        h = (weights["merge.linear.weight"] @ s + weights["merge.linear.bias"]).clamp(0, 20)
        symbols.append(torch.log_softmax(weights["output.weight"] @ h + weights["output.bias"], 0))
    return torch.stack(symbols)


def both_ways(inputs: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """The sum of the two directions, (N, H) -> (N, H)."""
    ahead, behind = [torch.zeros(inputs.shape[1])], [torch.zeros(inputs.shape[1])]
    for z in inputs:
        ahead.append((z + forward @ ahead[-1]).clamp(0, 20))
    for z in inputs.flip(0):
        behind.append((z + backward @ behind[-1]).clamp(0, 20))
    return torch.stack(ahead[1:]) + torch.stack(behind[1:]).flip(0)


@pytest.mark.parametrize("recurrent_layers", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_forward_is_the_paper(stride: int, recurrent_layers: int) -> None:
    model = network(stride=stride, recurrent_layers=recurrent_layers)
    x = speech(20)
    found, lengths = model(x, torch.tensor([20]))
    assert lengths.tolist() == [math.ceil(20 / stride)]
    torch.testing.assert_close(found[0], by_the_paper(model, x[0]), rtol=0, atol=1e-5)


def test_the_paper_sized_network_has_its_parameters() -> None:
    with torch.device("meta"):
        model = DeepSpeech(DeepSpeechConfig())
    H, window = 2048, 19 * 81
    square = H * H
    assert sum(p.numel() for p in model.parameters()) == H * window + 6 * square + 5 * H + 29 * H + 29


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("frames", [1, 2, 29, 60])
@pytest.mark.parametrize("recurrent_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_equals_the_whole_in_the_same_chunks(
    cut: Chunking | None, normalisation: str, frames: int, recurrent_layers: int, cell: str
) -> None:
    model = network(cut, normalisation, recurrent_layers=recurrent_layers, cell=cell)
    x = speech(frames, seed=frames)
    whole, lengths = model(x, torch.tensor([frames]), cut)
    for seed in range(4):
        state, parts = model.initial_state(), []
        for chunk in random_cuts(x[0], seed, longest=25):
            part, state = model.step(chunk, state)
            parts.append(part)
        parts.append(model.finish(state))
        assert len(torch.cat(parts)) == lengths.item()
        torch.testing.assert_close(torch.cat(parts), whole[0], rtol=0, atol=1e-5)


def test_a_stream_answers_after_chunk_right_context_and_window() -> None:
    model = network(Chunking(7, 4))
    needed = 3 + 2 * (7 + 4 - 1) + 1  # half of layer 1's window behind the last of 11 output frames
    early, state = model.step(speech(needed - 1)[0], model.initial_state())
    late, state = model.step(speech(1)[0], state)
    assert (len(early), len(late)) == (0, 7)
    assert len(state.heard) <= 7  # no more than a window is kept however long the stream
    assert len(state.pending) == 4


def test_an_empty_stream_has_no_output() -> None:
    model = network(Chunking(7, 4))
    assert model.finish(model.initial_state()).shape == (0, 6)


@pytest.mark.parametrize("cell", CELLS)
def test_a_deeper_layer_hears_no_more_than_the_window(cell: str) -> None:
    model = network(Chunking(7, 4), recurrent_layers=3, cell=cell)
    x = speech(80)
    heard = 3 + 2 * (7 + 4 - 1) + 1  # as in the test above: what the first chunk's output may depend on
    changed = x.clone()
    changed[0, heard:] += 1
    first, second = (model(each, torch.tensor([80]), Chunking(7, 4))[0][0] for each in (x, changed))
    torch.testing.assert_close(first[:7], second[:7], rtol=0, atol=1e-6)
    assert not torch.allclose(first[7:14], second[7:14], atol=1e-4)


@pytest.mark.parametrize("recurrent_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cut", CUTS)
def test_padding_and_neighbours_change_nothing(cut: Chunking | None, recurrent_layers: int, cell: str) -> None:
    model = network(cut, recurrent_layers=recurrent_layers, cell=cell)
    x = speech(40, batch=3)
    lengths = torch.tensor([40, 17, 1])
    together, frames = model(x, lengths, cut)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = model(x[row : row + 1, :length], torch.tensor([length]), cut)
        torch.testing.assert_close(together[row, : frames[row]], alone[0], rtol=0, atol=1e-5)


def test_one_chunk_over_everything_is_the_whole() -> None:
    model = network()
    x, lengths = speech(33, batch=2), torch.tensor([33, 20])
    torch.testing.assert_close(model(x, lengths)[0][0], model(x, lengths, Chunking(17, 0))[0][0], rtol=0, atol=1e-5)


def test_chunks_do_not_see_beyond_their_right_context() -> None:
    model = network(dropout=0.0)
    cut, length = Chunking(5, 3), torch.tensor([60])
    x = speech(60)
    changed = x.clone()
    changed[:, 30:] += 1.0  # the first window that sees it is output frame 14: input frames 25 to 31
    before, after = model(x, length, cut)[0][0], model(changed, length, cut)[0][0]
    assert torch.equal(before[:10], after[:10])  # chunk 5..9 reads up to 12
    assert not torch.allclose(before[10:14], after[10:14])  # chunk 10..14 reads up to 17
    whole = model(changed, length)[0][0]
    assert not torch.allclose(model(x, length)[0][0][:10], whole[:10])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_of_the_recurrence_is_autograd_s(reverse: bool) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(6, 2, 4), torch.randn(4, 4) * 0.5, torch.rand(2, 4)]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    plain = [tensor.clone().requires_grad_() for tensor in inputs]
    states = recur(ours[0], ours[1], ours[2], 1.0, reverse=reverse)
    state, expected = plain[2], {}
    for t in reversed(range(6)) if reverse else range(6):
        state = expected[t] = (plain[0][t] + state @ plain[1].t()).clamp(0, 1.0)
    stacked = torch.stack([expected[t] for t in range(6)])
    torch.testing.assert_close(states, stacked)
    weights = torch.randn(6, 2, 4)
    (states * weights).sum().backward()
    (stacked * weights).sum().backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_dropout_is_on_the_feed_forward_layers_only_and_off_in_evaluation() -> None:
    model = network(dropout=0.5)
    x, length = speech(10), torch.tensor([10])
    assert torch.equal(model(x, length)[0], model(x, length)[0])
    assert sum(isinstance(module, torch.nn.Dropout) for module in model.modules()) == 4
    model.train()
    assert not torch.equal(model(x, length)[0], model(x, length)[0])


def test_the_frame_rate() -> None:
    assert network(stride=3).frame_seconds(FeatureConfig()) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"width": 0}, "width is 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"normalisation": "batch"}, "Select one of"),
        ({"cell": "lstm"}, "Select one of"),
        ({"recurrent_layers": 0}, "recurrent_layers is 0"),
        ({"chunk": 0}, "chunk of 0"),
        ({"chunk": 4, "right": -1}, "right context -1"),
    ],
)
def test_impossible_configurations(wrong: dict[str, int | float | str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DeepSpeechConfig(**wrong)  # type: ignore[arg-type]
