"""micrograd: automatic differentiation on single numbers, and neural networks on top of it. Standard library only.

    python micrograd.py --animate                            # learn to tell two moons apart; three figures, two films
    python micrograd.py --data spiral --noise 0.02 --optimizer adam -l 0.02 --max-steps 300
    python micrograd.py --demo gpt -i names.txt              # a GPT made of scalars learns names and invents new ones

    from micrograd import Value
    a, b = Value(2.0, "a"), Value(-3.0, "b")
    y = (a * b + 7).tanh()
    y.backward()                                             # a.grad is dy/da; a notebook shows y as its graph

The lecture:  numbers · Value · operations on many values · neurons, layers, networks · losses · optimisers
The lessons:  gradient check · a GPT made of scalars
The workshop: drawing · toy data · two demos, with their training loops · command line
"""

# ruff: noqa: B905 (zip without strict: lengths are checked once, where the lists come in)
from __future__ import annotations

import argparse
import copy
import io
import math
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import pairwise, repeat
from numbers import Integral, Real
from operator import ge, gt, le, lt, mul
from pathlib import Path

# =====================================================================================================================
# THE LECTURE: numbers that remember how they were made, their derivatives, and neural networks built from them
# =====================================================================================================================

# ---------------------------------------------------------------------------------------------------------------------
# Numbers: where Python raises an exception (1 / 0, overflow), IEEE 754 and torch go on with inf or nan. So do these.


def number(x) -> float:
    """The float behind an int, a float, a NumPy scalar or a Value. Text, None and complex numbers are refused."""
    try:
        return x if type(x) is float else float(x.__float__())  # float(x) would read text, too
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise TypeError(f"{x!r} is not a number: a Value takes an int, a float or a NumPy scalar") from None


def _divide(a: float, b: float) -> float:
    return a / b if b else math.copysign(math.inf, a) * math.copysign(1.0, b) if abs(a) > 0.0 else math.nan


def _power(a: float, b: float) -> float:
    if -math.inf < a < 0.0 and math.isfinite(b) and b % 1.0:
        raise ValueError(f"({a:g}) ** {b:g} is not a real number: a negative base needs a whole exponent")
    try:
        return a**b
    except (ZeroDivisionError, OverflowError):
        return math.copysign(math.inf, a) if b % 2.0 == 1.0 else math.inf  # odd powers keep the sign, also of -0.0


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def _softplus(x: float) -> float:  # log(1 + exp(x)), which is -log(sigmoid(-x))
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > 0.0 else math.exp(x) / (1.0 + math.exp(x))  # exp cannot overflow


# ---------------------------------------------------------------------------------------------------------------------
# Value: a number that remembers how it was made


class Value:
    """A number `data`, the derivative `grad` of some result with respect to it, and a `label` for pictures.

    The result of an operation also keeps its operands `_prev`, the operation's name `_op`, and in `_local` its
    derivative with respect to each operand, which is known as soon as the operation is done. Only Values are operands:
    `2 * a` has one, a. A masked operand (relu's if below 0, the smaller one of `max`) comes last, with no derivative.
    """

    __slots__ = ("_local", "_op", "_prev", "data", "grad", "label")

    def __init__(self, data: float, label: str = ""):
        self.data, self.grad, self.label = number(data), 0.0, label
        self._prev, self._local, self._op = (), (), ""

    # Every operation ends in `node`, which makes a Value of four things: result, operands, local derivatives, name.

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
        y, slope = _power(a, b), (b * _power(a, b - 1.0),) if b else ()  # x ** 0 is 1 whatever x is
        if isinstance(other, Value):
            return node(y, (other, self), (0.0 if a == 0.0 <= b else y * _log(a), *slope), "**")
        return node(y, (self,), slope, f"**{other}")

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
        y = math.inf if self.data > math.log(sys.float_info.max) else math.exp(self.data)
        return node(y, (self,), (y,), "exp")

    def log(self):
        if self.data < 0.0:
            raise ValueError(f"log({self.data:g}) is not a real number: give log a number from 0 up")
        return node(_log(self.data), (self,), (_divide(1.0, self.data),), "log")

    def sqrt(self):
        if self.data < 0.0:
            raise ValueError(f"sqrt({self.data:g}) is not a real number: give sqrt a number from 0 up")
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
        x = self.data
        return node(x and 0.0, (self,), (), "relu") if x <= 0.0 else node(x, (self,), (1.0,), "relu")  # -0.0 stays -0.0

    def max(self, other):
        other = as_value(other)
        a, b = self.data, other.data
        operands = (self, other) if a >= b or a != a else (other, self)  # the first is the result, also if it is nan
        slopes = (1.0,) if a < b or b < a else (0.5, 0.5) if a == b else (1.0, 1.0)  # as in torch.maximum
        return node(operands[0].data, operands, slopes, "max")

    def min(self, other):
        return -(-self).max(-other)

    # Comparison and conversion look at the number, so sorted(values) and float(v) work. Equality and hash stay those
    # of the object: two Values that happen to be 0.5 are still two places in a graph.

    __lt__, __le__, __gt__, __ge__ = ((lambda self, x, op=op: op(self.data, number(x))) for op in (lt, le, gt, ge))
    __float__, __int__, __bool__ = ((lambda self, kind=kind: kind(self.data)) for kind in (float, int, bool))

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __getstate__(self):  # what copy and pickle keep: not the graph it came from
        return None, {"data": self.data, "grad": self.grad, "label": self.label, "_prev": (), "_local": (), "_op": ""}

    def _repr_svg_(self):  # what a notebook shows: the graph, if that can be drawn, and read
        with suppress(Exception):
            return image(plot_graph(self), format="svg").decode()

    def backward(self) -> None:
        """Set the `grad` of everything this Value was made from to the derivative of this Value with respect to it.

        Leaves (parameters, inputs) add it to the `grad` they have, so clear that with `zero_grad` between steps; the
        results in between start from zero. Both are as in torch.
        """
        order = topological(self)
        for v in order:
            v.grad = 0.0
        self.grad += 1.0
        for v in order:
            grad, local = v.grad, v._local
            if not grad and math.isfinite(sum(local)):
                continue  # it would add only zeros, except that 0 · inf and 0 · nan are nan
            operands, i = v._prev, 0
            for slope in local:
                operands[i].grad += slope * grad  # the chain rule; what is masked gets nothing, not even 0 · inf
                i += 1  # noqa: SIM113 (enumerate and zip cost more than a loop this short)


