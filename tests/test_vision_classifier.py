"""The straight line from bytes to labels, on a network that can be calculated by hand and on a tiny NASNet."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.vision_fixtures import COLOURS, TINY, MeanColour, colour_bundle, encoded, noise, picture
from vision_zoo.batcher import BatchOptions
from vision_zoo.classifier import THREADS, Classifier
from vision_zoo.images import ImageError
from vision_zoo.nasnet import NASNet
from vision_zoo.statistics import Totals
from vision_zoo.transforms import Preprocessing, normalise


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    made = Classifier(colour_bundle())
    yield made
    made.close()


def test_the_probabilities_are_the_softmax_of_the_logits(classifier: Classifier) -> None:
    (predictions,) = classifier.classify([picture("green")])
    high, low = 10 * (250 / 255 - 0.5) / 0.5, 10 * (5 / 255 - 0.5) / 0.5  # mean 1/2, std 1/2
    total = math.exp(high) + 2 * math.exp(low)
    assert (predictions[0].label, predictions[0].index) == ("green", 1)
    assert predictions[0].probability == pytest.approx(math.exp(high) / total, rel=1e-5)
    assert sum(each.probability for each in predictions) == pytest.approx(1)
    assert len(predictions) == 3  # the default of 5 is more than there are


def test_top_k_takes_the_most_probable(classifier: Classifier) -> None:
    assert [[each.label for each in of] for of in classifier.classify([picture("blue")], 1)] == [["blue"]]
    with pytest.raises(ValueError, match="top_k 0 must be at least 1"):
        classifier.classify([picture()], 0)


def test_more_images_than_the_queue_holds(classifier: Classifier) -> None:
    colours = [COLOURS[index % 3] for index in range(150)]
    answers = classifier.classify([picture(colour) for colour in colours], 1)
    assert [predictions[0].label for predictions in answers] == colours


def test_what_is_no_image_is_refused(classifier: Classifier) -> None:
    with pytest.raises(ImageError, match="not an image"):
        classifier.classify([b"hello"])


def test_a_thread_that_took_one_core_leaves_the_others_to_classifiers_loaded_later() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found.append(torch.get_num_threads())
            return x.mean((2, 3))

    found: list[int] = []
    decoder = threading.Thread(target=torch.set_num_threads, args=(1,))
    decoder.start()
    decoder.join()
    classifier = Classifier(replace(colour_bundle(), model=Asking()))
    classifier.classify([picture()])
    classifier.close()
    assert found[-1] == THREADS


def test_the_pixel_limit_is_the_classifiers() -> None:
    classifier = Classifier(colour_bundle(), pixel_limit=100)
    with pytest.raises(ImageError, match="limit is 100 pixels"):
        classifier.classify([picture(size=(11, 10))])
    classifier.close()


def test_large_jpegs_keep_twice_the_pixels_that_the_network_sees(classifier: Classifier) -> None:
    data = encoded(noise(640, 640), "JPEG")
    assert classifier.read(data).shape == (3, 8, 8)


def test_company_in_the_batch_changes_nothing() -> None:
    """A NASNet gives an image the same probabilities alone and in any batch, to rounding."""
    torch.manual_seed(0)
    network = NASNet(replace(TINY, filters=48))
    bundle = replace(colour_bundle(model=network), preprocessing=Preprocessing(size=32))
    alone = Classifier(bundle, BatchOptions(max_batch=1, max_delay=0.0))
    together = Classifier(bundle, BatchOptions(max_batch=8, max_delay=0.5, adaptive=False))
    files = [encoded(noise(20 + index, 30), "PNG") for index in range(7)]
    single = [[each.probability for each in of] for of in alone.classify(files)]
    batched = [[each.probability for each in of] for of in together.classify(files)]
    alone.close()
    together.close()
    assert batched == [pytest.approx(row, abs=1e-6) for row in single]


def test_serving_is_what_training_computes() -> None:
    torch.manual_seed(0)
    network = NASNet(replace(TINY, filters=48)).eval()
    bundle = replace(colour_bundle(model=network), preprocessing=Preprocessing(size=32))
    classifier = Classifier(bundle)
    image = noise(32, 32)
    (predictions,) = classifier.classify([encoded(image, "PNG")])
    classifier.close()
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 32, 32, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network(normalise(pixels, bundle.preprocessing)).softmax(1)[0]
    for each in predictions:
        assert each.probability == pytest.approx(expected[each.index].item(), abs=1e-6)


def test_warming_up_runs_every_size_of_batch_and_is_not_counted() -> None:
    sizes: list[int] = []

    class Counting(MeanColour):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            answer: torch.Tensor = super().forward(images)
            return answer

    classifier = Classifier(colour_bundle(model=Counting()), BatchOptions(max_batch=4, max_delay=0.1))
    classifier.warm_up(seconds=60)
    assert sizes == [1, 4, 3, 2] and classifier.statistics.totals == Totals()
    sizes.clear()
    classifier.warm_up(seconds=0)
    assert sizes == [1], "as many as there is time for"
    classifier.close()
