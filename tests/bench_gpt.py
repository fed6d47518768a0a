"""Measure gpt.py against nanoGPT, and on a text of 2 GB.

    python tests/bench_gpt.py --nanogpt PATH              # everything; PATH: a checkout of karpathy/nanoGPT
    python tests/bench_gpt.py --nanogpt PATH loss step    # only some of: loss time step sample
    python tests/bench_gpt.py --nanogpt PATH seeds --flags="--preset small --compile on"   # each alone, and averaged
    python tests/bench_gpt.py --out FOLDER --flags=... distil   # one more, taught by those that seeds left there
    python tests/bench_gpt.py dtype --seeds 4             # the preset mini in float32 and in bfloat16
    python tests/bench_gpt.py processes                   # one batch shared by two processes of this machine
    python tests/bench_gpt.py encode                      # a generated text of 2 GB (--gigabytes), in the folder --tmp

The text is Tiny Shakespeare at ../shared/data/input.txt, or any --text. nanoGPT runs its own train.py in a temporary
copy, with the CPU command of its README; its data is prepared here, since its own preparation wants the network.
Seconds of training are those between evaluations, for both. The final losses of both are exact, over the whole
validation part, in windows of 64 characters side by side. Rivals take turns, and the medians are compared.
"""

import argparse
import csv
import os
import pickle
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gpt  # noqa: E402

README = (
    "--device=cpu --compile=False --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128"
)
DTYPES = ("float32", "bfloat16")  # the second is fast on some processors that know it, and slow on others


