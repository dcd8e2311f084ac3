"""State dicts of Cadene's own networks give their logits, at the published sizes.

The package is not among the test requirements: pip install --no-deps pretrainedmodels munch six.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vision_zoo.nasnet import LARGE, MOBILE, NASNet
from vision_zoo.nasnet_config import NASNetConfig
from vision_zoo.weight_import import fit_weights

models: Any = pytest.importorskip("pretrainedmodels").models


@pytest.mark.parametrize(("name", "config"), [("nasnet_mobile", MOBILE), ("nasnet", LARGE)])
def test_logits_of_a_state_dict_of_cadene(name: str, config: NASNetConfig) -> None:
    torch.manual_seed(0)
    module = getattr(models, name)
    theirs: nn.Module = (module.NASNetAMobile if config is MOBILE else module.NASNetALarge)(num_classes=1000)
    for each in theirs.modules():
        if isinstance(each, nn.BatchNorm2d):
            for spread in (each.weight, each.running_var):
                assert spread is not None
                nn.init.uniform_(spread, 0.5, 1.5)
            for shift in (each.bias, each.running_mean):
                assert shift is not None
                nn.init.normal_(shift, std=0.1)
    images = torch.randn(1, 3, config.input_size, config.input_size)
    ours = NASNet(replace(config, num_classes=1000, auxiliary=False)).eval()
    ours.load_state_dict(fit_weights(ours, theirs.state_dict()))
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours(images)
    assert expected.std() > 0.05
    assert float((found - expected).abs().max() / expected.std()) < 1e-4
