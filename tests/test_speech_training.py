import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from asr_server import bundle
from asr_server.alphabet import Alphabet
from asr_server.features import FeatureConfig
from asr_server.model import DeepSpeechConfig
from tests.tones import write_tones
from training import export, fit
from training.speech_data import Batch
from training.speech_module import OptimiserOptions, SpeechModule, ctc, flat, learning_rate_factor

NETWORK = shlex.split(
    "--width 24 --context 1 --dropout 0.1 --normalisation layer --chunk 8 --right 4 --batch-utterances 4"
)
QUIET = shlex.split("--batch-utterances 4 --quiet --accelerator cpu --threads 1")


def command(manifest: Path, out: Path, *more: str) -> list[str]:
    files = ["--train", str(manifest), "--validation", str(manifest), "--out", str(out)]
    return ["speech", *files, *NETWORK, *QUIET, *more]


def module(dropout: float = 0.0) -> SpeechModule:
    torch.manual_seed(0)
    config = DeepSpeechConfig(features=81, width=12, context=1, dropout=dropout)
    return SpeechModule(FeatureConfig(), config, Alphabet(), OptimiserOptions())


def four() -> Batch:
    generator = torch.Generator().manual_seed(1)
    spectra = torch.randn(4, 30, 81, generator=generator)
    targets = torch.tensor([[3, 4, 5], [4, 4, 0], [6, 0, 0], [7, 8, 3]])
    return Batch(spectra, torch.tensor([30, 24, 17, 30]), targets, torch.tensor([3, 2, 1, 3]))


def losses(run: Path) -> list[float]:
    """Of the validations, in order."""
    rows = (run / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_loss")
    return [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]


def gradients(network: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def one_of_two_processes(rank: int, rendezvous: Path) -> list[Tensor]:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    network = DistributedDataParallel(module())
    batch = Batch(*(field[rank * 2 : rank * 2 + 2] for field in four()))
    log_probs, frames = network(batch, None)
    ctc(log_probs, frames, batch).backward()
    shared = gradients(network)
    distributed.destroy_process_group()
    return shared


def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=one_of_two_processes, args=(1, tmp_path / "meet"))
    other.start()
    shared = one_of_two_processes(0, tmp_path / "meet")
    other.join()
    assert other.exitcode == 0
    single = module()
    log_probs, frames = single(four(), None)
    ctc(log_probs, frames, four()).backward()
    expected = gradients(single)
    assert len(shared) == len(expected) > 10
    for ours, theirs in zip(shared, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_flat_start_s_loss_by_hand() -> None:
    log_probs = torch.log_softmax(torch.randn(2, 6, 29, generator=torch.Generator().manual_seed(0)), -1)
    spectra = torch.zeros(2, 12, 81)
    energies = torch.tensor([[0.0, 9, 9, 9, 0, 9], [8, 8, 1, 8, 99, 99]])  # of the frames that the network keeps
    spectra[:, ::2, -1] = energies
    spectra[0, 6, -1] = torch.nan  # masked: it counts as quiet
    batch = Batch(spectra, torch.tensor([12, 8]), torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([3, 2]))
    wanted = [[0, 3, 4, 0, 0, 5], [6, 6, 0, 7]]
    losses = [
        -sum(log_probs[row, n, symbol] for n, symbol in enumerate(symbols)) / len(symbols)
        for row, symbols in enumerate(wanted)
    ]
    torch.testing.assert_close(flat(log_probs, torch.tensor([6, 4]), batch), (losses[0] + losses[1]) / 2)


def test_masked_frames_are_the_mean_of_the_training_data() -> None:
    network = module()
    network.features.set_statistics(torch.full((81,), 3.0), torch.full((81,), 2.0))
    batch = four()
    missing, mean = batch.spectra.clone(), batch.spectra.clone()
    missing[0, 4:8], mean[0, 4:8] = torch.nan, 3.0
    found = network(batch._replace(spectra=missing), None)[0]
    assert torch.equal(found, network(batch._replace(spectra=mean), None)[0])


def test_sgd_is_annealed_every_epoch_and_has_nesterov_momentum() -> None:
    network = module()
    network.optimiser = OptimiserOptions("sgd", rate=0.1, annealing=0.5)
    (sgd,), (schedule,) = network.configure_optimizers()
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.99
    sgd.step()
    schedule.step()
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match="Select one of"):
        replace(network.optimiser, name="lion")


@pytest.mark.parametrize("optimiser", [("adamw", "5e-3"), ("sgd", "1e-3")])
def test_training_learns_and_exports(
    optimiser: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_tones(tmp_path / "data", 16)
    name, rate = optimiser
    options = ["--optimiser", name, "--learning-rate", rate, "--momentum", "0.9", "--warmup-steps", "5"]
    assert fit.main(command(manifest, tmp_path / "run", "--epochs", "6", "--chunked-share", "0.5", *options)) == 0
    assert "said" in capsys.readouterr().out  # sample transcripts
    validated = losses(tmp_path / "run")
    assert len(validated) == 6
    assert validated[-1] < 0.8 * validated[0]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    out = tmp_path / "bundle"
    assert (
        export.main(["speech", "--checkpoint", str(tmp_path / "run" / "last.ckpt"), "--name", "t", "--out", str(out)])
        == 0
    )
    trained = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    loaded = bundle.load(out)
    for key, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{key}"])
    assert torch.equal(loaded.features.mean, trained["features.mean"])
    assert loaded.model.config.chunk == 8


def test_a_killed_run_resumes_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 16)
    more = ["--epochs", "5", "--chunked-share", "0.5", "--warmup-steps", "3", "--flat-start-steps", "6"]
    fit.main(command(manifest, tmp_path / "whole", *more))
    killed = command(manifest, tmp_path / "killed", *more)
    run = [sys.executable, "-m", "training.fit", *killed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint, deadline = tmp_path / "killed" / "last.ckpt", time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([*run, "--resume"], env=environment, check=True, stdout=subprocess.DEVNULL)
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "killed"))
    assert whole["global_step"] == resumed["global_step"] == 5 * 4
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key


