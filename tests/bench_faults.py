"""Repeat a hostile afternoon with the trio: kills, full disks, signals, bad files, and many hands on one folder.

    python tests/bench_faults.py --minutes 20                     # every kind of fault in turns, then a table
    python tests/bench_faults.py --only inputs,flags --minutes 2
    python tests/bench_faults.py --only flags --seed 1 --case 17  # one attempt again, with all that it prints
    python tests/bench_faults.py --trio DIR --attempts 50         # so many of each, on the three files in DIR

An attempt holds if everything ends in order: status 0 with the right result, or status 2 and one line that says why. A
traceback, a death by a signal that nobody sent, more than 30 seconds, more than 2 GB, a wrong result without a word, a
torn or a lost file: each is broken, is told under the table, and makes the exit status 1. What attempt 17 of a kind
does depends on the seed and on 17 alone; only moments chosen by the clock differ from time to time.

Loading torch takes seconds, so an attempt is a fork of this process, which has loaded everything and computed nothing
(threads would not survive the fork); a few, about standard output, start a Python of their own. Memory is what wait4
says: Linux counts the largest resident size of a fork anew, beginning with the 300 MB that it shares with this process.
"""

import argparse
import builtins
import contextlib
import csv
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import namedtuple
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # set before numpy and torch are loaded
import torch

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEGABYTES = 30, 2048  # more is broken
SENT = (signal.SIGINT, signal.SIGTERM)

# ----------------------------------------------------------------------------------------------------------------------
# One process, and what is expected of it

Result = namedtuple("Result", "command status out err seconds memory")


class Broken(Exception):
    """What an attempt found."""


def judge(result, allowed=(0, 2)):
    """Raise Broken if a process ended in any other way than in order."""
    lines = [line for line in result.err.splitlines() if not re.search("not used by|: warning: ", line)]
    problem = (
        f"no end after {SECONDS} s" if result.seconds > SECONDS
        else f"{result.memory} MB" if result.memory > MEGABYTES
        else "a traceback" if re.search("Traceback|Exception ignored", result.out + result.err)
        else f"status {result.status}" if result.status not in allowed
        else f"{len(lines)} lines instead of one" if result.status == 2 and len(lines) != ("2>" not in result.command)
        else ""
    )  # fmt: skip
    if problem:
        raise Broken(problem, result)
    return result


