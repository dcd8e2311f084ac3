"""Calibration on cases that are counted by hand, and the command on tones."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from asr_server import bundle
from asr_server.beam_search import BeamSearch
from asr_server.calibration import Calibration, ConfidenceMap
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import calibrate, calibration_fit, reliability
from training.calibration_fit import FORMS, Cases, fit, held_out, select
from training.error_rate import edits
from training.recognition import Setting
from training.reliability_plot import wilson


def cases(*rows: tuple[float, int, int], groups: int = 4) -> Cases:
    """Of each row (confidence, how many were right, how many were not); the groups take turns."""
    confidence = [share for share, right, wrong in rows for _ in range(right + wrong)]
    outcomes = [i < right for _, right, wrong in rows for i in range(right + wrong)]
    return Cases(np.array(confidence), np.array(outcomes, bool), np.arange(len(outcomes)) % groups)


@pytest.mark.parametrize(
    ("said", "heard", "right"),
    [
        ("a b c", "a b c", [True, True, True]),
        ("a b c", "a x c", [True, False, True]),
        ("a c", "a b c", [True, False, True]),
        ("a b c", "a c", [True, True]),
        ("a b", "", []),
        ("", "a b", [False, False]),
        ("a b", "b x", [False, False]),  # two substitutions, as error_rate counts it
        ("x a b c", "a b c", [True, True, True]),
    ],
)
def test_words_are_right_where_the_alignment_pairs_them(said: str, heard: str, right: list[bool]) -> None:
    assert calibrate.matches(said.split(), heard.split()) == right


def test_wrong_words_are_the_errors_that_error_rate_counts() -> None:
    generator = random.Random(5)
    for _ in range(300):
        said, heard = (generator.choices("abc", k=generator.randrange(9)) for _ in range(2))
        found = edits(said, heard)
        right = calibrate.matches(said, heard)
        assert len(right) == len(heard)
        assert right.count(False) == found.substitutions + found.insertions
        assert all(word in said for word, fits in zip(heard, right, strict=True) if fits)


def test_calibration_errors_by_hand() -> None:
    confidence = np.array([0.1, 0.3, 0.55, 0.95])
    right = np.array([False, True, True, True])
    # of two bins: (0.1 + 0.3) / 2 against 1 / 2, and (0.55 + 0.95) / 2 against 1
    assert reliability.calibration_error(confidence, right, 2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.25)
    assert reliability.calibration_error(confidence, right, 4) == pytest.approx((0.1 + 0.7 + 0.45 + 0.05) / 4)
    assert reliability.calibration_error(confidence, right, 1) == pytest.approx(abs(1.9 / 4 - 3 / 4))
    found = reliability.measure(confidence, right)
    assert found.brier == pytest.approx((0.1**2 + 0.7**2 + 0.45**2 + 0.05**2) / 4)
    assert found.nll == pytest.approx(-np.log([0.9, 0.3, 0.55, 0.95]).mean())
    assert found.ece_10 == pytest.approx(reliability.calibration_error(confidence, right, 10))
    assert found.mass_15 == pytest.approx((0.1 + 0.7 + 0.45 + 0.05) / 4)


def test_bins_of_equal_mass_hold_equally_many() -> None:
    confidence, right = np.array([0.99, 0.2, 0.98, 0.97, 0.96]), np.array([True, False, False, True, True])
    assert [each.count for each in reliability.bins(confidence, right, 2, equal_mass=True)] == [3, 2]
    assert [each.count for each in reliability.bins(confidence, right, 2)] == [1, 4]
    lowest = reliability.bins(confidence, right, 2, equal_mass=True)[0]
    assert (lowest.confidence, lowest.right) == pytest.approx(((0.2 + 0.96 + 0.97) / 3, 2 / 3))


def test_a_bin_begins_with_its_lower_edge() -> None:
    found = reliability.bins(np.array([0.25, 0.5, 0.5 - 1e-9]), np.array([True, True, False]), 2)
    assert [(each.count, each.right) for each in found] == [(2, 0.5), (1, 1.0)]


@pytest.mark.parametrize(
    ("form", "truth"),
    [
        ("temperature", ConfidenceMap(0.5, 0.5, 0.0)),
        ("Platt", ConfidenceMap(0.5, 0.5, -0.7)),
        ("two exponents", ConfidenceMap(2.0, 0.3, 0.0)),
        ("beta", ConfidenceMap(1.5, 0.4, 0.6)),
    ],
)
def test_a_fit_finds_the_map_that_made_the_cases(form: str, truth: ConfidenceMap) -> None:
    rows = []
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999):
        right = round(20_000 * truth(share))
        rows.append((share, right, 20_000 - right))
    made = cases(*rows)
    found = fit(made, FORMS[form])
    assert (found.a, found.b, found.c) == pytest.approx((truth.a, truth.b, truth.c), abs=2e-3)
    after = reliability.measure(made.apply(found), made.right)
    assert after.ece_10 < 1e-3 < reliability.measure(made.apply(ConfidenceMap()), made.right).ece_10


def test_no_map_falls() -> None:
    """Where the sure words are the wrong ones, no confidence says anything: all get the share that was right."""
    made = cases((0.9, 20, 80), (0.1, 80, 20))
    assert fit(made, FORMS["temperature"]) == ConfidenceMap(0.0, 0.0, 0.0)
    platt = fit(made, FORMS["Platt"])
    assert (platt.a, platt.b) == (0.0, 0.0) and platt(0.9) == pytest.approx(0.5, abs=1e-6)
    for form in FORMS.values():
        found = fit(made, form)
        assert found(0.1) <= found(0.9)


def test_a_fit_without_cases_or_without_errors_is_finite() -> None:
    nothing = Cases(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
    for form in FORMS.values():
        assert fit(nothing, form) == ConfidenceMap()
        assert fit(cases((0.9, 50, 0), (1.0, 500, 0)), form)(0.9) > 0.95
        assert fit(cases((0.0, 0, 5), (1.0, 5, 0)), form)(1.0) > 0.99


def test_the_form_that_predicts_best_is_chosen() -> None:
    truth = ConfidenceMap(2.0, 0.3)
    shares = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    rows = [(share, round(4000 * truth(share)), 4000 - round(4000 * truth(share))) for share in shares]
    form, losses = select(cases(*rows), count=4)
    assert list(losses) == list(FORMS) and losses[form] == min(losses.values())
    assert form in ("two exponents", "beta") and losses[form] < losses["Platt"] < losses["temperature"]


def test_nobody_is_predicted_by_a_map_that_has_seen_them() -> None:
    """Whatever a speaker gets right, their own predictions stay the same, and only theirs."""
    generator = np.random.default_rng(3)
    share = generator.random(90)
    made = Cases(share, generator.random(90) < share**2, np.arange(90) % 3)
    predicted = held_out(made, 10)
    first = made.group == 0
    other = held_out(Cases(share, made.right ^ first, made.group), 10)
    assert np.array_equal(other[first], predicted[first])
    assert not np.isclose(other[~first], predicted[~first]).any()


def test_folds_hold_whole_groups() -> None:
    assert calibration_fit.folds(np.array([0, 0, 1, 2, 3, 4]), 3).tolist() == [0, 0, 1, 2, 0, 1]


def test_the_bootstrap_draws_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "DRAWS", 200)
    made = cases((0.8, 30, 10), (0.3, 5, 15), groups=1)
    columns = [made.confidence, made.confidence / 2]
    before, after, change = reliability.intervals(columns, made.right, made.group)
    measured = [reliability.measure(column, made.right) for column in columns]
    assert before["brier"] == pytest.approx([measured[0].brier] * 2)
    assert after["ece_10"] == pytest.approx([measured[1].ece_10] * 2)
    assert change["nll"] == pytest.approx([measured[1].nll - measured[0].nll] * 2)
    apart = Cases(made.confidence, made.right, np.arange(len(made)))
    low, high = reliability.intervals(columns, apart.right, apart.group)[0]["brier"]
    assert low < measured[0].brier < high
    assert reliability.intervals(columns, apart.right, apart.group)[0]["brier"] == [low, high]


def test_chance_alone_makes_an_error() -> None:
    alone = reliability.by_chance(np.array([0.5]))
    assert alone["ece_10"] == [0.5, 0.5] and alone["brier"] == [0.25, 0.25]
    many = reliability.by_chance(np.full(1000, 0.5))
    assert 0.005 < many["ece_10"][0] < 0.02 < many["ece_10"][1] < 0.05  # half a standard deviation is 0.008


def test_wilson_by_hand() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(1.0, 10)
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1.0)


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    return save_toy_bundle(tmp_path / "models")


@pytest.fixture
def arguments(tmp_path: Path, toy_bundle: Path) -> list[str]:
    """Three speakers and a recording without one. What was said is not always what the tones say."""
    entries = [("ab a", "ab a", "x"), ("ab a", "ab b", "y"), ("b a", "b a", "z"), ("c", "c", ""), ("", "d", "z")]
    lines = []
    for number, (tones, text, speaker) in enumerate(entries):
        samples = speak(tones)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
        entry = {"audio_filepath": f"{number}.wav", "text": text, "duration": len(samples) / RATE}
        lines.append(json.dumps({**entry, "speaker": speaker} if speaker else entry))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    cache = str(tmp_path / "cache")
    return ["--bundle", str(toy_bundle), "--manifest", str(tmp_path / "dev.jsonl"), "--cache", cache]


def found(arguments: Sequence[str]) -> list[calibrate.Finding]:
    return calibrate.calibrate(calibrate.build_parser().parse_args(arguments))


def test_cases_are_the_words_and_texts_that_were_heard(arguments: list[str]) -> None:
    words, texts = found(arguments)
    assert (words.kind, texts.kind) == ("words", "utterances")
    assert words.cases.right.tolist() == [True, True, True, False, True, True, True]
    assert words.cases.group.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert texts.cases.right.tolist() == [True, False, True, True]  # in silence nothing was heard
    assert texts.cases.group.tolist() == [0, 1, 2, 3]
    assert (words.cases.confidence > 0.99).all() and (texts.cases.confidence > 0.99).all()


def test_hearing_keeps_the_words_committed_on_the_way(toy_bundle: Path) -> None:
    recognition = Setting(toy_bundle, mode="chunked").load()
    log_probs = recognition.log_probs(speak("a b ab ba a b a"))
    search = BeamSearch(recognition.bundle.decoding, recognition.bundle.alphabet)
    search.advance(log_probs)
    assert [word.text for word in search.take_committed()] != []
    assert calibrate.hear(recognition, log_probs).text == "a b ab ba a b a"


def test_maps_are_fitted_and_written(
    tmp_path: Path, toy_bundle: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main([*arguments, "--write", "--json", "--plot", str(tmp_path / "plot.png")]) == 0
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    loaded = bundle.load(toy_bundle).calibration
    assert loaded != Calibration()
    assert figures["words"]["map"] == vars(loaded.words) and figures["utterances"]["map"] == vars(loaded.utterances)
    assert (figures["words"]["count"], figures["words"]["right"]) == (7, 0.8571)
    assert figures["words"]["forms"][figures["words"]["form"]] == min(figures["words"]["forms"].values())
    before, low, high = figures["words"]["before"]["brier"]
    assert low <= before <= high and before == pytest.approx(1 / 7, abs=0.01)  # one wrong word of seven that are sure
    assert loaded.word(0.9999) < 0.99
    assert printed[1].split()[:3] == ["words", "ece_10", f"{figures['words']['before']['ece_10'][0]:.4f}"]
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (1500, 900)


def test_measuring_takes_the_map_that_is_there(toy_bundle: Path, arguments: list[str]) -> None:
    there = Calibration(ConfidenceMap(0.0, 0.0, 1.0), ConfidenceMap(0.0, 0.0, -1.0))
    calibrate.write_calibration(toy_bundle, there)
    description = (toy_bundle / "bundle.json").read_bytes()
    words, texts = found([*arguments, "--measure"])
    assert (words.chosen, texts.chosen) == (there.words, there.utterances)
    assert words.after == pytest.approx(there.word(0.5)) and texts.after == pytest.approx(there.utterance(0.5))
    assert (words.before > 0.99).all()
    assert (words.form, words.losses) == ("", {})
    assert calibrate.main([*arguments, "--measure"]) == 0
    assert (toy_bundle / "bundle.json").read_bytes() == description


def test_nothing_is_written_unasked_and_the_rest_of_the_bundle_stays(toy_bundle: Path, arguments: list[str]) -> None:
    before = (toy_bundle / "bundle.json").read_bytes()
    assert calibrate.main(arguments) == 0
    assert (toy_bundle / "bundle.json").read_bytes() == before
    calibrate.write_calibration(toy_bundle, Calibration())
    written = json.loads((toy_bundle / "bundle.json").read_text())
    assert written.pop("calibration") == {kind: {"a": 1.0, "b": 1.0, "c": 0.0} for kind in ("words", "utterances")}
    assert written == json.loads(before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--limit", "0"], "--limit is 0: at least 1"),
        (["--limit", "1"], "all of it is of one speaker"),
        (["--folds", "1"], "--folds is 1: at least 2"),
        (["--measure", "--write"], "select one of them"),
        (["--plot", "plot.gif"], "--plot is 'plot.gif': select a name that ends in one of"),
        (["--plot", "missing/plot.png"], "there is no folder 'missing'"),
        (["--bundle", "nowhere"], "bundle 'nowhere' is neither a folder nor shipped"),
        (["--manifest", "nothing.jsonl"], "nothing.jsonl: cannot be read as a manifest"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        calibrate.main([*arguments, *wrong])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
