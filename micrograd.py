"""micrograd: a scalar autograd engine, a small neural-network library on top of it, and pictures of both.

    python micrograd.py                                      # learn to tell two moons apart; writes three figures
    python micrograd.py --data spiral --noise 0.02 --optimizer adam -l 0.02 --max-steps 300
    python micrograd.py --demo gpt -i names.txt              # a GPT made of scalars learns names and invents new ones

In a program or a notebook:

    from micrograd import MLP, Value
    a, b = Value(2.0, "a"), Value(-3.0, "b")
    y = (a * b + 7).tanh()
    y.backward()                                             # a.grad is dy/da; a notebook shows y as its graph

Sections: numbers · Value · operations on many values · neurons, layers, networks · losses · optimisers ·
gradient check · drawing · toy data · the network demo · a GPT made of scalars · command line.
Standard library only; matplotlib is imported where a figure is drawn.
"""

# ruff: noqa: B905 (zip without strict: lengths are checked once, not at every edge)
from __future__ import annotations

import argparse
import io
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise, repeat
from operator import mul
from pathlib import Path

# `from micrograd.engine import Value` and `from micrograd.nn import MLP` stand in thousands of scripts. Both modules
# are this file: the import system looks into sys.modules before it asks whether micrograd is a package.
engine = nn = sys.modules[__name__]
sys.modules |= {f"{__name__}.engine": engine, f"{__name__}.nn": nn}

# ---------------------------------------------------------------------------------------------------------------------
# Numbers: where Python's floats stop with an exception, IEEE 754 and torch go on with inf or nan. So do we.


def number(x) -> float:
    """The float behind an int, a float, a NumPy scalar or a Value. Text, None and complex numbers are refused."""
    if type(x) is float:
        return x
    try:
        return float(x.__float__())  # float(x) would read text
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise TypeError(f"{x!r} is not a number: a Value takes an int, a float or a NumPy scalar") from None


