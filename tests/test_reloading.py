"""Models that come, change and go while streams run."""

import asyncio
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_server import bundle, reloading
from asr_server.catalogue import Catalogue, Snapshot
from asr_server.recognizer import Engine, Event, Result
from asr_server.reloading import Reloader, watch
from tests import toy_arpa
from tests.speech_fixtures import save_toy_bundle, speak


def run_once(engine: Engine) -> None:
    engine.transcribe(speak("a"))


class Server:
    """What a server has around a reloader."""

    def __init__(self, folder: Path) -> None:
        self.models, self.words = folder / "models", folder / "words"
        self.models.mkdir()
        self.words.mkdir()
        self.catalogue = Catalogue()
        self.attempts: list[tuple[str, bool]] = []
        self.changes: list[Snapshot] = []
        self.reloader = Reloader(
            self.catalogue,
            [self.models],
            [self.words],
            Engine,
            run_once,
            self.changes.append,
            lambda kind, ok: self.attempts.append((kind, ok)),
        )

    def settle(self) -> None:
        """A first look sees what changed, a second that it has stopped changing."""
        if not self.reloader.scan():
            assert self.reloader.scan()

    @property
    def versions(self) -> dict[str, str]:
        return {engine.name: engine.bundle.version for engine in self.catalogue}

    def put(self, name: str, version: str = "1", swap: bool = False, folder: str = "") -> Path:
        """A bundle, renamed into its place. `swap`: a and b have changed places in its alphabet."""
        made = save_toy_bundle(self.models.parent / "incoming", name)
        description = json.loads((made / "bundle.json").read_text())
        labels = description["alphabet"]
        if swap:
            a, b = labels.index("a"), labels.index("b")
            labels[a], labels[b] = labels[b], labels[a]
        (made / "bundle.json").write_text(json.dumps({**description, "version": version}))
        target = self.models / (folder or name)
        shutil.rmtree(target, ignore_errors=True)
        return made.rename(target)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path)
    server.put("tones")
    server.reloader.begin()
    return server


def finals(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Result) and event.is_final)


def heard(engine: Engine, text: str) -> str:
    return "".join(result.text for result in engine.transcribe(speak(text)))


def test_nothing_changes_where_nothing_changed(server: Server) -> None:
    before = server.catalogue.snapshot
    assert server.reloader.scan() and server.reloader.scan()
    assert server.catalogue.snapshot is before
    assert (len(server.changes), server.attempts) == (1, [])


def test_bundles_come_change_and_go(server: Server) -> None:
    server.put("more")
    server.settle()
    assert server.versions == {"more": "1", "tones": "1"}  # in the order of a restart
    server.put("tones", "2", swap=True)
    server.settle()
    assert server.versions == {"more": "1", "tones": "2"}
    assert heard(server.catalogue.choose("tones", "en"), "ab") == "ba"
    shutil.rmtree(server.models / "more")
    server.settle()
    assert server.versions == {"tones": "2"}
    assert server.attempts == [("speech", True)] * 3
    assert [list(change.engines) for change in server.changes] == [
        ["tones"],
        ["more", "tones"],
        ["more", "tones"],
        ["tones"],
    ]


def test_a_live_stream_ends_on_the_version_it_began_with(server: Server) -> None:
    old = weakref.ref(server.catalogue.choose("", "en"))
    stream = server.catalogue.choose("", "en").stream()
    samples = speak("abba")
    half = len(samples) // 2
    events = stream.feed(samples[:half])
    server.put("tones", "2", swap=True)
    server.settle()
    new = server.catalogue.choose("", "en")
    assert heard(new, "abba") == "baab"
    events += stream.feed(samples[half:])
    events += stream.finish()
    assert finals(events) == "abba"
    assert old() is not None
    del stream, events
    server.changes.clear()
    gc.collect()
    assert old() is None
    assert heard(new, "abba") == "baab"


