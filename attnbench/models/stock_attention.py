"""The attention that a stock network has of its own, such as SE in EfficientNet and MobileNetV3."""

from __future__ import annotations

from torch import nn

from attnbench.base.errors import listed

# The attention modules of timm and torchvision, by their class.
CLASSES = {
    *("SqueezeExcite", "SqueezeExcitation", "SEModule", "SqueezeExciteCl", "EffectiveSEModule"),
    *("EcaModule", "CecaModule", "CbamModule", "LightCbamModule", "GlobalContext", "GatherExcite", "SplitAttn"),
    *("SelectiveKernel", "NonLocalAttn", "BatNonLocalAttn", "BilinearAttnTransform", "HaloAttn", "LambdaLayer"),
}


def own(model: nn.Module) -> dict[str, str]:
    """The attention modules of a network that attnbench has not inserted: class by dotted name."""
    modules = ((path, type(module)) for path, module in model.named_modules())
    return {
        path: kind.__name__
        for path, kind in modules
        if kind.__name__ in CLASSES and not kind.__module__.startswith("attnbench.")
    }


def remark(model: nn.Module) -> str:
    """A line for the user if the network has attention of its own; "" if it has none."""
    found = own(model)
    if not found:
        return ""
    kinds = ", ".join(sorted(set(found.values())))
    return f"the network has attention of its own at {len(found)} places ({kinds}): {listed(found)}"