def topological(root: Value) -> list[Value]:
    """All results that `root` was made from, itself included, each before its operands; leaves are left out.

    Why this order? A Value that was used twice gets gradient from both uses, and can pass it on only once it has both
    parts. So everything that was made from a Value comes before that Value.
    """
    order, seen = [], set()
    stack = [root] if root._prev else []  # in place of recursion, which Python ends at a depth of 1000
    push, pop, see, all_seen = stack.append, stack.pop, seen.add, seen.issuperset
    while stack:
        v = pop()
        if v is None:  # the mark on top of a Value whose operands are all in `order` now
            order.append(pop())
        elif v not in seen:
            see(v)
            push(v)
            push(None)
            if not all_seen(v._prev):  # one question for all, since the neurons of a layer share their inputs
                for operand in v._prev:
                    if operand not in seen:
                        (push if operand._prev else see)(operand)
    return order[::-1]


def node(data: float, prev: tuple, local: tuple, op: str, new=object.__new__) -> Value:
    """The result of an operation. `__init__` is passed over, for speed: operands were checked when they were made."""
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
# nodes, and `backward` needs no change. This, and nothing cleverer, is where the speed comes from.


def unpack(values: Iterable) -> tuple[list[float], tuple]:
    """-> (numbers, operands). Among Values, a number becomes a Value; numbers alone have no operands."""
    try:
        values = iter((values,) if isinstance(values, Value) else values)  # a layer of one gives a bare Value
    except TypeError:
        raise TypeError(f"{values!r} is not a list: give a list of Values or numbers") from None
    kinds = set(map(type, values := tuple(values)))  # outside the try: errors in a generator pass unchanged
    if kinds != {Value}:
        if not any(issubclass(kind, Value) for kind in kinds):
            return [number(v) for v in values], ()
        values = tuple(map(as_value, values))
    return [v.data for v in values], values


def affine(x: Iterable, rows: Iterable, biases: Iterable | None = None, relu: bool = False) -> list[Value]:
    """W·x + b: for each row w of weights the node Σ wᵢ·xᵢ, plus its bias if there are biases. Any xᵢ may be a number.

    The derivatives are 1 for the bias, xᵢ for wᵢ and, if x holds Values, wᵢ for xᵢ; `relu` passes on all or nothing.
    """
    (x, operands), op = unpack(x), "relu(dot)" if relu else "dot"
    shared = (*x,) if biases is None else (1.0, *x)  # derivatives that are the same for every row
    out = []
    for row, bias in zip(rows, repeat(()) if biases is None else zip(biases)):
        w = [v.data for v in row]
        if len(w) != len(x):
            raise ValueError(f"{len(w)} weights met {len(x)} inputs: give exactly {len(w)}")
        y = sum(map(mul, w, x), bias[0].data if bias else 0.0)
        local = (*shared, *w) if operands else shared
        if relu and y <= 0.0:
            y, local = y and 0.0, ()
        out.append(node(y, (*bias, *row, *operands), local, op))
    return out


def dot(ws: Iterable, xs: Iterable, bias=None) -> Value:
    """Σ wᵢ·xᵢ + bias as one node; Values and numbers may be mixed at will."""
    ws, xs = tuple(ws), tuple(xs)
    if not any(isinstance(w, Value) for w in ws):
        ws, xs = xs, ws  # the rows of `affine` have to be Values, its inputs may be numbers
    return affine(xs, [[as_value(w) for w in ws]], None if bias is None else [as_value(bias)])[0]


def total(values: Iterable) -> Value:
    """The sum as one node. Python's own sum() works too, with a node for each term."""
    numbers, operands = unpack(values)
    return node(float(sum(numbers)), operands, (1.0,) * len(operands), "sum")


def mean(values: Iterable) -> Value:
    numbers, operands = unpack(values)
    if not numbers:
        raise ValueError("mean of no values: give at least one")
    return node(sum(numbers) / len(numbers), operands, (1.0 / len(numbers),) * len(operands), "mean")


def softmax(logits: Iterable, temperature: float = 1.0) -> list[Value]:
    """pᵢ = exp(lᵢ / T) / Σⱼ exp(lⱼ / T), one node each, where T is the temperature; ∂pᵢ/∂lⱼ = pᵢ·((i = j) − pⱼ) / T."""
    numbers, operands = unpack(logits)
    p, temperature = probabilities(numbers, temperature), float(temperature)
    slopes = [[pi * ((i == j) - pj) / temperature for j, pj in enumerate(p)] for i, pi in enumerate(p)]
    return [node(pi, operands, tuple(row), "softmax") for pi, row in zip(p, slopes)]


