"""Compare any set of runs: which keys differ, means and deviations over seeds, paired differences.

All numbers come from result.json. Runs are grouped by configuration, and the keys that differ are detected. Each group
is compared, seed by seed, with the group without attention, or else with the first group. Runs of different
configurations are never averaged: ``by`` chooses the key on the x axis, and the other keys that differ become curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnbench.base.errors import ConfigError, DataError
from attnbench.reports.report import source_of, tally
from attnbench.reports.statistics import Paired, paired, spread
from attnbench.runs import results
from attnbench.runs.results import ABSENT, Run
from attnbench.training.metrics.titles import TITLES

METHOD = ("attention", "placement")  # these keys are compared; all others are the setting of the comparison


@dataclass(frozen=True)
class Group:
    """The runs of one configuration.

    Attributes:
        values: the values of the keys that differ between the groups.
        scores: the metric by seed.
        missing: seeds that other groups have and this one lacks.
        baseline: the label of the group that this one is compared with; empty for the baseline itself.
        against: the difference to the baseline; None for the baseline itself and if they share no seed.
    """

    values: dict[str, Any]
    runs: list[Run]
    scores: dict[int, float]
    mean: float
    std: float | None
    missing: list[int]
    baseline: str = ""
    against: Paired | None = None

    @property
    def label(self) -> str:
        """The values that distinguish this group from the others, as text."""
        return label(self.values)

    def at(self, key: str) -> Any:
        """The value of a key in the group's configuration."""
        return self.runs[0].value(key)


@dataclass(frozen=True)
class Comparison:
    """Several groups and what they have in common.

    Attributes:
        keys: the keys that differ between the groups.
        axis: the key on a picture's x axis.
        common: the setting that all runs share, as text.
        notes: commits, devices and data of the runs, and runs that were left out.
        unfinished: folder and state of each run without a result.
    """

    metric: str
    keys: list[str]
    axis: str
    groups: list[Group]
    common: str
    notes: list[str] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The metric's name and the setting that all runs share."""
        return f"{metric_name(self.metric)}: {self.common}"


def label(values: dict[str, Any]) -> str:
    """Values as text, such as ``eca kernel_size=3``: an attention by its name, other keys by their last part."""
    parts = [
        str(value) if key in results.NAMED else f"{key.rpartition('.')[2]}={text(value)}"
        for key, value in values.items()
        if value != ABSENT
    ]
    return " ".join(parts) or "all runs"


def text(value: Any) -> str:
    """A value as text; the items of a list are joined by plus signs."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


NAMES = {
    "top1": "top-1 accuracy after the last epoch (%)",
    "top5": "top-5 accuracy after the last epoch (%)",
    "best_top1": "top-1 accuracy of the best epoch (%), chosen on the images it is measured on",
    **{name: f"{title} after the last epoch (%)" for name, title in TITLES.items() if not name.startswith("top")},
    "params": "parameters",
    "macs": "multiply-adds an image",
    "images_per_s": "training speed (images/s)",
    "seconds": "training time (s)",
    "peak_memory_bytes": "peak memory (bytes)",
}


def metric_name(metric: str) -> str:
    """A metric's readable name with its unit."""
    return NAMES.get(metric, metric)


def compare(
    runs: Sequence[Run], *, by: str | None = None, metric: str = "top1", baseline: str | None = None
) -> Comparison:
    """Group runs by the keys that differ, and compare each group with its baseline.

    Args:
        by: the key on the x axis; by default the last key that differs.
        metric: the key of a number in result.json.
        baseline: ``key=value`` that selects the baselines; by default the groups without attention, else the first.

    Raises:
        ConfigError: all runs agree in ``by``, or no group matches ``baseline``.
        DataError: no run is done, or none has the metric.
    """
    done, notes = _without_repeats([run for run in runs if run.result])
    unfinished = [(str(run.folder), run.state) for run in runs if not run.result]
    if not done:
        states = ", ".join(sorted({state for _, state in unfinished})) or "there are none"
        raise DataError(f"none of {len(runs)} runs is done", runs[0].folder if runs else "", states)
    results.refuse_other_metric(done, metric)
    keys, along = results.differing(done)
    axis = _axis(done, keys, by)
    shown = [key for key in keys if key != axis] + ([axis] if axis else [])
    groups = _groups(done, shown, metric)
    groups = _against(groups, keys, axis if by else "", baseline)
    notes += [f"{key} differs along with {', '.join(keys)}" for key in along if key != axis]
    return Comparison(metric, shown, axis, groups, _common(done, shown), notes + provenance(done), unfinished)


