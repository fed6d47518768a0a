"""micrograd: a scalar autograd engine, a small neural-network library on top of it, and pictures of both.

    python micrograd.py                                      # learn to tell two moons apart; writes three figures
    python micrograd.py --data spiral --layers 24,24 --activation tanh --optimizer adam --max-steps 300
    python micrograd.py --demo gpt -i names.txt              # a GPT made of scalars invents names

In a program or a notebook:

    from micrograd import Value, MLP
    a, b = Value(2.0, "a"), Value(-3.0, "b")
    y = (a * b + 10).tanh();  y.backward();  print(a.grad, b.grad);  y   # a notebook shows the graph

Sections: numbers · Value · operations on many values · neurons, layers, networks · losses · optimisers ·
gradient check · drawing · toy data · the network demo · a GPT made of scalars · command line.
Standard library only; matplotlib is imported where a figure is drawn.
"""

# ruff: noqa: B905 (zip without strict: the lengths are checked once, not at every edge)
from __future__ import annotations

import argparse
import io
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise, repeat
from operator import mul
from pathlib import Path

# `from micrograd.engine import Value` and `from micrograd.nn import MLP` are in a thousand scripts. Both of those
# modules are this file: the import system looks in sys.modules before it looks for a package.
engine = nn = sys.modules[__name__]
sys.modules |= {f"{__name__}.engine": engine, f"{__name__}.nn": nn}

# ---------------------------------------------------------------------------------------------------------------------
# Numbers: Python's floats stop with an exception where IEEE 754, and torch, go on with inf or nan. We go on, too.


def number(x) -> float:
    """The float behind an int, a float, a NumPy scalar or a Value; text, None and complex numbers are refused."""
    try:
        return float(x.__float__())  # not float(x): that would read text
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise TypeError(f"{x!r} is not a number: a Value takes an int, a float or a NumPy scalar") from None