def probabilities(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """softmax of plain numbers. Subtracting the largest changes nothing, except that exp cannot overflow."""
    if not logits:
        raise ValueError("softmax of no logits: give at least one")
    if not isinstance(temperature, Real) or not temperature > 0.0:
        raise ValueError(f"the temperature is {temperature!r}: give a number above 0; a tiny one picks the likeliest")
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    scale = 1.0 / sum(weights)
    return [w * scale for w in weights]


# ---------------------------------------------------------------------------------------------------------------------
# Neurons, layers, networks

ACTIVATIONS = {"relu": Value.relu, "tanh": Value.tanh, "sigmoid": Value.sigmoid, "linear": Value.__pos__}


class Module:
    """Something with parameters: all Values in its attributes, also inside lists and other Modules."""

    def parameters(self) -> list[Value]:
        return list(dict.fromkeys(values_in(list(vars(self).values()))))  # once, even where two layers share it

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = 0.0


def values_in(items: Iterable) -> Iterator[Value]:
    for x in items:
        if isinstance(x, Value):
            yield x
        elif isinstance(x, (Module, list, tuple)):
            yield from x.parameters() if isinstance(x, Module) else values_in(x)


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
    """`nout` neurons with the same inputs. A layer of one neuron gives its Value, not a list of one."""

    def __init__(self, nin: int, nout: int, **neuron):
        self.neurons = [Neuron(nin, **neuron) for _ in range(at_least_one(nout, "neurons"))]

    def __call__(self, x: Iterable) -> Value | list[Value]:
        relu = {n.activation for n in self.neurons} == {"relu"}
        out = affine(x, [n.w for n in self.neurons], [n.b for n in self.neurons], relu)
        out = out if relu else [ACTIVATIONS[n.activation](v) for n, v in zip(self.neurons, out)]
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
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"{n!r} {what}: the number of {what} must be a whole number from 1 up")
    return n


# ---------------------------------------------------------------------------------------------------------------------
# Losses, each one node. The first three are the mean over all scores and targets; cross_entropy is of one example.


def mean_loss(of_example: Callable, scores: Iterable, targets: Iterable, op: str) -> Value:
    """The mean over all examples. of_example(score, target) -> (loss, its derivative with respect to the score)."""
    (numbers, operands), (targets, variables) = unpack(scores), unpack(targets)
    n = len(targets)
    if len(numbers) != n or n == 0:
        raise ValueError(f"{len(numbers)} scores met {n} targets: give one target for each score")
    if wrong := variables or [t for t in targets if abs(t) != 1.0 and op != "squared error"]:
        raise ValueError(f"{op} met the target {wrong[0]}: give {'plain numbers' if variables else '−1 or 1'}")
    losses, slopes = zip(*map(of_example, numbers, targets))
    pairs = sorted(zip(slopes, operands), key=lambda pair: pair[0] is None)  # None: a score that does not count
    return node(sum(losses) / n, tuple(v for _, v in pairs), tuple(s / n for s, _ in pairs if s is not None), op)


def squared_error(scores: Iterable, targets: Iterable) -> Value:
    return mean_loss(lambda s, t: ((s - t) * (s - t), 2.0 * (s - t)), scores, targets, "squared error")


def hinge(scores: Iterable, targets: Iterable) -> Value:
    """max(0, 1 − t·s), the max-margin loss of a support vector machine; the targets t are −1 and 1."""
    return mean_loss(lambda s, t: (0.0, None) if t * s >= 1.0 else (1.0 - t * s, -t), scores, targets, "hinge")


def logistic(scores: Iterable, targets: Iterable) -> Value:
    """−log sigmoid(t·s), the cross-entropy of two classes; the targets t are −1 and 1."""
    return mean_loss(lambda s, t: (_softplus(-t * s), -t * _sigmoid(-t * s)), scores, targets, "logistic")


def cross_entropy(logits: Iterable, target: int) -> Value:
    """−log softmax(logits)[target], the negative log-likelihood; the derivatives are softmax − one-hot."""
    numbers, operands = unpack(logits)
    if not isinstance(target, Integral) or isinstance(target, bool) or not 0 <= target < len(numbers):
        raise ValueError(f"target {target!r} is not one of {len(numbers)} classes: give 0 to {len(numbers) - 1}")
    top, slopes = max(numbers), probabilities(numbers)
    slopes[target] -= 1.0
    loss = math.log(sum(math.exp(x - top) for x in numbers)) - (numbers[target] - top)
    return node(loss, operands, tuple(slopes), "cross-entropy")


def l2(parameters: Iterable[Value], strength: float = 1e-4) -> Value:
    """strength · Σ p²: added to a loss, it keeps the weights small."""
    numbers, operands = unpack(parameters)
    return node(strength * sum(map(mul, numbers, numbers)), operands, tuple(2.0 * strength * p for p in numbers), "L2")


LOSSES = {"hinge": hinge, "logistic": logistic, "squared": squared_error}

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers: from gradients to a step. For a loop that calls them see `network_demo`.


class SGD:
    """A step against the gradient; with momentum, against a sum in which earlier gradients fade."""

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
        lr, root = self.lr / (1 - b1**self.steps), math.sqrt(1 - b2**self.steps)  # both averages started at 0
        for p, m, s in zip(self.parameters, self.mean, self.square):
            p.data -= lr * m / (math.sqrt(s) / root + self.eps)


OPTIMIZERS = {"sgd": SGD, "adam": Adam}

