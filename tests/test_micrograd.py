"""What micrograd promises: torch's numbers in every corner, any depth, no garbage, pictures, and clear refusals."""

# ruff: noqa: B905
import copy
import gc
import inspect
import io
import math
import os
import pickle
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
import weakref
from dataclasses import asdict, fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PIPES, posix
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
FIGURES, FILMS = ("boundary.png", "neuron.png", "dot.png"), ("boundary.gif", "backward.gif")


def close(a, b, tolerance=1e-9):
    """Equal as numbers: relatively close, or the same inf, or both nan."""
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


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
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], **PIPES, **options)


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


# What comes after an operation: slopes that are infinite or nan at 0, at large numbers, or everywhere. A gradient that
# is masked stays 0, whatever comes from above.
STEEP = {
    "sqrt": (Value.sqrt, torch.sqrt),
    "log": (Value.log, torch.log),
    "1 / y": (lambda y: 1 / y, lambda y: 1 / y),
    "y ** -1": (lambda y: y**-1, lambda y: y**-1),
    "y ** 0.3": (lambda y: y**0.3, lambda y: y**0.3),
    "exp(1000 y)": (lambda y: (y * 1000).exp(), lambda y: (y * 1000).exp()),
    "y * inf": (lambda y: y * INF, lambda y: y * INF),
    "y * nan": (lambda y: y * NAN, lambda y: y * NAN),
    "y / 0": (lambda y: y / 0, lambda y: y / 0),
}
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)
PAIRS = BINARY | {
    "hinge": (lambda a, b: hinge([a, b], [1, -1]), lambda a, b: torch.relu(1 - SIGNS * torch.stack([a, b])).mean()),
    "squared": (lambda a, b: squared_error([a, b], [1, -1]), lambda a, b: ((torch.stack([a, b]) - SIGNS) ** 2).mean()),
    "mean": (lambda a, b: mean([a, b]), lambda a, b: torch.stack([a, b]).mean()),
    "dot": (lambda a, b: dot([a], [b]), lambda a, b: torch.stack([a]) @ torch.stack([b])),
}
POINTS = [-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, INF, NAN]


@pytest.mark.parametrize("steep", STEEP)
def test_steep_slopes_like_torch(steep):
    (f, g), wrong, compared = STEEP[steep], [], 0
    after = lambda last, first: lambda *inputs: last(first(*inputs))  # noqa: E731
    cases = [(name, op, (x,)) for name, op in UNARY.items() for x in POINTS]
    cases += [(name, op, (a, b)) for name, op in PAIRS.items() for a in POINTS for b in POINTS]
    for name, (ours, theirs), inputs in cases:
        try:
            a, b = both(after(f, ours), after(g, theirs), *inputs)
        except ValueError as error:
            assert "is not a real number" in str(error)
            continue
        compared += 1
        if not all(map(close, a, b)):
            wrong.append(f"{name} at {inputs}, then {steep}: {a}, torch {b}")
    assert compared > 900 and wrong == []


def test_where_torch_differs_on_purpose():
    """A plain exponent of 0.5 is the square root in torch; and below an infinite slope its softmax takes inf − inf."""
    for exponent in (0.5, -0.5):
        for x in (-INF, -0.0):
            y = Value(x) ** exponent
            assert y.data == (Value(x) ** Value(exponent)).data == (torch.tensor(x) ** torch.tensor(exponent)).item()
    for f, g in ((softmax, torch.softmax), (lambda v, _: [cross_entropy(v, 0)], lambda t, _: -t.log_softmax(0)[:1])):
        v, t = [Value(0.0), Value(1.0)], torch.zeros(2, requires_grad=True)
        (f(v, 1.0)[0] * INF).backward()
        (g(t, 0)[0] * INF).backward()
        assert all(math.isinf(x.grad) for x in v) and t.grad.isnan().any()


def test_a_masked_operand_is_still_in_the_graph():
    """It gets no gradient, but it is drawn, and its own gradient starts from zero again."""
    a, b = Value(-1.0), Value(2.0)
    for inner, outer in ((a * 1, lambda v: v.relu()), (a * 1, lambda v: v.max(b)), (a * 1, lambda v: v**0)):
        inner.backward()
        inner.label = "inner"
        y = outer(inner)
        y.backward()
        assert inner.grad == 0.0 and inner in topological(y) and inner in trace(y)[0]
        assert any(words.startswith("inner\n") for words in drawn(y)[0])
    inner, c = a * -9, Value(2.0)
    inner.backward()
    loss = hinge([inner, c], [1, -1])
    loss.backward()
    assert (inner.grad, c.grad) == (0.0, 0.5) and set(loss._prev) == {inner, c}


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


def test_a_class_of_ones_own_that_is_a_value_is_one_among_others_too():
    class Named(Value):
        pass

    for values in ([Named(1.0), Named(2.0)], [Named(1.0), Value(2.0)], [Named(1.0), 2.0]):
        for loss in (mean(values), total(values) / 2, dot([0.5, 0.5], values)):
            values[0].grad = 0.0
            loss.backward()
            assert (loss.data, values[0].grad) == (1.5, 0.5)


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


def test_a_quarter_of_a_million_operations_in_a_row():
    x = Value(1.0)
    y = x
    for _ in range(125_000):
        y = y * 1.000001 + x
    y.backward()
    assert math.isfinite(x.grad) and x.grad > 125_000
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
    assert len(topological(dot(ws, xs, b))) == 1 and dot([1.0] * 1000, [2.0] * 1000).data == 2000.0
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


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "linear", "some of each"])
def test_a_layer_is_its_neurons(activation):
    layer = Layer(3, 4, activation="relu" if activation == "some of each" else activation, rng=random.Random(0))
    if activation == "some of each":
        layer.neurons[1].activation = "tanh"
    x = [Value(0.5), Value(-1.0), Value(2.0)]
    assert [v.data for v in layer(x)] == [n(x).data for n in layer.neurons]
    assert [v.data for v in layer(x)] == [v.data for v in layer([0.5, -1.0, 2.0])]
    assert [v.data for v in layer(x)] == [v.data for v in layer([x[0], -1.0, np.float64(2.0)])]
    total(layer(x)).backward()
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    total(layer([0.5, -1.0, 2.0])).backward()
    assert [p.grad for p in layer.parameters()] == gradients
    layer.zero_grad()
    total(n([0.5, -1.0, 2.0]) for n in layer.neurons).backward()
    assert [p.grad for p in layer.parameters()] == gradients