def divide(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.copysign(math.inf, a) * math.copysign(1.0, b) if abs(a) > 0 else math.nan


def power(a: float, b: float) -> float:
    try:
        y = a**b
    except (ZeroDivisionError, OverflowError):
        return math.copysign(math.inf, a) if b % 2 == 1 else math.inf  # an odd power keeps the sign, even that of -0.0
    if isinstance(y, complex):
        raise ValueError(f"({a:g}) ** {b:g} is not a real number: a negative base needs a whole exponent")
    return y


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > 0.0 else 1.0 - 1.0 / (1.0 + math.exp(x))


def share(a: float, b: float) -> float:
    """Of the gradient of the larger of a and b, what a receives."""
    return 0.0 if a < b else 0.5 if a == b else 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Value: a number that remembers how it was made


class Value:
    """A number `data`, the derivative `grad` of some result with respect to it, and a `label` for pictures.

    A result also keeps its operands `_prev`, the name `_op` of the operation, and `_local`: the derivative of the
    result with respect to each operand, known as soon as the operation is done. Numbers are not wrapped: in `2 * a`
    only `a` is an operand.
    """

    __slots__ = ("_local", "_op", "_prev", "data", "grad", "label")
    __array_ufunc__ = None  # NumPy scalars on the left leave the operation to us: np.float64(2) * a

    def __init__(self, data: float, label: str = ""):
        self.data = number(data)
        self.grad = 0.0
        self.label = label
        self._prev = self._local = ()
        self._op = ""

    # Each operation is its result, its operands, the local derivatives, and a name. Nothing else is ever needed.

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
        if isinstance(other, Value):
            y, reciprocal = divide(self.data, other.data), divide(1.0, other.data)
            return node(y, (self, other), (reciprocal, -divide(y, other.data)), "/")
        other = number(other)
        return node(divide(self.data, other), (self,), (divide(1.0, other),), "/")

    def __pow__(self, other):
        a, b = self.data, number(other)
        y, slope = power(a, b), b * power(a, b - 1.0) if b else 0.0
        if isinstance(other, Value):
            return node(y, (self, other), (slope, 0.0 if a == 0.0 <= b else y * log(a)), "**")
        return node(y, (self,), (slope,), f"**{b:g}")

    def __neg__(self):
        return node(-self.data, (self,), (-1.0,), "neg")

    def __pos__(self):
        return self

    def __abs__(self):
        return node(abs(self.data), (self,), (float((self.data > 0.0) - (self.data < 0.0)),), "abs")

    def exp(self):
        y = exp(self.data)
        return node(y, (self,), (y,), "exp")

    def log(self):
        if self.data < 0.0:
            raise ValueError(f"log({self.data:g}) is not a real number: log needs a positive one")
        return node(log(self.data), (self,), (divide(1.0, self.data),), "log")

    def sqrt(self):
        if self.data < 0.0:
            raise ValueError(f"sqrt({self.data:g}) is not a real number: sqrt needs a positive one, or 0")
        y = math.sqrt(self.data)
        return node(y, (self,), (divide(0.5, y),), "sqrt")

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
        y = sigmoid(self.data)
        return node(y, (self,), (y * (1.0 - y),), "sigmoid")

    def relu(self):
        if self.data <= 0.0:
            return node(0.0, (self,), (0.0,), "relu")
        return node(self.data, (self,), (1.0,), "relu")

    def max(self, other):
        """The larger one, which also receives the gradient; a tie shares it, as torch.maximum does."""
        other = as_value(other)
        a, b = self.data, other.data
        return node(a if a > b or a != a else b, (self, other), (share(a, b), share(b, a)), "max")

    def min(self, other):
        other = as_value(other)
        a, b = self.data, other.data
        return node(a if a < b or a != a else b, (self, other), (share(b, a), share(a, b)), "min")

    def __rsub__(self, other):  # other - self
        other = number(other)
        return node(other - self.data, (self,), (-1.0,), f"{other:g}-")

    def __rtruediv__(self, other):  # other / self
        other = number(other)
        y = divide(other, self.data)
        return node(y, (self,), (-divide(y, self.data),), f"{other:g}/")

    def __rpow__(self, other):  # other ** self
        return Value(other) ** self

    __radd__ = __add__
    __rmul__ = __mul__

    # A Value compares and converts like its number, so max(values) and f"{float(v):.3f}" work. Equality and hash stay
    # those of the object: two Values that happen to be 0.5 are still two places in a graph.

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

    def __reduce__(self):
        """A copied or pickled Value is its number, gradient and label; its history stays behind."""
        return restore, (self.data, self.grad, self.label)

    def _repr_svg_(self):
        """What a notebook shows: the graph, as long as a graph of this size can be read."""
        return render(self, "svg").decode() if len(trace(self)[0]) <= READABLE else None

    def backward(self) -> None:
        """Set the `grad` of everything this Value was computed from to its derivative.

        Leaves (parameters, inputs) add to the gradient they have, so clear it with `zero_grad` between steps; all
        others start from zero. That is what torch does.
        """
        order = topological(self)
        for v in order:
            v.grad = 0.0
        self.grad += 1.0
        for v in order:
            grad = v.grad
            if not grad and math.isfinite(sum(v._local)):
                continue  # nothing to pass on; 0 · inf, however, is nan and has to be seen
            for operand, local in zip(v._prev, v._local):  # the chain rule
                operand.grad += local * grad


def topological(root: Value) -> list[Value]:
    """Everything `root` was computed from, except leaves, each result before its operands.

    Why this order? A Value used twice receives gradient from both uses, and may pass its own on only when it has
    received all of it: so it waits until every result made from it has had its turn.
    """
    order, seen = [], set()
    stack = [root] if root._prev else []  # a stack of our own: graphs are deeper than Python's recursion limit
    push, pop = stack.append, stack.pop
    while stack:
        v = pop()
        if v is None:  # all operands of the Value below are in the list
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
    """The result of an operation: a Value that skips the checks which its operands have passed already."""
    v = new(Value)
    v.data = data
    v.grad = 0.0
    v.label = ""
    v._prev = prev
    v._local = local
    v._op = op
    return v


def restore(data: float, grad: float, label: str) -> Value:
    v = Value(data, label)
    v.grad = grad
    return v


def as_value(x) -> Value:
    return x if isinstance(x, Value) else Value(x)


# ---------------------------------------------------------------------------------------------------------------------
# Operations on many values: a sum of a thousand terms is one node with a thousand operands, not a thousand nodes.
# `backward` does not notice. This, and nothing cleverer, is where the speed comes from.


def split(values: Iterable) -> tuple[list[float], tuple]:
    """-> (numbers, nodes). Numbers alone are no nodes at all; a number among Values becomes a constant leaf."""
    try:
        values = (values,) if isinstance(values, Value) else tuple(values)
    except TypeError:
        raise TypeError(f"{values!r} is not a list of Values or numbers") from None
    kinds = set(map(type, values))
    if kinds == {Value}:
        return [v.data for v in values], values
    if Value not in kinds:
        return [number(v) for v in values], ()
    values = tuple(map(as_value, values))
    return [v.data for v in values], values


def affine(x: Iterable, rows: Iterable[Sequence[Value]], biases: Iterable[Value] | None = None) -> list[Value]:
    """For each row of weights w the node Σ wᵢ·xᵢ, plus its bias if there are any. The xᵢ are Values or numbers.

    The rows share what they have in common: x is looked at once, and numbers in x are nobody's operands.
    """
    x, nodes = split(x)
    out = []
    for row, bias in zip(rows, biases or repeat(None)):
        w = [v.data for v in row]
        if len(w) != len(x):
            raise ValueError(f"{len(w)} weights met {len(x)} inputs: give exactly {len(w)}")
        prev, local = (*row, *nodes), (*x, *w) if nodes else (*x,)
        if bias is None:
            out.append(node(sum(map(mul, w, x)), prev, local, "dot"))
        else:
            out.append(node(sum(map(mul, w, x), bias.data), (bias, *prev), (1.0, *local), "dot"))
    return out


def dot(ws: Iterable, xs: Iterable, bias=None) -> Value:
    """Σ wᵢ·xᵢ + bias as one node; Values and numbers may be mixed at will."""
    ws, xs = tuple(ws), tuple(xs)
    if not any(isinstance(w, Value) for w in ws):
        ws, xs = xs, ws
    return affine(xs, [[as_value(w) for w in ws]], None if bias is None else [as_value(bias)])[0]


def total(values: Iterable) -> Value:
    """The sum as one node. Python's own sum() works too, one node per term."""
    numbers, nodes = split(values)
    return node(sum(numbers), nodes, (1.0,) * len(nodes), "sum")


def mean(values: Iterable) -> Value:
    numbers, nodes = split(values)
    if not numbers:
        raise ValueError("the mean of no values is not defined: give at least one")
    return node(sum(numbers) / len(numbers), nodes, (1.0 / len(numbers),) * len(nodes), "mean")


def softmax(logits: Iterable) -> list[Value]:
    """exp(l) / Σ exp(l), each probability a node: ∂pᵢ/∂lⱼ = pᵢ·((i = j) − pⱼ)."""
    numbers, nodes = split(logits)
    p = probabilities(numbers)
    return [node(pi, nodes, tuple(pi * ((i == j) - pj) for j, pj in enumerate(p)), "softmax") for i, pi in enumerate(p)]


def probabilities(logits: Sequence[float]) -> list[float]:
    """softmax of plain numbers; the largest is subtracted first, so that nothing overflows."""
    largest = max(logits, default=0.0)
    counts = [exp(x - largest) for x in logits]
    scale = 1.0 / sum(counts) if counts else 0.0
    return [count * scale for count in counts]


# ---------------------------------------------------------------------------------------------------------------------
# Neurons, layers, networks

ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "relu": Value.relu,
    "tanh": Value.tanh,
    "sigmoid": Value.sigmoid,
    "linear": Value.__pos__,
}


