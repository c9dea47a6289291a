"""Memory that is freed stays with the process under glibc, and nothing happens elsewhere."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from unmask import allocator

FAULTS = """
import resource, sys
from unmask.allocator import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
for _ in range(20):
    bytearray(48 << 20)  # over the largest threshold by which glibc would keep it by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert allocator.keep_memory() is False

    def missing(_):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert allocator.keep_memory() is False


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")
def test_large_blocks_are_not_faulted_in_anew():
    def faults(how):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout)

    assert faults("kept") < 0.5 * faults("default")
