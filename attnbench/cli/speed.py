"""``attnbench speed``: measure what attention costs in training and inference, in images/s and in memory.

All members are in one process and take turns, so that the ratios are valid even on a busy machine. The images are
noise on the device, so only the network is measured. Two ceilings of the machine are reported as well: the speed if
only the multiply-adds took time, and the speed if only reading and writing the feature maps did, without any fusion.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.base import benchmark, console
from attnbench.base.benchmark import Median, Timings, wall_seconds
from attnbench.base.errors import ConfigError, OutOfMemory
from attnbench.cli.parser import override_parser
from attnbench.config import catalog, composition, hydra_state
from attnbench.config.configuration import Config
from attnbench.launch import sweep
from attnbench.models import complexity, factory, fused
from attnbench.models.folding import folded
from attnbench.runs.probe import Noise
from attnbench.training import setup
from attnbench.training.feed import Feed
from attnbench.training.runtime import Process, Runtime
from attnbench.training.step import Update

BATCHES = {"cpu": 16, "cuda": 256}  # default batch sizes for images of 64x64 pixels or more
REPETITIONS = 15
MEMORY_TURNS = 7


@dataclass(frozen=True)
class TimedNetwork:
    """A configuration's network on the device, with a call for a training step and one for inference.

    Attributes:
        label: the overrides that distinguish it from the others.
        batch: images of a call.
        train, infer: run one batch, and wait for the device.
        own_bytes: returns the bytes of the weights, the buffers and the optimizer's state.
        gradient_bytes: bytes of the weights' gradients.
        macs: multiply-adds for an image.
        map_bytes: bytes moved for an image's feature maps, each written once and read once.
        bounded: whether every call computes just ``macs`` and ``map_bytes``, so that the ceilings apply.
    """

    label: str
    batch: int
    train: Callable[[], None]
    infer: Callable[[], None]
    own_bytes: Callable[[], int]
    gradient_bytes: int
    macs: int
    map_bytes: int
    bounded: bool


@dataclass(frozen=True)
class Measured:
    """The measurements of a member. Speed ratios are to the first member; above 1 is faster.

    The first training step includes the compilation of the network, if it is compiled, and of kernels. The map memory
    is the peak memory without weights, gradients and the optimizer's state.

    A detector has no ceilings, since its number of regions differs between training, inference and counting.
    """

    label: str
    batch_size: int
    train: Median
    infer: Median
    train_ratio: Median
    infer_ratio: Median
    first_step_s: float
    peak_memory_bytes: int
    memory_ratio: float
    map_memory_ratio: float | None
    macs: int
    flop_ceiling: float | None
    byte_ceiling: float | None

    def as_dict(self) -> dict[str, Any]:
        """The numbers for JSON: each median, and its interval as a list."""
        pairs = {"train_images_per_s": self.train, "infer_images_per_s": self.infer}
        pairs |= {"train_ratio": self.train_ratio, "infer_ratio": self.infer_ratio}
        numbers: dict[str, Any] = {"label": self.label, "batch_size": self.batch_size}
        for name, value in pairs.items():
            numbers |= {name: value.median, f"{name}_interval": [value.low, value.high]}
        ceilings = {"flop_ceiling_images_per_s": self.flop_ceiling, "byte_ceiling_images_per_s": self.byte_ceiling}
        numbers["first_step_s"] = self.first_step_s
        memory: dict[str, Any] = {"peak_memory_bytes": self.peak_memory_bytes, "memory_ratio": self.memory_ratio}
        memory["map_memory_ratio"] = self.map_memory_ratio
        return {**numbers, **memory, "macs": self.macs, **ceilings}


def main() -> None:
    """``attnbench speed attention=none,se,eca backbone=resnet50 [key=value ...]``."""
    parser = override_parser(
        "speed", "Speed and memory of training and inference, in turns; ratios are to the first member."
    )
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="timed calls of each kind (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse()
    if options.repetitions < 1:
        raise ConfigError("--repetitions is below 1", "command line", "use 1 or more; 15 give a 95 % interval")
    labels, configs = members(options.overrides)
    named = any(override.startswith("batch_size=") for override in options.overrides)
    lines = measure(labels, configs, options.overrides, options.repetitions, batch_named=named)
    if options.json:
        print(json.dumps([line.as_dict() for line in lines], indent=2))
    else:
        report(lines, configs[0])


def members(overrides: Sequence[str]) -> tuple[list[str], list[Config]]:
    """The labels and configurations of the members of a command line; ``attention=none,se`` has two members."""
    with hydra_state.prepared():
        lines = sweep.expand(list(overrides))
        configs = [composition.compose(line) for line in lines]
    common = set.intersection(*(set(line) for line in lines))
    different = [[override for override in line if override not in common] for line in lines]
    if all(len(line) == 1 for line in different) and len({line[0].partition("=")[0] for line in different}) == 1:
        different = [[line[0].partition("=")[2]] for line in different]
    return [" ".join(line) or configs[0].choices["attention"] for line in different], configs


def measure(
    labels: Sequence[str], configs: Sequence[Config], overrides: Sequence[str], repetitions: int, *, batch_named: bool
) -> list[Measured]:
    """Measure every member's speed and memory.

    Args:
        labels, configs: of the members.
        overrides: of the command line.
        repetitions: timed calls of each kind.
        batch_named: whether the command line sets the batch size.

    Raises:
        ConfigError: the members do not share a device.
        OutOfMemory: the members do not fit in memory together.
    """
    runtimes: list[Runtime] = [one.build("runtime") for one in configs]
    if len({runtime.device for runtime in runtimes}) > 1:
        raise ConfigError("members are on several devices", "runtime.device", "compare on one device")
    with runtimes[0].start() as first:
        try:
            made = [
                timed_network(label, one, Process(runtime, first.device, None), list(overrides), batch_named)
                for label, one, runtime in zip(labels, configs, runtimes, strict=True)
            ]
            return _measured(made, first, repetitions)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory("out of memory", "batch_size", "use a smaller batch, or fewer members") from error


def timed_network(
    label: str, composed: Config, process: Process, overrides: list[str], batch_named: bool
) -> TimedNetwork:
    """Build a member's network, its optimizer and a batch of noise, and return its calls."""
    classes, size = catalog.setting(composed, overrides)
    small = (size if isinstance(size, int) else min(size)) < 64
    batch = composed.tree["batch_size"] if batch_named or small else BATCHES[process.device.type]
    torch.manual_seed(0)
    schedule, task = composed.build("schedule"), composed.build("task")
    model = process.place(factory.network(factory.without_weights(composed), classes)[0])
    division = setup.division(composed, model, 1, batch)
    division.refuse()
    fused.choose(model, composed.tree["runtime"]["tail"])
    network = process.wrap(model)
    state = setup.train_state(model, schedule, process)
    given = Noise(setup.noise(composed, batch, process.device, overrides))
    noise = next(Feed(given, process, (0.5,) * 3, (0.25,) * 3).epoch(0))

    clip = schedule.clip_grad_norm
    update = Update(state, lambda part: task.loss(network, part), process, division.accumulate, clip)

    def train() -> None:
        network.train()
        update(noise)
        _wait(process)

    evaluated = process.wrap(folded(model, process.reduced))

    @torch.no_grad()
    def infer() -> None:
        evaluated.eval()
        with process.autocast():
            evaluated(noise.images)
        _wait(process)

    sketch, _ = factory.sketch(composed, classes)
    width = torch.finfo({"fp32": torch.float32}.get(composed.tree["runtime"]["precision"], torch.bfloat16)).bits // 8
    return TimedNetwork(
        label=label,
        batch=batch,
        train=train,
        infer=infer,
        own_bytes=lambda: _bytes(model, state.optimizer),
        gradient_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        macs=complexity.macs(sketch, size),
        map_bytes=2 * width * maps(sketch, size),
        bounded="detector" not in composed.choices,
    )