def _divide(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.copysign(math.inf, a) * math.copysign(1.0, b) if abs(a) > 0.0 else math.nan


def _power(a: float, b: float) -> float:
    try:
        y = a**b
    except (ZeroDivisionError, OverflowError):
        if a >= 0.0 or b % 1.0 == 0.0:
            return math.copysign(math.inf, a) if b % 2.0 == 1.0 else math.inf  # odd powers keep the sign, also of -0.0
        y = 0j
    if isinstance(y, complex):
        raise ValueError(f"({a:g}) ** {b:g} is not a real number: a negative base needs a whole exponent")
    return y


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > 0.0 else 1.0 - 1.0 / (1.0 + math.exp(x))


def _share(a: float, b: float) -> float:
    """What a receives of the gradient of max(a, b)."""
    return 0.0 if a < b else 0.5 if a == b else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Value: a number that remembers how it was made


class Value:
    """A number `data`, the derivative `grad` of some result with respect to it, and a `label` for pictures.

    A result also keeps its operands `_prev`, the name `_op` of the operation, and in `_local` its derivative with
    respect to each operand, known as soon as the operation is done. Numbers are not wrapped: of `2 * a`, only `a` is
    an operand.
    """

    __slots__ = ("_local", "_op", "_prev", "data", "grad", "label")

    def __init__(self, data: float, label: str = ""):
        self.data = number(data)
        self.grad = 0.0
        self.label = label
        self._prev = self._local = ()
        self._op = ""

    # An operation is a result, its operands, the local derivatives and a name. There is nothing else to it.

    def __add__(self, other):
        if isinstance(other, Value):
            return node(self.data + other.data, (self, other), (1.0, 1.0), "+")
        return node(self.data + number(other), (self,), (1.0,), "+")

    def __sub__(self, other):
        if isinstance(other, Value):
            return node(self.data - other.data, (self, other), (1.0, -1.0), "-")
        return node(self.data - number(other), (self,), (1.0,), "-")

    def __mul__(self, other):
        if isinstance(other, Value):
            return node(self.data * other.data, (self, other), (other.data, self.data), "*")
        other = number(other)
        return node(self.data * other, (self,), (other,), "*")

    def __truediv__(self, other):
        b = number(other)
        y, slope = _divide(self.data, b), _divide(1.0, b)
        if isinstance(other, Value):
            return node(y, (self, other), (slope, -_divide(y, b)), "/")
        return node(y, (self,), (slope,), "/")

    def __pow__(self, other):
        a, b = self.data, number(other)
        y, slope = _power(a, b), b * _power(a, b - 1.0) if b else 0.0
        if isinstance(other, Value):
            return node(y, (self, other), (slope, 0.0 if a == 0.0 <= b else y * _log(a)), "**")
        return node(y, (self,), (slope,), f"**{other}")

    def __rsub__(self, other):  # other - self
        other = number(other)
        return node(other - self.data, (self,), (-1.0,), f"{other:g}-")

    def __rtruediv__(self, other):  # other / self
        other = number(other)
        y = _divide(other, self.data)
        return node(y, (self,), (-_divide(y, self.data),), f"{other:g}/")

    def __rpow__(self, other):  # other ** self
        return Value(other) ** self

    __radd__, __rmul__ = __add__, __mul__  # other + self, other * self

    def __neg__(self):
        return node(-self.data, (self,), (-1.0,), "neg")

    def __pos__(self):
        return self

    def __abs__(self):
        return node(abs(self.data), (self,), (float((self.data > 0.0) - (self.data < 0.0)),), "abs")

    def exp(self):
        y = _exp(self.data)
        return node(y, (self,), (y,), "exp")

    def log(self):
        if self.data < 0.0:
            raise ValueError(f"log({self.data:g}) is not a real number: log takes 0 and what is above")
        return node(_log(self.data), (self,), (_divide(1.0, self.data),), "log")

    def sqrt(self):
        if self.data < 0.0:
            raise ValueError(f"sqrt({self.data:g}) is not a real number: sqrt takes 0 and what is above")
        y = math.sqrt(self.data)
        return node(y, (self,), (_divide(0.5, y),), "sqrt")

    def sin(self):
        x = self.data if math.isfinite(self.data) else math.nan
        return node(math.sin(x), (self,), (math.cos(x),), "sin")

    def cos(self):
        x = self.data if math.isfinite(self.data) else math.nan
        return node(math.cos(x), (self,), (-math.sin(x),), "cos")

    def tanh(self):
        y = math.tanh(self.data)
        return node(y, (self,), (1.0 - y * y,), "tanh")

    def sigmoid(self):
        y = _sigmoid(self.data)
        return node(y, (self,), (y * (1.0 - y),), "sigmoid")

    def relu(self):
        if self.data <= 0.0:
            return node(0.0, (self,), (0.0,), "relu")
        return node(self.data, (self,), (1.0,), "relu")

    def max(self, other):
        """The larger of the two also receives the gradient; in a tie each receives half, as in torch.maximum."""
        other = as_value(other)
        a, b = self.data, other.data
        return node(a if a > b or a != a else b, (self, other), (_share(a, b), _share(b, a)), "max")

    def min(self, other):
        other = as_value(other)
        a, b = self.data, other.data
        return node(a if a < b or a != a else b, (self, other), (_share(b, a), _share(a, b)), "min")

    # Comparison and conversion look at the number, so sorted(values) and float(v) work. Equality and hash stay those
    # of the object: two Values that happen to be 0.5 are still two places in a graph.

    def __lt__(self, other):
        return self.data < number(other)

    def __le__(self, other):
        return self.data <= number(other)

    def __gt__(self, other):
        return self.data > number(other)

    def __ge__(self, other):
        return self.data >= number(other)

    def __float__(self):
        return float(self.data)

    def __int__(self):
        return int(self.data)

    def __bool__(self):
        return bool(self.data)

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __getstate__(self):
        """What copy and pickle keep: the number, its gradient, its label. The history stays behind."""
        kept = {"data": self.data, "grad": self.grad, "label": self.label}
        return None, kept | {"_prev": (), "_local": (), "_op": ""}

    def _repr_svg_(self):
        """What a notebook shows: the graph, while a graph of this size can be read."""
        return render(self, "svg").decode() if len(trace(self)[0]) <= READABLE else None

    def backward(self) -> None:
        """Set the `grad` of everything this Value was made from to the derivative of this Value with respect to it.

        Leaves (parameters, inputs) add it to the `grad` they have, so clear that with `zero_grad` between steps; all
        others start from zero. So does torch.
        """
        order = topological(self)
        for v in order:
            v.grad = 0.0
        self.grad += 1.0
        for v in order:
            grad, local = v.grad, v._local
            if not grad and math.isfinite(sum(local)):
                continue  # zero times anything is zero; anything but inf and nan, that is
            i = 0
            for operand in v._prev:
                operand.grad += local[i] * grad  # the chain rule
                i += 1  # noqa: SIM113 (enumerate, like zip, costs more than a short loop itself)


def topological(root: Value) -> list[Value]:
    """All results that `root` was made from, itself included, each before its operands; leaves are left out.

    Why this order? A Value that was used twice gets gradient from both uses, and may pass it on only when it has all
    of it. So everything made from a Value has to have its turn before that Value has.
    """
    order, seen = [], set()
    stack = [root] if root._prev else []  # our own: graphs are deeper than Python's recursion allows
    push, pop = stack.append, stack.pop
    while stack:
        v = pop()
        if v is None:  # the operands of the Value below are all done
            order.append(pop())
        elif v not in seen:
            seen.add(v)
            push(v)
            push(None)
            for operand in v._prev:
                if operand._prev and operand not in seen:
                    push(operand)
    order.reverse()
    return order


def node(data: float, prev: tuple, local: tuple, op: str, new=object.__new__) -> Value:
    """The result of an operation; its operands have been checked when they were made, so it needs no checks."""
    v = new(Value)
    v.data = data
    v.grad = 0.0
    v.label = ""
    v._prev = prev
    v._local = local
    v._op = op
    return v


def as_value(x) -> Value:
    return x if isinstance(x, Value) else Value(x)


# ---------------------------------------------------------------------------------------------------------------------
# Operations on many values: a sum of a thousand terms is one node with a thousand operands instead of a thousand
# nodes, and `backward` need not know. This, and nothing cleverer, is where the speed comes from.


def split(values: Iterable) -> tuple[list[float], tuple]:
    """-> (numbers, nodes). Among Values, a number becomes a leaf; numbers alone have no nodes at all."""
    try:
        values = (values,) if isinstance(values, Value) else tuple(values)
    except TypeError:
        raise TypeError(f"{values!r} is not a list: give a list of Values or numbers") from None
    kinds = set(map(type, values))
    if Value not in kinds:
        return [number(v) for v in values], ()
    if len(kinds) > 1:
        values = tuple(map(as_value, values))
    return [v.data for v in values], values


def affine(x: Iterable, rows: Iterable[Sequence[Value]], biases: Iterable[Value] | None = None) -> list[Value]:
    """For each row of weights w the node Σ wᵢ·xᵢ, plus its bias if there are biases. The xᵢ are Values or numbers.

    The rows share what they have in common: x is looked at once, and as numbers it is nobody's operand.
    """
    x, nodes = split(x)
    toward_w, out = (*x,) if biases is None else (1.0, *x), []
    for row, bias in zip(rows, biases or repeat(None)):
        w = [v.data for v in row]
        if len(w) != len(x):
            raise ValueError(f"{len(w)} weights met {len(x)} inputs: give exactly {len(w)}")
        local = (*toward_w, *w) if nodes else toward_w
        if bias is None:
            out.append(node(sum(map(mul, w, x)), (*row, *nodes), local, "dot"))
        else:
            out.append(node(sum(map(mul, w, x), bias.data), (bias, *row, *nodes), local, "dot"))
    return out


def dot(ws: Iterable, xs: Iterable, bias=None) -> Value:
    """Σ wᵢ·xᵢ + bias as one node; Values and numbers may be mixed at will."""
    ws, xs = tuple(ws), tuple(xs)
    if not any(isinstance(w, Value) for w in ws):
        ws, xs = xs, ws
    return affine(xs, [[as_value(w) for w in ws]], None if bias is None else [as_value(bias)])[0]


def total(values: Iterable) -> Value:
    """The sum as one node. Python's own sum() works too, with a node for each term."""
    numbers, nodes = split(values)
    return node(float(sum(numbers)), nodes, (1.0,) * len(nodes), "sum")


def mean(values: Iterable) -> Value:
    numbers, nodes = split(values)
    if not numbers:
        raise ValueError("mean of no values: give at least one")
    return node(sum(numbers) / len(numbers), nodes, (1.0 / len(numbers),) * len(nodes), "mean")


def softmax(logits: Iterable, temperature: float = 1.0) -> list[Value]:
    """pᵢ = exp(lᵢ / temperature) / Σ, one node each; ∂pᵢ/∂lⱼ is pᵢ·(1 − pⱼ) where i = j, else −pᵢ·pⱼ, / temperature."""
    numbers, nodes = split(logits)
    p = probabilities(numbers, temperature)
    return [
        node(pi, nodes, tuple(pi * ((i == j) - pj) / temperature for j, pj in enumerate(p)), "softmax")
        for i, pi in enumerate(p)
    ]


def probabilities(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """softmax of plain numbers. Subtracting the largest changes nothing, except that exp cannot overflow."""
    if not logits:
        raise ValueError("softmax of no logits: give at least one")
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    scale = 1.0 / sum(weights)
    return [w * scale for w in weights]


# ---------------------------------------------------------------------------------------------------------------------
# Neurons, layers, networks

ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "relu": Value.relu,
    "tanh": Value.tanh,
    "sigmoid": Value.sigmoid,
    "linear": Value.__pos__,
}


class Module:
    """Something with parameters: all Values in its attributes, also inside lists and other Modules."""

    def parameters(self) -> list[Value]:
        return values_in(list(vars(self).values()))

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = 0.0


def values_in(x) -> list[Value]:
    if isinstance(x, Value):
        return [x]
    if isinstance(x, Module):
        return x.parameters()
    return [v for item in x for v in values_in(item)] if isinstance(x, (list, tuple)) else []


class Neuron(Module):
    """activation(Σ wᵢ·xᵢ + b), or without the activation if not `nonlin`. `rng` draws w from −1 to 1; b starts at 0."""

    def __init__(self, nin: int, nonlin: bool = True, activation: str = "relu", rng=random):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.w = [Value(rng.uniform(-1, 1)) for _ in range(at_least_one(nin, "inputs"))]
        self.b = Value(0.0)
        self.activation = activation if nonlin else "linear"

    def __call__(self, x: Iterable) -> Value:
        return ACTIVATIONS[self.activation](affine(x, [self.w], [self.b])[0])

    def __repr__(self):
        return f"{self.activation.capitalize().replace('Relu', 'ReLU')}Neuron({len(self.w)})"


class Layer(Module):
    """`nout` neurons that look at the same inputs. A layer of one answers with a Value instead of a list."""

    def __init__(self, nin: int, nout: int, **neuron):
        self.neurons = [Neuron(nin, **neuron) for _ in range(at_least_one(nout, "neurons"))]

    def __call__(self, x: Iterable) -> Value | list[Value]:
        sums = affine(x, [n.w for n in self.neurons], [n.b for n in self.neurons])
        out = [ACTIVATIONS[n.activation](v) for n, v in zip(self.neurons, sums)]
        return out[0] if len(out) == 1 else out

    def __repr__(self):
        return f"Layer of [{', '.join(map(str, self.neurons))}]"


class MLP(Module):
    """Layers one after the other, the last one linear. MLP(2, [16, 16, 1]) takes two numbers and gives one Value."""

    def __init__(self, nin: int, nouts: Sequence[int], **neuron):
        if not nouts:
            raise ValueError(f"MLP({nin}, {nouts}) has no layers: give the width of each, like [16, 16, 1]")
        *hidden, last = pairwise([nin, *nouts])
        self.layers = [Layer(a, b, **neuron) for a, b in hidden] + [Layer(*last, **neuron | {"nonlin": False})]

    def __call__(self, x: Iterable) -> Value | list[Value]:
        for layer in self.layers:
            x = layer(x)
        return x

    def __repr__(self):
        return f"MLP of [{', '.join(map(str, self.layers))}]"


def at_least_one(n: int, what: str) -> int:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{n!r} {what}: the number of {what} must be a whole number from 1 up")
    return n


# ---------------------------------------------------------------------------------------------------------------------
# Losses. Each is one node; the first three take all scores and targets at once and are the mean.


def squared_error(scores: Iterable, targets: Iterable) -> Value:
    pairs, nodes = examples(scores, targets)
    errors = [score - target for score, target in pairs]
    n = len(errors)
    return node(sum(e * e for e in errors) / n, nodes, tuple(2.0 * e / n for e in errors), "squared error")


def hinge(scores: Iterable, targets: Iterable) -> Value:
    """max(0, 1 − t·s), the max-margin loss of a support vector machine; the targets t are −1 and 1."""
    pairs, nodes = examples(scores, targets)
    margins = [1.0 - t * s for s, t in pairs]
    n = len(margins)
    local = tuple(0.0 if margin <= 0.0 else -t / n for margin, (_, t) in zip(margins, pairs))
    return node(sum(margin for margin in margins if not margin <= 0.0) / n, nodes, local, "hinge")


def logistic(scores: Iterable, targets: Iterable) -> Value:
    """−log sigmoid(t·s), the cross-entropy of two classes; the targets t are −1 and 1."""
    pairs, nodes = examples(scores, targets)
    n = len(pairs)
    loss = sum(math.log1p(math.exp(-abs(s))) + max(-t * s, 0.0) for s, t in pairs) / n
    return node(loss, nodes, tuple(-t * _sigmoid(-t * s) / n for s, t in pairs), "logistic")


def cross_entropy(logits: Iterable, target: int) -> Value:
    """−log softmax(logits)[target], the negative log-likelihood; the derivatives are softmax − one-hot."""
    numbers, nodes = split(logits)
    if target not in range(len(numbers)):
        raise ValueError(f"target {target!r} is not one of {len(numbers)} classes: give 0 to {len(numbers) - 1}")
    top, p = max(numbers), probabilities(numbers)
    loss = top + math.log(sum(math.exp(x - top) for x in numbers)) - numbers[target]
    return node(loss, nodes, tuple(pi - (i == target) for i, pi in enumerate(p)), "cross-entropy")


def l2(parameters: Iterable[Value], strength: float = 1e-4) -> Value:
    """strength · Σ p²: added to a loss, it keeps the weights small."""
    numbers, nodes = split(parameters)
    return node(strength * sum(map(mul, numbers, numbers)), nodes, tuple(2.0 * strength * p for p in numbers), "L2")


def examples(scores: Iterable, targets: Iterable) -> tuple[list[tuple[float, float]], tuple]:
    (numbers, nodes), targets = split(scores), list(map(number, targets))
    if len(numbers) != len(targets) or not targets:
        raise ValueError(f"{len(numbers)} scores met {len(targets)} targets: give one target for each score")
    return list(zip(numbers, targets)), nodes


LOSSES = {"hinge": hinge, "logistic": logistic, "squared": squared_error}

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers: from gradients to a step


class SGD:
    def __init__(self, parameters: Iterable[Value], lr: float = 0.1, momentum: float = 0.0):
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.velocity = [0.0] * len(self.parameters)

    def step(self) -> None:
        self.velocity = [self.momentum * v + p.grad for v, p in zip(self.velocity, self.parameters)]
        for p, v in zip(self.parameters, self.velocity):
            p.data -= self.lr * v


class Adam:
    """Steps of about `lr` whatever the size of the gradient: its mean over its root mean square. arXiv:1412.6980"""

    def __init__(self, parameters: Iterable[Value], lr: float = 0.01, betas=(0.9, 0.999), eps: float = 1e-8):
        self.parameters, self.lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.mean = self.square = [0.0] * len(self.parameters)
        self.steps = 0

    def step(self) -> None:
        (b1, b2), grads = self.betas, [p.grad for p in self.parameters]
        self.steps += 1
        self.mean = [b1 * m + (1 - b1) * g for m, g in zip(self.mean, grads)]
        self.square = [b2 * s + (1 - b2) * g * g for s, g in zip(self.square, grads)]
        lr, root = self.lr / (1 - b1**self.steps), math.sqrt(1 - b2**self.steps)  # both averages started from 0
        for p, m, s in zip(self.parameters, self.mean, self.square):
            p.data -= lr * m / (math.sqrt(s) / root + self.eps)


OPTIMIZERS = {"sgd": SGD, "adam": Adam}

# ---------------------------------------------------------------------------------------------------------------------
# Gradient check: a derivative is a slope, and a slope can be measured by a small step to either side


def gradcheck(f: Callable[..., Value], *inputs: float, eps: float = 1e-6, show=print) -> float:
    """Compare `backward` with (f(x + h) − f(x − h)) / 2h: show a table, return the largest relative difference."""
    leaves = [Value(x) for x in inputs]
    f(*leaves).backward()
    worst, rows = 0.0, [f"{'input':>12} {'backward':>14} {'measured':>14} {'difference':>11}"]
    for leaf in leaves:
        h = eps * max(1.0, abs(leaf.data))
        low, high = (f(*(Value(x.data + step * (x is leaf)) for x in leaves)).data for step in (-h, h))
        slope = (high - low) / (2.0 * h)
        worst = max(worst, abs(slope - leaf.grad) / max(1.0, abs(slope)))
        rows.append(f"{leaf.data:12.6g} {leaf.grad:14.8g} {slope:14.8g} {abs(slope - leaf.grad):11.1e}")
    show("\n".join(rows))
    return worst


# ---------------------------------------------------------------------------------------------------------------------
# Drawing, from left to right: round boxes are leaves, square boxes results, ellipses operations

READABLE = 400  # nodes; a larger picture is wallpaper
LEAF, RESULT, OPERATION, EDGE = "#dcebfa", "#fff3d6", "#e6e0f2", "#777777"


def trace(root: Value) -> tuple[list[Value], list[tuple[Value, Value]]]:
    """-> (nodes, edges) of the graph, operands before their results."""
    order = [*reversed(topological(root)), root]
    nodes = list(dict.fromkeys(v for result in order for v in (*result._prev, result)))
    return nodes, [(operand, v) for v in nodes for operand in dict.fromkeys(v._prev)]


def caption(v: Value) -> str:
    return f"{v.label}\n" * bool(v.label) + f"data {v.data:.4f}\ngrad {v.grad:.4f}"


def operation(v: Value) -> str:
    """`a * 2` has the single operand a, so the picture finds the 2 in the numbers and says `* 2`."""
    if len(v._prev) > 1 or v._op not in ("+", "-", "*", "/"):
        return v._op
    x, slope = v._prev[0].data, v._local[0]
    constant = {"+": v.data - x, "-": x - v.data, "*": slope, "/": _divide(1.0, slope)}[v._op]
    return f"{v._op} {constant:.4g}"


def to_dot(root: Value) -> str:
    """The graph in graphviz's language."""
    nodes, edges = trace(root)
    name = {v: f"v{i}" for i, v in enumerate(nodes)}
    text = [
        "digraph {",
        '  rankdir=LR; nodesep=0.15; ranksep=0.3; node [fontname="Helvetica", fontsize=11, height=0.3, style=filled];',
        f'  edge [color="{EDGE}", arrowsize=0.6];',
    ]
    for v in nodes:
        words = caption(v).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        look = f'"filled", fillcolor="{RESULT}"' if v._prev else f'"filled,rounded", fillcolor="{LEAF}"'
        text.append(f'  {name[v]} [label="{words}", shape=box, style={look}];')
        if v._prev:
            text.append(f'  {name[v]}op [label="{operation(v)}", fillcolor="{OPERATION}"];  {name[v]}op -> {name[v]};')
    return "\n".join([*text, *(f"  {name[a]} -> {name[b]}op;" for a, b in edges), "}"])


def draw(root: Value, path: str | Path) -> None:
    """Write the graph of `root` to an .svg or .png file: by graphviz's `dot` if it is installed, else by matplotlib."""
    path, size = Path(path), len(trace(root)[0])
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"cannot draw to {str(path)!r}: the name has to end in .svg or .png")
    if size > READABLE:
        raise ValueError(f"nobody can read a graph of {size} nodes: draw a part of it, up to {READABLE}")
    path.write_bytes(render(root, path.suffix[1:]))


