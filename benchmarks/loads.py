"""Ours under load: hot words, many streams at once, all cores. Each figure is a ratio of two of our own times.

What is compared takes turns, and the best time of each counts, because shared machines only ever add time.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from asr_server.beam_search import BeamSearch, decode_batch
from asr_server.hot_words import HotWords
from benchmarks.decoders import Decoder, Ours
from benchmarks.posteriors import LogProbs

HOT_WORDS = (200, 1000, 5000)
BOOST = 3.0  # of a hot word, in natural logarithms
STREAMS = 100
TURN = 32  # frames that a stream is advanced at a time: a chunk of the shipped models
SHORT_TURNS = (1, 10)
SYLLABLES = tuple(f"{consonant}{vowel}" for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def hot_word_list(words: Sequence[str], count: int, seed: int) -> list[str]:
    """Half names that no model knows, half pairs of words that it does; all different."""
    if len(words) ** 2 < 2 * count:
        raise ValueError(f"the language model has {len(words)} words: too few to pair them to {count // 2} hot phrases")
    draw = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        if len(found) % 2:
            found[" ".join(draw.choice(words, 2))] = None
        else:
            found["".join(draw.choice(SYLLABLES, draw.integers(2, 5)))] = None
    return list(found)


def hot_words_extra(ours: Ours, beam: int, repeats: int, seed: int) -> dict[str, float]:
    """By number of hot words, what they cost: 0.1 is ten per cent more time than without any."""
    words = ours.task.words.read_text(encoding="utf-8").split()
    searches: dict[str, BeamSearch] = {"0": ours.search(beam)}
    for count in HOT_WORDS:
        boosts = dict.fromkeys(hot_word_list(words, count, seed), BOOST)
        searches[str(count)] = ours.search(beam, HotWords(boosts, ours.task.alphabet))

    def decoding(search: BeamSearch) -> Callable[[], object]:
        return lambda: [search.decode(matrix) for matrix in ours.task.log_probs]

    best = best_times({name: decoding(search) for name, search in searches.items()}, repeats)
    return {name: seconds / best["0"] - 1 for name, seconds in best.items() if name != "0"}


def peer_hot_words_extra(peer: Decoder, words: Sequence[str], beam: int, repeats: int, seed: int) -> float:
    """What the fewest hot words cost a peer."""
    phrases = hot_word_list(words, HOT_WORDS[0], seed)
    without, extra = [], []
    for _ in range(repeats):
        without.append(peer.run(beam).seconds)
        extra.append(peer.run(beam, phrases).seconds)
    return min(extra) / min(without) - 1


def streams_ratio(ours: Ours, beam: int, repeats: int, turn: int = TURN) -> float:
    """Time of many streams advanced in turn, all alive together, over that of the same streams one after another."""
    utterances = ours.task.log_probs
    matrices = [utterances[index % len(utterances)] for index in range(STREAMS)]

    def one_after_another() -> None:
        for matrix in matrices:
            search = ours.search(beam)
            for chunk in chunks(matrix, turn):
                search.advance(chunk)
            search.finish()

    def in_turn() -> None:
        searches = [ours.search(beam) for _ in matrices]
        pieces = [chunks(matrix, turn) for matrix in matrices]
        for number in range(max(map(len, pieces))):
            for search, left in zip(searches, pieces, strict=True):
                if number < len(left):
                    search.advance(left[number])
        for search in searches:
            search.finish()

    best = best_times({"one": one_after_another, "turn": in_turn}, repeats)
    return best["turn"] / best["one"]


def batch_speedup(ours: Ours, beam: int, repeats: int) -> float:
    """How much sooner all cores are done than one."""
    search, task = ours.search(beam), ours.task
    ways: dict[str, Callable[[], object]] = {
        "one": lambda: [search.decode(matrix) for matrix in task.log_probs],
        "all": lambda: decode_batch(task.log_probs, search.options, task.alphabet, ours.model),
    }
    best = best_times(ways, repeats, time.perf_counter)
    return best["one"] / best["all"]


def chunks(matrix: LogProbs, size: int) -> list[LogProbs]:
    return [matrix[start : start + size] for start in range(0, len(matrix), size)]


def best_times(
    ways: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """The shortest time of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = clock()
            way()
            times[name].append(clock() - start)
    return {name: min(values) for name, values in times.items()}