class Child:
    """A fork that runs main(argv) in a folder; `before` is called in it first, and what that returns afterwards."""

    def __init__(self, main, argv, folder, before=None, env=None):
        words = [ascii(w)[1:-1] if len(w) < 300 else f"{ascii(w[:9])[1:-1]}...({len(w)})" for w in argv]
        words = [*(f"{k}={v!a}" for k, v in (env or {}).items()), main.__module__, *words]
        self.command = " ".join(w if re.fullmatch(r"[\w./,:=+'-]+", w) else f"'{w}'" for w in words)
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.began = time.perf_counter()
        signal.pthread_sigmask(signal.SIG_BLOCK, SENT)  # none may come before main runs
        self.pid = os.fork()
        if not self.pid:
            self.live(main, argv, folder, before, env)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT)

    def live(self, main, argv, folder, before, env):
        status = 1
        try:
            os.chdir(folder)
            os.environ.update(env or {})
            for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), self.out.fileno(), self.err.fileno())):
                os.dup2(source, target)
            sys.stdout, sys.stderr = (os.fdopen(i, "w", 1, "utf-8", "backslashreplace", closefd=False) for i in (1, 2))
            after = before and before()
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT)
            except KeyboardInterrupt:  # it came before main
                raise SystemExit(130) from None
            status = main(argv)
            if after:
                after()
        except SystemExit as e:
            status = e.code
        except BaseException as e:
            status = 130 if isinstance(e, KeyboardInterrupt) and not e.__traceback__.tb_next else 1  # outside of main
            if status == 1:
                traceback.print_exc()
        finally:
            for s in SENT:
                signal.signal(s, signal.SIG_IGN)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status or 0)

    def wait(self, meanwhile=None):
        """The Result, when it has ended; until then meanwhile(child) is called again and again."""
        pid = 0
        while not pid:
            with contextlib.suppress(OSError, IndexError):
                size = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
                if size > 1.02 * MEGABYTES or time.perf_counter() - self.began > SECONDS:
                    os.kill(self.pid, signal.SIGKILL)
            if meanwhile:
                start = time.perf_counter()
                meanwhile(self)
                self.began += time.perf_counter() - start  # others' time is not its own
            time.sleep(0.003)
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            self.seconds = time.perf_counter() - self.began
        out, err = (f.seek(0) or f.read().decode(errors="replace") for f in (self.out, self.err))
        status = os.waitstatus_to_exitcode(status)
        return Result(self.command, status, out, err, self.seconds, usage.ru_maxrss // 1024)


# ----------------------------------------------------------------------------------------------------------------------
# Trainings that take half a second, and what they leave behind

# fmt: off
TAILS = {"makemore": "-i ../names.txt --num-samples 3 -o out --device cpu",
         "gpt": "-i ../text.txt --max-new-tokens 20 -o out --device cpu --compile off"}
TINY = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 -b 4 --max-steps 30 --eval-interval 5"
RECIPES = {name: (program, f"{argv} {TAILS[program]}") for name, program, argv in (
    ("mlp", "makemore", "--type mlp --batchnorm --n-embd 4 --n-embd2 16 --dropout 0.1 -b 32 --max-steps 42"),
    ("mini", "gpt", f"--preset mini {TINY} --dropout 0.1"),
    ("ngram", "makemore", "--type ngram --n 3"),
    ("bigram", "gpt", "--preset bigram --block-size 16 -b 4 -l 0.5 --max-steps 60 --eval-interval 4 --patience 3"),
    ("gru", "makemore", "--type gru --n-embd 4 --n-embd2 8 -b 8 --max-steps 20 --eval-interval 5"),
    ("gpt2", "gpt", f"--preset gpt2 {TINY}"),
    ("transformer", "makemore", "--type transformer --n-layer 1 --n-head 2 --n-embd 8 -b 8 --max-steps 20"),
)}
USES = [  # a recipe's trained folder, what is done with it, and where the result lies
    ("mlp", "--sample-only -o out", ""), ("mini", "--resume --max-steps 36 -o out", "out"),
    ("gru", "--eval ../names.txt -o out", ""), ("mini", "--sample-only --max-new-tokens 20 -o out", ""),
    ("mlp", "--resume --max-steps 48 -o out", "out"), ("gpt2", "--eval ../text.txt -o out", ""),
    ("mini", "--init-from out/model.pt -i ../text.txt --max-steps 3 --max-new-tokens 5 -o new", "new"),
    ("gru", "--mix out,out -o new", "new"), ("mini", "--attention Hello -o out", "out/attention.png"),
    ("bigram", "--sample-only --max-new-tokens 20 -o out", ""), ("transformer", "--sample-only -o out", ""),
    ("gpt2", "--resume --max-steps 36 -o out", "out"), ("gru", "--resume --max-steps 24 -o out", "out"),
    ("ngram", "--sample-only -o out", ""), ("ngram", "--mix out,out -o new", "new"),
    ("mlp", "--fold-batchnorm -o out", "out/folded"),
]
# fmt: on
EARLIER = "--seed 5"  # of a run that lies in a folder before another trains there


def mark(path):
    """What tells a checkpoint from another: a hash of its weights, its step and its seed."""
    checkpoint, digest = torch.load(path, weights_only=True), hashlib.sha256()
    for name, tensor in sorted(checkpoint["model"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12], checkpoint["progress"]["step"], checkpoint["config"]["seed"]


def marks(folder):
    return {p.name: mark(p) for p in Path(folder).glob("*.pt")}


def tree(folder):
    """What lies in a folder, {name: bytes}; a name that begins with a dot is temporary."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("[!.]*") if p.is_file()}


def log_of(folder):
    """The rows of log.csv by step, seconds left out."""
    rows = list(csv.reader((folder / "log.csv").read_text().splitlines()))[1:]
    return {int(step): str(tuple(map(float, rest))) for step, _, *rest in rows}  # str: nan is nan


def check_whole(folder, earlier=None):
    """Raise Broken where a file in a folder is torn, or an earlier checkpoint neither in it nor in previous/."""
    held = set()
    for name, raw in tree(folder).items():
        path = folder / name
        try:
            if path.suffix == ".pt":
                assert zipfile.ZipFile(path).testzip() is None
                held.add(mark(path))
            elif path.name == "log.csv":
                assert log_of(path.parent)
            elif path.name == "tokens.bin":
                assert json.loads(raw.partition(b"\n")[0])["count"] == len(raw.partition(b"\n")[2])
            else:
                assert path.suffix != ".png" or raw.endswith(b"IEND\xaeB`\x82")
        except Exception as e:
            raise Broken(f"{name} is torn: {e!r:.60}") from None
    for name in [name for name, its in (earlier or {}).items() if its not in held]:
        raise Broken(f"the earlier {name} is lost")


def check_same(folder, other, interrupted=False):
    """Raise Broken where a run differs from an uninterrupted one. Interruptions in order may add rows."""
    if not (folder / "log.csv").exists():
        raise Broken("there is no log.csv")
    ours, theirs = log_of(folder), log_of(other)
    for step in theirs if interrupted else theirs | ours:
        if ours.get(step) != theirs.get(step):
            raise Broken(f"step {step} of log.csv is {ours.get(step)}, uninterrupted {theirs.get(step)}")
    if marks(folder) != marks(other):
        raise Broken(f"the weights are {marks(folder)}, uninterrupted {marks(other)}")


class Lab:
    """The three programs, a place for folders, and the trained ones that others are compared with."""

    def __init__(self, trio, root):
        sys.path.insert(0, str(trio))
        self.trio, self.results, self.children, self.numbers = trio, [], [], itertools.count()
        self.programs = {name: importlib.import_module(name) for name in ("makemore", "gpt", "micrograd")}
        weight = torch.nn.Parameter(torch.zeros(2, 2))  # what a first step, save and figure import: once for all forks
        weight.grad = torch.zeros(2, 2)
        torch.optim.AdamW([weight], fused=True).step()
        torch.save(weight, root / "warm.pt")
        makemore = self.programs["makemore"]
        run = argparse.Namespace(config=makemore.Config(type="mlp"))
        with makemore.drawing(root / "warm.png", run) as ax:
            ax.plot([0, 1], [0, 1], label="x")

    def settle(self, root):
        """Work in that folder, where the files to learn from lie."""
        self.root = root
        root.mkdir()
        (root / "names.txt").write_text("\n".join((ROOT / "names.txt").read_text().split()[:300]) + "\n")
        (root / "text.txt").write_text((ROOT / "input.txt").read_text()[:6000])
        return self

    def start(self, program, argv, folder, **how):
        """A Child of one of the three, or of any function."""
        main = self.programs[program].main if isinstance(program, str) else program
        self.children.append(Child(main, argv.split() if isinstance(argv, str) else argv, folder, **how))
        return self.children[-1]

    def end(self, child, allowed=(0, 2), meanwhile=None):
        self.results.append(child.wait(meanwhile))
        self.children.remove(child)
        return judge(self.results[-1], allowed)

    def run(self, program, argv, folder, allowed=(0, 2), meanwhile=None, **how):
        return self.end(self.start(program, argv, folder, **how), allowed, meanwhile)

    def go_on(self, recipe, case, more="", allowed=(0,), **how):
        """Train by the recipe, from where it was left if it was."""
        last, (program, argv) = case / "out" / "last.pt", RECIPES[recipe]
        resume = last.exists() and mark(last)[2] != 5  # an earlier run is not gone on with
        return self.run(program, "--resume -o out" if resume else f"{argv} {more}", case, allowed, **how)

    @cache  # noqa: B019
    def reference(self, recipe, more=""):
        """(a folder that holds an uninterrupted run in out/, the seconds it took, its number of file operations)."""
        case = self.folder("reference")
        result = self.go_on(recipe, case, more, before=partial(at_operation, 0, None, case / "operations"))
        return case, result.seconds, int((case / "operations").read_text())

    def folder(self, name="case"):
        path = self.root / f"{name}{next(self.numbers)}"
        path.mkdir()
        return path

    def copy(self, recipe, more=""):
        """A new folder with a copy of the reference's."""
        case = self.folder()
        shutil.copytree(self.reference(recipe, more)[0] / "out", case / "out")
        return case

    def check_finish(self, recipe, case, interrupted=False):
        """Go on to the end after an interruption; the result must be that of an uninterrupted run."""
        self.go_on(recipe, case)
        check_same(case / "out", self.reference(recipe)[0] / "out", interrupted)


# ----------------------------------------------------------------------------------------------------------------------
# Faults of the machine


def at_operation(number, act, report=None):
    """In a child: act before the file operation of that number, or (negative) before each from it on.

    What creates, writes, flushes, renames or removes a file counts. Returns what notes at the end how many there were.
    """
    count = itertools.count(1)

    def step(write=lambda: None):
        now = next(count)
        if now == number or 0 < -number <= now:
            act(write)

    def hook(event, args):
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
        if changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and args[0] != os.devnull):
            step()

    def watched(path, mode="r", *args, really=open, **kwargs):
        file = really(path, mode, *args, **kwargs)
        if set(mode) & set("wax+"):
            write = file.write
            file.write = lambda data: (step(lambda: (write(data[: len(data) // 2]), file.flush())), write(data))[1]
        return file

    def fsync(fd, really=os.fsync):
        step()
        really(fd)

    builtins.open = io.open = watched
    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: report and report.write_text(str(next(count) - 1))


def die(write=lambda: None):
    write()  # half of it
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(write):
    write()
    raise OSError(28, "No space left on device")


def kills(lab, i, rng):
    """SIGKILL at a random moment, or at any file operation; what is left must be whole, and go on to the same end."""
    recipe = list(RECIPES)[i % len(RECIPES)]
    _, seconds, operations = lab.reference(recipe)
    case = lab.copy(recipe, EARLIER) if i // len(RECIPES) % 3 == 0 else lab.folder()  # trained before, or empty
    earlier, killed = marks(case / "out"), True
    for again in range(rng.choice((1, 1, 2, 3))):
        moment, number = rng.uniform(0, seconds), 1 + (i // len(RECIPES) + again) % operations
        how = dict(meanwhile=lambda child, moment=moment: clock(child) > moment and kill(child))
        if rng.random() < 0.6:
            how = dict(before=partial(at_operation, number, die))
        killed = killed and lab.go_on(recipe, case, allowed=(0, -signal.SIGKILL), **how).status
        check_whole(case, earlier)
    lab.check_finish(recipe, case)


def clock(child):
    return time.perf_counter() - child.began


def kill(child, s=signal.SIGKILL):
    os.kill(child.pid, s)


def signals(lab, i, rng):
    """Ctrl-C and TERM, one or several, at random moments: an orderly end, and the same result in the end."""
    recipe, case = list(RECIPES)[i % len(RECIPES)], lab.folder()
    for _ in range(rng.choice((1, 2, 3))):
        times = [rng.uniform(0, 0.8 * lab.reference(recipe)[1]) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        plan = [(moment, rng.choice(SENT)) for moment in sorted(times)]
        allowed = {0, -signal.SIGTERM, *(128 + s for _, s in plan)}  # TERM before or after the training just ends it

        def send(child, plan=plan):
            while plan and clock(child) > plan[0][0]:
                kill(child, plan.pop(0)[1])

        lab.go_on(recipe, case, allowed=allowed, meanwhile=send)
        check_whole(case)
    lab.check_finish(recipe, case, interrupted=True)


STREAMS = (">/dev/full", ">&-", "2>&-", ">&- 2>&-", "<&-", "| head -c 30", ">/dev/full 2>/dev/full")
TASKS = [  # what writes files: trainings in an empty or a trained folder, and everything else
    *((recipe, None, "") for recipe in RECIPES),
    *((recipe, EARLIER, "") for recipe in RECIPES),
    *((recipe, "", argv) for recipe, argv, _ in USES),
    ("mlp", "", "-i ../names.txt --find-lr -o out --type mlp"),
    ("mlp", "", "-i ../names.txt --type mlp --n-embd 4 --n-embd2 8 --max-steps 10 --diagnose -o out"),
    ("micrograd", None, "--max-steps 2 --points 6 --layers 3 -o out"),
]


def disk(lab, i, rng):
    """No space at any file operation, once or from then on; a limit for files; standard output full or closed."""
    recipe, more, argv = TASKS[i % len(TASKS)]
    program, training = RECIPES.get(recipe, (recipe, ""))
    case = lab.folder() if more is None else lab.copy(recipe, more)
    earlier, number, main, how = marks(case / "out"), rng.randint(1, 40), program, {}
    fault = rng.choice(("once", "once", "from then on", "from then on", "limit", "stream"))
    if fault == "stream":
        fault = rng.choice(STREAMS)
        main = partial(in_a_shell, lab.trio / f"{program}.py", fault)
        main.__module__ = f"{program} {fault}"  # what the report calls it
    elif fault == "limit":
        number = rng.choice((3000, 20_000, 40_000))
        how = dict(before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (number, number)))
    else:
        how = dict(before=partial(at_operation, number if fault == "once" else -number, no_space))
    result = lab.run(main, argv or training or more, case, **how)
    check_whole(case, {} if "--resume" in argv else earlier)
    if argv or "log.csv: " in result.err:
        return  # a log that cannot be written is a warning
    if result.status == 0 and "|" not in fault:  # who reads no further ends the program, in order
        check_same(case / "out", lab.reference(recipe)[0] / "out")
    else:
        lab.check_finish(recipe, case)


def in_a_shell(file, stream, argv):
    command = f"{sys.executable} {file} {' '.join(argv)} {stream}"
    os.execv("/bin/sh", ["sh", "-c", command if "|" in command else f"exec {command}"])


# ----------------------------------------------------------------------------------------------------------------------
# Many hands on one folder


def slowly(program):
    """In a child: every evaluation takes a tenth of a second more, so that others can come in between."""
    checkpoint = program.Run.checkpoint
    program.Run.checkpoint = lambda run: (time.sleep(0.1), checkpoint(run))[1]


def after_the_first_save(case, act):
    """What can be called meanwhile: act() once, as soon as there is a log."""
    todo = [act]
    return lambda child: todo and (case / "out" / "log.csv").exists() and todo.pop()()


def folder(lab, i, rng):
    """Of two trainers on a folder one is refused, readers never are, and nothing in it is overwritten."""
    recipe = rng.choice(("mlp", "gru", "bigram", "mini"))
    (two_trainers, readers, race, anew, fails)[i % 5](lab, rng, recipe, *RECIPES[recipe])


def two_trainers(lab, rng, recipe, program, argv):
    case, refused = lab.folder(), []
    second = rng.choice((argv, argv.replace("text", "names"), "--resume -o out", f"{argv} {EARLIER}"))
    first = lab.start(program, argv, case, before=partial(slowly, lab.programs[program]))
    second = partial(lab.run, program, second, case, allowed=(2,))
    lab.end(first, (0,), after_the_first_save(case, lambda: refused.append(second())))
    check_whole(case)
    check_same(case / "out", lab.reference(recipe)[0] / "out")


def readers(lab, rng, recipe, program, argv):
    case, looks = lab.folder(), ["--sample-only -o out", f"--eval {TAILS[program].split()[1]} -o out"]

    def read():
        children = [lab.start(program, rng.choice(looks), case) for _ in range(rng.choice((5, 10, 20, 100)))]
        for said in (lab.end(child, (0,)).out for child in children):
            if not said.strip() or re.search(r"\bnan\b|\binf\b", said):
                raise Broken(f"a reader says {said!r:.60}")

    first = lab.start(program, argv, case, before=partial(slowly, lab.programs[program]))
    lab.end(first, (0,), after_the_first_save(case, read))
    check_same(case / "out", lab.reference(recipe)[0] / "out")


def race(lab, rng, recipe, program, argv):
    case = lab.folder()
    children = [lab.start(program, argv, case, before=partial(slowly, lab.programs[program])) for _ in range(2)]
    if sorted(lab.end(child).status for child in children) != [0, 2]:
        raise Broken("two trainers began together, and both ended with 0")
    check_same(case / "out", lab.reference(recipe)[0] / "out")


def anew(lab, rng, recipe, program, argv):
    case = lab.copy(recipe, EARLIER)
    shutil.copytree(lab.reference(recipe)[0] / "out", case / "other")
    mode = {"makemore": "--mix other,other -o out", "gpt": f"{argv} --init-from other/model.pt"}[program]
    before = tree(case / "out")
    result = lab.run(program, rng.choice((argv, mode)), case, (0,))
    check_whole(case, marks(case / "other") if "mix" not in mode else {})
    after = tree(case / "out")
    if missing := [name for name in before if name != "tokens.bin" and after.get(f"previous/{name}") != before[name]]:
        raise Broken(f"not in previous/: {', '.join(missing)}", result)
    if "previous" not in result.out + result.err:
        raise Broken("not a word about previous/", result)


# fmt: off
FAILS = {  # what cannot work, and so must leave a trained folder as it is
    "makemore": ["-i missing.txt", "-i .", *("-i ../names.txt " + wrong for wrong in (
        "--eval=", "--mix=", "--prefix ß", "--type mlp --device tpu", "--type mlp --n-embd 99999999", "--type no",
        "--type mlp --n-embd 65536 --n-embd2 65536 --n-layer 1024")), "--mix out,no", "--mix out,out"],
    "gpt": ["-i missing.txt", "-i .", "-i ../names.txt --resume", *("-i ../text.txt " + wrong for wrong in (
        "--eval=", "--attention=", "--init-from=", "--prompt ß", "--block-size 60000", "--device tpu", "--batch-size 0",
        "--preset mini --n-head 3", "--init-from no.pt", "--preset mini --n-embd 65536 --n-layer 1024 --n-head 1"))],
}
# fmt: on


def fails(lab, rng, recipe, program, argv):
    case = lab.copy(recipe)
    before = tree(case / "out")
    lab.run(program, rng.choice(FAILS[program]) + " -o out", case, allowed=(2,))
    if tree(case / "out") != before:
        raise Broken("a run that failed has changed the folder")


# ----------------------------------------------------------------------------------------------------------------------
# Bad files, bad flags

# fmt: off
NAMES = b"emma\nolivia\nava\nisabella\nsophia\nmia\n" * 40
TEXT = b"First Citizen:\nBefore we proceed, hear me speak.\n" * 60
SAME, REFUSED, EITHER = "same", "refused", ""  # the same as with the plain file
CONTENTS = {  # what is made of a plain text with random numbers, and what is expected
    "empty": (lambda t, r: b"", REFUSED), "one line": (lambda t, r: t.split(b"\n")[0], EITHER),
    "three lines": (lambda t, r: b"\n".join(t.split(b"\n")[:3]), EITHER),
    "BOM": (lambda t, r: b"\xef\xbb\xbf" + t, SAME), "only a BOM": (lambda t, r: b"\xef\xbb\xbf", REFUSED),
    "CRLF": (lambda t, r: t.replace(b"\n", b"\r\n"), SAME), "CR": (lambda t, r: t.replace(b"\n", b"\r"), EITHER),
    "UTF-16": (lambda t, r: t.decode().encode("utf-16"), SAME),
    "UTF-16 BE": (lambda t, r: b"\xfe\xff" + t.decode().encode("utf-16-be"), SAME),
    "UTF-16, cut": (lambda t, r: t.decode().encode("utf-16")[:-1], EITHER),
    "UTF-16 without BOM": (lambda t, r: t.decode().encode("utf-16-le"), REFUSED),
    "UTF-32": (lambda t, r: t.decode().encode("utf-32"), REFUSED),
    "latin-1": (lambda t, r: t + b"caf\xe9\n", REFUSED), "NUL": (lambda t, r: insert(t, r, b"\0"), REFUSED),
    "NUL far away": (lambda t, r: insert(t * (2_500_000 // len(t)), r, b"\0", 2_000_000), REFUSED),
    "controls": (lambda t, r: insert(t, r, bytes(range(1, 32))), EITHER),
    "white": (lambda t, r: b" \t\n\r\n" * 200, EITHER),
    "blank lines": (lambda t, r: b"\n" * 10 ** r.randint(1, 6), EITHER),
    "huge line": (lambda t, r: b"x" * r.choice((5000, 70_000, 3_000_000)) + b"\n" + t, EITHER),
    "100,000 characters": (lambda t, r: "\n".join(map(chr, range(65_536, 165_536))).encode(), EITHER),
    "surrogates": (lambda t, r: insert(t, r, b"\xed\xa0\x80"), REFUSED),
    "random": (lambda t, r: r.randbytes(3000), REFUSED), "cut": (lambda t, r: t + b"\xc3", REFUSED),
    "one odd byte": (lambda t, r: insert(t, r, bytes([r.randrange(128, 256)])), REFUSED),
    "odd letters": (lambda t, r: t + "$x^\\frac\n\u202eabc\u2028d\u0301\n\ufffe\u200d\n".encode(), EITHER),
}
SPECIAL = {  # what else can stand where a file is expected; all of it is refused
    **{path: partial(lambda target, path: path.symlink_to(target), path)
       for path in ("/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem", "missing", "file.txt")},
    "FIFO": os.mkfifo, "directory": os.mkdir, "no rights": lambda path: (path.write_bytes(NAMES), path.chmod(0)),
}
MOVING = {  # what can happen to a file while it is read
    "deleted": lambda path: path.unlink(), "cut": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0), "appended to": lambda path: write(path, "ab", b"more\n" * 1000),
    "edited": lambda path: write(path, "r+b", b"\xff" * 900), "replaced": lambda path: put(path, TEXT[::-1]),
    "replaced by less": lambda path: put(path, b"abc\n"),
}
READS = [*((recipe, f"{argv} -i file.txt --max-steps 2 -o new") for recipe, (_, argv) in RECIPES.items()),
         ("makemore", "--type bigram -b 8 --max-steps 2 -i file.txt -o new"), ("mlp", "--eval file.txt -o out"),
         ("mini", "--eval file.txt -o out"), ("mini", "--sample-only --max-new-tokens 9 -o out --prompt FILE:file.txt"),
         ("mlp", "--sample-only -i file.txt -o out"), ("micrograd", "--demo gpt -i file.txt --max-steps 2"),
         ("mini", "--init-from out/model.pt -i file.txt --max-steps 2 -o new")]
# fmt: on


def insert(text, rng, piece, at_least=0):
    at = rng.randrange(at_least, len(text))
    return text[:at] + piece + text[at:]


def write(path, mode, raw):
    with open(path, mode) as f:
        f.write(raw)


def put(path, raw):
    path.with_name("new.tmp").write_bytes(raw)
    path.with_name("new.tmp").replace(path)


def inputs(lab, i, rng):
    """Files that are not what they should be: a refusal in one line, or the same as with a plain one."""
    kinds = [*CONTENTS, *SPECIAL, *(f"{how} while read" for how in MOVING), *(f"tokens {how}" for how in MOVING)]
    kind, (recipe, argv) = kinds[i % len(kinds)], rng.choice(READS)
    if kind.startswith("tokens"):
        return moving_tokens(lab, rng, MOVING[kind.removeprefix("tokens ")])
    program, case, how = (
        RECIPES.get(recipe, [recipe])[0],
        lab.folder() if recipe not in RECIPES else lab.copy(recipe),
        {},
    )
    plain, path = TEXT if program == "gpt" else NAMES, case / "file.txt"
    make, expected = CONTENTS.get(kind, (lambda t, r: t * 2000, EITHER))
    if kind in SPECIAL:
        expected = REFUSED
        SPECIAL[kind](path)
        if kind == "no rights" and os.getuid() == 0:
            how = dict(before=partial(os.setuid, 65534))  # root may read everything
            case.chmod(0o777), lab.root.chmod(0o755)
    else:
        path.write_bytes(make(plain, rng))
    if kind.endswith("while read"):
        todo, moment = [MOVING[kind.removesuffix(" while read")]], rng.uniform(0.01, 0.3)
        how = dict(meanwhile=lambda child: todo and clock(child) > moment and todo.pop()(path))
    needed = "--prompt" not in argv and argv != "--sample-only -i file.txt -o out"  # an empty prompt is one, too
    allowed = (2,) if expected == REFUSED and needed else (0, 2)
    result = lab.run(program, argv, case, allowed, **how)
    if expected == SAME:
        path.write_bytes(plain)
        shutil.rmtree(case / "new", ignore_errors=True)
        if tidy(lab.run(program, argv, case)) != tidy(result):
            raise Broken(f"{kind}: not the same as the plain file", result)


def tidy(result):
    """What a program printed, without what no two runs have in common."""
    return [line for line in result.out.splitlines() if not re.search(r"ms/step|^data|seconds$|\d s$", line)]


def moving_tokens(lab, rng, act):
    """The encoded text changes under a training of gpt: one line, or a result."""
    case, (program, argv), moment = lab.folder(), RECIPES[rng.choice(("bigram", "mini"))], rng.uniform(0, 0.5)
    path = case / "out" / "tokens.bin"
    meanwhile = after_the_first_save(case, lambda: (time.sleep(moment), path.exists() and act(path)))
    lab.run(program, argv, case, meanwhile=meanwhile, before=partial(slowly, lab.programs[program]))


# fmt: off
NONSENSE = ["", " ", "-1", "-5", "0", "nan", "inf", "-inf", "1e39", "1e29", "1e-400", "9" * 400, "-" + "9" * 400,
            "9" * 5000, "½", "٣", "--", "-", "-o", "--resume", "x" * 100_000, "$(id)", "a\nb", "😀", "\udcff",
            "/proc/x", "..", "None", "1.5", "1,2", "%s%n", "{0}", "'", "\t", "\x1b[2J", "\r", "true", "0x10"]
VARIABLES = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "COLUMNS", "HOME", "TMPDIR", "MPLBACKEND", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "TERM", "LANG", "MASTER_PORT"]
BASES = [*((recipe, f"{argv} --max-steps 3") for recipe, (_, argv) in RECIPES.items()),
         *((recipe, argv) for recipe, argv, _ in USES), ("mlp", "--resume --diagnose -o out"),
         *(("ngram", f"{RECIPES['ngram'][1]} {mode}") for mode in ("--find-lr", "--diagnose", "--check-backprop")),
         ("ngram", "--resume --diagnose -o out"), ("ngram", "--fold-batchnorm -o out"),
         ("mlp", "-i ../names.txt --type mlp --batchnorm --backprop manual -b 8 --max-steps 3")]
# fmt: on


def flags(lab, i, rng, bases=BASES):
    """Flags and environment variables with values that make no sense: status 0, or 2 and one line."""
    recipe, argv = bases[i % len(bases)]
    program, case = RECIPES.get(recipe, [recipe])[0], lab.copy(recipe) if recipe in RECIPES else lab.folder()
    argv, known = argv.split(), fields(lab.programs[program].Config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        field, value = rng.choice(known), rng.choice(NONSENSE)
        name, short = (
            "--" + field.name.replace("_", "-"),
            (*field.metadata.get("names", ()), *field.metadata.get("short", ())),
        )
        if rng.random() < 0.1:
            argv.append(rng.choice((value, name[: rng.randrange(2, 9)], name, "@" + value)))
        elif field.type in (bool, "bool"):
            argv.append(rng.choice((name, name, name.replace("--", "--no-"), f"{name}={value}")))
        elif (field.name, value) != ("max_steps", "-1"):  # which trains until Ctrl-C
            argv += rng.choice(([name, value], [f"{name}={value}"], [rng.choice((name, *short)), value]))
    env = {rng.choice(VARIABLES): rng.choice(("x", rng.choice(NONSENSE)[:1000]))} if rng.random() < 0.25 else {}
    lab.run(program, argv, case, env=env)


# ----------------------------------------------------------------------------------------------------------------------
# Bad checkpoints

# fmt: off
BYTES = {  # what may happen to a file on its way
    "cut": lambda raw, r: raw[: r.randrange(len(raw))], "empty": lambda raw, r: b"", "twice": lambda raw, r: raw * 2,
    "one bit": lambda raw, r: flip(raw, r, 1), "bits": lambda raw, r: flip(raw, r, r.randint(2, 20)),
    "zeros": lambda raw, r: (lambda i: raw[:i] + bytes(512) + raw[i + 512 :])(r.randrange(len(raw) - 512)),
    "longer": lambda raw, r: raw + r.randbytes(100), "shifted": lambda raw, r: raw[1:],
    "random": lambda raw, r: r.randbytes(5000),
}
TENSORS = [  # what a tensor may become
    lambda t: torch.cat([t.flatten()] * 2), lambda t: t.flatten()[:-1].clone(), lambda t: t.reshape(1, -1, 1).clone(),
    lambda t: t.new_zeros(0), lambda t: t.new_zeros(1).expand(10**10), lambda t: t.to(torch.complex64),
    lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t.float(), lambda t: t.tolist(),
    lambda t: with_one(t, math.nan), lambda t: with_one(t, math.inf), lambda t: (t * 3).to(torch.int32),
    lambda t: t.to("meta"), lambda t: None, lambda t: "x",
]
ODD = ["x", "", None, [], {}, -3, -3.5, 1.5, True, 10**9, 10**400, math.nan, math.inf, b"x", [[1]], {"x": 1}, "\0"]
CODE = [(os.system, ("touch ran",)), (exec, ("open('ran', 'w')",)), (open, ("ran", "w")), (os.mkdir, ("ran",))]
# fmt: on


def with_one(tensor, value):
    tensor = tensor.clone().float()
    tensor.view(-1)[:1] = value
    return tensor


def flip(raw, rng, count):
    raw = bytearray(raw)
    for at in rng.sample(range(len(raw)), count):
        raw[at] ^= 1 << rng.randrange(8)
    return bytes(raw)


def records(raw):
    """What a checkpoint's file holds, by name; None where the archive's own checks say that it is damaged."""
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Code:
    """What a checkpoint must never do: run something, which would make a file named `ran`."""

    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        return self.what


# Each damages the checkpoint at a path, and returns (what it has done, what is expected).


def damaged(path, rng):
    """Bytes are no longer what they were."""
    kind, raw = rng.choice(list(BYTES) + ["one bit"] * 8), path.read_bytes()
    path.write_bytes(BYTES[kind](raw, rng))
    return kind, SAME if records(path.read_bytes()) == records(raw) else REFUSED


def edited(path, rng):
    """One thing somewhere in it is another, missing, or too much."""
    checkpoint = torch.load(path, weights_only=True)
    place, way = checkpoint, [rng.choice(["config"] * 8 + ["progress"] * 3 + ["model"] * 3 + [*checkpoint])]
    if rng.random() < (0.4 if path.name == "last.pt" else 0.1):
        way = ["optimizers" if "optimizers" in checkpoint else "optimizer"]
    while isinstance(place[way[-1]], (dict, list)) and place[way[-1]] and rng.random() < 0.93:
        place = place[way[-1]]
        way.append(rng.choice(range(len(place)) if isinstance(place, list) else list(place)))
    old, chance, expected = place[way[-1]], rng.random(), SAME
    new = rng.choice(TENSORS)(old) if isinstance(old, torch.Tensor) else rng.choice(ODD)
    if chance < 0.08:
        del place[way[-1]]
        new = "deleted"
    elif chance < 0.14 and isinstance(place, dict):
        place["more"] = new
    else:
        place[way[-1]] = new
        numbers = isinstance(old, (int, float)) and isinstance(new, (int, float)) and not isinstance(old, bool)
        if (numbers and 0 <= new < math.inf) or (way[0] == "config" and new is None):
            expected = EITHER  # another value that may be right, as far as anybody can know
    torch.save(checkpoint, path)
    return f"{'/'.join(map(str, way))}: {old!r:.25} -> {new!r:.25}".replace("\n", ""), expected


def armed(path, rng):
    """It runs code, if it is read without care."""
    checkpoint, code = torch.load(path, weights_only=True), Code(rng.choice(CODE))
    place = rng.choice((checkpoint, checkpoint["config"], checkpoint["model"]))
    place[rng.choice(list(place))] = code
    old_format = partial(torch.save, _use_new_zipfile_serialization=False)
    rng.choice((torch.save, old_format, lambda x, path: path.write_bytes(pickle.dumps(x))))(checkpoint, path)
    return f"runs {code.what[0].__name__}", REFUSED


def swollen(path, rng):
    """It unpacks to 2.5 GB, or to lists in lists in lists."""
    held = records(path.read_bytes())
    victim = rng.choice([name for name in held if "/data" in name])
    deep = (
        b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
        if victim.endswith(".pkl") and rng.random() < 0.5
        else b""
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, raw in held.items():
            with archive.open(name, "w", force_zip64=True) as f:
                for piece in [raw] if name != victim else [deep] if deep else itertools.repeat(bytes(2**24), 160):
                    f.write(piece)
    return f"a bomb in {victim}", REFUSED


def swapped(lab, path, rng):
    """It is another one."""
    shutil.copy(lab.reference(rng.choice(list(RECIPES)))[0] / "out" / rng.choice(("model.pt", "last.pt")), path)
    return "swapped", EITHER


def checkpoints(lab, i, rng):
    """Damaged, edited, swapped and armed ones: refused in one line, or the same output as from the undamaged one."""
    recipe, argv, where = USES[i % len(USES)]
    case, name = lab.copy(recipe), "last.pt" if "--resume" in argv else "model.pt"
    other = rng.random() < 0.05  # the one that is not opened first
    path = case / "out" / (name if not other else {"last.pt": "model.pt", "model.pt": "last.pt"}[name])
    ways = [damaged] * 36 + [edited] * 48 + [armed] * 8 + [partial(swapped, lab)] * 6 + [swollen] * 2
    what, expected = rng.choice(ways)(path, rng)
    what = f"{path.name}, {what}"
    try:
        result = lab.run(RECIPES[recipe][0], argv, case, (2,) if expected == REFUSED and not other else (0, 2))
    except Broken as e:
        raise Broken(f"{what}: {e.args[0]}", *e.args[1:]) from None
    finally:
        if any(case.rglob("ran")):
            raise Broken(f"{what}: CODE WAS EXECUTED")
    silent = result.status == 0 and not result.err and expected != EITHER
    if silent and (tidy(result), left(case, where)) != undamaged(lab, recipe, argv, where):
        raise Broken(f"{what}: another output without a word", result)


def left(case, where):
    """What a program has left behind where its result lies: marks of checkpoints, or a figure."""
    path = case / where
    return path.read_bytes() if path.is_file() else marks(path) if where else ""


@cache
def undamaged(lab, recipe, argv, where):
    case = lab.copy(recipe)
    return tidy(lab.run(RECIPES[recipe][0], argv, case, (0,))), left(case, where)


# ----------------------------------------------------------------------------------------------------------------------
# micrograd

# fmt: off
METHODS = ["sqrt", "log", "exp", "relu", "tanh", "sigmoid", "abs"]
UNARY = {"x**0": lambda x: x**0, "x**.25": lambda x: x**0.25, "x**-1": lambda x: x**-1, "1/x": lambda x: 1 / x,
         "2**x": lambda x: 2**x, "-x": lambda x: -x, "x*0": lambda x: x * 0.0, "x*inf": lambda x: x * math.inf}
BINARY = {"x+y": lambda x, y: x + y, "x-y": lambda x, y: x - y, "x*y": lambda x, y: x * y, "x/y": lambda x, y: x / y,
          "x**y": lambda x, y: x**y, "max": lambda x, y: torch.maximum(x, y) if torch.is_tensor(x) else x.max(y),
          "min": lambda x, y: torch.minimum(x, y) if torch.is_tensor(x) else x.min(y)}
EDGES = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 3.0, math.inf, -math.inf)
# fmt: on


def graphs(argv):
    """Compare the derivatives of random graphs with torch's; print those that differ."""
    from micrograd import Value

    rng, bad = random.Random(argv[0]), []
    for _ in range(100):
        leaves = [rng.choice(EDGES) for _ in range(rng.randint(1, 3))]
        ours, theirs = [*map(Value, leaves)], [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in leaves]
        nodes, words = list(zip(ours, theirs, strict=True)), [str(leaves)]
        for _ in range(rng.randint(1, 5)):
            name, (i, j) = rng.choice([*METHODS, *UNARY, *BINARY]), rng.choices(range(len(nodes)), k=2)
            with contextlib.suppress(ValueError):  # ours refuses what is not a real number
                nodes.append(tuple(compute(name, x, y) for x, y in zip(nodes[i], nodes[j], strict=True)))
                words.append(f"{name} of {i}{f', {j}' * (name in BINARY)}")
        for root in nodes[-1]:
            root.backward()
        mine = [nodes[-1][0].data, *(v.grad for v in ours)]
        torchs = [nodes[-1][1].item(), *(0.0 if t.grad is None else t.grad.item() for t in theirs)]
        near = partial(
            math.isclose, rel_tol=1e-9, abs_tol=1e-9 * max([1, *(abs(x) for x in torchs if math.isfinite(x))])
        )
        if not all(near(x, y) or (x != x and y != y) for x, y in zip(mine, torchs, strict=True)):
            bad.append(f"{'; '.join(words)}: {mine}, torch {torchs}")
    print(*bad, sep="\n")
    return 3 if bad else 0


def compute(name, x, y):
    if name in BINARY:
        return BINARY[name](x, y)
    return UNARY[name](x) if name in UNARY else abs(x) if name == "abs" else getattr(x, name)()


DEMOS = (
    "--max-steps 2 --points 6 --layers 3 --batch-size 2",
    "--demo gpt -i ../names.txt --max-steps 2 --num-samples 1",
)


def micrograd(lab, i, rng):
    """Even: a hundred random graphs, of zeros, infinities and roots, against torch. Odd: flags."""
    if i % 2:
        flags(lab, i // 2, rng, [("micrograd", demo) for demo in DEMOS])
    else:
        lab.run(graphs, [str(rng.random())], lab.root, allowed=(0,))


# ----------------------------------------------------------------------------------------------------------------------
# Turns, and the table

# Of the time, what each gets; and its attempts in the short form, which is part of the test suite
SHARES = {kills: 42, disk: 6, signals: 6, folder: 8, inputs: 10, flags: 7, checkpoints: 20, micrograd: 1}
SHORT = {kills: 2, disk: 4, signals: 1, folder: 3, inputs: 10, flags: 10, checkpoints: 10, micrograd: 2}
KINDS = {kind.__name__: kind for kind in SHARES}
Attempt = namedtuple("Attempt", "kind number problem shown seconds memory")


def attempt(lab, kind, number, seed):
    """Let the attempt of that number happen, and clear up after it."""
    lab.results, problem, shown = [], "", []
    try:
        kind(lab, number, random.Random(f"{seed} {kind.__name__} {number}"))
    except Broken as e:
        problem, *shown = e.args
    except Exception as e:  # a judge that stumbles has found something, too
        problem = f"{e!r} in line {traceback.extract_tb(e.__traceback__)[-1].lineno}"
    for child in lab.children:
        with contextlib.suppress(OSError):
            kill(child), os.waitpid(child.pid, 0)
    lab.children.clear()
    for path in [p for p in lab.root.iterdir() if not p.name.startswith(("reference", "names", "text"))]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    seconds, memory = (max([0, *(getattr(r, name) for r in lab.results)]) for name in ("seconds", "memory"))
    return Attempt(kind.__name__, number, problem, problem and (shown or lab.results[-1:]), seconds, memory)


def take_turns(lab, kinds, limits, minutes, seed, worker, jobs):
    """Attempts of all kinds, each as often as its limit or share of the time allows; other workers do the others."""
    began, spent, numbers, done = time.perf_counter(), dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, worker), []
    while True:
        left = limits or (time.perf_counter() - began < 60 * minutes and dict.fromkeys(kinds, math.inf)) or {}
        due = [kind for kind in left if kind in kinds and numbers[kind] < left[kind]]
        if not due:
            return done
        kind, start = min(due, key=lambda kind: spent[kind] / SHARES[kind]), time.perf_counter()
        done.append(attempt(lab, kind, numbers[kind], seed))
        numbers[kind] += jobs
        spent[kind] += time.perf_counter() - start
        if done[-1].problem:
            print(f"{kind.__name__} {done[-1].number}: {done[-1].problem}", file=sys.stderr, flush=True)


def report(done, kinds, again):
    print(f"{'fault':<12}{'attempts':>9}{'held':>7}{'broken':>8}{'longest s':>11}{'largest MB':>12}")
    for name in [kind.__name__ for kind in kinds]:
        some = [a for a in done if a.kind == name]
        broken = sum(bool(a.problem) for a in some)
        seconds, memory = (max([0, *(getattr(a, what) for a in some)]) for what in ("seconds", "memory"))
        print(f"{name:<12}{len(some):>9}{len(some) - broken:>7}{broken:>8}{seconds:>11.1f}{memory:>12}")
    for a in sorted(a for a in done if a.problem):
        print(f"\n{a.kind}: {a.problem}\n  again: {again} --only {a.kind} --case {a.number}")
        for r in a.shown:
            said = (r.err or r.out).strip().splitlines()
            some = [f"    {line:.150}" for line in said[:1] + said[1:][-3:]]
            print(f"  $ {r.command}  [status {r.status}]", *some, sep="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, all kinds together")
    parser.add_argument("--attempts", type=int, help="instead: how many of each kind")
    parser.add_argument("--short", action="store_true", help="instead: as many of each kind as the test suite takes")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of fault, from: %(default)s")
    parser.add_argument("--case", type=int, help="only this attempt, with all that it prints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count()), help="at the same time [%(default)s]")
    parser.add_argument("--trio", type=Path, default=ROOT, help="the folder of the three files")
    args = parser.parse_args()
    kinds, done = [KINDS[name] for name in args.only.split(",")], []
    limits = SHORT if args.short else args.attempts and dict.fromkeys(kinds, args.attempts)
    with tempfile.TemporaryDirectory(prefix="faults") as root:
        lab, roots = Lab(args.trio.resolve(), Path(root)), [Path(root) / str(worker) for worker in range(args.jobs)]
        if args.case is not None:
            done = [attempt(lab.settle(roots[0]), kinds[0], args.case, args.seed)]
            print(*(f"$ {r.command}\n{r.out}{r.err}[status {r.status}]\n" for r in lab.results), sep="\n")
            roots = []
        for worker, place in enumerate(roots):
            if not os.fork():
                mine = take_turns(lab.settle(place), kinds, limits, args.minutes, args.seed, worker, args.jobs)
                place.with_suffix(".done").write_bytes(pickle.dumps(mine))
                os._exit(0)
        for _ in roots:
            os.wait()
        done += [a for place in roots for a in pickle.loads(place.with_suffix(".done").read_bytes())]
    trio = "" if args.trio == ROOT else f" --trio {args.trio}"
    report(done, kinds, f"python tests/bench_faults.py{trio} --seed {args.seed}")
    return 1 if any(a.problem for a in done) else 0


if __name__ == "__main__":
    sys.exit(main())
