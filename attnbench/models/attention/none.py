"""No attention: the stock backbone."""

from __future__ import annotations

from attnbench.config.options import checked


@checked
def none() -> None:
    """Inserts nothing, whatever the placement."""
