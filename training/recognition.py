"""A bundle at work on whole recordings, offline or as a stream, for evaluation and tuning.

Dimension letters: S samples, T frames, V symbols.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr_server import bundle
from asr_server.beam_search import BeamSearch, greedy
from asr_server.bundle import SpeechBundle
from asr_server.endpoint import UNCUT, EndpointOptions
from asr_server.language_model import LanguageModel
from asr_server.recognizer import Engine, Result, StreamOptions

Samples = NDArray[np.float32]  # (S,) in [-1, 1]
LogProbs = NDArray[np.float32]  # (T, V)
MODES = ("whole", "chunked", "streaming", "endpointed")


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

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}. Select one of {MODES}")
        if self.greedy and self.mode in ("streaming", "endpointed"):
            raise ValueError("the server decodes streams with the beam search: --greedy goes with --chunked")
        if self.piece <= 0:
            raise ValueError(f"piece is {self.piece} seconds: above 0")

    def load(self) -> "Recognition":
        loaded = bundle.load(self.bundle)
        model = loaded.language_model
        if self.language_model is not None:
            model = None if self.language_model == "none" else LanguageModel(Path(self.language_model))
        decoding = replace(loaded.decoding, **dict(self.decoding))
        BeamSearch(decoding, loaded.alphabet, model)  # refuses a lexicon that the language model does not have
        return Recognition(self, replace(loaded, language_model=model, decoding=decoding))


@dataclass(frozen=True)
class Recognition:
    """A loaded bundle and how it is to be used."""

    setting: Setting
    bundle: SpeechBundle

    @property
    def rate(self) -> int:
        """Hz."""
        return self.bundle.features.config.sample_rate

    def transcribe(self, samples: Samples) -> str:
        if self.setting.mode in ("streaming", "endpointed"):
            return self._stream(samples, EndpointOptions() if self.setting.mode == "endpointed" else UNCUT)
        log_probs = self.log_probs(samples)
        if self.setting.greedy:
            return greedy(log_probs, self.bundle.alphabet).text
        search = BeamSearch(self.bundle.decoding, self.bundle.alphabet, self.bundle.language_model)
        return search.decode(log_probs)[0].text

    @torch.inference_mode()
    def log_probs(self, samples: Samples) -> LogProbs:
        """(S,) -> (T, V), offline."""
        chunking = None if self.setting.mode == "whole" else self.bundle.model.config.chunking
        features, lengths = self.bundle.features(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        log_probs, lengths = self.bundle.model(features, lengths, chunking)
        found: LogProbs = log_probs[0, : int(lengths[0])].numpy()
        return found

    def _stream(self, samples: Samples, endpoint: EndpointOptions) -> str:
        stream = Engine(self.bundle).stream(StreamOptions(endpoint=endpoint))
        size = max(1, round(self.setting.piece * self.rate))
        events = [
            event for start in range(0, len(samples), size) for event in stream.feed(samples[start : start + size])
        ]
        events += stream.finish()
        return " ".join(event.text for event in events if isinstance(event, Result) and event.is_final)