class Module:
    """Something with parameters: every Value found in the attributes, through lists and other modules."""

    def parameters(self) -> list[Value]:
        return list(values_in(list(vars(self).values())))

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = 0.0


def values_in(x) -> Iterator[Value]:
    if isinstance(x, Value):
        yield x
    elif isinstance(x, Module):
        yield from x.parameters()
    elif isinstance(x, (list, tuple)):
        for item in x:
            yield from values_in(item)


class Neuron(Module):
    """activation(Σ wᵢ·xᵢ + b); linear where `nonlin` is false. Weights start uniform in (−1, 1), drawn from `rng`."""

    def __init__(self, nin: int, nonlin: bool = True, activation: str = "relu", rng=random):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose from {', '.join(ACTIVATIONS)}")
        self.w = [Value(rng.uniform(-1, 1)) for _ in range(count(nin, "inputs of a neuron"))]
        self.b = Value(0.0)
        self.activation = activation if nonlin else "linear"

    def __call__(self, x: Iterable) -> Value:
        return ACTIVATIONS[self.activation](affine(x, [self.w], [self.b])[0])

    def __repr__(self):
        name = {"relu": "ReLU"}.get(self.activation, self.activation.capitalize())
        return f"{name}Neuron({len(self.w)})"


class Layer(Module):
    """`nout` neurons that look at the same inputs. A layer of one answers with a Value instead of a list."""

    def __init__(self, nin: int, nout: int, **neuron):
        self.neurons = [Neuron(nin, **neuron) for _ in range(count(nout, "neurons of a layer"))]

    def __call__(self, x: Iterable) -> Value | list[Value]:
        sums = affine(x, [n.w for n in self.neurons], [n.b for n in self.neurons])
        out = [ACTIVATIONS[n.activation](v) for n, v in zip(self.neurons, sums)]
        return out[0] if len(out) == 1 else out

    def __repr__(self):
        return f"Layer of [{', '.join(map(str, self.neurons))}]"


class MLP(Module):
    """Layers one after the other, the last one linear: MLP(2, [16, 16, 1]) takes 2 numbers and answers with 1."""

    def __init__(self, nin: int, nouts: Sequence[int], **neuron):
        if not nouts:
            raise ValueError("MLP got an empty list of layers: give the width of each, like [16, 16, 1]")
        sizes = [nin, *nouts]
        self.layers = [Layer(a, b, nonlin=i < len(nouts), **neuron) for i, (a, b) in enumerate(zip(sizes, nouts), 1)]

    def __call__(self, x: Iterable) -> Value | list[Value]:
        for layer in self.layers:
            x = layer(x)
        return x

    def __repr__(self):
        return f"MLP of [{', '.join(map(str, self.layers))}]"


def count(n: int, what: str) -> int:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of {what} is {n!r}: it must be a whole number from 1 up")
    return n


# ---------------------------------------------------------------------------------------------------------------------
# Losses: each is one node, the mean over its examples


def squared_error(scores: Iterable, targets: Iterable) -> Value:
    pairs, nodes = examples(scores, targets)
    errors = [score - target for score, target in pairs]
    n = len(errors)
    return node(sum(e * e for e in errors) / n, nodes, tuple(2.0 * e / n for e in errors), "squared error")


