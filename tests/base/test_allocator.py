"""The allocator keeps large blocks: freed memory stays mapped and is reused."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from attnbench.base.allocator import keep_large_blocks

def faults():
    x = torch.ones(2**24)
    for _ in range(20):
        x.relu()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        x.relu()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
assert keep_large_blocks()
print(faults(), usual)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_tensors_take_the_memory_of_earlier_ones() -> None:
    """Page faults of ten operations on a tensor of 64 MB, before and after the setting."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, usual = map(int, done.stdout.split())
    assert kept < usual / 5, (kept, usual)
