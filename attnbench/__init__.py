"""attnbench: which channel attention works, where in the network, and at what cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attnbench.base import moved

if TYPE_CHECKING:
    from attnbench.config.options import checked
    from attnbench.models.attention.squeeze import PooledAttention
    from attnbench.models.factory import create_model, list_attentions, list_models
    from attnbench.models.insertion import Attended, Site, insert

__version__ = "0.2.0.dev0"
__all__ = [
    "Attended",
    "PooledAttention",
    "Site",
    "checked",
    "create_model",
    "insert",
    "list_attentions",
    "list_models",
]

moved.install()

_HOMES = {
    "Attended": "models.insertion",
    "PooledAttention": "models.attention.squeeze",
    "Site": "models.insertion",
    "checked": "config.options",
    "create_model": "models.factory",
    "insert": "models.insertion",
    "list_attentions": "models.factory",
    "list_models": "models.factory",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that the command line answers before torch is loaded."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"attnbench.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
