"""Benchmarks of makemore.py; nothing here is part of the test suite.

    python tests/bench_makemore.py --results --data names.txt [--only gru]     # the table of the README (mix: its end)
    python tests/bench_makemore.py --results --only mix --data names.txt --out MODELS
    python tests/bench_makemore.py --distil MODELS --data names.txt            # two models that learn from that mixture
    python tests/bench_makemore.py --upstream PATH --data names.txt            # step times, next to karpathy/makemore
    python tests/bench_makemore.py --upstream PATH --data names.txt --minutes 10   # time to its loss after ten minutes
    python tests/bench_makemore.py --lines 1000000                             # time and peak memory of a long file
    python tests/bench_makemore.py --table --data names.txt                    # the best of all trigram networks

`--data` takes the lectures' names.txt (the README says how to fetch it); PATH is a checkout of karpathy/makemore.
"""

import argparse
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import makemore  # noqa: E402

# One row each: its name in the table and the flags that make it. Everything was chosen on dev.
RESULTS = {
    "bigram counts": "--type ngram --n 2 --smoothing additive --strength 0.2",
    "bigram network": "--type bigram",
    "trigram counts": "--type ngram --n 3 --smoothing additive --strength 0.2",
    "trigram network": "--type bigram --block-size 2 --max-steps 1000 --decay-steps 1000",
    "trigram network with a hidden layer": "--type mlp --block-size 2 -w 0.01",
    "4-gram counts": "--type ngram --n 4 --smoothing additive --strength 0.1",
    "Kneser-Ney, order 4": "--type ngram --n 4",
    "Kneser-Ney, order 5": "--type ngram --n 5",
    "Kneser-Ney, order 6": "--type ngram --n 6",
    "Kneser-Ney, order 7": "--type ngram --n 7",
    "bag of words": "--type bow",
    "MLP, 3 characters": "--type mlp --block-size 3 -w 0.01",
    "MLP, 8 characters": "--type mlp",
    "MLP + BatchNorm": "--type mlp --batchnorm",
    "MLP, gradients by hand": "--type mlp --batchnorm --backprop manual",
    "WaveNet": "--type wavenet",
    "WaveNet, dilated": "--type wavenet-dilated",
    "RNN": "--type rnn",
    "GRU": "--type gru",
    "LSTM": "--type lstm",
    "Transformer": "--type transformer",
    "LSTM, longer": "--type lstm --n-embd 64 --n-embd2 256 --dropout 0.4 -l 0.01 --max-steps 8000",
    "Transformer, longer": "--type transformer --n-embd 96 --dropout 0.3 -l 3e-3 --max-steps 7000",
}
STUDENTS = {  # what --distil trains
    "student": "--type transformer --n-embd 128 --dropout 0 -l 3e-3 --max-steps 5000",
    "student-lstm": "--type lstm --n-embd 64 --n-embd2 256 --dropout 0 -l 0.01 --max-steps 5000",
}
MIX = ("Kneser-Ney, order 5", "LSTM, longer", "Transformer, longer")  # these are mixed, for the last row


def clock(seconds):
    """Seconds as m:ss."""
    return "{}:{:02d}".format(*divmod(round(seconds), 60))


def folder_of(name):
    return re.sub(r"\W+", "-", name).lower()


def run_row(folder, flags, data):
    """Train in a fresh process; return (final losses, seconds, output, peak memory in MB)."""
    command = [sys.executable, str(ROOT / "makemore.py"), "-i", data, "-o", folder, "--device", "cpu", *flags.split()]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    final = re.search(r"final: train (\S+) dev (\S+) test (\S+)", out).groups()
    return final, time.perf_counter() - began, out, usage.ru_maxrss / 1024


def mix_row(folders, target, data):
    """Mix the models of these folders into another; return what run_row does, with the weights for the output."""
    final, seconds, out, memory = run_row(target, f"--mix {','.join(folders)}", data)
    return final, seconds, ", ".join(re.findall(r"^ (\d\.\d+)  \d", out, re.M)), memory