def test_a_run_whose_data_is_prepared_by_workers_resumes_with_the_next_epoch_s_batches(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 16)
    more = ["--warmup-steps", "3", "--hold", "1"]  # the rate does not depend on how many epochs there will be
    fit.main(command(manifest, tmp_path / "whole", *more, "--epochs", "3"))
    for epochs in ("1", "3"):
        fit.main(command(manifest, tmp_path / "cut", *more, "--epochs", epochs, "--workers", "1", "--resume"))
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert whole["global_step"] == resumed["global_step"] == 3 * 4
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key


def test_recurrent_matrices_move_slower_and_only_matrices_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = module()
    network.optimiser = OptimiserOptions(rate=0.2, recurrent_rate=0.25, weight_decay=0.5)
    monkeypatch.setattr(network, "_trainer", SimpleNamespace(estimated_stepping_batches=100, precision="32-true"))
    groups = network.configure_optimizers()["optimizer"].param_groups
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        rate = 0.05 if name in ("model.forward_weight", "model.backward_weight") else 0.2
        assert found[id(parameter)] == (rate, 0.5 if parameter.ndim == 2 else 0.0), name


def test_the_rate_rises_holds_and_falls() -> None:
    options = OptimiserOptions(warmup_steps=4, hold=0.5)
    factors = [learning_rate_factor(step, options, 24) for step in range(25)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:15] == [1.0] * 11
    assert factors[19] == pytest.approx(0.5)
    assert factors[24] == 0.0
    assert learning_rate_factor(24, OptimiserOptions(warmup_steps=4, hold=1), 24) == 1.0
    with pytest.raises(ValueError, match=r"hold is 1\.5"):
        OptimiserOptions(hold=1.5)


