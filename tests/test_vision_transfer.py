"""Transfer: what freezes and when, rates by depth, initial weights, mixing, averages, photographs, the command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from asr_server.options import ServerOptions
from tests.speech_fixtures import serving
from training.fit import main
from training.vision_files import ImageFiles
from training.vision_finetune import FinetuneOptions, layer_depths, parameter_groups, prepare_epoch
from training.vision_initial import Initial, load_initial, read_initial, read_published
from training.vision_module import VisionOptions, mix
from training.vision_photos import PhotoOptions, load_photos, shrink
from vision_zoo import bundle, zoo
from vision_zoo.nasnet import CIFAR, MOBILE, NASNet
from vision_zoo.torch_names import torch_names
from vision_zoo.transforms import Preprocessing

CONFIG = replace(CIFAR, cells=1, filters=48, stem_stride=2, num_classes=3, auxiliary=False)
HEAD = {"classifier.weight", "classifier.bias"}


def learning(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Freezing


def test_gradual_tuning_begins_with_the_head() -> None:
    network, options = NASNet(CONFIG), FinetuneOptions("gradual", unfreeze_after=2)
    for epoch, frozen in ((0, True), (1, True), (2, False), (1, True)):
        prepare_epoch(network, options, epoch)
        assert learning(network) == (HEAD if frozen else {name for name, _ in network.named_parameters()})
        assert network.cells[0].training is not frozen and network.classifier.training


def test_a_frozen_backbone_of_timm_rests() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare_epoch(network, FinetuneOptions("head"), 7)
    network(torch.rand(4, 3, 32, 32)).sum().backward()
    assert learning(network) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_batch_norm_keeps_its_statistics_and_learns() -> None:
    network = NASNet(CONFIG)
    prepare_epoch(network, FinetuneOptions(freeze_batch_norm=True), 0)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(4, 3, 32, 32)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert len(learning(network)) == len(list(network.parameters()))
    prepare_epoch(network, FinetuneOptions(), 0)
    network(torch.rand(4, 3, 32, 32))
    assert not all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("wrong", [{"tune": "some"}, {"layer_decay": 0.0}, {"unfreeze_after": 0}])
def test_wrong_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FinetuneOptions(**wrong)  # type: ignore[arg-type]


# Rates by depth


def test_rates_fall_towards_the_input() -> None:
    network = NASNet(CONFIG)
    depths = layer_depths(network)
    assert depths["stem.0.weight"] == 0 and depths["classifier.weight"] == len(network.cells) + 1
    assert {depths[name] for name in depths if name.startswith("cells.2.")} == {3}
    groups = parameter_groups(network, 0.1, 0.01, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rate.keys() == {id(parameter) for parameter in network.parameters()}
    assert rate[id(network.classifier.bias)] == 0.1
    assert rate[id(network.stem[0].weight)] == pytest.approx(0.1 * 0.5 ** (len(network.cells) + 1))  # type: ignore[index]
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_models_of_timm_say_their_order() -> None:
    network: Any = timm.create_model("test_vit", num_classes=3)
    groups = parameter_groups(network, 1.0, 0.01, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    first, second = network.blocks[0].attn.qkv.weight, network.blocks[1].attn.qkv.weight
    assert rate[id(first)] == pytest.approx(0.5 * rate[id(second)]) and rate[id(network.head.weight)] == 1.0
    unmoved = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert id(network.pos_embed) in unmoved, "timm excludes it from weight decay"
    assert len(parameter_groups(network, 1.0, 0.01, layer_decay=1.0)) == 2
    with pytest.raises(ValueError, match="--layer-decay: Linear"):
        layer_depths(nn.Linear(2, 2))


# Initial weights


def saved(tmp_path: Path) -> bundle.VisionBundle:
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=48)
    return bundle.save(
        tmp_path / "old",
        name="old",
        version="1",
        model=NASNet(CONFIG),
        labels=("x", "y", "z"),
        preprocessing=preprocessing,
        card="",
    )


def test_a_bundle_of_other_labels_lends_its_backbone(tmp_path: Path) -> None:
    old = saved(tmp_path)
    initial = read_initial(str(tmp_path / "old"))
    assert initial.architecture == zoo.NASNetArchitecture(CONFIG) and initial.preprocessing == Preprocessing(size=48)
    network = NASNet(replace(CONFIG, num_classes=2))
    assert set(load_initial(network, initial, ("a", "b"))) == HEAD
    theirs = old.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items() if name not in HEAD)
    same = NASNet(CONFIG)
    assert load_initial(same, initial, ("x", "y", "z")) == []
    assert torch.equal(same.state_dict()["classifier.weight"], theirs["classifier.weight"])
    assert set(load_initial(NASNet(CONFIG), initial, ("x", "z", "y"))) == HEAD, "as many labels, but others"


def test_shipped_bundles_lend_theirs_by_name() -> None:
    initial = read_initial("nasnet-a-cifar10")
    assert initial.architecture is not None and initial.labels is not None and "frog" in initial.labels


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--initial file: weights do not fit"):
        load_initial(NASNet(replace(CONFIG, cells=2)), Initial("file", NASNet(CONFIG).state_dict()), ("a", "b", "c"))


def test_a_missing_auxiliary_head_starts_afresh(tmp_path: Path) -> None:
    network = NASNet(replace(CONFIG, auxiliary=True, input_size=64))
    afresh = load_initial(network, Initial("file", NASNet(CONFIG).state_dict()), ("a", "b", "c"))
    assert afresh and all(name.startswith("auxiliary.") for name in afresh)


def test_weights_of_another_layout_are_taken_over(tmp_path: Path) -> None:
    """Those of timm's and Cadene's NASNets, here by names alone; 1001 classes are 1000 and a background."""
    config = replace(MOBILE, cells=1, filters=96, num_classes=1001, stem_filters=8, auxiliary=False)
    theirs = NASNet(config)
    names = torch_names(theirs, ["cell_0.", "cell_1.", "cell_2."])
    torch.save({names[name]: value for name, value in theirs.state_dict().items()}, tmp_path / "theirs.pth")
    initial = read_initial(str(tmp_path / "theirs.pth"))
    assert "conv0.conv.weight" in initial.weights
    network, labels = NASNet(replace(config, num_classes=3)), ("a", "b", "c")
    assert set(load_initial(network, initial, labels)) == HEAD
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.state_dict().items() if name not in HEAD)
    whole = NASNet(replace(config, num_classes=1000))
    assert load_initial(whole, initial, tuple(map(str, range(1000)))) == []
    assert torch.equal(whole.state_dict()["classifier.bias"], theirs.state_dict()["classifier.bias"][1:])


def test_a_head_of_timm_is_taken_whole_or_not_at_all() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    source = {name: value + 1 for name, value in network.state_dict().items()}
    assert load_initial(network, Initial("file", source), ("a", "b", "c")) == []
    assert torch.equal(network.state_dict()["fc.bias"], source["fc.bias"])
    other = {name: value + 1 for name, value in source.items() if name != "fc.bias"}
    assert load_initial(network, Initial("file", other), ("a", "b", "c")) == ["fc.bias", "fc.weight"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, (source if name.startswith("fc.") else other)[name])


def test_published_weights_are_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nasnet-a-cifar has no published weights; choose from \['nasnet-a-large'"):
        read_published("nasnet-a-cifar")
    torch.save(NASNet(CONFIG).state_dict(), tmp_path / "published.pth")
    monkeypatch.setattr("training.vision_initial.download", lambda published: tmp_path / "published.pth")
    assert load_initial(NASNet(CONFIG), read_published("nasnet-a-mobile"), ("a", "b", "c")) == []


# Mixing


@pytest.mark.parametrize("options", [VisionOptions(mixup=1.0), VisionOptions(cutmix=1.0)])
def test_targets_are_mixed_as_the_images_are(options: VisionOptions) -> None:
    """Image i is all ones in channel i, so the mean of a channel is the share of its image."""
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16).contiguous()
    torch.manual_seed(1)
    mixed, targets = mix(images, torch.arange(3), options, 3)
    assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)
    assert 0 < float(targets[0].amax()) < 1
    torch.manual_seed(1)
    assert torch.equal(mix(images, torch.arange(3), options, 3)[0], mixed)


def test_without_mixing_everything_stays() -> None:
    images, targets = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    assert mix(images, targets, VisionOptions(), 2) == (images, targets)


# Photographs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 photographs of 60 x 48: bright above dark, and the other way round."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, rows in (("dark floor", slice(0, 24)), ("dark sky", slice(24, 48))):
        (root / name).mkdir()
        for index in range(12):
            pixels = random.integers(0, 60, (48, 60, 3), dtype=np.uint8)
            pixels[rows] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def listed(root: Path) -> ImageFiles:
    paths = tuple(sorted(root.rglob("*.png")))
    return ImageFiles(paths, tuple(int("sky" in path.parent.name) for path in paths), ("dark floor", "dark sky"))


def test_what_is_drawn_depends_on_seed_epoch_and_image_only(pictures: Path) -> None:
    photos = load_photos(listed(pictures), Preprocessing(size=32), PhotoOptions(), seed=1)
    state = torch.random.get_rng_state()
    images, targets = photos.read(3, torch.tensor([5, 20]))
    assert torch.equal(torch.random.get_rng_state(), state), "the step's generator is left alone"
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8 and targets.tolist() == [0, 1]
    assert torch.equal(photos.read(3, torch.tensor([20]))[0][0], images[1])
    assert not torch.equal(photos.read(4, torch.tensor([20]))[0][0], images[1])
    other = load_photos(listed(pictures), Preprocessing(size=32), PhotoOptions(), seed=2)
    assert not torch.equal(other.read(3, torch.tensor([20]))[0][0], images[1])


def test_photographs_too_many_to_keep_are_read_each_time(pictures: Path) -> None:
    kept = load_photos(listed(pictures), Preprocessing(size=32), PhotoOptions(), seed=1)
    unkept = load_photos(listed(pictures), Preprocessing(size=32), PhotoOptions(), seed=1, limit=1000)
    assert kept.kept and not unkept.kept
    indices = torch.tensor([3, 17])
    assert torch.equal(kept.read(2, indices)[0], unkept.read(2, indices)[0])


READERS = """
import sys, torch
from pathlib import Path
from training.vision_data import VisionData, load_images
from training.vision_files import read_files
from training.vision_photos import PhotoOptions, load_photos
from vision_zoo.transforms import Preprocessing

