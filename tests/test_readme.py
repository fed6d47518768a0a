"""Every command that the README shows runs as it stands there, only with fewer steps and less data."""

import re
import shlex
from pathlib import Path

import pytest

import gpt
import makemore
import micrograd

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {"makemore.py": makemore, "gpt.py": gpt, "micrograd.py": micrograd}


def commands():
    """All `python FILE.py ...` of the README, in fenced blocks and in code spans, in order, without comments."""
    found = re.findall(rf"`?(?:^|`|&& )(python (?:{'|'.join(PROGRAMS)})[^`\n]*)", README, re.MULTILINE)
    return [shlex.split(re.sub(r"\s#.*", "", command))[1:] for command in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new user's folder, in which the commands run one after the other."""
    path = tmp_path_factory.mktemp("readme")
    for name, characters in (("names.txt", 8_000), ("input.txt", 20_000)):
        (path / name).write_text((ROOT / name).read_text(encoding="utf-8")[:characters], encoding="utf-8")
    return path


def test_there_are_commands():
    assert len(commands()) > 20
    assert {program for program, *_ in commands()} == set(PROGRAMS)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command(command, folder, monkeypatch, capsys):
    program, *argv = command
    monkeypatch.chdir(folder)
    skips = {"--sample-only", "--eval", "--fold-batchnorm", "--find-lr", "--check-backprop", "--prompt", "--attention"}
    if skips.isdisjoint(argv):
        argv = [*argv, "--max-steps", "2"]
    assert PROGRAMS[program].main(argv) in (0, None), capsys.readouterr().err


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
