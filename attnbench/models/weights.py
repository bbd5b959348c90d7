"""Weights under other names: those of timm's SE and ECA slots and of the released ECA-Nets; weights from files.

Our networks keep the stock names and add ``trunk`` or ``attention`` at every site: ``layer1.0.bn2.trunk.weight`` and
``layer1.0.bn2.attention.conv.weight``. Other networks have a separate module for the attention at a block's output:

    timm             layer1.0.se.fc1.weight, layer1.0.se.fc1.bias, layer1.0.se.conv.weight
    ECA-Net ResNets  layer1.0.eca.conv.weight         (github.com/BangguWu/ECANet, models/eca_resnet.py)
    its MobileNetV2  features.2.conv.4.conv.weight    (models/eca_mobilenetv2.py: the last module of the branch)

Every conversion first views our tensors in the other layout and compares names and shapes. It copies either all weights
or none, and an error names the keys that do not fit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base.errors import ConfigError, StorageError, listed, reason
from attnbench.models.attention.branch import Branch
from attnbench.models.attention.eca import EfficientChannelAttention
from attnbench.models.insertion import Attended
from attnbench.models.placement import known_blocks

log = logging.getLogger("attnbench")

Weights = Mapping[str, Tensor]


# Prefixes that a wrapper (DataParallel or DDP, torch.compile, Lightning) adds to every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")

# Keys under which a checkpoint may hold its state dict; the moving average first, which its training evaluated.
AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "average")
WRAPS = (*AVERAGES, "state_dict", "model_state_dict", "model", "net")

# Our names to timm's, inside an SE; inside an ECA both are conv.weight.
TIMM_SE = {
    "reduce.weight": "fc1.weight",
    "reduce.bias": "fc1.bias",
    "expand.weight": "fc2.weight",
    "expand.bias": "fc2.bias",
}
AT_SITE = re.compile(r"(?P<site>.+?)\.(?P<part>trunk|attention)\.(?P<name>.+)")
SE_WEIGHT = re.compile(r".*\.se\.fc[12]\.weight")
SE_BIAS = re.compile(r".*\.se\.fc[12]\.bias")


def read(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file to the CPU, without the prefixes of wrappers.

    Args:
        path: a ``.safetensors`` file, or a file of any torch version that loads with ``weights_only``: a state dict,
            or a checkpoint that holds one under a key in ``WRAPS``.

    Raises:
        StorageError: the file does not exist, or holds no state dict.
    """
    _refuse_foreign(path)
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    while isinstance(content, Mapping) and (key := next((w for w in WRAPS if isinstance(content.get(w), Mapping)), "")):
        if key in AVERAGES:
            log.info("%s: the moving average in it is taken (%s)", path, key)
        content = content[key]
    tensors = isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        todo = f"save one, at the top level or under {', '.join(WRAPS[:-1])} or {WRAPS[-1]}"
        raise StorageError("no state dict in this file", path, todo)
    return stripped(content)


def stripped(weights: Weights) -> dict[str, Tensor]:
    """Weights under the network's own names: prefixes of wrappers that all names have are removed.

    The count of updates in the state of a moving average is removed, too.
    """
    plain = {key: value for key, value in weights.items() if key != "n_averaged"}
    while prefix := next((p for p in PREFIXES if plain and all(key.startswith(p) for key in plain)), ""):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain


def unwrapped(weights: Weights) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """The ways to read weights: all of them as they are, or those names that have a wrapper's prefix, without it.

    Yields:
        Weights, and the names that this reading leaves out.
    """
    yield dict(weights), []
    for prefix in PREFIXES:
        inside = {key: value for key, value in weights.items() if key.startswith(prefix)}
        if inside:
            yield stripped(inside), [key for key in weights if key not in inside]


def load(model: nn.Module, weights: Weights, where: object) -> None:
    """Load weights under the model's own names: all of them, or none.

    Args:
        where: the file that they come from, for the error message.

    Raises:
        StorageError: they do not fit; lists up to five missing keys, unexpected keys and wrong shapes each.
    """
    copy(model.state_dict(), weights, where)


def to_timm(model: nn.Module, theirs: nn.Module) -> None:
    """Copy our weights into a timm network with its own SE or ECA slots; both then give equal logits.

    If our SE has no biases, timm's become zero.

    Args:
        model: a ResNet with the names of torchvision or timm, and SE or ECA at its blocks' outputs.
        theirs: such as ``timm.create_model("resnet50", block_args={"attn_layer": "se"})``. Its trunk must have the
            same design: names and shapes are compared, but strides, for example, are not.

    Raises:
        ConfigError: timm has no slot for our attention, or timm's slots compute something else.
        StorageError: keys or shapes differ, for example because the hidden width (timm rounds it to a multiple of 8)
            or k differs.
    """
    ours = as_timm(model)
    _refuse_other_slots(theirs)
    expected = theirs.state_dict()
    copy(expected, _with_biases(ours, expected), "timm's network")