files, size = read_files(Path(sys.argv[1])), Preprocessing(size=32)
photos = load_photos(files, size, PhotoOptions(), seed=1)
filed = load_images(files, size, limit=0)
for train, held in ((photos, load_images(files, size)), (filed, filed)):
    found = []
    for workers in (0, 2):
        data = VisionData(train, held, 4, seed=1, workers=workers)
        loader = data.train_dataloader()
        batches = iter(loader)  # as Lightning does, before it knows at which epoch a resumed run is
        loader.sampler.set_epoch(5)
        found.append(torch.cat([images for of in (batches, data.val_dataloader()) for images, _ in of]))
    assert torch.equal(*found) and len(found[0]) == 48
"""


def test_two_readers_give_the_same_batches(pictures: Path) -> None:
    # In a process of its own: readers are forked, which one that has run servers and compiled networks cannot take.
    subprocess.run([sys.executable, "-c", READERS, str(pictures)], check=True, timeout=600)


def test_kept_photographs_have_room_for_crops() -> None:
    assert shrink(torch.zeros(3, 480, 640, dtype=torch.uint8), 32).shape == (3, 48, 64)
    assert shrink(torch.zeros(3, 40, 20, dtype=torch.uint8), 32).shape == (3, 40, 20), "nothing is enlarged"
    assert shrink(torch.zeros(3, 100, 1000, dtype=torch.uint8), 32).shape == (3, 48, 144), "ends are cut off"
    plain = PhotoOptions(crop_area=1.0, flip=False, colour=0.0).transform(8)
    assert torch.equal(plain(torch.full((3, 8, 8), 7, dtype=torch.uint8)), torch.full((3, 8, 8), 7, dtype=torch.uint8))


# The command


def fit(pictures: Path, out: Path, *more: str) -> int:
    common = ["--out", str(out), "--batch-size", "8", "--validation", "8", "--quiet", "--accelerator", "cpu"]
    return main(["vision", "--data", str(pictures), *common, *more])


def test_one_command_transfers_calibrates_and_reports(pictures: Path, tmp_path: Path) -> None:
    saved(tmp_path)
    out = tmp_path / "run"
    given = ["--initial", str(tmp_path / "old"), "--epochs", "4", "--learning-rate", "0.01", "--name", "floors"]
    assert fit(pictures, out, *given, "--ema", "0.9", "--mixup", "0.2", "--class-weights", "balanced", "--report") == 0
    made = bundle.load(out / "bundle")
    assert made.labels == ("dark floor", "dark sky") and made.name == "floors"
    assert made.preprocessing.size == 48 and made.temperature != 1.0 and made.weights_sha256
    with (out / "validation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["images"] == 8 and report["temperature"] == made.temperature
    assert report["calibration"]["after"]["log_loss"] <= report["calibration"]["before"]["log_loss"]
    assert "data:image/png;base64," in (out / "report" / "report.html").read_text()


def test_a_finished_bundle_is_registered(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or stays where it is, with a status and a text that say so; going on with the run tries again."""
    monkeypatch.setattr("vision_zoo.client.CONNECT_SECONDS", 0.2)
    out, given = tmp_path / "run", ["--initial", str(saved(tmp_path).folder), "--epochs", "1", "--tune", "head"]
    with pytest.raises(SystemExit) as stop:
        fit(pictures, out, *given, "--name", "floors", "--register", "127.0.0.1:1")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and bundle.load(out / "bundle").name == "floors"
    assert f"{out / 'bundle'} is finished but not registered: no server answers at 127.0.0.1:1" in said
    assert f"to try again: vision-zoo register --server 127.0.0.1:1 {out / 'bundle'}" in said
    (tmp_path / "registry").mkdir()
    models = (tmp_path / "registry",)
    with serving(ServerOptions(port=0, models=models, registry=models[0], drain_seconds=0.5)) as server:
        assert fit(pictures, out, *given, "--name", "floors", "--register", server.address, "--resume") == 0
        assert f"{server.address} serves floors@1" in capsys.readouterr().out
    assert bundle.load(tmp_path / "registry" / "floors@1").labels == ("dark floor", "dark sky")


