"""Measure gpt.py and makemore.py on the first graphics card found, and print the tables for the README.

    python tests/bench_card.py --nanogpt PATH             # everything; PATH, if any: a checkout of karpathy/nanoGPT
    python tests/bench_card.py steps loss --minutes 5     # only some of: steps loss nanogpt sample resume makemore
    python tests/bench_card.py --dry-run                  # the same paths at toy sizes, on any processor

The text is Tiny Shakespeare at ../shared/data/input.txt, or any --text; the published losses are of that text. Seconds
are of training, evaluations left out, for both rivals; our losses are over the whole validation part, nanoGPT's are its
own estimates. The last line is everything that was measured as JSON, to be pasted into an issue.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bench_gpt  # noqa: E402

import gpt  # noqa: E402
import makemore  # noqa: E402

GOAL = 1.47  # nanoGPT's own baby ends there
TOY = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=4)  # what --dry-run puts in the place of baby


def wait(device):
    """Until the device has done all that it was told to: only then a clock says anything."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, work, times):
    """Milliseconds of each call of `work`, as the median of three stretches."""
    stretches = []
    for _ in range(3):
        wait(device)
        start = time.perf_counter()
        for _ in range(times):
            work()
        wait(device)
        stretches.append(1000 * (time.perf_counter() - start) / times)
    return statistics.median(stretches)


def row(*words):
    cells = (f"{word:.4g}" if isinstance(word, float) else str(word) for word in words)
    print(f"| {' | '.join(cells)} |", flush=True)


def head(*words):
    print()
    row(*words)
    row(*["---"] * len(words))