def test_a_relu_neuron_of_a_layer_is_one_node():
    layer = Layer(2, 2)
    for p, data in zip(layer.parameters(), (1.0, 2.0, 0.5, 1.0, 2.0, -3.0)):
        p.data = data
    (above, below), x = layer(point := [Value(1.0), Value(1.0)]), layer.parameters()
    assert (above.data, below.data, above._op, below._op) == (3.5, 0.0, "relu(dot)", "relu(dot)")
    assert above._prev == (x[2], *x[:2], *point) and below._prev == (x[5], *x[3:5], *point)
    (above + 10 * below).backward()
    assert [p.grad for p in (*x, *point)] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 2.0]


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


def test_a_shared_parameter_counts_once():
    net = Module()
    net.embedding = [Value(1.0), Value(2.0)]
    net.head = net.embedding  # tied, as in GPT-2
    (total(net.parameters()) * 3.0).backward()
    SGD(net.parameters(), lr=0.1).step()
    assert [p.data for p in net.parameters()] == [0.7, 1.7]


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


def test_a_long_name_is_cut_to_what_the_model_can_see(tmp_path, monkeypatch, capsys):
    seen, call = [], GPT.__call__
    monkeypatch.setattr(GPT, "__call__", lambda self, token, cache: (seen.append(token), call(self, token, cache))[1])
    (tmp_path / "names").write_text("ab" * 20 + "\n")
    micrograd.main(["--demo", "gpt", "-i", str(tmp_path / "names"), "--max-steps", "1", "--num-samples", "0"])
    assert seen == [2, *[0, 1] * 7, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def neuron_graph():
    x, w, b = Value(2.0, "x"), Value(-3.0, 'w "quoted"'), Value(6.9, "b")
    y = (x * w + b).tanh() * 2 + 1
    y.label = "y"
    y.backward()
    return y


def lectures_neuron(fused=False):
    return micrograd.one_neuron((2.0, 0.0, -3.0, 1.0, 6.8813735870195432), "tanh", fused)


def drawn(graph):
    """A Value, or its figure -> ({words: (left, bottom, right, top) of their box}, lines); y grows downwards."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    axes = (micrograd.plot_graph(graph) if isinstance(graph, Value) else graph).axes[0]
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == len(axes.texts)
    places = [(b.get_x(), b.get_y(), b.get_x() + b.get_width(), b.get_y() + b.get_height()) for b in boxes]
    for (x0, y0, x1, y1), text in zip(places, axes.texts):
        assert text.get_position() == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2))
    lines = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    return dict(zip((t.get_text() for t in axes.texts), places)), lines


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
    for words in ("x\\ndata 2.0000", 'w \\"quoted\\"', 'label="tanh"', 'label="× 2"', 'label="+ 1"', "grad 1.0000"):
        assert words in text
    assert (text.count("[label="), text.count("shape=box"), text.count(" -> ")) == (8 + 5, 8, 7 + 5)
    a = Value(8.0, "back\\slash")
    graphs = [a - 3, a / 4, 2 - a, 2 / a, a**2, -a, a + a]
    operations = [re.findall(r'v\d+ \[label="([^"]*)"\]', to_dot(y)) for y in graphs]
    assert operations == [["- 3"], ["/ 4"], ["2-"], ["2/"], ["**2"], ["neg"], ["+"]]
    assert to_dot(a + a).splitlines() == [
        "digraph {",
        "rankdir=LR",
        r'v0 [label="back\\slash\ndata 8.0000\ngrad 0.0000", shape=box]',
        r'v1 [label="data 16.0000\ngrad 0.0000", shape=box]',
        'v2 [label="+"]',
        "v2 -> v1",
        "v0 -> v2",
        "}",
    ]


def test_everything_is_drawn_and_named():
    y = neuron_graph()
    boxes, lines = drawn(y)
    assert len(boxes) == 8 + 5 and len(lines) == 7 + 5  # 8 Values, 5 operations; each operation leads to its result
    assert {"×", "+", "tanh", "× 2", "+ 1"} <= set(boxes)
    assert 'w "quoted"\ndata -3.0000\ngrad 1.9477' in boxes and "y\ndata 2.4326\ngrad 1.0000" in boxes
    boxes, lines = drawn(Value(1.0))
    assert [*boxes] == ["data 1.0000\ngrad 0.0000"] and lines == []
    a = Value(8.0)
    graphs = [a - 3, a / 4, 2 - a, 2 / a, a**2, -a, a * -1, a + a]
    assert list(map(micrograd.operation, graphs)) == ["- 3", "/ 4", "2-", "2/", "**2", "neg", "× -1", "+"]


def names(boxes):
    """The first line of each box, column by column, from top to bottom."""
    return [words.split("\n")[0] for words, _ in sorted(boxes.items(), key=lambda item: item[1])]


def test_the_lectures_neuron_in_reading_order():
    y = lectures_neuron()
    y.backward()
    boxes, lines = drawn(y)
    assert len(boxes) == 10 + 5 - 2 and len(lines) == 9 + 5  # two × and two +, which have the same words
    columns = {}
    for text in sorted(micrograd.plot_graph(y).axes[0].texts, key=lambda text: text.get_position()):
        columns.setdefault(round(text.get_position()[0], 6), []).append(text.get_text().split("\n")[0])
    assert list(columns.values()) == [
        ["x1", "w1", "x2", "w2"], ["×", "×"], ["x1w1", "x2w2"], ["+"], ["(x1w1+x2w2)", "b"], ["+"],
        ["n"], ["tanh"], ["o"],
    ]  # fmt: skip
    assert "x1\ndata 2.0000\ngrad -1.5000" in boxes and "o\ndata 0.7071\ngrad 1.0000" in boxes


def test_the_fused_neuron_is_one_node_with_the_same_numbers():
    single, fused = lectures_neuron(), lectures_neuron(fused=True)
    single.backward()
    fused.backward()
    one, other = drawn(single)[0], drawn(fused)[0]
    assert names(other) == ["b", "w1", "w2", "x1", "x2", "dot", "n", "tanh", "o"] and len(drawn(fused)[1]) == 6 + 2
    assert {words for words in other if "\n" in words} < set(one)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_draw(tmp_path, suffix):
    path = tmp_path / f"graph.{suffix}"
    draw(neuron_graph(), path)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml") and path.stat().st_size > 3000
    draw(Value(1.0, "alone"), str(path))
    assert path.stat().st_size > 500


def test_graphviz_is_never_run(tmp_path, monkeypatch):
    """Nor anything else: every machine draws the same picture."""
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(os, "posix_spawn", None, raising=False)
    draw(neuron_graph(), tmp_path / "graph.svg")
    assert "quoted" in (tmp_path / "graph.svg").read_text(encoding="utf-8") and "<svg" in neuron_graph()._repr_svg_()


def skipping():
    """A graph with edges that pass many columns, from a leaf and from a result."""
    y = MLP(2, [3, 1], rng=random.Random(0))([Value(1.0), Value(2.0)])
    return (y * 2 + 1).tanh() + y._prev[-1] + y._prev[0]


def network():
    return MLP(2, [4, 3, 1], rng=random.Random(0))([Value(1.0), Value(2.0)])


@pytest.mark.parametrize("graph", [neuron_graph, lectures_neuron, skipping, network])
def test_nothing_overlaps(graph):
    """Boxes lie inside the axes and apart from each other; a line touches a box only where it begins or ends."""
    figure = micrograd.plot_graph(graph())
    axes = figure.axes[0]
    lines = [p._path_original.vertices for p in drawn(figure)[1]]
    boxes = [p for p in axes.patches if hasattr(p, "get_boxstyle")]
    boxes = [(b.get_x(), b.get_y(), b.get_x() + b.get_width(), b.get_y() + b.get_height()) for b in boxes]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        assert left <= x0 and x1 <= right and top <= y0 and y1 <= bottom
        assert all(x1 < a0 or a1 < x0 or y1 < b0 or b1 < y0 for a0, b0, a1, b1 in boxes[:i])
        for (ax, ay), (bx, by) in (pair for line in lines for pair in pairwise(line)):
            for t in range(1, 20):
                x, y = ax + (bx - ax) * t / 20, ay + (by - ay) * t / 20
                assert not (x0 < x < x1 and y0 < y < y1)


@pytest.mark.parametrize("graph", [neuron_graph, lectures_neuron, skipping])
def test_lines_lead_from_box_to_box(graph):
    """From the middle of a right border to the middle of a left border, always to the right, with a head at the end."""
    figure = micrograd.plot_graph(graph())
    boxes = [p for p in figure.axes[0].patches if hasattr(p, "get_boxstyle")]
    middle = lambda b: round(b.get_y() + b.get_height() / 2, 9)  # noqa: E731
    lefts = {(round(b.get_x(), 9), middle(b)) for b in boxes}
    rights = {(round(b.get_x() + b.get_width(), 9), middle(b)) for b in boxes}
    lines = [p._path_original.vertices.round(9).tolist() for p in drawn(figure)[1]]
    assert all(tuple(line[0]) in rights and tuple(line[-1]) in lefts for line in lines)
    assert all(a[0] < b[0] for line in lines for a, b in pairwise(line))
    assert all(p.get_arrowstyle().arrow == "-|>" for p in drawn(figure)[1])
    leaves = sum(not v._prev for v in set(ordered(graph())))
    assert len({tuple(line[-1]) for line in lines}) == len(boxes) - leaves  # something leads to everything else


def ordered(root):
    return [root, *(v for result in topological(root) for v in result._prev)]


def test_a_number_with_three_hundred_digits_leaves_the_picture_small():
    y = Value(1e300)
    for _ in range(60):
        y = y * 1.0
    assert micrograd.plot_graph(y).get_size_inches()[0] < 400


def test_a_notebook_never_sees_an_exception(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert neuron_graph()._repr_svg_() is None


def test_a_notebook_shows_whatever_stands_in_a_value():
    y = neuron_graph()
    y._prev[0].data, y.label = None, "\ud800"  # no number, and no character
    assert y._repr_svg_() is None or "<svg" in y._repr_svg_()


def test_dollars_are_no_mathematics(tmp_path):
    a = Value(1.0, r"$\nonsense$")
    draw(micrograd.node(1.0, (a,), (1.0,), "$^^$"), tmp_path / "graph.svg")
    assert r"$\nonsense$" in (tmp_path / "graph.svg").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("refusals", [3, 1000])
def test_windows_while_somebody_looks_at_the_picture(refusals, tmp_path, monkeypatch):
    """There, os.replace fails while another program has the file open: we wait for a second."""
    path, tried, slept, replace = tmp_path / "graph.png", [], [], os.replace
    path.write_bytes(b"old")

    def locked(source, target):
        tried.append(target)
        if len(tried) <= refusals:
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    monkeypatch.setattr(micrograd.time, "sleep", slept.append)
    if refusals == 3:
        draw(neuron_graph(), path)
        assert path.read_bytes().startswith(b"\x89PNG") and len(tried) == 4
    else:
        with pytest.raises(PermissionError, match="Access is denied"):
            draw(neuron_graph(), path)
        assert path.read_bytes() == b"old" and 0.5 <= sum(slept) <= 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("renamed"), replace(a, b)))
    draw(neuron_graph(), tmp_path / "graph.png")
    assert events == [(tmp_path / "graph.png").stat().st_size, "renamed"]


@posix
def test_a_full_disk(tmp_path):
    """Not imitated: the system refuses to write more than a thousand bytes to a file."""
    code = """
import resource, signal, sys, micrograd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(micrograd.main(["--points", "5", "--max-steps", "1", "--layers", "2", "-o", "."]))
"""
    (tmp_path / "boundary.png").write_text("old")
    result = python(code, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr.startswith("micrograd: cannot write the figures: ")
    assert result.stderr.count("\n") == 1 and [p.name for p in tmp_path.iterdir()] == ["boundary.png"]
    assert (tmp_path / "boundary.png").read_text() == "old"


def test_draw_refuses(tmp_path):
    for name, format in (("graph.txt", "txt"), ("graph", "")):
        with pytest.raises(ValueError, match=f"Format .{format}. is not supported .supported formats: .*pdf, .*svg"):
            draw(Value(1.0), tmp_path / name)
    with pytest.raises(ValueError, match="nobody can read a graph of 501 nodes"):
        draw(total(Value(1.0) for _ in range(500)), tmp_path / "graph.svg")
    assert not list(tmp_path.iterdir())


def test_the_largest_graph_that_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(micrograd, "image", lambda figure, format: b"a picture")
    most, more = (total(Value(1.0) for _ in range(n)) for n in (399, 400))
    draw(most, tmp_path / "graph.svg")
    assert most._repr_svg_() == "a picture" and (tmp_path / "graph.svg").read_bytes() == b"a picture"
    with pytest.raises(ValueError, match="nobody can read a graph of 401 nodes: draw a part of it, up to 400"):
        draw(more, tmp_path / "graph.svg")
    assert more._repr_svg_() is None


# ---------------------------------------------------------------------------------------------------------------------
# Scripts written for the original


def python(code, **options):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    return subprocess.run([sys.executable, "-c", code], env=environment, **PIPES, **options)


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
        (lambda: GPT(5, n_head=0), "0 heads cannot share 16 channels"),
        (lambda: GPT(5)(5, []), "token 5 at position 0: give one of 5 tokens, at up to 16 positions"),
        (lambda: GPT(5)(-1, []), "token -1 at position 0"),
        (lambda: GPT(5, block_size=2)(1, [([], [])] * 2), "token 1 at position 2: .* up to 2 positions"),
        (lambda: hinge([Value(1.0)], [1, -1]), "1 scores met 2 targets"),
        (lambda: cross_entropy([Value(1.0), Value(2.0)], 2), "target 2 is not one of 2 classes: give 0 to 1"),
    ],
)
def test_wrong_values(attempt, words):
    with pytest.raises(ValueError, match=words):
        attempt()


@pytest.mark.parametrize("temperature", [0, 0.0, -0.0, -1.0, NAN, -INF, "1", None, Value(1.0), [1.0]])
def test_wrong_temperatures(temperature):
    model = GPT(3, rng=random.Random(0))
    words = f"^the temperature is {re.escape(repr(temperature))}: give a number above 0"
    for attempt in (
        lambda: softmax([Value(1.0), Value(2.0)], temperature),
        lambda: micrograd.probabilities([1.0, 2.0], temperature),
        lambda: micrograd.sample(model, "ab", temperature),
    ):
        with pytest.raises(ValueError, match=words):
            attempt()


def test_temperatures_of_any_kind():
    for temperature in (np.float32(0.5), np.int64(2), Fraction(1, 2), 1e-300, INF, True):
        v = [Value(1.0), Value(2.0)]
        p = softmax(v, temperature)
        (p[0] * 2).backward()
        assert sum(x.data for x in p) == pytest.approx(1.0) and all(type(x.grad) is type(x.data) is float for x in v)


@pytest.mark.parametrize("target", [2, -1, 1.0, 0.5, NAN, True, False, np.True_, "1", None, Value(1.0), [1], 10**30])
def test_wrong_classes(target):
    with pytest.raises(ValueError, match=re.escape(f"target {target!r} is not one of 2 classes: give 0 to 1")):
        cross_entropy([Value(1.0), Value(2.0)], target)


def test_classes_of_any_whole_kind():
    for target in (1, np.int64(1), np.uint8(1)):
        v = [Value(1.0), Value(2.0)]
        loss = cross_entropy(v, target)
        loss.backward()
        assert type(loss.data) is type(v[0].grad) is type(v[1].grad) is float and v[1].grad < 0.0 < v[0].grad


@pytest.mark.parametrize(
    ("loss", "target", "words"),
    [
        (hinge, 0, "hinge met the target 0.0: give −1 or 1"),
        (hinge, NAN, "hinge met the target nan: give −1 or 1"),
        (hinge, False, "hinge met the target 0.0: give −1 or 1"),
        (logistic, 0.5, "logistic met the target 0.5: give −1 or 1"),
        (logistic, Value(1.0), r"logistic met the target Value\(data=1.0, grad=0.0\): give plain numbers"),
        (squared_error, Value(3.0), r"squared error met the target Value\(data=3.0, grad=0.0\): give plain numbers"),
    ],
)
def test_wrong_targets(loss, target, words):
    """Labels 0 and 1 would have a loss that does not depend on the score; a Value would get no gradient."""
    with pytest.raises(ValueError, match=words):
        loss([Value(0.3)], [target])
    with pytest.raises(TypeError, match="'1' is not a number"):
        loss([Value(0.3)], ["1"])
    with pytest.raises(TypeError, match="1 is not a list"):
        loss([Value(0.3)], 1)
    assert squared_error([Value(0.5)], [0]).data == 0.25 and hinge([Value(0.5)], [True]).data == 0.5


def test_what_is_all_but_certain_keeps_its_digits():
    assert Value(-40.0).sigmoid().data == pytest.approx(math.exp(-40), rel=1e-15)
    loss = logistic([score := Value(40.0)], [1])
    loss.backward()
    assert (loss.data, -score.grad) == pytest.approx((math.exp(-40), math.exp(-40)), rel=1e-15)
    assert cross_entropy([1e9, 1e9 - 20], 0).data == pytest.approx(math.log1p(math.exp(-20)), rel=1e-7)


def test_a_mistake_inside_a_generator_is_told_as_it_is():
    with pytest.raises(TypeError, match="'a' is not a number"):
        mean(Value(x) for x in ["a"])


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
        (["--demo", "gpt", "-i", "."], "cannot read '.'"),
        (["--demo", "gpt", "-i", os.devnull], "cannot read"),
        (["-i", ""], "--input-file is empty: give it a value, or leave it out"),
        (["-o", ""], "--work-dir is empty: give it a value, or leave it out"),
        (["--work_dir="], "--work-dir is empty"),
        (["--layers=--"], "--layers"),
        (["--data", ""], "invalid choice: ''"),
        (["--seed", ""], "invalid int value: ''"),
        (["--opt", "adam"], "unrecognized arguments: --opt adam"),
        (["--max_step=3"], "unrecognized arguments: --max-step=3"),
        (["--max_steps=-3"], "--max-steps is -3"),
        (["-l", "-1"], "--learning-rate is -1.0: give a number from 0 up"),
        (["-l", "1e39"], "--learning-rate is 1e+39: give a number from 0 up, and below 1e30"),
        (["--seed", "9" * 400], "999: give a number from -inf up, and below 1e30"),
        (["--max-steps", "9" * 5000], "invalid int value: '999"),
        (["--layers", "9" * 5000], "give whole numbers from 1 up"),
        (["--layers", "16,,16"], "--layers is '16,,16'"),
        (["--layers", "0"], "--layers is '0'"),
        (["--layers", "100000,100000"], "--points 100 and --layers 100000,100000 take 29813 GiB"),
        (["--points", "10000000000"], "GiB: give less"),
        (["--loss", "squared", "-l", "1e20", "--max-steps", "40"], "the loss is inf in step"),
        (["-l", "1e6", "--loss", "squared"], "try a smaller --learning-rate"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert micrograd.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("micrograd: ") and words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it holds no names"),
        (b"\n \n", "it holds no names"),
        (b"\xff\xfe", "it holds no names"),
        (b"anna\n\xff\xfe\n", "can't decode byte 0xff in position 5: invalid start byte"),
        (b"\xff\xfea", "truncated data"),
        (b"an\0na\n", "it is binary"),
        (b"\xff\xfe\0\0a\0\0\0", "it is binary"),
        ("\n".join(map(chr, range(20_000, 31_000))).encode(), "it has over 10,000 different letters"),
        (b"anna\n" * 10_000_000, "it has over 32 MB"),
    ],
    ids=range(9),
)
def test_a_file_that_holds_no_names(content, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("names").write_bytes(content)
    assert micrograd.main(["--demo", "gpt", "-i", "names"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("micrograd: cannot read 'names' (") and words in error
    assert error.endswith("): give a UTF-8 text file of names with -i\n")


@posix
@pytest.mark.parametrize("endless", ["pipe", "/dev/zero"])
def test_what_never_ends_is_not_read(endless, tmp_path):
    """A pipe that nobody writes to, and a device that writes for ever."""
    os.mkfifo(tmp_path / "pipe")
    result = run("--demo", "gpt", "-i", endless, cwd=tmp_path, timeout=20)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"micrograd: cannot read '{endless}' (it holds no names, or is no file)")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_names_as_windows_writes_them(encoding, newline, tmp_path):
    """PowerShell's `>` writes UTF-16 with a byte order mark."""
    text = "\ufeff" * encoding.endswith("e") + newline.join(["ännä", "", " bo ", "\U0001f600"])
    (tmp_path / "names").write_bytes(text.encode(encoding))
    assert micrograd.read_names(str(tmp_path / "names")) == ["ännä", "bo", "\U0001f600"]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_demo_draws_three_figures_and_does_without_pyplot(tmp_path):
    code = """
import micrograd, sys
assert micrograd.main(["--max-steps", "20", "--points", "40"]) == 0
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    result = python(code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"loss \d\.\d{4}, accuracy [\d.]+%, [\d.]+ seconds", result.stdout)
    folder = Path("out", "micrograd")
    assert sorted(p.name for p in (tmp_path / folder).iterdir()) == sorted(FIGURES)
    for path in [folder / name for name in FIGURES]:
        assert str(path) in result.stdout and (tmp_path / path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("data", micrograd.SHAPES)
def test_shapes_have_two_classes_and_repeat_by_seed(data):
    points, targets = make_data(data, 51, 0.05, random.Random(1))
    assert (points, targets) == make_data(data, 51, 0.05, random.Random(1))
    assert sorted(set(targets)) == [-1, 1] and abs(sum(targets)) == 1 and len(points) == 51
    assert all(abs(c) < 2.5 for point in points for c in point)


def test_the_shapes_themselves():
    """Without noise: two half circles, circles of radius 1 and 0.5, arms of one and a half turns, four squares."""
    places = {shape: list(zip(*make_data(shape, 60, 0.0, random.Random(0)))) for shape in micrograd.SHAPES}
    for (x, y), s in places["moons"]:
        dx, dy = x - (0.5 + s * 0.5), y - (0.25 + s * 0.25)
        assert math.hypot(dx, dy) == pytest.approx(1.0) and s * dy < 0
    for (x, y), s in places["circles"]:
        assert math.hypot(x, y) == pytest.approx(0.5 if s > 0 else 1.0)
    for (x, y), s in places["spiral"]:
        t = math.hypot(x, y)
        assert (s * x, s * y) == pytest.approx((t * math.cos(3 * math.pi * t), t * math.sin(3 * math.pi * t)))
    for (x, y), s in places["xor"]:
        assert abs(x) <= 1 and abs(y) <= 1 and math.copysign(1, x * y) == -s
    assert all(min(c) < -0.8 and max(c) > 0.8 for c in zip(*(point for point, _ in places["xor"])))


def test_noise_is_on_both_coordinates():
    quiet, loud = (make_data("moons", 4000, noise, random.Random(0))[0] for noise in (0.0, 0.5))
    for a, b in zip(zip(*quiet), zip(*loud)):
        assert statistics.stdev(y - x for x, y in zip(a, b)) == pytest.approx(0.5, rel=0.05)


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


def test_the_same_seed_gives_the_same_run(monkeypatch, capsys):
    monkeypatch.setattr(micrograd, "draw_figures", lambda *arguments: None)
    losses = []
    for seed in (1, 1, 2):
        micrograd.main(["--seed", str(seed), "--points", "20", "--max-steps", "5"])
        losses.append(re.findall(r"loss \d+\.\d+", capsys.readouterr().out))
    assert losses[0] == losses[1] != losses[2]


def test_about_ten_lines_in_a_run_and_the_last_step(monkeypatch, capsys):
    monkeypatch.setattr(micrograd, "draw_figures", lambda *arguments: None)
    for steps, shown in ((0, []), (1, [0]), (3, [0, 1, 2]), (26, [*range(0, 26, 2), 25])):
        micrograd.main(["--points", "2", "--layers", "1", "--max-steps", str(steps)])
        assert re.findall(r"^step +(\d+) \|", capsys.readouterr().out, re.MULTILINE) == list(map(str, shown))


@pytest.mark.parametrize("place", ["make_data", "time_to_report", "draw_figures", "image", "film", "write"])
def test_interrupted(place, monkeypatch, tmp_path, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(micrograd, place, stop)
    assert micrograd.main([*DEMO, str(tmp_path), *["--animate"] * (place == "film")]) == 130
    assert capsys.readouterr().err == "micrograd: stopped\n" and not list(tmp_path.iterdir())


def test_out_of_memory(monkeypatch, capsys):
    def fill(*arguments):
        raise MemoryError

    monkeypatch.setattr(micrograd, "make_data", fill)
    assert micrograd.main([]) == 2
    assert capsys.readouterr().err == "micrograd: out of memory\n"


# ---------------------------------------------------------------------------------------------------------------------
# Output: closed, full, broken off, or in an encoding that lacks a letter


def shell(command, **options):
    """The command line in a shell, where PROGRAM stands for micrograd."""
    command = command.replace("PROGRAM", shlex.join([sys.executable, str(SCRIPT)]))
    return subprocess.run(command, shell=True, **PIPES, **options)


SHORT = "PROGRAM --max-steps 2 --points 5 --layers 2 -o figures"


@posix
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_output_is_closed(closed, tmp_path):
    """It works on; and no figure is opened under the number of standard output."""
    result = shell(f"{SHORT} {closed}", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(FIGURES)
    result = shell(f"PROGRAM --nonsense {closed}", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == (not closed.endswith("2>&-"))


@posix
def test_a_closed_stream_does_not_lend_its_number(tmp_path):
    code = "import micrograd, os, sys; micrograd.prepare_output(); sys.exit(os.open(os.devnull, os.O_RDONLY))"
    command = [sys.executable, "-c", code]
    result = shell(f"{shlex.join(command)} <&- >&- 2>&-", cwd=SCRIPT.parent)
    assert result.returncode == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", [SHORT, SHORT + " --max-steps 0", "PROGRAM --help", "PROGRAM -h --demo gpt"])
def test_output_is_full(command, tmp_path):
    result = shell(f"{command} >/dev/full", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "micrograd: [Errno 28] No space left on device\n")
    assert shell(f"{command} >/dev/full 2>/dev/full", cwd=tmp_path).returncode == 2


@posix
def test_the_reader_has_seen_enough(tmp_path):
    result = shell(f"({SHORT}; echo status $? >&2) | true", cwd=tmp_path)
    assert result.stderr == "status 0\n"


def test_redirected_output_is_utf8(tmp_path):
    """Windows' own encoding, cp1252, lacks most letters; a terminal shows '?' for what it lacks."""
    (tmp_path / "names").write_text("ł\n" * 3, encoding="utf-8")
    arguments = ["--demo", "gpt", "-i", "names", "--max-steps", "0", "--num-samples", "9", "--temperature", "9"]
    command, environment = [sys.executable, SCRIPT, *arguments], {**os.environ, "PYTHONIOENCODING": "cp1252"}
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0 and "ł" in result.stdout.decode("utf-8") and result.stderr == b""


def test_a_terminal_keeps_its_encoding(monkeypatch):
    for tty, encoding, shown in ((True, "cp1252", b"a?"), (False, "utf-8", "ał".encode())):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2)]
        for name, stream in zip(("stdout", "stderr"), streams):
            stream.isatty = lambda tty=tty: tty
            monkeypatch.setattr(sys, name, stream)
        micrograd.prepare_output()
        for stream in streams:
            print("ał", end="", file=stream, flush=True)
            assert (stream.encoding, stream.buffer.getvalue()) == (encoding, shown)
    monkeypatch.undo()


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
    "animate": None,  # it takes no value
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

    def show(history, points, targets, losses, config):
        weights = [[step, *(p.data for p in model.parameters())] for step, model in history]
        print(weights, points, targets, losses, config.work_dir)

    monkeypatch.setattr(micrograd, "draw_figures", show)

    def outcome(*argv):
        assert micrograd.main(list(map(str, argv))) == 0
        out, error = capsys.readouterr()
        return re.sub(r"[\d.]+ s(econds)?\b", "", out), error

    return outcome


