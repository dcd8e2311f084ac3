import json
from pathlib import Path

import pytest

from training import ablation, fit


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Calls of the other programs, which here leave what the real ones would."""
    called: list[tuple[str, ...]] = []

    def python(module: str, *arguments: str) -> str:
        called.append((module, *arguments))
        if module == "training.export":
            Path(arguments[arguments.index("--out") + 1]).mkdir(parents=True)
        without_noise = "no-noise" in " ".join(arguments)
        return "a table\n" + json.dumps({"wer": 42.5 if without_noise else 40.0, "cer": 20.0})

    monkeypatch.setattr(ablation, "_python", python)
    return called


def start(tmp_path: Path, *rows: str) -> int:
    options = ["--out", str(tmp_path), "--manifest", "clean.jsonl", "noisy.jsonl", "--rows", *rows]
    return ablation.main([*options, "--", "--epochs", "2"])


def test_a_row_is_the_same_training_without_its_subject(
    tmp_path: Path, programs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "full recipe", "no noise") == 0
    trainings = [call for call in programs if call[0] == "training.fit"]
    assert [call[4:] for call in trainings] == [
        ("--epochs", "2", "--quiet", "--resume"),
        ("--epochs", "2", "--noise-share", "0", "--quiet", "--resume"),
    ]
    shown = capsys.readouterr().out.splitlines()
    assert shown[-4:] == [
        "| | clean, WER % | clean, CER % | noisy, WER % | noisy, CER % |",
        "|---|---|---|---|---|",
        "| full recipe | 40.00 (+0.00) | 20.00 (+0.00) | 40.00 (+0.00) | 20.00 (+0.00) |",
        "| no noise | 42.50 (+2.50) | 20.00 (+0.00) | 42.50 (+2.50) | 20.00 (+0.00) |",
    ]


def test_rows_of_ones_own_follow_the_others(
    tmp_path: Path, programs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "full recipe", "--row", "more data", "--train a.jsonl 'b c.jsonl'") == 0
    trainings = [call for call in programs if call[0] == "training.fit"]
    assert trainings[1][4:] == ("--epochs", "2", "--train", "a.jsonl", "b c.jsonl", "--quiet", "--resume")
    assert trainings[1][3] == str(tmp_path / "more-data")
    assert capsys.readouterr().out.splitlines()[-1].startswith("| more data | 40.00 (+0.00)")


def test_what_is_finished_is_not_done_again(tmp_path: Path, programs: list[tuple[str, ...]]) -> None:
    start(tmp_path, "no noise")
    done = len(programs)
    start(tmp_path, "no noise")
    assert len(programs) == done == 4  # a training, an export and an evaluation of each manifest


def test_results_of_one_name_are_refused(
    tmp_path: Path, programs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    for given, reason in (
        (["--manifest", "x/dev.jsonl", "y/dev.jsonl"], "x/dev.jsonl and y/dev.jsonl would both be kept as dev"),
        (["--row", "no-noise", "--noise-share 0"], "no noise and no-noise would both be kept as no-noise"),
    ):
        with pytest.raises(SystemExit) as ended:
            start(tmp_path, "no noise", *given)
        assert ended.value.code == 2 and reason in capsys.readouterr().err
    assert not programs
    start(tmp_path, "no noise", "--manifest", "x/dev.jsonl")
    with pytest.raises(SystemExit):
        start(tmp_path, "no noise", "--manifest", "y/dev.jsonl")
    assert "rename a manifest, or remove that result" in capsys.readouterr().err


def test_unknown_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        start(tmp_path, "no music")
    assert ended.value.code == 2
    assert "rows ['no music'] are not known" in capsys.readouterr().err


def test_no_rows_are_an_error_and_only_own_ones_are_not(
    tmp_path: Path, programs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--row", "another seed", "--seed 2") == 0
    assert {call[3] for call in programs if call[0] == "training.fit"} == {str(tmp_path / "another-seed")}
    with pytest.raises(SystemExit) as ended:
        start(tmp_path)
    assert ended.value.code == 2
    assert "no rows: give names after --rows, or --row" in capsys.readouterr().err


def test_every_row_is_accepted_by_the_recipe(tmp_path: Path) -> None:
    files = ["--train", "t", "--validation", "v", "--out", str(tmp_path)]
    for options in ablation.ROWS.values():
        fit.build_parser().parse_args(["speech", *files, *options])
