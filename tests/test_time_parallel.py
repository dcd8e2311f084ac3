"""Utterances split in time over ranks against one process that has them whole: real gloo processes on this machine."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from asr_server.model import Chunking, DeepSpeech, DeepSpeechConfig
from training.time_parallel import Pair, data_rank_and_world, mid_point, pair_up, split_forward

RANKS = 4
CHUNKS = Chunking(3, 2)


class Batch(NamedTuple):
    """As training.speech_data has it; importing that takes longer than these tests."""

    spectra: Tensor
    frames: Tensor
    targets: Tensor
    symbols: Tensor


class Result(NamedTuple):
    log_probs: list[Tensor]
    losses: list[Tensor]
    gradients: list[Tensor]  # of the first step
    weights: list[Tensor]  # after the last


class Job(NamedTuple):
    """Two steps of training on batches of so many frames."""

    stride: int
    chunking: Chunking | None
    frames: int
    layers: int = 1


class Split(nn.Module):
    """A network that is called as the whole one is."""

    def __init__(self, network: DeepSpeech, pair: Pair) -> None:
        super().__init__()
        self.network, self.pair = network, pair

    def forward(self, features: Tensor, lengths: Tensor, chunking: Chunking | None) -> tuple[Tensor, Tensor]:
        return split_forward(self.network, features, lengths, self.pair, chunking)


def network(job: Job) -> DeepSpeech:
    torch.manual_seed(0)
    config = DeepSpeechConfig(5, width=12, context=2, stride=job.stride, dropout=0.0, recurrent_layers=job.layers)
    return DeepSpeech(config)


def batch(seed: int, frames: int) -> Batch:
    """Three utterances: one as long as the batch, one that ends before the middle, one that ends behind it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([frames, max(1, frames // 3), max(1, 3 * frames // 4)])
    spectra = torch.randn(3, frames, 5, generator=generator)
    return Batch(spectra, lengths, torch.tensor([[3, 4], [5, 0], [6, 6]]), torch.tensor([2, 1, 2]))


def train(called: nn.Module, job: Job, batches: list[list[Batch]]) -> Result:
    """A step for each list of batches, on the mean of their losses."""
    result = Result([], [], [], [])
    optimiser = torch.optim.SGD(called.parameters(), 0.02, momentum=0.9, nesterov=True)
    for step in batches:
        optimiser.zero_grad()
        for part in step:
            log_probs, frames = called(part.spectra, part.frames, job.chunking)
            scores = log_probs.transpose(0, 1)
            loss = functional.ctc_loss(scores, part.targets, frames, part.symbols, zero_infinity=True)
            (loss / len(step)).backward()
            result.log_probs.append(log_probs.detach())
            result.losses.append(loss.detach())
        if not result.gradients:
            result.gradients.extend(p.grad.clone() for p in called.parameters() if p.grad is not None)
        optimiser.step()
    result.weights.extend(p.detach().clone() for p in called.parameters())
    return result


def steps(job: Job, shares: int) -> list[list[Batch]]:
    return [[batch(10 * step + share, job.frames) for share in range(shares)] for step in range(2)]


def one_of(rank: int, world: int, meet: Path, jobs: list[Job]) -> list[Result]:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=world, timeout=timedelta(minutes=2))
    share, shares = data_rank_and_world(rank, world)
    pair = pair_up()
    results = []
    for job in jobs:
        called = DistributedDataParallel(Split(network(job), pair))
        results.append(train(called, job, [[step[share]] for step in steps(job, shares)]))
    distributed.destroy_process_group()
    return results


Spread = Callable[[int, list[Job]], list[list[Result]]]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    """Runs jobs on so many ranks: job by job the ranks' results. A fork server imports torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_time_parallel"])
    folder, number = tmp_path_factory.mktemp("meet"), count()
    with ProcessPoolExecutor(RANKS, context) as pool:

        def run(world: int, jobs: list[Job]) -> list[list[Result]]:
            meet = folder / str(next(number))
            ranks = [pool.submit(one_of, rank, world, meet, jobs) for rank in range(world)]
            wait(ranks, return_when=FIRST_EXCEPTION)  # the others wait for the one that failed
            failed = [rank for rank in ranks if rank.done() and rank.exception()]
            by_rank = [rank.result() for rank in failed or ranks]
            return [list(results) for results in zip(*by_rank, strict=True)]

        yield run


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        # Two steps through clipped ReLUs enlarge rounding; a share of the largest number is what float32 can promise.
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * max(1e-2, other.abs().max().item()))


def test_two_ranks_compute_and_learn_what_one_does(spread: Spread) -> None:
    jobs = [Job(stride, cut, frames) for stride in (1, 2) for cut in (None, CHUNKS) for frames in (17, 24)]
    jobs += [Job(2, cut, 23, 3) for cut in (None, CHUNKS)]
    jobs += [Job(1, None, 2)]  # halves of one frame
    jobs += [Job(1, None, 1), Job(2, CHUNKS, 5), Job(2, CHUNKS, 5, 2)]  # a half of none
    for job, ranks in zip(jobs, spread(2, jobs), strict=True):
        whole = train(network(job), job, steps(job, 1))
        assert len(whole.gradients) == len(list(network(job).parameters())) and len(whole.losses) == 2
        assert any(gradient.abs().max() > 1e-3 for gradient in whole.gradients)
        for rank in ranks:
            for ours, theirs in zip(rank, whole, strict=True):
                assert_near(ours, theirs)


def test_pairs_of_ranks_share_the_data(spread: Spread) -> None:
    jobs = [Job(2, None, 24), Job(2, CHUNKS, 23, 2)]
    for job, ranks in zip(jobs, spread(4, jobs), strict=True):
        whole = train(network(job), job, steps(job, 2))
        for rank in ranks:
            assert_near(rank.gradients, whole.gradients)
            assert_near(rank.weights, whole.weights)
        for place in (0, 1):  # of the pair: they read the same share, and the pairs another
            assert_near(ranks[place].losses, whole.losses[0::2])
            assert_near(ranks[2 + place].losses, whole.losses[1::2])


def test_the_mid_point_is_the_end_of_a_chunk() -> None:
    assert [mid_point(frames, None) for frames in (1, 2, 7, 8)] == [1, 1, 4, 4]
    assert [mid_point(frames, Chunking(4, 2)) for frames in (3, 8, 9, 12, 16)] == [3, 4, 8, 8, 8]


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="1 processes cannot be paired"):
        pair_up()
