"""The embedded default learns to detect: AP50 of at least 60 for SSD, and an AP that rises for the R-CNNs.

    python scripts/checks/detection_digits.py ssd none se eca sb
    python scripts/checks/detection_digits.py faster_rcnn_small none eca schedule.epochs=4

Words with ``=`` are overrides. Every run prints its measures, the time on the clock and the processor's own, which
other programs on the machine do not lengthen: two cores have 600 processor seconds in five minutes.
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
    """Train each attention; exit 1 if one has not learned."""
    parser = argparse.ArgumentParser(description="The embedded default learns to detect.")
    parser.add_argument("detector", choices=option_files.names("detector"))
    parser.add_argument("attentions", nargs="+")
    taken = parser.parse_args([word for word in sys.argv[1:] if "=" not in word])
    overrides = [word for word in sys.argv[1:] if "=" in word]
    good = True
    for attention in taken.attentions:
        with tempfile.TemporaryDirectory() as outputs:
            words = ["task=detection", f"detector={taken.detector}", f"attention={attention}", *overrides]
            composed = composition.compose([*words, f"paths.outputs={outputs}"])
            began, wall = time.process_time(), time.perf_counter()
            left = run.train(composed)
            seconds = f"{time.perf_counter() - wall:.0f} s, {time.process_time() - began:.0f} s of the processor"
            course = [line["AP"] for line in read_metrics(Path(composed.run_folder) / "metrics.jsonl")]
        learned = left["AP50"] >= BAR if taken.detector == "ssd" else course[-1] > max(5.0, course[0])
        good &= learned
        measures = {key: round(value, 2) for key, value in left.items() if key in ("AP", "AP50", "mask_AP")}
        print(taken.detector, attention, measures, f"AP after each epoch {course}", seconds, flush=True)
    sys.exit(int(not good))


if __name__ == "__main__":
    main()
