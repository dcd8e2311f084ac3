"""Settings of one call that the public contracts have no fields for: names and values as text.

They come as metadata (`earsight-alpha: 0.6`), in the field `settings` of our own contract, or as Riva's
`custom_configuration`; the names are the same everywhere, with `-` or `_`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from asr_server.decoding import DecodingOptions
from asr_server.endpoint import EndpointOptions

METADATA_PREFIX = "earsight-"
MAX_BEAM_WIDTH = 1024  # a stream's memory and time grow with it
LANGUAGE_MODEL = "language_model"


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _milliseconds(text: str) -> float:
    return float(text) / 1000


DECODING: dict[str, Callable[[str], object]] = {
    "alpha": float,
    "beta": float,
    "beam_width": int,
    "token_min_log_prob": float,
    "beam_prune_log_prob": float,
    "unknown_word_offset": float,
    "lexicon": _boolean,
    "lookahead": _boolean,
}
# name -> (field of EndpointOptions, how its text is read); Riva's names, milliseconds and shares
ENDPOINT: dict[str, tuple[str, Callable[[str], float]]] = {
    "start_history": ("start_history", _milliseconds),
    "start_threshold": ("start_threshold", float),
    "stop_history": ("silence", _milliseconds),
    "stop_threshold": ("stop_threshold", float),
    "stop_history_eou": ("first_pass", _milliseconds),
    "stop_threshold_eou": ("first_pass_threshold", float),
}
NAMES = (*DECODING, *ENDPOINT, LANGUAGE_MODEL)


@dataclass(frozen=True)
class Settings:
    """What a call changed."""

    decoding: DecodingOptions
    endpoint: EndpointOptions
    language_model: str | None  # a name of the server's; None: the bundle's


def from_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The settings among the metadata of a call."""
    prefix = len(METADATA_PREFIX)
    return {key[prefix:]: value for key, value in metadata.items() if key.startswith(METADATA_PREFIX)}


def read(values: Mapping[str, str], decoding: DecodingOptions, endpoint: EndpointOptions) -> Settings:
    """The bundle's options with a call's settings in them. ValueError names the setting, its value and the rule."""
    named = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(named) - set(NAMES)):
        raise ValueError(f"Invalid settings: {unknown[0]!r} is not known. Select from {{{', '.join(NAMES)}}}.")
    changed = {name: _value(name, named[name], read) for name, read in DECODING.items() if name in named}
    pauses = {field: _value(name, named[name], read) for name, (field, read) in ENDPOINT.items() if name in named}
    try:
        options = replace(decoding, **changed)  # type: ignore[arg-type]
        if options.beam_width > MAX_BEAM_WIDTH:
            raise ValueError(f"beam_width is {options.beam_width}: at most {MAX_BEAM_WIDTH}")
        return Settings(options, with_pauses(endpoint, pauses), named.get(LANGUAGE_MODEL))
    except ValueError as error:
        raise ValueError(f"Invalid settings: {error}") from None


def with_pauses(endpoint: EndpointOptions, changed: Mapping[str, object]) -> EndpointOptions:
    """A shorter or longer pause moves what must be shorter or longer than it, unless that is set as well."""
    silence = changed.get("silence", endpoint.silence)
    assert isinstance(silence, float)
    fitted = {
        "silence": silence,
        "lead_in": min(endpoint.lead_in, silence / 2),
        "patience": max(endpoint.patience, silence),
    }
    return replace(endpoint, **{**fitted, **changed})  # type: ignore[arg-type]


def _value(name: str, text: str, read: Callable[[str], object]) -> object:
    try:
        return read(text)
    except ValueError:
        kind = {int: "a whole number", _boolean: "true or false"}.get(read, "a number")
        raise ValueError(f"Invalid settings: {name} is {text!r}; it must be {kind}.") from None
