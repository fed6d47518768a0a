"""Measure micrograd against the original, and against itself without fused operations.

    python tests/bench_micrograd.py --upstream PATH                # PATH: a checkout of karpathy/micrograd
    python tests/bench_micrograd.py --upstream PATH --steps 100    # how far the losses of its demo's steps differ
    python tests/bench_micrograd.py --graphs 10000                 # random expression graphs against torch
    python tests/bench_micrograd.py --memory                       # ten million nodes
    python tests/bench_micrograd.py --profile                      # where a step of the demo spends its time

Each measurement has a process of its own and the rivals take turns, so that neither the garbage of one nor a busy
minute of the machine is charged to the other. Times are medians; Python's garbage collector is left as it is.
"""

# ruff: noqa: B905
from __future__ import annotations

import argparse
import cProfile
import gc
import json
import math
import os
import pstats
import random
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent


# ---------------------------------------------------------------------------------------------------------------------
# The lecture's demo: on any engine, in its own words; and on ours, in ours


def demo(own: bool):
    """-> a function of the step number that trains one step and returns the loss."""
    from micrograd.engine import Value
    from micrograd.nn import MLP

    rng = random.Random(42)  # two moons; both engines see the same points
    points, targets = [], [1 if i % 2 else -1 for i in range(100)]
    for s in targets:
        angle = rng.uniform(0.0, math.pi)
        x, y = 0.5 + s * (0.5 - math.cos(angle)), 0.25 + s * (0.25 - math.sin(angle))
        points.append((x + rng.gauss(0, 0.1), y + rng.gauss(0, 0.1)))
    random.seed(1337)
    model = MLP(2, [16, 16, 1])

    def lecture_loss():
        inputs = [list(map(Value, point)) for point in points]
        scores = list(map(model, inputs))
        losses = [(1 + -t * score).relu() for t, score in zip(targets, scores)]
        data_loss = sum(losses) * (1.0 / len(losses))
        return data_loss + 1e-4 * sum(p * p for p in model.parameters())

    def own_loss():
        from micrograd import hinge, l2

        return hinge([model(point) for point in points], targets) + l2(model.parameters(), 1e-4)

    def step(k):
        loss = own_loss() if own else lecture_loss()
        model.zero_grad()
        loss.backward()
        learning_rate = 1.0 - 0.9 * k / 100
        for p in model.parameters():
            p.data -= learning_rate * p.grad
        return loss.data

    return step


def timed(function, arguments):
    results, times = [], []
    for argument in arguments:
        start = time.perf_counter()
        results.append(function(argument))
        times.append(time.perf_counter() - start)
    return {"results": results, "times": times}


# ---------------------------------------------------------------------------------------------------------------------
# A random graph of plain + * ** relu, built and differentiated


def plain_graph(size: int):
    """-> seconds to build it, seconds of backward, the result, and one derivative."""
    from micrograd.engine import Value

    rng = random.Random(0)
    nodes = [Value(rng.uniform(-1, 1)) for _ in range(20)]
    plan = [(rng.choice("++**pr"), rng.randrange(i), rng.randrange(i)) for i in range(20, size)]
    start = time.perf_counter()
    for op, i, j in plan:
        if op == "+":
            nodes.append(nodes[i] + nodes[j])
        elif op == "*":
            nodes.append(nodes[i] * nodes[j] * 0.5)
        elif op == "p":
            nodes.append(nodes[i] ** 2)
        else:
            nodes.append(nodes[i].relu())
    root = sum(nodes[-500:])
    built = time.perf_counter()
    root.backward()
    return built - start, time.perf_counter() - built, root.data, nodes[0].grad


def bytes_per_node(count: int = 100_000) -> float:
    from micrograd.engine import Value

    x, y = Value(0.5), Value(0.9999)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [x * y for _ in range(count)]
    return (tracemalloc.get_traced_memory()[0] - before) / len(kept) - 8  # 8: the list


# ---------------------------------------------------------------------------------------------------------------------
# The GPT of scalars without fused operations: each product and each sum is a node. On our Value, or on the smallest
# Value that can do it, with a recursive backward, as such programs are usually written.


class Scalar:
    __slots__ = ("data", "grad", "operands", "slopes")

    def __init__(self, data, operands=(), slopes=()):
        self.data, self.grad, self.operands, self.slopes = data, 0.0, operands, slopes

    def __add__(self, other):
        other = other if isinstance(other, Scalar) else Scalar(other)
        return Scalar(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Scalar) else Scalar(other)
        return Scalar(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n):
        return Scalar(self.data**n, (self,), (n * self.data ** (n - 1),))

    def exp(self):
        return Scalar(math.exp(self.data), (self,), (math.exp(self.data),))

    def log(self):
        return Scalar(math.log(self.data), (self,), (1.0 / self.data,))

    def relu(self):
        return Scalar(max(0.0, self.data), (self,), (float(self.data > 0.0),))

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + (-other)

    def __truediv__(self, other):
        return self * other**-1.0

    __radd__, __rmul__ = __add__, __mul__

    def backward(self):
        order, seen = [], set()

        def visit(v):
            if v not in seen:
                seen.add(v)
                for operand in v.operands:
                    visit(operand)
                order.append(v)

        visit(self)
        self.grad = 1.0
        for v in reversed(order):
            for operand, slope in zip(v.operands, v.slopes):
                operand.grad += slope * v.grad


