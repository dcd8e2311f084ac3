"""The benchmarks of training: that what they compare is equal, their sums by hand, and that they run."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ddp_scaling, recurrence
from benchmarks.ddp_scaling import Kind
from benchmarks.recurrence import Row, Size


def test_ours_and_torch_s_layer_compute_the_same() -> None:
    ours, rnn, inputs = recurrence.pair(Size(7, 3, 5), "cpu")
    assert isinstance(ours, recurrence.Ours)
    torch.testing.assert_close(ours(inputs), rnn(inputs))
    assert 0 < ours(inputs).max() < recurrence.CLIP  # the clip, which nn.RNN has not, plays no part
    gradients = [torch.autograd.grad(layer(inputs).square().sum(), inputs)[0] for layer in (ours, rnn)]
    torch.testing.assert_close(*gradients)


def test_the_ratio_is_of_forward_and_backward_together() -> None:
    assert Row(Size(1, 1, 1), "fp32", 1.0, 5.0, 2.0, 2.0).ratio == 1.5


def test_the_recurrence_s_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--frames", "2", "--batch", "1", "2", "--hidden", "4", "--repeats", "1", "--threads", "1", "--json"]
    threads = torch.get_num_threads()
    try:
        recurrence.main(options)
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = recurrence.arithmetics("cpu")
    assert [(row["batch"], row["arithmetic"]) for row in found["rows"]] == [(b, kind) for b in (1, 2) for kind in kinds]
    assert found["largest_ratio"]["fp32"] == max(row["ratio"] for row in found["rows"] if row["arithmetic"] == "fp32")


@pytest.mark.parametrize(
    ("options", "text"), [(["--repeats", "0"], "0 is too small"), (["--device", "abacus"], "--device abacus")]
)
def test_wrong_options_are_refused(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recurrence.main(options)
    assert text in capsys.readouterr().err


def test_scaling_is_measured_from_the_smallest_run() -> None:
    rates = {Kind(2, 1): 3.0, Kind(1, 1): 2.0, Kind(1, 2): 2.5}
    assert ddp_scaling.scaling(rates) == {Kind(2, 1): 1.5, Kind(1, 1): 1.0, Kind(1, 2): 1.25}


def test_a_run_of_one_process_is_timed(tmp_path: Path) -> None:
    sizes = ["--width", "8", "--seconds", "0.5", "--batch", "2", "--steps", "2"]
    threads = torch.get_num_threads()
    try:
        ddp_scaling.main([*sizes, "--threads", "1", "--of", "1", "--result", str(tmp_path / "seconds")])
    finally:
        torch.set_num_threads(threads)
    assert float((tmp_path / "seconds").read_text()) > 0
