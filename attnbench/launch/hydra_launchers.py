"""attnbench's Hydra launchers: ``hydra/launcher=pool``, ``ray``, ``submitit_slurm`` and ``submitit_local``.

Hydra finds launchers only in a package called hydra_plugins. These are registered by code, under names in that
package, so that no such package has to be installed. Their options are files in configs/hydra/launcher/.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from attnbench.base.errors import ConfigError
from attnbench.config import composition as configuration
from attnbench.config import option_files
from attnbench.config.builders import build, checked_node
from attnbench.launch import executor
from attnbench.launch.executor import Member
from attnbench.launch.progress import watcher
from attnbench.launch.sweep import distinct

NODE = "hydra.launcher"


class MemberLauncher(Launcher):
    """A Hydra launcher that runs each member of a sweep in a separate process."""

    builder: str

    def __init__(self, **options: Any) -> None:
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}
        self.launcher = _launcher({"_target_": self.builder, **plain})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the sweep's configuration, and cache the members' so that each is composed once instead of twice."""
        self.context, self.config = hydra_context, config
        load = hydra_context.config_loader.load_sweep_config
        self.loaded = cache(lambda *overrides: load(config, list(overrides)))

        def loaded(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
            """Replaces Hydra's method, which the sweeper also calls for every member just before ``launch``."""
            return self.loaded(*sweep_overrides)

        hydra_context.config_loader.load_sweep_config = loaded  # type: ignore[method-assign]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the members of a sweep, each given by its overrides.

        Returns:
            A ``JobReturn`` for each member, in order; its value is the member's ``Outcome``, also if it failed.
        """
        configs = [self.loaded(*overrides) for overrides in job_overrides]
        names = distinct([list(overrides) for overrides in job_overrides])
        members = [Member(name, configuration.check(config)) for name, config in zip(names, configs, strict=True)]
        executor.run(members, self.launcher, watcher())
        returns = []
        for member, config, overrides in zip(members, configs, job_overrides, strict=True):
            ended = JobReturn(overrides=list(filter_overrides(overrides)), status=JobStatus.COMPLETED)
            ended.return_value = member.outcome
            self.context.callbacks.on_job_end(config=config, job_return=ended)
            returns.append(ended)
        return returns


class PoolLauncher(MemberLauncher):
    """``hydra/launcher=pool``."""

    builder = "attnbench.launch.pool.Pool"


class RayLauncher(MemberLauncher):
    """``hydra/launcher=ray``."""

    builder = "attnbench.launch.ray_cluster.Ray"


class SubmititSlurmLauncher(MemberLauncher):
    """``hydra/launcher=submitit_slurm``."""

    builder = "attnbench.launch.submitit_slurm.Slurm"


class SubmititLocalLauncher(MemberLauncher):
    """``hydra/launcher=submitit_local``."""

    builder = "attnbench.launch.submitit_local.Local"


# The launchers by the ``_target_`` in their option files.
KINDS = {
    f"hydra_plugins.attnbench.{kind.__name__}": kind
    for kind in (PoolLauncher, RayLauncher, SubmititSlurmLauncher, SubmititLocalLauncher)
}


def _launcher(node: dict[str, Any]) -> executor.Launcher:
    """Build the launcher of a configuration node.

    Raises:
        ConfigError: an option is unknown, of the wrong type or out of range, or this launcher cannot work here.
    """
    launcher: executor.Launcher = build(checked_node(node, NODE), NODE)
    launcher.refuse()
    return launcher


def names() -> list[str]:
    """The names of the launchers."""
    return option_files.names("hydra/launcher")


def chosen(overrides: Sequence[str]) -> executor.Launcher:
    """The launcher of a command line, such as ``hydra/launcher=ray hydra.launcher.num_gpus=0.25``.

    Raises:
        ConfigError: there is no such launcher or option, or it cannot work here.
    """
    node = configuration.node(NODE, overrides)
    if node["_target_"] not in KINDS:
        what = "this launcher runs members in this process"
        raise ConfigError(what, "hydra/launcher", f"choose from {', '.join(names())}")
    return _launcher({**node, "_target_": KINDS[node["_target_"]].builder})


def register() -> None:
    """Register the launchers with Hydra."""
    Plugins.instance().class_name_to_class.update(KINDS)
