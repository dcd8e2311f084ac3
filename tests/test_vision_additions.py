"""What goes beyond labels, over a real port: explanations, embeddings, search, registration, deadlines."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from PIL import Image

from tests.test_vision_bundle import save
from tests.test_vision_service import WAIT, Gated, run, serving
from tests.vision_fixtures import TINY, colour_bundle, picture
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import Classifier
from vision_zoo.client import _upload
from vision_zoo.nasnet import NASNet
from vision_zoo.neighbours import EmbeddingSets, SetLimits
from vision_zoo.registration import announce
from vision_zoo.repository import Repository
from vision_zoo.service import Limits
from vision_zoo.transforms import Preprocessing
from vision_zoo.wire import vision_pb2 as pb


def network_bundle(name: str = "net") -> Classifier:
    torch.manual_seed(0)
    made = replace(colour_bundle(name, NASNet(TINY)), preprocessing=Preprocessing(size=16), weights_sha256="abc")
    return Classifier(made)


async def refused(call: Any, code: str, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=text) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode[code]


def test_an_answer_says_what_gave_it_and_whether_it_is_sure() -> None:
    of = replace(colour_bundle(), temperature=10.0, weights_sha256="abc")

    async def work() -> None:
        async with serving(Classifier(of)) as stub:
            ask = pb.ClassifyRequest(image=picture("red"), abstain_below=0.9)
            answer = await stub.Classify(ask)
            assert (answer.weights_sha256, answer.preprocessing_sha256) == ("abc", of.preprocessing.identity)
            # Without the temperature red is certain; the logits are 9.6 and -9.6, a tenth of them is left.
            assert answer.abstained and answer.predictions[0].probability == pytest.approx(0.773, abs=0.001)
            ask.abstain_below = 0.7
            assert not (await stub.Classify(ask)).abstained
            await refused(
                stub.Classify(pb.ClassifyRequest(image=picture(), abstain_below=2)), "INVALID_ARGUMENT", "0 to 1"
            )
            await refused(stub.Classify(pb.ClassifyRequest(image=picture(), priority=101)), "INVALID_ARGUMENT", "-100")

    run(work)


def test_explanations_come_with_the_labels() -> None:
    async def work() -> None:
        async with serving(network_bundle()) as stub:
            plain = await stub.Classify(pb.ClassifyRequest(image=picture()))
            wish = pb.ExplanationRequest(index=2, values=True, overlay=True)
            answer = await stub.Classify(pb.ClassifyRequest(image=picture(), explanation=wish))
            found = answer.explanation
            assert (found.index, found.label, found.method) == (2, "blue", "cam")
            assert len(found.values) == found.height * found.width > 0
            assert Image.open(io.BytesIO(found.overlay)).size == (16, 16)
            for ours, theirs in zip(answer.predictions, plain.predictions, strict=True):
                assert ours.label == theirs.label and ours.probability == pytest.approx(theirs.probability, abs=1e-5)
            usual = pb.ClassifyRequest(image=picture(), explanation=pb.ExplanationRequest())
            found = (await stub.Classify(usual)).explanation
            assert found.overlay and not found.values and found.index == plain.predictions[0].index
            wrong = pb.ClassifyRequest(image=picture(), explanation=pb.ExplanationRequest(index=3))
            await refused(stub.Classify(wrong), "INVALID_ARGUMENT", "label index 3 must be 0 to 2")

    run(work)


def set_of(name: str) -> pb.RegisterEmbeddingsRequest:
    return pb.RegisterEmbeddingsRequest(header=pb.EmbeddingSetHeader(name=name, model="net"))


def member(colour: str) -> pb.RegisterEmbeddingsRequest:
    return pb.RegisterEmbeddingsRequest(
        member=pb.EmbeddingSetMember(id=f"1-{colour}", label=colour, image=split(colour))
    )


def test_embed_register_and_search(tmp_path: Path) -> None:
    header = set_of("known")

    async def work() -> None:
        async with serving(network_bundle(), folder=tmp_path) as stub:
            made = await stub.RegisterEmbeddings(iter([header, member("red"), member("blue")]))
            assert (made.name, made.members, made.size, made.model_version) == ("known", 2, 24, "3")
            embedding = (await stub.Embed(pb.EmbedRequest(image=split("blue")))).embedding
            for query in ({"image": split("blue")}, {"embedding": pb.Embedding(values=embedding)}):
                found = await stub.Search(pb.SearchRequest(set="known", k=1, **query))
                assert [(each.id, each.label) for each in found.neighbours] == [("1-blue", "blue")]
                assert found.neighbours[0].similarity == pytest.approx(1) and found.weights_sha256 == "abc"
            assert [each.name for each in (await stub.ListEmbeddingSets(pb.ListEmbeddingSetsRequest())).sets] == [
                "known"
            ]
            await refused(
                stub.Search(pb.SearchRequest(set="known")), "INVALID_ARGUMENT", "needs an image or an embedding"
            )
            await refused(stub.RegisterEmbeddings(iter([member("red")])), "INVALID_ARGUMENT", "must be a header")
            await stub.DeleteEmbeddingSet(pb.DeleteEmbeddingSetRequest(name="known"))
            await refused(stub.Search(pb.SearchRequest(set="known")), "NOT_FOUND", "set 'known' is unknown")

    run(work)


def test_sets_are_bounded(tmp_path: Path) -> None:
    sets = EmbeddingSets(limits=SetLimits(sets=1, members=2, text=8))

    async def work() -> None:
        async with serving(network_bundle(), folder=tmp_path, sets=sets) as stub:
            full, wrong = "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"
            three = [set_of("a"), *map(member, ("red", "green", "blue"))]
            await refused(stub.RegisterEmbeddings(iter(three)), full, "3 members in all sets .*; the limit is 2")
            long = member("red")
            long.member.id = "123456789"
            await refused(stub.RegisterEmbeddings(iter([set_of("a"), long])), wrong, "id of 9 characters")
            await stub.RegisterEmbeddings(iter([set_of("a"), member("red")]))
            await refused(stub.RegisterEmbeddings(iter([set_of("b")])), full, "2 sets of embeddings; the limit is 1")
            await stub.RegisterEmbeddings(iter([set_of("a"), member("red"), member("blue")]))

    run(work)


def test_an_embedding_needs_no_place_among_the_images(tmp_path: Path) -> None:
    """A search by numbers decodes nothing, so it is not refused while images are in work."""
    query = pb.SearchRequest(set="known", embedding=pb.Embedding(values=[1.0, 0.0]))
    sets, model = EmbeddingSets(), Gated()
    with sets.building("known", colour_bundle()) as builder:
        builder.add("x", "red", torch.tensor([1.0, 1.0]))
        sets.add(builder.build())

    async def work() -> None:
        async with serving(Classifier(colour_bundle(model=model)), limits=Limits(images=1), sets=sets) as stub:
            held = asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture())))
            await asyncio.to_thread(model.entered.wait, WAIT)
            assert [each.id for each in (await stub.Search(query)).neighbours] == ["x"]
            model.gate.set()
            await held

    run(work)


def split(colour: str) -> bytes:
    """Half of a colour, so that whitening leaves something of it."""
    image = Image.new("RGB", (16, 16), "white")
    image.paste(Image.open(io.BytesIO(picture(colour, (8, 16)))), (0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_without_embeddings_says_so() -> None:
    async def work() -> None:
        async with serving(Classifier(colour_bundle())) as stub:
            await refused(stub.Embed(pb.EmbedRequest(image=picture())), "INVALID_ARGUMENT", "has no embeddings")

    run(work)


def test_a_bundle_is_registered_and_served_at_once(tmp_path: Path) -> None:
    trained = save(tmp_path / "trained", NASNet(TINY), name="bees", version="2").folder
    (tmp_path / "registry").mkdir()

    async def work() -> None:
        async with serving(repository=Repository(), folder=tmp_path / "registry") as stub:
            answer = (await stub.Register(_upload(trained, announce(trained), "production"))).model
            assert (answer.name, answer.version, list(answer.aliases)) == ("bees", "2", ["production"])
            said = await stub.Classify(pb.ClassifyRequest(image=picture(), model="production"))
            assert (said.model, said.model_version, said.weights_sha256) == ("bees", "2", answer.weights_sha256)
            await stub.SetAlias(pb.SetAliasRequest(alias="best", model="bees"))
            named = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [list(each.aliases) for each in named] == [["production", "best"]]
            wrong = [pb.RegisterRequest(header=pb.RegisterHeader(folder=str(trained)))]
            await refused(stub.Register(iter(wrong)), "INVALID_ARGUMENT", "must be in one of")
            await refused(stub.Register(iter([pb.RegisterRequest(data=b"x")])), "INVALID_ARGUMENT", "must be a header")

    run(work)


def test_registration_is_off_unless_there_is_a_folder() -> None:
    async def work() -> None:
        async with serving(Classifier(colour_bundle())) as stub:
            await refused(stub.Register(iter([pb.RegisterRequest()])), "PERMISSION_DENIED", "without a folder")
            await refused(stub.SetAlias(pb.SetAliasRequest(alias="a")), "PERMISSION_DENIED", "without a folder")
            await refused(stub.RegisterEmbeddings(iter([set_of("a")])), "PERMISSION_DENIED", "without a folder")
            gone = pb.DeleteEmbeddingSetRequest(name="a")
            await refused(stub.DeleteEmbeddingSet(gone), "PERMISSION_DENIED", "without a folder")
            await refused(stub.Search(pb.SearchRequest(set="a")), "NOT_FOUND", "set 'a' is unknown")

    run(work)


def test_a_call_that_runs_out_of_time_in_the_queue_is_never_run() -> None:
    model = Gated()
    classifier = Classifier(colour_bundle(model=model), BatchOptions(max_batch=1, max_delay=0.0))

    async def work() -> None:
        async with serving(classifier) as stub:
            first = asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(image=picture())))
            await asyncio.to_thread(model.entered.wait, WAIT)
            late = stub.Classify(pb.ClassifyRequest(image=picture()), timeout=2)
            while not classifier.waiting:
                await asyncio.sleep(0.005)
            ((_, _, entry),) = classifier._batcher._heap
            await refused(late, "DEADLINE_EXCEEDED", "(?i)deadline")
            assert entry.urgency.deadline is not None
            while not entry.future.cancelled() and time.monotonic() < entry.urgency.deadline:
                await asyncio.sleep(0.005)  # the server's clock began when the call arrived
            model.gate.set()
            await first
            await stub.Classify(pb.ClassifyRequest(image=picture()))
        assert model.batches == [1, 1], "the first and the last call"

    run(work)
