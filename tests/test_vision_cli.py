"""vision-zoo and the evaluation, on a bundle of a hand-made network."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch
from PIL import Image

from tests.test_vision_bundle import save
from tests.vision_fixtures import COLOURS, PIXELS, TINY, colour_bundle, encoded, noise, picture
from training import evaluate_vision
from vision_zoo import bundle, cli, precision, service
from vision_zoo.classifier import Classifier
from vision_zoo.nasnet import NASNet
from vision_zoo.transforms import Preprocessing


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that always answers green: its classifier has only a bias."""
    folder = tmp_path_factory.mktemp("models")
    network = NASNet(TINY)
    with torch.no_grad():
        head = network.get_classifier()
        assert isinstance(head, torch.nn.Linear)
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 2.0, 1.0]))
    save(folder / "greens", network, name="greens", preprocessing=Preprocessing(size=16))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    file.write_bytes(picture("red"))
    return file


def test_classify_prints_a_line_for_each_image(models: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["classify", "--models", str(models), "--top-k", "2", str(photo), str(photo)]) == 0
    assert capsys.readouterr().out == f"{photo}: green 66.5%, blue 24.5%\n" * 2  # softmax of 0, 2, 1


def test_a_model_is_found_as_a_server_finds_it(models: Path, tmp_path: Path, photo: Path) -> None:
    for version in ("9", "10", "10-rc1"):
        save(tmp_path / "all" / version, NASNet(TINY), name="birds", version=version)
    save(tmp_path / "all" / "a", NASNet(TINY), name="ants")
    found = {name: cli._folder([tmp_path / "all"], name).name for name in ("", "birds", "birds@9", "ants")}
    assert found == {"": "10", "birds": "10", "birds@9": "9", "ants": "a"}
    with pytest.raises(ValueError, match=r"'birds@8' is unknown; choose from \['birds@10', 'birds@10-rc1', 'birds@9'"):
        cli._folder([tmp_path / "all"], "birds@8")