# =====================================================================================================================
# THE LESSONS: a check of the derivatives, and a language model made of scalars
# =====================================================================================================================

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
# A GPT made of scalars: the architecture of the large ones, 4,192 parameters, and nothing new in the engine


class GPT(Module):
    """A Transformer of one block. Unlike GPT-2 it has RMS norm, ReLU and no biases. arXiv:1706.03762"""

    def __init__(self, vocab_size: int, n_embd: int = 16, n_head: int = 4, block_size: int = 16, rng=random):
        def matrix(rows: int, columns: int) -> list[list[Value]]:
            return [[Value(rng.gauss(0, 0.08)) for _ in range(columns)] for _ in range(rows)]

        if n_head < 1 or n_embd % n_head:
            raise ValueError(f"{n_head} heads cannot share {n_embd} channels: make n_embd a multiple of n_head")
        self.n_head, self.block_size = n_head, block_size
        self.token, self.position = matrix(vocab_size, n_embd), matrix(block_size, n_embd)  # embeddings
        self.query, self.key, self.value, self.attn_proj = (matrix(n_embd, n_embd) for _ in range(4))
        self.mlp_up, self.mlp_proj = matrix(4 * n_embd, n_embd), matrix(n_embd, 4 * n_embd)
        self.head = matrix(vocab_size, n_embd)

    def __call__(self, token: int, cache: list[tuple[list[Value], list[Value]]]) -> list[Value]:
        """-> logits of what follows `token`. `cache` has keys and values of earlier positions; this one's are added."""
        if token not in range(len(self.token)) or len(cache) >= self.block_size:
            rule = f"give one of {len(self.token)} tokens, at up to {self.block_size} positions"
            raise ValueError(f"token {token!r} at position {len(cache)}: {rule}")
        x = rms_norm([a + b for a, b in zip(self.token[token], self.position[len(cache)])])

        h = rms_norm(x)  # attention
        query = affine(h, self.query)
        cache.append((affine(h, self.key), affine(h, self.value)))
        h, size = [], len(x) // self.n_head
        for part in (slice(i, i + size) for i in range(0, len(x), size)):  # each head has its own part of the channels
            scores = affine(query[part], [key[part] for key, _ in cache])  # no mask: later positions are not there yet
            weights = softmax(scores, temperature=size**0.5)  # one per position
            h += affine(weights, zip(*(value[part] for _, value in cache)))  # the weighted mean of their values
        x = affine(h, self.attn_proj, x)  # x as the bias: the residual connection

        h = affine(rms_norm(x), self.mlp_up, relu=True)  # the MLP
        x = affine(h, self.mlp_proj, x)
        return affine(x, self.head)


def rms_norm(xs: Sequence[Value]) -> list[Value]:
    """The same direction with a mean square of 1. arXiv:1910.07467"""
    scale = (dot(xs, xs) / len(xs) + 1e-5) ** -0.5
    return [x * scale for x in xs]


def sample(model: GPT, alphabet: Sequence[str], temperature: float, rng=random) -> str:
    """Invent a name: begin with the end token, draw what follows, feed it back, until the end token is drawn."""
    end = token = len(alphabet)
    name, cache = "", []
    while len(cache) < model.block_size:
        logits = [v.data for v in model(token, cache)]
        if (token := rng.choices(range(end + 1), weights=probabilities(logits, temperature))[0]) == end:
            break
        name += alphabet[token]
    return name


# =====================================================================================================================
# THE WORKSHOP: pictures, demos and the command line. Nothing above depends on it, except how a notebook shows a Value.
# =====================================================================================================================

# ---------------------------------------------------------------------------------------------------------------------
# Drawing, from left to right: blue boxes are leaves, white boxes results, circles operations

LEAF, RESULT, OPERATION, LIT, EDGE, BLUE, RED = "#deebf6", "white", "0.93", "#f4c4b8", "0.45", "#8fb8de", "#c8553d"


def trace(root: Value) -> tuple[list[Value], list[tuple[Value, Value]]]:
    """-> (nodes, edges) of the graph, operands before their results."""
    nodes = list(dict.fromkeys([v for result in topological(root)[::-1] for v in (*result._prev, result)] or [root]))
    return nodes, [(operand, v) for v in nodes for operand in dict.fromkeys(v._prev)]


def boxes(root: Value) -> tuple[dict, list]:
    """-> ({box: its words}, arrows from box to box, the last first). Boxes are Values v, and their operations (v,)."""
    words = {v: f"{v.label}\n" * bool(v.label) + f"data {v.data:.4f}\ngrad {v.grad:.4f}" for v in trace(root)[0]}
    words |= {(v,): operation(v) for v in words if v._prev}
    return words, [edge for v in topological(root) for edge in (((v,), v), *zip(dict.fromkeys(v._prev), repeat((v,))))]


def to_dot(root: Value) -> str:
    """The graph in graphviz's language."""
    (words, arrows), signs = boxes(root), str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    name = {p: f"v{i}" for i, p in enumerate(words)}
    text = [f'{name[p]} [label="{words[p].translate(signs)}"{", shape=box" * isinstance(p, Value)}]' for p in words]
    return "\n".join(["digraph {", "rankdir=LR", *text, *(f"{name[a]} -> {name[b]}" for a, b in arrows), "}"])


