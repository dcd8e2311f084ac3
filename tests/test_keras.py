"""Files that Keras itself wrote give Keras' logits, at the published sizes.

Keras is not among the test requirements: pip install keras h5py. It runs on torch here, for which its own functions
NASNetMobile and NASNetLarge refuse; what they call does not.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vision_zoo.nasnet import LARGE, MOBILE, NASNet
from vision_zoo.nasnet_config import NASNetConfig
from vision_zoo.weight_import import fit_weights, read_weights

os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras")


@pytest.mark.parametrize("config", [MOBILE, LARGE], ids=["mobile", "large"])
def test_logits_of_a_file_of_keras(config: NASNetConfig, tmp_path: Path) -> None:
    from keras.src.applications.nasnet import NASNet as KerasNASNet  # type: ignore[import-not-found]

    keras.utils.set_random_seed(0)
    theirs = KerasNASNet(
        input_shape=(config.input_size, config.input_size, 3),
        penultimate_filters=config.filters,
        num_blocks=config.cells,
        stem_block_filters=config.stem_filters,
        skip_reduction=config.skip_reduction_input,
        filter_multiplier=2,
        include_top=True,
        weights=None,
        default_size=config.input_size,
        classifier_activation=None,
    )
    draw = np.random.default_rng(0)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.get_weights()[0].shape
            spreads = (draw.uniform(0.8, 1.2, size), draw.uniform(0.5, 1.5, size))
            layer.set_weights([spreads[0], draw.normal(0, 0.1, size), draw.normal(0, 0.1, size), spreads[1]])
    theirs.save(tmp_path / "nasnet.h5")
    images = draw.normal(size=(1, config.input_size, config.input_size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch.as_tensor(theirs.predict(images, verbose=0))
        ours = NASNet(replace(config, num_classes=1000, padding="keras", auxiliary=False)).eval()
        ours.load_state_dict(fit_weights(ours, read_weights(tmp_path / "nasnet.h5")))
        found = ours(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert expected.std() > 1
    assert float((found - expected).abs().max() / expected.std()) < 1e-4
