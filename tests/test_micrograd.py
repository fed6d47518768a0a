"""What micrograd promises: torch's numbers in every corner, any depth, no garbage, pictures, and clear refusals."""

# ruff: noqa: B905
import copy
import gc
import inspect
import math
import os
import pickle
import random
import re
import subprocess
import sys
import weakref
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import micrograd
from micrograd import (
    GPT,
    MLP,
    SGD,
    Adam,
    Layer,
    Module,
    Neuron,
    Value,
    affine,
    cross_entropy,
    dot,
    draw,
    gradcheck,
    hinge,
    l2,
    logistic,
    make_data,
    mean,
    softmax,
    squared_error,
    to_dot,
    topological,
    total,
    trace,
)

torch.set_num_threads(1)  # the tensors here are small; a second thread only waits
SCRIPT = Path(micrograd.__file__)
INF, NAN = math.inf, math.nan


def close(a, b, tolerance=1e-9):
    """Equal as numbers: relatively close, or the same inf, or both nan."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def double(x):
    return torch.tensor(float(x), dtype=torch.float64, requires_grad=True)


def both(f, g, *inputs):
    """Run f on Values and g on torch tensors; -> the two lists [result, gradient of each input]."""
    ours, theirs = [Value(x) for x in inputs], [double(x) for x in inputs]
    y, t = f(*ours), g(*theirs)
    y.backward()
    t.backward()
    return [y.data, *(v.grad for v in ours)], [t.item(), *(0.0 if v.grad is None else v.grad.item() for v in theirs)]


def run(*arguments, **options):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Each operation against torch, also where numbers are strange

UNARY = {
    "neg": (lambda a: -a, lambda a: -a),
    "abs": (abs, abs),
    "exp": (Value.exp, torch.exp),
    "log": (Value.log, torch.log),
    "sqrt": (Value.sqrt, torch.sqrt),
    "sin": (Value.sin, torch.sin),
    "cos": (Value.cos, torch.cos),
    "tanh": (Value.tanh, torch.tanh),
    "sigmoid": (Value.sigmoid, torch.sigmoid),
    "relu": (Value.relu, torch.relu),
    "a + 2": (lambda a: a + 2, lambda a: a + 2),
    "2 + a": (lambda a: 2 + a, lambda a: 2 + a),
    "a - 2": (lambda a: a - 2, lambda a: a - 2),
    "2 - a": (lambda a: 2 - a, lambda a: 2 - a),
    "a * 3": (lambda a: a * 3, lambda a: a * 3),
    "3 * a": (lambda a: 3 * a, lambda a: 3 * a),
    "a / 3": (lambda a: a / 3, lambda a: a / 3),
    "3 / a": (lambda a: 3 / a, lambda a: 3 / a),
    "a / 0": (lambda a: a / 0, lambda a: a / 0),
    "a ** 0": (lambda a: a**0, lambda a: a**0),
    "a ** 1": (lambda a: a**1, lambda a: a**1),
    "a ** 2": (lambda a: a**2, lambda a: a**2),
    "a ** 3": (lambda a: a**3, lambda a: a**3),
    "a ** -1": (lambda a: a**-1, lambda a: a**-1),
    "a ** -2": (lambda a: a**-2, lambda a: a**-2),
    "a ** 2.5": (lambda a: a**2.5, lambda a: a**2.5),
    "2 ** a": (lambda a: 2**a, lambda a: 2**a),
    "0 ** a": (lambda a: 0**a, lambda a: 0**a),
    "a + a": (lambda a: a + a, lambda a: a + a),
    "a * a": (lambda a: a * a, lambda a: a * a),
    "a / a": (lambda a: a / a, lambda a: a / a),
    "a - a": (lambda a: a - a, lambda a: a - a),
}
BINARY = {
    "+": (lambda a, b: a + b, lambda a, b: a + b),
    "-": (lambda a, b: a - b, lambda a, b: a - b),
    "*": (lambda a, b: a * b, lambda a, b: a * b),
    "/": (lambda a, b: a / b, lambda a, b: a / b),
    "**": (lambda a, b: a**b, lambda a, b: a**b),
    "max": (Value.max, torch.maximum),
    "min": (Value.min, torch.minimum),
}
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, INF, -INF, NAN, 1e300, -1e300, 1e-300, 5e-324, 1000.0, -1000.0]
REFUSED = {"log": lambda x: x < 0, "sqrt": lambda x: x < 0, "a ** 2.5": lambda x: -INF < x < 0}


@pytest.mark.parametrize("name", UNARY)
def test_unary_like_torch(name):
    for x in [*EDGES, *np.random.default_rng(0).normal(0, 3, 50)]:
        if name in REFUSED and REFUSED[name](x):
            with pytest.raises(ValueError, match="is not a real number"):
                UNARY[name][0](Value(x))
            continue
        ours, theirs = both(*UNARY[name], x)
        assert all(map(close, ours, theirs)), f"{name} at {x}: {ours}, torch {theirs}"


@pytest.mark.parametrize("name", BINARY)
def test_binary_like_torch(name):
    rng = np.random.default_rng(0)
    for a, b in [*((a, b) for a in EDGES for b in EDGES), *rng.normal(0, 3, (100, 2))]:
        if name == "**" and -INF < a < 0 and math.isfinite(b) and b != int(b):
            with pytest.raises(ValueError, match="negative base needs a whole exponent"):
                Value(a) ** Value(b)
            continue
        ours, theirs = both(*BINARY[name], a, b)
        assert all(map(close, ours, theirs)), f"{a} {name} {b}: {ours}, torch {theirs}"


@pytest.mark.parametrize("name", UNARY)
def test_unary_against_the_measured_slope(name):
    for x in (0.3, 0.9, 1.7, 2.6):
        if name not in ("a / 0", "0 ** a"):
            assert gradcheck(UNARY[name][0], x, show=lambda table: None) < 1e-6


@pytest.mark.parametrize("name", BINARY)
def test_binary_against_the_measured_slope(name):
    for a, b in ((0.3, 1.1), (2.5, 0.7), (1.9, 3.2)):
        assert gradcheck(BINARY[name][0], a, b, show=lambda table: None) < 1e-6


def test_gradcheck_shows_both_and_finds_a_wrong_derivative():
    table = []
    assert gradcheck(lambda a, b: a * b, 2.0, 3.0, show=table.append) < 1e-8
    assert len(table[0].splitlines()) == 3 and "backward" in table[0] and "measured" in table[0]
    wrong = lambda a: micrograd.node(a.data**2, (a,), (a.data,), "wrong")  # noqa: E731
    assert gradcheck(wrong, 2.0, show=table.append) == pytest.approx(0.5, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Random expression graphs. A graph is (leaves, instructions); an instruction takes operands by position.

STEPS = {
    "+": lambda a, b, m: a + b,
    "-": lambda a, b, m: a - b,
    "*": lambda a, b, m: a * b,
    "/": lambda a, b, m: a / (b * b + 0.5),
    "number": lambda a, b, m: (2 - a) * 0.5 + 1,
    "**2": lambda a, b, m: (a * 0.1) ** 2,
    "**": lambda a, b, m: (a * a + 0.5) ** (b * 0.1),
    "tanh": lambda a, b, m: m.tanh(a),
    "sigmoid": lambda a, b, m: m.sigmoid(a),
    "relu": lambda a, b, m: m.relu(a),
    "exp": lambda a, b, m: m.exp(m.tanh(a)),
    "log": lambda a, b, m: m.log(a * a + 0.5),
    "sqrt": lambda a, b, m: m.sqrt(b * b + 0.5),
    "sin": lambda a, b, m: m.sin(a),
    "cos": lambda a, b, m: m.cos(b),
    "abs": lambda a, b, m: abs(a),
    "max": lambda a, b, m: m.maximum(a, b),
    "min": lambda a, b, m: m.minimum(a, b),
    "dot": lambda a, b, m: m.dot([a, b, 2.0, a], [b, 0.5, a, b]),
    "mean": lambda a, b, m: m.mean([a, b, a]),
    "softmax": lambda a, b, m: m.softmax([a, b, a])[1],
    "cross-entropy": lambda a, b, m: m.cross_entropy([b, a], 0),
}


class Ours:
    exp, log, sqrt, sin, cos, tanh = Value.exp, Value.log, Value.sqrt, Value.sin, Value.cos, Value.tanh
    sigmoid, relu, maximum, minimum = Value.sigmoid, Value.relu, Value.max, Value.min
    dot, mean, softmax, cross_entropy = dot, mean, softmax, cross_entropy
    dot, mean = staticmethod(dot), staticmethod(mean)
    softmax, cross_entropy = staticmethod(softmax), staticmethod(cross_entropy)


class Torch:
    exp, log, sqrt, sin, cos, tanh = torch.exp, torch.log, torch.sqrt, torch.sin, torch.cos, torch.tanh
    sigmoid, relu, maximum, minimum = torch.sigmoid, torch.relu, torch.maximum, torch.minimum
    dot = staticmethod(lambda ws, xs: sum(w * x for w, x in zip(ws, xs)))
    mean = staticmethod(lambda xs: sum(xs) / len(xs))
    softmax = staticmethod(lambda xs: torch.softmax(torch.stack(xs), 0))
    cross_entropy = staticmethod(lambda xs, i: -torch.log_softmax(torch.stack(xs), 0)[i])


def graphs():
    instruction = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 999), st.integers(0, 999))
    leaf = st.floats(-3, 3, allow_subnormal=False)
    return st.tuples(st.lists(leaf, min_size=1, max_size=4), st.lists(instruction, min_size=1, max_size=25))


def evaluate(graph, make, operations):
    leaves, instructions = graph
    leaves = [make(x) for x in leaves]
    values = list(leaves)
    for name, i, j in instructions:
        values.append(STEPS[name](values[-1 - i % len(values)], values[-1 - j % len(values)], operations))
    root = values[-1]
    for v in values[:-1]:  # everything takes part, so that fan-out is the rule
        root = root + v * 0.1
    root.backward()
    return [float(root.item() if operations is Torch else root.data)], leaves


def check_graph(graph):
    (ours, leaves), (theirs, tensors) = evaluate(graph, Value, Ours), evaluate(graph, double, Torch)
    ours += [v.grad for v in leaves]
    theirs += [t.grad.item() for t in tensors]
    scale = max([1.0, *(abs(x) for x in theirs if math.isfinite(x))])
    for a, b in zip(ours, theirs):
        assert close(a, b) or abs(a - b) <= 1e-9 * scale, f"{ours}, torch {theirs}"


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(graphs())
def test_random_graphs_like_torch(graph):
    check_graph(graph)


# ---------------------------------------------------------------------------------------------------------------------
# backward


def test_fan_out_accumulates():
    assert both(lambda a: (a + a) + (a + a), lambda a: (a + a) + (a + a), 3.0)[0] == [12.0, 4.0]
    f = lambda a, b: (a * b) * (a + b)  # noqa: E731
    assert both(f, f, -2.0, 3.0)[0] == both(f, f, -2.0, 3.0)[1] == [-6.0, -3.0, -8.0]


def test_leaves_accumulate_and_results_start_fresh():
    """torch: a second backward adds to the leaves; a stale inner gradient would give 108 or 72 here, not 36."""
    a = Value(3.0)
    b = a * a
    c = b * 2
    c.backward()
    assert (a.grad, b.grad, c.grad) == (12.0, 2.0, 1.0)
    c.backward()
    assert (a.grad, b.grad, c.grad) == (24.0, 2.0, 1.0)
    b.backward()
    assert (a.grad, b.grad) == (30.0, 1.0)


def test_backward_on_a_leaf():
    a = Value(3.0)
    a.backward()
    a.backward()
    assert a.grad == 2.0


def test_a_shared_part_of_two_graphs():
    a = Value(2.0)
    shared = a * a
    one, two = shared + 1, shared * 3
    one.backward()
    two.backward()
    assert a.grad == 4.0 + 12.0 and shared.grad == 3.0


def test_zero_times_infinity_is_seen():
    """Zero gradients are not passed on, to save time; but 0 · inf is nan, and torch says so."""
    f = lambda a, b: (a * b) * 0.0 + a * 0.0  # noqa: E731
    for a, b in ((INF, 2.0), (1.0, 2.0), (NAN, 1.0), (1e308, 1e308)):
        assert all(map(close, *both(f, f, a, b)))


def test_a_million_operations_in_a_row():
    x = Value(1.0)
    y = x
    for _ in range(500_000):
        y = y * 1.000001 + x
    y.backward()
    assert math.isfinite(x.grad) and x.grad > 500_000
    del y  # and freed again, without recursion


def test_a_hundred_thousand_uses():
    x = Value(0.5)
    y = total(x * x for _ in range(100_000))
    y.backward()
    assert (y.data, x.grad) == (25_000.0, 100_000.0)


def test_doubling_is_linear_work():
    y = x = Value(1.0)
    for _ in range(1000):  # 2 ** 1000 paths
        y = y + y
    y.backward()
    assert x.grad == 2.0**1000


def test_the_order_puts_results_before_operands():
    a, b = Value(1.0), Value(2.0)
    c = a * b
    d = c + a
    e = d * c
    order = topological(e)
    assert order == [e, d, c]


def test_graphs_are_freed_without_the_collector():
    gc.disable()
    try:

        class Probe(Value):  # Values have no room for a weak reference
            __slots__ = ("__weakref__",)

        leaf = Probe(1.0)
        gone = weakref.ref(leaf)
        model = MLP(1, [4, 1], activation="tanh", rng=random.Random(0))
        loss = squared_error([model([leaf * 1.0])], [1.0]) + softmax([leaf, leaf * 2])[0] + leaf.max(0.0)
        loss.backward()
        assert gone() is leaf
        del leaf, loss
        assert gone() is None
    finally:
        gc.enable()
    gc.collect()
    y = MLP(2, [8, 1])([1.0, 2.0])
    y.backward()
    del y
    assert gc.collect() == 0


# ---------------------------------------------------------------------------------------------------------------------
# The lecture's values


def test_readme_expression():
    a, b = Value(-4.0), Value(2.0)
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    g.backward()
    assert [f"{x:.4f}" for x in (g.data, a.grad, b.grad)] == ["24.7041", "138.8338", "645.5773"]


def test_tanh_neuron():
    x1, x2, w1, w2, b = Value(2.0), Value(0.0), Value(-3.0), Value(1.0), Value(6.8813735870195432)
    inner = x1 * w1 + x2 * w2 + b
    for o in (inner.tanh(), ((2 * inner).exp() - 1) / ((2 * inner).exp() + 1)):  # also written out, an exercise
        for v in (x1, x2, w1, w2, b):
            v.grad = 0.0
        o.backward()
        assert o.data == pytest.approx(0.7071, abs=1e-4)
        assert [x1.grad, w1.grad, x2.grad, w2.grad] == pytest.approx([-1.5, 1.0, 0.5, 0.0])


def test_softmax_exercise():
    logits = [Value(x) for x in (0.0, 3.0, -2.0, 1.0)]
    for loss in (-softmax(logits)[3].log(), cross_entropy(logits, 3)):
        for v in logits:
            v.grad = 0.0
        loss.backward()
        assert loss.data == pytest.approx(2.1755, abs=5e-5)
        assert [v.grad for v in logits] == pytest.approx([0.04177, 0.83902, 0.00565, -0.88645], abs=5e-6)


def test_slope_exercise():
    f = lambda a, b, c: -(a**3) + (3 * b).sin() - 1.0 / c + b**2.5 - a**0.5  # noqa: E731
    a, b, c = Value(2.0), Value(3.0), Value(4.0)
    y = f(a, b, c)
    y.backward()
    assert y.data == pytest.approx(6.336362190988558)
    assert [a.grad, b.grad, c.grad] == pytest.approx([-12.353553390593273, 10.25699027111255, 0.0625])
    assert gradcheck(f, 2.0, 3.0, 4.0, show=lambda table: None) < 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# A Value among Python's and NumPy's numbers


def test_numbers_of_any_kind():
    a = Value(3)
    assert (a + np.float32(1)).data == (np.float32(1) + a).data == 4.0
    assert (np.float64(2) * a).data == (a * np.int64(2)).data == 6.0
    assert (a ** np.int64(2)).data == 9.0 and (np.float64(2) ** a).data == 8.0
    assert (np.float64(1) - a).data == -2.0 and (np.int64(6) / a).data == 2.0
    assert all(type(v.data) is float for v in (a, a + np.float64(1), np.float64(2) * a, a**True))
    y = (a * np.float64(2)) ** np.int64(2)
    y.backward()
    assert type(a.grad) is float and a.grad == 24.0


def test_arrays_of_values():
    a, b = Value(2.0), Value(3.0)
    y = np.array([a, b]) @ np.array([b, 4.0]) + sum(np.array([1.0, 2.0]) * a)
    y.backward()
    assert (y.data, a.grad, b.grad) == (24.0, 6.0, 6.0)


@pytest.mark.parametrize("x", ["3", None, 1j, [1.0], 10**400])
def test_no_number(x):
    for attempt in (lambda: Value(x), lambda: Value(1.0) + x, lambda: x * Value(1.0), lambda: Value(1.0) ** x):
        with pytest.raises(TypeError, match="is not a number: a Value takes"):
            attempt()


def test_comparison_and_conversion():
    a, b = Value(1.0), Value(2.5)
    assert a < b and a <= b and b > a and b >= 2.5 and a < 2 and a < 2 and not a > b
    assert max([a, b]) is b and min(b, a) is a and sorted([b, a]) == [a, b]
    assert float(b) == 2.5 and int(b) == 2 and bool(a) and not bool(Value(0.0))
    assert a != Value(1.0) and a == a and len({a, Value(1.0), a}) == 2
    assert repr(b) == "Value(data=2.5, grad=0.0)"


def test_python_sum():
    values = [Value(x) for x in (1.0, 2.0, 3.0)]
    y = sum(values) + sum(w * x for w, x in zip(values, (4.0, 5.0, 6.0)))
    y.backward()
    assert y.data == 38.0 and [v.grad for v in values] == [5.0, 6.0, 7.0]


def test_copies_and_pickles_leave_the_history_behind():
    a = Value(2.0, "a")
    y = a * a
    y.backward()
    for twin in (copy.copy(y), copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert twin is not y and (twin.data, twin.grad, twin._prev, twin._op) == (4.0, 1.0, (), "")
    model = MLP(2, [3, 1])
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert [p.data for p in twin.parameters()] == [p.data for p in model.parameters()]
    assert twin([1.0, 2.0]).data == model([1.0, 2.0]).data
    for _ in range(100_000):
        y = y + 1
    assert pickle.loads(pickle.dumps(y)).data == y.data  # deep, and no recursion


# ---------------------------------------------------------------------------------------------------------------------
# Operations on many values


def test_fused_operations_are_one_node_and_equal_plain_ones():
    rng = random.Random(0)
    ws, xs, b = [Value(rng.gauss(0, 1)) for _ in range(5)], [Value(rng.gauss(0, 1)) for _ in range(5)], Value(0.3)
    gradients = []
    for y in (dot(ws, xs, b), sum((w * x for w, x in zip(ws, xs)), b)):
        for v in (*ws, *xs, b):
            v.grad = 0.0
        y.backward()
        gradients.append([y.data, *(v.grad for v in (*ws, *xs, b))])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-12)
    assert len(topological(dot(ws, xs, b))) == 1
    assert dot(ws, [1.0] * 5)._prev == tuple(ws) and dot([1.0] * 5, xs)._prev == tuple(xs)
    assert len(dot(ws, [1.0, xs[0], 2.0, 3.0, 4.0])._prev) == 10
    assert total(xs).data == sum(x.data for x in xs) and mean(xs).data == pytest.approx(sum(x.data for x in xs) / 5)


def test_rows_share_their_input():
    x = [Value(1.0), Value(2.0)]
    one, two = affine(x, [[Value(3.0), Value(4.0)], [Value(5.0), Value(6.0)]])
    assert (one.data, two.data) == (11.0, 17.0)
    (one + two).backward()
    assert [v.grad for v in x] == [8.0, 10.0]


def test_softmax_of_huge_logits():
    p = softmax([Value(1000.0), Value(0.0), Value(-1000.0)])
    assert [v.data for v in p] == [1.0, 0.0, 0.0]
    assert cross_entropy([Value(1000.0), Value(0.0)], 1).data == 1000.0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (squared_error, lambda s, t: ((s - t) ** 2).mean()),
        (hinge, lambda s, t: torch.relu(1 - t * s).mean()),
        (logistic, lambda s, t: -torch.nn.functional.logsigmoid(t * s).mean()),
    ],
)
def test_losses_like_torch(ours, theirs):
    scores, targets = [-2.0, -0.3, 0.4, 1.0, 3.0, 50.0], [1, 1, -1, 1, 1, -1]
    values, tensor = [Value(x) for x in scores], torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss, reference = ours(values, targets), theirs(tensor, torch.tensor(targets))
    loss.backward()
    reference.backward()
    assert loss.data == pytest.approx(reference.item(), rel=1e-12)
    assert [v.grad for v in values] == pytest.approx(tensor.grad.tolist(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Networks and optimisers


def test_the_demo_equals_torch_at_every_step():
    """The lecture's run: hinge loss, L2 of 1e-4, learning rate 1 − 0.9 k / 100, seed 1337, weights as it draws them."""
    points, targets = make_data("moons", 100, 0.1, random.Random(1337))
    random.seed(1337)
    model = MLP(2, [16, 16, 1])
    random.seed(1337)
    weights = []
    for nin, nout in ((2, 16), (16, 16), (16, 1)):
        w = [[random.uniform(-1, 1) for _ in range(nin)] for _ in range(nout)]
        weights += [torch.tensor(w, dtype=torch.float64), torch.zeros(nout, dtype=torch.float64)]
    for w in weights:
        w.requires_grad = True
    x, t = torch.tensor(points, dtype=torch.float64), torch.tensor(targets)
    for k in range(100):
        h = x
        for i in (0, 2, 4):
            h = h @ weights[i].T + weights[i + 1]
            h = torch.relu(h) if i < 4 else h
        reference = torch.relu(1 - t * h[:, 0]).mean() + 1e-4 * sum((w**2).sum() for w in weights)
        loss = hinge([model(point) for point in points], targets) + l2(model.parameters(), 1e-4)
        assert abs(loss.data - reference.item()) < 1e-9, f"step {k}"
        model.zero_grad()
        loss.backward()
        for p in model.parameters():
            p.data -= (1.0 - 0.9 * k / 100) * p.grad
        for w in weights:
            w.grad = None
        reference.backward()
        with torch.no_grad():
            for w in weights:
                w -= (1.0 - 0.9 * k / 100) * w.grad
    assert loss.data < 0.03
    assert all((model(point) > 0) == (target > 0) for point, target in zip(points, targets))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "linear"])
