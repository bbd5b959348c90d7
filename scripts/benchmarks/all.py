"""Every claim about speed that a CPU can show, measured and written to ``docs/results/speed.md``.

    make bench                                              # about an hour of a quiet machine with two cores
    python scripts/benchmarks/all.py [NAME ...] [--repetitions N]    # some of them; what others left stays

Each benchmark leaves its numbers in ``docs/results/speed/``, so that an interrupted round goes on where it was; the
page is made of what lies there.
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
    "cifar_training_compiled": ["cifar_training.py", "--compile"],
    "cifar_memory": ["cifar_memory.py"],
    "attention_cost": ["attention_cost.py"],
    "attention_cost_compiled": ["attention_cost.py", "--compile"],
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
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    words.add_argument("--repetitions", type=int, help="instead of each script's own")
    words.add_argument("--results", type=Path, default=RESULTS)
    taken = words.parse_args()
    if unknown := set(taken.names) - set(BENCHMARKS):
        words.error(f"no benchmark is called {min(unknown)}; there are {', '.join(BENCHMARKS)}")
    (taken.results / "speed").mkdir(parents=True, exist_ok=True)
    for name in taken.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        extra = ["--repetitions", str(taken.repetitions)] if taken.repetitions else []
        left = measured([*BENCHMARKS[name], *extra, "--json"])
        (taken.results / "speed" / f"{name}.json").write_text(json.dumps(left, indent=2) + "\n")
        (taken.results / "speed.md").write_text(page(taken.results / "speed"))


def measured(command: list[str]) -> dict[str, Any]:
    """What a script found, and when. A script that misses its bar exits with 1 and is reported like any other."""
    done = subprocess.run([sys.executable, *command], cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith("{"):
        sys.exit(f"error: {command[0]} found nothing (exit {done.returncode}); see above")
    return json.loads(done.stdout) | {"date": date.today().isoformat()}


def page(folder: Path) -> str:
    """The page of all numbers that lie in a folder."""
    found = {name: json.loads(path.read_text()) for name in BENCHMARKS if (path := folder / f"{name}.json").exists()}
    missing = [name for name in BENCHMARKS if name not in found]
    lines = [row(finding, left) for left in found.values() for finding in left["findings"]]
    last = f"\nNot measured: {', '.join(missing)}.\n" if missing else ""
    return HEAD + "\n".join(lines) + "\n" + last + "\n" + "\n".join(machines(found)) + "\n"


def row(finding: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """A finding as a line of the page's table."""
    when = f"{left['date']}, {str(left['machine']['commit'])[:9]}"
    cells = [finding["claim"], finding["bar"], f"**{finding['reached']}**", "met" if finding["met"] else "NOT MET"]
    return "| " + " | ".join([*cells, str(left["repetitions"]), when]) + " |"


def machines(found: Mapping[str, Any]) -> list[str]:
    """A line for each machine that measured something."""
    by_machine: dict[str, list[str]] = {}
    for name, left in found.items():
        about = left["machine"]
        text = f"{about['device']}, {about['cores']} cores, torch {about['torch']}, Python {about['python']}"
        by_machine.setdefault(f"{text}, {about['platform']}", []).append(name)
    return [f"- {machine}: {', '.join(names)}" for machine, names in by_machine.items()]


if __name__ == "__main__":
    main()
