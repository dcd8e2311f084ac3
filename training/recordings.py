"""The waveforms of a manifest, decoded when they are first asked for and kept while memory for them lasts."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from training.mixing import Samples, to_float
from training.speech_manifest import Utterance

Stored = NDArray[np.int16]  # (S,): an hour at 16 kHz is 115 MB


class Recordings(Sequence[Stored]):
    """Mono, (S,) int16 each. ValueError, when it is asked for, where a file is missing, broken or of another rate.

    At most `keep_hours` of audio stay in memory; what comes later is decoded each time. So little data costs no
    decoding, and a thousand hours no memory.
    """

    def __init__(self, utterances: Sequence[Utterance], rate: int, keep_hours: float) -> None:
        self.utterances, self.rate = utterances, rate
        self._room = keep_hours * 3600 * rate
        self._kept: dict[object, Stored] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    @overload
    def __getitem__(self, index: int) -> Stored: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Stored]: ...

    def __getitem__(self, index: int | slice) -> Stored | Sequence[Stored]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        utterance = self.utterances[index]
        kept = self._kept.get(utterance.audio)
        if kept is None:
            samples = utterance.samples(self.rate)
            kept = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
            if len(kept) <= self._room:
                self._room -= len(kept)
                self._kept[utterance.audio] = kept
        return kept

    def samples(self, index: int) -> Samples:
        """(S,) float32 in [-1, 1]."""
        return to_float(self[index])
