"""Versions, aliases and changes while requests hold what they found."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_vision_bundle import save
from tests.vision_fixtures import TINY, colour_bundle, picture
from vision_zoo.bundle import BundleError
from vision_zoo.classifier import Classifier
from vision_zoo.nasnet import NASNet
from vision_zoo.registration import Announced, Registry, Upload, announce
from vision_zoo.repository import ModelState, Repository, UnknownModelError


def versioned(name: str, version: str) -> Classifier:
    return Classifier(replace(colour_bundle(name), version=version))


@pytest.fixture(scope="module")
def network() -> NASNet:
    torch.manual_seed(0)
    return NASNet(TINY)


@pytest.fixture
def folder(tmp_path: Path, network: NASNet) -> Path:
    root = tmp_path / "models"
    for version in ("1.9", "1.10"):
        save(root / f"birds-{version}", network, name="birds", version=version)
    return root


@pytest.fixture
def repository(folder: Path) -> Iterator[Repository]:
    made = Repository.load_all([folder])
    yield made
    made.close()


def found(repository: Repository, name: str = "", version: str = "") -> tuple[str, str]:
    of = repository.find(name, version).bundle
    return of.name, of.version


def test_the_newest_version_is_served_unless_another_is_named() -> None:
    names = [("cats", "2"), ("birds", "1.9"), ("birds", "1.10-rc1"), ("birds", "1.10"), ("birds", "1.rc")]
    repository = Repository.of(versioned(*each) for each in names)
    assert found(repository) == ("cats", "2"), "the first one is the default"
    assert found(repository, "birds") == ("birds", "1.10")
    assert found(repository, "birds", "1.9") == found(repository, "birds@1.9") == ("birds", "1.9")
    assert [each.bundle.version for each in repository.classifiers] == ["2", "1.10", "1.10-rc1", "1.9", "1.rc"]
    with pytest.raises(UnknownModelError, match=r"model 'dogs' is unknown; choose from \['cats', 'birds'\]"):
        repository.find("dogs")
    with pytest.raises(UnknownModelError, match=r"no version '7'; choose from \['1.10', '1.10-rc1', '1.9', '1.rc'\]"):
        repository.find("birds", "7")
    with pytest.raises(ValueError, match=r"stands for version '1\.9'; version '2' contradicts it"):
        repository.find("birds@1.9", "2")
    repository.close()


def test_an_alias_stands_for_one_version_and_is_kept(folder: Path, repository: Repository) -> None:
    repository.set_alias("production", "birds", "1.9", folder)
    assert found(repository, "production") == ("birds", "1.9")
    assert repository.aliases("birds", "1.9") == ["production"]
    again = Repository.load_all([folder])
    assert found(again, "production") == ("birds", "1.9")
    again.set_alias("production", "birds")
    assert found(again, "production") == ("birds", "1.10"), "no version: the newest there is"
    again.close()
    with pytest.raises(ValueError, match="alias 'birds' is the name of a model"):
        repository.set_alias("birds", "birds")
    with pytest.raises(ValueError, match="alias 'A b' must be"):
        repository.set_alias("A b", "birds")
    (folder / "aliases.json").write_text('{"x": "birds@3"}')
    with pytest.raises(ValueError, match=r"'x' points at 'birds@3'; choose from \['birds@1.10', 'birds@1.9'\]"):
        Repository.load_all([folder])


def test_load_and_unload(folder: Path, repository: Repository, network: NASNet) -> None:
    repository.unload("birds")
    with pytest.raises(UnknownModelError, match="no vision model"):
        repository.find("birds")
    assert set(repository.index()) == {
        ModelState("birds", version, "UNAVAILABLE", "unloaded") for version in ("1.9", "1.10")
    }
    with pytest.raises(UnknownModelError, match="not loaded"):
        repository.unload("birds")
    save(folder / "new", network, name="birds", version="2")
    repository.load("birds")
    assert found(repository, "birds") == ("birds", "2")
    assert {each.state for each in repository.index()} == {"READY"}
    with pytest.raises(UnknownModelError, match=r"'cats' is in no folder of models; choose from \['birds'\]"):
        repository.load("cats")


def test_what_cannot_be_loaded_leaves_what_is_served(folder: Path, repository: Repository, network: NASNet) -> None:
    save(folder / "new", network, name="birds", version="2")
    (folder / "new" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="not a file of weights"):
        repository.load("birds")
    assert found(repository, "birds") == ("birds", "1.10")
    states = {each.version: each for each in repository.index()}
    assert states["1.10"].state == "READY"
    assert states["2"].state == "UNAVAILABLE" and "not a file of weights" in states["2"].reason


def test_a_bundle_that_cannot_be_read_stops_no_other(folder: Path, repository: Repository) -> None:
    (folder / "half").mkdir()
    (folder / "half" / "bundle.json").write_text('{"kind": "vis')
    repository.load("birds")
    assert repository.place("birds", "1.10") is not None and repository.place("birds", "7") is None
    with pytest.raises(UnknownModelError, match=r"'dogs' is in no folder.* \['birds'\]; .*half.* cannot be read"):
        repository.load("dogs")
    served = repository.find("birds").bundle
    (served.folder / "bundle.json").write_text("")
    with pytest.raises(BundleError, match="cannot be read"):
        repository.load("birds")
    assert repository.find("birds").bundle.version == served.version, "what is served stays"


def test_what_loads_but_does_not_run_is_never_served(folder: Path) -> None:
    class Broken(Classifier):
        def warm_up(self, seconds: float = 0) -> None:
            raise RuntimeError("no such instruction")

    repository = Repository([folder], Broken)
    with pytest.raises(ValueError, match="loads but does not run: no such instruction"):
        repository.load_folder(folder / "birds-1.9")
    assert repository.classifiers == () and repository.index()[0].state == "UNAVAILABLE"


def batchers() -> int:
    return sum(thread.name == "batcher drained" for thread in threading.enumerate())


def test_a_request_ends_on_the_version_that_it_found() -> None:
    repository = Repository.of([versioned("drained", "1")])
    held = repository.find("drained")
    repository.unload("drained")
    assert held.classify([picture("green")], 1)[0][0].label == "green"
    thread = held._batcher._thread
    del held
    gc.collect()
    thread.join(20)
    assert not thread.is_alive() and batchers() == 0, "the last holder's going ends the thread"


# Registration


def send(registry: Registry, folder: Path, piece: int = 1000) -> Classifier:
    with registry.begin(announce(folder)) as upload:
        data = b"".join((folder / file.name).read_bytes() for file in announce(folder))
        for start in range(0, len(data), piece):
            upload.write(data[start : start + piece])
        return registry.take_upload(upload)


def test_an_upload_becomes_served(tmp_path: Path, folder: Path, network: NASNet) -> None:
    made = save(tmp_path / "trained", network, name="bees", version="1")
    (tmp_path / "registry").mkdir()
    repository = Repository([folder])
    registry = Registry(tmp_path / "registry", repository)
    served = send(registry, made.folder, 777).bundle  # pieces that cut files anywhere
    assert (served.name, served.version, served.weights_sha256) == ("bees", "1", made.weights_sha256)
    assert served.folder == tmp_path / "registry" / "bees@1"
    assert found(repository, "bees") == ("bees", "1")
    assert send(registry, made.folder).bundle.version == "1", "again is no error"
    save(made.folder, network, name="bees", version="1", labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="'bees' has a version '1' already; give the bundle another version"):
        send(registry, made.folder)
    assert [path.name for path in (tmp_path / "registry").iterdir()] == ["bees@1"], "nothing else is left"
    repository.close()


def test_what_is_registered_can_be_served_after_a_restart(tmp_path: Path, folder: Path, network: NASNet) -> None:
    """Nothing is taken that would keep the next start from serving all of it."""
    kept = tmp_path / "registry"
    kept.mkdir()
    repository = Repository.load_all([folder, kept])
    registry = Registry(kept, repository)
    send(registry, save(tmp_path / "trained", network, name="bees", version="1").folder)
    repository.set_alias("best", "bees", folder=kept)
    (kept / ".upload-cut").mkdir()
    (kept / ".upload-cut" / "bundle.json").write_text('{"kind": "vi')  # the server was killed while it arrived
    again = Repository.load_all([folder, kept])
    assert found(again, "best") == ("bees", "1") and found(again) == ("birds", "1.10")
    assert send(registry, folder / "birds-1.9").bundle.folder == folder / "birds-1.9", "the same files: no error"
    other = save(tmp_path / "other", network, name="birds", version="1.9", labels=("a", "b", "c")).folder
    with pytest.raises(ValueError, match=r"'birds' has a version '1\.9' already"):
        send(registry, other)
    with pytest.raises(ValueError, match="model name 'best' is an alias on this server; choose another"):
        send(registry, save(tmp_path / "named", network, name="best", version="1").folder)
    assert sorted(path.name for path in kept.iterdir()) == [".upload-cut", "aliases.json", "bees@1"]
    repository.close()
    again.close()


def test_a_folder_for_bundles_must_be_one_and_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name, text in (("file", "is not a folder"), ("missing", "does not exist")):
        with pytest.raises(ValueError, match=f"registry folder {tmp_path / name} {text}"):
            Registry(tmp_path / name, Repository())

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match="cannot be written to by the server: Read-only file system"):
        Registry(tmp_path, Repository())


def test_damaged_and_short_uploads_are_refused_and_leave_nothing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "registry").mkdir()
    registry, source = Registry(tmp_path / "registry", Repository([folder])), folder / "birds-1.9"
    files = announce(source)
    first = (source / files[0].name).read_bytes()
    with registry.begin(files) as upload, pytest.raises(ValueError, match=r"bundle\.json arrived with SHA-256"):
        upload.write(b"x" + first[1:])
    with registry.begin(files) as upload:
        upload.write(first + b"abc")
        with pytest.raises(ValueError, match=rf"safetensors ended after 3 of {files[1].size} bytes"):
            registry.take_upload(upload)
    assert list((tmp_path / "registry").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([("../x", 1)], r"files \['../x'\] are no part of a bundle; choose from"),
        ([("bundle.json", 1)], "each once"),
        ([("bundle.json", 1), ("bundle.json", 1), ("model.safetensors", 1)], "each once"),
        ([("bundle.json", 1), ("model.safetensors", 100)], "101 bytes; no size may be below 0, and the limit is 100"),
        ([("bundle.json", -1), ("model.safetensors", 1)], "no size may be below 0"),
    ],
)
def test_what_is_announced_is_checked_first(tmp_path: Path, files: list[tuple[str, int]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Upload(tmp_path, [Announced(name, size, "") for name, size in files], limit=100)
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_the_server_are_taken(tmp_path: Path, folder: Path, network: NASNet) -> None:
    (tmp_path / "registry").mkdir()
    repository = Repository([folder])
    registry = Registry(tmp_path / "registry", repository)
    assert registry.take_folder(folder / "birds-1.9").bundle.version == "1.9"
    outside = save(tmp_path / "outside", network).folder
    (folder / "link").symlink_to(outside)
    for path in (outside, folder / "link", folder / ".." / "outside"):
        with pytest.raises(ValueError, match="must be in one of"):
            registry.take_folder(path)
    repository.close()
