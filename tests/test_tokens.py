"""Token files: their content, matching, reading again, and their command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asr_server import token_file, tokens, tokens_cli
from asr_server.quotas import Quotas
from asr_server.token_file import TokenFile
from asr_server.tokens import ClientEntry, HashedToken, TokenTable

NOW = datetime(2027, 1, 1, tzinfo=UTC)


def entry(name: str, *secrets: str, **more: Any) -> ClientEntry:
    return ClientEntry(name, tuple(HashedToken(tokens.hash_token(secret)) for secret in secrets), **more)


def test_tokens_are_random_marked_and_hashed() -> None:
    first, second = tokens.make_token(), tokens.make_token()
    assert first != second
    assert first.startswith("ear_") and len(first) == len("ear_") + 43  # 256 bits in base64
    assert tokens.hash_token("abc") == hashlib.sha256(b"abc").hexdigest()


def test_match() -> None:
    soon, past = NOW + timedelta(seconds=1), NOW
    table = TokenTable(
        [
            entry("a", "one", "two"),
            ClientEntry(
                "b", (HashedToken(tokens.hash_token("three"), soon), HashedToken(tokens.hash_token("4"), past))
            ),
        ]
    )
    found = {secret: table.match(secret, NOW) for secret in ("one", "two", "three", "4", "five", "")}
    assert {key: value and value.name for key, value in found.items()} == {
        "one": "a",
        "two": "a",
        "three": "b",
        "4": None,
        "five": None,
        "": None,
    }
    assert table.match("three", soon) is None


def test_a_fingerprint_is_not_enough() -> None:
    digest = tokens.hash_token("one")
    other = digest[:8] + "0" * 56
    table = TokenTable([ClientEntry("other", (HashedToken(other),)), ClientEntry("a", (HashedToken(digest),))])
    match = table.match("one", NOW)
    assert match and match.name == "a"
    assert TokenTable([ClientEntry("other", (HashedToken(other),))]).match("one", NOW) is None


def test_dump_and_parse_are_inverse() -> None:
    table = TokenTable(
        [
            entry("a", "one", "two", quotas=Quotas(2, 60.0, 3600), services=("x.Y",)),
            ClientEntry("b", (HashedToken(tokens.hash_token("three"), NOW),), services=()),
            ClientEntry("c"),
        ]
    )
    assert tokens.parse(tokens.dump(table)).clients == table.clients


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "the file must be an object"),
        ('{"version": 2, "clients": []}', "version is 2: this server reads 1"),
        ('{"version": 1}', "clients must be a list"),
        ('{"version": 1, "clients": [], "x": 1}', r"unknown fields \['x'\]; known are"),
        ('{"version": 1, "clients": [{}]}', r"client 1 \(None\): name must be text"),
        ('{"version": 1, "clients": [{"name": "a b"}]}', "client name 'a b' must be"),
        (
            '{"version": 1, "clients": [{"name": "a", "quotas": {"stream": 1}}]}',
            r"quotas has unknown fields \['stream'\]",
        ),
        ('{"version": 1, "clients": [{"name": "a", "quotas": {"streams": "1"}}]}', "quota streams is '1'"),
        ('{"version": 1, "clients": [{"name": "a", "tokens": [{"sha256": "AB"}]}]}', "64 hexadecimal digits"),
        ('{"version": 1, "clients": [{"name": "a", "services": "x"}]}', "services must be a list"),
        ('{"version": 1, "clients": [{"name": "a"}, {"name": "a"}]}', r"clients \['a'\] stand in the file twice"),
    ],
)
def test_what_is_wrong_is_named(text: str | bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tokens.parse(text)


def test_a_token_names_one_client() -> None:
    with pytest.raises(ValueError, match="stands in the file twice"):
        TokenTable([entry("a", "one"), entry("b", "one")])


@pytest.mark.parametrize("text", ["2027-01-01T00:00:00", "tomorrow", "0001-01-01T00:00:00+14:00"])
def test_times_need_a_zone(text: str) -> None:
    with pytest.raises(ValueError, match=f"time '{text[:10]}.*with a zone"):
        tokens.read_time(text)
    assert tokens.read_time("2027-01-01T02:00:00+02:00") == tokens.read_time("2027-01-01T00:00:00Z") == NOW


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def name_of(file: TokenFile, secret: str) -> str | None:
    client = file.client(secret)
    return client.name if client else None


def test_the_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "tokens.json"
    token_file.save(path, TokenTable([entry("a", "one")]))
    file = TokenFile(path, clock)
    clock.now += 0.9
    assert not file.due()
    clock.now += 0.2
    assert file.due() and not file.due()


def test_rotation_keeps_accounts(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token_file.save(path, TokenTable([entry("a", "old", quotas=Quotas(streams=1))]))
    file = TokenFile(path)
    first = file.client("old")
    assert first and name_of(file, "new") is None
    token_file.save(path, TokenTable([entry("a", "old", "new", quotas=Quotas(streams=2))]))
    file.refresh()
    assert name_of(file, "old") == name_of(file, "new") == "a"
    token_file.save(path, TokenTable([entry("a", "new", quotas=Quotas(streams=2))]))
    file.refresh()
    second = file.client("new")
    assert name_of(file, "old") is None
    assert second and second.quota is first.quota and second.quota.quotas.streams == 2


@pytest.mark.parametrize("broken", ["not json", None])
def test_a_broken_file_is_refused_once_and_the_old_state_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    path = tmp_path / "tokens.json"
    token_file.save(path, TokenTable([entry("a", "one")]))
    file = TokenFile(path)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    with caplog.at_level(logging.ERROR):
        file.refresh()
        file.refresh()
    assert [str(path) in record.message for record in caplog.records] == [True]
    assert "stay in force" in caplog.text
    assert name_of(file, "one") == "a"
    token_file.save(path, TokenTable([entry("b", "one")]))
    file.refresh()
    assert name_of(file, "one") == "b"


def test_expiry_follows_the_system_time(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token_file.save(path, TokenTable([ClientEntry("a", (HashedToken(tokens.hash_token("one"), NOW),))]))
    times = iter([NOW - timedelta(seconds=1), NOW])
    file = TokenFile(path, now=lambda: next(times))
    assert name_of(file, "one") == "a"
    assert name_of(file, "one") is None


def test_files_that_cannot_be_used_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    with pytest.raises(ValueError, match=r"token file .*tokens\.json: No such file"):
        TokenFile(path)
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(ValueError, match=r"tokens\.json: its version is None"):
        TokenFile(path)
    token_file.save(path, TokenTable([]))
    path.chmod(0o602)
    with pytest.raises(ValueError, match="everybody on this machine may write"):
        TokenFile(path)


def test_a_file_for_all_eyes_gets_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.json"
    token_file.save(path, TokenTable([entry("a", "one")]))
    TokenFile(path)
    assert caplog.text == ""
    path.chmod(0o604)
    assert name_of(TokenFile(path), "one") == "a"
    assert "can be read by everybody" in caplog.text


def test_saving_keeps_mode_and_link_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path, link = tmp_path / "tokens.json", tmp_path / "link.json"
    link.symlink_to(path)
    token_file.save(path, TokenTable([]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    before = path.stat().st_ino
    token_file.save(link, TokenTable([entry("a", "one")]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.stat().st_ino != before
    assert link.is_symlink() and len(token_file.load(path).clients) == 1
    with pytest.raises(OSError):  # noqa: PT011  # which of several depends on the system
        token_file.save(tmp_path / "missing" / "tokens.json", TokenTable([]))
    assert sorted(os.listdir(tmp_path)) == ["link.json", "tokens.json"]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    tokens_cli.add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(["tokens", *arguments])
    return int(args.run(args))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "tokens.json")
    assert run("add", "--file", path, "--client", "a", "--streams", "2", "--service", "x.Y", "--days", "1") == 0
    first = capsys.readouterr().out.strip()
    assert run("add", "--file", path, "--client", "a", "--audio-seconds-per-hour", "60") == 0
    second = capsys.readouterr().out.strip()
    assert first not in Path(path).read_text() and second not in Path(path).read_text()
    (client,) = token_file.load(Path(path)).clients
    assert [token.sha256 for token in client.tokens] == [tokens.hash_token(first), tokens.hash_token(second)]
    assert client.quotas == Quotas(streams=2, audio_seconds_per_hour=60) and client.services == ("x.Y",)
    assert client.tokens[0].expires and client.tokens[1].expires is None

    assert run("list", "--file", path) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["CLIENT", "TOKEN", "EXPIRES", "QUOTAS", "SERVICES"]
    assert [row.split()[1] for row in rows] == [token.fingerprint for token in client.tokens]
    assert "streams=2 audio_seconds_per_hour=60" in rows[0] and "never" in rows[1]

    assert run("revoke", "--file", path, "--client", "a", "--token", client.tokens[0].fingerprint) == 0
    (left,) = token_file.load(Path(path)).clients
    assert left.tokens == client.tokens[1:]
    with pytest.raises(
        ValueError, match=f"no token '{client.tokens[0].fingerprint}'; it has: {left.tokens[0].fingerprint}"
    ):
        run("revoke", "--file", path, "--client", "a", "--token", client.tokens[0].fingerprint)
    with pytest.raises(ValueError, match="no client 'b' in the token file; it has: a"):
        run("revoke", "--file", path, "--client", "b")
    assert run("revoke", "--file", path, "--client", "a") == 0
    assert json.loads(Path(path).read_text()) == {"version": 1, "clients": []}


def test_an_expired_token_says_so() -> None:
    table = TokenTable([ClientEntry("a", (HashedToken("0" * 64, NOW),)), ClientEntry("b")])
    _, first, second = tokens_cli.table_lines(table, NOW)
    assert "2027-01-01T00:00:00Z (expired)" in first
    assert second.split() == ["b", "-", "-", "-", "all"]


def _add_some(path: str, client: str) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        for _ in range(5):
            run("add", "--file", path, "--client", client)


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.json")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_some, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {client.name: len(client.tokens) for client in token_file.load(Path(path)).clients} == dict.fromkeys(
        "abc", 5
    )
