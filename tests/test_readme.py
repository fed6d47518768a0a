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
LETTERS = "aeilmnorst"
PROGRAMS = {"makemore.py": makemore, "gpt.py": gpt, "micrograd.py": micrograd}


def commands():
    """Each `python FILE.py ...` of the README, in fenced blocks and in code spans, in order, without comments, once."""
    found = re.findall(rf"`?(?:^|`|&& )(python (?:{'|'.join(PROGRAMS)})[^`\n]*)", README, re.MULTILINE)
    return [shlex.split(command)[1:] for command in dict.fromkeys(re.sub(r"\s*#.*", "", found) for found in found)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new user's folder, in which the commands run one after the other. Of few letters, figures are drawn quickly."""
    path = tmp_path_factory.mktemp("readme")
    names = [name for name in (ROOT / "names.txt").read_text(encoding="utf-8").split() if set(name) <= set(LETTERS)]
    (path / "names.txt").write_text("\n".join(names[:1000]), encoding="utf-8")
    (path / "input.txt").write_text((ROOT / "input.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return path


def test_there_are_commands():
    assert len(commands()) > 20
    assert {program for program, *_ in commands()} == set(PROGRAMS)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command(command, folder, monkeypatch, capsys):
    program, *argv = command
    monkeypatch.chdir(folder)
    said = iter(["a", ":quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    skips = {"--sample-only", "--eval", "--fold-batchnorm", "--find-lr", "--check-backprop", "--prompt", "--attention"}
    skips |= {"--interactive"}
    if skips.isdisjoint(argv):
        argv = [*argv, "--max-steps", "2", *(["--max-new-tokens", "50"] if program == "gpt.py" else [])]
    assert PROGRAMS[program].main(argv) in (0, None), capsys.readouterr().err


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