def hinge(scores: Iterable, targets: Iterable) -> Value:
    """max(0, 1 − t·s), the max-margin loss of a support vector machine; the targets t are −1 and 1."""
    pairs, nodes = examples(scores, targets)
    margins = [1.0 - target * score for score, target in pairs]
    n = len(margins)
    local = tuple(0.0 if margin <= 0.0 else -target / n for margin, (_, target) in zip(margins, pairs))
    return node(sum(m for m in margins if not m <= 0.0) / n, nodes, local, "hinge")


def logistic(scores: Iterable, targets: Iterable) -> Value:
    """−log σ(t·s), the cross-entropy of two classes; the targets t are −1 and 1."""
    pairs, nodes = examples(scores, targets)
    n = len(pairs)
    loss = sum(math.log1p(math.exp(-abs(s))) + max(-t * s, 0.0) for s, t in pairs) / n
    return node(loss, nodes, tuple(-t * sigmoid(-t * s) / n for s, t in pairs), "logistic")


def cross_entropy(logits: Iterable, target: int) -> Value:
    """−log softmax(logits)[target], the negative log-likelihood; the derivatives are softmax − one-hot."""
    numbers, nodes = split(logits)
    if target not in range(len(numbers)):
        raise ValueError(f"target {target!r} is not among the {len(numbers)} classes: give 0 to {len(numbers) - 1}")
    p = probabilities(numbers)
    loss = max(numbers) + math.log(sum(exp(x - max(numbers)) for x in numbers)) - numbers[target]
    return node(loss, nodes, tuple(pi - (i == target) for i, pi in enumerate(p)), "cross-entropy")


def l2(parameters: Iterable[Value], strength: float = 1e-4) -> Value:
    """strength · Σ p², added to a loss to keep weights small."""
    numbers, nodes = split(parameters)
    return node(strength * sum(map(mul, numbers, numbers)), nodes, tuple(2.0 * strength * p for p in numbers), "L2")


def examples(scores: Iterable, targets: Iterable) -> tuple[list[tuple[float, float]], tuple]:
    numbers, nodes = split(scores)
    targets = list(map(number, targets))
    if len(numbers) != len(targets) or not targets:
        raise ValueError(f"{len(numbers)} scores met {len(targets)} targets: give one target for each score")
    return list(zip(numbers, targets)), nodes


LOSSES = {"hinge": hinge, "logistic": logistic, "squared": squared_error}

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers: how a step follows from the gradients


class SGD:
    def __init__(self, parameters: Iterable[Value], lr: float = 0.1, momentum: float = 0.0):
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.velocity = [0.0] * len(self.parameters)

    def step(self) -> None:
        self.velocity = [self.momentum * v + p.grad for v, p in zip(self.velocity, self.parameters)]
        for p, v in zip(self.parameters, self.velocity):
            p.data -= self.lr * v


class Adam:
    """Steps of about `lr`, whatever the size of the gradient: mean over root mean square. arxiv.org/abs/1412.6980"""

    def __init__(self, parameters: Iterable[Value], lr: float = 0.01, betas=(0.9, 0.999), eps: float = 1e-8):
        self.parameters, self.lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.m = [0.0] * len(self.parameters)  # running mean of the gradient,
        self.v = [0.0] * len(self.parameters)  # and of its square
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        (b1, b2), grads = self.betas, [p.grad for p in self.parameters]
        self.m = [b1 * m + (1 - b1) * g for m, g in zip(self.m, grads)]
        self.v = [b2 * v + (1 - b2) * g * g for v, g in zip(self.v, grads)]
        lr, scale = self.lr / (1 - b1**self.steps), 1 / math.sqrt(1 - b2**self.steps)  # both means start at 0
        for p, m, v in zip(self.parameters, self.m, self.v):
            p.data -= lr * m / (math.sqrt(v) * scale + self.eps)


OPTIMIZERS = {"sgd": SGD, "adam": Adam}

# ---------------------------------------------------------------------------------------------------------------------
# Gradient check: is the derivative the slope? Nudge each input a little to both sides and see.


def gradcheck(f: Callable[..., Value], *inputs: float, eps: float = 1e-6, show=print) -> float:
    """Compare `backward` with (f(x + h) − f(x − h)) / 2h; show the table, return the largest relative difference."""
    leaves = [Value(x) for x in inputs]
    f(*leaves).backward()
    worst, rows = 0.0, [f"{'input':>12} {'backward':>14} {'numerical':>14} {'difference':>11}"]
    for i, leaf in enumerate(leaves):
        h = eps * max(1.0, abs(leaf.data))
        low, high = ([Value(x.data + nudge * (j == i)) for j, x in enumerate(leaves)] for nudge in (-h, h))
        slope = (f(*high).data - f(*low).data) / (2 * h)
        worst = max(worst, abs(slope - leaf.grad) / max(1.0, abs(slope)))
        rows.append(f"{leaf.data:12.6g} {leaf.grad:14.8g} {slope:14.8g} {abs(slope - leaf.grad):11.1e}")
    show("\n".join(rows))
    return worst