def test_two_processes_that_split_utterances_train_as_one(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 9)  # of whose three batches one process validates two
    plain = ["--epochs", "2", "--dropout", "0", "--no-augmentation", "--chunked-share", "0.5"]
    assert fit.main(command(manifest, tmp_path / "one", *plain)) == 0
    split = [*plain, "--model-parallel", "--devices", "2", "--strategy", "ddp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = [*torchrun, "-m", "training.fit", *command(manifest, tmp_path / "two", *split)]
    subprocess.run(run, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 6
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-3, atol=1e-4)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_two_nodes_train_as_one_node_with_two_processes(tmp_path: Path) -> None:
    """docs/training.md, "Several machines", with both on this one."""
    manifest = write_tones(tmp_path / "data", 8)
    plain = ["--epochs", "2", "--dropout", "0", "--no-augmentation", "--strategy", "ddp", "--accelerator", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = ["-m", "training.fit", *command(manifest, tmp_path / "one", *plain, "--devices", "2")]
    alone = subprocess.Popen([*torchrun, "--standalone", "--nproc-per-node", "2", *one], env=environment)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    two = ["-m", "training.fit", *command(manifest, tmp_path / "two", *plain, "--nodes", "2", "--devices", "1")]
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    nodes = [subprocess.Popen([*torchrun, *where, "--node-rank", rank, *two], env=environment) for rank in "01"]
    try:
        assert [run.wait(timeout=240) for run in (alone, *nodes)] == [0, 0, 0]
    finally:
        for run in (alone, *nodes):
            run.kill()
    single, several = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert single["global_step"] == several["global_step"] == 2  # two of the four batches a step, two epochs
    for name, tensor in single["state_dict"].items():
        torch.testing.assert_close(several["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_more_layers_begin_with_the_weights_of_fewer(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_tones(tmp_path / "data", 4)
    fit.main(command(manifest, tmp_path / "one", "--epochs", "1"))
    source = tmp_path / "one" / "last.ckpt"
    if kind == "bundle":
        source = tmp_path / "bundle"
        checkpoint = str(tmp_path / "one" / "last.ckpt")
        export.main(["speech", "--checkpoint", checkpoint, "--name", "t", "--out", str(source)])
    deeper = ["--initial", str(source), "--recurrent-layers", "3", "--epochs", "1", "--learning-rate", "0"]
    assert fit.main(command(manifest, tmp_path / "three", *deeper, "--weight-decay", "0")) == 0
    assert "starting afresh: deeper recurrent layers 0, 1" in capsys.readouterr().out
    one, three = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "three")
    )
    assert len(three) > len(one)
    assert all(torch.equal(tensor, three[name]) for name, tensor in one.items())
    with pytest.raises(SystemExit):
        fit.main(command(manifest, tmp_path / "wide", *deeper[:2], "--width", "32"))
    assert "another network" in capsys.readouterr().err


def test_gated_layers_are_added_without_a_change_of_what_is_said(tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "data", 4)
    fit.main(command(manifest, tmp_path / "two", "--cell", "gated", "--recurrent-layers", "2", "--epochs", "1"))
    source = tmp_path / "two" / "last.ckpt"
    deeper = ["--initial", str(source), "--cell", "gated", "--recurrent-layers", "3", "--learning-rate", "0"]
    fit.main(command(manifest, tmp_path / "three", *deeper, "--weight-decay", "0", "--epochs", "1"))
    spectra, frames = torch.randn(2, 30, 81), torch.tensor([30, 21])
    (_, before, _), (_, after, _) = (export.read_checkpoint(tmp_path / name / "last.ckpt") for name in ("two", "three"))
    assert (before.config.recurrent_layers, after.config.recurrent_layers) == (2, 3)
    torch.testing.assert_close(after(spectra, frames), before(spectra, frames))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--chunked-share", "0.5", "--chunk", "0"], "chunk of 0"),
        (["--model-parallel", "--cell", "gated"], "--model-parallel splits the cell 'clipped-relu' only"),
        (["--longest", "0.01"], "none of the 4 training utterances"),
        (["--validation", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--epochs", "-1"], "--epochs is -1: at least 1"),
        (["--initial", "empty.ckpt"], "--initial empty.ckpt: not a checkpoint of training.fit speech"),
        (["--initial", "model.safetensors"], "--initial model.safetensors: not a checkpoint of training.fit speech"),
    ],
)
def test_errors_are_one_line(
    more: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = write_tones(tmp_path / "data", 4)
    monkeypatch.chdir(tmp_path)
    Path("empty.ckpt").touch()
    save_file({"weight": torch.zeros(1)}, "model.safetensors")
    with pytest.raises(SystemExit) as exit_code:
        fit.main(command(manifest, tmp_path / "run", *more))
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_run_is_resumed_with_its_own_network_from_a_whole_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, last = write_tones(tmp_path / "data", 4), tmp_path / "run" / "last.ckpt"
    fit.main(command(manifest, last.parent, "--epochs", "1"))
    with pytest.raises(SystemExit):
        fit.main(command(manifest, last.parent, "--epochs", "2", "--resume", "--width", "32"))
    assert "is of another network: its model." in capsys.readouterr().err
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(SystemExit):
        fit.main(command(manifest, last.parent, "--epochs", "2", "--resume"))
    assert "last.ckpt is cut off or no checkpoint" in capsys.readouterr().err


def test_several_checkpoints_become_their_mean(tmp_path: Path) -> None:
    values, paths = (1.0, 2.0, 6.0), []
    for value in values:
        network = module()
        for parameter in network.parameters():
            parameter.data.fill_(value)
        paths.append(tmp_path / f"{value}.ckpt")
        torch.save({"hyper_parameters": dict(network.hparams), "state_dict": network.state_dict()}, paths[-1])
    _, model, _ = export.average(paths)
    for parameter in model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 3.0))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"nothing", b""):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(SystemExit):
            export.main(
                ["speech", "--checkpoint", str(tmp_path / "x.ckpt"), "--name", "t", "--out", str(tmp_path / "o")]
            )
        assert "x.ckpt: not a checkpoint of training.fit speech" in capsys.readouterr().err
