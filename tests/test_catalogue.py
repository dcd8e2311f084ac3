"""What a request gets of what is loaded, and that it never gets half of a reload."""

from dataclasses import replace
from pathlib import Path

import pytest

from asr_server import bundle
from asr_server.catalogue import Catalogue
from asr_server.language_model import LanguageModel
from asr_server.recognizer import Engine
from tests import toy_arpa
from tests.speech_fixtures import save_toy_bundle


def engine(models: Path, name: str, language_code: str = "en-US") -> Engine:
    return Engine(bundle.load(save_toy_bundle(models, name, language_code)))


def with_words(engine: Engine, folder: Path) -> Engine:
    """Another version, with a language model of its own."""
    folder.mkdir()
    return Engine(replace(engine.bundle, language_model=LanguageModel(toy_arpa.write(folder))))


def test_the_first_that_speaks_the_language_is_the_default(tmp_path: Path) -> None:
    german, english = engine(tmp_path, "a", "de-DE"), engine(tmp_path, "b")
    catalogue = Catalogue([german, english])
    assert list(catalogue) == [german, english]
    assert catalogue.choose("", "en") is english
    assert catalogue.choose("latest_long", "DE-de") is german
    assert catalogue.choose("b", "en-us") is english
    for name, language_code, text in [
        ("a", "en-US", "not supported by model 'a'. Select one of {de-DE, en-US}"),
        ("", "fr-FR", "not supported by any model"),
        ("", "", "language_code is empty"),
        ("c", "en-US", "model 'c' is not known. Select one of {a, b}"),
    ]:
        with pytest.raises(ValueError, match=text):
            catalogue.choose(name, language_code)


def test_a_default_comes_before_the_first_where_it_is_loaded(tmp_path: Path) -> None:
    first, second, german = engine(tmp_path, "a"), engine(tmp_path, "b"), engine(tmp_path, "c", "de-DE")
    catalogue = Catalogue([first, second, german], default="b")
    assert catalogue.choose("", "en-US") is second
    assert catalogue.choose("a", "en-US") is first
    assert catalogue.choose("", "de-DE") is german
    catalogue.replace([first])
    assert catalogue.choose("", "en-US") is first
    catalogue.replace([first, second])
    assert catalogue.choose("", "en-US") is second


def test_replace_changes_everything_at_once(tmp_path: Path) -> None:
    old, new = engine(tmp_path / "1", "tones"), engine(tmp_path / "2", "tones")
    model = LanguageModel(toy_arpa.write(tmp_path))
    catalogue = Catalogue([old])
    before, names = catalogue.snapshot, iter(catalogue)
    catalogue.replace([new], {"words": model})
    assert list(names) == [old]  # begun before
    assert (dict(before.engines), dict(before.language_models)) == ({"tones": old}, {})
    assert catalogue.choose("tones", "en") is new
    assert catalogue.language_model("words", new) is model


def test_two_of_one_name_change_nothing(tmp_path: Path) -> None:
    old, new = engine(tmp_path / "1", "tones"), engine(tmp_path / "2", "tones")
    catalogue = Catalogue([old])
    with pytest.raises(ValueError, match="two speech models are called 'tones'"):
        catalogue.replace([new, old])
    assert list(catalogue) == [old]


def test_an_empty_catalogue_says_so(tmp_path: Path) -> None:
    only = engine(tmp_path, "tones")
    catalogue = Catalogue([only])
    catalogue.replace([])
    with pytest.raises(ValueError, match="this server has no speech model"):
        catalogue.choose("tones", "en-US")


def test_an_engine_keeps_the_language_model_of_its_version(tmp_path: Path) -> None:
    plain = engine(tmp_path, "tones")
    old, new = with_words(plain, tmp_path / "1"), with_words(plain, tmp_path / "2")
    catalogue = Catalogue([new, engine(tmp_path, "other")])
    assert catalogue.language_model("tones", old) is old.bundle.language_model
    assert catalogue.language_model("tones", new) is new.bundle.language_model
    assert catalogue.language_model("none", new) is None
    with pytest.raises(ValueError, match=r"'other' is not known. Select from \{none, tones\}"):
        catalogue.language_model("other", new)
