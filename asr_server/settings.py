"""Settings of one call that the public contracts have no fields for: names and values as text.

They come as metadata (`earsight-alpha: 0.6`), in the field `settings` of our own contract, or as Riva's
`custom_configuration`; the names are the same everywhere, with `-` or `_`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from asr_server.decoding import DecodingOptions
from asr_server.endpoint import EndpointOptions

T = TypeVar("T")

METADATA_PREFIX = "earsight-"
MAX_BEAM_WIDTH = 1024  # a stream's memory and time grow with it
LONGEST_HISTORY = 60.0  # seconds; an utterance is no longer (EndpointOptions.longest)
LANGUAGE_MODEL = "language_model"
_SHOWN = 40  # characters of a wrong name or value that its error repeats


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _milliseconds(text: str) -> float:
    return float(text) / 1000


DECODING: dict[str, Callable[[str], object]] = {
    "alpha": float,
    "beta": float,
    "gamma": float,
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
    lexicon_is_chosen: bool = False  # by the call, which then wants it whatever the language model


def from_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The settings among the metadata of a call."""
    prefix = len(METADATA_PREFIX)
    return {key[prefix:]: value for key, value in metadata.items() if key.startswith(METADATA_PREFIX)}


def read(values: Mapping[str, str], decoding: DecodingOptions, endpoint: EndpointOptions) -> Settings:
    """The bundle's options with a call's settings in them. ValueError names the setting, its value and the rule."""
    named = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(named) - set(NAMES)):
        shown = unknown[0][:_SHOWN]
        raise ValueError(f"Invalid settings: {shown!r} is not known. Select from {{{', '.join(NAMES)}}}.")
    changed = {name: _value(name, named[name], read) for name, read in DECODING.items() if name in named}
    pauses = {name: _value(name, named[name], read) for name, (_, read) in ENDPOINT.items() if name in named}
    try:
        options = replace(decoding, **changed)  # type: ignore[arg-type]
        if options.beam_width > MAX_BEAM_WIDTH:
            raise ValueError(f"beam_width is {options.beam_width}: at most {MAX_BEAM_WIDTH}")
        _check_ranges(pauses)
        fields = {ENDPOINT[name][0]: value for name, value in pauses.items()}
        return Settings(options, with_pauses(endpoint, fields), named.get(LANGUAGE_MODEL), "lexicon" in named)
    except ValueError as error:
        raise ValueError(f"Invalid settings: {error}") from None


def _check_ranges(pauses: Mapping[str, float]) -> None:
    """By the caller's names and units; EndpointOptions would speak of its own."""
    for name, value in pauses.items():
        if ENDPOINT[name][1] is _milliseconds:
            lowest = 0.0 if name == "start_history" else 0.001
            if not lowest <= value <= LONGEST_HISTORY:  # also refuses NaN
                rule = f"it must be {lowest * 1000:g} to {LONGEST_HISTORY * 1000:g} milliseconds"
                raise ValueError(f"{name} is {value * 1000:g}; {rule}")
        elif not 0 < value <= 1:
            raise ValueError(f"{name} is {value:g}; it must be above 0 and at most 1")


def with_pauses(endpoint: EndpointOptions, changed: Mapping[str, float]) -> EndpointOptions:
    """A shorter or longer pause moves what must be shorter or longer than it, unless that is set as well."""
    silence = changed.get("silence", endpoint.silence)
    first_pass = changed.get("first_pass")
    if first_pass is not None and first_pass > silence:
        raise ValueError(
            f"stop_history_eou is {first_pass * 1000:g}; it must be at most stop_history, which is {silence * 1000:g}"
        )
    fitted = {
        "silence": silence,
        "lead_in": min(endpoint.lead_in, silence / 2),
        "patience": max(endpoint.patience, silence),
    }
    return replace(endpoint, **{**fitted, **changed})


def _value(name: str, text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ValueError:
        kinds: dict[object, str] = {int: "a whole number", _boolean: "true or false"}
        kind, shown = kinds.get(read, "a number"), text[:_SHOWN]
        raise ValueError(f"Invalid settings: {name} is {shown!r}; it must be {kind}.") from None
