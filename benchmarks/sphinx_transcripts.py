"""What pocketsphinx hears in recorded utterances: its own en-us model, dictionary and language model, default settings.

It gets each utterance whole, which is kinder to it than chunks: it then normalises by the mean of all of it, and what
it hears does not depend on what it heard before. Spellings such as "b." for a letter count as the letter.
"""

import functools
import re
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from asr_server.client import linear16
from training.heard import Heard, compare
from training.hearing import spread
from training.speech_manifest import Utterance

RATE = 16000  # Hz, of its model
NAME = "pocketsphinx"


def hear_all(utterances: Sequence[Utterance], jobs: int) -> list[Heard]:
    return list(tqdm(spread(hear, utterances, jobs), NAME, len(utterances), disable=None))


def hear(utterance: Utterance) -> Heard:
    """Timed is what a caller waits for who has the samples already."""
    samples = utterance.samples(RATE)
    audio, decoder = linear16(samples), _decoder()
    start = time.perf_counter()
    decoder.start_utt()
    decoder.process_raw(audio, no_search=False, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    seconds = time.perf_counter() - start
    return compare(utterance, plain(found.hypstr if found else ""), len(samples) / RATE, seconds)


def plain(text: str) -> str:
    """In the symbols of the transcripts: letters, spaces and apostrophes."""
    return " ".join(re.sub("[^a-z' ]", "", text.lower().replace("-", " ")).split())


@functools.cache
def _decoder() -> Any:
    """Loaded once in each process."""
    from pocketsphinx import Decoder  # an extra, which a run of ours alone does not need

    return Decoder(loglevel="FATAL")
