"""Hot reload: bundles and language models are added, replaced and removed while streams run.

`Reloader.scan` is one look at the folders (shelf.py); whoever serves calls it in a worker thread, or has `watch` do so.
What is new is loaded and run once there, then everything is put into the catalogue with one assignment. A live stream
ends on the version that it began with.

A version is best put in place by a rename: copy it to a name in the same directory that begins with a dot, which is
passed over, then `mv`. What is copied in place is taken up when it has stopped changing. Removing the last bundle
leaves a server without speech models: that is what was asked for, calls then get an error that says so, and `on_change`
is told, so that health can say NOT_SERVING and other replicas take over.

Memory: each version that a live stream began with, the loaded one, and while one is loaded about three times its files.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from asr_server import bundle, language_model
from asr_server.bundle import BundleError, SpeechBundle
from asr_server.catalogue import NO_LANGUAGE_MODEL, Catalogue, Snapshot
from asr_server.language_model import LanguageModel
from asr_server.native import core
from asr_server.recognizer import Engine
from asr_server.shelf import Shelf, Source

Kind: TypeAlias = Literal["speech", "language_model"]

SUFFIXES = (".binary", ".arpa")  # of language models; a file with the suffix .words may be beside them
SETTLE = 1.0  # seconds between two looks at something that is changing

logger = logging.getLogger(__name__)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Reloader:
    """Keeps a catalogue in step with folders of bundles and of language models. Used from one thread at a time.

    make_engine, warm_up: what turns a bundle into an engine, and runs one that has come later once; where they raise,
    the bundle is refused.
    on_change: told, in the thread that scans, what the catalogue holds from now on.
    on_attempt: told of each load or removal (True) and each refusal (False).
    """

    def __init__(
        self,
        catalogue: Catalogue,
        folders: Iterable[Path],
        language_model_folders: Iterable[Path],
        make_engine: Callable[[SpeechBundle], Engine],
        warm_up: Callable[[Engine], None],
        on_change: Callable[[Snapshot], None] = _ignore,
        on_attempt: Callable[[Kind, bool], None] = _ignore,
    ) -> None:
        self._catalogue = catalogue
        self._on_change = on_change
        self._make_engine = make_engine
        self._warm_up = warm_up
        self._started = False
        speech = Source("speech model", tuple(folders), _bundles, _entries, _bundle_name, self._engine)
        texts = Source(
            "language model", tuple(language_model_folders), _language_models, _with_words, _stem, language_model.load
        )
        self._engines: Shelf[Engine] = Shelf(speech, lambda ok: on_attempt("speech", ok))
        self._language_models: Shelf[LanguageModel] = Shelf(texts, lambda ok: on_attempt("language_model", ok))

    def begin(self) -> None:
        """Load everything, at the start; the server runs it when it can. ValueError where anything is broken."""
        try:
            self._engines.fill()
            self._language_models.fill()
        except OSError as error:
            if error.filename is None:  # not of the folders: without a place for temporary files, for example
                raise ValueError(f"the models cannot be loaded: {error.strerror or error}") from error
            raise ValueError(f"models directory {error.filename!r} cannot be listed: {error.strerror}") from error
        self._started = True
        self._publish()

    def scan(self) -> bool:
        """One look. False when something is changing right now, so that another look should follow in `SETTLE`."""
        with _one_thread():
            # Both, whatever the first finds.
            changed = [self._engines.update(), self._language_models.update()]
            if any(changed):
                self._publish()
                _give_back_memory()
        return self._engines.settled and self._language_models.settled

    def _publish(self) -> None:
        engines, language_models = self._engines.things, self._language_models.things
        for engine in engines.values():
            for each in language_models.values():
                _spell(each, engine)
        self._catalogue.replace(engines.values(), language_models)
        self._on_change(self._catalogue.snapshot)

    def _engine(self, folder: Path) -> Engine:
        engine = self._make_engine(bundle.load(folder))
        if self._started:  # nobody should have to wait for the first run, which is slow
            self._warm_up(engine)
        return engine


async def watch(reloader: Reloader, seconds: float, wake: asyncio.Event) -> None:
    """Scan every so many seconds (0: never) and whenever `wake` is set, until cancelled. Errors are logged."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), seconds or None)
        wake.clear()
        while not await _scan(reloader):
            await asyncio.sleep(SETTLE)


async def _scan(reloader: Reloader) -> bool:
    try:
        return await asyncio.to_thread(reloader.scan)
    except Exception:
        logger.exception("looking for changed models failed")
        return True


def _spell(model: LanguageModel, engine: Engine) -> None:
    """Into the native core before a stream asks for it, because that takes long for a large one."""
    if core is not None:
        try:
            model.native(engine.bundle.alphabet)
        except Exception:  # a stream that asks for this pair gets the error, nobody else
            logger.exception("language model %s for %s", model.path, engine.name)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The cores are needed by live streams; torch keeps this setting for each thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _give_back_memory() -> None:
    """What loading took and freed, glibc would keep for the thread that loaded: some models' worth."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _bundles(root: Path) -> list[Path]:
    """Folders with a bundle.json that is not of another kind."""
    folders = [path for path in _visible(root) if (path / bundle.DESCRIPTION).is_file()]
    return [folder for folder in folders if _is_speech(folder)]


def _visible(root: Path) -> list[Path]:
    return [root / name for name in sorted(os.listdir(root)) if not name.startswith(".")]


def _is_speech(folder: Path) -> bool:
    try:
        return bundle.identity(folder)[0] == bundle.KIND
    except BundleError:
        return True  # of nobody knows what kind; loading it will say what is wrong


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder)]


def _bundle_name(folder: Path) -> str:
    return str(bundle.identity(folder)[1])


def _language_models(root: Path) -> list[Path]:
    return [path for path in _visible(root) if path.suffix in SUFFIXES]


def _with_words(path: Path) -> tuple[Path, Path]:
    return path, path.with_suffix(".words")


def _stem(path: Path) -> str:
    if path.stem == NO_LANGUAGE_MODEL:
        raise ValueError(f"{path}: {NO_LANGUAGE_MODEL!r} is what calls without a language model say")
    return path.stem
