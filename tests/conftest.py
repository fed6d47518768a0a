import functools
import gc
import math
import os
import random
import signal
import subprocess
import warnings

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would our children
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers on every machine; cards have tests that imitate them
os.environ["OMP_NUM_THREADS"] = (
    "1"  # tiny tensors: more threads only cost; and runs compare bit for bit across processes
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals, a shell, pipes or limits as only POSIX has them")
PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")  # what ours write on every system


@pytest.fixture(autouse=True, scope="session")
def no_metal():
    """A Mac computes on its processor, too."""
    import torch  # not before the number of threads is set, and only by those who run tests

    torch.backends.mps.is_available = functools.cache(lambda: False)  # torch looks at what its own cache wraps
    torch.cpu._is_avx512_bf16_supported = lambda: False  # auto is float32, whatever the processor knows


@pytest.fixture
def pictures():
    """To be asked for by tests that look at real ones."""


@pytest.fixture
def haste(request, monkeypatch):
    """Leave out what takes longer than a small training: figures are made, but rendered only where asked for."""
    import gpt

    monkeypatch.setattr(gpt, "measure_peak", lambda *_: math.inf)
    monkeypatch.setattr(os, "fsync", lambda number: None)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", unrendered)


def unrendered(figure, path, **given):
    path.write(b"\x89PNG\r\n\x1a\n, say")


def let_go():
    """Close the files of runs that nobody holds any more: on Windows, what is open cannot be moved or replaced."""
    if os.name == "nt":
        gc.collect()


def invent(n, seed=1, consonants="bcdfghjklmnpqrstvwxyz"):
    """n distinct lines of one to five syllables."""
    rng, lines = random.Random(seed), set()
    while len(lines) < n:
        lines.add("".join(rng.choice(consonants) + rng.choice("aeiou") for _ in range(rng.randint(1, 5))))
    return sorted(lines)


def fitting(kind, **given):
    """Of these settings of makemore, those that this type of model uses."""
    import makemore  # not before the number of threads is set

    return {name: value for name, value in given.items() if name in makemore.uses(kind)}


@pytest.fixture
def cli(capsys):
    """Run makemore's command line in this process: (status, out, err), where warnings count as err."""
    import makemore

    def run(*argv):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            status = makemore.main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return status, out, err + "".join(f"warning: {w.message}\n" for w in caught)

    return run


def same(a, b):
    """Whether two nests of dicts, lists and tensors are equal, bit for bit; nan is nan."""
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)