def maps(model: nn.Module, size: complexity.Size) -> int:
    """The number of elements in the outputs of all layers of a network, for one image."""
    numbers: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            numbers.append(output.numel())

    hooks = [part.register_forward_hook(count) for part in model.modules() if not any(part.children())]
    with torch.no_grad():
        model.eval()(complexity.image(model, size))
    for hook in hooks:
        hook.remove()
    return sum(numbers)


def _measured(made: Sequence[TimedNetwork], process: Process, repetitions: int) -> list[Measured]:
    first = first_steps(made)
    print(f"warming up, then {repetitions} turns of each kind", file=sys.stderr)
    memory = peak_memory(made, process)
    maps_only = [peak - one.own_bytes() - one.gradient_bytes for peak, one in zip(memory, made, strict=True)]
    kinds: dict[str, Timings] = {
        "train": benchmark.compare(_calls(made, "train"), repetitions=repetitions, clock=wall_seconds),
        "infer": benchmark.compare(_calls(made, "infer"), repetitions=repetitions, clock=wall_seconds),
    }
    flops, bandwidth = machine(process)
    base = _key(0, made[0])
    lines = []
    for i, one in enumerate(made):
        key = _key(i, one)
        lines.append(
            Measured(
                label=one.label,
                batch_size=one.batch,
                train=kinds["train"].rate(key, one.batch),
                infer=kinds["infer"].rate(key, one.batch),
                train_ratio=_per_image(kinds["train"].ratio(key, base), one, made[0]),
                infer_ratio=_per_image(kinds["infer"].ratio(key, base), one, made[0]),
                first_step_s=first[i],
                peak_memory_bytes=memory[i],
                memory_ratio=memory[i] / memory[0],
                map_memory_ratio=maps_only[i] / maps_only[0] if maps_only[0] > 0 else None,  # unknown on this system
                macs=one.macs,
                flop_ceiling=flops / (6 * one.macs) if one.bounded else None,
                byte_ceiling=bandwidth / (3 * one.map_bytes) if one.bounded else None,
            )
        )
    return lines


