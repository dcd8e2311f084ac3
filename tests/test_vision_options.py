"""What operators allow clients of the vision services, and what they then see, on the whole server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import torch

from asr_server import cli
from asr_server.connection import TOKEN_VARIABLE, Connection
from asr_server.options import Running, ServerOptions, Telemetry, VisionLimits
from asr_server.security_options import SecurityOptions
from tests.certificates import Authority
from tests.speech_fixtures import serving
from tests.test_secure_server import make_token
from tests.test_vision_additions import split
from tests.test_vision_bundle import save
from tests.vision_fixtures import TINY, picture
from vision_zoo import cli as vision_cli
from vision_zoo import client
from vision_zoo.nasnet import NASNet
from vision_zoo.precision import available
from vision_zoo.wire import inference_pb2, vision_pb2, vision_pb2_grpc
from vision_zoo.wire.inference_pb2_grpc import GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def network() -> NASNet:
    torch.manual_seed(0)
    return NASNet(TINY)


@pytest.fixture
def models(tmp_path: Path, network: NASNet) -> Path:
    save(tmp_path / "models" / "birds", network, name="birds", version="1")
    return tmp_path / "models"


def options(*models: Path, registry: Path | None = None, model_control: bool = False) -> ServerOptions:
    return ServerOptions(
        port=0,
        models=models,
        registry=registry,
        model_control=model_control,
        telemetry=Telemetry(metrics_port=0),
        drain_seconds=0.5,
    )


def scrape(server: Running) -> str:
    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30) as reply:
        text: str = reply.read().decode()
        return text


def test_what_is_registered_is_served_again_after_a_restart(tmp_path: Path, network: NASNet) -> None:
    """By a server that has nothing else to serve. Sets of embeddings and aliases are kept as well."""
    registry, empty = tmp_path / "registry", tmp_path / "empty"
    registry.mkdir()
    empty.mkdir()
    (registry / ".upload-killed").mkdir()
    trained = save(tmp_path / "trained", network, name="bees", version="2").folder
    image = split("red")
    with serving(options(empty, registry=registry)) as server, grpc.insecure_channel(server.address) as channel:
        assert server.vision_models == () and not [*registry.glob(".upload-*")], "nobody sends that any more"
        assert client.register(Connection(server.address), trained, "production") == "bees@2"
        header = vision_pb2.EmbeddingSetHeader(name="known", model="bees")
        member = vision_pb2.EmbeddingSetMember(id="1", label="red", image=image)
        vision_pb2_grpc.VisionStub(channel).RegisterEmbeddings(
            iter(
                [
                    vision_pb2.RegisterEmbeddingsRequest(header=header),
                    vision_pb2.RegisterEmbeddingsRequest(member=member),
                ]
            )
        )
        assert 'nv_inference_exec_count{model="bees",version="2"} 1.0' in scrape(server), (
            "ours; warming up does not count"
        )
    with serving(options(empty, registry=registry)) as server, grpc.insecure_channel(server.address) as channel:
        assert server.vision_models == ("bees",)
        stub = vision_pb2_grpc.VisionStub(channel)
        answer = stub.Classify(vision_pb2.ClassifyRequest(image=picture(), model="production"), timeout=60)
        assert (answer.model, answer.model_version) == ("bees", "2")
        found = stub.Search(vision_pb2.SearchRequest(set="known", image=image), timeout=60)
        assert [each.id for each in found.neighbours] == ["1"]


def test_a_folder_of_models_may_take_what_is_registered(models: Path, tmp_path: Path, network: NASNet) -> None:
    trained = save(tmp_path / "trained", network, name="birds", version="2").folder
    with serving(options(models, registry=models)) as server:
        assert client.register(Connection(server.address), trained) == "birds@2"
    with serving(options(models, registry=models)) as server, grpc.insecure_channel(server.address) as channel:
        listed = vision_pb2_grpc.VisionStub(channel).ListModels(vision_pb2.ListModelsRequest(), timeout=60).models
        assert [(each.name, each.version) for each in listed] == [("birds", "2"), ("birds", "1")]


def test_limits_of_batches_and_of_the_queue(models: Path) -> None:
    chosen = replace(options(models), vision_limits=VisionLimits(images=2, decoders=1, batch=3, delay_seconds=0.25))
    with serving(chosen) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        config = stub.ModelConfig(inference_pb2.ModelConfigRequest(name="birds"), timeout=60).config
        assert config.max_batch_size == 2, "no more than may wait"
        assert config.dynamic_batching.max_queue_delay_microseconds == 250_000
        images = inference_pb2.ModelInferRequest(model_name="birds_image")
        images.inputs.add(name="images", datatype="BYTES", shape=[3, 1]).contents.bytes_contents.extend([picture()] * 3)
        with pytest.raises(grpc.RpcError, match=r"unexpected shape \[3, 1\]; send .* B from 1 to 2"):
            stub.ModelInfer(images, timeout=60)


def test_clients_may_do_nothing_of_it_unless_an_operator_allows_it(
    models: Path, tmp_path: Path, network: NASNet
) -> None:
    trained = save(tmp_path / "trained", network, name="bees").folder
    unload = inference_pb2.RepositoryModelUnloadRequest(model_name="birds")
    with serving(options(models)) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(client.ClientError, match="PERMISSION_DENIED: this server takes no bundles"):
            client.register(Connection(server.address), trained)
        with pytest.raises(grpc.RpcError) as caught:
            GRPCInferenceServiceStub(channel).RepositoryModelUnload(unload, timeout=60)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_models_are_loaded_unloaded_and_counted(models: Path) -> None:
    series = 'nv_inference_count{model="birds",version="1"}'
    with serving(options(models, model_control=True)) as server, grpc.insecure_channel(server.address) as channel:
        vision, inference = vision_pb2_grpc.VisionStub(channel), GRPCInferenceServiceStub(channel)
        before = scrape(server)
        assert f"{series} 0.0" in before, "warming up does not count"
        vision.Classify(vision_pb2.ClassifyRequest(image=picture()), timeout=60)
        request = inference_pb2.ModelInferRequest(model_name="birds_image")
        request.inputs.add(name="images", datatype="BYTES", shape=[2, 1]).contents.bytes_contents.extend(
            [picture()] * 2
        )
        inference.ModelInfer(request, timeout=60)
        assert f"{series} 3.0" in scrape(server), "of both contracts together"
        inference.RepositoryModelUnload(inference_pb2.RepositoryModelUnloadRequest(model_name="birds"), timeout=60)
        assert series not in scrape(server)
        inference.RepositoryModelLoad(inference_pb2.RepositoryModelLoadRequest(model_name="birds"), timeout=60)
        assert f"{series} 0.0" in scrape(server)


def test_a_folder_that_will_not_do_is_one_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["serve", "--port", "0", "--models", str(models), "--registry", str(tmp_path / "missing")]
    assert cli.main([*given, "--allow-model-control"]) == 1
    text = f"error: registry folder {tmp_path / 'missing'} does not exist; name one that the server may write to\n"
    assert capsys.readouterr().err == text


def test_the_precision_is_the_operators(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = available()[-1]
    with serving(replace(options(models), vision_precision=chosen)) as server:
        with grpc.insecure_channel(server.address) as channel:
            request = inference_pb2.ModelMetadataRequest(name="birds")
            metadata = GRPCInferenceServiceStub(channel).ModelMetadata(request, timeout=60)
    assert metadata.properties["precision"] == chosen
    assert cli.main(["serve", "--port", "0", "--models", str(models), "--vision-precision", "fp8"]) == 1
    assert "precision 'fp8' is not one of this processor's. Select one of ('auto', 'eager'" in capsys.readouterr().err


def test_our_client_speaks_tls_and_sends_a_token(
    models: Path,
    tmp_path: Path,
    network: NASNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`register` and `classify --server` of the command line; without the token they are turned away."""
    authority, tokens = Authority("toy"), tmp_path / "tokens.json"
    (ca := tmp_path / "ca.pem").write_bytes(authority.certificate)
    security = SecurityOptions(*authority.issue("localhost").write(tmp_path, "server"), tokens=tokens)
    token = make_token(tokens, "trainer")
    trained = save(tmp_path / "trained", network, name="bees", version="2").folder
    (photo := tmp_path / "photo.png").write_bytes(picture())
    with serving(replace(options(models, registry=models), security=security)) as server:
        reach = ["--server", f"localhost:{server.address.rpartition(':')[2]}", "--ca", str(ca)]
        assert vision_cli.main(["register", *reach, str(trained)]) == 1
        assert "UNAUTHENTICATED" in capsys.readouterr().err
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        assert vision_cli.main(["register", *reach, str(trained)]) == 0
        assert capsys.readouterr().out == "served: bees@2\n"
        assert vision_cli.main(["classify", *reach, "--model", "bees", str(photo)]) == 0
        assert capsys.readouterr().out.startswith(f"{photo}: ")
