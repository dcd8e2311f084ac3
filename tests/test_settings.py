"""Settings of a call as text: every name, every wrong value with its text, and pauses that move each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from asr_server import bundle, settings
from asr_server.catalogue import Catalogue
from asr_server.decoding import DecodingOptions
from asr_server.endpoint import UNCUT, USUAL, EndpointOptions
from asr_server.language_model import LanguageModel
from asr_server.messages import stream_options
from asr_server.recognizer import Engine
from tests import toy_arpa
from tests.speech_fixtures import save_toy_bundle

DECODING = DecodingOptions(beam_width=8)


def read(**values: str) -> settings.Settings:
    return settings.read(values, DECODING, USUAL)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpha", "0.75", 0.75),
        ("beta", "-2", -2.0),
        ("gamma", "0.7", 0.7),
        ("beam_width", "1024", 1024),
        ("token_min_log_prob", "-3.5", -3.5),
        ("beam_prune_log_prob", "-inf", -math.inf),
        ("unknown_word_offset", "-6", -6.0),
        ("lexicon", "True", True),
        ("lookahead", "false", False),
    ],
)
def test_decoding(name: str, text: str, value: object) -> None:
    assert read(**{name: text}).decoding == replace(DECODING, **{name: value})  # type: ignore[arg-type]
    assert read(**{name: text}).endpoint == USUAL


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("start_history", "0", "start_history", 0.0),
        ("start_history", "200", "start_history", 0.2),
        ("start_threshold", "0.25", "start_threshold", 0.25),
        ("stop_history", "1200", "silence", 1.2),
        ("stop_threshold", "0.9", "stop_threshold", 0.9),
        ("stop_history_eou", "240", "first_pass", 0.24),
        ("stop_threshold_eou", "1", "first_pass_threshold", 1.0),
    ],
)
def test_endpointing_in_milliseconds_and_shares(name: str, text: str, field: str, value: float) -> None:
    assert read(**{name: text}).endpoint == replace(USUAL, **{field: value})
    assert read(**{name: text}).decoding == DECODING


def test_every_name_is_tested_above_and_in_the_documentation() -> None:
    tested = {"alpha", "beta", "gamma", "beam_width", "token_min_log_prob", "beam_prune_log_prob"}
    tested |= {
        "unknown_word_offset",
        "lexicon",
        "lookahead",
        "start_history",
        "start_threshold",
        "stop_history",
        "stop_threshold",
    }
    tested |= {"stop_history_eou", "stop_threshold_eou", "language_model"}
    assert set(settings.NAMES) == tested
    page = (Path(__file__).parent.parent / "docs" / "speech-api.md").read_text()
    assert all(f"| `{name}` |" in page for name in settings.NAMES)


def test_nothing_asked_for_changes_nothing() -> None:
    assert read() == settings.Settings(DECODING, USUAL, None)


def test_dashes_are_underscores() -> None:
    dashed = settings.read({"stop-history-eou": "300", "beam-width": "3", "language-model": "x"}, DECODING, USUAL)
    assert dashed == read(stop_history_eou="300", beam_width="3", language_model="x")
    assert (dashed.endpoint.first_pass, dashed.decoding.beam_width, dashed.language_model) == (0.3, 3, "x")


def test_metadata() -> None:
    metadata = {"earsight-beam-width": "5", "earsight-alpha": "1", "x-request-id": "7", "user-agent": "earsight-beta"}
    assert settings.from_metadata(metadata) == {"beam-width": "5", "alpha": "1"}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"speed": "2"}, "'speed' is not known. Select from {alpha, beta, gamma, beam_width, "),
        ({"n_best": "2"}, "'n_best' is not known"),
        ({"z" * 100: "2"}, f"'{'z' * 40}' is not known"),
        ({"alpha": "much"}, "alpha is 'much'; it must be a number."),
        ({"alpha": "9" * 5000 + "x"}, f"alpha is '{'9' * 40}'; it must be a number."),
        ({"beam_width": "7.5"}, "beam_width is '7.5'; it must be a whole number."),
        ({"beam_width": ""}, "beam_width is ''; it must be a whole number."),
        ({"lexicon": "1"}, "lexicon is '1'; it must be true or false."),
        ({"stop_history": "soon"}, "stop_history is 'soon'; it must be a number."),
        ({"beam_width": "1025"}, "beam_width is 1025: at most 1024"),
        ({"beam_width": "0"}, "beam_width is 0: a whole number, at least 1"),
        ({"alpha": "nan"}, "alpha is nan and beta"),
        ({"alpha": "-1"}, "alpha is -1.0 and beta 1.0: alpha from 0 to 100, beta from -100 to 100"),
        ({"beta": "inf"}, "beta inf"),
        ({"token_min_log_prob": "1"}, "token_min_log_prob is 1.0: a logarithm of at most 0"),
        ({"unknown_word_offset": "-inf"}, "unknown_word_offset is -inf"),
        ({"start_history": "-1"}, "start_history is -1; it must be 0 to 60000 milliseconds"),
        ({"stop_history": "0"}, "stop_history is 0; it must be 1 to 60000 milliseconds"),
        ({"stop_history": "inf"}, "stop_history is inf; it must be 1 to 60000 milliseconds"),
        ({"stop_history_eou": "nan"}, "stop_history_eou is nan; it must be 1 to 60000 milliseconds"),
        ({"start_threshold": "0"}, "start_threshold is 0; it must be above 0 and at most 1"),
        ({"stop_threshold": "1.1"}, "stop_threshold is 1.1; it must be above 0 and at most 1"),
        ({"stop_threshold_eou": "nan"}, "stop_threshold_eou is nan; it must be above 0 and at most 1"),
        ({"stop_history_eou": "900"}, "stop_history_eou is 900; it must be at most stop_history, which is 800"),
        ({"stop_history_eou": "90", "stop_history": "50"}, "at most stop_history, which is 50"),
    ],
)
def test_errors_name_the_setting_its_value_and_the_rule(values: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid settings: ") as caught:
        settings.read(values, DECODING, USUAL)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_pause_moves_what_must_be_shorter_or_longer() -> None:
    short, long = read(stop_history="200").endpoint, read(stop_history="5000").endpoint
    assert (short.silence, short.lead_in, short.patience) == (0.2, 0.1, 2.0)
    assert (long.silence, long.lead_in, long.patience) == (5.0, 0.3, 5.0)
    shortest = read(stop_history="1").endpoint
    assert 0 < shortest.lead_in < shortest.silence
    assert settings.with_pauses(USUAL, {"silence": 0.4, "lead_in": 0.39}).lead_in == 0.39


def test_other_pauses_than_the_usual_stay() -> None:
    assert settings.read({"start_history": "100"}, DECODING, UNCUT).endpoint == replace(UNCUT, start_history=0.1)
    own = EndpointOptions(silence=1.5, patience=3.0)
    assert settings.read({"stop_threshold": "0.5"}, DECODING, own).endpoint == replace(own, stop_threshold=0.5)


# --- which language model ---


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With a language model and its word list, which its searches keep to."""
    folder = tmp_path_factory.mktemp("models")
    toy = bundle.load(save_toy_bundle(folder))
    decoding = replace(toy.decoding, lexicon=True)
    return Engine(replace(toy, language_model=LanguageModel(toy_arpa.write(folder)), decoding=decoding))