def test_a_layer_is_its_neurons(activation):
    layer = Layer(3, 4, activation=activation, rng=random.Random(0))
    x = [Value(0.5), Value(-1.0), Value(2.0)]
    assert [v.data for v in layer(x)] == [n(x).data for n in layer.neurons]
    assert [v.data for v in layer(x)] == [v.data for v in layer([0.5, -1.0, 2.0])]
    assert [v.data for v in layer(x)] == [v.data for v in layer([x[0], -1.0, np.float64(2.0)])]
    total(layer(x)).backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    total(layer([0.5, -1.0, 2.0])).backward()
    assert [p.grad for p in layer.parameters()] == gradients


def test_shapes_names_and_numbers():
    model = MLP(2, [16, 16, 1])
    assert len(model.parameters()) == 337 and len(GPT(27).parameters()) == 4192
    assert repr(MLP(2, [2, 1])) == "MLP of [Layer of [ReLUNeuron(2), ReLUNeuron(2)], Layer of [LinearNeuron(2)]]"
    assert repr(Neuron(3, activation="tanh")) == "TanhNeuron(3)" and repr(Neuron(3, nonlin=False)) == "LinearNeuron(3)"
    assert isinstance(model([1.0, 2.0]), Value) and len(MLP(2, [3])([1.0, 2.0])) == 3
    assert isinstance(MLP(2, [1, 1])([1.0, 2.0]), Value)
    same = [[p.data for p in MLP(2, [3, 1], rng=random.Random(7)).parameters()] for _ in range(2)]
    assert same[0] == same[1] and all(-1 <= w <= 1 for w in same[0])