def test_the_table_of_flags_is_complete():
    assert {"demo", *CHANGED} == {f.name for f in fields(micrograd.Config)}


def test_the_defaults():
    common = {"seed": 1337, "data": "moons", "points": 100, "noise": 0.1, "layers": "16,16", "activation": "relu"}
    common |= {"loss": "hinge", "l2": 1e-4, "batch_size": 0, "work_dir": "out/micrograd", "momentum": 0.0}
    common |= {"animate": False}
    common |= {"input_file": "names.txt", "num_samples": 20, "temperature": 0.5}
    for changed, depends in (
        ({}, {"demo": "network", "optimizer": "sgd", "learning_rate": 1.0, "max_steps": 100}),
        ({"optimizer": "adam"}, {"demo": "network", "optimizer": "adam", "learning_rate": 0.1, "max_steps": 100}),
        ({"demo": "gpt"}, {"demo": "gpt", "optimizer": "sgd", "learning_rate": 0.01, "max_steps": 1000}),
    ):
        assert asdict(micrograd.Config(**changed)) == common | depends


@pytest.mark.parametrize("demo", micrograd.DEMOS)
def test_every_flag_is_used_or_named(demo, outcome):
    before, silence = outcome("--demo", demo, *SMALL[demo])
    assert silence == ""
    for name, value in CHANGED.items():
        flag = "--" + name.replace("_", "-")
        after, words = outcome("--demo", demo, *SMALL[demo], flag, *[value] * (value is not None))
        assert (after == before) == bool(words), flag
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