def plain_affine(x, rows):
    return [sum(w * xi for w, xi in zip(row, x)) for row in rows]


def plain_norm(xs):
    scale = (sum(x * x for x in xs) * (1.0 / len(xs)) + 1e-5) ** -0.5
    return [x * scale for x in xs]


def plain_softmax(xs):
    top = max(x.data for x in xs)
    weights = [(x - top).exp() for x in xs]
    whole = sum(weights)
    return [w / whole for w in weights]


def plain_gpt(m, token, cache):
    x = plain_norm([a + b for a, b in zip(m.token[token], m.position[len(cache)])])
    h = plain_norm(x)
    query = plain_affine(h, m.query)
    cache.append((plain_affine(h, m.key), plain_affine(h, m.value)))
    h, size = [], len(x) // m.n_head
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        scores = plain_affine([q * size**-0.5 for q in query[part]], [key[part] for key, _ in cache])
        h += plain_affine(plain_softmax(scores), zip(*(value[part] for _, value in cache)))
    x = [a + b for a, b in zip(x, plain_affine(h, m.attn_proj))]
    h = [v.relu() for v in plain_affine(plain_norm(x), m.mlp_up)]
    x = [a + b for a, b in zip(x, plain_affine(h, m.mlp_proj))]
    return plain_affine(x, m.head)


def gpt(kind: str):
    """-> a function of the step number. All kinds start from the same weights and see the same names."""
    import micrograd

    def convert(x):
        return Scalar(x.data) if isinstance(x, micrograd.Value) else list(map(convert, x)) if isinstance(x, list) else x

    model = micrograd.GPT(27, rng=random.Random(1))
    if kind == "scalar":
        vars(model).update({name: convert(x) for name, x in vars(model).items()})
    parameters = [p for x in vars(model).values() if isinstance(x, list) for row in x for p in row]
    optimizer = micrograd.Adam(parameters, betas=(0.85, 0.99))
    names = ["emma", "olivia", "isabella", "sophia", "mia", "charlotte", "amelia", "evelyn", "luna", "zoe"]

    def loss_of(name):
        tokens, cache = [26, *(ord(c) - 97 for c in name), 26], []
        if kind == "fused":
            return micrograd.mean(micrograd.cross_entropy(model(a, cache), b) for a, b in pairwise(tokens))
        losses = [-plain_softmax(plain_gpt(model, a, cache))[b].log() for a, b in pairwise(tokens)]
        return sum(losses) * (1.0 / len(losses))

    def step(k):
        optimizer.lr = 0.01 * (1 - k / 1000)
        loss = loss_of(names[k % len(names)])
        for p in parameters:
            p.grad = 0.0
        loss.backward()
        optimizer.step()
        return loss.data

    return step


# ---------------------------------------------------------------------------------------------------------------------
# Ten million nodes


def memory(size: int):
    from micrograd.engine import Value

    start = time.perf_counter()
    y = x = Value(0.999999)
    for _ in range(size // 2):
        y = y * x + x
    built = time.perf_counter()
    y.backward()
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert x.grad > size
    del y
    return {"build": built - start, "backward": done - built, "free": time.perf_counter() - done, "peak": peak}


# ---------------------------------------------------------------------------------------------------------------------
# Workers and reports

WORKERS = {
    "demo": lambda steps: timed(demo(own=False), range(steps)),
    "demo, own losses": lambda steps: timed(demo(own=True), range(steps)),
    "demo, little gc": lambda steps: gc.set_threshold(100_000) or timed(demo(own=False), range(steps)),
    "plain": lambda size: [plain_graph(size) for _ in range(5)],
    "bytes": lambda _: bytes_per_node(),
    "gpt fused": lambda steps: timed(gpt("fused"), range(steps)),
    "gpt plain": lambda steps: timed(gpt("plain"), range(steps)),
    "gpt scalar": lambda steps: timed(gpt("scalar"), range(steps)),
    "memory": memory,
}


def run(worker: str, argument: int, path: Path = ROOT):
    """Do the work in a fresh process that imports micrograd from `path`."""
    command = [sys.executable, str(HERE), "--worker", worker, str(argument)]
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def milliseconds(runs: list[dict], skip: int = 2) -> float:
    """Median over all steps but the first few, in which the allocator warms up."""
    return 1e3 * statistics.median(t for result in runs for t in result["times"][skip:])


def worst(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b))