# ---------------------------------------------------------------------------------------------------------------------
# Drawing: boxes are numbers (round: leaves, square: results), ellipses are operations, time runs from left to right

READABLE = 400  # nodes; beyond that a picture is wallpaper
LEAF, RESULT, OPERATION = "#dcebfa", "#fff3d6", "#e6e0f2"


def trace(root: Value) -> tuple[list[Value], list[tuple[Value, Value]]]:
    """-> (nodes, edges) of the graph, operands before their results."""
    order = [*reversed(topological(root)), root]
    nodes = dict.fromkeys(v for result in order for v in (*result._prev, result))
    return list(nodes), [(operand, v) for v in nodes for operand in dict.fromkeys(v._prev)]


def lines_of(v: Value) -> list[str]:
    return [*([v.label] if v.label else []), f"data {v.data:.4f}", f"grad {v.grad:.4f}"]


def operation(v: Value) -> str:
    """The name in the ellipse. Numbers are not nodes, so `a * 2` is drawn as a single operand and `* 2`."""
    if len(v._prev) > 1 or v._op not in ("+", "-", "*", "/"):
        return v._op
    x, slope = v._prev[0].data, v._local[0]
    constant = {"+": v.data - x, "-": x - v.data, "*": slope, "/": divide(1.0, slope)}[v._op]
    return f"{v._op} {constant:.4g}"


def to_dot(root: Value) -> str:
    """The graph in graphviz's language."""
    nodes, edges = trace(root)
    name = {v: f"n{i}" for i, v in enumerate(nodes)}
    text = [
        "digraph {",
        '  rankdir=LR; nodesep=0.15; ranksep=0.3; node [fontname="Helvetica", fontsize=11, style=filled, height=0.3];',
        '  edge [color="#777777", arrowsize=0.6];',
    ]
    for v in nodes:
        shape, color = ("box", RESULT) if v._prev else ("box, style=\"rounded,filled\"", LEAF)
        label = "\\n".join(lines_of(v)).replace('"', '\\"')
        text.append(f'  {name[v]} [label="{label}", shape={shape}, fillcolor="{color}"];')
        if v._prev:
            text.append(f'  {name[v]}op [label="{operation(v)}", shape=ellipse, fillcolor="{OPERATION}"];')
            text.append(f"  {name[v]}op -> {name[v]};")
    text += [f"  {name[a]} -> {name[b]}op;" for a, b in edges]
    return "\n".join([*text, "}"])


def draw(root: Value, path: str | Path) -> None:
    """Write the graph that leads to `root` as .svg, .png or .pdf: with graphviz's `dot` if it is installed."""
    path, nodes = Path(path), len(trace(root)[0])
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"cannot draw to {str(path)!r}: the name must end in .svg, .png or .pdf")
    if nodes > READABLE:
        raise ValueError(f"a graph of {nodes} nodes cannot be read: draw a part of it, up to {READABLE} nodes")
    path.write_bytes(render(root, path.suffix[1:]))


def render(root: Value, format: str) -> bytes:
    if shutil.which("dot"):
        command = ["dot", f"-T{format}", "-Gdpi=110"] if format == "png" else ["dot", f"-T{format}"]
        return subprocess.run(command, input=to_dot(root).encode(), capture_output=True, check=True).stdout
    out = io.BytesIO()
    figure = plot_graph(root)
    figure.savefig(out, format=format, dpi=110)
    return out.getvalue()