@pytest.fixture
def figures(monkeypatch):
    """Every figure that becomes a picture, in order."""
    made, image = [], micrograd.image
    monkeypatch.setattr(micrograd, "image", lambda figure, *rest: (made.append(figure), image(figure, *rest))[1])
    return made


def test_what_the_boundary_shows():
    points, targets = [(0.0, 0.0), (1.0, 2.0), (3.0, -1.0)], [1, -1, 1]
    model = MLP(2, [1], rng=random.Random(0))
    figure = micrograd.plot_boundary(model, points, targets, [3.0, INF, 1.0], 2)
    plane, curve = figure.axes
    areas, line, dots = plane.collections
    assert list(line.levels) == [0.0] and dots.get_offsets().tolist() == [list(point) for point in points]
    assert (areas.levels[0], areas.levels[-1], len(areas.levels)) == (-3.0, 3.0, 25)
    red, blue = dots.get_facecolors()[1], dots.get_facecolors()[0]
    assert red[0] > red[2] and blue[2] > blue[0] and (dots.get_facecolors()[2] == blue).all()
    assert areas.cmap(1.0)[2] > areas.cmap(1.0)[0]  # high scores are blue, as are the points of class 1
    left, right, low, high = *plane.get_xlim(), *plane.get_ylim()
    assert left <= -0.4 and right >= 3.4 and low <= -1.4 and high >= 2.4
    for path in line.get_paths():
        assert all(abs(model(vertex.tolist()).data) < 1e-6 for vertex in path.vertices)
    (losses,) = curve.lines
    assert losses.get_ydata().tolist() == [3.0, 1e99, 1.0] and curve.get_yscale() == "log"
    assert (losses.get_marker(), losses.get_markevery(), losses.get_markerfacecolor()) == ("o", [2], micrograd.RED)
    (left, right), (low, high) = curve.get_xlim(), curve.get_ylim()
    assert left < 0 and right > 2 and low < 1.0 and high > 1e99
    right = sum((model(point).data > 0) == (target > 0) for point, target in zip(points, targets))
    assert plane.get_title() == f"step 2: {right} of 3 right" and curve.get_title() == "loss 1.0000"


