"""Batches of utterances of similar length, from manifests to padded features.

Dimension letters: B batch, T frames, F features, S symbols of a transcript.
Features are computed each time, because every epoch hears another version of an utterance.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from asr_server.alphabet import Alphabet
from asr_server.features import Features
from training.augment import AugmentOptions, Spectrum, augment
from training.mixing import Samples
from training.noise import NoiseBank, NoiseOptions
from training.recordings import Recordings
from training.speech_manifest import Utterance, read_manifest
from training.time_parallel import data_rank_and_world
from training.trainer import LateLoader, rank_and_world
from training.waveform import WaveformAugmenter, WaveformOptions


class Batch(NamedTuple):
    """Padded log features before normalisation (NaN where masked) and padded symbol indices."""

    spectra: Tensor  # (B, T, F)
    frames: Tensor  # (B,)
    targets: Tensor  # (B, S)
    symbols: Tensor  # (B,)


@dataclass(frozen=True)
class DataOptions:
    """Which utterances are used and how they are put together; seconds of audio."""

    batch_seconds: float = 120.0
    batch_utterances: int = 64
    longest: float = 20.0
    shortest_first: bool = True  # in the first epoch (SortaGrad, Amodei et al. 2015)
    seed: int = 0
    keep_hours: float = 40.0  # of decoded audio in the memory of each process, 115 MB an hour
    workers: int = 0  # processes that prepare batches beside the training; 0: the training itself
    model_parallel: bool = False  # two processes share each training batch (time_parallel.py)


@dataclass(frozen=True)
class Augmentation:
    """What an utterance goes through on its way to the network: its waveform first, then its spectrum."""

    waveform: WaveformAugmenter
    spectrum: AugmentOptions


class SpeechDataset(Dataset[Batch]):
    """Log spectra and symbols of utterances; an item is a whole batch, because the sampler decides what goes together.

    With augmentation every (seed, epoch, utterance) gives its own version, the same again in a resumed run.
    """

    def __init__(
        self,
        recordings: Recordings,
        features: Features,
        alphabet: Alphabet,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.recordings, self.features, self.augmentation, self.seed = recordings, features, augmentation, seed
        self.symbols = [_symbols(utterance, alphabet) for utterance in recordings.utterances]

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, place: tuple[int, list[int]]) -> Batch:
        """The batch of (epoch, indices)."""
        epoch, indices = place
        return collate([(self._spectrum(epoch, index), self.symbols[index]) for index in indices])

    def spectrum(self, index: int) -> Spectrum:
        """Log spectrum of one recording as it is, before normalisation, (T, F)."""
        return self._log_spectrum(index, self.recordings.samples(index))

    def _spectrum(self, epoch: int, index: int) -> Spectrum:
        if self.augmentation is None:
            return self.spectrum(index)
        generator = np.random.default_rng((self.seed, epoch, index))
        samples = self.augmentation.waveform(self.recordings.samples(index), generator)
        return augment(self._log_spectrum(index, samples), self.augmentation.spectrum, generator)

    def _log_spectrum(self, index: int, samples: Samples) -> Spectrum:
        with torch.no_grad():
            spectrum: Spectrum = self.features.spectrum(torch.from_numpy(samples)).numpy()
        if not len(spectrum):
            audio, window = self.recordings.utterances[index].audio, self.features.config.window_seconds
            raise ValueError(f"{audio}: shorter than one window of {window} s")
        return spectrum


class BucketSampler(Sampler[tuple[int, list[int]]]):
    """(epoch, indices) of batches of neighbours in length: so many seconds of padded audio, so many utterances.

    The sizes of the batches never change; who is whose neighbour and the order of the batches are functions of the
    seed and the epoch, so a resumed run sees the same ones. With several processes each takes every n-th batch;
    batches left over after the last full round come in another epoch's order. Without shuffling none is left over, and
    batches are small enough for each process to have one. ValueError where there are too few for that.
    """

    def __init__(
        self,
        durations: Sequence[float],
        options: DataOptions,
        shuffle: bool = True,
        epoch: Callable[[], int] = lambda: 0,  # asked at the beginning of each epoch, right after a resume too
    ) -> None:
        self.durations, self.options, self.shuffle, self.epoch = durations, options, shuffle, epoch
        self.rank, self.processes = rank_and_world()
        if shuffle and options.model_parallel:
            self.rank, self.processes = data_rank_and_world(self.rank, self.processes)
        if not shuffle:
            if len(durations) < self.processes:
                raise ValueError(f"{len(durations)} validation utterances are too few for {self.processes} processes")
            share = min(options.batch_utterances, len(durations) // self.processes)
            options = replace(options, batch_utterances=share)
        self.sizes = _batch_sizes(sorted(durations), options)
        if shuffle and len(self.sizes) < self.processes:
            raise ValueError(f"{len(self.sizes)} batches are too few for {self.processes} processes: make them smaller")

    def __len__(self) -> int:
        if self.shuffle:
            return len(self.sizes) // self.processes
        return len(range(self.rank, len(self.sizes), self.processes))

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        # A generator: Lightning asks for the iterator before it has restored the steps of a resumed run.
        epoch = self.epoch()
        batches = self._batches(epoch)
        if self.shuffle:
            if epoch > 0 or not self.options.shortest_first:
                random.Random(f"order {self.options.seed} {epoch}").shuffle(batches)
            del batches[len(self) * self.processes :]
        for batch in batches[self.rank :: self.processes]:
            yield epoch, batch

    def _batches(self, epoch: int) -> list[list[int]]:
        """Indices sorted by length, with a little noise when shuffled, and cut."""
        generator = random.Random(f"neighbours {self.options.seed} {epoch}")
        noise = 0.05 if self.shuffle else 0.0
        near = [duration * generator.uniform(1 - noise, 1 + noise) for duration in self.durations]
        order = iter(sorted(range(len(near)), key=near.__getitem__))
        return [list(itertools.islice(order, size)) for size in self.sizes]


def _batch_sizes(durations: Sequence[float], options: DataOptions) -> list[int]:
    """Cut ascending durations into batches that stay within the limits; a very long utterance is alone."""
    sizes: list[int] = []
    for duration in durations:
        full = sizes and (sizes[-1] == options.batch_utterances or duration * (sizes[-1] + 1) > options.batch_seconds)
        if not sizes or full:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def _symbols(utterance: Utterance, alphabet: Alphabet) -> list[int]:
    try:
        return alphabet.encode(utterance.text)
    except ValueError as error:
        raise ValueError(f"{utterance.audio}: {error}") from None


def collate(items: Sequence[tuple[Spectrum, list[int]]]) -> Batch:
    """Pad to the longest."""
    frames = torch.tensor([len(spectrum) for spectrum, _ in items])
    symbols = torch.tensor([len(ids) for _, ids in items])
    spectra = torch.zeros(len(items), int(frames.max()), items[0][0].shape[1])
    targets = torch.zeros(len(items), int(symbols.max()), dtype=torch.long)
    for row, (spectrum, ids) in enumerate(items):
        spectra[row, : len(spectrum)] = torch.from_numpy(spectrum)
        targets[row, : len(ids)] = torch.tensor(ids)
    return Batch(spectra, frames, targets, symbols)


def statistics(dataset: SpeechDataset, limit: int = 2000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per feature, (F,), (F,), over evenly chosen utterances of the data.

    One utterance is in memory at a time. Each one's own sums of squares are of small differences and are joined by the
    rule of Chan, Golub and LeVeque (1983), so that nothing cancels out.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for index in range(0, len(dataset), max(1, len(dataset) // limit)):
        frames = dataset.spectrum(index).astype(np.float64)
        added, apart = len(frames), frames.mean(axis=0) - mean
        squares = squares + np.square(frames - frames.mean(axis=0)).sum(axis=0)
        squares += np.square(apart) * count * added / (count + added)
        count += added
        mean = mean + apart * added / count
    deviation = np.maximum(np.sqrt(squares / count), 1e-3)  # silence only: nothing to scale
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


class SpeechData(pl.LightningDataModule):
    """Batches of the training and the validation manifests; a training manifest named twice counts double."""

    def __init__(
        self,
        train: Sequence[Path],
        validation: Sequence[Path],
        features: Features,
        alphabet: Alphabet,
        options: DataOptions,
        augmentation: tuple[WaveformOptions, AugmentOptions] | None = None,
        noises: Sequence[Path] = (),
        noise_options: NoiseOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        features = Features(features.config)  # of its own: the network's may go to another device
        found = [utterance for path in train for utterance in read_manifest(path)]
        usable = [utterance for utterance in found if utterance.duration <= options.longest]
        self.found, self.left_out = len(found), len(found) - len(usable)
        if not usable:
            raise ValueError(f"none of the {len(found)} training utterances is at most {options.longest} s long")
        rate = features.config.sample_rate
        recordings = Recordings(usable, rate, options.keep_hours)
        self.noises = NoiseBank.from_manifest(noises, noise_options, rate) if noises else None
        changes = None
        if augmentation:
            waveform, spectrum = augmentation
            changes = Augmentation(WaveformAugmenter(waveform, self.noises, recordings, rate), spectrum)
        self.train_set = SpeechDataset(recordings, features, alphabet, changes, options.seed)
        spoken = [utterance for path in validation for utterance in read_manifest(path)]
        self.validation_set = SpeechDataset(Recordings(spoken, rate, options.keep_hours), features, alphabet)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.validation_set, shuffle=False)

    def _steps(self) -> int:
        """Steps taken; unlike the trainer's own count of epochs it is right at the beginning of a resumed run."""
        return self.trainer.global_step if self.trainer else 0

    def _loader(self, data: SpeechDataset, shuffle: bool) -> DataLoader[Batch]:
        durations = [utterance.duration for utterance in data.recordings.utterances]
        sampler = BucketSampler(durations, self.options, shuffle, lambda: self._steps() // len(sampler))
        workers = self.options.workers
        return LateLoader(data, sampler=sampler, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