def _key(i: int, one: TimedNetwork) -> str:
    return f"{i} {one.label}"


def _calls(made: Sequence[TimedNetwork], kind: str) -> dict[str, Callable[[], None]]:
    return {_key(i, one): getattr(one, kind) for i, one in enumerate(made)}


def _per_image(ratio: Median, one: TimedNetwork, base: TimedNetwork) -> Median:
    scale = one.batch / base.batch
    return Median(ratio.median * scale, ratio.low * scale, ratio.high * scale)


def first_steps(made: Sequence[TimedNetwork]) -> list[float]:
    """Seconds of the first training step of each member; says which one it is, since compiling can take minutes."""
    seconds = []
    for i, one in enumerate(made, start=1):
        print(f"first step of {one.label} ({i} of {len(made)}) ...", file=sys.stderr, end=" ", flush=True)
        began = time.perf_counter()
        one.train()
        seconds.append(time.perf_counter() - began)
        print(f"{seconds[-1]:.1f} s", file=sys.stderr)
    return seconds


def peak_memory(made: Sequence[TimedNetwork], process: Process) -> list[int]:
    """Peak bytes of a training step of each member, including its own weights and optimizer but no other member's.

    On a CPU, the growth of the process is measured (on Linux only; 0 elsewhere). It is slightly above the size of the
    tensors and varies by a few percent between steps, so the members take turns and the median is returned.
    """
    for one in made:
        one.train()  # after the first step, the optimizer's state exists
    turns = [[_peak(one, process) for one in made] for _ in range(MEMORY_TURNS)]
    return [int(statistics.median(peaks)) for peaks in zip(*turns, strict=True)]


def _peak(one: TimedNetwork, process: Process) -> int:
    if process.device.type == "cuda":
        before = torch.cuda.memory_allocated(process.device)
        torch.cuda.reset_peak_memory_stats(process.device)
        one.train()
        grown = torch.cuda.max_memory_allocated(process.device) - before
    else:
        grown = _growth(one.train)
    return grown + one.own_bytes()


def _growth(call: Callable[[], None]) -> int:
    """The peak growth of the process in bytes during a call, after free memory is returned to the system."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # resets the recorded peak
    before = _line(status, "VmRSS")
    call()
    return _line(status, "VmHWM") - before


def _line(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    tensors = [*model.parameters(), *model.buffers(), *state]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def machine(process: Process) -> tuple[float, float]:
    """The operations and bytes a second that the device reaches; a multiply-add is two operations."""
    device = process.device
    n, block = (8192, 2**28) if device.type == "cuda" else (1024, 2**26)
    with process.autocast():
        a, b = torch.randn(2, n, n, device=device)
        if torch.is_autocast_enabled(device.type):
            a, b = (x.to(torch.get_autocast_dtype(device.type)) for x in (a, b))
    source = torch.zeros(block, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    waited = {name: _waiting(call, process) for name, call in calls.items()}
    seconds = benchmark.compare(waited, repetitions=5, clock=wall_seconds).seconds
    return 2 * n**3 / statistics.median(seconds["product"]), 2 * block / statistics.median(seconds["copy"])


def _waiting(call: Callable[[], object], process: Process) -> Callable[[], None]:
    def waited() -> None:
        call()
        _wait(process)

    return waited


def _wait(process: Process) -> None:
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)


def report(lines: Sequence[Measured], composed: Config) -> None:
    """Print the measurements as a table, with the setting in its title."""
    from rich.table import Table

    table = Table("", "train", "x", "infer", "x", "peak MiB", "x", "first s", title=_setting(lines, composed))
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        train = f"{line.train.median:.3g}", _ratio(line.train_ratio)
        infer = f"{line.infer.median:.3g}", _ratio(line.infer_ratio)
        memory = f"{line.peak_memory_bytes / 2**20:.0f}", f"{line.memory_ratio:.3f}"
        table.add_row(line.label, *train, *infer, *memory, f"{line.first_step_s:.1f}")
    console.show(table, *_notes(lines))


def _ratio(ratio: Median) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"


def _notes(lines: Sequence[Measured]) -> list[str]:
    first, ratio = lines[0], "median ratio to the first member in the same turn, with its 95 % interval"
    notes = [f"Speeds are medians in images/s; x: {ratio}. First s: seconds of the first training step."]
    if first.flop_ceiling and first.byte_ceiling:
        ceilings = f"{first.flop_ceiling:.0f} images/s by multiply-adds, {first.byte_ceiling:.0f} by feature maps."
        notes.append(f"Ceilings for training the first member on this device, without fusion: {ceilings}")
    return notes


def _setting(lines: Sequence[Measured], composed: Config) -> str:
    from attnbench.runs.run import environment

    runtime, about = composed.tree["runtime"], environment()
    how = "compiled" if runtime["compile"] else "eager"
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}"
    return f"batch {lines[0].batch_size}, {runtime['precision']}, {how}; {where}"
