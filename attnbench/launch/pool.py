"""``hydra/launcher=pool``: runs members on this machine, one member or pack on each GPU or CPU slot."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from attnbench.base.cores import cores
from attnbench.base.errors import ConfigError
from attnbench.config.options import Count, PackSize
from attnbench.launch.executor import Member
from attnbench.launch.packing import objection, packs
from attnbench.launch.process import MemberProcess
from attnbench.runs.attempt import Outcome

CPU_SLOTS = 2


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Pool:
    """Each member has one process or ``runtime.processes`` of them; a pack of members shares one process.

    Attributes:
        slots: members or packs at a time; None for as many as there are GPUs for, or two on a CPU.
        pack: the largest number of members that one process trains at once, if they differ only in values that change
            no shape; ``auto`` for as many as keep all slots busy, None for one.
    """

    slots: Count | None = None
    pack: PackSize | None = None

    def refuse(self) -> None:
        """Do nothing: this launcher works on every machine."""

    def executor(self, members: Sequence[Member]) -> PoolExecutor:
        """Make slots for these members, and report on stderr how many cannot be packed.

        Raises:
            ConfigError: a member needs more GPUs than the machine has.
        """
        gpus = visible_gpus() if any(member.on_gpu for member in members) else []
        places = slots(self.slots, gpus, max(member.processes or 1 for member in members))
        most = None if self.pack == "auto" else self.pack or 1
        if most != 1:
            _report_unpacked(members)
        return PoolExecutor(places, most)


def _report_unpacked(members: Sequence[Member]) -> None:
    for reason, count in Counter(filter(None, (objection(member.config) for member in members))).items():
        print(f"not packed: {count} of {len(members)} members ({reason})", file=sys.stderr)


@dataclasses.dataclass
class Slot:
    """A place for one process at a time.

    Attributes:
        environment: variables for the process.
        threads: the number of torch's threads.
        members: the members that the process trains.
        process: the running process; None if the slot is free.
        broken: members whose pack failed as a whole, with the failure that they share.
    """

    environment: dict[str, str]
    threads: int
    members: Sequence[Member] = ()
    process: MemberProcess | None = None
    broken: dict[Member, Outcome] = dataclasses.field(default_factory=dict)


def slots(count: int | None, gpus: Sequence[str], processes: int = 1) -> list[Slot]:
    """Make slots that share the GPUs, or the CPU if there are no GPUs.

    Args:
        count: the number of slots; None for as many as there are GPUs for, or at most two on a CPU.
        gpus: the numbers of the GPUs.
        processes: GPUs of a slot.

    Raises:
        ConfigError: a member needs more GPUs than there are.
    """
    if gpus and processes > len(gpus):
        todo = "use fewer processes, or runtime.device=cpu"
        what = f"a member with {processes} processes needs {processes} GPUs, but there are {len(gpus)}"
        raise ConfigError(what, "runtime.processes", todo)
    number = count or (len(gpus) // processes if gpus else max(1, min(CPU_SLOTS, cores() // processes)))
    threads = max(1, cores() // number)
    shares = [[gpus[(i * processes + k) % len(gpus)] for k in range(processes)] if gpus else [] for i in range(number)]
    return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(share)} if gpus else {}, threads) for share in shares]


def visible_gpus() -> list[str]:
    """The numbers of the usable GPUs, found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    numbers = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((number for number in numbers if number.isdecimal()), key=int)


class PoolExecutor:
    """Runs members in slots.

    Args:
        places: the slots.
        most: the largest number of members that a process trains at once; None for no limit.
    """

    patience = 2.0

    def __init__(self, places: Sequence[Slot], most: int | None = 1) -> None:
        self.places, self.most = list(places), most
        self.limits: dict[Member, int] = {}  # the largest pack size of members that failed in a larger pack

    def start(self, ready: Sequence[Member]) -> list[Member]:
        """Fill the free slots in order, with one member or one pack each, and return the started members."""
        free = [place for place in self.places if place.process is None]
        waiting = packs(ready, len(self.places), self.most, self.limits) if free else []
        for place, members in zip(free, waiting, strict=False):
            place.process = MemberProcess([m.config for m in members], place.environment, place.threads)
            place.members, now = members, time.monotonic()
            for member in members:
                member.began = now
        return [member for pack in waiting[: len(free)] for member in pack]

    def ended(self) -> list[Member]:
        """Members that ended, with their outcomes, and members of a failed pack, to be retried in smaller packs."""
        over = []
        for place in self.places:
            for number, outcome in (place.process.ended() if place.process else {}).items():
                member = place.members[number]
                if outcome.shared:
                    place.broken[member] = outcome
                else:
                    member.outcome = outcome
                    over.append(member)
            if place.process and not place.process.alive:
                over += self._smaller(place)
                place.process, place.broken = None, {}
        return over

    def _smaller(self, place: Slot) -> list[Member]:
        """The members of a failed pack, which are retried in packs of half its size or alone."""
        if place.broken:
            failure = next(iter(place.broken.values())).failure
            size, limit = len(place.members), math.ceil(len(place.members) / 2)
            self.limits |= dict.fromkeys(place.broken, limit)
            print(f"a pack of {size} failed: {failure}; retrying in packs of at most {limit}", file=sys.stderr)
        return list(place.broken)

    def stop(self) -> None:
        """Ask every process to save and end; a second call ends them at once."""
        for place in self.places:
            if place.process is not None:
                place.process.ask_to_save()

    def close(self) -> None:
        """Do nothing: the processes have ended by themselves."""
