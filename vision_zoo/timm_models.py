"""Our NASNets in timm's registry, for whoever works with timm.

    import vision_zoo.timm_models
    timm.create_model("earsight_nasnet_a_mobile", num_classes=5)
    timm.create_model("earsight_nasnet_a_mobile", features_only=True, output_stride=16)
    timm.create_model("earsight_nasnet_a_large", pretrained=True, pretrained_cfg_overlay={"file": "weights.pth"})

timm has no means of finding models by itself, so this import is what registers them; names there cannot hold a slash.
mean and std are those of the ImageNet networks; images for the CIFAR network, which timm.data has no means to describe,
are whitened one by one (`vision_zoo.transforms.normalise`). Nothing else in this package imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from vision_zoo.nasnet import CIFAR, LARGE, MOBILE, NASNet, NASNetConfig
from vision_zoo.weight_import import fit_weights


def _settings(config: NASNetConfig) -> dict[str, Any]:
    return {
        "input_size": (3, config.input_size, config.input_size),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "num_classes": config.num_classes,
        "first_conv": "stem.0",
        "classifier": "classifier",
    }


default_cfgs = generate_default_cfgs(
    {
        "earsight_nasnet_a_cifar": _settings(CIFAR),
        "earsight_nasnet_a_mobile": _settings(MOBILE),
        "earsight_nasnet_a_large": _settings(LARGE),
    }
)


@register_model
def earsight_nasnet_a_cifar(pretrained: bool = False, **settings: Any) -> nn.Module:
    """NASNet-A 6@768 for images of 32 pixels."""
    return _create("earsight_nasnet_a_cifar", CIFAR, pretrained, settings)


@register_model
def earsight_nasnet_a_mobile(pretrained: bool = False, **settings: Any) -> nn.Module:
    """NASNet-A 4@1056 for images of 224 pixels."""
    return _create("earsight_nasnet_a_mobile", MOBILE, pretrained, settings)


@register_model
def earsight_nasnet_a_large(pretrained: bool = False, **settings: Any) -> nn.Module:
    """NASNet-A 6@4032 for images of 331 pixels."""
    return _create("earsight_nasnet_a_large", LARGE, pretrained, settings)


def _create(name: str, config: NASNetConfig, pretrained: bool, settings: Mapping[str, Any]) -> nn.Module:
    def network(
        num_classes: int = config.num_classes,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = config.dropout,
        drop_path_rate: float = 0.0,
        **changes: Any,
    ) -> NASNet:
        """timm's names for what a NASNetConfig holds; `changes` are fields of it. No auxiliary head, as in timm."""
        wanted = replace(
            config,
            num_classes=num_classes,
            in_channels=in_chans,
            dropout=drop_rate,
            drop_path_keep=1.0 - drop_path_rate,
            auxiliary=False,
        )
        model = NASNet(replace(wanted, **changes))
        model.schedule_drop_path(1.0)  # timm's training loops know no schedule
        if global_pool != "avg":
            model.reset_classifier(num_classes, global_pool)
        return model

    maps = 5 if config.stem == "imagenet" else 3
    model: nn.Module = build_model_with_cfg(
        network,
        name,
        pretrained,
        pretrained_filter_fn=_fit,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(maps))},
        **settings,
    )
    return model


def _fit(weights: dict[str, Tensor], model: NASNet) -> dict[str, Tensor]:
    return fit_weights(model, weights)