def test_parameters_are_found_wherever_they_stand():
    class Net(Module):
        def __init__(self):
            self.scale, self.rows, self.parts = Value(1.0), [[Value(2.0)], [Value(3.0)]], (Neuron(2), Layer(2, 1))
            self.name, self.width = "net", 3

    assert len(Net().parameters()) == 1 + 2 + 3 + 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: SGD(p, lr=0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
        (lambda p: SGD(p, lr=0.05, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (lambda p: Adam(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
        (lambda p: Adam(p, 0.1, (0.85, 0.99)), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.85, 0.99))),
    ],
)
def test_optimisers_like_torch(ours, theirs):
    values, tensors = [Value(3.0), Value(-2.0)], [double(3.0), double(-2.0)]
    mine, reference = ours(values), theirs(tensors)
    for _ in range(20):
        for (a, b), optimizer, parameters in ((values, mine, values), (tensors, reference, tensors)):
            for p in parameters:
                p.grad = 0.0 if optimizer is mine else None
            (a * a * b * b + (a - 1) ** 2 + b * b).backward()
            optimizer.step()
    assert [v.data for v in values] == pytest.approx([t.item() for t in tensors], rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The GPT


def test_gpt_equals_torch():
    model = GPT(5, n_embd=8, n_head=2, block_size=6, rng=random.Random(3))
    tokens = [4, 0, 1, 2, 1, 4]
    cache = []
    loss = mean(cross_entropy(model(a, cache), b) for a, b in pairwise(tokens))
    loss.backward()

    w = {k: torch.tensor([[p.data for p in row] for row in m], dtype=torch.float64, requires_grad=True)
         for k, m in vars(model).items() if isinstance(m, list)}  # fmt: skip
    norm = lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-5) ** -0.5  # noqa: E731
    x = norm(w["token"][tokens[:-1]] + w["position"][:5])  # (T, C)
    h = norm(x)
    q, k, v = ((h @ w[name].T).view(5, 2, 4).transpose(0, 1) for name in ("query", "key", "value"))  # (H, T, C / H)
    h = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(5, 8)
    x = x + h @ w["attn_proj"].T
    x = x + torch.relu(norm(x) @ w["mlp_up"].T) @ w["mlp_proj"].T
    reference = torch.nn.functional.cross_entropy(x @ w["head"].T, torch.tensor(tokens[1:]))
    reference.backward()
    assert loss.data == pytest.approx(reference.item(), rel=1e-12)
    for name, m in w.items():
        ours = [[p.grad for p in row] for row in getattr(model, name)]
        assert np.allclose(ours, m.grad.numpy(), rtol=1e-9, atol=1e-12), name


def test_gpt_learns_and_speaks(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffanna\r\nanna\r\n\r\n", encoding="utf-8")
    result = run("--demo", "gpt", "-i", tmp_path / "names.txt", "--max_steps", 60, "--num-samples=5", "-l=0.02")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("2 names of 2 letters") and lines[-5:] == ["anna"] * 5


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def neuron_graph():
    x, w, b = Value(2.0, "x"), Value(-3.0, 'w "quoted"'), Value(6.9, "b")
    y = (x * w + b).tanh() * 2 + 1
    y.label = "y"
    y.backward()
    return y


def test_trace():
    y = neuron_graph()
    nodes, edges = trace(y)
    assert len(nodes) == 8 and len(edges) == 7 and nodes[-1] is y
    position = {v: i for i, v in enumerate(nodes)}
    assert all(position[a] < position[b] for a, b in edges)
    assert trace(Value(1.0))[1] == [] and len(trace(Value(1.0))[0]) == 1
    a = Value(1.0)
    assert len(trace(a + a)[1]) == 1


def test_to_dot_names_everything():
    text = to_dot(neuron_graph())
    assert text.startswith("digraph") and "rankdir=LR" in text
    for words in ("x\\ndata 2.0000", 'w \\"quoted\\"', 'label="tanh"', 'label="* 2"', 'label="+ 1"', "grad 1.0000"):
        assert words in text
    a = Value(8.0)
    graphs = [a - 3, a / 4, 2 - a, 2 / a, a**2, -a]
    names = [re.findall('label="([^"]*)", fillcolor="#e6', to_dot(y))[0] for y in graphs]
    assert names == ["- 3", "/ 4", "2-", "2/", "**2", "neg"]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_draw_without_dot(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(micrograd.shutil, "which", lambda name: None)
    path = tmp_path / f"graph.{suffix}"
    draw(neuron_graph(), path)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml") and path.stat().st_size > 3000
    draw(Value(1.0, "alone"), path)
    assert path.stat().st_size > 500


def test_boxes_do_not_overlap_without_dot():
    from matplotlib.patches import Ellipse, FancyBboxPatch

    y = MLP(2, [4, 3, 1], rng=random.Random(0))([Value(1.0), Value(2.0)])
    figure = micrograd.plot_graph(y)
    shapes = [p for p in figure.axes[0].patches if isinstance(p, (Ellipse, FancyBboxPatch))]
    boxes = [p.get_path().get_extents(p.get_patch_transform()) for p in shapes]
    assert len(boxes) == len(trace(y)[0]) + len(topological(y))
    assert not any(a.shrunk(0.9, 0.9).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    left, right, low, high = *figure.axes[0].get_xlim(), *figure.axes[0].get_ylim()
    assert all(left <= b.x0 and b.x1 <= right and low <= b.y0 and b.y1 <= high for b in boxes)


@pytest.mark.skipif(not micrograd.shutil.which("dot"), reason="graphviz is not installed")
def test_draw_with_dot(tmp_path):
    draw(neuron_graph(), tmp_path / "graph.svg")
    assert "quoted" in (tmp_path / "graph.svg").read_text(encoding="utf-8")
    draw(neuron_graph(), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_a_notebook_shows_small_graphs_only():
    assert "<svg" in neuron_graph()._repr_svg_()
    assert total(Value(1.0) for _ in range(500))._repr_svg_() is None


def test_draw_where_dot_fails(tmp_path, monkeypatch):
    """Some builds of graphviz cannot write png."""
    (tmp_path / "dot").write_text("#!/bin/sh\necho 'Format: png not recognized' >&2\nexit 1\n")
    (tmp_path / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    draw(neuron_graph(), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_picture(failing, tmp_path, monkeypatch):
    path = tmp_path / "graph.png"
    path.write_bytes(b"old")

    def full(target, content):
        if failing == "write_bytes":
            with open(target, "wb") as f:
                f.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "write_bytes") if failing == "write_bytes" else (os, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        draw(neuron_graph(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_draw_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"has to end in \.svg or \.png"):
        draw(Value(1.0), tmp_path / "graph.gif")
    with pytest.raises(ValueError, match="nobody can read a graph of 501 nodes"):
        draw(total(Value(1.0) for _ in range(500)), tmp_path / "graph.svg")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Scripts written for the original


def python(code, **options):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, **options)


def test_the_originals_imports(tmp_path):
    code = """
from micrograd.engine import Value
from micrograd.nn import Module, Neuron, Layer, MLP
from micrograd import nn, engine
import micrograd.nn as again, micrograd, pickle, sys
assert nn.MLP is MLP is micrograd.MLP and again is nn and engine.Value is Value
assert pickle.loads(pickle.dumps(Value(2.0))).data == 2.0
n = nn.Neuron(2, nonlin=False)
x = [Value(1.0), Value(-2.0)]
y = n(x)
y.backward()
assert x[0].grad == n.w[0].data and len(n.parameters()) == 3
assert not {"torch", "numpy", "matplotlib"} & set(sys.modules)
"""
    result = python(code, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_lectures_own_drawing_code():
    """Its trace walks _prev as a set of operands; its labels read data, grad, label and _op."""
    a, b = Value(2.0, label="a"), Value(-3.0, label="b")
    root = (a * b + a).tanh()
    root.backward()
    nodes, edges = set(), set()

    def build(v):
        if v not in nodes:
            nodes.add(v)
            for child in v._prev:
                edges.add((child, v))
                build(child)

    build(root)
    labels = sorted("{ %s | data %.4f | grad %.4f }" % (n.label, n.data, n.grad) + n._op for n in nodes)  # noqa: UP031
    assert len(nodes) == 5 and len(edges) == 5 and sum(bool(n._op) for n in nodes) == 3
    assert labels[-1].startswith("{ b | data -3.0000 | grad ")


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: Neuron(3)([1.0, 2.0]), "3 weights met 2 inputs: give exactly 3"),
        (lambda: MLP(3, [4, 1])([1.0] * 4), "3 weights met 4 inputs"),
        (lambda: dot([Value(1.0)], [1.0, 2.0]), "1 weights met 2 inputs"),
        (lambda: MLP(3, []), "has no layers: give the width of each"),
        (lambda: MLP(0, [1]), "0 inputs: the number of inputs must be a whole number from 1 up"),
        (lambda: MLP(3, [4, -1]), "-1 neurons"),
        (lambda: MLP(3, [2.5]), "2.5 neurons"),
        (lambda: MLP(3, [2, 1], activation="gelu"), "unknown activation 'gelu': choose one of relu, tanh"),
        (lambda: Value(-1.0).log(), r"log\(-1\) is not a real number"),
        (lambda: Value(-1.0).sqrt(), r"sqrt\(-1\) is not a real number"),
        (lambda: Value(-8.0) ** (1 / 3), "negative base needs a whole exponent"),
        (lambda: mean([]), "mean of no values"),
        (lambda: softmax([]), "softmax of no logits"),
        (lambda: logistic([Value(1.0)], []), "1 scores met 0 targets"),
        (lambda: GPT(5, n_embd=10, n_head=4), "4 heads cannot share 10 channels"),
        (lambda: hinge([Value(1.0)], [1, -1]), "1 scores met 2 targets"),
        (lambda: cross_entropy([Value(1.0), Value(2.0)], 2), "target 2 is not one of 2 classes: give 0 to 1"),
    ],
)
def test_wrong_values(attempt, words):
    with pytest.raises(ValueError, match=words):
        attempt()


def test_wrong_types():
    with pytest.raises(TypeError, match="is not a list"):
        MLP(2, [1])(0.5)
    with pytest.raises(TypeError, match="'a' is not a number"):
        MLP(2, [1])("ab")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-steps", "-1"], "--max-steps is -1: give a number from 0 up"),
        (["-l", "nan"], "--learning-rate is nan"),
        (["-l", "fast"], "invalid float value: 'fast'"),
        (["--data", "cats"], "invalid choice: 'cats'"),
        (["--layers", "16,x"], "--layers is '16,x': give whole numbers from 1 up"),
        (["--activation", "gelu"], "invalid choice: 'gelu'"),
        (["--batch-size", "1000"], "--batch-size is 1000 of 100 points"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--max", "3"], "unrecognized arguments: --max 3"),
        (["--demo", "gpt", "--points", "1"], "--points is 1: give a number from 2 up"),
        (["--demo", "gpt", "-i", "no-such-file"], "cannot read 'no-such-file'"),
        (["-l", "1e6", "--loss", "squared"], "try a smaller --learning-rate"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert micrograd.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("micrograd: ") and words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_empty_or_broken_file_of_names(tmp_path, capsys):
    (tmp_path / "empty").write_text("\n \n")
    assert micrograd.main(["--demo", "gpt", "-i", str(tmp_path / "empty")]) == 2
    assert "holds no names" in capsys.readouterr().err
    (tmp_path / "broken").write_bytes(b"anna\n\xff\xfe\n")
    assert micrograd.main(["--demo", "gpt", "-i", str(tmp_path / "broken")]) == 2
    assert "give a UTF-8 text file" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_demo(tmp_path):
    result = run("--max-steps", 20, "--points", 40, "-o", tmp_path / "figures", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert re.search(r"loss \d\.\d{4}, accuracy [\d.]+%, [\d.]+ seconds", result.stdout)
    for name in ("boundary.png", "loss.png", "neuron.png"):
        assert name in result.stdout and (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("data", micrograd.SHAPES)
def test_shapes_have_two_classes_and_repeat_by_seed(data):
    points, targets = make_data(data, 51, 0.05, random.Random(1))
    assert (points, targets) == make_data(data, 51, 0.05, random.Random(1))
    assert sorted(set(targets)) == [-1, 1] and abs(sum(targets)) == 1 and len(points) == 51
    assert all(abs(c) < 2.5 for point in points for c in point)


@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "adam", "--batch_size", "20", "--data", "circles", "--activation", "tanh"],
        ["--loss", "logistic", "--data", "xor", "--layers", "8", "--momentum", "0.5", "-l", "0.3"],
        ["--loss", "squared", "-l", "0.1", "--layers", "", "--data", "spiral", "--activation", "sigmoid"],
        ["--max-steps", "0"],
    ],
)
def test_flags(flags, tmp_path, capsys):
    assert micrograd.main(["--points", "30", "--max-steps", "10", "-o", str(tmp_path), *flags]) == 0
    assert "accuracy" in capsys.readouterr().out and (tmp_path / "boundary.png").exists()


def test_the_same_seed_gives_the_same_run(tmp_path, capsys):
    losses = []
    for seed in (1, 1, 2):
        micrograd.main(["--seed", str(seed), "--points", "20", "--max-steps", "5", "-o", str(tmp_path)])
        losses.append(re.findall(r"loss \d+\.\d+", capsys.readouterr().out))
    assert losses[0] == losses[1] != losses[2]


def test_interrupted(monkeypatch, capsys):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(micrograd.DEMOS, "network", stop)
    assert micrograd.main([]) == 130
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Flags: each is used, or named on stderr


SMALL = {"network": ["--points", 12, "--layers", 3, "--max-steps", 3], "gpt": ["--max-steps", 3, "--num-samples", 3]}
CHANGED = {  # another value for each flag
    "seed": 7,
    "max_steps": 2,
    "learning_rate": 0.3,
    "data": "xor",
    "points": 14,
    "noise": 0.3,
    "layers": "2,2",
    "activation": "tanh",
    "loss": "logistic",
    "l2": 0.5,
    "optimizer": "adam",
    "batch_size": 5,
    "work_dir": "elsewhere",
    "momentum": 0.9,
    "input_file": "others.txt",
    "num_samples": 2,
    "temperature": 5,
}


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """Run the command: -> (what it prints, with what its figures would show; what it says on stderr)."""
    (tmp_path / "names.txt").write_text("anna\nbob\ncarla\n")
    (tmp_path / "others.txt").write_text("emil\nfred\n")
    monkeypatch.chdir(tmp_path)
    show = lambda model, *rest: print([p.data for p in model.parameters()], *rest)  # noqa: E731
    monkeypatch.setattr(micrograd, "draw_figures", show)

    def outcome(*argv):
        assert micrograd.main(list(map(str, argv))) == 0
        out, error = capsys.readouterr()
        return re.sub(r"[\d.]+ s(econds)?\b", "", out), error

    return outcome


def test_the_table_of_flags_is_complete():
    assert {"demo", *CHANGED} == {f.name for f in fields(micrograd.Config)}


@pytest.mark.parametrize("demo", micrograd.DEMOS)
@pytest.mark.parametrize("name", CHANGED)
def test_every_flag_is_used_or_named(demo, name, outcome):
    flag = "--" + name.replace("_", "-")
    before, silence = outcome("--demo", demo, *SMALL[demo])
    after, words = outcome("--demo", demo, *SMALL[demo], flag, CHANGED[name])
    assert silence == "" and (after == before) == bool(words)
    if words:
        run = {"network": "network with sgd", "gpt": "gpt"}[demo]
        user = "sgd" if name == "momentum" else {"network": "gpt", "gpt": "network"}[demo]
        assert words == f"micrograd: not used by --demo {run}: {flag} ({user})\n"


def test_unused_flags_are_named_in_one_line(outcome):
    _, words = outcome("--demo", "gpt", *SMALL["gpt"], "--points=30", "--layers", "", "--momentum", 0.5, "-o", "folder")
    named = "--points (network), --layers (network), --work-dir (network), --momentum (sgd)"
    assert words == f"micrograd: not used by --demo gpt: {named}\n"


def test_momentum_is_of_sgd(outcome):
    adam = [*SMALL["network"], "--optimizer", "adam"]
    before, silence = outcome(*adam)
    after, words = outcome(*adam, "--momentum", 0.5, "-i", "others.txt")
    assert (after, silence) == (before, "")
    assert words == "micrograd: not used by --demo network with adam: --momentum (sgd), --input-file (gpt)\n"


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [
        ([], ["network 100, gpt 1000", "sgd 1.0, adam 0.1, gpt 0.01"]),
        (["--demo", "gpt"], ["gpt 1000", "gpt 0.01"]),
        (["--demo", "network"], ["network 100", "sgd 1.0"]),
        (["--optimizer", "adam", "--max-steps", "7"], ["network 100", "adam 0.1"]),
    ],
)
def test_help_tells_true_defaults(arguments, defaults, capsys):
    for argv in (["--help", *arguments], [*arguments, "-h"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            micrograd.main(argv)
        out, error = capsys.readouterr()
        text = " ".join(out.split())
        assert error == "" and re.findall(r"(?:training steps|at the start) \(default: ([^)]*)\)", text) == defaults
        for f in fields(micrograd.Config):
            assert "--" + f.name.replace("_", "-") in out
        titles = [line for line in out.splitlines() if re.fullmatch(r"(every|--\w+) \w+:", line)]
        assert titles == ["every demo:", "--demo network:", "--optimizer sgd:", "--demo gpt:"]
        assert {"FILE", "FOLDER", "N", "X"} <= set(re.findall(r"\b[A-Z_]+\b", out)) and "INPUT_FILE" not in out


# ---------------------------------------------------------------------------------------------------------------------
# Figures: what keeps them from being written does not make a good run a failure


DEMO = ["--max-steps", "2", "--points", "12", "--layers", "3", "-o"]


def test_figures_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert micrograd.main([*DEMO, str(tmp_path / "figures")]) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == "no figures: they need matplotlib (pip install matplotlib)" and error == ""
    assert not list(tmp_path.iterdir())


def test_figures_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert micrograd.main([*DEMO, str(tmp_path / "file" / "figures")]) == 0
    out, error = capsys.readouterr()
    assert re.search(r"^loss .* seconds$", out, re.MULTILINE) and "figures:" not in out
    assert error.startswith("micrograd: cannot write the figures: ") and error.count("\n") == 1


def test_figures_do_without_pyplot(tmp_path):
    code = f"""
import micrograd, sys
assert micrograd.main({[*DEMO, "figures"]}) == 0
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    result = python(code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["boundary.png", "loss.png", "neuron.png"]


# ---------------------------------------------------------------------------------------------------------------------
# The file: a lecture in front, a workshop behind


def test_the_lecture_stands_in_front():
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    rule = lambda title: next(i for i, line in enumerate(lines, 1) if line.startswith(f"# {title}:"))  # noqa: E731
    lecture, lessons, workshop = map(rule, ("THE LECTURE", "THE LESSONS", "THE WORKSHOP"))
    place = lambda thing: inspect.getsourcelines(thing)[1]  # noqa: E731
    assert lessons < 550
    for thing in (Value, topological, affine, softmax, MLP, hinge, cross_entropy, Adam):
        assert lecture < place(thing) < lessons
    for thing in (gradcheck, GPT):
        assert lessons < place(thing) < workshop
    for thing in (trace, draw, make_data, micrograd.network_demo, micrograd.Config, micrograd.main):
        assert workshop < place(thing)
