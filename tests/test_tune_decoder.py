"""Tuning on tones: the options decide how many words are heard, and the best ones end in the bundle."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from asr_server import bundle
from asr_server.decoding import DecodingOptions
from asr_server.model import DeepSpeech
from tests import toy_arpa
from tests.speech_fixtures import RATE, save_toy_bundle, speak
from training import network_outputs, tune_decoder, tuning_plot
from training.decoding_trial import Trial, Trials, load_material
from training.error_rate import Edits
from training.recognition import LogProbs, Recognition, Samples, Setting
from training.speech_manifest import read_manifest
from training.tune_decoder import Evaluate

SILENT = DecodingOptions(beam_width=8, alpha=0.0, beta=-100.0, n_best=3)  # no space is worth its word


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """With the toy language model, for which "ab a" is likelier than "ab b", and options that hear no spaces."""
    folder = save_toy_bundle(tmp_path / "models")
    bundle.save(replace(bundle.load(folder), decoding=SILENT), toy_arpa.write(tmp_path))
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    path.write_text(entry(tmp_path, "first", "ab b") + entry(tmp_path, "second", "a b"))
    return path


def entry(folder: Path, name: str, text: str) -> str:
    """A recording, and its line of a manifest."""
    samples = speak(text)
    soundfile.write(folder / f"{name}.wav", samples, RATE)
    return json.dumps({"audio_filepath": f"{name}.wav", "text": text, "duration": len(samples) / RATE}) + "\n"


@pytest.fixture
def arguments(tmp_path: Path, toy_bundle: Path, manifest: Path) -> Iterator[list[str]]:
    yield ["--bundle", str(toy_bundle), "--manifest", str(manifest), "--cache", str(tmp_path / "cache")]
    load_material.cache_clear()  # a model that lives as long as the process looks like a leak of the native core


def tuned(arguments: Sequence[str], *more: str) -> Trials:
    return tune_decoder.tune(tune_decoder.build_parser().parse_args([*arguments, *more]))


def trial(word_errors: int, character_errors: int = 0, us_per_frame: float = 0.0, **options: Any) -> Trial:
    return Trial(
        replace(DecodingOptions(), **options),
        Edits(word_errors, reference=100),
        Edits(character_errors, reference=500),
        us_per_frame,
    )


def test_the_best_options_are_found_and_written(
    toy_bundle: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--alpha", "0", "0", "--beta", "-100", "0", "--gamma", "0", "0", "--trials", "12", "--json", "--write"]
    assert tune_decoder.main([*arguments, *more]) == 0
    table = capsys.readouterr().out.splitlines()
    figures = json.loads(table[-1])
    assert (figures["wer"], figures["cer"], figures["trials"]) == (0.0, 0.0, 12)
    assert figures["wer_before"] > 0 and figures["us_per_frame"] > 0
    found = bundle.load(toy_bundle).decoding
    assert found == replace(SILENT, beta=found.beta) and -100 < found.beta <= 0
    assert figures["decoding"]["beta"] == found.beta
    best, *_, before, _, _ = table[1:]
    assert best.split()[1] == f"{found.beta:.3f}" and before.split()[1] == "-100.000"


def test_nothing_is_written_unasked(toy_bundle: Path, arguments: list[str]) -> None:
    before = (toy_bundle / "bundle.json").read_bytes()
    assert tune_decoder.main([*arguments, "--trials", "2"]) == 0
    assert (toy_bundle / "bundle.json").read_bytes() == before


def test_the_first_trial_is_what_the_bundle_has(toy_bundle: Path, arguments: list[str]) -> None:
    """To the last digit, also outside the ranges; what the command line fixes is fixed in every trial."""
    odd = replace(SILENT, alpha=0.123456789, beta=7.5)
    tune_decoder.write_options(toy_bundle, odd)
    trials = tuned(arguments, "--trials", "3", "--beta", "-1", "1")
    assert trials.before.options == odd
    assert all(-1 <= trial.options.beta <= 1 for trial in trials.made[1:])
    fixed = tuned(arguments, "--trials", "3", "--beam-width", "5", "--lexicon", "on")
    assert fixed.before.options == replace(odd, beam_width=5, lexicon=True)
    assert {(trial.options.beam_width, trial.options.lexicon) for trial in fixed.made} == {(5, True)}


def test_one_seed_gives_the_same_trials_again(arguments: list[str]) -> None:
    def options(*more: str) -> list[DecodingOptions]:
        return [trial.options for trial in tuned(arguments, "--trials", "15", *more).made]

    assert options() == options() != options("--seed", "1")


def test_processes_hear_the_same(arguments: list[str]) -> None:
    """The first ten trials are random, so that they do not depend on how many are made at a time."""

    def heard(*more: str) -> list[tuple[DecodingOptions, Edits, Edits]]:
        return [(trial.options, trial.words, trial.characters) for trial in tuned(arguments, *more).made]

    assert heard("--trials", "3", "--jobs", "2") == heard("--trials", "3")


def bowl(options: DecodingOptions) -> Trial:
    """Best at alpha 1 and beta 2; slower and a little better with the width of the beam."""
    distance = (options.alpha - 1) ** 2 + ((options.beta - 2) / 2) ** 2
    return Trial(
        options, Edits(round(100 * distance) + 256 - options.beam_width, reference=1000), Edits(), options.beam_width
    )


def searched(*more: str) -> tuple[Trials, list[int]]:
    """A search of the bowl, and how many trials were made at a time."""
    start = DecodingOptions()
    args = tune_decoder.build_parser().parse_args(["--bundle", "b", "--manifest", "m", *more])
    batches = []

    def run(evaluate: Evaluate, options: Sequence[DecodingOptions]) -> Iterable[Trial]:
        batches.append(len(options))
        return map(evaluate, options)

    return tune_decoder.search(bowl, start, tune_decoder.search_space(args, start), args, run), batches


def test_trials_go_where_the_good_ones_were() -> None:
    trials, batches = searched("--trials", "50", "--jobs", "4")
    assert batches == [4] * 12 + [2]
    assert trials.made == searched("--trials", "50", "--jobs", "4")[0].made
    near = [abs(trial.options.alpha - 1) < 0.6 and abs(trial.options.beta - 2) < 1.6 for trial in trials.made]
    assert sum(near[-20:]) > 10  # it is a sixth of what is searched
    assert {trial.options.beam_width for trial in trials.made} == {64}


def test_the_sampler_knows_where_the_first_trial_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the nearest end of a range that does not hold it."""
    studies = []
    create = optuna.create_study

    def remembered(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        studies.append(create(sampler=sampler))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", remembered)
    trials, _ = searched("--trials", "2", "--beta", "3", "4", "--budget", "50")
    first, second = studies[0].trials
    usual = trials.before.options
    assert first.params == {
        "alpha": usual.alpha,
        "beta": 3.0,
        "gamma": usual.gamma,
        "beam_width": usual.beam_width,
        "token_min_log_prob": usual.token_min_log_prob,
        "beam_prune_log_prob": usual.beam_prune_log_prob,
    }
    assert (first.value, second.value) == tuple(trial.value for trial in trials.made)


def test_a_budget_searches_the_beam_and_lets_no_slower_trial_win() -> None:
    trials, _ = searched("--trials", "80", "--budget", "50")
    options = trials.best.options
    assert trials.before.us_per_frame == 64 and not trials.allows(trials.before)
    assert 25 < options.beam_width <= 50
    assert len({trial.options.token_min_log_prob for trial in trials.made}) > 50
    assert len({trial.options.beam_prune_log_prob for trial in trials.made}) > 50
    assert sum(map(trials.allows, trials.made[-40:])) > 20  # although without the budget the wide beams are better
    fixed, _ = searched("--trials", "5", "--budget", "100", "--beam-width", "64")
    assert {trial.options.beam_width for trial in fixed.made} == {64}


def test_trials_rank_by_words_then_characters_then_width_then_order() -> None:
    ranked = [trial(1, 9, beam_width=64), trial(2, 3), trial(2, 4, beam_width=8), trial(2, 4, beam_width=16, beta=0)]
    later = trial(2, 4, beam_width=16, beta=9)
    assert Trials((ranked[3], ranked[1], later, ranked[2], ranked[0])).ranked == [*ranked, later]
    assert sorted(ranked[2::-1], key=lambda each: each.value) == ranked[:3]


def test_a_budget_that_nothing_keeps_names_the_fastest(
    toy_bundle: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (toy_bundle / "bundle.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        tune_decoder.main([*arguments, "--trials", "3", "--budget", "1e-6", "--write"])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and (toy_bundle / "bundle.json").read_bytes() == before
    assert "--budget is 1e-06 microseconds per frame, and none of 3 trials kept it: the fastest took" in message
    with pytest.raises(ValueError, match=r"fastest took 4\.0, with beam width 7"):
        _ = Trials((trial(1, 0, 9.0), trial(1, 0, 4.0, beam_width=7)), budget=3.0).best


def test_the_network_runs_once_for_all_tunings(
    tmp_path: Path, toy_bundle: Path, manifest: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    original = Recognition.log_probs

    def counted(self: Recognition, samples: Samples) -> LogProbs:
        runs.append(len(samples))
        return original(self, samples)

    monkeypatch.setattr(Recognition, "log_probs", counted)

    def again(*more: str) -> int:
        """How many recordings the network hears in a run."""
        runs.clear()
        tuned(arguments, "--trials", "1", *more)
        return len(runs)

    assert again() == 2
    assert again() == again("--seed", "1", "--beam-width", "3") == 0
    assert again("--chunked") == 2
    assert again("--limit", "1") == 1
    manifest.write_text(manifest.read_text() + entry(tmp_path, "third", "b"))
    assert again() == 3
    speak_again = entry(tmp_path, "third", "a b a")  # the same file with another recording
    assert speak_again and again() == 3
    loaded = bundle.load(toy_bundle)
    bundle.save(replace(loaded, model=altered(loaded.model)), toy_bundle / "lm.arpa")
    assert again() == 3 and again() == 0
    assert all(path.suffix == ".npz" for path in (tmp_path / "cache").iterdir())


def test_other_code_is_another_network(
    toy_bundle: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognition, utterances = Setting(toy_bundle).load(), read_manifest(manifest)
    before = network_outputs.keep(recognition, utterances, tmp_path / "outputs")
    assert network_outputs.keep(recognition, utterances, tmp_path / "outputs") == before
    (tmp_path / "core.so").write_bytes(b"compiled again")
    monkeypatch.setattr(network_outputs, "core", SimpleNamespace(__file__=str(tmp_path / "core.so")))
    assert network_outputs.keep(recognition, utterances, tmp_path / "outputs") != before


def altered(model: DeepSpeech) -> DeepSpeech:
    model.output.bias[1] -= 0.5
    return model


def test_a_corrected_text_counts_without_the_network(manifest: Path, arguments: list[str]) -> None:
    more = ["--trials", "1", "--language-model", "none"]
    assert tuned(arguments, *more).best.words.errors == 4
    manifest.write_text(manifest.read_text().replace('"ab b"', '"abb"').replace('"a b"', '"ab"'))
    assert tuned(arguments, *more).best.words.errors == 0


def test_outputs_come_back_as_they_were(tmp_path: Path, toy_bundle: Path, manifest: Path) -> None:
    manifest.write_text(manifest.read_text() + entry(tmp_path, "third", "a"))
    recognition = Setting(toy_bundle).load()
    utterances = read_manifest(manifest)
    path = network_outputs.keep(recognition, utterances, tmp_path / "new" / "folder")
    kept = network_outputs.load(path)
    assert len(kept) == 3 and len(kept[0]) > len(kept[1]) > len(kept[2])
    for outputs, utterance in zip(kept, utterances, strict=True):
        np.testing.assert_array_equal(outputs, recognition.log_probs(utterance.samples(RATE)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not the outputs of a network"):
        network_outputs.load(path)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert network_outputs.default_folder() == tmp_path / "earsight" / "network-outputs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert network_outputs.default_folder() == tmp_path / ".cache" / "earsight" / "network-outputs"


def pixels(path: Path) -> NDArray[np.int64]:
    """(rows, columns, 3)"""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def star(path: Path) -> tuple[float, float]:
    """Where the picture marks the best trial: column and row of the star's middle, as shares of the picture."""
    marked = np.abs(pixels(path) - (255, 69, 0)).sum(axis=2) < 30
    marked[int(0.85 * len(marked)) :] = False  # the legend has one too
    rows, columns = np.nonzero(marked)
    assert len(rows) > 50
    return float(columns.mean() / marked.shape[1]), float(rows.mean() / marked.shape[0])


def grid(best: tuple[int, int]) -> Trials:
    trials = [
        trial(10 * (abs(alpha - best[0]) + abs(beta - best[1])), alpha=alpha, beta=beta)
        for alpha in range(5)
        for beta in range(5)
    ]
    return Trials(tuple(trials))


def test_the_picture_shows_the_surface_and_where_the_best_is(tmp_path: Path) -> None:
    """Low error rates are dark. Rows count downwards."""
    for name, best in (("left", (1, 3)), ("right", (3, 1))):
        tuning_plot.draw(grid(best), name, tmp_path / f"{name}.png")
    (left, high), (right, low) = star(tmp_path / "left.png"), star(tmp_path / "right.png")
    assert right > left + 0.2 and low > high + 0.2
    picture = pixels(tmp_path / "left.png")
    height, width, _ = picture.shape
    upper, lower = slice(int(0.1 * height), int(0.3 * height)), slice(int(0.5 * height), int(0.7 * height))
    left_part, right_part = slice(int(0.1 * width), int(0.3 * width)), slice(int(0.5 * width), int(0.7 * width))
    corners = [picture[rows, columns].mean() for rows in (upper, lower) for columns in (left_part, right_part)]
    assert min(corners) == corners[0] and max(corners) == corners[3]
    _, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    assert (counts > 0.005 * counts.sum()).sum() > 8  # steps of the surface


@pytest.mark.parametrize("trials", [grid((1, 1)).made[:1], grid((1, 1)).made[:5], (trial(1), trial(1))])
def test_few_trials_or_a_line_of_them_have_a_picture(trials: tuple[Trial, ...], tmp_path: Path) -> None:
    tuning_plot.draw(Trials(trials), "few", tmp_path / "few.svg")
    assert "</svg>" in (tmp_path / "few.svg").read_text()


def test_the_spline_meets_its_points_and_keeps_a_plane() -> None:
    draw = np.random.default_rng(0)
    places, elsewhere = draw.random((80, 2)), draw.random((50, 2))

    def plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(3 + points @ np.array([2.0, -5.0]))

    np.testing.assert_allclose(tuning_plot.spline(places, plane(places), elsewhere), plane(elsewhere), atol=1e-6)
    bumps = np.sin(6 * places[:, 0])
    np.testing.assert_allclose(tuning_plot.spline(places, bumps, places), bumps, atol=0.1)
    np.testing.assert_allclose(tuning_plot.spline(places, bumps, elsewhere), np.sin(6 * elsewhere[:, 0]), atol=0.2)


def test_the_command_draws(tmp_path: Path, arguments: list[str]) -> None:
    assert tune_decoder.main([*arguments, "--trials", "4", "--plot", str(tmp_path / "surface.png")]) == 0
    assert 0 < star(tmp_path / "surface.png")[0] < 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--lexicon", "on", "--language-model", "none"], "there is no language model"),
        (["--write", "--language-model", "none"], "--write with --language-model"),
        (["--alpha", "-1", "1"], "alpha is -1.0"),
        (["--beta", "2", "1"], "--beta is 2 1: LOW is at most HIGH"),
        (["--limit", "0"], "--limit is 0"),
        (["--trials", "0"], "--trials is 0"),
        (["--budget", "0"], "--budget is 0.0"),
        (["--budget", "50", "--jobs", "2"], "--budget with --jobs 2"),
        (["--plot", "surface.gif"], "--plot is 'surface.gif': select a name that ends in one of"),
        (["--plot", "missing/surface.png"], "there is no folder 'missing'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        tune_decoder.main([*arguments, *wrong])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