def options_of(engine: Engine, catalogue: Catalogue, **values: str) -> tuple[LanguageModel | None, bool]:
    """The language model and whether words have to be in its list."""
    options = stream_options(engine, catalogue, values, {}, 1)
    search = engine.stream(options).utterance.search
    return search.language_model, search.options.lexicon


def test_language_models_by_name(engine: Engine, tmp_path: Path) -> None:
    listed, unlisted = LanguageModel(toy_arpa.write(tmp_path)), LanguageModel(toy_arpa.write_characters(tmp_path))
    catalogue = Catalogue([engine], {"listed": listed, "spelled": unlisted})
    assert options_of(engine, catalogue) == (engine.bundle.language_model, True)
    assert options_of(engine, catalogue, language_model="tones") == (engine.bundle.language_model, True)
    assert options_of(engine, catalogue, language_model="listed") == (listed, True)
    with pytest.raises(
        ValueError, match=r"language_model 'x' is not known. Select from \{none, tones, listed, spelled"
    ):
        options_of(engine, catalogue, language_model="x")


def test_without_a_word_list_nothing_has_to_be_in_it(engine: Engine, tmp_path: Path) -> None:
    """The bundle's wish for one would make every other language model an error, unless the call repeats it."""
    spelled = LanguageModel(toy_arpa.write_characters(tmp_path), "character")
    catalogue = Catalogue([engine], {"spelled": spelled})
    assert options_of(engine, catalogue, language_model="none") == (None, False)
    assert options_of(engine, catalogue, language_model="spelled") == (spelled, False)
    for name in ("none", "spelled"):
        with pytest.raises(ValueError, match="lexicon is on, but"):
            options_of(engine, catalogue, language_model=name, lexicon="true")