def test_one_wrong_of_many_is_not_all_right():
    """Rounded to per cent, 1999 of 2000 would be 100."""

    class Sign:
        def __call__(self, point):
            return Value(point[0])

    points = [(1.0, y / 2000) for y in range(1999)] + [(-1.0, 0.0)]
    figure = micrograd.plot_boundary(Sign(), points, [1] * 2000, [1.0], 0)
    assert figure.axes[0].get_title() == "step 0: 1999 of 2000 right"


def test_a_command_longer_than_any_page_is_cut(figures, tmp_path):
    """Drawn, 100,000 letters of a path took two gigabytes."""
    assert micrograd.main([*DEMO, str(tmp_path), "--input-file", "x" * 100_000]) == 0
    assert all(3000 < len(figure.get_supxlabel()) <= 4096 for figure in figures)


@pytest.mark.parametrize("bias", [1.0, -1.0])
def test_no_boundary_in_sight_is_no_warning(bias, recwarn):
    model = MLP(2, [1])
    for p, data in zip(model.parameters(), (0.0, 0.0, bias)):
        p.data = data
    figure = micrograd.plot_boundary(model, [(0.0, 0.0), (1.0, 1.0)], [1, -1], [1.0], 0)
    assert micrograd.image(figure).startswith(b"\x89PNG") and not recwarn.list
    assert len(figure.axes[0].collections) == 2


