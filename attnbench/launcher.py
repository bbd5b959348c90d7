"""Hydra launchers of our own: ``hydra/launcher=pool``.

Hydra takes launchers from a package called hydra_plugins alone. Ours are registered by code, under names that such a
package would have given them, so that none has to be installed.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from attnbench.config import check
from attnbench.pool import Member, Pool, slots
from attnbench.watch import watcher

POOL = "hydra_plugins.attnbench.PoolLauncher"


class PoolLauncher(Launcher):
    """One process a member, one on every GPU or on every slot of a CPU.

    Args:
        slots: how many at a time; null for one on every GPU, or two on a CPU.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        configs = [self.context.config_loader.load_sweep_config(self.config, list(o)) for o in job_overrides]
        names = distinct([list(overrides) for overrides in job_overrides])
        members = [Member(name, check(config)) for name, config in zip(names, configs, strict=True)]
        watch = watcher()
        try:
            Pool(slots(self.slots), watch).run(members)
        finally:
            watch.close()
        returns = []
        for member, config, overrides in zip(members, configs, job_overrides, strict=True):
            ended = JobReturn(overrides=list(filter_overrides(overrides)), status=JobStatus.COMPLETED)
            ended.return_value = member.outcome
            self.context.callbacks.on_job_end(config=config, job_return=ended)
            returns.append(ended)
        return returns


def distinct(members: list[list[str]]) -> list[str]:
    """Names of members: the overrides that not all of them share."""
    common = set.intersection(*map(set, members)) if len(members) > 1 else set()
    return [" ".join(o for o in overrides if o not in common) for overrides in members]


def register() -> None:
    """Make the launchers known to Hydra."""
    store = ConfigStore.instance()
    store.store("pool", {"_target_": POOL, "slots": None}, group="hydra/launcher", provider="attnbench")
    Plugins.instance().class_name_to_class[POOL] = PoolLauncher