def test_classify_json_goes_on_after_a_bad_file(
    models: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
    bad.write_bytes(b"hello")
    arguments = ["classify", "--json", "--models", str(models), str(bad), str(missing), str(photo)]
    assert cli.main(arguments) == 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert "not an image" in first["error"] and second == {
        "image": str(missing),
        "error": "No such file or directory",
    }
    assert [each["label"] for each in third["predictions"]] == ["green", "blue", "red"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "cats"], "model 'cats' is unknown; choose from ['greens@1.2']"),
        (["--top-k", "0"], "top_k 0 must be at least 1"),
        (["--models", "/nowhere"], "models folder /nowhere does not exist"),
        (["--server", "127.0.0.1:1"], "no server answers at 127.0.0.1:1; start one with: asr-server serve"),
    ],
)
def test_errors_are_one_line(
    models: Path,
    photo: Path,
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vision_zoo.client.CONNECT_SECONDS", 0.2)
    assert cli.main(["classify", "--models", str(models), str(photo), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"error: {text}\n"


def test_list_shows_bundles_and_backbones(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--models", str(models), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["labels"]) for each in listed["bundles"]] == [("greens", list(COLOURS))]
    assert listed["backbones"]["nasnet-a-cifar"] == 3_346_538
    assert cli.main(["list", "--models", str(models)]) == 0
    text = capsys.readouterr().out
    assert "greens" in text and "3,346,538" in text and "timm/NAME" in text


@pytest.fixture
def address() -> Iterator[str]:
    """A server with the colour model, in a thread of its own."""
    found: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        vision = service.VisionService([Classifier(colour_bundle())])
        service.add_to_server(vision, server)
        found.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)
        vision.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    stop.set()
    thread.join()


def test_a_server_is_asked_in_one_stream(
    address: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, bad = tmp_path / "missing.jpg", tmp_path / "bad.jpg"
    bad.write_bytes(b"hello")
    arguments = ["classify", "--server", address, "--top-k", "1", str(photo), str(missing), str(bad), str(photo)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()] == [[f"{photo}:", "red"]] * 2
    assert f"error: {missing}: No such file" in captured.err and f"error: {bad}: these bytes" in captured.err


def test_register_says_why_a_server_takes_nothing(
    address: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["register", "--server", address, str(models / "greens")]) == 1
    assert "PERMISSION_DENIED: this server takes no bundles" in capsys.readouterr().err
    assert cli.main(["register", "--server", address, str(tmp_path)]) == 1
    assert "is no bundle: it has no bundle.json" in capsys.readouterr().err


# Evaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 red, 3 green and 1 blue picture."""
    root = tmp_path_factory.mktemp("data")
    for colour, count in (("red", 2), ("green", 3), ("blue", 1)):
        (root / colour).mkdir()
        for index in range(count):
            (root / colour / f"{index}.png").write_bytes(picture(colour))
    (root / "red" / "notes.txt").write_text("not an image")
    return root


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate_vision.add_arguments(parser)
    return parser.parse_args(given)


def test_evaluation_counts(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--bundle", str(models / "greens"), "--data", str(data), "--batch-size", "4", "--json"]
    evaluate_vision.run(arguments(*given))
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["top1"] == pytest.approx(50.0) and figures["top5"] == pytest.approx(100.0)
    assert figures["images"] == 6 and figures["images_per_second"] > 0
    assert figures["parameters"] == bundle.load(models / "greens").parameters


def test_evaluation_is_the_serving_path(data: Path) -> None:
    of = colour_bundle()
    found = evaluate_vision.samples(data, of.labels)
    assert [COLOURS[sample.target] for sample in found] == ["blue"] + ["green"] * 3 + ["red"] * 2
    assert evaluate_vision.evaluate(of, found, 4, 1, flip=False).top1 == 100.0


def test_evaluation_as_trained_compares_nothing(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_vision.run(arguments("--bundle", str(models / "greens"), "--data", str(data), "--json"))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["precision"], figures["agreement"]) == ("eager", None)


def test_evaluation_in_bf16_says_how_often_it_agrees(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that calls everything red in bf16: right and in agreement about the two reds of six."""

    class Red(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3)

    of = colour_bundle()
    monkeypatch.setattr(bundle, "load", lambda _: of)
    monkeypatch.setattr(precision, "for_serving", lambda _, side, wanted: (Red(), wanted))
    evaluate_vision.run(arguments("--bundle", str(data), "--data", str(data), "--precision", "bf16", "--json"))
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    assert figures["precision"] == "bf16" and "the first label is that of eager for 33.33 %" in printed[-2]
    assert figures["top1"] == figures["agreement"] == pytest.approx(100 / 3)


def test_flip_averages_the_mirror_image(tmp_path: Path) -> None:
    """A network that looks only at the left column is half right about a picture of two colours."""

    class Left(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 10 * images[:, :, :, 0].mean(2)

    image = Image.new("RGB", (8, 8), PIXELS["red"])
    image.paste(PIXELS["blue"], (4, 0, 8, 8))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 8, 8, 3).permute(0, 3, 1, 2)
    of = colour_bundle(model=Left())
    plain, mirrored = (evaluate_vision._probabilities(of, of.model, pixels, flip)[0] for flip in (False, True))
    assert plain[0] > 0.99 and mirrored[0] == pytest.approx(0.5, abs=0.01)
    assert mirrored[0] == pytest.approx(mirrored[2])


def test_evaluation_errors_name_the_rule(models: Path, data: Path, tmp_path: Path) -> None:
    greens = str(models / "greens")
    with pytest.raises(ValueError, match="bundle 'nothing' is neither a folder nor shipped"):
        evaluate_vision.run(arguments("--bundle", "nothing", "--data", str(data)))
    with pytest.raises(ValueError, match=r"data folder .* does not exist"):
        evaluate_vision.run(arguments("--bundle", greens, "--data", str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="holds no images"):
        evaluate_vision.run(arguments("--bundle", greens, "--data", str(tmp_path)))
    with pytest.raises(ValueError, match="must be at least 1"):
        evaluate_vision.run(arguments("--bundle", greens, "--data", str(data), "--batch-size", "0"))
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"folders \['cats'\] that the bundle has no label for"):
        evaluate_vision.run(arguments("--bundle", greens, "--data", str(tmp_path)))
    (tmp_path / "cats").rmdir()
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "bad.png").write_bytes(encoded(noise(9, 9), "PNG")[:100])
    with pytest.raises(ValueError, match=r"bad\.png: broken PNG"):
        evaluate_vision.run(arguments("--bundle", greens, "--data", str(tmp_path)))
