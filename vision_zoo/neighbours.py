"""Sets of labelled embeddings, and the members of one that are nearest to an image.

The search is exact: one product of the set's matrix with the query. Dimension letters: N members, D embedding.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn import functional as F

from vision_zoo import bundle

DEFAULT_K = 5


class UnknownSetError(Exception):
    """No set of that name is registered."""


class SetsFullError(Exception):
    """The sets of a server, with those that are being built, may take no more room."""


@dataclass(frozen=True)
class SetLimits:
    """Of all sets of a server together, those that are being built among them."""

    sets: int = 100
    members: int = 250_000  # which cost some hundred bytes each beside their vectors
    size: int = 256 << 20  # bytes of vectors, ids and labels
    text: int = 256  # characters of one id or label


@dataclass(frozen=True)
class Neighbour:
    """similarity: cosine, -1 to 1."""

    id: str
    label: str
    similarity: float


@dataclass(frozen=True)
class EmbeddingSet:
    """vectors: float32 (N, D) of length 1. The model and the hash of its weights say whose embeddings they are."""

    name: str
    model: str
    version: str
    weights_sha256: str
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: Tensor

    def search(self, query: Tensor, k: int = DEFAULT_K) -> list[Neighbour]:
        """query (D,) -> the min(k, N) most similar members, the most similar first. Raises ValueError."""
        if k < 1:
            raise ValueError(f"k {k} must be at least 1")
        if query.shape != self.vectors.shape[1:]:
            raise ValueError(f"the query has {query.numel()} values; set {self.name!r} has {self.vectors.shape[1]}")
        values, places = (self.vectors @ _unit(query[None])[0]).topk(min(k, len(self.ids)))
        found = zip(places.tolist(), values.tolist(), strict=True)
        return [Neighbour(self.ids[place], self.labels[place], min(1.0, max(-1.0, value))) for place, value in found]

    @cached_property
    def size(self) -> int:
        """Bytes of the vectors, ids and labels."""
        return _size(self.vectors, *self.ids, *self.labels)

    def __len__(self) -> int:
        return len(self.ids)


class SetBuilder:
    """Members one after the other -> a set. EmbeddingSets.building makes it, and is asked before it grows."""

    def __init__(self, name: str, model: bundle.VisionBundle, text_limit: int, ask: Callable[[str, int], None]) -> None:
        if not bundle.is_name(name):
            raise ValueError(f"set name {name!r} must be 1 to 64 of a-z 0-9 . _ - and start with a letter or digit")
        self.name, self.size = name, 0
        self._model, self._text_limit, self._ask = model, text_limit, ask
        self._members: list[tuple[str, str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._members)

    def add(self, id_: str, label: str, embedding: Tensor) -> None:
        """embedding: (D,). Raises ValueError, and SetsFullError where there is no room for it."""
        for kind, text in (("id", id_), ("label", label)):
            if len(text) > self._text_limit:
                raise ValueError(f"{kind} of {len(text)} characters; the limit is {self._text_limit}")
        embedding = embedding.float()
        if self._members and embedding.shape != self._members[0][2].shape:
            raise ValueError(f"an embedding has {embedding.numel()} values, the first had {len(self._members[0][2])}")
        size = _size(embedding, id_, label)
        self._ask(self.name, size)
        self._members.append((id_, label, _unit(embedding[None])[0]))
        self.size += size

    def build(self) -> EmbeddingSet:
        if not self._members:
            raise ValueError(f"set {self.name!r} has no members; send at least one")
        ids, labels, vectors = zip(*self._members, strict=True)
        of = self._model
        return EmbeddingSet(self.name, of.name, of.version, of.weights_sha256, ids, labels, torch.stack(vectors))


class EmbeddingSets:
    """All sets of a server, by name; in memory, and as FOLDER/NAME.safetensors where there is a folder."""

    def __init__(self, folder: Path | None = None, limits: SetLimits | None = None) -> None:
        """Reads what the folder holds. Raises ValueError where a file is no set."""
        self._folder, self._limits = folder, limits or SetLimits()
        self._changing = threading.Lock()
        self._building: list[SetBuilder] = []
        found = sorted(folder.glob("*.safetensors")) if folder is not None else []
        self._sets = {each.name: each for each in map(read, found)}

    def find(self, name: str) -> EmbeddingSet:
        """Raises UnknownSetError."""
        try:
            return self._sets[name]
        except KeyError:
            raise UnknownSetError(f"set {name!r} is unknown; choose from {sorted(self._sets)}") from None

    def __iter__(self) -> Iterator[EmbeddingSet]:
        return iter(self._sets.values())

    @contextmanager
    def building(self, name: str, model: bundle.VisionBundle) -> Iterator[SetBuilder]:
        """A set that may take the room of the one it replaces. While it is built, it counts among all sets.

        Raises ValueError for the name, SetsFullError.
        """
        builder = SetBuilder(name, model, self._limits.text, self._check_growth)
        self._check([*self._others(name), builder])
        self._building.append(builder)
        try:
            yield builder
        finally:
            self._building.remove(builder)

    def add(self, new: EmbeddingSet) -> None:
        """Replaces a set of the same name. Raises SetsFullError."""
        with self._changing:
            sets = {**self._sets, new.name: new}
            self._check(list(sets.values()))
            if self._folder is not None:
                write(self._folder, new)
            self._sets = sets

    def delete(self, name: str) -> None:
        """Raises UnknownSetError."""
        with self._changing:
            self.find(name)
            self._sets = {key: each for key, each in self._sets.items() if key != name}
            if self._folder is not None:
                (self._folder / f"{name}.safetensors").unlink(missing_ok=True)

    def _others(self, name: str) -> list[EmbeddingSet | SetBuilder]:
        return [*(each for each in self._sets.values() if each.name != name), *self._building]

    def _check_growth(self, name: str, size: int) -> None:
        """Whether a set that is being built may have one more member of so many bytes."""
        self._check(self._others(name), members=1, size=size)

    def _check(self, all_sets: Sequence[EmbeddingSet | SetBuilder], members: int = 0, size: int = 0) -> None:
        limits = self._limits
        members += sum(map(len, all_sets))
        size += sum(each.size for each in all_sets)
        for count, limit, what in (
            (len(all_sets), limits.sets, "sets of embeddings"),
            (members, limits.members, "members in all sets of embeddings"),
            (size, limits.size, "bytes in all sets of embeddings"),
        ):
            if count > limit:
                raise SetsFullError(f"{count} {what}; the limit is {limit}: delete a set, or send a smaller one")


def write(folder: Path, embeddings: EmbeddingSet) -> Path:
    """FOLDER/NAME.safetensors: the vectors, and the rest as JSON among the file's metadata."""
    described = {
        "name": embeddings.name,
        "model": embeddings.model,
        "version": embeddings.version,
        "weights_sha256": embeddings.weights_sha256,
        "ids": embeddings.ids,
        "labels": embeddings.labels,
    }
    file, fresh = folder / f"{embeddings.name}.safetensors", folder / f".{embeddings.name}.new"
    vectors = {"vectors": embeddings.vectors.contiguous()}
    fresh.write_bytes(to_safetensors(vectors, {"embeddings": json.dumps(described)}))
    fresh.replace(file)
    return file