def _without_repeats(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Keep the first run of each configuration and seed; a note names each run left out."""
    first: dict[Any, Run] = {}
    notes = []
    for run in runs:
        kept = first.setdefault((run.identity, run.seed), run)
        if kept is not run:
            notes.append(f"{run.folder} is not counted: the same run as {kept.folder}")
    return list(first.values()), notes


def _axis(runs: Sequence[Run], keys: Sequence[str], by: str | None) -> str:
    if by is None:
        return keys[-1] if keys else ""
    varied = sorted({key for run in runs for key in run.values if len({str(r.value(key)) for r in runs}) > 1})
    if by not in varied:
        todo = f"there are {', '.join(varied) or 'none'}"
        raise ConfigError(f"{by} does not differ between these runs", "--by", todo)
    return by


def _groups(runs: Sequence[Run], keys: Sequence[str], metric: str) -> list[Group]:
    """One group for each configuration: those without attention first, then by value."""
    seeds = sorted({run.seed for run in runs})
    kinds: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (_order(run, keys), run.seed)):
        kinds.setdefault(run.identity, []).append(run)
    groups = []
    for members in kinds.values():
        scores = {run.seed: float(run.result[metric]) for run in members if results.is_number(run.result.get(metric))}
        if scores:
            over_seeds = spread(list(scores.values()))
            assert over_seeds is not None
            values = {key: members[0].value(key) for key in keys}
            missing = [seed for seed in seeds if seed not in scores]
            groups.append(Group(values, members, scores, over_seeds.mean, over_seeds.std, missing))
    return groups


def _order(run: Run, keys: Sequence[str]) -> list[Any]:
    return [run.value("attention") != "none", *(rank(run.value(key)) for key in keys)]


def rank(value: Any) -> tuple[int, float, str]:
    """A sort key: absent values, then numbers by size, then lists by length, then text."""
    if results.is_number(value):
        return 0, float(value), ""
    return (1, len(value), str(value)) if isinstance(value, list) else (2 if value != ABSENT else -1, 0.0, str(value))


def _against(groups: list[Group], keys: Sequence[str], axis: str, baseline: str | None) -> list[Group]:
    """Add to each group its difference to the baseline of the same setting."""
    method = [key for key in keys if key.split(".")[0] in METHOD] or ([axis] if axis else list(keys))
    setting = [key for key in keys if key not in method]
    chosen: dict[Any, Group] = {}
    for group in groups:
        if _is_baseline(group, baseline):
            chosen.setdefault(tuple(str(group.at(key)) for key in setting), group)
    if baseline and not chosen:
        raise ConfigError(f"no group has {baseline}", "--baseline", f"write one of {', '.join(keys)} as key=value")
    if not baseline:  # a setting without a plain network is compared with its first group
        for group in groups:
            chosen.setdefault(tuple(str(group.at(key)) for key in setting), group)
    return [_set_against(group, chosen.get(tuple(str(group.at(key)) for key in setting))) for group in groups]


def _is_baseline(group: Group, baseline: str | None) -> bool:
    if baseline is None:
        return bool(group.at("attention") == "none")
    key, _, value = baseline.partition("=")
    return text(group.at(key)) == value


def _set_against(group: Group, base: Group | None) -> Group:
    if base is None or base is group:
        return group
    return replace(group, baseline=base.label, against=paired(group.scores, base.scores))


def _common(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """The setting that all runs share, as text."""
    parts = [str(runs[0].value(key)) for key in results.NAMED if key not in keys]
    epochs = sorted({run.result.get("epochs") for run in runs}, key=str)
    seeds = sorted({run.seed for run in runs})
    parts += [f"{'/'.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}"]
    return ", ".join(parts) + f" (seeds {', '.join(map(str, seeds))})"


def provenance(runs: Sequence[Run]) -> list[str]:
    """The commits, devices and data of runs; if there are several of a kind, with the number of runs for each."""
    notes = []
    for name, found in (
        ("commit", [run.environment.get("commit") for run in runs]),
        ("device", [run.environment.get("device") for run in runs]),
        ("data", [source_of(run.result) for run in runs]),
    ):
        values = [value for value in found if value]
        kinds = len(set(values))
        if kinds > 1:
            notes.append(f"{kinds} kinds of {name}: {tally(values)}")
        elif kinds:
            notes.append(f"{name} {values[0]}")
    return notes
