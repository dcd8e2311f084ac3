"""Packed products against their arithmetic, and packed networks against the network as it was trained."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_server import bundle, precision
from asr_server.bundle import SpeechBundle
from asr_server.model import DeepSpeech, DeepSpeechConfig, ModelState
from asr_server.native import core
from asr_server.precision import DEFAULT_CHUNKING, Int8Product, NativeInt8Product, available, for_streaming
from asr_server.recurrence import recur

INT8 = [Int8Product, *([NativeInt8Product] if NativeInt8Product.supported() else [])]
WIDTHS = (28, 31, 512, 2048)
BATCHES = (1, 3, 8, 17)
RATE = 16000

int8 = pytest.mark.parametrize("product", INT8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_integers(weight: Tensor, rows: Tensor, signed: bool) -> Tensor:
    """W x as precision.py describes it, in exact integers: (O, I), (N, I) -> (N, O)."""
    scale = weight.abs().amax(1) / 127
    steps = 127 if signed else 255
    largest = rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    weights = torch.round(weight / scale[:, None]).double()
    inputs = torch.round(rows * (steps / largest)).double()
    return (inputs @ weights.T * scale * largest / steps).float()


@int8
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("inputs", "outputs"), [*((width, width) for width in WIDTHS), (1539, 70), (5, 1)])
def test_int8_products_are_those_of_integers(
    product: type[Int8Product], inputs: int, outputs: int, batch: int, signed: bool
) -> None:
    weight, bias = random(outputs, inputs) / inputs**0.5, random(outputs, seed=1)
    rows = random(batch, inputs, seed=2) * torch.arange(1, batch + 1)[:, None]  # a scale for each row
    rows = rows if signed else rows.relu()
    found = product(weight, bias, signed)(rows, -1.5, 2.0)
    expected = (by_integers(weight, rows, signed) + bias).clamp(-1.5, 2.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * batch)


@int8
def test_an_int8_product_by_hand(product: type[Int8Product]) -> None:
    weight = torch.tensor([[127.0, -1.0], [0.5, 0.254]])  # scales 1 and 0.5 / 127: 127 and -1, 127 and 65 steps
    rows = torch.tensor([[255.0, 2.4], [0.0, 0.0]])  # 255 and 2 steps
    found = product(weight, torch.tensor([0.0, 1.0]), False)(rows)
    expected = torch.tensor([[127 * 255 - 2.0, 1 + (127 * 255 + 65 * 2) * 0.5 / 127], [0.0, 1.0]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@int8
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_state_follows_from_the_one_before(
    product: type[Int8Product], width: int, batch: int, reverse: bool
) -> None:
    weight, initial = random(width, width) / width**0.5, random(batch, width, seed=1).relu()
    inputs = random(6, batch, width, seed=2)
    inputs[3:, : batch // 2] = -torch.inf
    states = recur(inputs, product(weight, None, False), initial, 1.5, reverse=reverse)
    before = torch.cat([states[1:], initial[None]] if reverse else [initial[None], states[:-1]])
    expected = inputs + by_integers(weight, before.flatten(0, 1), signed=False).unflatten(0, (6, batch))
    torch.testing.assert_close(states, expected.clamp(0, 1.5), rtol=0, atol=1e-5)
    assert not states[3:, : batch // 2].any()


@int8
def test_a_recurrence_of_no_frames_or_no_streams_is_empty(product: type[Int8Product]) -> None:
    packed = product(random(5, 5), None, False)
    assert recur(random(0, 3, 5), packed, random(3, 5), 1.0).shape == (0, 3, 5)
    assert recur(random(4, 0, 5), packed, random(0, 5), 1.0).shape == (4, 0, 5)


@int8
def test_what_is_no_number_stays_visible_in_its_row(product: type[Int8Product]) -> None:
    rows = random(9, 20).relu()
    rows[4, 7] = torch.nan
    found = product(random(20, 20, seed=1), None, False)(rows, 0.0, 20.0)
    assert found.isnan().all(1).tolist() == [row == 4 for row in range(9)]
    assert not found[[row for row in range(9) if row != 4]].isnan().any()


@int8
def test_threads_share_a_product(product: type[Int8Product]) -> None:
    packed = product(random(200, 200) / 14, None, False)
    inputs = [random(20, 5, 200, seed=seed) for seed in range(8)]

    def states(inputs: Tensor) -> Tensor:
        return recur(inputs, packed, torch.zeros(5, 200), 20.0)

    with ThreadPoolExecutor(4) as threads:
        for alone, beside in zip(map(states, inputs), threads.map(states, inputs), strict=True):
            torch.testing.assert_close(beside, alone, rtol=0, atol=0)


if NativeInt8Product.supported():  # nothing to test elsewhere: torch's products serve there

    @pytest.mark.parametrize("outputs", [1, 16, 29, 32, 33])
    @pytest.mark.parametrize("batch", [1, 7, 8, 9])
    def test_the_native_product_writes_its_results_and_nothing_beside_them(batch: int, outputs: int) -> None:
        matrix = core.ByteMatrix(np.ones((outputs, 6), np.float32), None, False)
        memory = np.full((batch + 2, outputs), 7, np.float32)
        matrix.multiply(np.ones((batch, 6), np.float32), 0.0, 20.0, memory[1:-1])
        assert (memory[[0, -1]] == 7).all()
        np.testing.assert_allclose(memory[1:-1], 6, rtol=1e-6)

    def test_the_native_product_refuses_shapes_that_do_not_fit() -> None:
        matrix = core.ByteMatrix(np.ones((4, 3), np.float32), None, False)
        rows, results = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
        for wrong in ((rows[:, :2].copy(), results), (rows, results[:1]), (rows, rows)):
            with pytest.raises(ValueError, match="4 outputs and 3 inputs"):
                matrix.multiply(wrong[0], 0.0, 1.0, wrong[1])
        with pytest.raises(ValueError, match="4 outputs and 3 inputs"):
            matrix.recur(results[None], results, 1.0, False, results[None])  # not a square matrix
        with pytest.raises(ValueError, match="bias of 3 for 4 outputs"):
            core.ByteMatrix(np.ones((4, 3), np.float32), np.ones(3, np.float32), False)

    def test_a_network_hears_the_same_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
        features = [random(40, 5, seed=seed) for seed in range(3)]
        native = heard(for_streaming(network(), "int8"), features)
        monkeypatch.setattr(NativeInt8Product, "supported", lambda: False)
        packed = for_streaming(network(), "int8")
        assert isinstance(packed.forward_weight, Int8Product)
        for found, expected in zip(heard(packed, features), native, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # a step of rounding, carried on


def network(
    normalisation: str = "none", chunk: int | None = 4, width: int = 96, layers: int = 1, cell: str = "clipped-relu"
) -> DeepSpeech:
    torch.manual_seed(0)
    config = DeepSpeechConfig(
        features=5,
        symbols=6,
        width=width,
        context=3,
        normalisation=normalisation,
        recurrent_layers=layers,
        cell=cell,
        chunk=chunk,
        right=3 if chunk else 0,
    )
    return DeepSpeech(config).eval().requires_grad_(False)


def heard(model: DeepSpeech, features: Sequence[Tensor], cut: int = 20) -> list[Tensor]:
    """Log probabilities of streams that are served together, in two steps."""
    starts: list[ModelState] = [model.initial_state() for _ in features]
    first, states = model.step_all([rows[:cut] for rows in features], starts, [False] * len(features))
    second, _ = model.step_all([rows[cut:] for rows in features], states, [True] * len(features))
    return [torch.cat(parts) for parts in zip(first, second, strict=True)]


@pytest.mark.parametrize("normalisation", ["none", "layer"])
@pytest.mark.parametrize("name", available())
def test_a_stream_is_not_changed_by_its_company(normalisation: str, name: str) -> None:
    model = for_streaming(network(normalisation), name)
    own = random(50, 5)
    company = [random(20 + 3 * seed, 5, seed=seed) * 10.0 ** (seed % 5 - 2) for seed in range(1, 21)]
    (alone,) = heard(model, [own])
    among = heard(model, [*company[:10], own, *company[10:]])[10]
    torch.testing.assert_close(among, alone, rtol=0, atol={"fp32": 1e-5, "bf16": 0.05, "int8": 1e-4}[name])


@pytest.mark.parametrize(
    ("normalisation", "layers", "cell"),
    [("none", 1, "clipped-relu"), ("layer", 1, "clipped-relu"), ("layer", 3, "clipped-relu"), ("layer", 2, "gated")],
)
@pytest.mark.parametrize("name", available())
def test_packed_networks_are_near_the_trained_one(normalisation: str, name: str, layers: int, cell: str) -> None:
    model = network(normalisation, layers=layers, cell=cell)
    features = [random(40, 5, seed=seed) for seed in range(3)]
    for found, expected in zip(heard(for_streaming(model, name), features), heard(model, features), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol={"fp32": 1e-5, "bf16": 0.05, "int8": 0.15}[name])
        assert torch.equal(found, expected) == (name == "fp32")  # that it is packed at all


def voice(seed: int, seconds: int = 3) -> Tensor:
    """Vowels of 0.2 s: harmonics of a random pitch under three formants."""
    random, time = np.random.default_rng(seed), np.arange(RATE // 5) / RATE
    syllables = []
    for _ in range(5 * seconds):
        formants = random.uniform([300, 900, 2200], [800, 2000, 3000])
        harmonics = random.uniform(100, 160) * np.arange(1, 30)
        loudness = np.exp(-(((harmonics[:, None] - formants) / 150) ** 2)).sum(1)
        vowel = loudness @ np.sin(2 * np.pi * harmonics[:, None] * time)
        syllables.append(vowel * np.hanning(len(time)) * random.choice([0, 0.2, 0.2, 0.2]))
    return torch.from_numpy(np.concatenate(syllables) + 0.001 * random.standard_normal(seconds * RATE)).float()


@pytest.fixture(scope="module", params=[folder.name for folder in bundle.find(bundle.SHIPPED)])
def shipped(request: pytest.FixtureRequest) -> SpeechBundle:
    return bundle.load(bundle.SHIPPED / request.param)


@pytest.mark.parametrize("name", available())
def test_the_shipped_bundle_hears_the_same_in_every_precision(shipped: SpeechBundle, name: str) -> None:
    with torch.inference_mode():
        features = [shipped.features(voice(seed)[None], torch.tensor([3 * RATE]))[0][0] for seed in range(3)]
        expected = torch.cat(heard(shipped.model, features, 100))
        found = torch.cat(heard(for_streaming(shipped.model, name), features, 100))
    assert (found - expected).abs().mean() < {"fp32": 1e-4, "bf16": 0.1, "int8": 0.3}[name]
    first, second = expected.topk(2).values.unbind(1)
    sure = first - second > 1.5  # babble: at some frames two letters are as likely
    assert sure.float().mean() > {"deepspeech-an4": 0.8, "deepspeech-en": 0.5}[shipped.name]
    assert torch.equal(found.argmax(1)[sure], expected.argmax(1)[sure])
    assert len(shipped.alphabet.collapse(expected.argmax(1).tolist())) > 30  # not silence


@pytest.mark.parametrize("name", available())
def test_serving_leaves_the_trained_model_as_it_is_and_gives_it_chunks(name: str) -> None:
    model = network(chunk=None)
    before = heard_whole(model)
    streaming = for_streaming(model, name)
    assert streaming.config.chunking == DEFAULT_CHUNKING
    assert model.config.chunking is None
    torch.testing.assert_close(heard_whole(model), before, rtol=0, atol=0)
    assert for_streaming(network(chunk=4), name).config.chunking == network(chunk=4).config.chunking
    log_probs, _ = streaming.step(random(220, 5), streaming.initial_state())
    assert len(log_probs) == DEFAULT_CHUNKING.frames  # 108 frames are known, 100 make a chunk and its right context


def heard_whole(model: DeepSpeech) -> Tensor:
    log_probs: Tensor = model(random(1, 30, 5), torch.tensor([30]))[0]
    return log_probs


@pytest.mark.parametrize("name", ["int8", "fp64"])
def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lacks: Callable[[], tuple[str, ...]] = lambda: ("fp32", "bf16")  # noqa: E731
    monkeypatch.setattr(precision, "available", lacks)
    with pytest.raises(ValueError, match=rf"'{name}' is not one of this processor's. Select one of \('fp32', 'bf16'\)"):
        for_streaming(network(), name)


def test_narrow_networks_are_not_served_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "available", lambda: ("fp32", "bf16", "int8"))
    assert precision.fastest(network(width=precision.NARROW)) == "int8"
    assert precision.fastest(network()) == "bf16"
    monkeypatch.setattr(precision, "available", lambda: ("fp32",))
    assert precision.fastest(network(width=precision.NARROW)) == "fp32"