def read(file: Path) -> EmbeddingSet:
    """Raises ValueError where the file is none of `write`."""
    try:
        with safe_open(file, "pt") as opened:
            vectors, described = opened.get_tensor("vectors"), json.loads(opened.metadata()["embeddings"])
        described["ids"], described["labels"] = tuple(described["ids"]), tuple(described["labels"])
        found = EmbeddingSet(**described, vectors=vectors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no set of embeddings: {error}") from error
    if not len(found.ids) == len(found.labels) == len(vectors):
        raise ValueError(f"{file}: {len(vectors)} vectors, {len(found.ids)} ids and {len(found.labels)} labels")
    return found


def _size(vectors: Tensor, *texts: str) -> int:
    """Bytes."""
    return vectors.numel() * vectors.element_size() + sum(len(text.encode()) for text in texts)


def _unit(vectors: Tensor) -> Tensor:
    """(N, D) -> the same of length 1. Raises ValueError where one has no direction."""
    if vectors.ndim != 2 or not vectors.numel() or not bool(torch.isfinite(vectors).all()):
        raise ValueError("an embedding must be a vector of finite numbers")
    if not bool((vectors != 0).any(1).all()):
        raise ValueError("an embedding of zeros has no direction")
    return F.normalize(vectors.float(), dim=1)
