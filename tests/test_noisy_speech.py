"""The noisy test from recordings made for it: what is chosen, at which ratio, and that it can be built again."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from training import backgrounds, noisy_speech
from training.backgrounds import KINDS, Layer, candidates, draw, mixed, power
from training.speech_manifest import Utterance, read_manifest

RATE = 16000
SPEAKERS, EACH = 12, 3
CLIPS = (
    "x_tuning-radio",
    "x_doing_the_dishes",
    "x_coffee-shop",
    "x_places_supermarket",
    "x_places_restaurant",
    "x_rain-on-car-roof",
    "x_urban_road",
    "x_windshield-wipers",
    "x_birds",
)


def write(folder: Path, entries: dict[str, str], loudness: float) -> Path:
    """Recordings of noise, by their ids and speakers."""
    folder.mkdir()
    lines = []
    for number, (name, speaker) in enumerate(entries.items()):
        samples = np.random.default_rng(number).normal(0, loudness, 4000 + 100 * number).clip(-1, 1)
        soundfile.write(folder / f"{name}.flac", samples, RATE)
        entry = {"audio_filepath": f"{folder.name}/{name}.flac", "duration": len(samples) / RATE, "id": name}
        lines.append(json.dumps({**entry, "text": f"text {number}", "speaker": speaker}) + "\n")
    manifest = folder.parent / f"{folder.name}.jsonl"
    manifest.write_text("".join(lines))
    return manifest


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(noisy_speech, "held_out", lambda clip: clip.startswith("x_"))
    said = {f"{speaker}-{turn}": f"s{speaker}" for speaker in range(SPEAKERS) for turn in range(EACH)}
    speech = write(tmp_path / "speech", said, 0.25)
    noise = write(tmp_path / "noise", dict.fromkeys((*CLIPS, "y_places_restaurant"), ""), 0.05)
    return ["--speech", str(speech), "--noise", str(noise), "--utterances", "20", "--speakers", "10"]


def build(arguments: list[str], out: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    assert noisy_speech.main([*arguments, "--out", str(out), *more]) == 0
    parts = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("clean", "noisy")}
    return {name: [json.loads(line) for line in lines] for name, lines in parts.items()}


def samples(folder: Path, entry: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    found, rate = soundfile.read(folder / entry["audio_filepath"], dtype="int16")
    assert rate == RATE
    return np.asarray(found, np.float64)


def test_speakers_and_kinds_are_balanced(arguments: list[str], tmp_path: Path) -> None:
    found = build(arguments, tmp_path / "out")
    assert [line["id"] for line in found["clean"]] == [line["id"] for line in found["noisy"]]
    assert set(Counter(line["speaker"] for line in found["noisy"]).values()) == {2}
    assert Counter(line["kind"] for line in found["noisy"]) == dict.fromkeys(KINDS, 4)
    assert max(Counter((line["speaker"], line["kind"]) for line in found["noisy"]).values()) == 1
    assert {line["kind"] for line in found["clean"]} == {"clean"} and "snr_db" not in found["clean"][0]


def test_the_halves_can_be_different_sentences_of_the_same_speakers(arguments: list[str], tmp_path: Path) -> None:
    found = build([*arguments[:-4], "--utterances", "10", "--speakers", "10"], tmp_path / "out", "--no-paired")
    ids, speakers = ([{line[key] for line in part} for part in found.values()] for key in ("id", "speaker"))
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 20
    assert speakers[0] == speakers[1] and len(speakers[0]) == 10


def test_the_noise_has_the_level_that_is_written(arguments: list[str], tmp_path: Path) -> None:
    found = build(arguments, tmp_path / "out")
    for clean, noisy in zip(*found.values(), strict=True):
        speech, sum_of_both = samples(tmp_path / "out", clean), samples(tmp_path / "out", noisy)
        noise = sum_of_both / 10 ** (noisy["gain_db"] / 20) - speech
        ratio = 10 * np.log10(np.square(speech).mean() / np.square(noise).mean())
        assert 2 <= noisy["snr_db"] < 6
        assert ratio == pytest.approx(noisy["snr_db"], abs=0.05)
        assert noisy["gain_db"] <= 0 and all(clip.startswith("x_") for clip in noisy["noise"])
    assert min(line["gain_db"] for line in found["noisy"]) < -0.5  # loud speech was turned down
    (first, *_) = read_manifest(tmp_path / "out" / "noisy.jsonl")
    assert first.snr == found["noisy"][0]["snr_db"] and first.kind == found["noisy"][0]["kind"]


def test_a_seed_is_a_set(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digests = []
    for number, seed in enumerate("001"):
        build(arguments, tmp_path / str(number), "--seed", seed)
        digests.append(capsys.readouterr().out.splitlines()[-1])
    assert digests[0] == digests[1] != digests[2]
    once, again, other = ((tmp_path / name / "noisy.jsonl").read_text() for name in "012")
    assert once == again != other


def test_layers_have_their_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "car", (Layer(("a",)), Layer(("b",), -20.0)))
    recordings = {"a": np.full(30, 5), "b": np.full(7, 300), "silent": np.zeros(9, np.int64)}
    found = draw("car", (("a",), ("b",)), recordings, 50, random.Random(0))
    assert found.clips == ("a", "b") and found.samples.tolist() == [round(1.1 * backgrounds.LEVEL)] * 50
    quiet = draw("car", (("a",), ("silent",)), recordings, 20, random.Random(0))
    assert power(quiet.samples) == backgrounds.LEVEL**2


def test_sums_keep_within_16_bits() -> None:
    tone = np.tile([30000, -30000], 50)
    total, gain = mixed(tone, np.tile([1, -1], 50), 6.0)
    assert np.abs(total).max() == 32767 and gain == pytest.approx(20 * np.log10(32767 / (30000 * (1 + 10**-0.3))))
    assert mixed(tone // 100, np.tile([1, -1], 50), 6.0)[1] == 0
    with pytest.raises(ValueError, match="silence has no SNR"):
        mixed(tone, 0 * tone, 6.0)


def test_only_held_out_recordings_count() -> None:
    found = candidates([*CLIPS, "y_urban_road"], lambda clip: clip != "y_urban_road")
    assert found["car"] == (("x_rain-on-car-roof",), ("x_urban_road",), ("x_windshield-wipers",))
    assert found["cafeteria"] == (("x_coffee-shop",), ("x_places_supermarket",))
    with pytest.raises(ValueError, match="radio: none of 8 held-out recordings of 9 has one of"):
        candidates(CLIPS, lambda clip: "radio" not in clip)


def test_speakers_who_say_too_little_are_passed_over() -> None:
    said = [Utterance(Path(f"{name}{turn}.flac"), "a", 1.0, name) for name in "abc" for turn in range(3)]
    found = noisy_speech.choose([*said, Utterance(Path("d.flac"), "a", 1.0, "d")], 3, 6, random.Random(1))
    assert [each.speaker for each in found[:3]] == [each.speaker for each in found[3:]]
    assert {each.speaker for each in found} == set("abc") and len({each.audio for each in found}) == 6


def test_files_are_named_after_the_recordings_and_never_twice() -> None:
    said = [Utterance(Path("a/1.flac"), "a", 1.0, id="x/1"), Utterance(Path("a/2.flac"), "a", 1.0)]
    assert noisy_speech.file_names(said) == ["x_1.flac", "2.flac"]
    with pytest.raises(ValueError, match=r"a/2\.flac and b/2\.flac would both be 2\.flac"):
        noisy_speech.file_names([*said, Utterance(Path("b/2.flac"), "b", 1.0)])


def test_a_noise_s_name_is_one_recording_s(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "noise", {"x_tuning-radio": ""}, 0.05)
    with pytest.raises(ValueError, match="are both called 'x_tuning-radio'"):
        noisy_speech.read_noises([Path(arguments[3]), other])


def test_samples_louder_than_full_scale_are_cut(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.array([1.5, 1.0, -1.5, 0.5]), RATE, subtype="FLOAT")
    assert noisy_speech.whole(Utterance(tmp_path / "loud.wav", "", 1.0)).tolist() == [32767, 32767, -32768, 16384]
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match=r"empty\.wav: has no samples"):
        noisy_speech.whole(Utterance(tmp_path / "empty.wav", "", 1.0))


def test_few_speakers_are_said_to_be_few(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert noisy_speech.main([*arguments, "--speakers", "5", "--utterances", "5", "--out", str(tmp_path / "out")]) == 0
    assert "5 speakers: good for decisions, too few for a test, which has 10 or more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--speakers", "0"], "--speakers is 0 and --utterances 20: at least one speaker"),
        (["--utterances", "9"], "at least one utterance each"),
        (["--utterances", "40"], "0 of 12 speakers have 4 utterances or more: 10 are needed"),
        (["--speech", "gone.jsonl"], "gone.jsonl: cannot be read"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        noisy_speech.main([*arguments, "--out", str(tmp_path / "out"), *wrong])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