def from_timm(model: nn.Module, theirs: nn.Module) -> None:
    """Copy the weights of a timm network with its own SE or ECA slots into ours; the inverse of `to_timm`.

    Raises:
        ConfigError, StorageError: as in `to_timm`; also if timm has biases other than zero and our SE has none.
    """
    ours = as_timm(model)
    _refuse_other_slots(theirs)
    copy(ours, _with_biases(theirs.state_dict(), ours), "timm's network")


def load_released(model: nn.Module, source: Path | Weights) -> None:
    """Load a state dict in the layout of the released ECA-Nets into our ResNet or MobileNetV2 with ECA.

    Args:
        model: such as ``create_model("resnet50", "eca", attention_kwargs={"kernel_size": [3, 5, 5, 7]})``, which
            matches the released ECA-Net50.
        source: the file, or its state dict.

    Raises:
        ConfigError: the model's attention is not ECA, or is not at its blocks' outputs.
        StorageError: the weights do not fit; if k differs, the message gives the kernel sizes of the weights.
    """
    weights = read(source) if isinstance(source, Path) else stripped(source)
    slots = _released_slots(model)
    expected = _renamed(model, slots)
    ours, theirs = (_kernel_sizes(model, slots, some) for some in (expected, weights))
    todo = f"build the network with attention.kernel_size={theirs}" if theirs and ours != theirs else ""
    copy(expected, weights, source if isinstance(source, Path) else "ECA-Net's layout", todo)


FILES = "give a file of weights that torch.save or safetensors wrote, or download it again"

# The first bytes of files that are taken for weights by mistake, and what they are.
FOREIGN = {
    b"version https://git-lfs": "a pointer of Git LFS, without the weights themselves",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"{": "JSON",
}


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that cannot be opened, is empty, or is known to be something else by its first bytes.

    Raises:
        StorageError: says which.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", path, "give the path of a file") from error
    if not start:
        raise StorageError("no weights: the file is empty", path, FILES)
    for first, what in FOREIGN.items():
        if start.lower().lstrip().startswith(first):
            raise StorageError(f"no weights: the file is {what}", path, FILES)


def _torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch may raise any exception
        raise StorageError(f"damaged, not weights, or not safe to load: {reason(error)}", path, FILES) from error


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"damaged, or not a safetensors file: {reason(error)}", path, FILES) from error


def _sites(model: nn.Module) -> list[str]:
    """The paths of a model's sites, after a check that each gates a block's output by SE or ECA.

    Raises:
        ConfigError: a site does not.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, Attended)]
    for path in paths:
        if reason := _peculiarity(model, path):
            todo = "use se or eca with gate=sigmoid, norm=false at placement=block"
            raise ConfigError(f"other layouts have no slot for the attention at {path}: {reason}", "attention", todo)
    return paths


def _peculiarity(model: nn.Module, path: str) -> str:
    """Why other layouts have no slot for an attention; empty if they have one."""
    module = _attended(model, path)
    attention = module.attention
    if module.reads != "output" or module.combine != "mul" or not _plain(attention):
        return f"it is {type(attention).__name__}({attention.extra_repr()}), {module.extra_repr()}"
    parent, _, leaf = path.rpartition(".")
    norms = [name for name, _ in model.get_submodule(parent).named_children() if re.fullmatch(r"(bn)?\d+", name)]
    last = max(norms, key=lambda name: int(name.removeprefix("bn")), default="")
    return "" if leaf == last else f"{leaf} is not the last norm of {parent}"


def _plain(attention: nn.Module) -> bool:
    """Whether an attention is ECA, or SE with two layers, a ReLU between them and a sigmoid after them."""
    if isinstance(attention, Branch):
        norms = (attention.norm1, attention.norm2)
        return attention.gate == "sigmoid" and all(isinstance(norm, nn.Identity) for norm in norms)
    return isinstance(attention, EfficientChannelAttention)


def _attended(model: nn.Module, path: str) -> Attended:
    module = model.get_submodule(path)
    assert isinstance(module, Attended)
    return module


def as_stock(model: nn.Module) -> dict[str, Tensor]:
    """A model's own tensors under the names of the stock network; those of its attention keep their own names.

    This view, like the other two, is in the order of the model's state dict and shares its memory.
    """
    return {
        f"{match['site']}.{match['name']}"
        if (match := AT_SITE.fullmatch(key)) and match["part"] == "trunk"
        else key: value
        for key, value in model.state_dict().items()
    }


def as_released(model: nn.Module) -> dict[str, Tensor]:
    """A model's own tensors under the names of the released ECA-Nets.

    Raises:
        ConfigError: its attention is not ECA at its blocks' outputs.
    """
    return _renamed(model, _released_slots(model))


def as_timm(model: nn.Module) -> dict[str, Tensor]:
    """A model's own tensors under timm's names and in its shapes.

    Raises:
        ConfigError: timm has no slot for the model's attention.
    """
    slots = {path: f"{path.rpartition('.')[0]}.se" for path in _sites(model)}
    return {
        key: value[:, :, None, None] if SE_WEIGHT.fullmatch(key) else value  # a layer (out, in) as a 1x1 convolution
        for key, value in _renamed(model, slots).items()
    }


def _released_slots(model: nn.Module) -> dict[str, str]:
    """The name of the ECA in the official networks, for the path of each site.

    Raises:
        ConfigError: an attention is not ECA at its block's output.
    """
    slots = {path: _released_slot(model, path) for path in _sites(model)}
    if other := [path for path in slots if not isinstance(_attended(model, path).attention, EfficientChannelAttention)]:
        raise ConfigError(f"the attention at {other[0]} is not ECA", "attention", "use attention=eca")
    return slots


def _released_slot(model: nn.Module, path: str) -> str:
    """The name of a block's ECA in the official networks: the next module in a Sequential, else ``eca``."""
    parent, _, leaf = path.rpartition(".")
    return f"{parent}.{int(leaf) + 1 if isinstance(model.get_submodule(parent), nn.Sequential) else 'eca'}"


