"""Regions of a network by name, to freeze them or to train them at another rate.

    stem        what comes before the first block
    stage1, …   the blocks of a stage, attention included, and what follows them up to the next block
    attention   the attention at all sites
    head        the classifier; of a detector, all that is not its backbone
    trunk       the stock layers without the head: neither attention nor head

The stem and the stages are known for networks whose blocks ``placement.ANATOMY`` lists. In any network a region may
also be named by a module, such as ``layer1.0``, or by a pattern of modules, such as ``layer[12]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from attnbench.base.errors import ConfigError, nearest
from attnbench.models.insertion import Attended, is_attention
from attnbench.models.placement import stages_of_blocks

HEADS = ("fc", "classifier", "linear", "head")  # what classifiers are called in torchvision, timm and here


def head(model: nn.Module) -> str:
    """The name of a network's classifier, which is an ``Identity`` in the backbone of a detector; "" if not known."""
    given = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")  # timm's networks name it
    names = [given] if isinstance(given, str) else []
    return next((name for name in (*HEADS, *names) if hasattr(model, name.partition(".")[0])), "")


def regions(model: nn.Module) -> dict[str, list[str]]:
    """The modules of each region; a module stands for its own parameters and buffers, not for those of its children.

    Args:
        model: a network with or without attention, or a detector.

    Returns:
        Dotted names of modules by the name of the region, in the network's order; regions without modules are left out.
    """
    prefix = "backbone.body." if hasattr(getattr(model, "backbone", None), "body") else ""
    body = model.get_submodule(prefix.rstrip("."))
    own = head(body)
    inside = {"attention": list(_attention(body))}
    attention = set(inside["attention"])
    found: dict[str, list[str]] = {}
    for path, region in _in_order(body):
        region = "head" if own and f"{path}.".startswith(f"{own}.") else region
        if region:
            found.setdefault(region, []).append(prefix + path)
        if region != "head" and path not in attention:
            found.setdefault("trunk", []).append(prefix + path)
    found |= {name: [prefix + path for path in paths] for name, paths in inside.items() if paths}
    if prefix:
        found["head"] = [path for path, _ in model.named_modules() if path and not f"{path}.".startswith(prefix)]
    return found


def find(model: nn.Module, name: str, key: str) -> list[str]:
    """The modules of one region, as in ``regions``, or of the modules that a pattern names.

    Args:
        key: the option that names it, for the error message.

    Raises:
        ConfigError: there is no such region or module; the message lists the regions.
    """
    known = regions(model)
    if name in known:
        return known[name]
    paths = [path for path, _ in model.named_modules() if path]
    tops = {path for path in paths if fnmatchcase(path, name)}
    if not tops:
        hint = f"{nearest(name, sorted(known))}, and modules by their names, such as {_example(model)}"
        raise ConfigError(f"this network has no part {name}", key, hint)
    return [path for path in paths if any(f"{path}.".startswith(f"{top}.") for top in tops)]


def parameters(model: nn.Module, paths: list[str]) -> set[str]:
    """The names of the parameters that belong to modules themselves, not to their children."""
    return {f"{path}.{name}" for path in paths for name, _ in model.get_submodule(path).named_parameters(recurse=False)}


def _in_order(body: nn.Module) -> Iterator[tuple[str, str]]:
    """Every module that computes something, with the stem or the stage in which it is; "" if the blocks are unknown."""
    stages = stages_of_blocks(body)
    region = "stem" if stages else ""
    for path, module in body.named_modules():
        region = f"stage{stages[path]}" if path in stages else region
        if path and (path in stages or not list(module.children()) or list(module.parameters(recurse=False))):
            yield path, region


def _attention(body: nn.Module) -> Iterator[str]:
    """The modules of the attention at all sites; where attention replaces a layer, the whole of it."""
    for site, module in body.named_modules():
        top = f"{site}.attention" if isinstance(module, Attended) else site if is_attention(module) else None
        if top is not None:
            yield from (f"{top}.{path}".rstrip(".") for path, _ in body.get_submodule(top).named_modules())


def _example(model: nn.Module) -> str:
    return next((path for path, module in model.named_modules() if path and list(module.children())), "layer1")
