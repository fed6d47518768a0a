"""What all three files promise: each works alone, imports in silence, and shared helpers are the same in every copy."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PIPES

ROOT = Path(__file__).parents[1]
trio = pytest.mark.parametrize("name", ["micrograd", "makemore", "gpt"])

# Same name, another thing. Everything else that gpt.py and makemore.py both define is the same text in both.
MODELS = {"Bigram", "Block", "CausalSelfAttention", "Entry", "MLP"}
DIFFERENT = MODELS | {"Config", "Run", "Vocab", "build", "configure", "introduce", "speed", "do_eval", "do_train"}
DIFFERENT |= {"train", "start_run", "open_run", "begin", "learning", "snapshot", "restore", "keep", "glimpse"}
DIFFERENT |= {"do_interactive"}


@pytest.fixture
def alone(tmp_path):
    """Run Python in an empty folder that holds nothing but a copy of one file."""

    def python(name, *argv):
        shutil.copy(ROOT / f"{name}.py", tmp_path)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, *argv], cwd=tmp_path, env=env, **PIPES)
        assert [p.name for p in tmp_path.iterdir()] == [f"{name}.py"]  # whatever it did, it left nothing behind
        return done.returncode, done.stdout, done.stderr

    return python


@trio
def test_help(alone, name):
    """All of the file is read for it, without a word, and without a file."""
    status, out, err = alone(name, f"{name}.py", "--help")
    assert (status, err) == (0, "") and out.startswith("usage:")


def definitions(name):
    """Name -> source of the functions and classes that a file defines at its top level."""
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    tops = [x for x in ast.parse(source).body if isinstance(x, (ast.FunctionDef, ast.ClassDef))]
    lines = source.split("\n")
    return {top.name: lines[top.lineno - 1 : top.end_lineno] for top in tops}


def test_shared_helpers_are_the_same_text():
    gpt, makemore = definitions("gpt"), definitions("makemore")
    shared = gpt.keys() & makemore.keys()
    assert {"setting", "parse_args", "heeded", "write_atomic", "load_checkpoint", "drawing", "main"} <= shared
    assert {name for name in shared if gpt[name] != makemore[name]} == DIFFERENT


# Lines down to the first heavy rule, or to the end of the optimisers; and the whole file
LENGTHS = {"micrograd": (550, 1009), "makemore": (900, 2514), "gpt": (650, 2198)}


@trio
def test_the_lecture_is_short_and_stands_in_front(name):
    lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").split("\n")
    heavy = [i for i, line in enumerate(lines) if re.fullmatch("# =+", line) and lines[i + 1].startswith("# THE")]
    ends = [i for i in heavy if "LECTURE" not in lines[i + 1]]
    assert ["LESSONS" in lines[i + 1] for i in ends] == [True, False] and "WORKSHOP" in lines[ends[1] + 1]
    assert (ends[0] <= LENGTHS[name][0], len(lines) - 1 <= LENGTHS[name][1]) == (True, True)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", ["makemore", "gpt"])
def test_targets_may_be_probabilities(name):
    """Certain ones are as good as tokens; those of a teacher who knows exactly cost its entropy."""
    cross_entropy = importlib.import_module(name).cross_entropy
    logits, tokens = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    certain = torch.nn.functional.one_hot(tokens, 7).float()
    torch.testing.assert_close(cross_entropy(logits, certain), cross_entropy(logits, tokens))
    torch.testing.assert_close(cross_entropy(logits[:, 0], certain[:, 0]), cross_entropy(logits[:, 0], tokens[:, 0]))
    teacher = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(cross_entropy(logits, teacher.probs), teacher.entropy().mean())


def test_importing_micrograd_needs_the_standard_library_only(alone):
    code = (
        "import sys; before = {*sys.modules}; import micrograd; "
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names)"
    )
    assert alone("micrograd", "-c", code) == (0, "micrograd\n", "")