def plot_graph(root: Value):
    """The same picture by matplotlib: one column per depth, rows ordered so that edges cross little."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse, FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    nodes, edges = trace(root)
    column = {}
    for v in nodes:
        column[v] = 1 + max((column[operand] for operand in v._prev), default=-1)
    for v in reversed(nodes):  # a leaf stands just before its first use, not at the far left
        if not v._prev:
            column[v] = min((column[b] for a, b in edges if a is v), default=1) - 1

    # An edge over several columns takes a seat in each: a key (operand, result, column) with no box.
    routes = {(a, b): [a, *((a, b, c) for c in range(column[a] + 1, column[b])), b] for a, b in edges}
    seats = {c: [] for c in range(column[root] + 1)}
    for v in nodes:
        seats[column[v]].append(v)
    near = {v: [] for v in nodes}
    for route in routes.values():
        for seat in route[1:-1]:
            seats[seat[2]].append(seat)
            near[seat] = []
        for a, b in pairwise(route):
            near[a].append(b)
            near[b].append(a)
    row = {}
    for _ in range(12):
        for group in seats.values():
            group.sort(key=lambda s: sum(row.get(n, 0.0) for n in near[s]) / max(1, len(near[s])))
            row |= {s: i - (len(group) - 1) / 2 for i, s in enumerate(group)}

    dx, dy, width, height = 2.5, 0.75, 1.1, 0.6
    tall = max(map(len, seats.values()))
    size = (dx * len(seats), dy * tall + 0.3)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-dx / 2 - 0.4, size[0] - dx / 2 - 0.4), ylim=(-size[1] / 2, size[1] / 2))
    axes.set_axis_off()

    def curve(x0, y0, x1, y1):
        middle = (x0 + x1) / 2
        path = Curve([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [1, 4, 4, 4])
        axes.add_patch(PathPatch(path, fill=False, edgecolor="#777777", linewidth=0.8, zorder=1))

    for route in routes.values():
        for a, b in pairwise(route):
            out = column[a] * dx + width / 2 if isinstance(a, Value) else a[2] * dx + width / 2
            into = column[b] * dx - 1.25 if isinstance(b, Value) else b[2] * dx - 1.25
            curve(out, -row[a] * dy, into, -row[b] * dy)
            if not isinstance(b, Value):
                curve(into, -row[b] * dy, into + 1.25 + width / 2, -row[b] * dy)
    for v in nodes:
        x, y = column[v] * dx, -row[v] * dy
        style, color = ("square,pad=0", RESULT) if v._prev else ("round,pad=0,rounding_size=0.12", LEAF)
        box = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, facecolor=color, zorder=2)
        axes.add_patch(box)
        axes.text(x, y, "\n".join(lines_of(v)), ha="center", va="center", fontsize=8, zorder=3)
        if v._prev:
            axes.annotate("", (x - width / 2, y), (x - 0.8, y), arrowprops={"arrowstyle": "->", "color": "#777777"})
            axes.add_patch(Ellipse((x - 0.95, y), 0.66, 0.36, facecolor=OPERATION, edgecolor="black", zorder=2))
            axes.text(x - 0.95, y, operation(v), ha="center", va="center", fontsize=8, zorder=3)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Toy data: points of the plane in two classes, −1 and 1. A shape places the point at t in (0, 1) of its class.


def moons(t: float, target: int, rng) -> tuple[float, float]:
    x, y = math.cos(math.pi * t), math.sin(math.pi * t)
    return (x, y) if target < 0 else (1.0 - x, 0.5 - y)


def circles(t: float, target: int, rng) -> tuple[float, float]:
    radius = 1.0 if target < 0 else 0.5
    return radius * math.cos(2 * math.pi * t), radius * math.sin(2 * math.pi * t)


def spiral(t: float, target: int, rng) -> tuple[float, float]:
    angle = 3 * math.pi * t
    return -target * t * math.cos(angle), -target * t * math.sin(angle)


def xor(t: float, target: int, rng) -> tuple[float, float]:
    x, y = rng.uniform(-1, 1), rng.uniform(0, 1)
    return x, math.copysign(y, -target * x)


SHAPES = {"moons": moons, "circles": circles, "spiral": spiral, "xor": xor}


def make_data(shape: str, n: int, noise: float, rng=random) -> tuple[list[tuple[float, float]], list[int]]:
    """-> (points, targets), n of them, in random order, with Gaussian noise on both coordinates."""
    rows = []
    for i in range(n):
        target = 1 if i % 2 else -1
        x, y = SHAPES[shape]((i + 0.5) / n, target, rng)
        rows.append(((x + rng.gauss(0, noise), y + rng.gauss(0, noise)), target))
    rng.shuffle(rows)
    return [point for point, _ in rows], [target for _, target in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Configuration: the one source of every default and every flag


def flag(default, help: str, short: str | None = None, **more):
    names = [short] if short else []
    return field(default=default, metadata={"names": names, "help": help, **more})


@dataclass
class Config:
    demo: str = flag("network", "what to train", choices=["network", "gpt"])
    input_file: str = flag("names.txt", "gpt: text file, one name per line", "-i")
    work_dir: str = flag("out/micrograd", "network: folder for the figures", "-o")
    seed: int = flag(1337, "seed of data, weights and samples")
    max_steps: int = flag(None, "training steps (default: network 100, gpt 1000)", type=int)
    learning_rate: float = flag(None, "start of the decay (default: sgd 1.0, adam 0.1, gpt 0.01)", "-l", type=float)
    data: str = flag("moons", "shape of the toy data", choices=list(SHAPES))
    points: int = flag(100, "number of points")
    noise: float = flag(0.1, "standard deviation of the noise on the points")
    layers: str = flag("16,16", "widths of the hidden layers; \"\" for none")
    activation: str = flag("relu", "of the hidden layers", choices=list(ACTIVATIONS))
    loss: str = flag("hinge", "what is minimised", choices=list(LOSSES))
    l2: float = flag(1e-4, "strength of the pull of all weights to zero")
    optimizer: str = flag("sgd", "how a step follows from the gradients", choices=list(OPTIMIZERS))
    momentum: float = flag(0.0, "of sgd")
    batch_size: int = flag(0, "points per step; 0 for all of them")
    num_samples: int = flag(20, "gpt: names to invent")
    temperature: float = flag(0.5, "gpt: low is careful, 1 is what was learned, high is wild")

    def __post_init__(self):
        network = self.demo == "network"
        if self.max_steps is None:
            self.max_steps = 100 if network else 1000
        if self.learning_rate is None:
            self.learning_rate = {"sgd": 1.0, "adam": 0.1}[self.optimizer] if network else 0.01
        at_least = {"max_steps": 0, "learning_rate": 0, "points": 2, "noise": 0, "l2": 0, "batch_size": 0}
        for name, least in (at_least | {"momentum": 0, "num_samples": 0}).items():
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be a number from {least} up")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"--temperature {self.temperature}: must be more than 0; try 0.5")
        self.widths()

    def widths(self) -> list[int]:
        words = [w for w in self.layers.replace(" ", "").split(",") if w]
        if not all(w.isdecimal() and int(w) > 0 for w in words):
            raise ValueError(f"--layers {self.layers!r}: give whole numbers from 1 up, like 16,16")
        return [int(w) for w in words]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str]) -> Config:
    parser = Parser(prog="micrograd.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Config):
        meta = dict(f.metadata)
        names = [*meta.pop("names"), "--" + f.name.replace("_", "-")]
        if f.default is not None:
            meta |= {"type": type(f.default), "help": meta["help"] + " (default: %(default)s)"}
        parser.add_argument(*names, default=f.default, metavar=None if "choices" in meta else f.name.upper(), **meta)
    argv = [a.replace("_", "-") if a.startswith("--") and "=" not in a else a for a in argv]
    return Config(**vars(parser.parse_args(argv)))


# ---------------------------------------------------------------------------------------------------------------------
# The network demo: two moons, a network of 337 parameters, a hundred steps


def train(model: Module, points: Sequence, targets: Sequence, config: Config, rng=random) -> list[float]:
    """Fit the model, printing as it goes; -> the loss before each step."""
    parameters, loss_of, losses = model.parameters(), LOSSES[config.loss], []
    if config.optimizer == "sgd":
        optimizer = SGD(parameters, momentum=config.momentum)
    else:
        optimizer = OPTIMIZERS[config.optimizer](parameters)
    for step in range(config.max_steps):
        optimizer.lr = config.learning_rate * (1.0 - 0.9 * step / config.max_steps)
        batch = range(len(points))
        if 0 < config.batch_size < len(points):
            batch = rng.sample(batch, config.batch_size)

        scores = [model(points[i]) for i in batch]
        loss = loss_of(scores, [targets[i] for i in batch]) + l2(parameters, config.l2)
        model.zero_grad()
        loss.backward()
        optimizer.step()

        losses.append(loss.data)
        if not math.isfinite(loss.data):
            raise ValueError(f"the loss is {loss.data} at step {step}: try a lower --learning-rate")
        if every_tenth(step, config.max_steps):
            right = sum((s > 0) == (targets[i] > 0) for s, i in zip(scores, batch)) / len(scores)
            print(f"step {step:5d} | loss {loss.data:.4f} | accuracy {right:.0%}", flush=True)
    return losses


def every_tenth(step: int, steps: int) -> bool:
    return step % max(1, steps // 10) == 0 or step == steps - 1


def network_demo(config: Config) -> None:
    start, rng = time.perf_counter(), random.Random(config.seed)
    points, targets = make_data(config.data, config.points, config.noise, rng)
    model = MLP(2, [*config.widths(), 1], activation=config.activation, rng=rng)
    print(f"{len(points)} points of {config.data}; {len(model.parameters())} parameters in layers of {config.layers},1")
    losses = train(model, points, targets, config, rng)
    seconds = time.perf_counter() - start

    scores = [model(point) for point in points]
    loss = LOSSES[config.loss](scores, targets) + l2(model.parameters(), config.l2)
    right = sum((s > 0) == (t > 0) for s, t in zip(scores, targets)) / len(scores)
    print(f"loss {loss.data:.4f}, accuracy {right:.1%}, {seconds:.1f} seconds")

    folder = Path(config.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        draw_neuron(model.layers[0].neurons[0], points[0], folder / "neuron.png")
        draw_boundary(model, points, targets, folder / "boundary.png")
        draw_losses(losses, folder / "loss.png")
    except ImportError:
        print("for the figures, install matplotlib: pip install matplotlib")
    else:
        print(f"figures: {', '.join(str(folder / f'{name}.png') for name in ('boundary', 'loss', 'neuron'))}")


def draw_neuron(neuron: Neuron, point: Sequence[float], path: Path) -> None:
    inputs = [Value(x, f"x{i}") for i, x in enumerate(point, 1)]
    for i, w in enumerate(neuron.w, 1):
        w.label = f"w{i}"
    neuron.b.label = "b"
    neuron.zero_grad()
    out = neuron(inputs)
    out.label = "output"
    out.backward()
    draw(out, path)


def draw_boundary(model: Module, points: Sequence, targets: Sequence, path: Path, cells: int = 64) -> None:
    from matplotlib.figure import Figure

    (left, right), (low, high) = ((min(c) - 0.4, max(c) + 0.4) for c in zip(*points))
    xs = [left + (right - left) * i / cells for i in range(cells + 1)]
    ys = [low + (high - low) * i / cells for i in range(cells + 1)]
    scores = [[max(-3.0, min(3.0, model((x, y)).data)) for x in xs] for y in ys]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.contourf(xs, ys, scores, levels=[i / 4 for i in range(-12, 13)], cmap="RdBu", alpha=0.75)
    axes.contour(xs, ys, scores, levels=[0.0], colors="black", linewidths=1)
    for target, color in ((-1, "#b2182b"), (1, "#2166ac")):
        mine = [p for p, t in zip(points, targets) if t == target]
        axes.scatter(*zip(*mine), s=22, color=color, edgecolors="white", linewidths=0.6)
    axes.set(xticks=[], yticks=[], title="decision boundary: score 0 is the black line")
    figure.savefig(path, dpi=110)


def draw_losses(losses: Sequence[float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color="#2166ac")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="loss")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------
# A GPT made of scalars. The same architecture as the large ones, 4,192 numbers, and nothing new in the engine.


class GPT(Module):
    """One Transformer block: attention lets a position look back, the MLP lets it think. arxiv.org/abs/1706.03762"""

    def __init__(self, vocab_size: int, n_embd: int = 16, n_head: int = 4, block_size: int = 16, rng=random):
        def matrix(rows: int, columns: int) -> list[list[Value]]:
            return [[Value(rng.gauss(0, 0.08)) for _ in range(columns)] for _ in range(rows)]

        self.n_head, self.block_size = n_head, block_size
        self.token, self.position = matrix(vocab_size, n_embd), matrix(block_size, n_embd)
        self.query, self.key, self.value = (matrix(n_embd, n_embd) for _ in range(3))
        self.project = matrix(n_embd, n_embd)
        self.widen, self.narrow = matrix(4 * n_embd, n_embd), matrix(n_embd, 4 * n_embd)
        self.head = matrix(vocab_size, n_embd)

    def __call__(self, token: int, past: list[tuple[list[Value], list[Value]]]) -> list[Value]:
        """-> logits for what follows `token`. `past` holds each earlier position's key and value; ours is added."""
        x = norm(add(self.token[token], self.position[len(past)]))

        h = norm(x)
        query = affine(h, self.query)
        past.append((affine(h, self.key), affine(h, self.value)))
        size = len(x) // self.n_head
        h = []
        for i in range(0, len(x), size):
            part = slice(i, i + size)
            scores = affine([q * size**-0.5 for q in query[part]], [key[part] for key, _ in past])
            h += affine(softmax(scores), zip(*(value[part] for _, value in past)))
        x = add(x, affine(h, self.project))

        h = [v.relu() for v in affine(norm(x), self.widen)]
        x = add(x, affine(h, self.narrow))
        return affine(x, self.head)


