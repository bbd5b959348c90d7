"""Any timm network, ``backbone=timm/<name>``; attention stands where its blocks are known."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from attnbench.base.errors import ConfigError, StorageError
from attnbench.config.options import Count, checked


@checked
def timm_model(*, name: str, pretrained: bool = False, num_classes: Count = 1000) -> nn.Module:
    """A network of timm by its name there, with its weights when asked for.

    Raises:
        ConfigError: timm has no such network.
        StorageError: its weights cannot be had.
    """
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), 3)
        todo = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() names them"
        raise ConfigError(f"timm has no network {name}", "backbone", todo)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
        return model
    except OSError as error:
        todo = "put them into timm's cache, or set backbone.pretrained=false"
        raise StorageError(f"timm's weights of {name} cannot be had: {error}", "backbone.pretrained", todo) from None
