"""The models under load: the shipped one, and the paper's width with random weights, which cost what trained ones cost.

A random network's letters mean nothing, but they have to come, or there would be no interim and no final results to
wait for. Its inputs and its output layer are therefore scaled on recorded speech: normal features, and logits that
change from frame to frame with the blank likeliest most of the time, as in a trained network.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asr_server.alphabet import BLANK, Alphabet
from asr_server.bundle import SHIPPED, SHIPPED_DEFAULT, SpeechBundle, save
from asr_server.decoding import DecodingOptions
from asr_server.features import Features
from asr_server.model import DeepSpeech, DeepSpeechConfig

BUNDLED = SHIPPED_DEFAULT
SPREAD = 3.0  # standard deviation of a symbol's logit over time
BLANK_MARGIN = 8.0  # of the blank's mean logit over the others', which wins most frames
SPACE_MARGIN = 2.5  # of the space's: words of a usual length
CHEAP = DecodingOptions(beam_width=4)

WIDE = DeepSpeechConfig(width=2048, context=9, stride=2, chunk=10, right=20)  # steps of 200 ms, 400 ms looked ahead


def shipped(folder: Path) -> tuple[Path, str]:
    """A models directory with the shipped bundle alone, and its name."""
    shutil.copytree(SHIPPED / BUNDLED, folder / BUNDLED)
    return folder, BUNDLED


def random(folder: Path, audio: Sequence[Tensor], config: DeepSpeechConfig = WIDE, seed: int = 0) -> tuple[Path, str]:
    """A models directory with a bundle of random weights, and its name. `audio`: (S,) in [-1, 1], to scale on."""
    name = f"random-{config.width}"
    features, model = Features(), seeded(config, seed)
    with torch.inference_mode():
        scale(features, model, audio)
    bundle = SpeechBundle(
        name=name,
        version="1",
        folder=folder / name,
        features=features,
        model=model,
        alphabet=Alphabet(),
        language_model=None,
        decoding=CHEAP,
        card="# Random weights\n\nMade by benchmarks.streaming for its load; it recognises nothing.\n",
    )
    save(bundle)
    return folder, name


def seeded(config: DeepSpeechConfig, seed: int) -> DeepSpeech:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepSpeech(config).eval().requires_grad_(False)


def scale(features: Features, model: DeepSpeech, audio: Sequence[Tensor]) -> None:
    """Standardise the features, then the logits of each symbol, over all frames of the audio."""
    spectrum = torch.cat([features.spectrum(samples) for samples in audio])
    features.set_statistics(spectrum.mean(dim=0), spectrum.std(dim=0).clamp(min=1e-3))
    logits = torch.cat([_logits(features, model, samples) for samples in audio])
    gain = SPREAD / logits.std(dim=0).clamp(min=1e-6)
    output = model.output
    output.weight.mul_(gain[:, None])
    output.bias.copy_((output.bias - logits.mean(dim=0)) * gain)
    output.bias[BLANK] += BLANK_MARGIN
    output.bias[Alphabet().labels.index(" ")] += SPACE_MARGIN


def _logits(features: Features, model: DeepSpeech, samples: Tensor) -> Tensor:
    """(S,) -> (N, V): up to the constant of the softmax, which standardising takes out on average."""
    frames, lengths = features(samples[None], torch.tensor([len(samples)]))
    log_probs, _ = model(frames, lengths, model.config.chunking)
    centred: Tensor = log_probs[0] - log_probs[0].mean(dim=-1, keepdim=True)
    return centred
