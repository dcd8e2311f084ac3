"""pyctcdecode as benchmarks.decoders talks to it.

python -m benchmarks.peers.pyctcdecode_peer --posteriors FILE.npz --language-model LM --words FILE --alpha A --beta B

Its alpha weighs natural logarithms and its beta is added for each word, as ours do. Everything else keeps its default.
"""

from collections.abc import Sequence

from pyctcdecode import build_ctcdecoder  # type: ignore[import-not-found]

from benchmarks.peers.serve import Decode, Job, Prepare, read_job, serve


def preparation(job: Job) -> Prepare:
    decoder = build_ctcdecoder(
        job.labels,
        kenlm_model_path=job.language_model,
        unigrams=job.words,
        alpha=job.alpha,
        beta=job.beta,
    )

    def prepare(beam: int, hot_words: Sequence[str]) -> Decode:
        hotwords = list(hot_words) or None
        return lambda log_probs: str(decoder.decode(log_probs, beam_width=beam, hotwords=hotwords))

    return prepare


if __name__ == "__main__":
    job = read_job()
    serve(job, preparation(job))