class NanoGPT:
    """A temporary copy of the checkout with the text prepared as its character-level data set."""

    def __init__(self, checkout, text, folder):
        self.folder = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, self.folder, ignore=shutil.ignore_patterns(".git"))
        chars = sorted(set(text))
        tokens = gpt.Vocab("".join(chars)).encode(text).astype(np.uint16)
        n = int(0.9 * len(tokens))
        data = self.folder / "data" / "shakespeare_char"
        tokens[:n].tofile(data / "train.bin")
        tokens[n:].tofile(data / "val.bin")
        meta = dict(vocab_size=len(chars), stoi={c: i for i, c in enumerate(chars)}, itos=dict(enumerate(chars)))
        (data / "meta.pkl").write_bytes(pickle.dumps(meta))
        sys.path.insert(0, str(self.folder))

    def train(self, steps):
        """Run its README's CPU command for so many steps: milliseconds of every step, evaluations left out."""
        command = ["train.py", "config/train_shakespeare_char.py", *README.split(), "--dropout=0.0", "--eval_iters=20"]
        command += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}"]
        out = subprocess.run(
            [sys.executable, *command, "--always_save_checkpoint=True"], cwd=self.folder, text=True, capture_output=True
        )
        if out.returncode:
            sys.exit(out.stderr)
        times = {int(i): float(ms) for i, ms in re.findall(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms", out.stdout)}
        return [ms for i, ms in times.items() if i % steps]

    def loss(self, val):
        """Its final loss over all of val."""
        saved = torch.load(self.folder / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
        model = self.model(**saved["model_args"])
        model.load_state_dict(saved["model"])
        return mean_loss(lambda x: model(x, x.contiguous())[0], val, 64)  # without targets: the last only

    def model(self, **shape):
        import model as nano

        return nano.GPT(nano.GPTConfig(**shape)).eval()


def mean_loss(logits, val, size):
    """The loss over all of val, in contexts of that size side by side; logits maps tokens (B, T) to (B, T, V)."""
    text, total, count = gpt.Text(val, None), 0.0, 0
    for starts, length in gpt.windows(0, len(val), size):
        x, y = text.batch(starts, length, torch.device("cpu"))
        with torch.no_grad():
            total += gpt.cross_entropy(logits(x), y, "sum").item()
        count += y.numel()
    return total / count


class Averaged(torch.nn.Module):
    """The models of several runs together: the logarithm of the mean of their probabilities (but for a constant)."""

    def __init__(self, runs):
        super().__init__()
        self.members = torch.nn.ModuleList(run.model for run in runs)

    def new_cache(self, batch_size):
        return [member.new_cache(batch_size) for member in self.members]

    def forward(self, x, caches=None):
        opinions = [m(x, cache) for m, cache in zip(self.members, caches or [None] * len(self.members), strict=True)]
        return torch.stack(opinions).log_softmax(-1).logsumexp(0)


class Taught(gpt.Text):
    """A text, and after its train part another that a teacher writes; train's targets are what the teacher expects.

    Where the text itself stands, half of each target is what stands there.
    """

    def __init__(self, text, teacher, config, streams=512):
        low, self.real = text.parts["train"]
        start, length = torch.full((streams, 1), int(text.tokens[low])), 3 * self.real // (2 * streams)
        written = gpt.continuation(teacher, start, replace(config, max_new_tokens=length, temperature=1.0))
        known = np.concatenate([text.tokens[: self.real], torch.stack(list(written), 1).flatten().numpy()])
        super().__init__(np.concatenate([known, text.tokens[self.real :]]), text.vocab, text.digest, text.places)
        n, half = len(known), config.block_size // 2
        self.parts = {"train": (0, n), "val": (n, len(self.tokens))}
        self.expected = torch.zeros(n, len(text.vocab), dtype=torch.float16)  # of each token, from what is before it
        with torch.no_grad():  # from the end: where windows overlap, what was seen with more before it stays
            for starts in torch.arange(n - 1 - 2 * half, -half, -half).clamp(min=0).split(32):
                x, _ = super().batch(starts, 2 * half, torch.device("cpu"))
                for start, p in zip(starts, teacher(x).softmax(-1).half(), strict=True):
                    self.expected[start + 1 : start + 1 + 2 * half] = p

    def batch(self, starts, block_size, device):
        """starts (B,) -> inputs (B, T) and targets: probabilities (B, T, V), or tokens (B, T) where it is judged."""
        x, y = super().batch(starts, block_size, device)
        index = torch.as_tensor(starts)[:, None] + torch.arange(1, block_size + 1)  # (B, T)
        if index.max() >= len(self.expected):
            return x, y
        p, truth = self.expected[index].float(), torch.nn.functional.one_hot(y, len(self.vocab)).float()
        return x, torch.lerp(p, truth, (index < self.real)[..., None] / 2)


def ours(folder, text_path, *args):
    """Train with gpt.py in a process of its own: (seconds of training, final val loss, milliseconds per step)."""
    command = [sys.executable, str(ROOT / "gpt.py"), "-i", text_path, "-o", folder, "--device", "cpu", *map(str, args)]
    command += ["--num-samples", "0", "--eval-interval", "1000000"]
    out = subprocess.run(command, text=True, capture_output=True)
    if out.returncode:
        sys.exit(out.stderr)
    rows = list(csv.DictReader((Path(folder) / "log.csv").read_text().splitlines()))
    seconds, steps = float(rows[-1]["seconds"]), int(rows[-1]["step"])
    return seconds, float(rows[-1]["val_loss"]), 1000 * seconds / steps


def bench_loss(nano, text_path, val, folder, seeds):
    """Seconds of training to nanoGPT's final loss: its 2,000 steps, and our preset tiny."""
    print("time to the loss: ours the preset tiny, nanoGPT 2,000 steps", flush=True)
    given = ["--preset", "tiny", "--dtype"]
    runs = {t: [ours(f"{folder}/{t}{s}", text_path, *given, t, "--seed", s) for s in range(seeds)] for t in DTYPES}
    times = nano.train(2000)
    theirs, goal = statistics.fmean(times) * 2, nano.loss(val)
    print(f"  nanoGPT          {theirs:6.1f} s  val {goal:.4f}   ({statistics.median(times):.1f} ms/step)", flush=True)
    for dtype, results in runs.items():
        seconds, losses, paces = zip(*results, strict=True)
        reached = "" if max(losses) <= goal else ", NOT reached by all"
        print(
            f"  gpt.py {dtype:<9} {statistics.median(seconds):6.1f} s  val {', '.join(f'{x:.4f}' for x in losses)}   "
            f"({statistics.median(paces):.1f} ms/step) => {theirs / statistics.median(seconds):.1f} x{reached}",
            flush=True,
        )
    return theirs


def bench_time(nano_seconds, text_path, folder):
    """The loss of our preset mini in nanoGPT's time."""
    for dtype in DTYPES:
        given = [f"{folder}/b", text_path, "--preset", "mini", "--dtype", dtype]
        steps = int(1000 * nano_seconds / ours(*given, "--max-steps", 40)[2])
        seconds, loss, _ = ours(*given, "--max-steps", steps, "--decay-steps", steps)
        print(f"in nanoGPT's time, {dtype}: {steps} steps in {seconds:.1f} s, val {loss:.4f}", flush=True)


def bench_step(nano, text_path, folder, rounds=3, steps=150):
    """The same architecture, batch and optimizer: milliseconds per step, in turns."""
    theirs, mine = [], {dtype: [] for dtype in DTYPES}
    for i in range(rounds):
        theirs.append(statistics.fmean(nano.train(steps)))
        for dtype, times in mine.items():
            times.append(
                ours(f"{folder}/c{i}", text_path, "--preset", "gpt2", "--max-steps", steps, "--dtype", dtype)[2]
            )
    a = statistics.median(theirs)
    for dtype, times in mine.items():
        b = statistics.median(times)
        print(f"GPT-2's block and AdamW: nanoGPT {a:.1f} ms/step, gpt.py in {dtype} {b:.1f} ms/step => {a / b:.2f} x")


NAMES = {
    "transformer.wte.weight": "token.weight",
    "transformer.wpe.weight": "position.weight",
    "transformer.ln_f.weight": "norm.weight",
}
PARTS = {
    "ln_1.weight": "norm1.weight",
    "attn.c_attn.weight": "attn.qkv.weight",
    "attn.c_proj.weight": "attn.proj.weight",
    "ln_2.weight": "norm2.weight",
    "mlp.c_fc.weight": "mlp.up.weight",
    "mlp.c_proj.weight": "mlp.proj.weight",
}


def bench_sample(nano, characters=1000):
    """Writing from the same weights, with a context of 256: one text, in turns, and 32 side by side."""
    torch.manual_seed(0)
    shape = dict(block_size=256, n_layer=4, n_head=4, n_embd=128)
    theirs = nano.model(**shape, bias=False, vocab_size=65)
    config = gpt.configure(dict(preset="gpt2", **shape, max_new_tokens=characters, temperature=0.8))
    mine = gpt.build(config, 65).eval()
    state = {}
    for name, weight in theirs.state_dict().items():
        layer = re.fullmatch(r"transformer\.h\.(\d+)\.(.*)", name)
        if ".attn.bias" not in name and name != "lm_head.weight":
            state[f"blocks.{layer[1]}.{PARTS[layer[2]]}" if layer else NAMES[name]] = weight
    mine.load_state_dict({**state, "head.weight": state["token.weight"]})
    idx = torch.randint(65, (1, 256))
    with torch.no_grad():
        difference = (theirs(idx, idx)[0] - mine(idx)).abs().max().item()
    assert difference < 1e-4, difference
    print(f"writing from the same weights (logits differ by {difference:.0e}), {characters} characters:", flush=True)
    for texts, rounds in ((1, 3), (32, 1)):
        start, a, b = idx[:, :1].expand(texts, 1), [], []
        for _ in range(rounds):
            began = time.perf_counter()
            theirs.generate(start, characters, temperature=0.8)
            a.append(time.perf_counter() - began)
            began = time.perf_counter()
            tokens = list(gpt.continuation(mine, start, config))
            b.append(time.perf_counter() - began)
        short = replace(config, max_new_tokens=300)
        slow = list(gpt.continuation(torch.nn.Sequential(mine), start, short))
        assert all(map(torch.equal, slow, tokens)), "cached and uncached sampling differ"
        a, b = statistics.median(a), statistics.median(b)
        print(f"  texts: {texts:2}  nanoGPT {a:.2f} s, gpt.py {b:.2f} s => {a / b:.1f} x", flush=True)


def bench_seeds(nano, text_path, folder, val, seeds, flags):
    """The loss with these flags, and how long it takes in all: starting, compiling, evaluating and drawing, too.

    With several seeds also the loss of all of them together, their probabilities averaged.
    """
    theirs = statistics.fmean(nano.train(2000)) * 2
    print(f"nanoGPT's 2,000 steps: {theirs:.1f} s", flush=True)
    runs, start = [], time.perf_counter()
    for seed in range(seeds):
        given = ["--seed", gpt.Config.seed + seed, *flags]
        seconds, loss, pace = ours(f"{folder}/seed{seed}", text_path, *given)
        whole = time.perf_counter() - start
        words = f"val {loss:.4f}; {seconds:.0f} s of training at {pace:.0f} ms/step"
        words += f"; {whole:.0f} s so far, {whole / theirs:.1f} times nanoGPT's"
        print(f"{' '.join(map(str, given))}: {words}", flush=True)
        runs.append(gpt.load(f"{folder}/seed{seed}", device="cpu"))
        if seed:
            loss = mean_loss(Averaged(runs), val, runs[0].config.block_size)
            print(f"  {len(runs)} of them averaged: val {loss:.4f}", flush=True)


def bench_distil(text_path, folder, val, flags):
    """Train one model on what all of those that seeds left in the folder expect together (Hinton et al. 2015)."""
    start = time.perf_counter()
    runs = [gpt.load(path, input_file=text_path, device="cpu") for path in sorted(Path(folder).glob("seed*"))]
    if not runs:
        sys.exit("nobody there to teach: name the folder that seeds was given with --out")
    teacher = Averaged(runs).eval()
    student = gpt.start_run(gpt.parse_args([*flags, "-i", text_path, "-o", f"{folder}/student"]), verbose=True)
    student.data = Taught(student.data, teacher, runs[0].config)
    written = len(student.data.expected) - student.data.real
    print(f"{written:,} characters written and judged, {time.perf_counter() - start:.0f} s", flush=True)
    loss = mean_loss(student.train().model, val, student.config.block_size)
    print(f"one model taught by {len(runs)}, {' '.join(flags)}: val {loss:.4f}; {time.perf_counter() - start:.0f} s")
    print(f"  all averaged: val {mean_loss(Averaged([*runs, student]), val, student.config.block_size):.4f}")


def bench_dtype(text_path, folder, seeds, steps=400):
    """What --dtype auto chooses by on a processor: is bfloat16 faster, and is the loss the same?"""
    runs = {dtype: [] for dtype in DTYPES}
    for seed in range(seeds):
        for dtype, results in runs.items():
            results.append(ours(f"{folder}/d", text_path, "--max-steps", steps, "--dtype", dtype, "--seed", seed))
    for dtype, results in runs.items():
        seconds, losses, paces = zip(*results, strict=True)
        words = f"{statistics.median(seconds):5.1f} s, {statistics.median(paces):5.1f} ms/step"
        mean = f"val {statistics.fmean(losses):.4f} on average: {', '.join(f'{x:.4f}' for x in losses)}"
        print(f"mini, {steps} steps, {dtype:<9} {words}, {mean}", flush=True)


def bench_processes(text_path, folder, rounds=3, steps=40):
    """The pace of mini, its batch in one process and shared by two on the same machine, taking turns."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = {
        "one process, one thread": ([], 1),
        "one process, two threads": ([], 2),
        "two processes, one thread each": (torchrun, 1),
    }
    spent = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (start, threads) in ways.items():
            flags = ["-i", text_path, "-o", f"{folder}/p", "--preset", "mini", "--threads", threads, "--device", "cpu"]
            flags += ["--max-steps", 2 * steps, "--eval-interval", steps, "--eval-chars", 2000, "--num-samples", 0]
            command = [sys.executable, *start, ROOT / "gpt.py", *flags]
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/p/log.csv") as f:
                _, first, last = csv.DictReader(f)  # the first half is for getting warm
            spent[way].append(1000 * (float(last["seconds"]) - float(first["seconds"])) / steps)
    alone = statistics.median(spent["one process, one thread"])
    for way, times in spent.items():
        pace = statistics.median(times)
        print(f"mini, {way}: {pace:.1f} ms/step, {alone / pace:.2f} x", flush=True)


def bench_encode(text, folder, gigabytes):
    """Encode and train on a generated text far larger than the memory that is used."""
    path = Path(folder) / "big.txt"
    rng = np.random.default_rng(0)
    block = np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8)
    with open(path, "wb") as f:
        while f.tell() < gigabytes * 1e9:
            for cut in rng.integers(0, len(block), 16):  # as if new lines followed one another
                f.write(block[cut:].tobytes())
    size = path.stat().st_size
    start = time.perf_counter()
    head = gpt.survey(path)
    gpt.write_atomic(Path(folder) / "tokens.bin", gpt.encode(path, head))
    seconds = time.perf_counter() - start
    again = time.perf_counter()
    assert gpt.survey(path) == head
    again = time.perf_counter() - again
    steps = 100
    ours(folder, str(path), "--max-steps", steps, "--eval-chars", 20000)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(
        f"a text of {size / 1e9:.2f} GB: read and encoded in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s; "
        f"known again in {again:.1f} s"
    )
    print(f"  training on it ({steps} steps): {peak:.2f} GB of memory at most, torch included", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="seeds, distil; loss time step sample dtype processes encode (if none)")
    parser.add_argument("--nanogpt", help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--text", default=str(ROOT.parent / "shared" / "data" / "input.txt"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flags", type=str.split, default=[], help="of gpt.py, for seeds and distil")
    parser.add_argument("--out", help="keep the models of seeds there; distil finds them, and adds one")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--tmp", default=tempfile.gettempdir())
    args = parser.parse_args()
    if not Path(args.text).exists():
        sys.exit(f"no {args.text}: name a text with --text")
    what = args.what or ["loss", "time", "step", "sample", "dtype", "processes", "encode"]
    text = Path(args.text).read_text(encoding="utf-8")
    val = gpt.Vocab("".join(sorted(set(text)))).encode(text)[int(0.9 * len(text)) :]
    print(
        f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.text}", flush=True
    )
    with tempfile.TemporaryDirectory(dir=args.tmp) as folder:
        if {"loss", "time", "step", "sample", "seeds"} & set(what):
            if not args.nanogpt:
                sys.exit("name a checkout of karpathy/nanoGPT with --nanogpt")
            nano = NanoGPT(args.nanogpt, text, folder)
        if {"loss", "time"} & set(what):
            theirs = bench_loss(nano, args.text, val, folder, args.seeds)
        if "time" in what:
            bench_time(theirs, args.text, folder)
        if "step" in what:
            bench_step(nano, args.text, folder)
        if "sample" in what:
            bench_sample(nano)
        if "seeds" in what:
            bench_seeds(nano, args.text, args.out or folder, val, args.seeds, args.flags)
        if "distil" in what:
            bench_distil(args.text, args.out or folder, val, args.flags)
        if "dtype" in what:
            bench_dtype(args.text, folder, args.seeds)
        if "processes" in what:
            bench_processes(args.text, folder)
        if "encode" in what:
            bench_encode(text, folder, args.gigabytes)


if __name__ == "__main__":
    main()