def test_the_neuron_of_the_run_is_drawn_both_ways(figures, tmp_path):
    assert micrograd.main([*DEMO, str(tmp_path)]) == 0
    _, single, fused = figures
    titles = [figure.get_suptitle() for figure in (single, fused)]
    assert re.fullmatch(r"neuron [1-3] at \(-?\d\.\d\d, -?\d\.\d\d\), in single operations", titles[0])
    assert titles[1] == titles[0].replace("in single operations", "fused")
    one, other = drawn(single)[0], drawn(fused)[0]
    assert len(one) == 10 + 5 - 2 and len(other) == 7 + 2 and "dot" in other and "dot" not in one
    assert {words for words in other if words != "dot"} < set(one)
    labels = ["x1", "w1", "x2", "w2", "x1w1", "x2w2", "(x1w1+x2w2)", "b", "n", "o"]
    assert [name for name in names(one) if name in labels] == labels


@pytest.mark.parametrize("folder", ["figures", "$x$ ł \u56f3", "long " * 60])
def test_the_command_stands_below_the_figures(folder, figures, tmp_path, monkeypatch, recwarn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    monkeypatch.chdir(tmp_path)
    assert micrograd.main([*DEMO, folder, "--layers", ""]) == 0
    for figure in figures:
        (note,) = (text for text in figure.texts if text.get_color() == "0.5")
        words = note.get_text().encode("ascii").decode("unicode_escape")
        assert shlex.split(words) == ["python", "micrograd.py", *DEMO, folder, "--layers", ""]
        extent = note.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        assert extent.y1 <= 0 < extent.x0 and extent.x1 < figure.bbox.x1 and extent.y0 < 0  # and so crosses nothing
    assert len(figures) == 3 and not recwarn.list


def test_a_drawing_has_no_command(tmp_path, figures):
    micrograd.image(micrograd.plot_graph(neuron_graph()))
    assert [text.get_text() for text in figures[0].texts] == ["", ""]


# ---------------------------------------------------------------------------------------------------------------------
# Films


def frames(path):
    """The pictures of a GIF as (width, height, milliseconds)."""
    from PIL import Image

    with Image.open(path) as film:
        assert film.format == "GIF" and film.info["loop"] == 0
        shown = []
        for i in range(film.n_frames):
            film.seek(i)
            shown.append((*film.size, film.info["duration"]))
    return shown


def test_animate(figures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    assert micrograd.main([*DEMO, "out", "--max-steps", "3", "--animate"]) == 0
    assert time.process_time() - start < 20
    out, error = capsys.readouterr()
    assert error == "" and out.splitlines()[-1].split() == ["figures:", *(str(Path("out", f)) for f in FIGURES + FILMS)]
    assert sorted(os.listdir("out")) == sorted(FIGURES + FILMS)
    assert all(10_000 < Path("out", film).stat().st_size < 2_000_000 for film in FILMS)
    boundary, backward = (frames(Path("out", film)) for film in FILMS)
    assert [ms for _, _, ms in boundary] == [100] * 3 + [4000]
    assert [ms for _, _, ms in backward] == [1500] * 6 + [4000]
    assert 600 < boundary[0][0] < 660 and 600 < backward[0][0] < 760
    titles = [figure.axes[0].get_title() for figure in figures[3:7]]
    assert [title.split(":")[0] for title in titles] == [f"step {i}" for i in range(4)]
    assert figures[6] is figures[0]  # boundary.png is the last picture of boundary.gif
    assert len({figure.axes[1].get_ylim() for figure in figures[3:7]}) == 1  # the axes stand still


def test_the_longest_film_is_below_two_megabytes():
    """Four of its 41 frames, which have less in common than those of a run: other weights in each."""
    rng = random.Random(1337)
    points, targets = make_data("moons", 100, 0.1, rng)
    shown = [micrograd.plot_boundary(MLP(2, [16, 16, 1], rng=rng), points, targets, [1.0] * 101, i) for i in range(4)]
    assert len(micrograd.film(shown, "python micrograd.py --animate", 100)) < 4 / 41 * 2_000_000


def test_the_film_of_backward():
    """Each frame lights one operation and its operands; the gradients come one by one and end as the lecture's."""
    y = lectures_neuron()
    shown = list(micrograd.plot_backward(y))
    lights, known = [], []
    for figure in shown:
        lit = [box for box in figure.axes[0].patches if hasattr(box, "get_boxstyle")]
        lit = [t.get_text().split("\n")[0] for t, box in zip(figure.axes[0].texts, lit) if is_lit(box)]
        lights.append(sorted(lit))
        known.append({t.split("\n")[0]: t.split("grad ")[1] for t in drawn(figure)[0] if "grad " in t})
    assert lights == [
        ["o"], ["n", "tanh"], ["(x1w1+x2w2)", "+", "b"], ["+", "x1w1", "x2w2"],
        ["w1", "x1", "×"], ["w2", "x2", "×"], [],
    ]  # fmt: skip
    assert [sum(grad != "0.0000" for grad in grads.values()) for grads in known] == [1, 2, 4, 6, 8, 9, 9]
    assert known[-1] == dict(zip(
        ["x1", "w1", "x2", "w2", "b", "x1w1", "x2w2", "(x1w1+x2w2)", "n", "o"],
        ["-1.5000", "1.0000", "0.5000", "0.0000", *["0.5000"] * 5, "1.0000"],
    ))  # fmt: skip
    again = lectures_neuron()
    again.backward()
    assert [v.grad for v in ordered(y)] == [v.grad for v in ordered(again)]  # bit for bit what backward() gives
    titles = [figure.get_suptitle() for figure in shown]
    assert titles[1] == "tanh: local derivative · gradient of its result\n  ∂o/∂n = 0.5 · 1 = 0.5  "
    assert titles[4].endswith("  ∂o/∂x1 = -3 · 0.5 = -1.5    ∂o/∂w1 = 2 · 0.5 = 1  ")
    sizes = {micrograd.image(figure)[16:24] for figure in shown}  # where a PNG says how large it is
    assert len(sizes) == 1


def is_lit(patch):
    from matplotlib.colors import to_rgba

    return patch.get_facecolor() == to_rgba(micrograd.LIT)


@pytest.mark.parametrize(("steps", "count"), [(0, 1), (1, 2), (40, 41), (41, 22), (100, 35), (119, 41)])
def test_about_forty_frames(steps, count, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(micrograd, "draw_figures", lambda history, *rest: seen.extend(history))
    micrograd.main(["--points", "2", "--layers", "1", "--max-steps", str(steps), "--animate"])
    assert len(seen) == count and [step for step, _ in seen][-1] == steps
    assert [step for step, _ in seen] == sorted({step for step, _ in seen})
    weights = [tuple(p.data for p in model.parameters()) for _, model in seen]
    assert steps == 0 or weights[0] != weights[-1]  # each is a copy, of its own step
    seen.clear()
    micrograd.main(["--points", "2", "--layers", "1", "--max-steps", str(steps)])
    assert len(seen) == 1  # without --animate, nothing is copied


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_film(failing, tmp_path, monkeypatch, capsys):
    write, replace = Path.write_bytes, os.replace

    def full(path, content):
        if Path(path).name.startswith(".boundary.gif"):
            if failing == "write_bytes":
                write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return (write if failing == "write_bytes" else replace)(path, content)

    monkeypatch.setattr(micrograd, "film", lambda *arguments: b"a film")
    for film in FILMS:
        (tmp_path / film).write_text("old")
    monkeypatch.setattr(*((Path, "write_bytes") if failing == "write_bytes" else (os, "replace")), full)
    assert micrograd.main([*DEMO, str(tmp_path), "--animate"]) == 0
    out, error = capsys.readouterr()
    assert error == "micrograd: cannot write the figures: [Errno 28] No space left on device\n"
    assert "figures:" not in out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FIGURES + FILMS)
    assert all((tmp_path / film).read_text() == "old" for film in FILMS)


@pytest.mark.parametrize("missing", ["matplotlib.figure", "PIL"])
def test_films_without_matplotlib(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert micrograd.main([*DEMO, str(tmp_path / "films"), "--animate"]) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == "no figures: they need matplotlib (pip install matplotlib)" and error == ""
    assert not list(tmp_path.iterdir())


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
