"""The store of operations, with a clock in hand: turns, progress, results, bounds, expiry; where recordings wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from asr_server.operations import (
    CANCELLED,
    MAX_PAGE,
    RESOURCE_EXHAUSTED,
    ExhaustedError,
    Failure,
    OperationLimits,
    OperationStore,
    UnknownOperationError,
)
from asr_server.recordings import AudioFolder, Spool


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Callable[..., OperationStore]:
    def store(**limits: float) -> OperationStore:
        return OperationStore(OperationLimits(**limits), clock, clock)  # type: ignore[arg-type]

    return store


Make = Callable[..., OperationStore]


def finished(store: OperationStore, owner: str = "ann", response: bytes = b"") -> str:
    """The name of an operation that has come and gone."""
    name = store.begin(owner).name
    assert (running := store.next()) and running.name == name
    store.succeed(name, response)
    return name


def refusal(attempt: Callable[[], object], error: type[Exception] = UnknownOperationError) -> str:
    with pytest.raises(error) as caught:
        attempt()
    return str(caught.value)


# --- one operation from its beginning to its end ---


def test_a_whole_life(make: Make, clock: Clock) -> None:
    store = make(ttl_seconds=60)
    begun = store.begin("ann", "file:///a.wav")
    assert (begun.uri, begun.started, begun.updated, begun.percent) == ("file:///a.wav", 1000, 1000, 0)
    assert not begun.running and not begun.done
    clock.now = 1001
    assert store.next() == store.get("ann", begun.name)
    assert store.get("ann", begun.name).running
    store.progress(begun.name, 40)
    store.add(begun.name, 2.0, b"second,")
    store.add(begun.name, 1.0, b"first,")  # channels of one recording come in any order
    clock.now = 1005
    store.succeed(begun.name, b"rest")
    done = store.get("ann", begun.name)
    assert (done.done, done.running, done.percent, done.failure) == (True, False, 100, None)
    assert (done.response, done.started, done.updated) == (b"first,second,rest", 1000, 1005)
    clock.now = 1064.9
    assert store.get("ann", begun.name) == done
    clock.now = 1065
    assert f"'{begun.name}' is not known" in refusal(lambda: store.get("ann", begun.name))
    assert store.result_bytes == 0


def test_names_cannot_be_guessed(make: Make) -> None:
    store = make()
    names = {store.begin("ann").name for _ in range(10)}
    assert len(names) == 10
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_progress_never_goes_back(make: Make) -> None:
    store = make()
    name = store.begin("ann").name
    for percent, shown in ((10, 10), (5, 10), (100, 99)):  # all is recognised, but not yet written down
        store.progress(name, percent)
        assert store.get("ann", name).percent == shown


def test_the_system_time_may_jump(make: Make, clock: Clock) -> None:
    store = make()
    name = store.begin("ann").name
    clock.now = 400
    store.progress(name, 10)
    assert store.get("ann", name).updated == 1000


def test_failure_drops_what_was_heard(make: Make) -> None:
    store = make()
    name = store.begin("ann").name
    store.progress(name, 30)
    store.add(name, 1.0, b"part")
    assert store.result_bytes == 4
    store.fail(name, CANCELLED, "The operation was cancelled.")
    failed = store.get("ann", name)
    assert (failed.done, failed.percent, failed.response) == (True, 30, b"")
    assert failed.failure == Failure(1, "The operation was cancelled.")
    assert store.result_bytes == 0


def test_what_comes_after_the_end_has_no_effect(make: Make) -> None:
    """A task that is cancelled does not stop in the middle of a line."""
    store = make()
    name = finished(store, response=b"all")
    before = store.get("ann", name)
    store.progress(name, 5)
    store.add(name, 9.0, b"late")
    store.fail(name, CANCELLED, "late")
    store.succeed(name, b"late")
    assert store.get("ann", name) == before
    store.delete("ann", name)
    store.add(name, 9.0, b"late")
    store.succeed(name, b"late")
    assert store.result_bytes == 0


# --- turns ---


def test_more_than_may_wait_are_refused(make: Make) -> None:
    store = make(running=1, waiting=2)
    names = [store.begin("ann").name for _ in range(3)]
    assert refusal(lambda: store.begin("bob"), ExhaustedError).startswith("3 operations have not ended, and 1 may run")
    refusal(lambda: store.check_room("bob"), ExhaustedError)
    store.fail(names[1], CANCELLED, "")
    store.begin("bob")


def test_one_client_leaves_room_for_others(make: Make) -> None:
    store = make(running=2, waiting=2, client=2, kept=3, result_bytes=100)
    for _ in range(2):
        name = store.begin("mallory").name
    text = refusal(lambda: store.begin("mallory"), ExhaustedError)
    assert text == "2 of your operations have not ended; a client may have 2. Try later."
    store.fail(name, CANCELLED, "")
    store.begin("ann")
    nobody = make(client=1)
    for _ in range(2):
        nobody.begin("anonymous")  # who may be many


def test_who_takes_most_gives_room(make: Make) -> None:
    store = make(kept=3, result_bytes=100)
    anns = finished(store)
    theirs = [finished(store, owner="mallory") for _ in range(3)]
    assert store.get("ann", anns).done
    refusal(lambda: store.get("mallory", theirs[0]))
    assert store.get("mallory", theirs[1]).done
    hers, his = store.begin("ann").name, store.begin("mallory").name
    assert store.add(his, 1.0, bytes(99)) is None
    assert store.add(hers, 1.0, bytes(2)) == his, "not the one that came last"
    assert store.get("mallory", his).failure is not None and store.result_bytes == 2


def test_running_results_push_out_nobody_elses(make: Make) -> None:
    store = make(result_bytes=100)
    kept, his = finished(store, response=bytes(40)), store.begin("mallory").name
    assert store.add(his, 1.0, bytes(60)) is None
    assert store.add(his, 2.0, bytes(1)) == his
    assert store.get("ann", kept).response == bytes(40) and store.result_bytes == 40


def test_turns_are_fair(make: Make) -> None:
    """The oldest first, but nobody waits behind all the recordings of another client."""
    store = make(running=2)
    owners = {store.begin(owner).name: owner for owner in ("ann", "ann", "ann", "bob", "bob")}
    first = [store.next(), store.next()]
    assert store.next() is None
    turns = []
    for operation in first:
        assert operation
        turns.append(operation.name)
    while turns and len(turns) < 5:
        store.succeed(turns[len(turns) - 2])
        operation = store.next()
        assert operation
        turns.append(operation.name)
    assert [owners[name] for name in turns] == ["ann", "bob", "ann", "bob", "ann"]
    of_ann = [name for name in turns if owners[name] == "ann"]
    assert of_ann == [name for name, owner in owners.items() if owner == "ann"]


# --- whose ---


def test_others_do_not_see_it(make: Make) -> None:
    store = make()
    name = finished(store, "ann")
    absent = refusal(lambda: store.get("ann", "0" * 32))
    for attempt in (store.get, store.delete):
        assert refusal(lambda attempt=attempt: attempt("bob", name)) == absent.replace("0" * 32, name)  # type: ignore[misc]
    assert store.page("bob") == ([], "")
    store.delete("ann", name)
    refusal(lambda: store.get("ann", name))


def test_pages(make: Make) -> None:
    store = make()
    names = [finished(store, owner) for owner in ("ann", "bob", "ann", "ann", "ann", "ann")]
    of_ann = [name for number, name in reversed(list(enumerate(names))) if number != 1]
    first, token = store.page("ann", 2)
    assert [operation.name for operation in first] == of_ann[:2]
    finished(store, "ann")  # belongs before the first page, and must not move the second
    store.delete("ann", of_ann[1])  # the one that the token points at
    second, token = store.page("ann", 2, token)
    assert [operation.name for operation in second] == of_ann[2:4]
    third, token = store.page("ann", 2, token)
    assert ([operation.name for operation in third], token) == (of_ann[4:], "")
    assert len(store.page("ann", MAX_PAGE + 1)[0]) == len(store.page("ann")[0]) == 5
    assert "page_size is -1" in refusal(lambda: store.page("ann", -1), ValueError)
    for wrong in ("x", "-1", "½", "1.5"):
        assert f"page_token is '{wrong}'" in refusal(lambda wrong=wrong: store.page("ann", 0, wrong), ValueError)  # type: ignore[misc]


# --- bounds ---


def test_the_oldest_end_makes_room(make: Make) -> None:
    store = make(kept=2)
    slow, quick = store.begin("ann").name, store.begin("ann").name
    store.succeed(quick)
    store.succeed(slow)  # began first, ended last
    last = finished(store)
    refusal(lambda: store.get("ann", quick))
    assert {operation.name for operation in store.page("ann")[0]} == {slow, last}


def test_results_have_a_bound(make: Make) -> None:
    store = make(result_bytes=100)
    first, second = finished(store, response=bytes(40)), finished(store, response=bytes(40))
    name = store.begin("ann").name
    store.add(name, 1.0, bytes(20))
    assert store.result_bytes == 100
    store.add(name, 2.0, bytes(1))
    refusal(lambda: store.get("ann", first))
    assert store.get("ann", second).response == bytes(40)
    assert store.result_bytes == 61
    assert store.add(name, 3.0, bytes(80)) == name
    failure = store.get("ann", name).failure
    assert failure is not None and failure.code == RESOURCE_EXHAUSTED
    assert failure.text.startswith("The results of running operations have more than 100 bytes")
    refusal(lambda: store.get("ann", second))
    assert store.result_bytes == 0


def test_wrong_limits() -> None:
    for wrong in ({"running": 0}, {"waiting": -1}, {"ttl_seconds": 0.0}):
        assert "must be above 0" in refusal(lambda wrong=wrong: OperationLimits(**wrong), ValueError)  # type: ignore[misc]


# --- recordings ---


def test_spool(tmp_path: Path) -> None:
    spool = Spool(10, tmp_path)
    recording = spool.keep(b"abcdefg")
    assert recording.size == spool.used == 7
    assert list(tmp_path.iterdir()) == []  # without a name: nothing is left behind, whatever happens
    assert refusal(lambda: spool.keep(b"hijk"), ExhaustedError).startswith("The recordings that wait have 7 bytes")
    assert [recording.read(4), recording.read(4), recording.read(4)] == [b"abcd", b"efg", b""]
    recording.close()
    recording.close()
    assert spool.used == 0


def test_spool_without_a_disk(tmp_path: Path) -> None:
    spool = Spool(10, tmp_path / "gone")
    assert refusal(lambda: spool.keep(b"x"), ExhaustedError) == (
        "The recording cannot be kept: No such file or directory."
    )
    assert spool.used == 0


def test_spool_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Path("/dev/full").open("r+b", buffering=0))  # noqa: A006, SIM115
    spool = Spool(10, tmp_path)
    assert refusal(lambda: spool.keep(b"x"), ExhaustedError).endswith("No space left on device.")
    assert spool.used == 0


def test_a_small_recording_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the file's buffer, so that the disk is found full when that is flushed, and again at the end."""
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Path("/dev/full").open("r+b"))  # noqa: A006, SIM115
    spool = Spool(10, tmp_path)
    assert refusal(lambda: spool.keep(b"x"), ExhaustedError).endswith("No space left on device.")
    assert spool.used == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """audio/{a b.wav, talks/b.wav, inside -> talks/b.wav, outside -> ../secret.wav, up -> ..}"""
    inside = tmp_path / "audio"
    (inside / "talks").mkdir(parents=True)
    (inside / "a b.wav").write_bytes(b"first")
    (inside / "talks" / "b.wav").write_bytes(b"second")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (inside / "inside").symlink_to(Path("talks") / "b.wav")
    (inside / "outside").symlink_to(tmp_path / "secret.wav")
    (inside / "up").symlink_to("..")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("file:///a%20b.wav", b"first"),
        ("file:///talks/b.wav", b"second"),
        ("FILE://localhost/talks//./b.wav", b"second"),
        ("file:///inside", b"second"),
        ("file:///up/audio/talks/b.wav", b"second"),
    ],
)
def test_files_of_the_folder(folder: Path, uri: str, content: bytes) -> None:
    recording = AudioFolder(folder).open(uri)
    assert recording.size == len(content)
    assert recording.read(100) == content
    recording.close()


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("gs://bucket/a.wav", "this server fetches nothing"),
        ("https://example.org/a.wav", "this server fetches nothing"),
        ("a b.wav", "this server fetches nothing"),
        ("file://example.org/a.wav", "without a host"),
        ("file://", "without a host"),
        ("file:///", "must name a file"),
        ("file:///../secret.wav", "without '..'"),
        ("file:///talks/%2e%2E/../secret.wav", "without '..'"),
        ("file:///talks/..%2f..%2fsecret.wav", "without '..'"),
        ("file:///a%00.wav", "must name a file"),
        ("file:///%ff.wav", "must be UTF-8"),
        ("file:///" + "a" * 3000, "has 3008 characters"),
        ("file:///" + "a" * 1000, "no such file"),
        ("file:///none.wav", "no such file"),
        ("file:///outside", "no such file"),
        ("file:///up/secret.wav", "no such file"),
        ("file:///loop", "no such file"),
        ("file:///a%20b.wav/x", "no such file"),
        ("file:///etc/passwd", "no such file"),
        ("file:////etc/passwd", "no such file"),
        ("file:///talks", "not a regular file"),
        ("file:///pipe", "not a regular file"),
    ],
)
def test_nothing_else(folder: Path, uri: str, text: str) -> None:
    told = refusal(lambda: AudioFolder(folder).open(uri), ValueError)
    assert told.startswith(f"uri '{uri[:100]}")
    assert text in told
    assert len(told) < 400


def test_a_link_that_appears_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a name and its opening."""
    target = folder / "talks"
    resolve = Path.resolve

    def swapped(self: Path, strict: bool = False) -> Path:
        found = resolve(self, strict)
        if self.name == "b.wav":
            target.rename(folder.parent / "talks")
            target.symlink_to(folder.parent / "talks")
        return found

    monkeypatch.setattr(Path, "resolve", swapped)
    assert "no such file" in refusal(lambda: AudioFolder(folder).open("file:///talks/b.wav"), ValueError)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(lambda: AudioFolder(tmp_path / "none"), ValueError)
