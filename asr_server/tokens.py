"""Bearer tokens: how they are made, hashed, kept in a file and matched.

A token file is JSON, one entry a client:

    {"version": 1,
     "clients": [{"name": "captions",
                  "tokens": [{"sha256": "9f86d081...", "expires": "2027-01-01T00:00:00+00:00"}],
                  "quotas": {"streams": 8, "requests_per_minute": 600, "audio_seconds_per_hour": 28800},
                  "services": ["google.cloud.speech.v1.Speech"]}]}

`expires`, `quotas` (and each quota) and `services` may be left out: never, without bound, all. A client may have
several tokens, so that an old one works until the new one is everywhere. Unknown fields are refused, because a
misspelt quota would be none.

Tokens are kept as plain SHA-256. Salts and slow hashes protect what people choose and might choose again; a token is
256 random bits, which no dictionary holds and nobody can search.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from asr_server.quotas import Quotas

VERSION = 1
PREFIX = "ear_"  # lets secret scanners, and people, see what the string is
FINGERPRINT_DIGITS = 8  # of the hash, to name a token with; no secret

_HASH = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class HashedToken:
    sha256: str  # lower-case hexadecimal
    expires: datetime | None = None  # aware

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}: it must be 64 hexadecimal digits in lower case")

    @property
    def fingerprint(self) -> str:
        return self.sha256[:FINGERPRINT_DIGITS]

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True)
class ClientEntry:
    """One client of a token file."""

    name: str
    tokens: tuple[HashedToken, ...] = ()
    quotas: Quotas = field(default_factory=Quotas)
    services: tuple[str, ...] | None = None  # full names; None: all

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"client name {self.name!r} must be 1 to 64 letters, digits and . _ @ -, a letter or digit first"
            )


class TokenTable:
    """The clients of one token file. ValueError where two share a name or a token."""

    def __init__(self, clients: Iterable[ClientEntry]) -> None:
        self.clients = tuple(clients)
        names = Counter(client.name for client in self.clients)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"clients {twice} stand in the file twice: give each one entry with all its tokens")
        # What the index tells is public; the rest of the hash is compared in constant time.
        self._by_fingerprint: dict[str, list[tuple[HashedToken, ClientEntry]]] = {}
        seen: set[str] = set()
        for client in self.clients:
            for token in client.tokens:
                if token.sha256 in seen:
                    raise ValueError(f"token {token.fingerprint} stands in the file twice: it must name one client")
                seen.add(token.sha256)
                self._by_fingerprint.setdefault(token.fingerprint, []).append((token, client))

    def match(self, token: str, now: datetime) -> ClientEntry | None:
        """The client that the token belongs to, None where it is unknown or expired."""
        digest = hash_token(token)
        for known, client in self._by_fingerprint.get(digest[:FINGERPRINT_DIGITS], ()):
            if hmac.compare_digest(known.sha256, digest):
                return None if known.expired(now) else client
        return None


def make_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def parse(text: str | bytes) -> TokenTable:
    """ValueError that names the entry and what is wrong with it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # a broken encoding is the former, deep nesting the latter
        raise ValueError(f"it is not JSON: {error}") from error
    file = _fields(content, "the file", {"version", "clients"})
    if file.get("version") != VERSION:
        raise ValueError(f"its version is {file.get('version')!r}: this server reads {VERSION}")
    return TokenTable(_entry(item, number) for number, item in enumerate(_list(file.get("clients"), "clients"), 1))


def dump(table: TokenTable) -> str:
    """What `parse` reads."""
    return json.dumps({"version": VERSION, "clients": [_plain(client) for client in table.clients]}, indent=2) + "\n"


def _entry(value: Any, number: int) -> ClientEntry:
    raw = _fields(value, f"client {number}", {"name", "tokens", "quotas", "services"})
    name = raw.get("name")
    try:
        services = raw.get("services")
        return ClientEntry(
            name=_text(name, "name"),
            tokens=tuple(_token(token) for token in _list(raw.get("tokens", []), "tokens")),
            quotas=Quotas(**_fields(raw.get("quotas", {}), "quotas", {item.name for item in fields(Quotas)})),
            services=None
            if services is None
            else tuple(_text(item, "services") for item in _list(services, "services")),
        )
    except ValueError as error:
        raise ValueError(f"client {number} ({name!r}): {error}") from error


def _token(item: Any) -> HashedToken:
    raw = _fields(item, "a token", {"sha256", "expires"})
    expires = raw.get("expires")
    return HashedToken(
        _text(raw.get("sha256"), "sha256"), None if expires is None else read_time(_text(expires, "expires"))
    )


def read_time(text: str) -> datetime:
    """An RFC 3339 time. ValueError also for one without a zone, which would mean something else on each machine."""
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError("no zone")
        return time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"time {text!r} must be as 2027-01-31T12:00:00Z, with a zone") from error


def _plain(client: ClientEntry) -> dict[str, Any]:
    tokens = [
        {"sha256": token.sha256} | ({"expires": token.expires.isoformat()} if token.expires else {})
        for token in client.tokens
    ]
    quotas = {key: value for key, value in vars(client.quotas).items() if value is not None}
    plain: dict[str, Any] = {"name": client.name, "tokens": tokens}
    if quotas:
        plain["quotas"] = quotas
    if client.services is not None:
        plain["services"] = list(client.services)
    return plain


def _fields(value: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {value!r:.60}")
    if unknown := set(value) - known:
        raise ValueError(f"{what} has unknown fields {sorted(unknown)}; known are {sorted(known)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {value!r:.60}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {value!r:.60}")
    return value
