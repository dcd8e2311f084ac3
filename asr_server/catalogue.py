"""The loaded models of a server, and the choice among them that a request makes by name and language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from asr_server.language_model import LanguageModel
from asr_server.recognizer import Engine

# Names that clients of the Google contract send out of habit; each means the default model.
DEFAULT_NAMES = ("default", "latest_long", "latest_short", "command_and_search", "phone_call", "video", "telephony")


NO_LANGUAGE_MODEL = "none"


class Catalogue:
    """Engines by name; the first one that speaks a request's language is its default."""

    def __init__(self, engines: Iterable[Engine], language_models: Mapping[str, LanguageModel] | None = None) -> None:
        self._language_models = dict(language_models or {})
        self._engines: dict[str, Engine] = {}
        for engine in engines:
            if engine.name in self._engines:
                folders = f"{self._engines[engine.name].bundle.folder} and {engine.bundle.folder}"
                raise ValueError(f"two speech models are called '{engine.name}': {folders}")
            self._engines[engine.name] = engine

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def language_model(self, name: str, engine: Engine) -> LanguageModel | None:
        """For an engine's streams, by name: one of the server's, that of a bundle, or "none". ValueError for others."""
        bundled = {each.name: each.bundle.language_model for each in self if each.bundle.language_model}
        known = {**bundled, **self._language_models}
        if name == NO_LANGUAGE_MODEL:
            return None
        if name not in known:
            choices = ", ".join((NO_LANGUAGE_MODEL, *known))
            raise ValueError(f"Invalid settings: language_model {name!r} is not known. Select from {{{choices}}}.")
        return known[name]

    def choose(self, name: str, language_code: str) -> Engine:
        """ValueError when no model has that name or speaks that language."""
        if not self._engines:
            raise ValueError("Invalid recognition 'config': this server has no speech model.")
        if name not in self._engines and name not in ("", *DEFAULT_NAMES):
            raise ValueError(
                f"Invalid recognition 'config': model '{name}' is not known. "
                f"Select one of {{{', '.join(self._engines)}}}, or leave it out for the default."
            )
        if not language_code:
            raise ValueError(
                f"Invalid recognition 'config': language_code is empty. Select one of {{{self._languages()}}}."
            )
        candidates = [self._engines[name]] if name in self._engines else list(self._engines.values())
        for engine in candidates:
            if _same_language(engine.language_code, language_code):
                return engine
        raise ValueError(
            f"Invalid recognition 'config': language_code '{language_code}' is not supported by "
            f"{f'model {name!r}' if name in self._engines else 'any model'}. Select one of {{{self._languages()}}}."
        )

    def _languages(self) -> str:
        return ", ".join(sorted({engine.language_code for engine in self._engines.values()}))


def _same_language(ours: str, asked: str) -> bool:
    """BCP-47 tags compare without case; "en" asks for any English."""
    ours, asked = ours.lower(), asked.lower()
    return asked in (ours, ours.split("-")[0])
