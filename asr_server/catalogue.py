"""The loaded models of a server, and the choice among them that a request makes by name and language.

What is loaded is one immutable `Snapshot`. `replace` puts another in its place with a single assignment, so a reload
needs no lock and a request never sees half of one. Streams hold their engine themselves: they end on the version that
they began with, and it is freed with the last of them. So there are never more versions in memory than live streams,
the loaded one and the one that is being loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from asr_server.language_model import LanguageModel
from asr_server.recognizer import Engine

# Names that clients of the Google contract send out of habit; each means the default model.
DEFAULT_NAMES = ("default", "latest_long", "latest_short", "command_and_search", "phone_call", "video", "telephony")


NO_LANGUAGE_MODEL = "none"


@dataclass(frozen=True)
class Snapshot:
    """What was loaded at one moment; both by name, in the order in which they are searched."""

    engines: Mapping[str, Engine] = field(default_factory=dict)
    language_models: Mapping[str, LanguageModel] = field(default_factory=dict)


class Catalogue:
    """Engines by name; of those that speak a request's language the one called `default`, or else the first, is its
    default. Used from any thread."""

    def __init__(
        self,
        engines: Iterable[Engine] = (),
        language_models: Mapping[str, LanguageModel] | None = None,
        default: str = "",
    ) -> None:
        self._default = default
        self.replace(engines, language_models)

    def replace(self, engines: Iterable[Engine], language_models: Mapping[str, LanguageModel] | None = None) -> None:
        """From the next request on, these. ValueError, and nothing changes, where two engines have one name."""
        named: dict[str, Engine] = {}
        for engine in engines:
            if engine.name in named:
                folders = f"{named[engine.name].bundle.folder} and {engine.bundle.folder}"
                raise ValueError(f"two speech models are called '{engine.name}': {folders}")
            named[engine.name] = engine
        if self._default in named:
            named = {self._default: named[self._default], **named}
        self._snapshot = Snapshot(named, dict(language_models or {}))

    @property
    def snapshot(self) -> Snapshot:
        """What is loaded now."""
        return self._snapshot

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._snapshot.engines.values())

    def language_model(self, name: str, engine: Engine) -> LanguageModel | None:
        """For an engine's streams, by name: one of the server's, that of a bundle, or "none". ValueError for others.

        The engine may be of an earlier snapshot; under its own name it then gets the language model of its version.
        """
        now = self._snapshot
        engines = {**now.engines, engine.name: engine}
        bundled = {each.name: each.bundle.language_model for each in engines.values() if each.bundle.language_model}
        known = {**bundled, **now.language_models}
        if name == NO_LANGUAGE_MODEL:
            return None
        if name not in known:
            choices = ", ".join((NO_LANGUAGE_MODEL, *known))
            raise ValueError(f"Invalid settings: language_model {name!r} is not known. Select from {{{choices}}}.")
        return known[name]

    def choose(self, name: str, language_code: str) -> Engine:
        """ValueError when no model has that name or speaks that language."""
        engines = self._snapshot.engines
        if not engines:
            raise ValueError("Invalid recognition 'config': this server has no speech model.")
        if name not in engines and name not in ("", *DEFAULT_NAMES):
            raise ValueError(
                f"Invalid recognition 'config': model '{name}' is not known. "
                f"Select one of {{{', '.join(engines)}}}, or leave it out for the default."
            )
        languages = ", ".join(sorted({engine.language_code for engine in engines.values()}))
        if not language_code:
            raise ValueError(f"Invalid recognition 'config': language_code is empty. Select one of {{{languages}}}.")
        candidates = [engines[name]] if name in engines else list(engines.values())
        for engine in candidates:
            if _same_language(engine.language_code, language_code):
                return engine
        raise ValueError(
            f"Invalid recognition 'config': language_code '{language_code}' is not supported by "
            f"{f'model {name!r}' if name in engines else 'any model'}. Select one of {{{languages}}}."
        )


def _same_language(ours: str, asked: str) -> bool:
    """BCP-47 tags compare without case; "en" asks for any English."""
    ours, asked = ours.lower(), asked.lower()
    return asked in (ours, ours.split("-")[0])
