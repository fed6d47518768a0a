"""What all three files promise: each works alone, imports in silence, and shared helpers are the same in every copy."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
trio = pytest.mark.parametrize("name", ["micrograd", "makemore", "gpt"])

# Same name, another thing. Everything else that gpt.py and makemore.py both define is the same text in both.
MODELS = {"Bigram", "Block", "CausalSelfAttention"}
DIFFERENT = MODELS | {"Config", "Console", "Progress", "Vocab", "build", "configure", "evaluate", "generate", "main"}
DIFFERENT |= {"open_model", "plot_losses", "restore", "run", "snapshot", "train"}


@pytest.fixture
def alone(tmp_path):
    """Run Python in an empty folder that holds nothing but a copy of one file."""

    def python(name, *argv):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert [p.name for p in tmp_path.iterdir()] == [f"{name}.py"]  # whatever it did, it left nothing behind
        return done.returncode, done.stdout, done.stderr

    return python


@trio
def test_importing_is_silent(alone, name):
    assert alone(name, "-c", f"import {name}") == (0, "", "")


@trio
def test_help(alone, name):
    status, out, err = alone(name, f"{name}.py", "--help")
    assert (status, err) == (0, "") and out.startswith("usage:")


@trio
def test_an_unknown_flag_takes_one_line(alone, name):
    status, out, err = alone(name, f"{name}.py", "--no-such-flag")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(name) and "--no-such-flag" in err


def definitions(name):
    """Name -> source of the functions and classes that a file defines at its top level."""
    module = importlib.import_module(name)
    members = vars(module).items()
    return {key: inspect.getsource(x) for key, x in members if getattr(x, "__module__", "") == name and callable(x)}


def test_shared_helpers_are_the_same_text():
    gpt, makemore = definitions("gpt"), definitions("makemore")
    shared = gpt.keys() & makemore.keys()
    assert {"parse_args", "read_text", "write_atomic", "load_checkpoint", "pick_device"} <= shared
    assert {name for name in shared if gpt[name] != makemore[name]} == DIFFERENT


def test_importing_micrograd_needs_the_standard_library_only(alone):
    code = (
        "import sys, micrograd; print(*{m.partition('.')[0] for m in sys.modules} & {'numpy', 'torch', 'matplotlib'})"
    )
    assert alone("micrograd", "-c", code) == (0, "\n", "")
