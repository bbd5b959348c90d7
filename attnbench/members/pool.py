"""``hydra/launcher=pool``: members on this machine, one on every GPU or on every slot of its CPU."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from attnbench.errors import ConfigError
from attnbench.members.crew import Member
from attnbench.members.process import MemberProcess
from attnbench.ops.cores import cores
from attnbench.options import Count

CPU_SLOTS = 2


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Pool:
    """One process a member, or ``runtime.processes`` of them.

    Attributes:
        slots: members at a time; None for as many as the GPUs hold, or two on a CPU.
    """

    slots: Count | None = None

    def refuse(self) -> None: ...

    def crew(self, members: Sequence[Member]) -> PoolCrew:
        gpus = visible_gpus() if any(member.on_gpu for member in members) else []
        return PoolCrew(slots(self.slots, gpus, max(member.processes or 1 for member in members)))


@dataclasses.dataclass
class Slot:
    """A place for one member at a time: its environment and threads, and the member that is there."""

    environment: dict[str, str]
    threads: int
    member: Member | None = None
    process: MemberProcess | None = None


def slots(count: int | None, gpus: Sequence[str], processes: int = 1) -> list[Slot]:
    """Slots of ``processes`` GPUs each, as many as there are GPUs for unless ``count`` says otherwise; or of a CPU.

    Raises:
        ConfigError: a member needs more GPUs than there are.
    """
    if gpus and processes > len(gpus):
        todo = f"there are {len(gpus)}; use fewer, or runtime.device=cpu"
        raise ConfigError(f"a member of {processes} processes needs as many GPUs", "runtime.processes", todo)
    number = count or (len(gpus) // processes if gpus else max(1, min(CPU_SLOTS, cores() // processes)))
    threads = max(1, cores() // number)
    shares = [[gpus[(i * processes + k) % len(gpus)] for k in range(processes)] if gpus else [] for i in range(number)]
    return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(share)} if gpus else {}, threads) for share in shares]


def visible_gpus() -> list[str]:
    """The numbers of the GPUs that may be used, found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((number for number in numbers if number.isdecimal()), key=int)


class PoolCrew:
    """Members in slots."""

    patience = 2.0

    def __init__(self, places: Sequence[Slot]) -> None:
        self.places = list(places)

    def start(self, ready: Sequence[Member]) -> list[Member]:
        taken = []
        for place, member in zip([p for p in self.places if p.member is None], ready, strict=False):
            place.process = MemberProcess(member.config, place.environment, place.threads)
            place.member, member.began = member, time.monotonic()
            taken.append(member)
        return taken

    def ended(self) -> list[Member]:
        over = []
        for place in self.places:
            if place.member is not None and place.process is not None and not place.process.alive:
                place.member.outcome = place.process.outcome()
                over.append(place.member)
                place.member = place.process = None
        return over

    def stop(self) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.ask_to_save()

    def close(self) -> None: ...