def results(data, only, root):
    """A row for every model whose name contains `only`; what was trained stays in the folder `root`."""
    print("| model | flags | parameters | train | dev | test | time | peak memory |\n|---|---|--:|--:|--:|--:|--:|--:|")
    for name, flags in RESULTS.items():
        if only.lower() in name.lower() or (only == "mix" and name in MIX):
            final, seconds, out, memory = run_row(f"{root}/{folder_of(name)}", flags, data)
            losses, parameters = " | ".join(final), re.search(r"([\d,]+) parameters", out)
            parameters = parameters[1] if parameters else "–"  # counts are not learned
            print(f"| {name} | `{flags}` | {parameters} | {losses} | {clock(seconds)} | {memory:.0f} MB |", flush=True)
    if only in ("", "mix"):
        names = [folder_of(name) for name in MIX]
        final, seconds, weights, memory = mix_row([f"{root}/{name}" for name in names], f"{root}/mix", data)
        cells = f"`--mix {','.join(names)}` | weights {weights} | {' | '.join(final)}"
        print(f"| the three of them, mixed | {cells} | {clock(seconds)} | {memory:.0f} MB |")


class Taught(makemore.Lines):
    """Lines whose targets are what a teacher expects; on the first `real`, half of that is what stands there."""

    def __init__(self, lines, vocab, teacher, real):
        super().__init__(lines, vocab)
        self.real, self.expected = real, torch.zeros(len(lines), int(self.lengths.max()) + 1, len(vocab))
        with makemore.inference(teacher):
            for index in self.in_order(32_768):
                x, _ = super().batch(index)
                self.expected[index, : x.shape[1]] = teacher(x).softmax(-1)

    def batch(self, index):
        """index (B,) -> inputs (B, T) and targets (B, T, V): probabilities, none after the end of a line."""
        x, y = super().batch(index)
        inside, truth = (y >= 0)[..., None], F.one_hot(y.clamp(min=0), self.expected.shape[2])
        p = torch.lerp(self.expected[index, : x.shape[1]], truth.float(), (index < self.real)[:, None, None] / 2)
        return x, p * inside * inside.numel() / inside.sum()  # so that the mean is over what is inside