def operation(v: Value) -> str:
    """The name in the circle. Of `a * 2` only a is kept as an operand, so the 2 is worked out from the numbers."""
    name = "×" if v._op == "*" else v._op
    if len(v._prev) > 1 or v._op not in ("+", "-", "*", "/"):
        return name
    x, slope = v._prev[0].data, v._local[0]
    constant = {"+": v.data - x, "-": x - v.data, "*": slope, "/": _divide(1.0, slope)}[v._op]
    return f"{name} {constant:.4g}"


def draw(root: Value, path: str | Path) -> None:
    """Write the graph of `root` to a file whose name ends in .png, .svg, .pdf or another format of matplotlib's."""
    write(Path(path), image(plot_graph(root), format=Path(path).suffix[1:]))


def image(fig, note: str = "", dpi: int = 110, format: str = "png") -> bytes:
    """A matplotlib figure as the bytes of a file. The note is put below it, on as many lines as it needs."""
    text = fig.supxlabel(note[:4096], y=0, va="top", fontsize=7, color="0.5", wrap=True, parse_math=False)
    fig.savefig(out := io.BytesIO(), format=format, dpi=dpi, bbox_inches="tight", bbox_extra_artists=[fig.patch, text])
    return out.getvalue()


def film(figures: Iterable, note: str, ms: int) -> bytes:
    """Figures as the bytes of a GIF, each shown for `ms` milliseconds, the last one longer."""
    from PIL import Image  # which matplotlib brings; its own PillowWriter knows no pauses, and writes to files only

    head, *tail = (Image.open(io.BytesIO(image(figure, note, 90))).convert("RGB").quantize() for figure in figures)
    head.save(out := io.BytesIO(), "GIF", save_all=True, append_images=tail, duration=[ms] * len(tail) + [4000], loop=0)
    return out.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write under another name, then rename: a full disk leaves the old file or none, never a part of the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        for _ in range(20):  # Windows refuses while somebody has the old file open
            with suppress(PermissionError):
                return os.replace(temporary, path)
            time.sleep(0.05)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plot_graph(root: Value, title: str = "", lit: Sequence = ()):
    """-> the graph as a matplotlib figure. What is in `lit` is lit: Values v, and operations (v,) that result in v."""
    from matplotlib import patches, path
    from matplotlib.figure import Figure  # without pyplot: no windows and no global state

    if (size := len(trace(root)[0])) > 400:
        raise ValueError(f"nobody can read a graph of {size} nodes: draw a part of it, up to 400")
    # Columns, counted from the right: each Value just left of its first use, each operation just left of its result.
    # Rows: in reading order. Where a line crosses a column, a point (operand, column) keeps a row free for it.
    (words, arrows), column = boxes(root), {root: 0}
    for a, b in arrows:
        column[a] = max(column.get(a, 0), column[b] + 1)
    routes = [[a, *((a, c) for c in range(column[a] - 1, column[b], -1)), b] for a, b in arrows]
    column |= {point: point[1] for route in routes for point in route[1:-1]}
    gap = min(0.5, 0.14 + 0.015 * max(map([*column.values()].count, column.values())))  # inches; wide for many lines
    left, right, y, end = {}, {}, {}, -gap / 2
    for c in range(max(column.values()), -1, -1):  # a column is as wide as its longest line
        members = [p for p in column if column[p] == c]
        letters = max(len(line) for p in members for line in words.get(p, "").split("\n"))
        start, end = end + gap, end + gap + 0.2 + 0.066 * min(letters, 40)  # 1e300 has too many digits for any picture
        left, right = left | dict.fromkeys(members, start), right | dict.fromkeys(members, end)
        y |= {p: 0.68 * (i - (len(members) - 1) / 2) for i, p in enumerate(members)}
    wide, low, high = end + gap / 2, max(y.values()) + 0.34, min(y.values()) - 0.34 - 0.22 * len(title.splitlines())
    figure = Figure(figsize=(wide, low - high))
    figure.suptitle(title, y=0.99, parse_math=False)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(low, high), frame_on=False, xticks=[], yticks=[])
    for route in routes:
        line = path.Path([point for p, q in pairwise(route) for point in ((right[p], y[p]), (left[q], y[q]))])
        color = RED if route[0] in lit and route[-1] in lit else EDGE
        axes.add_patch(patches.FancyArrowPatch(path=line, arrowstyle="-|>", mutation_scale=7, color=color))
    for p, text in words.items():
        face, corner = (OPERATION, 0.14) if isinstance(p, tuple) else (RESULT if p._prev else LEAF, 0.05)
        style = dict(boxstyle=f"round,pad=0,rounding_size={corner}", fc=LIT if p in lit else face, ec="0.3")
        wide, tall = right[p] - left[p], 0.14 * (text.count("\n") + 2)
        axes.add_patch(patches.FancyBboxPatch((left[p], y[p] - tall / 2), wide, tall, **style))
        axes.text(left[p] + wide / 2, y[p], text, ha="center", va="center", fontsize=8, parse_math=False)
    return figure


def plot_backward(root: Value) -> Iterable:
    """The chain rule, one result at a time: -> a picture of the graph at each. All gradients must be 0 beforehand."""
    root.grad = 1.0
    yield plot_graph(root, f"backward begins at the end\n∂{root.label}/∂{root.label} = 1", [root])
    for v in topological(root):
        title = f"{operation(v)}: local derivative · gradient of its result\n"
        for operand, slope in zip(v._prev, v._local):
            operand.grad += slope * v.grad
            title += f"  ∂{root.label}/∂{operand.label} = {slope:.4g} · {v.grad:.4g} = {slope * v.grad:.4g}  "
        yield plot_graph(root, title, [(v,), *v._prev])
    yield plot_graph(root, f"done\nthe grad of each Value v is ∂{root.label}/∂v")


