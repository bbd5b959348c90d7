"""attnbench: which channel attention works, where in the network, and at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["create_model", "insert", "list_attentions", "list_models"]

if TYPE_CHECKING:
    from attnbench.build import create_model, list_attentions, list_models
    from attnbench.insertion import insert


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that the command line answers before torch is loaded."""
    if name == "insert":
        from attnbench.insertion import insert

        return insert
    if name in __all__:
        from attnbench import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
