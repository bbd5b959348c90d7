"""Compare any set of runs: which keys differ, means and deviations over seeds, paired differences.

All numbers come from result.json. Runs are grouped by configuration and data, and the keys that differ are detected.
Each group is compared, seed by seed, with the group without attention, or else with the first group. Runs of different
configurations or data are never averaged: ``by`` chooses the key on the x axis, and the other keys that differ become
curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnbench.base.errors import ConfigError, DataError, listed
from attnbench.reports.report import source_of, tally
from attnbench.reports.statistics import Paired, paired, spread
from attnbench.runs import record_faults, results
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
        is_baseline: whether others are compared with it.
    """

    values: dict[str, Any]
    runs: list[Run]
    scores: dict[int, float]
    mean: float
    std: float | None
    missing: list[int]
    baseline: str = ""
    against: Paired | None = None
    is_baseline: bool = False

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
    done = [run for run in runs if run.result]
    unfinished = [(str(run.folder), run.state) for run in runs if not run.result]
    if not done:
        states = listed(sorted({state for _, state in unfinished})) or "there are none"
        raise DataError(f"none of {len(runs)} runs is done", runs[0].folder if runs else "", states)
    results.refuse_other_metric(done, metric)
    done, lacking = _having(done, metric)
    done, notes = _without_repeats(_by_data(done))
    keys, along = results.differing(done)
    axis = _axis(done, keys, by)
    shown = [key for key in keys if key != axis] + ([axis] if axis else [])
    groups = _groups(done, shown, metric)
    groups = _against(groups, keys, axis if by else "", baseline)
    if also := [key for key in along if key != axis]:
        notes.append(f"{listed(also)} {'differs' if len(also) == 1 else 'differ'} along with {', '.join(keys)}")
    notes += [*lacking, *provenance(done)]
    return Comparison(metric, shown, axis, groups, _common(done, shown), notes, unfinished)


def _having(runs: Sequence[Run], metric: str) -> tuple[list[Run], list[str]]:
    """The runs whose result has the metric, and a note on the others."""
    found = [run for run in runs if results.is_number(run.result.get(metric))]
    others = [run for run in runs if run not in found]
    if not others:
        return found, []
    folders = listed(str(run.folder) for run in others)
    return found, [f"without {metric}, so not compared: {len(others)} of {len(runs)} runs: {folders}"]


def _by_data(runs: Sequence[Run]) -> list[Run]:
    """Add the data to the values of runs whose data set has one name and several contents."""
    contents: dict[str, set[str]] = {}
    for run in runs:
        contents.setdefault(str(run.value("dataset")), set()).add(_data_of(run))
    several = {name for name, some in contents.items() if len(some) > 1}
    return [
        replace(run, values={**run.values, "data": source_of(run.result) or "unknown"})
        if run.value("dataset") in several
        else run
        for run in runs
    ]


def _data_of(run: Run) -> str:
    """What is equal for runs on equal data."""
    about = run.result.get("data", {})
    return str(about.get("fingerprint") or about.get("source", ""))


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
    settings = [tuple(str(group.at(key)) for key in setting) for group in groups]
    compared = [_set_against(group, chosen.get(of)) for group, of in zip(groups, settings, strict=True)]
    compared = [
        replace(g, is_baseline=g.is_baseline and settings.count(of) > 1)
        for g, of in zip(compared, settings, strict=True)
    ]
    return sorted(compared, key=lambda group: not group.is_baseline)


def _is_baseline(group: Group, baseline: str | None) -> bool:
    if baseline is None:
        return bool(group.at("attention") == "none")
    key, _, value = baseline.partition("=")
    return text(group.at(key)) == value


def _set_against(group: Group, base: Group | None) -> Group:
    if base is None or base is group:
        return replace(group, is_baseline=base is group)
    return replace(group, baseline=base.label, against=paired(group.scores, base.scores))


def _common(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """The setting that all runs share, as text."""
    parts = [str(runs[0].value(key)) for key in results.NAMED if key not in keys]
    if "dataset" in keys:  # the title names the data, whatever differs
        parts.insert(0, " and ".join(sorted({str(run.value("dataset")) for run in runs})))
    epochs = sorted({run.result.get("epochs") for run in runs}, key=str)
    seeds = sorted({run.seed for run in runs})
    parts += [f"{'/'.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}"]
    return ", ".join(parts) + f" (seeds {', '.join(map(str, seeds))})"


def provenance(runs: Sequence[Run]) -> list[str]:
    """The commits, devices and data of runs; if there are several of a kind, with the number of runs for each."""
    notes = []
    for name, found in (
        ("commit", [record_faults.text_of(run.environment, "commit") for run in runs]),
        ("device", [record_faults.text_of(run.environment, "device") for run in runs]),
        ("data", [source_of(run.result) for run in runs]),
    ):
        values = [value for value in found if value]
        kinds = len(set(values))
        if kinds > 1:
            notes.append(f"{kinds} kinds of {name}: {tally(values)}")
        elif kinds:
            notes.append(f"{name} {values[0]}")
    faults = ((run.folder, record_faults.fault_of_file(run.folder / "env.json")) for run in runs)
    return notes + [f"{folder}: {fault}" for folder, fault in faults if fault]
