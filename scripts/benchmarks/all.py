"""Measure every claim about speed that can be shown on a CPU, and write ``docs/results/speed.md``.

    make bench                                              # about an hour on a quiet machine with two cores
    python scripts/benchmarks/all.py [NAME ...] [--repetitions N]    # only these; keeps the numbers of the others

With PYTORCH_CIFAR=FOLDER, a clone of github.com/kuangliu/pytorch-cifar, its own main.py is the reference for CIFAR.

Each benchmark writes its numbers to ``docs/results/speed/``, from which the page is made. If a round is interrupted,
name the remaining benchmarks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "docs" / "results"
BENCHMARKS = {
    "cifar_training": ["cifar_training.py"],
    "cifar_training_no_workers": ["cifar_training.py", "--workers", "0"],
    "cifar_training_compiled": ["cifar_training.py", "--compile"],
    "cifar_memory": ["cifar_memory.py"],
    "attention_cost": ["attention_cost.py"],
    "attention_cost_two_threads": ["attention_cost.py", "--threads", "2"],
    "attention_cost_compiled": ["attention_cost.py", "--compile"],
    "attention_cost_cifar": ["attention_cost.py", "mobilenetv2_cifar"],
    "attention_cost_cifar_two_threads": ["attention_cost.py", "mobilenetv2_cifar", "--threads", "2"],
    "every_attention": ["every_attention.py"],
    "every_attention_cifar": ["every_attention.py", "mobilenetv2_cifar"],
    "imagenet_input": ["imagenet_input.py"],
    "cifar_input": ["cifar_input.py"],
    "cold_start": ["cold_start.py"],
    "pool": ["pool.py"],
    "packing": ["packing.py", "runtime.device=cpu"],
}
HEAD = """# Speed

This page is written by `make bench` (`python scripts/benchmarks/all.py NAME` runs the script of one line). Ours and the
reference are measured in one run, in turns. The value is the median of the ratios of the turns, with its 95 % interval
(with fewer than six turns, their range). The last column gives the date and the commit.

| claim | bar | reached | | turns | measured |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Run the named benchmarks, or all, and write their numbers and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--repetitions", type=int, help="default: each script's own number")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {min(unknown)}; choose from {', '.join(BENCHMARKS)}")
    (options.results / "speed").mkdir(parents=True, exist_ok=True)
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        extra = ["--repetitions", str(options.repetitions)] if options.repetitions else []
        left = measured([*BENCHMARKS[name], *extra, "--json"])
        (options.results / "speed" / f"{name}.json").write_text(json.dumps(left, indent=2) + "\n")
        (options.results / "speed.md").write_text(page(options.results / "speed"))


def measured(command: list[str]) -> dict[str, Any]:
    """A script's findings with the date. A script that misses its bar exits with code 1 but is reported, too."""
    done = subprocess.run([sys.executable, *command], cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith("{"):
        sys.exit(f"error: {command[0]} has no findings (exit code {done.returncode}); see the output above")
    return json.loads(done.stdout) | {"date": date.today().isoformat()}


def page(folder: Path) -> str:
    """The page, made from all numbers in a folder."""
    found = {name: json.loads(path.read_text()) for name in BENCHMARKS if (path := folder / f"{name}.json").exists()}
    missing = [name for name in BENCHMARKS if name not in found]
    lines = [row(finding, left) for left in found.values() for finding in left["findings"]]
    costs = "".join(cost_table(left) for left in found.values() if "rows" in left)
    last = f"\nNot measured: {', '.join(missing)}.\n" if missing else ""
    return HEAD + "\n".join(lines) + "\n" + costs + last + "\n" + "\n".join(machines(found)) + "\n"


def cost_table(left: Mapping[str, Any]) -> str:
    """What each attention costs, as a section of the page."""
    head = f"\n## What each attention costs: {left['title']}\n\nRatios to the plain network; {_when(left)}, "
    head += f"{left['repetitions']} turns. Memory is the peak of a training step, without weights, gradients and "
    head += "momentum.\n\n| attention | placement | training | inference | memory |\n|---|---|---|---|---|\n"
    keys = ("attention", "placement", "train", "infer", "memory")
    return head + "".join("| " + " | ".join(one[key] for key in keys) + " |\n" for one in left["rows"])


def _when(left: Mapping[str, Any]) -> str:
    return f"{left['date']}, {str(left['machine']['commit'])[:9]}"


def row(finding: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """A finding as a row of the page's table."""
    cells = [finding["claim"], finding["bar"], f"**{finding['reached']}**", "met" if finding["met"] else "NOT MET"]
    return "| " + " | ".join([*cells, str(left["repetitions"]), _when(left)]) + " |"


def machines(found: Mapping[str, Any]) -> list[str]:
    """A line for each machine, with the benchmarks that were run on it."""
    by_machine: dict[str, list[str]] = {}
    for name, left in found.items():
        about = left["machine"]
        text = f"{about['device']}, {about['cores']} cores, torch {about['torch']}, Python {about['python']}"
        by_machine.setdefault(f"{text}, {about['platform']}", []).append(name)
    return [f"- {machine}: {', '.join(names)}" for machine, names in by_machine.items()]


if __name__ == "__main__":
    main()