def render(root: Value, format: str) -> bytes:
    if shutil.which("dot"):
        command = ["dot", f"-T{format}", *["-Gdpi=110"] * (format == "png")]
        return subprocess.run(command, input=to_dot(root).encode(), stdout=subprocess.PIPE, check=True).stdout
    out = io.BytesIO()
    plot_graph(root).savefig(out, format=format, dpi=110)
    return out.getvalue()


def plot_graph(root: Value):
    """-> the same picture as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse, FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    # Columns: a result stands right of all its operands, a leaf just left of its first use.
    nodes, edges = trace(root)
    column = {}
    for v in nodes:
        column[v] = 1 + max((column[operand] for operand in v._prev), default=-1)
    for a, b in reversed(edges):
        if not a._prev:
            column[a] = min(column[b] - 1, column[a] or column[b])

    # Rows: from left to right and back, everybody moves toward the mean row of the neighbours just placed. An edge that
    # passes a column takes a seat there, (operand, result, column), so that it does not run behind a box.
    routes = [[a, *((a, b, c) for c in range(column[a] + 1, column[b])), b] for a, b in edges]
    column |= {seat: seat[2] for route in routes for seat in route[1:-1]}
    columns = [[s for s in column if column[s] == c] for c in range(max(column.values()) + 1)]
    before, after = ({s: [] for s in column} for _ in range(2))
    for a, b in (pair for route in routes for pair in pairwise(route)):
        before[b].append(a)
        after[a].append(b)
    row = dict.fromkeys(column, 0.0)
    for placed in (before, after) * 6:
        for seats in columns if placed is before else columns[::-1]:
            seats.sort(key=lambda s: sum(row[n] for n in placed[s] or [s]) / len(placed[s] or [s]))
            row |= {s: i - (len(seats) - 1) / 2 for i, s in enumerate(seats)}

    dx, dy, w, h = 2.5, 0.75, 1.2, 0.6  # inches: between columns, between rows, of a box
    wide, tall = dx * len(columns) - 0.9, dy * max(map(len, columns)) + 0.2
    figure = Figure(figsize=(wide, tall))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.8, wide - 0.8), ylim=(-tall / 2, tall / 2))
    axes.set_axis_off()

    def line(x0, y0, x1, y1):
        middle = (x0 + x1) / 2
        path = Curve([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [1, 4, 4, 4])
        axes.add_patch(PathPatch(path, fill=False, edgecolor=EDGE, zorder=0))

    for a, b in (pair for route in routes for pair in pairwise(route)):
        x, y = column[b] * dx, row[b] * dy
        line(column[a] * dx + w / 2, row[a] * dy, x - 1.3, y)
        line(x - 1.3, y, x + w / 2, y)
    for v in nodes:
        x, y = column[v] * dx, row[v] * dy
        style, color = ("square,pad=0", RESULT) if v._prev else ("round,pad=0,rounding_size=0.12", LEAF)
        axes.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style, facecolor=color))
        axes.text(x, y, caption(v), ha="center", va="center", fontsize=8)
        if v._prev:
            axes.add_patch(Ellipse((x - 1.0, y), 0.66, 0.36, facecolor=OPERATION, edgecolor="black"))
            axes.text(x - 1.0, y, operation(v), ha="center", va="center", fontsize=8)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Toy data: points of the plane in two classes, −1 and 1

SHAPES: dict[str, Callable] = {  # the place of a point: t runs from 0 to 1 along its class, s is −1 or 1
    "moons": lambda t, s, rng: (0.5 + s * (0.5 - math.cos(math.pi * t)), 0.25 + s * (0.25 - math.sin(math.pi * t))),
    "circles": lambda t, s, rng: ((3 - s) / 4 * math.cos(2 * math.pi * t), (3 - s) / 4 * math.sin(2 * math.pi * t)),
    "spiral": lambda t, s, rng: (s * t * math.cos(3 * math.pi * t), s * t * math.sin(3 * math.pi * t)),
    "xor": lambda t, s, rng: (x := rng.uniform(-1, 1), math.copysign(rng.uniform(0, 1), -s * x)),
}


def make_data(shape: str, n: int, noise: float, rng=random) -> tuple[list[tuple[float, float]], list[int]]:
    """-> (points, targets): n of them in random order, with Gaussian noise on both coordinates."""
    points, targets = [], [1 if i % 2 else -1 for i in range(n)]
    rng.shuffle(targets)
    for i, target in enumerate(targets):
        x, y = SHAPES[shape]((i + 0.5) / n, target, rng)
        points.append((x + rng.gauss(0, noise), y + rng.gauss(0, noise)))
    return points, targets


# ---------------------------------------------------------------------------------------------------------------------
# The network demo: two moons, 337 parameters, a hundred steps


def network_demo(config: Config) -> None:
    start, rng = time.perf_counter(), random.Random(config.seed)
    points, targets = make_data(config.data, config.points, config.noise, rng)
    model = MLP(2, [*config.widths(), 1], activation=config.activation, rng=rng)
    print(f"{len(points)} points in the shape of {config.data}, a network of {len(model.parameters())} parameters")

    losses = train(model, points, targets, config, rng)
    scores = [model(point) for point in points]
    loss = LOSSES[config.loss](scores, targets) + l2(model.parameters(), config.l2)
    seconds = time.perf_counter() - start
    print(f"loss {loss.data:.4f}, accuracy {accuracy(scores, targets):.1%}, {seconds:.1f} seconds")

    folder = Path(config.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        draw_neuron(model.layers[0], points, folder / "neuron.png")
        draw_training(model, points, targets, [*losses, loss.data], folder)
        print("figures:", *(folder / name for name in ("boundary.png", "loss.png", "neuron.png")))
    except ImportError:
        print("no figures: they need matplotlib (pip install matplotlib)")


def train(model: Module, points: Sequence, targets: Sequence, config: Config, rng=random) -> list[float]:
    """Fit the model, reporting as it goes; -> the loss before each step."""
    parameters, losses = model.parameters(), []
    momentum = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = OPTIMIZERS[config.optimizer](parameters, **momentum)
    for step in range(config.max_steps):
        optimizer.lr = config.learning_rate * (1.0 - 0.9 * step / config.max_steps)
        batch = rng.sample(range(len(points)), config.batch_size) if config.batch_size else range(len(points))
        answers = [targets[i] for i in batch]

        scores = [model(points[i]) for i in batch]
        loss = LOSSES[config.loss](scores, answers) + l2(parameters, config.l2)
        model.zero_grad()
        loss.backward()
        optimizer.step()

        losses.append(loss.data)
        if not math.isfinite(loss.data):
            raise ValueError(f"the loss is {loss.data} in step {step}: try a smaller --learning-rate")
        if time_to_report(step, config.max_steps):
            print(f"step {step:5d} | loss {loss.data:.4f} | accuracy {accuracy(scores, answers):.0%}", flush=True)
    return losses


def accuracy(scores: Sequence[Value], targets: Sequence[int]) -> float:
    return sum((s > 0) == (t > 0) for s, t in zip(scores, targets)) / len(targets)


def time_to_report(step: int, steps: int) -> bool:
    return step % max(1, steps // 10) == 0 or step == steps - 1


def draw_neuron(layer: Layer, points: Sequence, path: Path) -> None:
    """The graph of one neuron at one point; a dead one would make a dull picture, so take the liveliest."""
    neuron, point = max(((n, p) for n in layer.neurons for p in points[:8]), key=lambda pair: pair[0](pair[1]))
    inputs = [Value(x, f"x{i}") for i, x in enumerate(point, 1)]
    for i, w in enumerate(neuron.w, 1):
        w.label = f"w{i}"
    neuron.b.label = "b"
    neuron.zero_grad()
    out = neuron(inputs)
    out.label = "output"
    out.backward()
    draw(out, path)


def draw_training(model: Module, points: Sequence, targets: Sequence, losses: Sequence[float], folder: Path) -> None:
    from matplotlib.figure import Figure

    (left, right), (low, high) = ((min(c) - 0.4, max(c) + 0.4) for c in zip(*points))
    xs, ys = ([a + (b - a) * i / 64 for i in range(65)] for a, b in ((left, right), (low, high)))
    scores = [[max(-3.0, min(3.0, model((x, y)).data)) for x in xs] for y in ys]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xticks=[], yticks=[], title="decision boundary")
    axes.contourf(xs, ys, scores, levels=[i / 4 for i in range(-12, 13)], cmap="RdBu", alpha=0.75)
    axes.contour(xs, ys, scores, levels=[0.0], colors="black", linewidths=1)
    colors = ["#2166ac" if t > 0 else "#b2182b" for t in targets]
    axes.scatter(*zip(*points), s=22, c=colors, edgecolors="white", linewidths=0.6)
    figure.savefig(folder / "boundary.png", dpi=110)

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(folder / "loss.png", dpi=110)


# ---------------------------------------------------------------------------------------------------------------------
# A GPT made of scalars: the architecture of the large ones, 4,192 numbers, and nothing new in the engine


class GPT(Module):
    """One Transformer block: attention lets a position look back, the MLP lets it think. arXiv:1706.03762

    In place of the original's layer norm, GELU and biases it has RMS norm, ReLU and none.
    """

    def __init__(self, vocab_size: int, n_embd: int = 16, n_head: int = 4, block_size: int = 16, rng=random):
        def matrix(rows: int, columns: int) -> list[list[Value]]:
            return [[Value(rng.gauss(0, 0.08)) for _ in range(columns)] for _ in range(rows)]

        if n_embd % n_head:
            raise ValueError(f"{n_head} heads cannot share {n_embd} channels: make n_embd a multiple of n_head")
        self.n_head, self.block_size = n_head, block_size
        self.token, self.position = matrix(vocab_size, n_embd), matrix(block_size, n_embd)
        self.query, self.key, self.value, self.project = (matrix(n_embd, n_embd) for _ in range(4))
        self.widen, self.narrow = matrix(4 * n_embd, n_embd), matrix(n_embd, 4 * n_embd)
        self.head = matrix(vocab_size, n_embd)

    def __call__(self, token: int, past: list[tuple[list[Value], list[Value]]]) -> list[Value]:
        """-> logits for what follows `token`. `past` holds the keys and values of earlier positions; ours are added."""
        x = rms_norm([a + b for a, b in zip(self.token[token], self.position[len(past)])])

        h = rms_norm(x)
        query = affine(h, self.query)
        past.append((affine(h, self.key), affine(h, self.value)))
        h, size = [], len(x) // self.n_head
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            scores = affine(query[part], [key[part] for key, _ in past])
            h += affine(softmax(scores, size**0.5), zip(*(value[part] for _, value in past)))
        x = affine(h, self.project, x)  # x as the bias: the residual connection

        h = [v.relu() for v in affine(rms_norm(x), self.widen)]
        x = affine(h, self.narrow, x)
        return affine(x, self.head)


def rms_norm(xs: Sequence[Value]) -> list[Value]:
    """The same direction with a mean square of 1. arXiv:1910.07467"""
    scale = (dot(xs, xs) / len(xs) + 1e-5) ** -0.5
    return [x * scale for x in xs]


def gpt_demo(config: Config) -> None:
    rng = random.Random(config.seed)
    names = read_names(config.input_file)
    rng.shuffle(names)
    alphabet = sorted(set("".join(names)))
    end = len(alphabet)  # one more token, which starts a name and ends it
    model = GPT(end + 1, rng=rng)
    optimizer = Adam(model.parameters(), betas=(0.85, 0.99))
    print(f"{len(names)} names of {end} letters, a GPT of {len(optimizer.parameters)} parameters")

    start, recent = time.perf_counter(), []
    for step in range(config.max_steps):
        optimizer.lr = config.learning_rate * (1.0 - step / config.max_steps)
        tokens = [end, *map(alphabet.index, names[step % len(names)]), end][: model.block_size + 1]

        past = []
        loss = mean(cross_entropy(model(token, past), target) for token, target in pairwise(tokens))
        model.zero_grad()
        loss.backward()
        optimizer.step()

        recent = [*recent[-99:], loss.data]
        if time_to_report(step, config.max_steps):
            average, seconds = sum(recent) / len(recent), time.perf_counter() - start
            print(f"step {step:5d} | loss of the last hundred {average:.4f} | {seconds:.0f} s", flush=True)
    for _ in range(config.num_samples):
        print(sample(model, alphabet, config.temperature, rng), flush=True)


def read_names(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path!r} ({error}): give a UTF-8 text file of names with -i") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path!r} holds no names: give a text file with one name per line")
    return names


def sample(model: GPT, alphabet: Sequence[str], temperature: float, rng=random) -> str:
    end = token = len(alphabet)
    name, past = "", []
    while len(past) < model.block_size:
        logits = [v.data for v in model(token, past)]
        token = rng.choices(range(end + 1), weights=probabilities(logits, temperature))[0]
        if token == end:
            break
        name += alphabet[token]
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Command line. Config is the one source of every flag, its default and its help.

DEMOS = {"network": network_demo, "gpt": gpt_demo}


def flag(default, help: str, short: str | None = None, **rules):
    return field(default=default, metadata={"short": short, "help": help, **rules})


@dataclass
class Config:
    demo: str = flag("network", "what to train", choices=DEMOS)
    input_file: str = flag("names.txt", "gpt: text file with one name per line", "-i")
    work_dir: str = flag("out/micrograd", "network: folder for the figures", "-o")
    seed: int = flag(1337, "for data, weights and samples")
    max_steps: int = flag(None, "training steps (default: network 100, gpt 1000)", least=0, type=int)
    learning_rate: float = flag(None, "at the start (default: sgd 1, adam 0.1, gpt 0.01)", "-l", least=0, type=float)
    data: str = flag("moons", "network: shape of the toy data", choices=SHAPES)
    points: int = flag(100, "network: number of points", least=2)
    noise: float = flag(0.1, "network: standard deviation of the noise", least=0)
    layers: str = flag("16,16", "network: widths of the hidden layers; '' for none")
    activation: str = flag("relu", "network: of the hidden layers", choices=ACTIVATIONS)
    loss: str = flag("hinge", "network: what is minimised", choices=LOSSES)
    l2: float = flag(1e-4, "network: how strongly weights are pulled to 0", least=0)
    optimizer: str = flag("sgd", "network: how to step", choices=OPTIMIZERS)
    momentum: float = flag(0.0, "network: of sgd", least=0)
    batch_size: int = flag(0, "network: points per step; 0 for all", least=0)
    num_samples: int = flag(20, "gpt: names to invent", least=0)
    temperature: float = flag(0.5, "gpt: low plays safe, 1 samples what was learned, high is wild", least=1e-6)

    def __post_init__(self):
        network = self.demo == "network"
        if self.max_steps is None:
            self.max_steps = 100 if network else 1000
        if self.learning_rate is None:
            self.learning_rate = {"sgd": 1.0, "adam": 0.1}[self.optimizer] if network else 0.01
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata.get("least", -math.inf)
            if not isinstance(value, str) and not least <= value < math.inf:
                raise ValueError(f"--{f.name.replace('_', '-')} is {value}: give a number from {least:g} up")
        if self.batch_size > self.points:
            raise ValueError(f"--batch-size is {self.batch_size} of {self.points} points: give 0 to {self.points}")
        self.widths()

    def widths(self) -> list[int]:
        words = self.layers.split(",") if self.layers.strip() else []
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"--layers is {self.layers!r}: give whole numbers from 1 up, like 16,16")
        return list(map(int, words))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str]) -> Config:
    parser = Parser(prog="micrograd.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Config):
        rules = {key: f.metadata[key] for key in ("choices", "type") if key in f.metadata}
        text = f.metadata["help"]
        if f.default is not None:
            rules, text = {"type": type(f.default)} | rules, f"{text} (default: {f.default})"
        names = [f.metadata["short"]] * bool(f.metadata["short"]) + ["--" + f.name.replace("_", "-")]
        parser.add_argument(*names, default=f.default, help=text, **rules)
    hyphens = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in argv]
    return Config(**vars(parser.parse_args(hyphens)))


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        DEMOS[config.demo](config)
    except BrokenPipeError:  # whoever was reading, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"micrograd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