# ---------------------------------------------------------------------------------------------------------------------
# The demos: a network that tells two classes of points in the plane apart, −1 and 1; and a GPT that learns names

SHAPES: dict[str, Callable] = {  # the place of a point: t runs from 0 to 1 along its class, s is −1 or 1
    "moons": lambda t, s, rng: (0.5 + s * (0.5 - math.cos(math.pi * t)), 0.25 + s * (0.25 - math.sin(math.pi * t))),
    "circles": lambda t, s, rng: ((3 - s) / 4 * math.cos(2 * math.pi * t), (3 - s) / 4 * math.sin(2 * math.pi * t)),
    "spiral": lambda t, s, rng: (s * t * math.cos(3 * math.pi * t), s * t * math.sin(3 * math.pi * t)),
    "xor": lambda t, s, rng: (x := rng.uniform(-1, 1), math.copysign(rng.uniform(0, 1), -s * x)),
}


def make_data(shape: str, n: int, noise: float, rng=random) -> tuple[list[tuple[float, float]], list[int]]:
    """-> (points, targets): n of them along the shape, classes in random order, with Gaussian noise."""
    targets = [1 if i % 2 else -1 for i in range(n)]
    rng.shuffle(targets)
    places = (SHAPES[shape]((i + 0.5) / n, target, rng) for i, target in enumerate(targets))
    return [(x + rng.gauss(0, noise), y + rng.gauss(0, noise)) for x, y in places], targets


def network_demo(config: Config) -> None:
    start, rng = time.perf_counter(), random.Random(config.seed)
    points, targets = make_data(config.data, config.points, config.noise, rng)
    model = MLP(2, [*config.widths, 1], activation=config.activation, rng=rng)
    print(f"{len(points)} points in the shape of {config.data}, a network of {len(model.parameters())} parameters")

    momentum = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer, losses, history = OPTIMIZERS[config.optimizer](model.parameters(), **momentum), [], []
    for step in range(config.max_steps):
        if config.animate and step % -(-config.max_steps // 40) == 0:
            history.append((step, copy.deepcopy(model)))
        optimizer.lr = config.learning_rate * (1.0 - 0.9 * step / config.max_steps)
        batch = rng.sample(range(len(points)), config.batch_size) if config.batch_size else range(len(points))
        scores, answers = [model(points[i]) for i in batch], [targets[i] for i in batch]
        loss = LOSSES[config.loss](scores, answers) + l2(optimizer.parameters, config.l2)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.data)
        if time_to_report(step, config, loss):
            print(f"step {step:5d} | loss {loss.data:.4f} | accuracy {accuracy(scores, answers):.0%}", flush=True)

    scores = [model(point) for point in points]
    loss = LOSSES[config.loss](scores, targets) + l2(optimizer.parameters, config.l2)
    print(f"loss {loss.data:.4f}, accuracy {accuracy(scores, targets):.1%}, {time.perf_counter() - start:.1f} seconds")
    try:
        draw_figures([*history, (config.max_steps, model)], points, targets, [*losses, loss.data], config)
    except ImportError:
        print("no figures: they need matplotlib (pip install matplotlib)")
    except OSError as error:
        print(f"micrograd: cannot write the figures: {error}", file=sys.stderr)


def accuracy(scores: Sequence[Value], targets: Sequence[int]) -> float:
    return sum((s > 0) == (t > 0) for s, t in zip(scores, targets)) / len(targets)


