"""flashlight's lexicon decoder as benchmarks.decoders talks to it.

python -m benchmarks.peers.flashlight_peer --posteriors FILE.npz --language-model LM --words FILE --alpha A --beta B

The options are those that torchaudio.models.decoder.ctc_decoder passes by default. Two things need translation:

- Its lm_weight multiplies KenLM's logarithms to base 10 (decoder/lm/KenLM.cpp hands BaseScore on as it is), ours the
  natural ones: lm_weight = alpha ln 10. Its word_score is our beta.
- In its lexicon a word ends with a space, so the last word of an utterance without one behind it would be lost or cost
  the probability of a space that nobody uttered. One frame with a certain space at the end of each utterance mends
  that; it counts in the time (one frame in some hundred).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flashlight.lib.text.decoder import (  # type: ignore[import-not-found]
    CriterionType,
    LexiconDecoder,
    LexiconDecoderOptions,
    SmearingMode,
    Trie,
)
from flashlight.lib.text.decoder.kenlm import KenLM  # type: ignore[import-not-found]
from flashlight.lib.text.dictionary import Dictionary  # type: ignore[import-not-found]

from benchmarks.peers.serve import Decode, Job, LogProbs, Prepare, read_job, serve

UNKNOWN = "<unk>"
IMPOSSIBLE = -1e4  # finite: the sum over a whole utterance stays a number


def with_end(log_probs: LogProbs, space: int) -> LogProbs:
    """(T, V) -> (T + 1, V): with a space at the end."""
    end = np.full_like(log_probs[:1], IMPOSSIBLE)
    end[0, space] = 0.0
    return np.concatenate([log_probs, end])


def preparation(job: Job) -> Prepare:
    blank, space = job.labels.index(""), job.labels.index(" ")
    dictionary = Dictionary([*job.words, UNKNOWN])
    model = KenLM(job.language_model, dictionary)
    trie = Trie(len(job.labels), space)
    start = model.start(False)
    for word in job.words:
        index = dictionary.get_index(word)
        _, score = model.score(start, index)
        trie.insert([job.labels.index(letter) for letter in f"{word} "], index, score)
    trie.smear(SmearingMode.MAX)

    def prepare(beam: int, hot_words: Sequence[str]) -> Decode:
        assert not hot_words, "flashlight has no hot words"
        options = LexiconDecoderOptions(
            beam_size=beam,
            beam_size_token=len(job.labels),
            beam_threshold=50,
            lm_weight=job.alpha * math.log(10),
            word_score=job.beta,
            unk_score=-math.inf,
            sil_score=0,
            log_add=False,
            criterion_type=CriterionType.CTC,
        )
        decoder = LexiconDecoder(options, trie, model, space, blank, dictionary.get_index(UNKNOWN), [], False)

        def decode(log_probs: LogProbs) -> str:
            best = decoder.decode(log_probs.ctypes.data, *log_probs.shape)[0]
            return " ".join(dictionary.get_entry(index) for index in best.words if index >= 0)

        return decode

    return prepare


if __name__ == "__main__":
    job = read_job()
    space = job.labels.index(" ")
    job = replace(job, log_probs=[with_end(matrix, space) for matrix in job.log_probs])
    serve(job, preparation(job))
