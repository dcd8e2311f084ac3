"""A bundle at work on whole recordings, offline or as a stream, for evaluation and tuning.

Offline, two things of the paper (sections 2.1 and 5.1) make it surer for a multiple of the time: jitter, where the
network hears a recording three times, shifted by half a feature's hop to the left and to the right, and ensembles of
several bundles. Both average probabilities, not their logarithms.

Dimension letters: N outputs that are averaged, B copies, S samples, T frames, V symbols.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr_server import bundle
from asr_server.beam_search import BeamSearch, greedy
from asr_server.bundle import SpeechBundle
from asr_server.decoding import Hypothesis
from asr_server.endpoint import UNCUT, EndpointOptions
from asr_server.language_model import LanguageModel
from asr_server.precision import fastest, for_streaming
from asr_server.recognizer import Engine, Result, StreamOptions

Samples = NDArray[np.float32]  # (S,) in [-1, 1]
LogProbs = NDArray[np.float32]  # (T, V)
MODES = ("whole", "chunked", "streaming", "endpointed")
STREAMS = MODES[2:]


def find_bundle(name: str) -> Path:
    """A folder, or the shipped bundle of that name."""
    if Path(name).is_dir():
        return Path(name)
    shipped = bundle.find(bundle.SHIPPED) if bundle.SHIPPED.is_dir() else []
    for folder in shipped:
        if folder.name == name:
            return folder
    raise ValueError(f"bundle {name!r} is neither a folder nor shipped; shipped are {[each.name for each in shipped]}")


@dataclass(frozen=True)
class Setting:
    """Which bundle and how it decodes; small enough to be sent to other processes.

    mode: "whole" sees each recording to its end, "chunked" cuts the backward recurrence as the server does but works
    offline, "streaming" is the server's own path fed piece by piece, "endpointed" also lets pauses end utterances.
    """

    bundle: Path
    mode: str = "whole"
    greedy: bool = False
    language_model: str | None = None  # "none": without; a file: instead of the bundle's own
    decoding: tuple[tuple[str, Any], ...] = ()  # DecodingOptions that replace the bundle's
    piece: float = 0.1  # seconds of audio in a message of a stream
    others: tuple[Path, ...] = ()  # bundles whose output probabilities are averaged with the first one's
    jitter: bool = False
    precision: str = "fp32"  # of the network's products, as in asr_server.precision; "auto": as the server chooses

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}. Select one of {MODES}")
        if self.greedy and self.mode in STREAMS:
            raise ValueError("the server decodes streams with the beam search: --greedy goes with --chunked")
        if (self.others or self.jitter) and self.mode in STREAMS:
            raise ValueError(
                f"mode is {self.mode!r}: --jitter and several bundles need whole recordings, so not a stream"
            )
        if self.piece <= 0:
            raise ValueError(f"piece is {self.piece} seconds: above 0")

    @property
    def network(self) -> "Setting":
        """The same for all settings whose networks say the same offline, whatever is made of it."""
        return replace(self, greedy=False, language_model=None, decoding=())

    def load(self) -> "Recognition":
        first, *others = (self._prepared(bundle.load(folder)) for folder in (self.bundle, *self.others))
        for other in others:
            check_ensemble(first, other)
        model = first.language_model
        if self.language_model is not None:
            model = None if self.language_model == "none" else LanguageModel(Path(self.language_model))
        decoding = replace(first.decoding, **dict(self.decoding))
        BeamSearch(decoding, first.alphabet, model)  # refuses a lexicon that the language model does not have
        return Recognition(self, replace(first, language_model=model, decoding=decoding), tuple(others))

    def _prepared(self, loaded: SpeechBundle) -> SpeechBundle:
        precision = fastest(loaded.model) if self.precision == "auto" else self.precision
        return loaded if precision == "fp32" else replace(loaded, model=for_streaming(loaded.model, precision))


def check_ensemble(first: SpeechBundle, other: SpeechBundle) -> None:
    """ValueError where the outputs of two bundles cannot be averaged frame by frame and symbol by symbol."""
    if first.alphabet.labels != other.alphabet.labels:
        raise ValueError(
            f"bundles {first.name!r} and {other.name!r} have other alphabets, {''.join(first.alphabet.labels)!r} and "
            f"{''.join(other.alphabet.labels)!r}: an ensemble needs the same symbols in the same order"
        )
    if _timing(first) != _timing(other):
        raise ValueError(
            f"bundles {first.name!r} and {other.name!r} have other frames, {_timing(first)} and {_timing(other)}: "
            "an ensemble needs the same sample rate, window, hop and stride"
        )


def _timing(loaded: SpeechBundle) -> str:
    front = loaded.features.config
    return f"{front.window}/{front.hop} samples of {front.sample_rate} Hz by {loaded.model.config.stride}"


def jittered(samples: Samples, shift: int) -> list[Samples]:
    """(S,) as it is, and `shift` samples to the left and to the right; all of length S, silence moves in."""
    silence = np.zeros(min(shift, len(samples)), samples.dtype)
    return [
        samples,
        np.concatenate([samples[shift:], silence]),
        np.concatenate([silence, samples[: max(0, len(samples) - shift)]]),
    ]


def averaged(outputs: Sequence[LogProbs]) -> LogProbs:
    """The logarithm of the mean probability of N outputs (T, V)."""
    if len(outputs) == 1:
        return outputs[0]
    mean: LogProbs = np.logaddexp.reduce(np.stack(outputs), axis=0) - np.float32(math.log(len(outputs)))
    return mean


@dataclass(frozen=True)
class Recognition:
    """Loaded bundles and how they are to be used. The first one's language model and options decode."""

    setting: Setting
    bundle: SpeechBundle
    others: tuple[SpeechBundle, ...] = ()

    @property
    def rate(self) -> int:
        """Hz."""
        return self.bundle.features.config.sample_rate

    def transcribe(self, samples: Samples) -> str:
        if self.setting.mode in STREAMS:
            return self._stream(samples, EndpointOptions() if self.setting.mode == "endpointed" else UNCUT)
        return self.decode(self.log_probs(samples))

    def decode(self, log_probs: LogProbs) -> str:
        """(T, V) -> the text."""
        return self.hypothesis(log_probs).text

    def hypothesis(self, log_probs: LogProbs) -> Hypothesis:
        """(T, V) -> the best one."""
        if self.setting.greedy:
            return greedy(log_probs, self.bundle.alphabet)
        search = BeamSearch(self.bundle.decoding, self.bundle.alphabet, self.bundle.language_model)
        return search.decode(log_probs)[0]

    def log_probs(self, samples: Samples) -> LogProbs:
        """(S,) -> (T, V), offline. A recording shorter than a window has no frame: nothing is heard, as in a stream."""
        front = self.bundle.features.config
        if len(samples) < front.window:
            return np.zeros((0, len(self.bundle.alphabet)), np.float32)
        shift = front.hop // 2  # the paper's 5 ms
        copies = np.stack(jittered(samples, shift) if self.setting.jitter else [samples])
        return averaged([output for member in (self.bundle, *self.others) for output in self._outputs(member, copies)])

    @torch.inference_mode()
    def _outputs(self, member: SpeechBundle, copies: Samples) -> list[LogProbs]:
        """(B, S) -> (T, V) of each."""
        chunking = None if self.setting.mode == "whole" else member.model.config.chunking
        lengths = torch.full((len(copies),), copies.shape[1])
        log_probs, lengths = member.model(*member.features(torch.from_numpy(copies), lengths), chunking)
        return [each[: int(length)].numpy() for each, length in zip(log_probs, lengths, strict=True)]

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.bundle)  # its model is in the setting's precision already

    def _stream(self, samples: Samples, endpoint: EndpointOptions) -> str:
        stream = self._engine.stream(StreamOptions(endpoint=endpoint))
        size = max(1, round(self.setting.piece * self.rate))
        events = [
            event for start in range(0, len(samples), size) for event in stream.feed(samples[start : start + size])
        ]
        events += stream.finish()
        return " ".join(event.text for event in events if isinstance(event, Result) and event.is_final)