def _renamed(model: nn.Module, slots: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict with each site's attention under the name of its slot, and its trunk under its stock name.

    Args:
        slots: the name of the slot for the path of each site.
    """
    renamed = {}
    for key, value in model.state_dict().items():
        match = AT_SITE.fullmatch(key)
        if match and match["site"] in slots:
            site, part, name = match.groups()
            key = f"{site}.{name}" if part == "trunk" else f"{slots[site]}.{TIMM_SE.get(name, name)}"
        renamed[key] = value
    return renamed


def _kernel_sizes(model: nn.Module, slots: Mapping[str, str], weights: Weights) -> list[int]:
    """k of each stage, from the shapes of weights in the released layout; empty if a stage has no single k."""
    stages = {f"{name}.": stage for name, stage, _ in known_blocks(model)}
    found: dict[int, set[int]] = {stage: set() for stage in stages.values()}
    for path, slot in slots.items():
        stage = next(stage for block, stage in stages.items() if path.startswith(block))
        weight = weights.get(f"{slot}.conv.weight")
        found[stage].add(weight.shape[-1] if weight is not None and weight.ndim == 3 else 0)
    one_each = all(len(sizes) == 1 and 0 not in sizes for sizes in found.values())
    return [size for sizes in found.values() for size in sizes] if one_each else []


def _refuse_other_slots(theirs: nn.Module) -> None:
    """Refuse timm slots whose names are those of SE or ECA but which compute something else."""
    for path, slot in theirs.named_modules():
        if path.endswith(".se") and not isinstance(slot, nn.Identity) and not _plain_slot(slot):
            kind = type(slot).__name__
            raise ConfigError(f"timm's {path} is {kind}, not plain SE or ECA", "attn_layer", "use se or eca")


def _plain_slot(slot: nn.Module) -> bool:
    from timm.layers import EcaModule, SEModule, Sigmoid

    if not isinstance(slot, (SEModule, EcaModule)) or not isinstance(slot.gate, (nn.Sigmoid, Sigmoid)):
        return False
    if isinstance(slot, EcaModule):
        return slot.conv2 is None
    return isinstance(slot.bn, nn.Identity) and isinstance(slot.act, nn.ReLU) and not slot.add_maxpool


def _with_biases(given: Weights, expected: Weights) -> dict[str, Tensor]:
    """The given weights with exactly the SE biases that are expected: zeros are added or removed.

    Raises:
        StorageError: a bias that is not expected is not zero.
    """
    differ = sorted(key for key in expected.keys() ^ given.keys() if SE_BIAS.fullmatch(key))
    lost = [key for key in differ if key in given and given[key].any()]
    if lost:
        todo = "build the SE with attention.bias=true"
        what = f"the SE has no biases, but these are not zero: {listed(lost)}"
        raise StorageError(what, "timm's network", todo)
    plain = {key: value for key, value in given.items() if key not in differ}
    return plain | {key: torch.zeros_like(expected[key]) for key in differ if key in expected}


def copy(expected: Weights, given: Weights, where: object, todo: str = "") -> None:
    """Copy weights into tensors of the same names and shapes: all of them, or none.

    The given weights may lack ``num_batches_tracked``, as those of torch before 0.4.1 do; it then keeps its value.

    Raises:
        StorageError: names or shapes differ.
    """
    missing = [key for key in expected if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    both = [key for key in expected if key in given]
    shapes = [
        f"{key} {_shape(given[key])} for {_shape(expected[key])}"
        for key in both
        if given[key].shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    if found := [f"{kind} {listed(keys)}" for kind, keys in kinds.items() if keys]:
        what = f"the weights do not fit: {'; '.join(found)}"
        raise StorageError(what, where, todo or "build the network that the weights belong to")
    with torch.no_grad():
        for key in both:
            expected[key].copy_(given[key])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
