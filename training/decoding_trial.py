"""One choice of decoding options: what it makes of a manifest, and what it costs."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asr_server.beam_search import BeamSearch
from asr_server.decoding import DecodingOptions
from training import network_outputs
from training.error_rate import Edits, character_edits, word_edits
from training.recognition import LogProbs, Recognition, Setting

HEADING = f"{'alpha':>8}{'beta':>8}{'gamma':>8}{'width':>7}{'lexicon':>9}{'WER %':>8}{'CER %':>8}{'us/frame':>10}"


@dataclass(frozen=True)
class Trial:
    """Options and their errors. us_per_frame: microseconds of processor time per frame of the network's output."""

    options: DecodingOptions
    words: Edits
    characters: Edits
    us_per_frame: float = 0.0

    @property
    def rank(self) -> tuple[float, float, int]:
        """Lower is better."""
        return self.words.rate, self.characters.rate, self.options.beam_width

    @property
    def value(self) -> float:
        """The error rates as one number to minimise: characters only decide between equal words."""
        return self.words.errors + self.characters.errors / (1 + self.characters.errors)

    def row(self) -> str:
        """A line below `HEADING`."""
        options = self.options
        switch = "on" if options.lexicon else "off"
        rates = f"{self.words.rate:8.2f}{self.characters.rate:8.2f}{self.us_per_frame:10.1f}"
        return f"{options.alpha:8.3f} {options.beta:7.3f}{options.gamma:8.3f}{options.beam_width:7}{switch:>9}{rates}"


@dataclass(frozen=True)
class Trials:
    """All that were made, in their order. The first is what the bundle had; only those within the budget can win."""

    made: tuple[Trial, ...]
    budget: float | None = None  # microseconds per frame

    @property
    def before(self) -> Trial:
        return self.made[0]

    @property
    def ranked(self) -> list[Trial]:
        """Those within the budget, best first, and of equal ones the earliest first."""
        return sorted(filter(self.allows, self.made), key=lambda trial: trial.rank)

    @property
    def best(self) -> Trial:
        """ValueError names the fastest when the budget allows none."""
        if ranked := self.ranked:
            return ranked[0]
        fastest = min(self.made, key=lambda trial: trial.us_per_frame)
        raise ValueError(
            f"--budget is {self.budget} microseconds per frame, and none of {len(self.made)} trials kept it: the "
            f"fastest took {fastest.us_per_frame:.1f}, with beam width {fastest.options.beam_width}"
        )

    def allows(self, trial: Trial) -> bool:
        return self.budget is None or trial.us_per_frame <= self.budget


def try_options(setting: Setting, outputs: Path, said: Sequence[str], options: DecodingOptions) -> Trial:
    """Search all outputs of the network with `options`."""
    recognition, material = load_material(setting, outputs)
    search = _search(recognition, replace(options, n_best=1))
    start = time.process_time()
    heard = [search.decode(log_probs)[0].text for log_probs in material]
    seconds = time.process_time() - start
    words = sum(map(word_edits, said, heard), Edits())
    characters = sum(map(character_edits, said, heard), Edits())
    return Trial(options, words, characters, 1e6 * seconds / max(1, sum(map(len, material))))


@functools.lru_cache(maxsize=1)
def load_material(setting: Setting, outputs: Path) -> tuple[Recognition, tuple[LogProbs, ...]]:
    """Loaded once in each process, where all trials have the same."""
    recognition, material = setting.load(), network_outputs.load(outputs)
    _search(recognition, recognition.bundle.decoding).decode(material[0])  # off the clock: it loads pages of the model
    return recognition, material


def _search(recognition: Recognition, options: DecodingOptions) -> BeamSearch:
    return BeamSearch(options, recognition.bundle.alphabet, recognition.bundle.language_model)
