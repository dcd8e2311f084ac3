"""`asr-server tokens add`, `list` and `revoke`: a token file's command line. A running server sees the change."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from asr_server import token_file, tokens
from asr_server.quotas import Quotas
from asr_server.tokens import ClientEntry, HashedToken, TokenTable

_EXAMPLES = """\
examples:
  asr-server tokens add --file tokens.json --client captions --streams 8      prints the token, this once
  asr-server tokens add --file tokens.json --client captions                  a second one, to change over to
  asr-server tokens list --file tokens.json
  asr-server tokens revoke --file tokens.json --client captions --token 9f86d081
  asr-server serve --tokens tokens.json
"""

Commands = Any  # argparse names the class of its subparsers with an underscore


def add_commands(subparsers: Commands) -> None:
    """`tokens` and what stands below it; each sets `run`, as all commands do."""
    top = subparsers.add_parser(
        "tokens",
        help="who may call: make, list and revoke bearer tokens",
        description="Edit the token file of a server. The file holds hashes: a token is shown once, when it is made.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_add(commands.add_parser("add", help="make a token for a new or a known client, and print it"))
    _add_file(commands.add_parser("list", help="clients, fingerprints of their tokens, quotas"), _list)
    revoke = commands.add_parser("revoke", help="take out one token, or a client with all of them")
    _add_file(revoke, _revoke)
    revoke.add_argument("--client", required=True, metavar="NAME")
    revoke.add_argument("--token", metavar="FINGERPRINT", help="as `list` shows it (default: the whole client)")


def add(table: TokenTable, client: ClientEntry) -> TokenTable:
    """With the client; a known one gets the tokens too, and the quotas and services that are given."""
    known = next((entry for entry in table.clients if entry.name == client.name), None)
    if known is None:
        return TokenTable((*table.clients, client))
    given = {key: value for key, value in vars(client.quotas).items() if value is not None}
    merged = replace(
        known,
        tokens=known.tokens + client.tokens,
        quotas=replace(known.quotas, **given),
        services=known.services if client.services is None else client.services,
    )
    return TokenTable(merged if entry is known else entry for entry in table.clients)


def revoke(table: TokenTable, name: str, fingerprint: str | None) -> TokenTable:
    """Without the client, or without one of its tokens. ValueError when there is no such one."""
    client = next((entry for entry in table.clients if entry.name == name), None)
    if client is None:
        known = ", ".join(entry.name for entry in table.clients) or "none"
        raise ValueError(f"no client '{name}' in the token file; it has: {known}")
    if fingerprint is None:
        return TokenTable(entry for entry in table.clients if entry is not client)
    kept = tuple(token for token in client.tokens if token.fingerprint != fingerprint)
    if len(kept) == len(client.tokens):
        known = ", ".join(token.fingerprint for token in client.tokens) or "none"
        raise ValueError(f"client '{name}' has no token '{fingerprint}'; it has: {known}")
    return TokenTable(replace(entry, tokens=kept) if entry is client else entry for entry in table.clients)


def table_lines(table: TokenTable, now: datetime) -> list[str]:
    """One line a token, one also for a client without any."""
    rows: list[Sequence[str]] = [("CLIENT", "TOKEN", "EXPIRES", "QUOTAS", "SERVICES")]
    for client in table.clients:
        quotas = " ".join(f"{key}={value:g}" for key, value in vars(client.quotas).items() if value is not None) or "-"
        services = "all" if client.services is None else ",".join(client.services) or "none"
        rows += [
            (client.name, token.fingerprint, _expiry(token, now), quotas, services) for token in client.tokens
        ] or [(client.name, "-", "-", quotas, services)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _expiry(token: HashedToken, now: datetime) -> str:
    if token.expires is None:
        return "never"
    return f"{token.expires:%Y-%m-%dT%H:%M:%SZ}" + (" (expired)" if token.expired(now) else "")


def _add_add(command: argparse.ArgumentParser) -> None:
    _add_file(command, _add)
    command.add_argument("--client", required=True, metavar="NAME")
    command.add_argument("--days", type=float, metavar="N", help="the token expires after N days (default: never)")
    command.add_argument("--streams", type=int, metavar="N", help="speech calls at once")
    command.add_argument("--requests-per-minute", type=float, metavar="N", help="calls begun, of any kind")
    command.add_argument("--audio-seconds-per-hour", type=float, metavar="N", help="audio sent")
    command.add_argument(
        "--service", action="append", metavar="FULL.NAME", help="may be called; may be given again (default: all)"
    )


def _add_file(command: argparse.ArgumentParser, run: Any) -> None:
    command.set_defaults(run=run)
    command.add_argument("--file", type=Path, required=True, metavar="PATH", help="the token file")


def _add(args: argparse.Namespace) -> int:
    if args.days is not None and not 0 < args.days <= 36500:
        raise ValueError(f"--days {args.days:g} must be more than 0 and at most 36500")
    token = tokens.make_token()
    expires = None if args.days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=args.days)
    hashed = HashedToken(tokens.hash_token(token), expires)
    client = ClientEntry(
        args.client,
        (hashed,),
        Quotas(args.streams, args.requests_per_minute, args.audio_seconds_per_hour),
        tuple(args.service) if args.service else None,
    )
    with token_file.locked(args.file):
        table = token_file.load(args.file) if args.file.exists() else TokenTable(())
        token_file.save(args.file, add(table, client))
    print(f"token {hashed.fingerprint} of client {args.client}; keep it now, it is not shown again:", file=sys.stderr)
    print(token, flush=True)
    return 0


def _list(args: argparse.Namespace) -> int:
    print("\n".join(table_lines(token_file.load(args.file), datetime.now(UTC))))
    return 0


def _revoke(args: argparse.Namespace) -> int:
    with token_file.locked(args.file):
        token_file.save(args.file, revoke(token_file.load(args.file), args.client, args.token))
    print(f"revoked: {args.token or 'all tokens'} of client {args.client}")
    return 0