def time_to_report(step: int, config: Config, loss: Value) -> bool:  # about ten times in a run
    if not math.isfinite(loss.data):
        raise ValueError(f"the loss is {loss.data} in step {step}: try a smaller --learning-rate")
    return step % max(1, config.max_steps // 10) == 0 or step == config.max_steps - 1


def draw_figures(history: Sequence, points: Sequence, targets: Sequence, losses: Sequence, config: Config) -> None:
    """`history` lists the steps to show, each with the network before that step; the last is the trained network."""
    layer, note = history[-1][1].layers[0], config.command
    neuron, point = max(((n, p) for n in layer.neurons for p in points[:8]), key=lambda pair: pair[0](pair[1]))
    numbers, place = (*point, *(p.data for p in neuron.parameters())), "({:.2f}, {:.2f})".format(*point)
    boundary = [plot_boundary(model, points, targets, losses, step) for step, model in history]
    pictures = {"boundary.png": image(boundary[-1], note)}
    for name, fused in (("neuron.png", False), ("dot.png", True)):
        out = one_neuron(numbers, neuron.activation, fused)
        out.backward()
        title = f"neuron {layer.neurons.index(neuron) + 1} at {place}, {'fused' if fused else 'in single operations'}"
        pictures[name] = image(plot_graph(out, title), note)
    if config.animate:
        pictures["boundary.gif"] = film(boundary, note, 100)
        pictures["backward.gif"] = film(plot_backward(one_neuron()), note, 1500)
    (folder := Path(config.work_dir)).mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write(folder / name, picture)
    print("figures:", *(folder / name for name in pictures))


def plot_boundary(model: MLP, points: Sequence, targets: Sequence, losses: Sequence, step: int):
    """-> a matplotlib figure: how the network scores each place, and beside it the losses up to this step."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    xs, ys = ([min(c) - 0.4 + (max(c) - min(c) + 0.8) * i / 32 for i in range(33)] for c in zip(*points))
    scores = [[max(-3.0, min(3.0, model((x, y)).data)) for x in xs] for y in ys]
    plane, curve = Figure(figsize=(6.9, 3.4), layout="constrained").subplots(1, 2, width_ratios=(3, 2))
    colors = dict(cmap=LinearSegmentedColormap.from_list("", [RED, "white", BLUE]), vmin=-4, vmax=4)
    plane.contourf(xs, ys, scores, levels=[i / 4 for i in range(-12, 13)], **colors)
    if min(map(min, scores)) < 0.0 < max(map(max, scores)):
        plane.contour(xs, ys, scores, levels=[0.0], colors="black", linewidths=1)
    plane.scatter(*zip(*points), s=22, c=[BLUE if t > 0 else RED for t in targets], ec="black", lw=0.6)
    plane.set(title=f"step {step}: {accuracy(map(model, points), targets) * len(points):.0f} of {len(points)} right")
    plane.set(xticks=[], yticks=[], xlabel="score: red below 0, blue above", aspect="equal", anchor="N")
    curve.plot([min(loss, 1e99) for loss in losses], "-o", color=BLUE, mfc=RED, mec=RED, markevery=[step])  # not inf
    curve.set(title=f"loss {losses[step]:.4f}", xlabel="step", yscale="log")
    return plane.figure


def one_neuron(numbers: Sequence = (2.0, 0.0, -3.0, 1.0, 6.8813735870195432), activation="tanh", fused=False) -> Value:
    """activation(x1·w1 + x2·w2 + b), names and numbers as in the lecture; in single operations, or its sum as one."""
    x1, x2, w1, w2, b = map(Value, numbers, ("x1", "x2", "w1", "w2", "b"))
    both = (x1w1 := x1 * w1) + (x2w2 := x2 * w2)
    n = dot([w1, w2], [x1, x2], b) if fused else both + b
    out = ACTIVATIONS[activation](n)
    x1w1.label, x2w2.label, both.label, n.label, out.label = "x1w1", "x2w2", "(x1w1+x2w2)", "n", "o"
    return out


def gpt_demo(config: Config) -> None:
    rng, names = random.Random(config.seed), read_names(config.input_file)
    rng.shuffle(names)
    alphabet = sorted(set("".join(names)))
    end = len(alphabet)  # one more token, which starts a name and ends it
    model = GPT(end + 1, rng=rng)
    optimizer = Adam(model.parameters(), betas=(0.85, 0.99))
    print(f"{len(names)} names of {end} letters, a GPT of {len(optimizer.parameters)} parameters")

    start, recent = time.perf_counter(), []
    for step in range(config.max_steps):
        optimizer.lr = config.learning_rate * (1.0 - step / config.max_steps)
        tokens, cache = [end, *map(alphabet.index, names[step % len(names)]), end][: model.block_size + 1], []
        loss = mean(cross_entropy(model(token, cache), target) for token, target in pairwise(tokens))
        model.zero_grad()
        loss.backward()
        optimizer.step()
        recent = [*recent[-99:], loss.data]
        if time_to_report(step, config, loss):
            average, seconds = sum(recent) / len(recent), time.perf_counter() - start
            print(f"step {step:5d} | loss of the last hundred {average:.4f} | {seconds:.0f} s", flush=True)
    for _ in range(config.num_samples):
        print(sample(model, alphabet, config.temperature, rng), flush=True)


def read_names(path: str) -> list[str]:
    try:
        size = os.path.getsize(path)  # 0 for a pipe or a device, too, which may never end
        raw = Path(path).read_bytes() if 0 < size <= 2**25 else b""
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")  # 16: PowerShell's `>`
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names or "\0" in text or len(set(text)) > 10_000:
            many = "it has over 10,000 different letters" if names else "it holds no names, or is no file"
            raise ValueError("it has over 32 MB" if size > 2**25 else "it is binary" if "\0" in text else many)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path!r} ({error}): give a UTF-8 text file of names with -i") from None
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Command line. Config is the one source of every flag: its default, its help and what uses it.

DEMOS = {"network": network_demo, "gpt": gpt_demo}
USERS = {"": "every demo", "network": "--demo network", "sgd": "--optimizer sgd", "gpt": "--demo gpt"}  # of a flag


def flag(default, help: str, *short: str, of: str = "", least: float = -math.inf, **options):
    """A field of Config that is used by `of`, one of USERS. A default that depends on the user is a dict."""
    defaults = default if isinstance(default, dict) else {"": default}
    rules = dict(defaults=defaults, help=help, short=short, of=of, least=least, options=options)
    return field(default=defaults.get(""), metadata=rules)


@dataclass
class Config:
    command = ""  # as typed, shown below the figures; with no annotation it is no field, so no flag
    demo: str = flag("network", "what to train", choices=DEMOS)
    seed: int = flag(1337, "for data, weights and samples")
    max_steps: int = flag({"network": 100, "gpt": 1000}, "training steps", least=0)
    learning_rate: float = flag({"sgd": 1.0, "adam": 0.1, "gpt": 0.01}, "at the start", "-l", least=0)
    data: str = flag("moons", "shape of the toy data", of="network", choices=SHAPES)
    points: int = flag(100, "number of points", of="network", least=2)
    noise: float = flag(0.1, "standard deviation of the noise", of="network", least=0)
    layers: str = flag("16,16", "widths of the hidden layers; '' for none", of="network", metavar="N,N")
    activation: str = flag("relu", "of the hidden layers", of="network", choices=ACTIVATIONS)
    loss: str = flag("hinge", "what is minimised", of="network", choices=LOSSES)
    l2: float = flag(1e-4, "how strongly weights are pulled to 0", of="network", least=0)
    optimizer: str = flag("sgd", "how to step", of="network", choices=OPTIMIZERS)
    batch_size: int = flag(0, "points per step; 0 for all", of="network", least=0)
    work_dir: str = flag("out/micrograd", "folder for the figures", "-o", of="network", metavar="FOLDER")
    animate: bool = flag(False, "add boundary.gif and backward.gif", of="network", action="store_true")
    momentum: float = flag(0.0, "how much of the last step is repeated", of="sgd", least=0)
    input_file: str = flag("names.txt", "text file with one name per line", "-i", of="gpt", metavar="FILE")
    num_samples: int = flag(20, "names to invent", of="gpt", least=0)
    temperature: float = flag(0.5, "low plays safe, 1 samples what was learned, high is wild", of="gpt", least=1e-6)

    def __post_init__(self):  # fill in the defaults that depend on other settings; refuse what cannot be
        self.users = ("", "network", self.optimizer) if self.demo == "network" else ("", self.demo)
        for f in fields(self):
            if getattr(self, f.name) is None:
                setattr(self, f.name, next(x for user, x in f.metadata["defaults"].items() if user in self.users))
            value, least = getattr(self, f.name), f.metadata["least"]
            if value == [] or (value == "" and f.name != "layers"):  # []: what argparse makes of --layers=--
                raise ValueError(f"{spell(f)} is empty: give it a value, or leave it out")
            if not isinstance(value, str) and not least <= value < 1e30:
                raise ValueError(f"{spell(f)} is {value}: give a number from {least:g} up, and below 1e30")
        if self.batch_size > self.points:
            raise ValueError(f"--batch-size is {self.batch_size} of {self.points} points: give 0 to {self.points}")
        words = self.layers.split(",") if self.layers.strip() else []
        if not all(re.fullmatch(r"\s*0*[1-9]\d{0,9}\s*", word) for word in words):
            raise ValueError(f"--layers is {self.layers!r}: give whole numbers from 1 up, like 16,16")
        self.widths = list(map(int, words))
        if (memory := self.points * sum(b * (32 * a + 500) for a, b in pairwise([2, *self.widths, 1])) / 2**30) > 4:
            raise ValueError(f"--points {self.points} and --layers {self.layers} take {memory:.0f} GiB: give less")


def spell(f) -> str:
    return "--" + f.name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    def __init__(self, users: Sequence[str]):  # the help shows the defaults that these users have
        text = argparse.RawDescriptionHelpFormatter
        super().__init__("micrograd.py", description=__doc__, formatter_class=text, add_help=False, allow_abbrev=False)
        groups = {user: self.add_argument_group(title) for user, title in USERS.items()}
        groups[""].add_argument("-h", "--help", action="store_true", help="show this text; after --demo, its defaults")
        for f in fields(Config):
            kind = {"int": {"type": int, "metavar": "N"}, "float": {"type": float, "metavar": "X"}}.get(f.type, {})
            defaults = [f"{user} {x}".strip() for user, x in f.metadata["defaults"].items() if user in users]
            kind |= {"help": f"{f.metadata['help']} (default: {', '.join(defaults)})", "default": argparse.SUPPRESS}
            groups[f.metadata["of"]].add_argument(*f.metadata["short"], spell(f), **kind | f.metadata["options"])

    def error(self, message):
        raise ValueError(f"{message} (--help lists the flags)")


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit status: 2 after an error, reported in one line; 130 after Ctrl-C."""
    status, words = 0, ""
    try:
        prepare_output()
        argv = sys.argv[1:] if argv is None else argv
        hyphens = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in argv]
        args = vars(Parser(()).parse_args(hyphens))
        if args.pop("help", False):  # only now is it known whose defaults to show
            print(Parser(Config(**args).users if args else ("", *DEMOS, *OPTIMIZERS)).format_help(), end="", flush=True)
            sys.exit(0)
        config = Config(**args)
        config.command = shlex.join(["python", "micrograd.py", *argv]).encode("ascii", "backslashreplace").decode()
        users = {spell(f): f.metadata["of"] for f in fields(config) if f.name in args}
        if unused := ", ".join(f"{name} ({user})" for name, user in users.items() if user not in config.users):
            print(f"micrograd: not used by --demo {' with '.join(config.users[1:])}: {unused}", file=sys.stderr)
        DEMOS[config.demo](config)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status, words = 130, "micrograd: stopped\n"
    except (ValueError, OSError, MemoryError) as error:
        if not isinstance(error, BrokenPipeError):  # the reader of our output, `head` for example, has seen enough
            status, words = 2, f"micrograd: {' '.join(str(error).splitlines()) or 'out of memory'}\n"
    for stream, text in ((sys.stderr, words), (sys.stdout, "")):
        try:
            print(text, end="", file=stream, flush=True)
        except OSError:  # a full disk, or nobody there: do not try again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def prepare_output() -> None:
    """Files and pipes get UTF-8, a terminal what it can show; a closed stream (`>&-`) is opened on the null device."""
    for name in ("stdin", "stdout", "stderr"):  # in this order, so that each gets its own number back
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


# The original's modules, micrograd.engine and micrograd.nn, are this file: an import looks into sys.modules first.
engine = nn = sys.modules[__name__]
sys.modules |= {f"{__name__}.engine": engine, f"{__name__}.nn": nn}

if __name__ == "__main__":
    sys.exit(main())
