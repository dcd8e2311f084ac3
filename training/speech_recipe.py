"""`python -m training.fit speech`: manifests in, checkpoints out; training.export makes a bundle of one."""

import argparse
from pathlib import Path

from asr_server.alphabet import Alphabet
from asr_server.features import FeatureConfig
from asr_server.model import CELLS, NORMALISATIONS, DeepSpeechConfig
from training.augment import AugmentOptions
from training.noise import REFERENCE_HELP, NoiseOptions
from training.speech_data import DataOptions, SpeechData, statistics
from training.speech_initial import check_shape, load
from training.speech_module import OPTIMISERS, OptimiserOptions, SpeechModule
from training.trainer import add_trainer_arguments, build_trainer, checkpoint_to_resume
from training.waveform import WaveformOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the recipe; the network's defaults are the paper's."""
    _add_data_arguments(parser)
    _add_augmentation_arguments(parser)
    _add_network_arguments(parser)
    _add_optimiser_arguments(parser)
    add_trainer_arguments(parser, epochs=20)
    parser.add_argument(
        "--model-parallel",
        action="store_true",
        help="two processes share each utterance, split in time (docs/training.md); with an even number of processes",
    )


def run(args: argparse.Namespace) -> None:
    """Train, or go on with a training that was killed."""
    checkpoint = checkpoint_to_resume(args)
    trainer = build_trainer(args, monitor="val_wer_whole")  # seeds the weights too
    module = SpeechModule(
        FeatureConfig(),
        _model_config(args),
        Alphabet(),
        OptimiserOptions(
            name=args.optimiser,
            rate=args.learning_rate,
            warmup_steps=args.warmup_steps,
            hold=args.hold,
            recurrent_rate=args.recurrent_rate,
            weight_decay=args.weight_decay,
            momentum=args.momentum,
            annealing=args.annealing,
        ),
        args.chunked_share,
        args.flat_start_steps,
        args.seed,
        args.model_parallel,
    )
    if checkpoint:
        check_shape(module, checkpoint)
    data = SpeechData(
        args.train,
        args.validation,
        module.features,
        module.alphabet,
        DataOptions(
            args.batch_seconds,
            args.batch_utterances,
            args.longest,
            not args.random_first_epoch,
            args.seed,
            args.keep_hours,
            args.workers,
            args.model_parallel,
        ),
        None if args.no_augmentation else (_waveform(args), _spectrum(args)),
        args.noise,
        NoiseOptions(reference=(*args.noise_reference,), deviations=args.noise_deviations),
    )
    if trainer.is_global_zero:
        say_what_is_used(data)
    if args.initial:
        if afresh := load(module, args.initial):
            layers = sorted({name.split(".")[2] for name in afresh})
            print(f"not in {args.initial}, starting afresh: deeper recurrent layers {', '.join(layers)}")
    else:
        module.features.set_statistics(*statistics(data.train_set))
    trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=False)


def say_what_is_used(data: SpeechData) -> None:
    """Which utterances and noises are not, too."""
    if data.left_out:
        longest = data.options.longest
        print(f"{data.left_out} of {data.found} training utterances left out: longer than --longest {longest:g} s")
    if data.noises:
        print(data.noises.summary().splitlines()[0])


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    options = DataOptions()
    data = parser.add_argument_group("data", "manifests: a JSON object a line with audio_filepath, duration and text")
    data.add_argument(
        "--train", type=Path, nargs="+", required=True, metavar="JSONL", help="one named twice counts double"
    )
    data.add_argument("--validation", type=Path, nargs="+", required=True, metavar="JSONL")
    data.add_argument("--batch-seconds", type=float, default=options.batch_seconds, help="default: %(default)s")
    data.add_argument("--batch-utterances", type=int, default=options.batch_utterances, help="default: %(default)s")
    data.add_argument("--longest", type=float, default=options.longest, help="seconds; default: %(default)s")
    data.add_argument("--random-first-epoch", action="store_true", help="do not begin with the short utterances")
    data.add_argument(
        "--keep-hours", type=float, default=options.keep_hours, help="decoded audio in memory; default: %(default)s"
    )
    data.add_argument(
        "--workers", type=int, default=options.workers, help="processes that prepare data; default: %(default)s"
    )


def _add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    waves, spectra = WaveformOptions(), AugmentOptions()
    change = parser.add_argument_group(
        "augmentation", "each epoch hears another version of an utterance; a share is of the utterances, 0 is off"
    )
    change.add_argument("--no-augmentation", action="store_true")
    change.add_argument("--noise", type=Path, nargs="*", default=[], metavar="JSONL", help="manifests of noises")
    judged = NoiseOptions()
    change.add_argument(
        "--noise-reference", nargs="*", default=judged.reference, metavar="WORD", help=f"{REFERENCE_HELP} %(default)s"
    )
    change.add_argument(
        "--noise-deviations",
        type=float,
        default=judged.deviations,
        help="of the reference, by which a band's power may differ; 0: any (default: %(default)s)",
    )
    for name, default, meaning in (
        ("noise-share", waves.noise, "with sums of noise clips"),
        ("babble-share", waves.babble, "with other talkers behind"),
        ("room-share", waves.room, "in a synthetic room"),
        ("telephone-share", waves.telephone, "through a telephone line"),
        ("clipping-share", waves.clipping, "recorded too loud"),
        ("speed", waves.speed, "factors 1 -+ this, tempo and pitch together"),
        ("jitter", waves.jitter, "seconds by which the start moves"),
        ("level", waves.level, "decibels up or down"),
        ("tempo", spectra.tempo, "factors 1 -+ this, at the same pitch"),
        ("pitch", spectra.pitch, "factors 1 -+ this, at the same tempo"),
        ("time-masks", spectra.time_masks, "a second"),
    ):
        change.add_argument(f"--{name}", type=float, default=default, help=f"{meaning}; default: %(default)s")
    change.add_argument("--frequency-masks", type=int, default=spectra.frequency_masks, help="default: %(default)s")
    change.add_argument(
        "--noise-snr",
        type=float,
        nargs=2,
        default=waves.noise_snr,
        metavar=("LOW", "HIGH"),
        help="decibels; default: %(default)s",
    )


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    config = DeepSpeechConfig()
    network = parser.add_argument_group("network", "the defaults are the paper's")
    network.add_argument(
        "--initial",
        metavar="CKPT|BUNDLE",
        help="begin with the weights of this one; more recurrent layers start afresh, gated ones without effect",
    )
    network.add_argument("--width", type=int, default=config.width, help="units a layer; default: %(default)s")
    network.add_argument("--context", type=int, default=config.context, help="frames each side; default: %(default)s")
    network.add_argument("--stride", type=int, default=config.stride, help="frames a step; default: %(default)s")
    network.add_argument("--dropout", type=float, default=config.dropout, help="default: %(default)s")
    network.add_argument(
        "--normalisation", choices=NORMALISATIONS, default=config.normalisation, help="before each ReLU"
    )
    network.add_argument(
        "--recurrent-layers", type=int, default=config.recurrent_layers, help="more is Deep Speech 2; default: 1"
    )
    network.add_argument("--cell", choices=CELLS, default=config.cell, help="default: %(default)s")
    network.add_argument("--chunk", type=int, help="output frames of a streaming chunk; default: wait for the end")
    network.add_argument("--right", type=int, default=config.right, help="its right context; default: %(default)s")
    network.add_argument("--chunked-share", type=float, default=0.0, help="share of the steps trained in chunks")


def _add_optimiser_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = OptimiserOptions()
    recipe = parser.add_argument_group("optimiser", "sgd is the paper's: Nesterov momentum, annealed every epoch")
    recipe.add_argument("--optimiser", choices=OPTIMISERS, default=defaults.name, help="default: %(default)s")
    recipe.add_argument("--flat-start-steps", type=int, default=0, help="symbols of equal length at first; default: 0")
    recipe.add_argument("--learning-rate", type=float, default=defaults.rate, help="default: %(default)s")
    recipe.add_argument("--warmup-steps", type=int, default=defaults.warmup_steps, help="adamw; default: %(default)s")
    recipe.add_argument("--hold", type=float, default=defaults.hold, help="adamw; default: %(default)s")
    recipe.add_argument("--weight-decay", type=float, default=defaults.weight_decay, help="adamw; default: %(default)s")
    recipe.add_argument(
        "--recurrent-rate",
        type=float,
        default=defaults.recurrent_rate,
        help="adamw: factor for the recurrent matrices; default: %(default)s",
    )
    recipe.add_argument("--momentum", type=float, default=defaults.momentum, help="sgd; default: %(default)s")
    recipe.add_argument("--annealing", type=float, default=defaults.annealing, help="sgd; default: %(default)s")


def _model_config(args: argparse.Namespace) -> DeepSpeechConfig:
    if args.model_parallel and args.cell == "gated":
        raise ValueError(
            "--model-parallel splits the cell 'clipped-relu' only; 'gated' is trained with data parallelism"
        )
    if args.chunked_share and args.chunk is None:
        raise ValueError(f"--chunked-share {args.chunked_share} needs --chunk: how many frames a chunk has")
    return DeepSpeechConfig(
        width=args.width,
        context=args.context,
        stride=args.stride,
        dropout=args.dropout,
        normalisation=args.normalisation,
        recurrent_layers=args.recurrent_layers,
        cell=args.cell,
        chunk=args.chunk,
        right=args.right,
    )


def _waveform(args: argparse.Namespace) -> WaveformOptions:
    low, high = args.noise_snr
    return WaveformOptions(
        speed=args.speed,
        jitter=args.jitter,
        room=args.room_share,
        noise=args.noise_share,
        babble=args.babble_share,
        clipping=args.clipping_share,
        level=args.level,
        telephone=args.telephone_share,
        noise_snr=(low, high),
    )


def _spectrum(args: argparse.Namespace) -> AugmentOptions:
    return AugmentOptions(
        tempo=args.tempo, pitch=args.pitch, time_masks=args.time_masks, frequency_masks=args.frequency_masks
    )