def test_a_linear_probe_leaves_the_backbone_alone(pictures: Path, tmp_path: Path) -> None:
    old = saved(tmp_path).model.state_dict()
    assert fit(pictures, tmp_path / "run", "--initial", str(tmp_path / "old"), "--epochs", "1", "--tune", "head") == 0
    new = bundle.load(tmp_path / "run" / "bundle").model.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in new.items() if name not in HEAD)


def test_a_resumed_transfer_ends_with_the_same_weights(pictures: Path, tmp_path: Path) -> None:
    """Across the epoch in which everything unfreezes, with averaged weights and mixing."""
    given = ["--initial", str(saved(tmp_path).folder), "--ema", "0.9", "--mixup", "0.2", "--cutmix", "1"]
    given += ["--unfreeze-after", "2"]
    assert fit(pictures, tmp_path / "whole", *given, "--epochs", "3") == 0
    torch.manual_seed(5)

    class StopError(Exception):
        pass

    def stop(callback: object, trainer: object, module: object) -> None:
        if trainer.current_epoch == 1:  # type: ignore[attr-defined]
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.StepSeed.on_train_epoch_start", stop, raising=False)
        with pytest.raises(StopError):
            fit(pictures, tmp_path / "cut", *given, "--epochs", "3")
    assert fit(pictures, tmp_path / "cut", *given, "--epochs", "3", "--resume") == 0
    whole, cut = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    for part in ("state_dict", "trained"):
        assert whole[part].keys() == cut[part].keys()
        assert all(torch.equal(value, cut[part][name]) for name, value in whole[part].items()), part
    assert any(not torch.equal(value, whole["trained"][name]) for name, value in whole["state_dict"].items())


def test_a_learning_rate_is_found(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.lr_finder.STEPS", 20)
    assert fit(pictures, tmp_path / "run", "--backbone", "timm/test_resnet", "--input-size", "48", "--find-lr") == 0
    assert "--learning-rate" in capsys.readouterr().out
    with (tmp_path / "run" / "lr.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert len(rates) > 10 and rates == sorted(rates)
    assert not (tmp_path / "run" / "best.ckpt").exists()


def test_backbone_and_bundle_are_not_both_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(pictures, tmp_path / "run", "--initial", str(saved(tmp_path).folder), "--backbone", "nasnet-a-1@48")
    assert "name only one" in capsys.readouterr().err
