"""Any timm network, ``backbone=timm/<name>``; attention needs one whose blocks ``ANATOMY`` lists."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from attnbench.base.errors import ConfigError, StorageError, reason
from attnbench.config.options import Count, checked


@checked
def timm_model(*, name: str, pretrained: bool = False, num_classes: Count = 1000) -> nn.Module:
    """A timm network by its name in timm, optionally with its pretrained weights.

    Raises:
        ConfigError: timm has no such network.
        StorageError: its weights cannot be loaded.
    """
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), 3)
        todo = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists the names"
        raise ConfigError(f"timm has no network {name}", "backbone", todo)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        return model
    except Exception as error:  # of huggingface_hub, safetensors and torch, which raise many types
        if not pretrained:
            raise
        todo = "put them into timm's cache, remove a damaged file there, or set backbone.pretrained=false"
        what = f"timm's weights for {name} cannot be loaded: {reason(error)}"
        raise StorageError(what, "backbone.pretrained", todo) from error