def machine(device):
    """What is measured on."""
    facts = dict(torch=torch.__version__, python=platform.python_version(), cores=os.cpu_count())
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        smi = ["nvidia-smi", "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
        facts |= dict(card=card.name, capability=f"{card.major}.{card.minor}", driver=driver)
        facts |= dict(memory_gb=round(card.total_memory / 1e9, 1))
    else:
        facts |= dict(card=f"none ({platform.machine()})")
    head(*facts)
    row(*facts.values())
    return facts


def ready(args, **settings):
    """A run of baby that is ready to learn."""
    given = dict(input_file=args.text, preset="baby", device=args.device, eval_chars=0, **settings)
    run = gpt.start_run(gpt.check_settings({**given, **args.shape}))
    gpt.begin(run, {})
    return run


def bench_steps(args):
    """Every arithmetic, compiled and not: a step of baby."""
    head("baby", "ms/step", "characters/s", "% of peak", "peak memory, GB", "ready after, s")
    found = []
    for dtype in ("bfloat16", "float16", "float32"):
        for compile in ("off", "on", "graphs"):
            name, start = f"{dtype}, compile {compile}", time.perf_counter()
            try:
                if args.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                torch._dynamo.reset()
                run = ready(args, dtype=dtype, compile={"graphs": "off"}.get(compile, compile))
                if compile == "graphs":
                    run.net = torch.compile(run.model, mode="reduce-overhead")
                for _ in range(args.warm):
                    run.learn()
                wait(args.device)
                begun = time.perf_counter() - start
                ms = timed(args.device, run.learn, args.steps)
            except (gpt.UserError, RuntimeError) as e:  # this card, or this torch, cannot
                row(name, str(e).strip().splitlines()[0][:90], "", "", "", "")
                found.append(dict(name=name, failed=str(e).strip()[:300]))
                continue
            chars = run.config.batch_size * run.config.block_size
            share = gpt.flops_per_char(run.model, run.config) * chars / (ms / 1000) / gpt.measure_peak(run.plan)
            memory = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else None
            values = dict(ms=ms, chars_per_s=1000 * chars / ms, share=100 * share, memory_gb=memory, ready_s=begun)
            row(name, *values.values())
            found.append(dict(name=name, compiled=run.net is not run.model, **values))
    return found


def bench_loss(args):
    """Baby as it stands, or as many of its steps as the minutes allow: its loss over time."""
    run = ready(args)
    for _ in range(args.warm):
        run.learn()
    pace = timed(args.device, run.learn, args.steps) / 1000
    steps = max(2, min(run.config.max_steps, int(60 * args.minutes / pace)))
    settings = dict(preset="baby", device=args.device, eval_chars=0, **{**args.shape, "max_steps": steps})
    begun = time.perf_counter()
    run = gpt.train(args.text, eval_interval=max(1, steps // 20), **settings)
    wall = time.perf_counter() - begun
    head("step of baby", "seconds", "training loss", "validation loss")
    for step, seconds, train_loss, val_loss, _ in run.progress.history:
        row(step, seconds, train_loss, val_loss)
    reached = [seconds for _, seconds, _, val_loss, _ in run.progress.history if val_loss <= GOAL]
    found = dict(steps=steps, best=run.progress.best_loss, seconds=run.progress.seconds, wall_s=wall)
    found |= dict(seconds_to_goal=reached[0] if reached else None)
    found["losses"] = [[step, seconds, val_loss] for step, seconds, _, val_loss, _ in run.progress.history]
    goal = f"{GOAL} after {reached[0]:.1f} s" if reached else f"{GOAL} not reached"
    print(f"\nbest {found['best']:.4f}, {goal}, {wall:.0f} s in all")
    return found


def bench_nanogpt(args):
    """NanoGPT's own baby on the same device: milliseconds of its steps, and its validation losses."""
    text = Path(args.text).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        nano = bench_gpt.NanoGPT(args.nanogpt, text, folder)
        command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py", f"--device={args.device}"]
        if args.dry_run:
            command += [*bench_gpt.README.split(), "--max_iters=40", "--eval_interval=20", "--eval_iters=2"]
        how = dict(cwd=nano.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen(command, **how)
        limit = threading.Timer(60 * args.minutes, process.kill)
        limit.start()
        out = process.communicate()[0]
        limit.cancel()
    times = [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", out)]
    losses = [(int(step), float(loss)) for step, loss in re.findall(r"step (\d+): .* val loss ([\d.]+)", out)]
    if not losses or len(times) < 3:
        sys.exit(f"nanoGPT did not train:\n{out[-2000:]}")
    ms = statistics.median(times)
    reached = [ms * step / 1000 for step, loss in losses if loss <= GOAL]
    head("nanoGPT's baby", "ms/step", "best validation loss", f"seconds to {GOAL}")
    row("its own command", ms, min(loss for _, loss in losses), reached[0] if reached else "not reached")
    return dict(ms=ms, losses=losses, seconds_to_goal=reached[0] if reached else None)


def bench_sample(args):
    """Writing with the cache and without, one text and many."""
    run, length = ready(args), args.characters
    head(f"writing {length} characters with baby's weights", "seconds", "characters/s")
    found = {}
    for name, texts, cached in (("one text", 1, True), ("one text, no cache", 1, False), ("32 texts", 32, True)):
        c, _, tokens = gpt.wishes(run, "", length, seed=1)
        idx = tokens.expand(texts, -1)
        model = run.model if cached else torch.nn.Sequential(run.model)  # which has none
        written = list(gpt.continuation(model, idx[:, :1], c))  # once to warm up
        seconds = timed(args.device, lambda: list(gpt.continuation(model, idx[:, :1], c)), 1) / 1000  # noqa: B023
        found[name] = dict(seconds=seconds, chars_per_s=texts * length / seconds)
        row(name, *found[name].values())
        found[name]["start"] = run.vocab.decode([int(token[0]) for token in written[:40]])
    return found


def bench_resume(args):
    """The largest difference in any weight: of a resumed run to one that went through, and of two that went through."""

    def weights(folder, *stretches):
        given = dict(input_file=args.text, preset="baby", device=args.device, eval_interval=args.steps, **args.shape)
        for steps in stretches:
            gpt.train(**{**given, "work_dir": folder, "max_steps": steps, "decay_steps": 2 * args.steps})
            given = dict(resume=True)
        return gpt.load_checkpoint(Path(folder) / "last.pt")["model"]

    def difference(a, b):
        return max((a[name].double() - b[name].double()).abs().max().item() for name in a)

    with tempfile.TemporaryDirectory() as folder:
        runs = [((2 * args.steps,), "a"), ((2 * args.steps,), "b"), ((args.steps, 2 * args.steps), "c")]
        once, again, resumed = (weights(f"{folder}/{name}", *stretches) for stretches, name in runs)
    found = dict(resumed=difference(once, resumed), repeated=difference(once, again))
    head("largest difference in any weight", "resumed", "the same run again")
    row(f"{2 * args.steps} steps of baby", *found.values())
    return found


def bench_makemore(args):
    """Every type at several batch sizes: milliseconds of a step on the processor and on the card."""
    kinds = [kind for kind, entry in makemore.MODELS.items() if not hasattr(entry.model, "fit")]
    sizes = (32, 128, 512, 2048) if not args.dry_run else (8, 16)
    head("makemore, ms/step: processor / card", *sizes, "a card pays from")
    found = {}
    for kind in kinds:
        times = {}
        for size in sizes:
            for device in ("cpu", args.device):
                settings = dict(input_file=args.names, type=kind, batch_size=size, device=device)
                run = makemore.start_run(makemore.check_settings(settings))
                makemore.begin(run, {})
                for _ in range(args.warm):
                    run.learn()
                times.setdefault(size, []).append(timed(device, run.learn, args.steps))
        pays = next((size for size, (cpu, card) in times.items() if card < cpu), None)
        row(kind, *(f"{cpu:.2f} / {card:.2f}" for cpu, card in times.values()), pays or "none of these")
        found[kind] = dict(times=times, pays_from=pays)
    return found


PARTS = dict(steps=bench_steps, loss=bench_loss, nanogpt=bench_nanogpt, sample=bench_sample, resume=bench_resume)
PARTS["makemore"] = bench_makemore


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"some of {' '.join(PARTS)} (default: all that is possible)")
    parser.add_argument("--nanogpt", help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--minutes", type=float, default=5.0, help="that each of the two trainings may take [5]")
    parser.add_argument("--text", help="a text [../shared/data/input.txt, or else the bundled input.txt]")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on the processor")
    args = parser.parse_args(argv)
    if unknown := set(args.what) - PARTS.keys():
        sys.exit(f"unknown: {', '.join(unknown)}; there is {', '.join(PARTS)}")
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("torch sees no card here: --dry-run measures toys on the processor")
    shared = ROOT.parent / "shared" / "data"
    args.text = args.text or str(next(p for p in (shared / "input.txt", ROOT / "input.txt") if p.exists()))
    args.names = str(next(p for p in (shared / "names.txt", ROOT / "names.txt") if p.exists()))
    args.device = "cpu" if args.dry_run else "cuda"
    args.shape = {**TOY, "max_steps": 8} if args.dry_run else {}
    args.warm, args.steps, args.characters = (1, 2, 20) if args.dry_run else (10, 50, 1000)
    args.minutes = min(args.minutes, 0.05) if args.dry_run and not args.nanogpt else args.minutes
    what = args.what or [name for name in PARTS if name != "nanogpt" or args.nanogpt]
    if "nanogpt" in what and not args.nanogpt:
        sys.exit("name a checkout of karpathy/nanoGPT with --nanogpt")
    found = dict(machine=machine(args.device), text=Path(args.text).name)
    for name in what:
        found[name] = PARTS[name](args)
    ours, theirs = (found.get(name, {}).get("seconds_to_goal") for name in ("loss", "nanogpt"))
    if ours and theirs:
        found["ratio"] = theirs / ours
        print(f"\nnanoGPT takes {theirs / ours:.1f} times as long to {GOAL}")
    print("\n" + json.dumps(found))
    return found


if __name__ == "__main__":
    main()
