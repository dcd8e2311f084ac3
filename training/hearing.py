"""Utterances through bundles, in one process or several, and how long it took."""

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from training import network_outputs
from training.heard import Heard, compare
from training.recognition import STREAMS, LogProbs, Recognition, Samples, Setting
from training.speech_manifest import Utterance

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Task:
    """What is done with each utterance; small enough to be sent to other processes."""

    settings: tuple[Setting, ...]
    compare: bool = False
    threads: int | None = None  # of the network; None: torch's choice, and one in each of several processes


@dataclass(frozen=True)
class Question:
    """An utterance, and what the networks said about it when that was kept."""

    utterance: Utterance
    kept: Mapping[Setting, LogProbs] = field(default_factory=dict)


def spread(task: Callable[[Item], Outcome], items: Sequence[Item], jobs: int) -> Iterator[Outcome]:
    """`task` of each item in order, in this process or in `jobs` others."""
    if jobs == 1:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context, end_with_parent) as pool:
        yield from pool.map(task, items)


def end_with_parent() -> None:
    """For processes of a pool: one whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def hear_all(
    task: Task, utterances: Sequence[Utterance], jobs: int = 1, cache: Path | None = None, name: str = ""
) -> list[list[Heard]]:
    """For each setting what was heard of each utterance. `cache`: a folder for the outputs of offline networks."""
    networks = {setting.network for setting in task.settings if setting.mode not in STREAMS}
    kept = {network: _kept(network, utterances, cache) for network in networks} if cache else {}
    questions = [
        Question(utterance, {network: outputs[number] for network, outputs in kept.items()})
        for number, utterance in enumerate(utterances)
    ]
    bar = tqdm(spread(functools.partial(hear, task), questions, jobs), name, len(questions), disable=None)
    return [list(column) for column in zip(*bar, strict=True)]


def _kept(network: Setting, utterances: Sequence[Utterance], cache: Path) -> tuple[LogProbs, ...]:
    return network_outputs.load(network_outputs.keep(recognition_of(network), utterances, cache))


def hear(task: Task, question: Question) -> tuple[Heard, ...]:
    """One utterance in all ways. Settings with the same network share what it says, and each is charged its time."""
    utterance, found = question.utterance, []
    said: dict[Setting, tuple[LogProbs, float]] = {}
    samples = utterance.samples(recognition_of(task.settings[0], task.threads).rate)
    for setting in task.settings:
        recognition = recognition_of(setting, task.threads)
        start = time.perf_counter()
        if setting.mode in STREAMS:
            text = recognition.transcribe(samples)
            seconds: float | None = time.perf_counter() - start
        elif (kept := question.kept.get(setting.network)) is not None:
            text, seconds = recognition.decode(kept), None
        else:
            log_probs, before = _said(said, recognition, samples)
            start = time.perf_counter()
            text = recognition.decode(log_probs)
            seconds = before + time.perf_counter() - start
        offline = None
        if task.compare:
            offline = recognition_of(replace(setting, mode="chunked"), task.threads).transcribe(samples)
        found.append(compare(utterance, text, len(samples) / recognition.rate, seconds, offline))
    return tuple(found)


def _said(
    said: dict[Setting, tuple[LogProbs, float]], recognition: Recognition, samples: Samples
) -> tuple[LogProbs, float]:
    """The network's outputs and the seconds that they took, from `said` when they are there already."""
    network = recognition.setting.network
    if network not in said:
        start = time.perf_counter()
        log_probs = recognition.log_probs(samples)
        said[network] = log_probs, time.perf_counter() - start
    return said[network]


@functools.cache
def recognition_of(setting: Setting, threads: int | None = None) -> Recognition:
    """Loaded once in each process."""
    if threads is None and multiprocessing.parent_process() is not None:
        threads = 1  # one of --jobs: the processes are the parallelism
    if threads is not None:
        torch.set_num_threads(threads)
    return setting.load()
