"""Benchmarks of makemore.py; nothing here is part of the test suite.

    python tests/bench_makemore.py --results --data names.txt [--only gru]     # the table of the README (mix: its end)
    python tests/bench_makemore.py --upstream PATH --data names.txt            # step times, next to karpathy/makemore
    python tests/bench_makemore.py --lines 1000000                             # time and peak memory of a long file
    python tests/bench_makemore.py --table --data names.txt                    # the best of all trigram networks

`--data` takes the lectures' names.txt (the README says how to fetch it); PATH is a checkout of karpathy/makemore.
"""

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import makemore  # noqa: E402

# One row each: its name in the table and the flags that make it. Everything was chosen on dev.
RESULTS = {
    "bigram counts": "--type ngram --n 2 --smoothing additive --strength 0.2",
    "bigram network": "--type bigram",
    "trigram counts": "--type ngram --n 3 --smoothing additive --strength 0.2",
    "trigram network": "--type bigram --block-size 2 -b 20000 -l 0.02 -w 0.03 --max-steps 600",
    "trigram network with a hidden layer": "--type mlp --block-size 2",
    "4-gram counts": "--type ngram --n 4 --smoothing additive --strength 0.1",
    "Kneser-Ney, order 4": "--type ngram --n 4",
    "Kneser-Ney, order 5": "--type ngram --n 5",
    "Kneser-Ney, order 6": "--type ngram --n 6",
    "Kneser-Ney, order 7": "--type ngram --n 7",
    "bag of words": "--type bow",
    "MLP, 3 characters": "--type mlp",
    "MLP + BatchNorm": "--type mlp --batchnorm",
    "MLP, gradients by hand": "--type mlp --batchnorm --backprop manual",
    "WaveNet": "--type wavenet",
    "WaveNet, dilated": "--type wavenet-dilated",
    "RNN": "--type rnn",
    "GRU": "--type gru",
    "LSTM": "--type lstm",
    "Transformer": "--type transformer",
    "WaveNet, dilated, longer": "--type wavenet-dilated --dropout 0.15 -w 0.1 --max-steps 5000",
    "GRU, longer": "--type gru --n-embd 64 --n-embd2 256 --dropout 0.4 -w 0.1 --max-steps 5000",
    "LSTM, longer": "--type lstm --n-embd 64 --n-embd2 256 --dropout 0.4 -w 0.1 --max-steps 5000",
    "Transformer, longer": "--type transformer --n-embd 128 --dropout 0.3 -l 2e-3 --max-steps 10000",
}
MIX = ("Kneser-Ney, order 7", "LSTM, longer", "Transformer, longer")  # these vote, and make the last row


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


def results(data, only, root):
    """A row for every model whose name contains `only`; what was trained stays in the folder `root`."""
    print("| model | flags | parameters | train | dev | test | time | peak memory |\n|---|---|--:|--:|--:|--:|--:|--:|")
    for name, flags in RESULTS.items():
        if only.lower() in name.lower() or (only == "mix" and name in MIX):
            final, seconds, out, memory = run_row(f"{root}/{folder_of(name)}", flags, data)
            losses, parameters = " | ".join(final), re.search(r"([\d,]+) parameters", out)
            parameters = parameters[1] if parameters else "–"  # counts are not learned
            print(
                f"| {name} | `{flags}` | {parameters} | {losses} | {clock(seconds)} | {memory:.0f} MB |",
                flush=True,
            )
    if only in ("", "mix"):
        names = [folder_of(name) for name in MIX]
        final, seconds, out, memory = run_row(f"{root}/mix", "--mix " + ",".join(f"{root}/{n}" for n in names), data)
        shares = ", ".join(re.findall(r"^ (\d\.\d+)  \d", out, re.M))
        cells = f"`--mix {','.join(names)}` | shares {shares} | {' | '.join(final)}"
        print(f"| the three of them, mixed | {cells} | {clock(seconds)} | {memory:.0f} MB |")


def load_upstream(path):
    """karpathy's makemore.py as a module, without the tensorboard that it imports at the top."""
    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = None
    sys.modules["torch.utils.tensorboard"] = stub
    module = types.ModuleType("upstream")
    exec(compile((Path(path) / "makemore.py").read_text(), "upstream", "exec"), module.__dict__)
    return module