def add(xs: Sequence[Value], ys: Sequence[Value]) -> list[Value]:
    return [x + y for x, y in zip(xs, ys)]


def norm(xs: Sequence[Value]) -> list[Value]:
    """RMS norm: the same direction, mean square 1. arxiv.org/abs/1910.07467"""
    scale = (dot(xs, xs) / len(xs) + 1e-5) ** -0.5
    return [x * scale for x in xs]


def gpt_demo(config: Config) -> None:
    rng = random.Random(config.seed)
    names = [line.strip() for line in Path(config.input_file).read_text(encoding="utf-8-sig").splitlines()]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{config.input_file} holds no names: give a text file with one name per line")
    rng.shuffle(names)
    alphabet = sorted(set("".join(names)))
    end = len(alphabet)  # one more token: it starts a name and ends it
    model = GPT(end + 1, rng=rng)
    parameters = model.parameters()
    optimizer = Adam(parameters, betas=(0.85, 0.99))
    print(f"{len(names)} names, {end + 1} tokens, {len(parameters)} parameters")

    smooth, start = None, time.perf_counter()
    for step in range(config.max_steps):
        optimizer.lr = config.learning_rate * (1.0 - step / config.max_steps)
        tokens = [end, *(alphabet.index(c) for c in names[step % len(names)]), end]

        past = []
        loss = mean(cross_entropy(model(a, past), b) for a, b in pairwise(tokens[: model.block_size + 1]))
        model.zero_grad()
        loss.backward()
        optimizer.step()

        smooth = loss.data if smooth is None else 0.99 * smooth + 0.01 * loss.data
        if every_tenth(step, config.max_steps):
            print(f"step {step:5d} | loss {smooth:.4f} | {time.perf_counter() - start:.0f} s", flush=True)

    for _ in range(config.num_samples):
        print(sample(model, alphabet, config.temperature, rng), flush=True)


def sample(model: GPT, alphabet: Sequence[str], temperature: float, rng=random) -> str:
    end = token = len(alphabet)
    name, past = "", []
    while len(past) < model.block_size:
        logits = [v.data / temperature for v in model(token, past)]
        token = rng.choices(range(end + 1), weights=probabilities(logits))[0]
        if token == end:
            break
        name += alphabet[token]
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Command line

DEMOS = {"network": network_demo, "gpt": gpt_demo}


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        DEMOS[config.demo](config)
    except (ValueError, OSError) as error:
        print(f"micrograd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
