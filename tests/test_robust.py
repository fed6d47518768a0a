"""What both trainers keep when things go wrong: load, two hands on one folder, bad files, full disks, other systems."""

import contextlib
import csv
import errno
import io
import itertools
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import PIPES, invent, let_go, posix, same

import gpt
import makemore

TINY = {
    makemore: dict(type="transformer", max_steps=12, eval_interval=4, num_samples=3),
    gpt: dict(preset="mini", block_size=8, max_steps=12, eval_interval=4, max_new_tokens=8),
}
for settings in TINY.values():
    settings |= dict(n_layer=1, n_head=2, n_embd=8, dropout=0.1, batch_size=4, device="cpu")
KIND = {makemore: "type", gpt: "preset"}
SMALL = dict(n_layer=1, n_head=2, n_embd=8, n_embd2=8, batch_size=4)  # of whatever kind, where it uses them
PICTURES = {makemore: ("loss.png", "embedding.png", "scores.csv"), gpt: ("loss.png", "attention.png")}
READERS = {makemore: ("--sample-only", "--eval={data}"), gpt: ("--sample-only", "--eval={data}", "--attention=ba")}
CONSONANTS = "bcdfghjklmnpqrst"  # of the lines that are learned; some letters stay unknown

both = pytest.mark.parametrize("trainer", [makemore, gpt], ids=["makemore", "gpt"])
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full, or limits on memory that only Linux keeps")

# ----------------------------------------------------------------------------------------------------------------------
# Help for the tests


def flags(**given):
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def training(trainer, data, folder, **given):
    """The command line of a tiny training."""
    return ["-i", data, "-o", folder, *flags(**{**TINY[trainer], **given})]


def tree(folder):
    """What lies in a folder, {name: bytes}; a name that begins with a dot is nobody's business."""
    files = {str(p.relative_to(folder)): p for p in Path(folder).rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not re.search(r"(^|[/\\])\.", name)}


def load(path):
    return torch.load(path, weights_only=True)


def log_of(folder):
    """The rows of log.csv by step, without the seconds; as text, so that nan is nan."""
    rows = list(csv.reader((folder / "log.csv").read_text().splitlines()))[1:]
    assert len({row[0] for row in rows}) == len(rows)
    return {int(step): rest for step, _, *rest in rows}


def answers(run):
    """What a model says; whatever differs in its weights differs here."""
    weights = dict(run.model.state_dict())
    if run.config.__class__.__module__ == "gpt":
        return weights, run.generate(max_new_tokens=9, seed=1)
    return weights, run.sample(5, seed=1), run.score(["ba", "dodo"])


Result = namedtuple("Result", "status out err")


@pytest.fixture
def run(capsys):
    """Run a command line in this process: (status, out, err), where warnings count as err."""

    def run(trainer, *argv):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            status = trainer.main([str(arg) for arg in argv])
        let_go()
        out, err = capsys.readouterr()
        return Result(status, out, err + "".join(f"warning: {w.message}\n" for w in caught))

    return run


@pytest.fixture
def refused(run):
    """Run a command line that has to end with status 2 and one line that says why."""

    def refused(trainer, *argv, says=""):
        status, out, err = run(trainer, *argv)
        assert status == 2 and err.count("\n") == 1 and err.startswith(f"{trainer.__name__}: "), (status, err)
        assert re.search(says, err), err
        return out

    return refused


@pytest.fixture(autouse=True)
def haste(haste, request, monkeypatch):
    """No pictures at all, unless they are asked for."""
    if "pictures" not in request.fixturenames:
        for trainer in (makemore, gpt):
            monkeypatch.setattr(trainer, "plot_losses", lambda run: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "names.txt"
    path.write_text("\n".join(invent(80, 1, CONSONANTS)) + "\n")
    return path


@pytest.fixture(scope="module")
def other(data):
    """Another text in the same alphabet."""
    path = data.with_name("other.txt")
    path.write_text("\n".join(invent(80, 2, CONSONANTS)) + "\n")
    return path


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """trainer -> the folder of a finished training, never to be written to."""
    folders = {}
    for trainer in (makemore, gpt):
        folders[trainer] = tmp_path_factory.mktemp(trainer.__name__) / "out"
        with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "plot_losses", lambda run: None)
            assert trainer.main([str(a) for a in training(trainer, data, folders[trainer])]) == 0
        for name in PICTURES[trainer]:
            (folders[trainer] / name).write_bytes(b"a picture, say")
    return folders


@pytest.fixture
def finished(folders):
    return folders.__getitem__