def compare(path, data, steps, batch, chunk=50):
    """Alternate `chunk` steps of upstream with as many of ours: same type, sizes and predictions per step.

    Both begin with the weights that nn.Linear gives; each has the rate that its own program takes by default, constant.
    """
    theirs = load_upstream(path)
    corpus = makemore.load_corpus(makemore.Config(input_file=data))
    chars = list(corpus.vocab.chars)
    split = {part: theirs.CharDataset(corpus.lines(part), chars, corpus.longest) for part in ("train", "test")}
    per_line = sum(map(len, corpus.train)) / len(corpus.train) + 1
    shared = dict(n_layer=4, n_head=4, n_embd=64, n_embd2=64)
    print("| type | upstream ms | ours ms | ratio | upstream test | our test |\n|---|--:|--:|--:|--:|--:|")
    for kind in ("bigram", "mlp", "bow", "rnn", "gru", "transformer"):
        torch.manual_seed(3407)
        sizes = theirs.ModelConfig(vocab_size=len(corpus.vocab), block_size=corpus.longest + 1, **shared)
        classes = dict(bigram=theirs.Bigram, mlp=theirs.MLP, bow=theirs.BoW, transformer=theirs.Transformer)
        their_model = classes[kind](sizes) if kind in classes else theirs.RNN(sizes, cell_type=kind)
        their_optimizer = torch.optim.AdamW(their_model.parameters(), lr=5e-4, weight_decay=0.01, betas=(0.9, 0.99))
        loader = theirs.InfiniteDataLoader(split["train"], batch_size=batch, pin_memory=True, num_workers=4)

        own = dict(shared, n_layer=1) if kind in ("mlp", "rnn", "gru") else shared  # upstream's have one layer each
        windows = dict(block_size=corpus.longest + 1) if kind == "mlp" else {}
        given = dict(type=kind, input_file=data, device="cpu", dropout=0.0, init="torch", **own, **windows)
        run = makemore.start_run({name: value for name, value in given.items() if name in makemore.uses(kind)})
        model, examples = run.model, run.examples("train")
        rows = round(batch * per_line) if model.windowed else batch
        optimizer = makemore.make_optimizer(model, run.config)
        generator = torch.Generator().manual_seed(1)

        def their_step(loader=loader, model=their_model, optimizer=their_optimizer):
            x, y = loader.next()
            _, loss = model(x, y)
            model.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def our_step(model=model, examples=examples, rows=rows, generator=generator, optimizer=optimizer):
            x, y = examples.batch(torch.randint(len(examples), (rows,), generator=generator))
            loss = makemore.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        spent = {their_step: [], our_step: []}
        for _ in range(steps // chunk):
            for step, times in spent.items():
                for _ in range(chunk):
                    began = time.perf_counter()
                    step()
                    times.append(1000 * (time.perf_counter() - began))
        x, y = (torch.stack(t) for t in zip(*(split["test"][i] for i in range(len(split["test"]))), strict=True))
        with torch.no_grad():
            their_loss = makemore.cross_entropy(their_model.eval()(x)[0], y).item()
        our_loss = run.evaluate("test")
        a, b = median(spent[their_step]), median(spent[our_step])
        print(f"| {kind} | {a:.2f} | {b:.2f} | {a / b:.1f} | {their_loss:.4f} | {our_loss:.4f} |", flush=True)


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
    parser.add_argument("--only", default="", help="rows of --results whose name contains this")
    parser.add_argument("--out", metavar="FOLDER", help="keep the models of --results there")
    parser.add_argument("--upstream", metavar="PATH")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32, help="lines per step of both, for --upstream")
    parser.add_argument("--table", action="store_true", help="the best that a table of trigram logits can do")
    parser.add_argument("--lines", type=int)
    parser.add_argument("--type", default="mlp", help="for --lines")
    parser.add_argument("--data", default="names.txt")
    args = parser.parse_args()
    if args.results:
        with tempfile.TemporaryDirectory() as scratch:
            results(args.data, args.only, args.out or scratch)
    if args.upstream:
        compare(args.upstream, args.data, args.steps, args.batch)
    if args.table:
        table(args.data)
    if args.lines:
        long_file(args.lines, args.type)