def distil(data, folder):
    """Train models on what a mixture expects (Hinton et al. 2015), one after the other, and mix them with its members.

    They learn from the lines of train and from twice as many that the mixture writes, which nobody knows by heart.
    """
    began = time.perf_counter()
    teacher = makemore.load(f"{folder}/mix", input_file=data)
    real, members = len(teacher.data.train), [f"{folder}/{folder_of(name)}" for name in MIX]
    written = [line for seed in range(20) for line in teacher.sample(real // 10, seed=seed)]
    taught = Taught(teacher.data.train + written, teacher.vocab, teacher.model, real)
    print(f"{len(written):,} lines written and judged, {time.perf_counter() - began:.0f} s", flush=True)
    for name, flags in STUDENTS.items():
        given = makemore.parse_args([*flags.split(), "-i", data, "-o", f"{folder}/{name}", "--device", "cpu"])
        student = makemore.start_run(given, verbose=True)
        student.parts["train"] = taught
        student.train()
        student = makemore.load(f"{folder}/{name}", input_file=data)  # to be judged on the lines of train as they are
        losses = (f"{part} {student.evaluate(part):.4f}" for part in makemore.PARTS)
        print(f"one model, `{flags}`:", *losses, f"{time.perf_counter() - began:.0f} s so far", flush=True)
        members.append(f"{folder}/{name}")
    final, _, weights, _ = mix_row(members, f"{folder}/all", data)
    print(f"all {len(members)} mixed:", *final, "weights", weights, f"{time.perf_counter() - began:.0f} s in all")


def load_upstream(path):
    """karpathy's makemore.py as a module, without the tensorboard that it imports at the top."""
    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = None
    sys.modules["torch.utils.tensorboard"] = stub
    module = types.ModuleType("upstream")
    exec(compile((Path(path) / "makemore.py").read_text(), "upstream", "exec"), module.__dict__)
    return module


KINDS = ("bigram", "mlp", "bow", "rnn", "gru", "transformer")  # what both programs have
SIZES = dict(n_layer=4, n_head=4, n_embd=64, n_embd2=64)  # upstream's defaults


class Upstream:
    """One of upstream's models with its defaults, in training: `step` makes a step, `test` is the loss on our test."""

    def __init__(self, theirs, corpus, kind, batch=32):
        torch.manual_seed(3407)
        sizes = theirs.ModelConfig(vocab_size=len(corpus.vocab), block_size=corpus.longest + 1, **SIZES)
        classes = dict(bigram=theirs.Bigram, mlp=theirs.MLP, bow=theirs.BoW, transformer=theirs.Transformer)
        self.model = classes[kind](sizes) if kind in classes else theirs.RNN(sizes, cell_type=kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, weight_decay=0.01, betas=(0.9, 0.99))
        chars = list(corpus.vocab.chars)
        train, test = (theirs.CharDataset(corpus.lines(part), chars, corpus.longest) for part in ("train", "test"))
        self.loader = theirs.InfiniteDataLoader(train, batch_size=batch, pin_memory=True, num_workers=4)
        self.x, self.y = (torch.stack(t) for t in zip(*(test[i] for i in range(len(test))), strict=True))

    def step(self):
        x, y = self.loader.next()
        _, loss = self.model(x, y)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def test(self):
        with makemore.inference(self.model):
            return makemore.cross_entropy(self.model(self.x)[0], self.y).item()


def compare(path, data, steps, batch, chunk=50):
    """Alternate `chunk` steps of upstream with as many of ours: same type, sizes and predictions per step.

    Both begin with the weights that nn.Linear gives; each has the rate that its own program takes by default, constant.
    """
    theirs, corpus = load_upstream(path), makemore.load_corpus(makemore.Config(input_file=data))
    per_line = sum(map(len, corpus.train)) / len(corpus.train) + 1
    print("| type | upstream ms | ours ms | ratio | upstream test | our test |\n|---|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        rival = Upstream(theirs, corpus, kind, batch)
        own = dict(SIZES, n_layer=1) if kind in ("mlp", "rnn", "gru") else SIZES  # upstream's have one layer each
        windows = dict(block_size=corpus.longest + 1) if kind == "mlp" else {}
        given = dict(type=kind, input_file=data, device="cpu", dropout=0.0, lookback=1, init="torch", **own, **windows)
        run = makemore.start_run({name: value for name, value in given.items() if name in makemore.uses(kind)})
        model, examples = run.model, run.examples("train")
        rows = round(batch * per_line) if model.windowed else batch
        optimizer = makemore.make_optimizer(model, run.config)
        generator = torch.Generator().manual_seed(1)

        def our_step(model=model, examples=examples, rows=rows, generator=generator, optimizer=optimizer):
            x, y = examples.batch(torch.randint(len(examples), (rows,), generator=generator))
            loss = makemore.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        spent = {rival.step: [], our_step: []}
        for _ in range(steps // chunk):
            for step, times in spent.items():
                for _ in range(chunk):
                    began = time.perf_counter()
                    step()
                    times.append(1000 * (time.perf_counter() - began))
        a, b = map(median, spent.values())
        losses = f"{rival.test():.4f} | {run.evaluate('test'):.4f}"
        print(f"| {kind} | {a:.2f} | {b:.2f} | {a / b:.1f} | {losses} |", flush=True)


def race(path, data, minutes, only):
    """How long each of our types takes, with its defaults, to the loss that upstream's has after so many minutes.

    Both are judged on the lines of our test: upstream at each full minute, of which the best counts, since its program
    keeps the best; ours twenty times on its way. Only steps are timed.
    """
    theirs, corpus = load_upstream(path), makemore.load_corpus(makemore.Config(input_file=data))
    print(f"| type | upstream, steps in {minutes} minutes | its loss | our seconds to that | ratio | our loss then |")
    print("|---|--:|--:|--:|--:|--:|")
    for kind in only.split(",") if only else KINDS:
        rival, steps, losses, passed = Upstream(theirs, corpus, kind), 0, [], 0
        while len(losses) < minutes:
            began = time.perf_counter()
            while passed + time.perf_counter() - began < 60 * (len(losses) + 1):
                rival.step()
                steps += 1
            passed += time.perf_counter() - began
            losses.append(rival.test())
        del rival.loader  # its workers
        goal, loss, seconds = min(losses), math.inf, 0.0
        run = makemore.start_run(dict(type=kind, input_file=data, device="cpu"))
        with makemore.learning(run, {}):
            run.checkpoint()  # what is the best at the end has to be there
            while loss > goal and run.progress.step < run.config.max_steps:
                began = time.perf_counter()
                for _ in range(run.config.max_steps // 20):
                    run.learn()
                seconds += time.perf_counter() - began
                loss = run.evaluate("test")
        reached = f"{seconds:.1f} | {60 * minutes / seconds:.0f} ×" if loss <= goal else "not reached |"
        print(f"| {kind} | {steps:,} | {goal:.4f} | {reached} | {loss:.4f} |", flush=True)


def long_file(lines, kind):
    """Train 200 steps (or count) on a generated file of that many lines; print the time and the peak memory."""
    draw, seeds = random.Random(1), (ROOT / "names.txt").read_text().split()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.txt"
        path.write_text("\n".join(draw.choice(seeds) + draw.choice(seeds)[:4] for _ in range(lines)))
        began = time.perf_counter()
        flags = ["-o", f"{folder}/out", "--num-samples", "5"]
        flags += ["--max-steps", "200"] if "max_steps" in makemore.uses(kind) else []
        makemore.main(["-i", str(path), "--type", kind, *flags])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{lines:,} lines: {time.perf_counter() - began:.1f} s in all, peak memory {peak:.0f} MB")


def table(data):
    """The table of trigram logits that minimises loss + penalty, to many digits, for some penalties: its losses."""
    corpus = makemore.load_corpus(makemore.Config(input_file=data))
    V, counts = len(corpus.vocab), {}
    for part in makemore.PARTS:
        windows = makemore.Windows(corpus.lines(part), corpus.vocab, block_size=2)
        x, y = windows.batch(torch.arange(len(windows)))
        counts[part] = torch.bincount((x[:, 0] * V + x[:, 1]) * V + y, minlength=V**3).view(V * V, V).double()
    print("| penalty on half the squares | train | dev | test |\n|--:|--:|--:|--:|")
    for penalty in (0.05, 0.1, 0.15, 0.2, 0.3):
        logits = torch.zeros(V * V, V, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([logits], max_iter=400, history_size=20, line_search_fn="strong_wolfe")

        def losses(logits=logits):
            return {part: -(n * logits.log_softmax(1)).sum() / n.sum() for part, n in counts.items()}

        def penalised(logits=logits, losses=losses, solver=solver, penalty=penalty):
            solver.zero_grad()
            total = losses()["train"] + penalty / 2 * (logits**2).sum() / counts["train"].sum()
            total.backward()
            return total

        solver.step(penalised)
        print(f"| {penalty} | {' | '.join(f'{loss:.4f}' for loss in losses().values())} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", action="store_true")
    parser.add_argument(
        "--only", default="", help="rows of --results named so (mix: its members, too); types, for --minutes"
    )
    parser.add_argument("--out", metavar="FOLDER", help="keep the models of --results there")
    parser.add_argument("--distil", metavar="FOLDER", help="two models that learn from the mixture in FOLDER/mix")
    parser.add_argument("--upstream", metavar="PATH")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32, help="lines per step of both, for --upstream")
    parser.add_argument("--minutes", type=int, help="let upstream train for so long, and see when we are there")
    parser.add_argument("--table", action="store_true", help="the best that a table of trigram logits can do")
    parser.add_argument("--lines", type=int)
    parser.add_argument("--type", default="mlp", help="for --lines")
    parser.add_argument("--data", default="names.txt")
    args = parser.parse_args()
    if args.results:
        with tempfile.TemporaryDirectory() as scratch:
            results(args.data, args.only, args.out or scratch)
    if args.distil:
        distil(args.data, args.distil)
    if args.upstream and args.minutes:
        race(args.upstream, args.data, args.minutes, args.only)
    elif args.upstream:
        compare(args.upstream, args.data, args.steps, args.batch)
    if args.table:
        table(args.data)
    if args.lines:
        long_file(args.lines, args.type)
