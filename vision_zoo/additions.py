"""What clients bring to a running server: bundles, aliases, and sets of embeddings to search in.

What changes something needs a registry: without one it raises RegistrationOffError before it reads. The methods read
messages as they come and raise ValueError and the errors of the repository, the registry and the sets; what takes long
runs in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from vision_zoo import messages
from vision_zoo.batcher import Urgency
from vision_zoo.bundle import is_name
from vision_zoo.classifier import Classifier
from vision_zoo.neighbours import DEFAULT_K, EmbeddingSets
from vision_zoo.registration import RegistrationOffError, Registry
from vision_zoo.repository import Repository
from vision_zoo.wire import vision_pb2 as pb

Embed: TypeAlias = Callable[[Classifier, bytes, Urgency, bool], Awaitable[Tensor]]


class Additions:
    """registry None: nothing is taken. embed: an image's embedding, within the service's limits.

    embed's last argument: wait for a place, where all are taken.
    """

    def __init__(self, repository: Repository, sets: EmbeddingSets, registry: Registry | None, embed: Embed) -> None:
        self._repository, self._sets, self._registry, self._embed = repository, sets, registry, embed

    async def embeddings(
        self, requests: AsyncIterator[pb.RegisterEmbeddingsRequest], deadline: float | None
    ) -> pb.EmbeddingSet:
        self._writable()
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("content") != "header":
            raise ValueError("the first message must be a header: the set's name and its model")
        classifier = self._repository.find(first.header.model, first.header.model_version)
        with self._sets.building(first.header.name, classifier.bundle) as builder:
            async for request in requests:
                member = request.member
                if request.WhichOneof("content") != "member" or member.WhichOneof("content") is None:
                    raise ValueError("after the header, every message must be a member with an image or an embedding")
                if member.WhichOneof("content") == "embedding":
                    embedding = messages.vector(member.embedding)
                else:
                    embedding = await self._embed(classifier, member.image, Urgency(deadline=deadline), True)
                builder.add(member.id, member.label, embedding)
            made = await asyncio.to_thread(builder.build)
            await asyncio.to_thread(self._sets.add, made)
        return messages.embedding_set(made)

    async def delete(self, request: pb.DeleteEmbeddingSetRequest) -> pb.DeleteEmbeddingSetResponse:
        self._writable()
        await asyncio.to_thread(self._sets.delete, request.name)
        return pb.DeleteEmbeddingSetResponse()

    async def search(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchResponse:
        """Needs no registry: it changes nothing, and finds what there is."""
        chosen = self._sets.find(request.set)
        classifier = self._repository.find(chosen.model, chosen.version)
        if classifier.bundle.weights_sha256 != chosen.weights_sha256:
            raise ValueError(f"set {chosen.name!r} was made with other weights of {chosen.model!r}; register it again")
        match request.WhichOneof("query"):
            case "image":
                urgency = messages.urgency(request.priority, deadline)
                query = await self._embed(classifier, request.image, urgency, False)
            case "embedding":
                query = messages.vector(request.embedding)
            case _:
                raise ValueError("a search needs an image or an embedding")
        found = await asyncio.to_thread(chosen.search, query, request.k or DEFAULT_K)
        return messages.search_response(classifier.bundle, found)

    async def bundle(self, requests: AsyncIterator[pb.RegisterRequest]) -> pb.RegisterResponse:
        registry = self._writable()
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("content") != "header":
            raise ValueError("the first message must be a header: a folder, or the files that follow")
        header = first.header
        if bool(header.folder) == bool(header.files):
            raise ValueError("a header needs either a folder or files")
        if header.alias and not is_name(header.alias):
            raise ValueError(f"alias {header.alias!r} must be 1 to 64 of a-z 0-9 . _ -")
        if header.folder:
            classifier = await asyncio.to_thread(registry.take_folder, Path(header.folder))
        else:
            with await asyncio.to_thread(registry.begin, messages.announced(header)) as upload:
                async for request in requests:
                    await asyncio.to_thread(upload.write, request.data)
                classifier = await asyncio.to_thread(registry.take_upload, upload)
        if header.alias:
            of = classifier.bundle
            await asyncio.to_thread(self._repository.set_alias, header.alias, of.name, of.version, registry.folder)
        return pb.RegisterResponse(model=self._described(classifier))

    async def alias(self, request: pb.SetAliasRequest) -> pb.SetAliasResponse:
        folder = self._writable().folder
        given = (request.alias, request.model, request.model_version, folder)
        return pb.SetAliasResponse(model=self._described(await asyncio.to_thread(self._repository.set_alias, *given)))

    def _writable(self) -> Registry:
        if self._registry is None:
            raise RegistrationOffError(
                "this server takes no bundles, aliases or sets of embeddings: it was started without a folder for them"
            )
        return self._registry

    def _described(self, classifier: Classifier) -> pb.Model:
        return messages.model(classifier, self._repository)