@pytest.fixture
def trained(folders, tmp_path):
    """trainer -> a copy of that folder, to be used up."""
    return lambda trainer: shutil.copytree(folders[trainer], tmp_path / "trained", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def counted(data, tmp_path_factory):
    """The folder of an ngram, never to be written to."""
    folder = tmp_path_factory.mktemp("counted")
    makemore.train(data, work_dir=folder, type="ngram", n=3)
    return folder


@pytest.fixture
def meanwhile(monkeypatch):
    """Let the next training do something else before it makes a step."""

    def meanwhile(trainer, step, action):
        learn = trainer.Run.learn

        def learn_or_act(run):
            if run.progress.step == step:
                monkeypatch.setattr(trainer.Run, "learn", learn)
                action()
            learn(run)

        monkeypatch.setattr(trainer.Run, "learn", learn_or_act)

    return meanwhile


@pytest.fixture
def interrupted(meanwhile):
    """Let the next training get a Ctrl-C before it makes a step, which is the last then."""
    return lambda trainer, step: meanwhile(trainer, step, lambda: signal.raise_signal(signal.SIGINT))


class TooLong(BaseException):
    """No except of ours catches it."""


@contextlib.contextmanager
def modest(seconds=10, gigabytes=1.5):
    """What it holds may take so much time and so much memory more than it has."""
    resource = pytest.importorskip("resource")

    def late(*_):
        raise TooLong(f"no end after {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 2**30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def full_disk():
    """While it lasts, no file can grow over two thousand bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def started(trainer, *argv, shell=""):
    """A process of its own, with redirections as a shell writes them; it ends here at the latest. In haste, too."""
    code = f"""
import sys, {trainer.__name__} as trainer
trainer.plot_losses, trainer.measure_peak = lambda run: None, lambda *_: 1.0
sys.exit(trainer.main())
"""
    command = shlex.join([sys.executable, "-c", code, *map(str, argv)])
    process = subprocess.Popen(f"exec {command} {shell}", shell=True, cwd=Path(trainer.__file__).parent, **PIPES)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def windows(monkeypatch, trainer, **changes):
    """Let a trainer, and nobody else, believe that it runs on Windows."""
    monkeypatch.setattr(trainer, "os", types.SimpleNamespace(**{**vars(os), "name": "nt", **changes}))


# ----------------------------------------------------------------------------------------------------------------------
# Load


@pytest.mark.parametrize("theirs", ["", "7"], ids=["unset", "set"])
def test_torch_finds_the_settings_of_its_threads_when_it_is_loaded_and_what_the_user_set_stays(theirs):
    names = dict.fromkeys(("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "FOR_DISABLE_CONSOLE_CTRL_HANDLER"), theirs)
    env = {k: v for k, v in os.environ.items() if k not in names} | (names if theirs else {})
    code = f"""
import os, sys
sys.modules["torch"] = None  # it cannot be loaded: what is set then was set before
for trainer in ("makemore", "gpt"):
    before = dict(os.environ)
    try:
        __import__(trainer)
    except ImportError:
        print(*map(os.environ.get, {tuple(names)}))
    os.environ.clear(), os.environ.update(before)
"""
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(gpt.__file__).parent, **PIPES)
    assert done.stdout.split() == 2 * ([theirs] * 3 if theirs else ["2000", "1", "1"]), done.stderr


@pytest.mark.parametrize(
    "trainer, given, threads",
    [
        (makemore, dict(type="transformer"), 3),
        (makemore, dict(type="bigram"), 1),
        (makemore, dict(type="gru", threads=2), 2),
        (gpt, dict(preset="mini"), 3),
        (gpt, dict(preset="bigram"), 1),
        (gpt, dict(preset="mini", threads=2), 2),
    ],
    ids=lambda x: x.__name__ if isinstance(x, types.ModuleType) else " ".join(map(str, getattr(x, "values", list)())),
)
def test_a_training_takes_the_threads_that_pay_says_how_many_and_gives_them_back(
    trainer, given, threads, run, data, tmp_path, monkeypatch
):
    """Of three, of which small operations make no use."""
    settings, used = {**TINY[trainer], **given, "max_steps": 1}, trainer.uses(given[KIND[trainer]])
    argv = ["-i", data, "-o", tmp_path, *flags(**{name: value for name, value in settings.items() if name in used})]
    taken, learn, ours = [], trainer.Run.learn, torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(trainer.Run, "learn", lambda run: (taken.append(torch.get_num_threads()), learn(run)))
        status, out, _ = run(trainer, *argv)
        assert status == 0 and set(taken) == {threads} and re.search(rf"\b{threads} threads?\b", out)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(trainer.Run, "learn", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.main([*map(str, argv)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(ours)


def test_a_model_is_opened_and_writes_without_the_compiler_and_without_a_word(folders):
    """To load torch._dynamo takes longer than all else that a sampling does; an optimizer loads it, too."""
    code = f"""
import sys, gpt, makemore
makemore.load({str(folders[makemore])!r}).sample(1), gpt.load({str(folders[gpt])!r}).generate("ba", 1)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(gpt.__file__).parent, **PIPES)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ----------------------------------------------------------------------------------------------------------------------
# Two hands on one folder


@both
@posix
def test_a_folder_belongs_to_one_training_at_a_time_and_to_all_readers(
    trainer, run, refused, meanwhile, data, other, tmp_path
):
    """While the first is between two steps, others try."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    assert run(trainer, *training(trainer, other, elsewhere)).status == 0

    def others():
        before = tree(out)
        assert before and ("tokens.bin" in before) == (trainer is gpt)
        for second in (training(trainer, data, out), training(trainer, other, out), ["-o", out, "--resume"]):
            refused(trainer, *second, says=f"{out} is in use by another training")
        for second in (
            lambda: trainer.train(other, work_dir=out, **TINY[trainer]),
            lambda: trainer.load(out).train(max_steps=16),
            lambda: trainer.load(elsewhere).save(out),
        ):
            with pytest.raises(trainer.UserError, match="in use by another training"):
                second()
        assert tree(out) == before
        for reader in READERS[trainer]:
            assert run(trainer, "-o", out, reader.format(data=data))[::2] == (0, "")

    meanwhile(trainer, 6, others)
    assert run(trainer, *training(trainer, data, out))[::2] == (0, "")
    assert run(trainer, *training(trainer, other, out))[::2] == (0, "")  # it is free again


@both
def test_what_a_killed_run_has_half_written_is_cleared_away(trainer, run, trained, other):
    folder = trained(trainer)
    for left in (".model.pt.tmp", ".last.pt.tmp"):
        (folder / left).write_text("by one that was killed")
    assert run(trainer, *training(trainer, other, folder))[::2] == (0, "")
    assert not [*folder.glob(".*.tmp")]


@both
def test_windows_locks_a_folder_too(trainer, run, refused, meanwhile, data, tmp_path, monkeypatch):
    """There, locking a byte that is locked already says that permission is denied."""
    fcntl, asked = pytest.importorskip("fcntl"), []

    def locking(number, mode, count):
        asked.append((mode, count))
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    windows(monkeypatch, trainer)
    argv = training(trainer, data, tmp_path / "out")
    meanwhile(trainer, 6, lambda: refused(trainer, *argv, says="in use by another training"))
    assert run(trainer, *argv).status == 0
    assert set(asked) == {(2, 1)}
    assert run(trainer, *argv)[::2] == (0, "")  # the lock has gone with the training


@both
@posix
def test_a_file_system_without_locks_is_as_good(trainer, run, data, tmp_path, monkeypatch):
    asked = []

    def flock(*args):
        asked.append(args)
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert run(trainer, *training(trainer, data, tmp_path))[::2] == (0, "")
    assert asked and trainer.load(tmp_path).progress.step == 12


@posix
@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_an_encoded_text_that_is_no_longer_there_is_learned_to_the_end(
    change, run, meanwhile, data, other, finished, tmp_path
):
    out, elsewhere = tmp_path / "out", tmp_path / "other"
    assert run(gpt, *training(gpt, other, elsewhere)).status == 0
    actions = dict(deleted=lambda: (out / "tokens.bin").unlink())
    actions["replaced"] = lambda: os.replace(elsewhere / "tokens.bin", out / "tokens.bin")
    meanwhile(gpt, 6, actions[change])
    assert run(gpt, *training(gpt, data, out))[::2] == (0, "")
    assert same(load(out / "model.pt")["model"], load(finished(gpt) / "model.pt")["model"])


@posix
@pytest.mark.parametrize("left", [0, 100, 600])
def test_an_encoded_text_that_is_cut_while_it_is_read_is_told_in_one_line(left, refused, meanwhile, data, tmp_path):
    meanwhile(gpt, 6, lambda: os.truncate(tmp_path / "tokens.bin", left))
    refused(gpt, *training(gpt, data, tmp_path), says=r"tokens\.bin was cut")
    assert load(tmp_path / "last.pt")["progress"]["step"] == 4


# ----------------------------------------------------------------------------------------------------------------------
# What an earlier run left


@both
@pytest.mark.parametrize("what", ["a model alone", "a mixture"])
def test_a_model_that_never_had_a_last_pt_is_set_aside_too(trainer, what, run, data, tmp_path):
    """Although previous/ is whole, as it is after a kill in the first save of a run."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for seed in (1, 2):
        assert run(trainer, *training(trainer, data, out, seed=seed))[::2] == (0, "")
    (out / "last.pt").unlink()
    if what == "a mixture" and trainer is makemore:
        assert run(trainer, *training(trainer, data, elsewhere))[::2] == (0, "")
        assert run(trainer, "--mix", elsewhere, "-o", out)[::2] == (0, "")
    raw = (out / "model.pt").read_bytes()
    assert run(trainer, *training(trainer, data, out, seed=3))[::2] == (0, "")
    assert (out / "previous/model.pt").read_bytes() == raw and not (out / "previous/last.pt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is text")
def test_a_file_whose_name_is_no_text_is_drawn_all_the_same(pictures, run, data, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    shutil.copy(data, path)
    for trainer in (makemore, gpt):
        assert run(trainer, *training(trainer, os.fsdecode(path), tmp_path / "out"))[::2] == (0, "")
        assert (tmp_path / "out/loss.png").stat().st_size > 9000
        shutil.rmtree(tmp_path / "out")


@both
def test_training_again_moves_what_was_there_and_says_so(trainer, run, trained, data, other):
    folder = trained(trainer)
    (folder / "notes.txt").write_text("mine")
    earlier = {name: raw for name, raw in tree(folder).items() if name not in ("notes.txt", "tokens.bin")}
    status, out, err = run(trainer, *training(trainer, data, folder, seed=5))
    assert (status, err) == (0, "") and tree(folder / "previous") == earlier
    moved = f"what an earlier run left in {folder} is now in {folder / 'previous'}\n"
    assert moved in out and out.count("previous") == 1
    assert trainer.load(folder).config.seed == 5 and (folder / "notes.txt").read_text() == "mine"
    assert not any((folder / name).exists() for name in PICTURES[trainer])

    assert run(trainer, "-o", folder, "--resume", *flags(max_steps=16))[::2] == (0, "")  # moves nothing
    assert tree(folder / "previous") == earlier and trainer.load(folder, "last.pt").progress.step == 16

    second = {name: raw for name, raw in tree(folder).items() if name in earlier}
    assert run(trainer, *training(trainer, other, folder)).status == 0
    assert tree(folder / "previous") == second and (folder / "notes.txt").read_text() == "mine"


@both
def test_a_folder_called_previous_may_be_somebody_elses(trainer, run, trained, data):
    folder = trained(trainer)
    (folder / "previous").mkdir()
    (folder / "previous/thesis.txt").write_text("mine")
    for seed in (5, 6):
        assert run(trainer, *training(trainer, data, folder, seed=seed)).status == 0
    assert (folder / "previous/thesis.txt").read_text() == "mine"
    assert trainer.load(folder / "previous").config.seed == 5


FAILING = {  # what comes to nothing before the first save, and what it says
    "a bad prefix": (dict(prefix="Q7"), "unknown to this model"),
    "a text too short": (dict(input_file="short.txt"), "too few lines|has 5 characters"),
    "no such text": (dict(input_file="none.txt"), "cannot read"),
    "a width that the heads do not divide": (dict(n_head=3), "divide"),
    "a loss of nan": (dict(), "the loss is nan by step 0"),
    "a full disk": (dict(), "cannot write"),
}


@both
@posix
@pytest.mark.parametrize("failure", FAILING)
def test_a_run_that_fails_before_it_saves_has_touched_nothing(
    trainer, failure, run, refused, trained, data, tmp_path, monkeypatch
):
    folder, (given, says) = trained(trainer), FAILING[failure]
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("ab\nc\n")
    before = tree(folder)
    argv = training(trainer, data, folder, seed=5)
    with monkeypatch.context() as patch, full_disk() if "disk" in failure else contextlib.nullcontext():
        if "nan" in failure:
            patch.setattr(trainer.Run, "evaluate", lambda *_: math.nan)
        refused(trainer, *argv, *flags(**given), says=says)
    assert tree(folder) == before
    assert run(trainer, *argv).status == 0
    assert tree(folder / "previous") == {name: raw for name, raw in before.items() if name != "tokens.bin"}


def test_a_mixture_moves_what_was_there(run, trained, data, tmp_path):
    for kind in ("bigram", "ngram"):
        assert run(makemore, "-i", data, "-o", tmp_path / kind, f"--type={kind}", "--max-steps=2").status == 0
    folder = trained(makemore)
    before = tree(folder)
    status, out, err = run(makemore, f"--mix={tmp_path / 'bigram'},{tmp_path / 'ngram'}", "-o", folder)
    assert (status, err) == (0, "") and f"is now in {folder / 'previous'}\n" in out
    assert tree(folder / "previous") == before and makemore.load(folder).config.type == "mixture"


@both
def test_a_saved_model_moves_what_was_there_but_never_itself(trainer, run, trained, data, tmp_path):
    assert run(trainer, *training(trainer, data, tmp_path / "a", seed=5)).status == 0
    folder, own = trained(trainer), tree(tmp_path / "a")
    before = tree(folder)
    model = trainer.load(tmp_path / "a")
    model.save(folder)
    assert tree(folder / "previous") == {name: raw for name, raw in before.items() if name != "tokens.bin"}
    assert trainer.load(folder).config.seed == 5 and not (folder / "log.csv").exists()
    model.save(tmp_path / "a")
    assert tree(tmp_path / "a").keys() == own.keys()
    assert trainer.load(folder, "last.pt", input_file=str(data)).train(max_steps=16).progress.step == 16


@both
def test_a_text_that_no_file_holds_moves_with_its_model_and_never_over_one_of_somebody_else(trainer, tmp_path):
    lists = [invent(80, seed, CONSONANTS) for seed in (1, 2)]
    first, second = (lines if trainer is makemore else "\n".join(lines) for lines in lists)
    folder, taken = tmp_path / "out", tmp_path / "taken"
    wanted = answers(trainer.train(first, work_dir=folder, **TINY[trainer]))
    kept = (folder / "trained_on.txt").read_bytes()
    (folder / "input.txt").write_text("mine")
    trainer.train(second, work_dir=folder, **TINY[trainer])
    assert (folder / "previous/trained_on.txt").read_bytes() == kept != (folder / "trained_on.txt").read_bytes()
    assert (folder / "input.txt").read_text() == "mine" and not (folder / "previous/input.txt").exists()
    for place in (folder / "previous", folder):
        assert math.isfinite(trainer.load(place).evaluate())  # each beside its text
    assert same(answers(trainer.load(folder / "previous")), wanted)

    taken.mkdir()
    (taken / "trained_on.txt").write_text("mine")
    run = trainer.train(first, **TINY[trainer])
    for write in (lambda: run.save(taken), lambda: trainer.train(first, work_dir=taken, **TINY[trainer])):
        with pytest.raises(trainer.UserError, match=r"trained_on\.txt is there already, and not of this run"):
            write()
        assert tree(taken) == {"trained_on.txt": b"mine"}


@both
def test_a_text_with_the_name_of_a_log_is_not_taken_for_one(trainer, refused, data, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    raw = data.read_bytes()
    (folder / "samples.txt").write_bytes(raw)
    for _ in range(2):
        refused(trainer, *training(trainer, folder / "samples.txt", folder), says="samples.txt is there already, and")
        assert {name: raw for name, raw in tree(folder).items() if name != "tokens.bin"} == {"samples.txt": raw}


@both
def test_letters_that_no_font_has_are_no_word_on_the_screen(trainer, run, data, tmp_path, pictures):
    path = tmp_path / "\u65e5\u672c.txt"  # stands below the figures
    path.write_bytes(data.read_bytes())
    status, _, err = run(trainer, *training(trainer, path, tmp_path / "out"))
    assert (status, err) == (0, "") and (tmp_path / "out" / "loss.png").exists()


@both
def test_a_run_whose_folder_another_has_taken_over_says_so(trainer, tmp_path):
    lists = [invent(80, seed, CONSONANTS) for seed in (1, 2)]
    first, second = (lines if trainer is makemore else "\n".join(lines) for lines in lists)
    run = trainer.train(first, work_dir=tmp_path / "out", **TINY[trainer])
    trainer.train(second, work_dir=tmp_path / "out", **TINY[trainer])
    before = answers(run)
    with pytest.raises(trainer.UserError, match="out holds another run by now"):
        run.train(max_steps=99)
    assert same(answers(run), before)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints are judged before they are used


@both
def test_a_checkpoint_in_which_a_bit_has_flipped_is_refused_or_says_the_same(trainer, finished, tmp_path):
    raw, wanted = (finished(trainer) / "model.pt").read_bytes(), answers(trainer.load(finished(trainer)))
    size, rng, broken = 8 * len(raw), random.Random(1), []
    bits = {rng.randrange(size) for _ in range(120)} | {*range(0, 1000, 19)} | {*range(size - 4000, size, 79)}
    for bit in sorted(bits):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "model.pt").write_bytes(flipped)
        try:
            found = answers(trainer.load(tmp_path))
        except trainer.UserError as e:
            found = wanted if "\n" not in str(e) else str(e)
        except Exception as e:
            found = repr(e)
        if not same(found, wanted):
            broken.append((bit, found))
    assert not broken, (len(broken), len(bits), broken[0])


@linux
@pytest.mark.parametrize(
    "trainer, bomb", [(makemore, False), (gpt, False), (makemore, True)], ids=["makemore", "gpt", "a bomb"]
)
def test_a_checkpoint_that_is_deflated_is_refused_before_it_unfolds(trainer, bomb, refused, trained):
    folder = trained(trainer)
    if bomb:  # a thousandth of what it becomes
        more = torch.zeros(2**28, dtype=torch.uint8)
        torch.save({**load(folder / "model.pt"), "more": more}, folder / "model.pt")
    with zipfile.ZipFile(folder / "model.pt") as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, raw in entries:
            archive.writestr(name, raw)
    with modest(5, 0.2):
        refused(trainer, "-o", folder, "--sample-only", says="refused: it is corrupt")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def edited(checkpoint, place, value):
    """A checkpoint with another value at a place such as "config.seed"; of several: the first. DROP takes it away."""
    name, _, rest = place.partition(".")
    if isinstance(checkpoint, list):
        return [edited(checkpoint[0], place, value), *checkpoint[1:]]
    name = next(iter(checkpoint)) if name == "*" else name
    if name not in checkpoint:
        return checkpoint
    if value is DROP and not rest:
        return {k: v for k, v in checkpoint.items() if k != name}
    old = checkpoint[name]
    new = edited(old, rest, value) if rest else value(old) if callable(value) else value
    return {**checkpoint, name: new}


def filled(number):
    """A change of a tensor: its first number is another."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = number
        return tensor

    return change


def longer(tensor):
    return torch.stack([tensor, tensor])


def double(tensor):
    return tensor.double()


def lost(loss):
    """A change of a history: another loss on the held-out part, in the first row."""
    return lambda rows: [[*rows[0][:3], loss, rows[0][4]], *rows[1:]]


DROP, NAN = object(), math.nan
EDITS = [  # place, values; what makes no sense at all is in the tests of each trainer
    ("config.kind", ["mixture", "mixture"]),
    ("config.n_head", [0, 0, -1, -1]),
    ("config.n_layer", [10**6, 10**6, 10**400, 10**400, "1"]),
    ("config.block_size", [0, 0]),
    ("config.dropout", [5, NAN, -0.5, math.inf]),
    ("config.seed", [-1, -1, "x", "x"]),
    ("config.batch_size", [0, 0, "4", "4"]),
    ("config.learning_rate", [NAN, "fast", "fast", NAN]),
    ("config.max_steps", ["many", -7, None]),
    ("config.temperature", [-1, NAN]),
    ("config.schedule", ["up", 5]),
    ("config.optimizer", ["sgd2", "sgd2"]),
    ("config.input_file", [10**6, ["a"], ["a"], "a\0b"]),
    ("file", [10**6, ["a"], None, "a\0b"]),
    ("vocab", ["", 5, None, [], lambda s: s[::-1], lambda s: s[:-1] + s[-2]]),
    ("digest", [5, None]),
    ("progress", [{}]),
    ("progress.step", [-1, "x", 2.5, None, NAN, DROP]),
    ("progress.samples", [[], "x"]),
    ("progress.seconds", ["x"]),
    ("progress.history", [[1], [[0, 0.0]], [["a"] * 5], "x", [{}], None, DROP]),
    ("progress.history", [lambda rows: rows[1:], lambda rows: rows[:-1]]),
    ("progress.history", [lost(NAN), lost(-1.0), lost("x"), lost(10**400)]),
    ("model.*", [filled(NAN), filled(math.inf), filled(-math.inf), double, lambda t: t.to(torch.complex64)]),
]
HARMLESS = ("file", "config.input_file", "config.temperature")  # other places to look; that was for one run only
STATES = [  # what only --resume reads
    ("optimizer.state", [{0: {}}, {0: None}, {10**6: {}}, {"x": {}}]),
    ("optimizer.state.*", [{}, [], None]),
    ("optimizer.state.*.*", [longer, double, filled(NAN), None, 5, DROP, lambda t: torch.zeros(0)]),
    ("losses", ["x", None, 5, [], [5], [{}], [None]]),
]


def edits(table):
    """Each edit for both trainers; of a setting, for one or the other: what checks these is the same text in both."""
    for place, values in table:
        for i, value in enumerate(values):
            what = "missing" if value is DROP else getattr(value, "__name__", None) or f"{value!r:.30}"
            for trainer in (makemore, gpt):
                if not place.startswith("config.") or (trainer is gpt) == i % 2:
                    yield pytest.param(trainer, place, value, id=f"{trainer.__name__}-{place}-{i}-{what}")


def used(trainer, run, folder, *modes):
    """What comes of a folder in each mode: a refusal in one line, or what it says and learns."""
    found = {}
    for mode in modes:
        with modest():
            many = "num-samples" if trainer is makemore else "max-new-tokens"
            status, out, err = run(trainer, "-o", folder, *mode.format(many=many).split())
        err = "".join(line for line in err.splitlines(True) if " is not used by " not in line)
        assert (status, err.count("\n")) in ((0, 0), (2, 1)), err
        if status:
            assert err.startswith(f"{trainer.__name__}: ")
            found[mode] = "refused"
        elif "--resume" in mode:
            found[mode] = [load(folder / name)["model"] for name in ("model.pt", "last.pt")]
        else:
            found[mode] = out.replace(str(folder), "")
    return found


MODES = ("--sample-only --{many}=9", "--resume --max-steps=13")


@pytest.fixture(scope="module")
def good(folders):
    """trainer -> {file: checkpoint} of a finished training, read once."""
    return {t: {name: load(folders[t] / name) for name in ("model.pt", "last.pt")} for t in folders}


@pytest.fixture
def spoiled(good, folders, tmp_path):
    """A folder whose checkpoints are edited."""

    def spoiled(trainer, place, value):
        place = place.replace("kind", KIND[trainer])
        if trainer is gpt:
            place = re.sub("^optimizer", "optimizers", place)
            shutil.copy(folders[gpt] / "tokens.bin", tmp_path)
        for name, checkpoint in good[trainer].items():
            if (changed := edited(checkpoint, place, value)) is checkpoint:
                pytest.skip(f"{trainer.__name__} has no {place}")
            torch.save(changed, tmp_path / name)
        return tmp_path

    return spoiled


@pytest.fixture
def wanted(trained, run, cache={}):  # noqa: B006 (on purpose: as long as the module lives)
    """trainer -> what comes of a folder that nobody has edited."""

    def wanted(trainer):
        if trainer not in cache:
            cache[trainer] = used(trainer, run, trained(trainer), *MODES)
            assert "refused" not in cache[trainer].values()
        return cache[trainer]

    return wanted


@linux
@pytest.mark.parametrize("trainer, place, value", [*edits(EDITS)])
def test_an_edited_checkpoint_is_refused_in_one_line_or_says_what_it_said(trainer, place, value, run, spoiled, wanted):
    expected = wanted(trainer)
    found = used(trainer, run, spoiled(trainer, place, value), *MODES)
    for mode in MODES:
        assert found[mode] == "refused" or same(found[mode], expected[mode]), mode
    if "refused" not in found.values():
        assert place in HARMLESS or str(value).isdecimal(), "it is read as something else"


@linux
@pytest.mark.parametrize("trainer, place, value", [*edits(STATES)])
def test_an_edited_state_of_training_is_refused_in_one_line(trainer, place, value, run, spoiled, monkeypatch):
    """Before a step is made with it, which in C++ would write where it must not."""
    monkeypatch.setattr(trainer.Run, "learn", lambda run: pytest.fail("it is learned on with"))
    folder = spoiled(trainer, place, value)
    assert used(trainer, run, folder, MODES[1]) == {MODES[1]: "refused"}


@linux
@both
@pytest.mark.parametrize(
    "value",
    ["x", None, [1.0], torch.zeros(3, 3), torch.zeros(2, dtype=torch.complex64), torch.zeros(())],
    ids=["a word", "nothing", "a list", "a table", "complex", "a number"],
)
def test_edited_losses_of_an_interrupted_run_are_refused_in_one_line(
    trainer, value, run, data, interrupted, trained, tmp_path
):
    out = tmp_path / "out"
    interrupted(trainer, 5)
    assert run(trainer, *training(trainer, data, out)).status == 130
    checkpoint = load(out / "last.pt")
    checkpoint["losses"] = [value] if trainer is gpt else value
    torch.save(checkpoint, out / "last.pt")
    assert used(trainer, run, out, "--resume --max-steps=8") == {"--resume --max-steps=8": "refused"}


@both
def test_code_in_a_checkpoint_is_never_run(trainer, refused, trained, tmp_path):
    folder, mark = trained(trainer), tmp_path / "mark"
    for place in ("config", "model", "optimizer", "more"):
        torch.save({**load(folder / "last.pt"), place: Attack(mark)}, folder / "model.pt")
        for mode in ("--sample-only", "--attention=ba" if trainer is gpt else f"--mix={folder},{folder}"):
            refused(trainer, mode, *(() if "mix" in mode else ("-o", folder)), says="corrupt, or carries code")
    assert not mark.exists()


COUNTS = dict(
    empty=lambda t: t[:0], longer=longer, missing=lambda t: None, a_list=lambda t: [1], nan=filled(NAN),
    inf=filled(math.inf), a_number=lambda t: t.view(-1)[0], another_type=lambda t: t.float(),
)  # fmt: skip


@pytest.mark.parametrize("change", COUNTS)
def test_an_edited_table_of_counts_is_refused_or_says_what_it_said(change, counted, tmp_path):
    good, wanted, held = load(counted / "model.pt"), makemore.load(counted).score(["ba", "dodo"]), {}
    for name, table in good["model"].items():
        if change not in ("nan", "inf") or table.is_floating_point():
            torch.save(edited(good, f"model.{name}", COUNTS[change]), tmp_path / "model.pt")
            try:
                found = makemore.load(tmp_path).score(["ba", "dodo"])
            except makemore.UserError:
                continue
            except Exception as e:
                found = repr(e)
            if found != wanted:
                held[name] = found
    assert not held


KINDS = [*((makemore, kind) for kind in makemore.MODELS), *((gpt, kind) for kind in gpt.PRESETS)]


@pytest.mark.filterwarnings("ignore:--max-steps is not used by ngram")
@pytest.mark.parametrize("trainer, kind", KINDS, ids=[kind for _, kind in KINDS])
def test_a_good_checkpoint_of_every_kind_says_the_same_and_goes_on(trainer, kind, data, tmp_path):
    given = {name: value for name, value in SMALL.items() if name in trainer.uses(kind)} | {KIND[trainer]: kind}
    given |= dict(device="cpu", max_steps=2) | (dict(block_size=8) if trainer is gpt else {})
    wanted = answers(trainer.train(data, work_dir=tmp_path, **given))
    run = trainer.load(tmp_path)
    assert same(answers(run), wanted) and run.train(max_steps=3).progress.step == (3 if kind != "ngram" else 0)


USUAL = [
    (makemore, "mlp", "learning_rate", 1e-3),
    (gpt, "mini", "block_size", 64),
    (gpt, "gpt2", "learning_rate", 0.03),
]


@pytest.mark.parametrize("trainer, kind, name, value", USUAL, ids=lambda x: str(getattr(x, "__name__", x)))
def test_a_setting_that_is_usual_but_not_for_its_kind_is_kept(trainer, kind, name, value, data, tmp_path):
    assert value == trainer.SETTINGS[name].default != trainer.ROWS[kind].defaults[name]
    sizes = {n: v for n, v in SMALL.items() if n in trainer.uses(kind)}
    trainer.train(data, work_dir=tmp_path, **{**sizes, KIND[trainer]: kind, name: value}, max_steps=0, device="cpu")
    assert getattr(trainer.load(tmp_path).config, name) == value


@both
def test_a_flag_newer_than_a_checkpoint_matters_only_to_a_model_or_its_training(trainer, data, tmp_path):
    kind = "mlp" if trainer is makemore else "mini"
    given = {name: value for name, value in SMALL.items() if name in trainer.uses(kind)} | {KIND[trainer]: kind}
    wanted = answers(trainer.train(data, work_dir=tmp_path, device="cpu", max_steps=1, **given))
    good = load(tmp_path / "model.pt")
    for name in trainer.uses(kind) - {"input_file", KIND[trainer]}:
        config = {n: value for n, value in good["config"].items() if n != name}
        torch.save({**good, "config": config}, tmp_path / "model.pt")
        if trainer.SETTINGS[name].metadata["group"] in ("sampling", "mode"):
            assert same(answers(trainer.load(tmp_path)), wanted), name
        else:
            with pytest.raises(trainer.UserError, match=f"lacks {name}$"):
                trainer.load(tmp_path)


OLD = {"weights": torch.ones(2) / 2}  # of probabilities, as mixtures once averaged them


@pytest.mark.parametrize(
    "place, value", [("members", []), ("members", 5), ("members", DROP), ("model.*", filled(NAN)), ("model", OLD)]
)
def test_a_good_mixture_says_the_same_and_an_edited_one_is_refused(place, value, run, refused, data, tmp_path):
    for kind in ("bigram", "ngram"):
        assert run(makemore, "-i", data, "-o", tmp_path / kind, f"--type={kind}", "--max-steps=2").status == 0
    out = tmp_path / "mixed"
    assert run(makemore, f"--mix={tmp_path / 'bigram'},{tmp_path / 'ngram'}", "-o", out).status == 0
    again = run(makemore, "-o", out, "--sample-only")
    assert again[::2] == (0, "") and again == run(makemore, "-o", out, "--sample-only")
    torch.save(edited(load(out / "model.pt"), place, value), out / "model.pt")
    refused(makemore, "-o", out, "--sample-only")


# ----------------------------------------------------------------------------------------------------------------------
# Going on exactly


@pytest.mark.parametrize(
    "losses",
    [lambda step: 3.0, lambda step: 3.0 - (step >= 3), lambda step: 3.0 - 0.01 * min(step, 4)],
    ids=["never better", "better at 3", "best at an interruption"],
)
def test_patience_does_not_count_interruptions(losses, run, interrupted, data, tmp_path, monkeypatch):
    """The losses are made up; every third step is followed by a Ctrl-C in one of two runs."""
    monkeypatch.setattr(gpt.Run, "evaluate", lambda run, part="val": losses(run.progress.step))
    given = dict(max_steps=40, eval_interval=3, patience=2, num_samples=0)
    assert run(gpt, *training(gpt, data, tmp_path / "whole", **given)).status == 0
    argv = training(gpt, data, tmp_path / "parts", **given)
    for step in range(0, 40, 3):
        interrupted(gpt, step)  # one step more, and the end
        status = run(gpt, *argv).status
        argv = ["-o", tmp_path / "parts", "--resume"]
        if status == 0:
            break
    whole, parts = (load(tmp_path / name / "last.pt")["progress"]["step"] for name in ("whole", "parts"))
    assert whole == parts


@both
def test_the_rows_of_an_interrupted_run_are_those_of_a_whole_one(trainer, run, interrupted, data, tmp_path):
    """All rows that both have, to the last bit; Ctrl-C comes between two evaluations, twice between the same two."""
    given = dict(grad_accum=2) if trainer is gpt else {}
    assert run(trainer, *training(trainer, data, tmp_path / "whole", **given)).status == 0
    argv = training(trainer, data, tmp_path / "parts", **given)
    for step in (0, 4, 5, 9):
        interrupted(trainer, step)
        assert run(trainer, *argv).status == 130
        argv = ["-o", tmp_path / "parts", "--resume"]
    assert run(trainer, *argv).status == 0
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    assert list(whole) == [0, 4, 8, 12] and list(parts) == [0, 1, 4, 5, 6, 8, 10, 12]
    assert {step: parts[step] for step in whole} == whole


def test_plain_gradient_descent_which_keeps_no_state_goes_on(data, tmp_path):
    given = dict(type="mlp", optimizer="sgd", n_embd=4, n_embd2=8, batch_size=4, decay_steps=4, device="cpu")
    whole = makemore.train(data, max_steps=4, **given)
    makemore.train(data, work_dir=tmp_path, max_steps=2, **given)
    parts = makemore.load(tmp_path, "last.pt").train(max_steps=4)
    assert parts.progress.step == 4 and same(parts.model.state_dict(), whole.model.state_dict())


class Killed(BaseException):
    """SIGKILL as the files see it: nobody tidies up."""


@both
def test_a_kill_between_any_two_files_loses_no_row(trainer, run, data, tmp_path, monkeypatch):
    given, replace = dict(max_steps=2, eval_interval=2), os.replace
    assert run(trainer, *training(trainer, data, tmp_path / "whole", **given)).status == 0
    wanted, last = log_of(tmp_path / "whole"), load(tmp_path / "whole/last.pt")
    for moment in itertools.count(5):  # from where a first last.pt is there
        writes, out = itertools.count(), tmp_path / str(moment)

        def replace_or_die(*args, writes=writes, moment=moment):
            if next(writes) == moment:
                raise Killed
            replace(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_die)
            try:
                assert run(trainer, *training(trainer, data, out, **given)).status == 0
                break  # there is no such moment
            except Killed:
                pass
        assert run(trainer, "-o", out, "--resume")[::2] == (0, "")
        assert log_of(out) == wanted and same(load(out / "last.pt")["model"], last["model"]), moment
    assert moment >= 7


@both
def test_a_kill_while_an_earlier_run_is_moved_loses_nothing_of_it(
    trainer, run, finished, data, other, tmp_path, monkeypatch
):
    """Before each file that is moved or removed; what stood in previous/ before that is gone, as it should be."""
    start, brief = tmp_path / "start", dict(max_steps=1, eval_interval=1)
    shutil.copytree(finished(trainer), start)
    assert run(trainer, *training(trainer, other, start / "previous", **brief, seed=5)).status == 0
    earlier = {name: (start / name).read_bytes() for name in ("model.pt", "last.pt")}
    for moment in itertools.count():
        folder, changes = shutil.copytree(start, tmp_path / str(moment)), itertools.count()

        def or_die(change, moment=moment, changes=changes):
            def changed(*args, **given):
                if next(changes) == moment:
                    raise Killed
                return change(*args, **given)

            return changed

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(os, name, or_die(getattr(os, name)))
            try:
                assert run(trainer, *training(trainer, data, folder, **brief, seed=6)).status == 0
                break  # there is no such moment
            except Killed:
                pass
        places = folder, folder / "previous"
        for name, raw in earlier.items():
            assert raw in [path.read_bytes() for path in (place / name for place in places) if path.exists()], moment
        kept = {name: path.read_bytes() for name in earlier if (path := folder / name).exists()}
        assert run(trainer, *training(trainer, data, folder, **brief, seed=7)).status == 0
        for name, raw in (kept if "last.pt" in kept else earlier).items():
            assert (folder / "previous" / name).read_bytes() == raw, moment
    assert moment >= 10


# ----------------------------------------------------------------------------------------------------------------------
# The result first, the picture second


def assert_told(trainer, result, warnings=0):
    """The final: line and the samples are there; on stderr so many warnings, and nothing else."""
    status, out, err = result
    assert status == 0 and [*re.findall("^.*$", err, re.M)][:-1] == re.findall(
        f"^{trainer.__name__}: warning: .*$", err, re.M
    )
    assert err.count("\n") == warnings, err
    final = out.index("final: train ")
    assert "samples: " in out[final:] if trainer is makemore else len(out[final:].split("\n", 1)[1]) >= 9


@both
def test_without_matplotlib_there_is_a_result_and_a_warning(pictures, trainer, run, data, tmp_path, monkeypatch):
    for name in [*(name for name in sys.modules if name.startswith("matplotlib.")), "matplotlib", "matplotlib.figure"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert_told(trainer, run(trainer, *training(trainer, data, tmp_path)), warnings=1)
    if trainer is makemore:
        diagnosed = training(trainer, data, tmp_path / "d", diagnose=True)
        assert_told(trainer, run(trainer, *diagnosed[:-1], "--diagnose"), warnings=2)


@both
def test_a_picture_that_cannot_be_written_is_a_warning(pictures, trainer, run, trained):
    folder = trained(trainer)
    (folder / "loss.png").unlink()
    (folder / "loss.png").mkdir()
    result = run(trainer, "-o", folder, "--resume", "--max-steps=16")
    assert_told(trainer, result, warnings=1)
    assert "loss.png" in result.err and trainer.load(folder, "last.pt").progress.step == 16


@both
def test_a_log_that_cannot_be_written_is_a_warning(trainer, run, trained):
    folder = trained(trainer)
    (folder / "log.csv").unlink()
    (folder / "log.csv").mkdir()
    result = run(trainer, "-o", folder, "--resume", "--max-steps=16")  # one evaluation
    assert_told(trainer, result, warnings=1)
    assert "log.csv" in result.err and trainer.load(folder, "last.pt").progress.step == 16


@both
def test_dollars_are_no_mathematics(pictures, trainer, run, data, tmp_path):
    path, out = tmp_path / ("$\\frac$_^.txt" if os.sep == "/" else "$frac$_^.txt"), tmp_path / "out"
    path.write_text(data.read_text().replace("a", "$").replace("e", "^"))
    if trainer is gpt:
        assert_told(trainer, run(trainer, *training(trainer, path, out)))
        assert run(trainer, "-o", out, "--attention=b$^$")[::2] == (0, "")
        wanted = ["loss.png", "attention.png"]
    else:
        argv = ["-i", path, "-o", out, *flags(type="bigram", max_steps=4, num_samples=3), "--diagnose"]
        assert_told(trainer, run(trainer, *argv))
        wanted = ["loss.png", "bigrams.png"]
    assert [(out / name).read_bytes()[:4] for name in wanted] == [b"\x89PNG"] * 2


@both
@linux
@pytest.mark.parametrize("taken", ["closed", "full"])
def test_a_training_whose_output_nobody_takes_is_kept(trainer, taken, trained, capsys, monkeypatch):
    """Python has no stdout where a shell has closed it: that is done without. A full disk is told in one line."""
    folder = trained(trainer)
    monkeypatch.setattr(sys, "stdout", None if taken == "closed" else open("/dev/full", "w"))  # noqa: SIM115
    assert trainer.main(["-o", str(folder), "--resume", "--max-steps=16"]) == (0 if taken == "closed" else 2)
    err = f"{trainer.__name__}: cannot write the output: No space left on device\n"
    assert capsys.readouterr().err == ("" if taken == "closed" else err)
    for name in ("model.pt", "last.pt"):
        assert trainer.load(folder, name).progress.step >= 12
    assert taken == "full" or trainer.load(folder, "last.pt").progress.step == 16


@linux
def test_output_that_nobody_takes_leaves_nothing_to_say_at_the_end(finished):
    """In processes of their own, where Python complains as it ends; `main` is the same text in both trainers."""
    argv = ("-o", finished(makemore), "--sample-only")
    with started(makemore, *argv, shell=">&-") as closed, started(makemore, *argv, shell=">/dev/full") as full:
        assert (closed.communicate(timeout=60)[1], closed.returncode) == ("", 0)
        told = full.communicate(timeout=60)[1]
    assert (told, full.returncode) == ("makemore: cannot write the output: No space left on device\n", 2)


# ----------------------------------------------------------------------------------------------------------------------
# Inputs


@both
@linux
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_what_is_no_file_is_refused_at_once(trainer, kind, refused, tmp_path):
    path = {"a pipe": tmp_path / "pipe", "a device": Path("/dev/zero"), "a folder": tmp_path}[kind]
    if kind == "a pipe":
        os.mkfifo(path)
    with modest(3):
        refused(trainer, *training(trainer, path, tmp_path / "out"), says=f"cannot read {path}: it is no file")
        with pytest.raises(trainer.UserError, match="it is no file"):
            trainer.train(path, **TINY[trainer])
        with pytest.raises(trainer.UserError, match="it is no file"):
            trainer.train(str(path), **TINY[trainer])
    assert not (tmp_path / "out").exists()


@both
@linux
def test_a_file_of_a_hundred_thousand_characters_is_refused_in_one_line(trainer, refused, tmp_path):
    chars = "".join(map(chr, range(0x10000, 0x10000 + 100_000)))
    (tmp_path / "t").write_text("\n".join(chars[i : i + 100] for i in range(0, len(chars), 100)), encoding="utf-8")
    argv = ["-i", tmp_path / "t", "-o", tmp_path / "out", *flags(**{KIND[trainer]: "bigram"}, max_steps=1)]
    with modest():
        refused(trainer, *argv, says=r"t has 100,00\d distinct characters, the limit is 65,536")
    assert not (tmp_path / "out").exists()


@both
def test_nul_is_found_wherever_it_stands(trainer, refused, tmp_path):
    (tmp_path / "t").write_bytes(b"anna\nbob\n" * 600_000 + b"cid\0\n")  # in the second chunk
    (tmp_path / "u").write_bytes(b"anna\nbob\n" * 200_000 + b"cid\0\n")  # in the first, beyond a megabyte
    for name in "tu":
        argv = training(trainer, tmp_path / name, tmp_path / "out")
        refused(trainer, *argv, says=f"{name} is a binary file: a text file in UTF-8 is needed")
    assert not (tmp_path / "out").exists()


@both
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_what_powershell_writes_is_the_same_text(trainer, encoding, run, data, tmp_path):
    """UTF-16 with a byte order mark, and with CRLF."""
    text = data.read_text().replace("a", "ä").replace("e", "\U0001f600")
    (tmp_path / "plain").write_bytes(text.encode())
    (tmp_path / "wide").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode(encoding))
    for name in ("plain", "wide"):
        assert run(trainer, *training(trainer, tmp_path / name, tmp_path / f"of-{name}"))[::2] == (0, "")
    plain, wide = (load(tmp_path / f"of-{name}/model.pt") for name in ("plain", "wide"))
    assert plain["vocab"] == wide["vocab"] and same(plain["model"], wide["model"])


@both
def test_utf_16_that_is_cut_is_refused_in_one_line(trainer, refused, data, tmp_path):
    (tmp_path / "cut").write_bytes(("\ufeff" + data.read_text()).encode("utf-16-le")[:-1])
    refused(trainer, *training(trainer, tmp_path / "cut", tmp_path / "out"), says=r"cut is not UTF-16: line \d+, byte")
    (tmp_path / "half").write_bytes("\ufeffab\n\U0001f600".encode("utf-16-be")[:-2])
    refused(trainer, *training(trainer, tmp_path / "half", tmp_path / "out"), says="half is not UTF-16")


@pytest.fixture
def moved(run, data, other, tmp_path, monkeypatch):
    """Train on names.txt in one folder, and go to another, where another names.txt is; the model's folder."""

    def moved(trainer):
        for place, text in (("here", data), ("there", other)):
            (tmp_path / place).mkdir()
            shutil.copy(text, tmp_path / place / "names.txt")
        monkeypatch.chdir(tmp_path / "here")
        assert run(trainer, *training(trainer, "names.txt", "out"))[::2] == (0, "")
        monkeypatch.chdir(tmp_path / "there")
        if trainer is gpt:
            (tmp_path / "here/out/tokens.bin").unlink()
        return tmp_path / "here/out"

    return moved


@both
def test_from_another_folder_the_text_is_found_where_it_was(trainer, run, moved):
    folder = moved(trainer)
    assert math.isfinite(trainer.load(folder).evaluate())
    status, out, err = run(trainer, "-o", folder, "--sample-only")
    assert (status, err) == (0, "") and (trainer is gpt or "in train (" in out)
    assert run(trainer, "-o", folder, "--resume", "--max-steps=16")[::2] == (0, "")
    assert run(trainer, "-o", folder, "--resume", "--max-steps=20")[::2] == (0, "")  # it remembers still
    assert trainer.load(folder, "last.pt").progress.step == 20


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_text_that_is_encoded_in_the_folder_is_needed_no_more(change, run, refused, data, tmp_path, finished):
    """Nor is it missed from another folder; but a text that is named anew is not passed over."""
    text, folder = tmp_path / "text.txt", tmp_path / "out"
    shutil.copy(data, text)
    assert run(gpt, *training(gpt, text, folder, max_steps=6))[::2] == (0, "")
    text.unlink() if change == "gone" else text.write_text("ab\nba\nca\nda\n" * 9)
    says = f": there is no {text}: " if change == "gone" else f": {text} has changed: "
    refused(gpt, "-o", folder, "--resume", "-i", text, says=re.escape(says))
    assert run(gpt, "-o", folder, "--resume", "--max-steps=12")[::2] == (0, "")
    ended = load(folder / "last.pt")
    assert same(ended["model"], load(finished(gpt) / "last.pt")["model"]) and ended["file"] == str(text)


@both
@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_text_that_is_gone_or_has_changed_is_told_by_its_path(trainer, change, run, refused, moved, tmp_path):
    folder, path = moved(trainer), tmp_path / "here/names.txt"
    path.unlink() if change == "gone" else path.write_text("ab\nba\nca\nda\n" * 9)
    words = f"there is no {path}" if change == "gone" else f"{path} has changed"
    there = tmp_path / "there"
    says = f"{words}, {there / 'names.txt'} has changed: "
    needed = re.escape(f"{says}what this model was trained on is needed")
    refused(trainer, "-o", folder, "--resume", "--max-steps=16", says=needed)
    with pytest.raises(trainer.UserError, match=needed):
        trainer.load(folder).evaluate()
    status, _, err = run(trainer, "-o", folder, "--sample-only")
    assert status == 0 and err.count("\n") == (trainer is makemore)
    assert trainer is gpt or f"{says}samples are not sorted" in err
    says = re.escape(f": there is no {there / 'none.txt'}: ")  # named anew: nothing else is tried
    refused(trainer, "-o", folder, "--resume", "-i", "none.txt", "--max-steps=16", says=says)


NINES, TOO_LARGE = "9" * 400, r"a model of [\d,]+ parameters is too large"
COMMANDS = [  # trainer, what is asked for, what it says on stderr
    (makemore, "-i {data} -o {tmp}/out --type ngram --find-lr", "ngram counts, and has no learning rate"),
    (makemore, "-i {data} -o {tmp}/out -l 1e39", "--learning-rate 1e"),
    (gpt, "-i {data} -o {tmp}/out -l 1e39", "--learning-rate 1e"),
    (makemore, "-i {data} -o {tmp}/out -l 1e400", "--learning-rate inf: must be a number from 0 to 1e.30"),
    (makemore, f"-i {{data}} -o {{tmp}}/out --max-steps {NINES}", "--max-steps 999"),
    (gpt, f"-i {{data}} -o {{tmp}}/out --max-steps {NINES}", "--max-steps 999"),
    (makemore, f"-i {{data}} -o {{tmp}}/out --max-steps {NINES * 20}", "--max-steps"),
    (gpt, f"-i {{data}} -o {{tmp}}/out --max-steps {NINES * 20}", "--max-steps"),
    (makemore, "-i {data} -o {tmp}/out --weight-decay 1e39", "--weight-decay"),
    (gpt, "-i {data} -o {tmp}/out --weight-decay 1e39", "--weight-decay"),
    (makemore, "-i {data} -o {tmp}/out --n-embd 65536", TOO_LARGE),
    (gpt, "-i {data} -o {tmp}/out --n-embd 65536", TOO_LARGE),
    (gpt, "-i {data} -o {tmp}/out --n-layer 1000000", "--n-layer 1000000: must be a number from 1 to 1024"),
]


@linux
@pytest.mark.parametrize("trainer, argv, says", COMMANDS, ids=lambda x: str(getattr(x, "__name__", x))[:60])
def test_nothing_ends_in_a_traceback(trainer, argv, says, refused, data, tmp_path):
    with modest():
        refused(trainer, *(word.format(data=data, tmp=tmp_path) for word in argv.split()), says=says)
    assert not (tmp_path / "out").exists()


WRONG_RANKS = ["RANK=x", "RANK=1", "RANK=", "RANK=-1", "RANK=²", "LOCAL_RANK=x", "WORLD_SIZE=0", "WORLD_SIZE=2"]


@pytest.mark.parametrize("variable", WRONG_RANKS)
def test_variables_that_torchrun_never_sets_are_refused_in_one_line(variable, refused, data, tmp_path, monkeypatch):
    monkeypatch.setenv(*variable.split("="))
    refused(gpt, *training(gpt, data, tmp_path / "out"), says=r"RANK=.*, WORLD_SIZE=.* make no sense: torchrun")
    assert not (tmp_path / "out").exists()


def test_what_counts_takes_diagnose_for_an_unused_flag(run, data, tmp_path):
    argv = ["-i", data, "-o", tmp_path, "--type=ngram", "--num-samples=3", "--diagnose"]
    for more in ([], ["--resume"]):
        status, out, err = run(makemore, *(argv if not more else ["-o", tmp_path, "--diagnose", *more]))
        assert status == 0 and "final: " in out and err.count("\n") == 1
        assert err.startswith("makemore: --diagnose is not used by ngram, only by ")


# ----------------------------------------------------------------------------------------------------------------------
# Platforms


def busy(times, replaced, replace=os.replace):
    """An os.replace that is denied so many times for each file, as when somebody else has that open."""

    def denied(source, target):
        replaced.append(Path(target).name)
        if replaced.count(Path(target).name) <= times:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    return denied


@both
def test_windows_while_somebody_reads_what_is_to_be_written(trainer, run, refused, data, tmp_path, monkeypatch):
    """There, os.replace fails while another program has the file open: we try again for a second, and then say so."""
    slept, replaced = [], []
    monkeypatch.setattr(trainer.time, "sleep", slept.append)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2))
    windows(monkeypatch, trainer, replace=busy(2, replaced))
    assert run(trainer, *training(trainer, data, tmp_path / "patient"))[::2] == (0, "")
    assert replaced.count("model.pt") > 2 and slept and trainer.load(tmp_path / "patient").progress.step == 12
    slept.clear()
    windows(monkeypatch, trainer, replace=busy(10**6, []))
    refused(trainer, *training(trainer, data, tmp_path / "never"), says="cannot write .*: Access is denied")
    assert 0.5 <= sum(slept) <= 2
    assert [*tree(tmp_path / "never")] == [] and not [*(tmp_path / "never").glob("*.tmp")]


