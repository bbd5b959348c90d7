"""The size of a network before training: its parameters, operations and sites, counted on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.config import catalog, composition
from attnbench.config.configuration import Config
from attnbench.models import complexity, factory, stock_attention
from attnbench.models.complexity import Complexity, Size

Setting = tuple[int, Size]  # number of classes, size of an image


def own_attention(composed: Config) -> str:
    """A line about the attention that a configuration's stock network has of its own; "" if it has none."""
    return stock_attention.remark(factory.sketch(composed.without_attention(), 10)[0])


def inspect(overrides: Sequence[str]) -> tuple[Config, Complexity, dict[str, int], Setting]:
    """Count the network that a command line describes.

    Returns:
        The configuration, the network's size, the operations by each counter, and the setting of the count.
    """
    composed = composition.compose(overrides)
    classes, size = catalog.setting(composed, overrides)
    model, sites = factory.sketch(composed, classes)
    plain, _ = factory.sketch(composed.without_attention(), classes)
    operations = complexity.operations(model, size)
    return composed, complexity.measure(model, plain, sites, size), operations, (classes, size)


def title(composed: Config, setting: Setting) -> str:
    """A title that says what was counted: ``eca at block on resnet50, 1000 classes, 224x224``."""
    c = composed.choices
    where = f"{c['attention']} at {c['placement']} on " if c["attention"] != "none" else ""
    height, width = (setting[1], setting[1]) if isinstance(setting[1], int) else setting[1]
    detector = f"{c['detector']} with " if "detector" in c else ""
    return f"{detector}{where}{c['backbone']}, {setting[0]} classes, {height}x{width}"
