import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr_server.alphabet import Alphabet
from asr_server.features import Features
from tests.tones import write_tones
from training import speech_data
from training.augment import AugmentOptions, augment, mask, warp
from training.data_entries import read_entries
from training.recording_facts import measure
from training.recordings import Recordings
from training.speech_data import (
    Augmentation,
    BucketSampler,
    DataOptions,
    SpeechData,
    SpeechDataset,
    statistics,
)
from training.speech_manifest import read_manifest
from training.speech_recipe import say_what_is_used
from training.speech_split import split
from training.waveform import WaveformAugmenter, WaveformOptions

NONE = AugmentOptions(tempo=0, pitch=0, time_masks=0, frequency_masks=0)


def dataset(manifest: Path, augmentation: Augmentation | None = None) -> SpeechDataset:
    return SpeechDataset(Recordings(read_manifest(manifest), 16000, 1.0), Features(), Alphabet(), augmentation)


def test_paths_start_at_the_manifest(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 3)
    utterances = read_manifest(manifest)
    assert [utterance.audio.parent for utterance in utterances] == [tmp_path / "data"] * 3
    assert utterances[0].samples(16000).dtype == np.float32


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: a line is one JSON object, not list"),
        ('{"duration": 1, "text": "a"}', "line 2: 'audio_filepath' is missing"),
        ('{"audio_filepath": "0.wav", "text": "a"}', "line 2: 'duration' is missing"),
        ('{"audio_filepath": "0.wav", "duration": "1", "text": "a"}', "line 2: 'duration' is '1'"),
        ('{"audio_filepath": "0.wav", "duration": NaN, "text": "a"}', "line 2: 'duration' is nan: a finite number"),
        ('{"audio_filepath": "9.wav", "duration": 1, "text": "a"}', r"line 2: there is no audio file .*9.wav"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, text: str) -> None:
    manifest = write_tones(tmp_path, 1)
    manifest.write_text(manifest.read_text() + line + "\n")
    with pytest.raises(ValueError, match=text) as error:
        read_manifest(manifest)
    assert str(manifest) in str(error.value)


def test_null_is_as_good_as_left_out(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 2)
    first, second = (json.loads(line) for line in manifest.read_text().splitlines())
    nothing = dict.fromkeys(("speaker", "id", "source", "kind", "snr_db"))
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in ({**first, **nothing}, second)))
    utterance, _ = read_manifest(manifest)
    assert (utterance.speaker, utterance.id, utterance.name) == ("", "", "0")
    assert read_entries(manifest)[0][0].speaker == ""
    assert split(manifest, 1, 0, tmp_path / "train.jsonl", tmp_path / "dev.jsonl") == (1, 1)


def test_audio_of_another_rate_or_kind_is_refused(tmp_path: Path) -> None:
    (utterance,) = read_manifest(write_tones(tmp_path, 1))
    with pytest.raises(ValueError, match="has 16000 Hz, the features need 8000 Hz"):
        utterance.samples(8000)
    utterance.audio.write_bytes(b"not audio")
    raw = utterance.audio.rename(utterance.audio.with_suffix(".raw"))
    raw.with_suffix(".wav").write_bytes(b"not audio")
    for audio in (utterance.audio, raw):
        with pytest.raises(ValueError, match="cannot be read as audio"):
            replace(utterance, audio=audio).samples(16000)
        assert "cannot be read as audio" in measure(audio).trouble


def test_of_two_channels_the_first_is_heard_as_by_the_server(tmp_path: Path) -> None:
    (utterance,) = read_manifest(write_tones(tmp_path, 1))
    soundfile.write(utterance.audio, np.tile([[0.5, 0.25]], (100, 1)), 16000)
    assert np.allclose(utterance.samples(16000), 0.5, atol=1e-4)


def test_a_transcript_outside_the_alphabet_names_the_recording(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 1)
    entry = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**entry, "text": "4 you"}))
    with pytest.raises(ValueError, match=r"0\.wav: character '4'"):
        dataset(manifest)


def test_batches_keep_their_limits_and_hold_everything_once() -> None:
    durations = [0.5 + 0.1 * (index * 37 % 100) for index in range(100)]
    options = DataOptions(batch_seconds=20, batch_utterances=6)
    for epoch in range(3):
        sampler = BucketSampler(durations, options, epoch=partial(int, epoch))
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for _, batch in batches for index in batch) == list(range(100))
        for _, batch in batches:
            longest = max(durations[index] for index in batch)
            assert len(batch) <= 6
            assert longest * len(batch) <= 20 * 1.11  # neighbours are drawn with 5 % noise
            assert min(durations[index] for index in batch) > 0.7 * longest or longest < 2


