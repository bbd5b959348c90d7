"""The allocator keeps large blocks: freed memory stays mapped and is reused."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from attnbench.base.allocator import keep_large_blocks
{call}
x = torch.ones(2**24)
for _ in range(20):
    x.relu()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    x.relu()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Page faults of ten operations on a tensor of 64 MB."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_tensors_take_the_memory_of_earlier_ones() -> None:
    kept, usual = faults("assert keep_large_blocks()"), faults("")
    assert kept < usual / 5, (kept, usual)