@both
@pytest.mark.parametrize("name", ["log.csv", "loss.png"])
def test_windows_while_somebody_reads_what_an_earlier_run_left(trainer, name, run, trained, data, monkeypatch):
    """It cannot be moved away: all but that is done."""
    folder = trained(trainer)
    before = tree(folder)

    def denied(source, target):
        if Path(source).name == name or Path(target).name == name:
            raise PermissionError(errno.EACCES, "Access is denied")
        os.replace(source, target)

    monkeypatch.setattr(trainer.time, "sleep", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2))
    windows(monkeypatch, trainer, replace=denied)
    assert run(trainer, *training(trainer, data, folder, seed=5)).status == 0
    assert trainer.load(folder).config.seed == 5
    for kept in ("model.pt", "last.pt"):
        assert (folder / "previous" / kept).read_bytes() == before[kept]


@both
@posix
def test_elsewhere_what_is_denied_is_denied_at_once(trainer, refused, data, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(trainer.time, "sleep", slept.append)
    monkeypatch.setattr(os, "replace", busy(10**6, []))
    refused(trainer, *training(trainer, data, tmp_path), says="cannot write .*: Access is denied")
    assert not slept and not tree(tmp_path)


@both
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "redirected"])
def test_a_file_gets_utf_8_and_a_terminal_what_it_understands(trainer, terminal, data, tmp_path, monkeypatch):
    """On Windows, both say that they are cp1252."""

    class Output(io.TextIOWrapper):
        def isatty(self):
            return terminal

    (tmp_path / "t").write_text(data.read_text().replace("a", "ж").replace("e", "ж"), encoding="utf-8")
    output = Output(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    argv = training(trainer, tmp_path / "t", tmp_path / "out", prefix="жbж")
    assert trainer.main([str(arg) for arg in argv]) == 0
    output.flush()
    told = output.buffer.getvalue().decode("cp1252" if terminal else "utf-8")
    assert "final: " in told and ("?b?" if terminal else "жbж") in told and ("ж" in told) == (not terminal)


def test_counts_stay_on_the_processor_in_double_precision(data):
    """Other devices know no float64: "meta" here, which would lose the numbers, too."""
    run = makemore.train(data, type="ngram", n=3)
    wanted = run.evaluate()
    for move in (lambda m: m.to("meta"), lambda m: m.to(torch.float16), lambda m: m.half(), lambda m: m.float()):
        assert move(run.model) is run.model
        assert (run.model.strength.device.type, run.model.strength.dtype) == ("cpu", torch.float64)
    assert run.evaluate() == wanted


def test_gradients_are_checked_on_the_processor_whatever_device_is_asked_for(run, data):
    argv = ["-i", data, "--check-backprop", "--type=mlp", "--batchnorm", *flags(n_embd=4, n_embd2=8)]
    wanted = run(makemore, *argv)
    status, out, err = run(makemore, *argv, "--device=mps")
    assert (status, out) == wanted[:2] and "max difference" in out and err.count("\n") == 1
    assert err.startswith("makemore: --device is not used by --check-backprop")


@both
def test_a_thread_of_its_own_may_train(trainer, data, finished, tmp_path):
    """Signals are the main thread's."""
    done = []
    thread = threading.Thread(
        target=lambda: done.append(trainer.train(data, work_dir=tmp_path, **TINY[trainer])), daemon=True
    )
    thread.start()
    thread.join(60)
    assert done and done[0].progress.step == 12
    assert same(load(tmp_path / "model.pt")["model"], load(finished(trainer) / "model.pt")["model"])
