"""The short form of bench_faults.py: a few attempts of every kind of fault, with a fixed seed. Nothing may break."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PIPES

BENCH = Path(__file__).with_name("bench_faults.py")


@pytest.mark.skipif(sys.platform != "linux", reason="forks a warm process and reads its memory from /proc: Linux only")
def test_nothing_breaks():
    """In a process of its own: one that has computed with torch, as this one may have, cannot be forked."""
    done = subprocess.run([sys.executable, BENCH, "--short"], **PIPES)
    assert done.returncode == 0, done.stdout + done.stderr