def test_what_is_being_copied_waits(server: Server) -> None:
    folder = server.put("slow")
    weights = (folder / "model.safetensors").read_bytes()
    for size in (10, len(weights) // 2, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:size])
        assert not server.reloader.scan()
    (folder / "model.safetensors").write_bytes(weights)
    assert not server.reloader.scan()
    assert server.attempts == []
    assert server.reloader.scan()
    assert server.versions == {"slow": "1", "tones": "1"}


def test_a_file_that_changes_while_it_is_read_is_read_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    load, folder = bundle.load, server.put("tones", "2")
    waiting: list[Callable[[], object]] = [lambda: (folder / "README.md").write_text("changed")]

    def meanwhile(path: Path) -> object:
        loaded = load(path)
        if waiting:
            waiting.pop()()
        return loaded

    monkeypatch.setattr(bundle, "load", meanwhile)
    assert [server.reloader.scan() for _ in range(2)] == [False, False]
    assert server.versions == {"tones": "1"}
    server.settle()
    assert server.versions == {"tones": "2"}
    assert server.catalogue.choose("tones", "en").bundle.card == "changed"


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")


def break_description(folder: Path) -> None:
    (folder / "bundle.json").write_text("{")


@pytest.mark.parametrize("damage", [break_weights, break_description])
def test_a_broken_bundle_is_refused_once_and_the_old_one_stays(
    server: Server, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    old = server.catalogue.choose("", "en")
    damage(server.put("tones", "2"))
    server.settle()
    server.settle()
    assert server.catalogue.choose("", "en") is old
    assert server.attempts == [("speech", False)]
    (record,) = caplog.records
    assert "tones is refused; the one loaded before stays" in record.getMessage()
    server.put("tones", "3")
    server.settle()
    assert server.versions == {"tones": "3"}


def test_what_fails_in_its_first_run_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path)

    def fail(engine: Engine) -> None:
        raise RuntimeError("too slow")

    server.reloader.begin()
    server.reloader._warm_up = fail
    server.put("tones")
    server.settle()
    assert (server.versions, server.attempts) == ({}, [("speech", False)])


def test_a_second_bundle_of_a_name_waits_until_the_name_is_free(server: Server) -> None:
    server.put("tones", "2", folder="other")
    server.settle()
    server.settle()
    assert (server.versions, server.attempts) == ({"tones": "1"}, [("speech", False)])
    shutil.rmtree(server.models / "tones")
    server.settle()
    assert server.versions == {"tones": "2"}


def test_a_renamed_bundle_moves_over_without_a_gap(server: Server) -> None:
    (server.models / "tones").rename(server.models / "moved")
    server.settle()
    assert server.versions == {"tones": "1"}
    assert server.catalogue.choose("tones", "en").bundle.folder == server.models / "moved"
    assert all(change.engines for change in server.changes)


def test_the_last_bundle_can_go(server: Server) -> None:
    shutil.rmtree(server.models / "tones")
    server.settle()
    assert server.versions == {}
    assert not server.changes[-1].engines
    with pytest.raises(ValueError, match="no speech model"):
        server.catalogue.choose("", "en")


def test_a_directory_that_vanishes_removes_nothing(server: Server) -> None:
    server.models.rename(server.models.with_name("away"))
    server.settle()
    server.settle()
    assert server.versions == {"tones": "1"}
    server.models.with_name("away").rename(server.models)
    server.put("tones", "2")
    server.settle()
    assert server.versions == {"tones": "2"}


def test_hidden_folders_and_bundles_of_other_kinds_are_passed_over(server: Server) -> None:
    server.put("more", folder=".more")
    (server.models / "pictures").mkdir()
    (server.models / "pictures" / "bundle.json").write_text('{"kind": "vision"}')
    server.settle()
    assert (server.versions, server.attempts) == ({"tones": "1"}, [])


def test_the_start_refuses_what_is_broken(tmp_path: Path) -> None:
    server = Server(tmp_path)
    break_weights(server.put("tones"))
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        server.reloader.begin()
    server.put("tones")
    server.put("tones", folder="other")
    with pytest.raises(ValueError, match=r"two speech models are called 'tones'"):
        Reloader(Catalogue(), [server.models], [], Engine, lambda engine: None).begin()
    with pytest.raises(ValueError, match="nowhere' cannot be listed"):
        Reloader(Catalogue(), [tmp_path / "nowhere"], [], Engine, lambda engine: None).begin()


def test_language_models_come_change_and_go(server: Server) -> None:
    engine = server.catalogue.choose("", "en")
    with pytest.raises(ValueError, match="'toy' is not known"):
        server.catalogue.language_model("toy", engine)
    path = toy_arpa.write(server.words)
    toy_arpa.write_characters(server.words)
    server.settle()
    first = server.catalogue.language_model("toy", engine)
    assert first is not None and first.unit == "word" and "ab" in first
    spelled = server.catalogue.language_model("characters", engine)
    assert spelled is not None and spelled.unit == "character"
    path.write_text(path.read_text().replace("\tab", "\tba"))
    path.with_suffix(".words").write_text("a b ba")
    server.settle()
    second = server.catalogue.language_model("toy", engine)
    assert second is not None and "ba" in second and second.lexicon is not None and "ba" in second.lexicon
    assert "ab" in first  # a stream that began with it goes on with it
    path.write_text("no model")
    server.settle()
    assert server.catalogue.language_model("toy", engine) is second
    path.unlink()
    server.settle()
    with pytest.raises(ValueError, match="'toy' is not known"):
        server.catalogue.language_model("toy", engine)
    assert server.attempts == [("language_model", ok) for ok in (True, True, True, False, True)]


def test_language_models_need_names_of_their_own(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    toy = toy_arpa.write(server.words)
    shutil.copy(toy, toy.with_suffix(".binary"))
    toy.rename(toy.with_name("none.arpa"))
    shutil.copy(toy.with_suffix(".binary"), toy)
    server.settle()
    assert list(server.catalogue.snapshot.language_models) == ["toy"]
    assert sorted(server.attempts) == [("language_model", False)] * 2 + [("language_model", True)]
    assert "is called 'toy' already" in caplog.text and "'none' is what calls without" in caplog.text


class Counted(Reloader):
    """Finds nothing; its first look fails, the second sees a change."""

    def __init__(self, enough: int) -> None:
        super().__init__(Catalogue(), [], [], Engine, lambda engine: None)
        self.looks = 0
        self.enough = enough
        self.seen = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def scan(self) -> bool:
        self.looks += 1
        if self.looks == self.enough:
            self.loop.call_soon_threadsafe(self.seen.set)
        if self.looks == 1:
            raise RuntimeError("a disk error")
        return self.looks != 2


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_watch_looks_when_it_is_time_or_told_to_and_survives_errors(
    seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloading, "SETTLE", 0.0)

    async def run() -> Counted:
        # By itself it looks on and on; told to it looks twice here, and once more where a change was seen.
        reloader, wake = Counted(4 if seconds else 3), asyncio.Event()
        task = asyncio.create_task(watch(reloader, seconds, wake))
        if not seconds:
            wake.set()
            while reloader.looks < 1 or wake.is_set():
                await asyncio.sleep(0.001)
            wake.set()
        await asyncio.wait_for(reloader.seen.wait(), 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return reloader

    assert asyncio.run(run()).looks >= 3
    assert "a disk error" in caplog.text