def report_demo(upstream: Path, steps: int, rounds: int) -> None:
    theirs, same, own = [], [], []
    for _ in range(rounds):
        theirs.append(run("demo", steps, upstream))
        same.append(run("demo", max(steps, 20)))
        own.append(run("demo, own losses", max(steps, 20)))
    print(f"\nthe lecture's demo, MLP(2, [16, 16, 1]) on 100 points; {rounds} x {steps} steps")
    base = milliseconds(theirs)
    print(f"  the original                     {base:9.2f} ms a step")
    for name, runs in (("the same script on ours", same), ("with our losses", own)):
        print(f"  {name:32} {milliseconds(runs):9.2f} ms a step   {base / milliseconds(runs):6.1f} x")
        difference = worst(theirs[0]["results"], runs[0]["results"])
        print(f"    largest difference of the loss in {steps} steps: {difference:.1e}")
    a, b = (milliseconds([run("demo, little gc", steps, path) for _ in range(rounds)]) for path in (upstream, ROOT))
    print(f"  both scripts with gc.set_threshold(100_000): the original {a:.2f}, ours {b:.2f} ms a step  {a / b:.1f} x")


def report_plain(upstream: Path, rounds: int) -> None:
    print("\na random graph of + * ** relu, built and differentiated")
    for size in (1_000, 20_000):
        theirs, ours = [], []
        for _ in range(rounds):
            theirs += run("plain", size, upstream)[1:]
            ours += run("plain", size)[1:]
        assert all(abs(a - b) <= 1e-9 * max(1, abs(a)) for a, b in zip(theirs[0][2:], ours[0][2:])), "they disagree"
        a, b = (statistics.median(build + back for build, back, *_ in runs) for runs in (theirs, ours))
        build, back = (statistics.median(run[i] for run in ours) for i in (0, 1))
        print(f"  {size:6d} operations: {1e3 * a:8.2f} ms, ours {1e3 * b:7.2f} ms   {a / b:5.1f} x", end="")
        print(f"   ours: {size / b:,.0f} operations/s (build {build / b:.0%}, backward {back / b:.0%})")
    print(f"  bytes per product of two Values: {run('bytes', 0, upstream):.0f}, ours {run('bytes', 0):.0f}")


def report_gpt(rounds: int) -> None:
    runs = {kind: [] for kind in ("scalar", "plain", "fused")}
    for _ in range(rounds):
        for kind in runs:
            runs[kind].append(run(f"gpt {kind}", 20))
    print("\nthe GPT of 4,192 scalars, one name a step")
    fused = milliseconds(runs["fused"])
    print(f"  fused operations                 {fused:9.2f} ms a step")
    for kind, name in (("plain", "plain operations on our Value"), ("scalar", "plain operations, minimal Value")):
        ms = milliseconds(runs[kind])
        difference = worst(runs["fused"][0]["results"], runs[kind][0]["results"])
        print(f"  {name:32} {ms:9.2f} ms a step   {ms / fused:6.1f} x   (losses differ by {difference:.1e})")


def report_memory(size: int = 10_000_000) -> None:
    result = run("memory", size)
    print(f"\n{size:,} plain nodes: peak {result['peak']:.2f} GiB;", end=" ")
    print(", ".join(f"{name} {result[name]:.1f} s" for name in ("build", "backward", "free")))


def report_graphs(count: int) -> None:
    """The property of the test suite, on many more graphs."""
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    from hypothesis import HealthCheck, given, settings
    from test_micrograd import check_graph, graphs

    seen = []

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(graph):
        check_graph(graph)
        seen.append(len(graph[1]))

    start = time.perf_counter()
    check()
    print(f"\n{len(seen):,} random expression graphs of up to {max(seen)} operations equal torch's", end=" ")
    print(f"({time.perf_counter() - start:.0f} s)")


def profile() -> None:
    sys.path.insert(0, str(ROOT))
    step = demo(own=True)
    for k in range(5):
        step(k)
    profiler = cProfile.Profile()
    profiler.enable()
    for k in range(20):
        step(k)
    profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="a checkout of karpathy/micrograd")
    parser.add_argument("--steps", type=int, default=8, help="of the demo; 100 takes minutes (default: 8)")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each rival takes (default: 2)")
    parser.add_argument("--graphs", type=int, default=0, help="random graphs to compare with torch")
    parser.add_argument("--memory", action="store_true", help="ten million nodes (3 GB, a minute)")
    parser.add_argument("--profile", action="store_true", help="profile the demo")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker[0]](int(args.worker[1]))))
        return
    if args.upstream:
        tests = str((args.upstream / "test").resolve())
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        print("the original's own tests, on ours:", flush=True)
        subprocess.run(command, env=environment, cwd="/", check=True)
        report_demo(args.upstream, args.steps, args.rounds)
        report_plain(args.upstream, args.rounds)
    if not (args.graphs or args.memory or args.profile):
        report_gpt(args.rounds)
    if args.graphs:
        report_graphs(args.graphs)
    if args.memory:
        report_memory()
    if args.profile:
        profile()


if __name__ == "__main__":
    main()
