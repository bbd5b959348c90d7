"""Check that detectors learn on the built-in digits: AP50 of at least 60 for SSD, and a rising AP for the R-CNNs.

    python scripts/checks/detection_digits.py ssd none se eca sb
    python scripts/checks/detection_digits.py faster_rcnn_small none eca schedule.epochs=4

Arguments with ``=`` are overrides. Every run prints its metrics, its wall-clock time and its CPU time, which other
programs on the machine hardly affect. Two cores have 600 CPU-seconds in five minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from attnbench.config import composition, option_files
from attnbench.runs import run
from attnbench.training.recorder import read_metrics

BAR = 60.0


def main() -> None:
    """Train each attention; exit with code 1 if one does not learn."""
    parser = argparse.ArgumentParser(description="Check that detectors learn on the built-in digits.")
    parser.add_argument("detector", choices=option_files.names("detector"))
    parser.add_argument("attentions", nargs="+")
    options = parser.parse_args([argument for argument in sys.argv[1:] if "=" not in argument])
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    good = True
    for attention in options.attentions:
        with tempfile.TemporaryDirectory() as outputs:
            chosen = ["task=detection", f"detector={options.detector}", f"attention={attention}", *overrides]
            composed = composition.compose([*chosen, f"paths.outputs={outputs}"])
            began, wall = time.process_time(), time.perf_counter()
            left = run.train(composed)
            seconds = f"{time.perf_counter() - wall:.0f} s, {time.process_time() - began:.0f} CPU-seconds"
            course = [line["AP"] for line in read_metrics(Path(composed.run_folder) / "metrics.jsonl")]
        learned = left["AP50"] >= BAR if options.detector == "ssd" else course[-1] > max(5.0, course[0])
        good &= learned
        measures = {key: round(value, 2) for key, value in left.items() if key in ("AP", "AP50", "mask_AP")}
        print(options.detector, attention, measures, f"AP after each epoch {course}", seconds, flush=True)
    sys.exit(int(not good))


if __name__ == "__main__":
    main()