def test_the_first_epoch_begins_with_the_short_ones() -> None:
    epochs = [0, 1, 1, 1]
    durations = [float(index) for index in range(1, 60)]
    sampler = BucketSampler(durations, DataOptions(batch_utterances=4), epoch=lambda: epochs.pop(0))
    starts = [min(batch) // 4 for _, batch in sampler]
    assert starts == sorted(starts)
    starts = [min(batch) // 4 for _, batch in sampler]
    assert starts != sorted(starts)
    assert list(sampler) == list(sampler)  # the same again after a resume


def test_processes_share_the_batches() -> None:
    shares = []
    for rank in range(2):
        sampler = BucketSampler([1.0] * 50, DataOptions(batch_utterances=7), epoch=lambda: 3)
        sampler.rank, sampler.processes = rank, 2
        shares.append([index for _, batch in sampler for index in batch])
        assert len(sampler) == 4
    assert not set(shares[0]) & set(shares[1])


def test_every_process_has_something_to_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[int]] = []
    for rank in range(3):
        monkeypatch.setattr(speech_data, "rank_and_world", lambda rank=rank: (rank, 3))
        share = list(BucketSampler([1.0] * 7, DataOptions(), shuffle=False))
        assert share
        found += [batch for _, batch in share]
    assert sorted(index for batch in found for index in batch) == list(range(7))
    with pytest.raises(ValueError, match="2 validation utterances are too few for 3 processes"):
        BucketSampler([1.0] * 2, DataOptions(), shuffle=False)


def test_batches_are_padded_and_know_their_lengths(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 8)
    data = SpeechData([manifest], [manifest], Features(), Alphabet(), DataOptions(batch_utterances=4))
    batch = next(iter(data.train_dataloader()))
    assert batch.spectra.shape == (4, batch.frames.max(), 81)
    for row, (frames, symbols) in enumerate(zip(batch.frames, batch.symbols, strict=True)):
        assert (batch.spectra[row, frames:] == 0).all()
        assert (batch.targets[row, :symbols] > 0).all()
        assert (batch.targets[row, symbols:] == 0).all()


def test_a_manifest_named_twice_counts_double(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 3)
    data = SpeechData([manifest, manifest], [manifest], Features(), Alphabet(), DataOptions())
    assert len(data.train_set) == 6
    assert data.train_set.recordings[0] is data.train_set.recordings[3]


def test_long_utterances_are_left_out(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path, 3)
    with pytest.raises(ValueError, match=r"none of the 3 training utterances is at most 0\.1 s long"):
        SpeechData([manifest], [manifest], Features(), Alphabet(), DataOptions(longest=0.1))


def test_long_utterances_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_tones(tmp_path, 3)  # of 0.2, 0.3 and 0.4 s
    say_what_is_used(SpeechData([manifest], [manifest], Features(), Alphabet(), DataOptions(longest=0.25)))
    assert capsys.readouterr().out == "2 of 3 training utterances left out: longer than --longest 0.25 s\n"


def test_statistics_are_the_data_s(tmp_path: Path) -> None:
    data = dataset(write_tones(tmp_path, 4))
    mean, std = statistics(data)
    frames = np.concatenate([data.spectrum(index) for index in range(4)]).astype(np.float64)
    assert np.allclose(mean, frames.mean(0), atol=1e-4)
    assert np.allclose(std, frames.std(0), atol=1e-4)


def test_augmentation_repeats_for_an_epoch_and_differs_between_epochs(tmp_path: Path) -> None:
    changes = Augmentation(WaveformAugmenter(WaveformOptions()), AugmentOptions())
    data = dataset(write_tones(tmp_path, 1), changes)
    first, again, other = data[(0, [0])], data[(0, [0])], data[(1, [0])]
    assert torch.equal(first.spectra.nan_to_num(), again.spectra.nan_to_num())
    assert not torch.equal(first.spectra.nan_to_num()[:, :20], other.spectra.nan_to_num()[:, :20])


def test_no_augmentation_is_the_original() -> None:
    spectrum = np.random.default_rng(0).normal(size=(20, 81)).astype(np.float32)
    assert np.allclose(augment(spectrum, NONE, np.random.default_rng(1)), spectrum)


def test_warp_moves_time_and_frequency() -> None:
    spectrum = np.zeros((100, 81), np.float32)
    spectrum[50, 40] = spectrum[50, 80] = 1.0
    changed = warp(spectrum, tempo=2.0, pitch=1.5)
    assert changed.shape == (50, 81)
    assert divmod(int(changed[:, :80].argmax()), 80) == (25, 60)
    assert changed[:, 80].argmax() == 25


def test_recordings_are_kept_while_there_is_room_and_read_again_beyond(tmp_path: Path) -> None:
    utterances = read_manifest(write_tones(tmp_path, 3))
    length = len(utterances[0].samples(16000))
    recordings = Recordings(utterances, 16000, keep_hours=1.5 * length / 16000 / 3600)
    first, second = recordings[0], recordings[1]
    assert np.allclose(recordings.samples(0), utterances[0].samples(16000), atol=1 / 32768)
    assert recordings[0] is first
    assert recordings[1] is not second
    assert np.array_equal(recordings[1], second)


def test_masks_are_nan_and_spare_the_energy() -> None:
    spectrum = np.zeros((300, 81), np.float32)
    options = AugmentOptions(time_masks=0, frequency_masks=3)
    masked = mask(spectrum, options, np.random.default_rng(3))
    assert np.isnan(masked[:, :80]).any()
    assert not np.isnan(masked[:, 80]).any()
    timed = np.isnan(mask(spectrum, AugmentOptions(time_masks=3, frequency_masks=0), np.random.default_rng(3)))
    assert 0 < timed.all(axis=1).sum() < 300
    assert (timed.all(axis=1) == timed.any(axis=1)).all()


def test_whole_speakers_are_held_out(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 12)
    train, development = tmp_path / "a" / "train.jsonl", tmp_path / "b" / "dev.jsonl"
    assert split(manifest, 1, 0, train, development) == (9, 3)
    speakers = [{utterance.speaker for utterance in read_manifest(path)} for path in (train, development)]
    assert not speakers[0] & speakers[1]
    with pytest.raises(ValueError, match="cannot hold out 4 speakers"):
        split(manifest, 4, 0, train, development)
    manifest.write_text(manifest.read_text() + '{"speaker": "b"}\n')
    with pytest.raises(ValueError, match=r"line 13: .* is no object with an 'audio_filepath'"):
        split(manifest, 1, 0, train, development)
