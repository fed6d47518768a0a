"""The exercises can be solved, and what is wrong is told."""

import re

import pytest
from exercises import EXERCISES, check, main

SOLUTIONS = """
import math
import torch
import torch.nn.functional as F


def softmax(values):
    counts = [v.exp() for v in values]
    total = sum(counts)
    return [count / total for count in counts]


def one_hot_logits(x, W):
    return F.one_hot(x, len(W)).to(W.dtype) @ W


def contexts(tokens, n):
    padded = [0] * n + tokens + [0]
    return [padded[i : i + n] for i in range(len(tokens) + 1)], padded[n:]


def first_loss(V):
    return math.log(V)


def fold_batchnorm(W, gamma, beta, mean, var, eps):
    scale = gamma / (var + eps).sqrt()
    return W * scale[:, None], beta - mean * scale


def cross_entropy_backward(logits, y):
    return (logits.softmax(1) - F.one_hot(y, logits.shape[1])) / len(y)


def tanh_backward(dout, out):
    return dout * (1 - out**2)


def linear_backward(dout, x, W):
    return dout @ W.T, x.T @ dout, dout.sum(0)


def embedding_backward(dout, idx, V):
    dC = torch.zeros(V, dout.shape[-1], dtype=dout.dtype)
    for token, row in zip(idx.flatten(), dout.flatten(0, -2)):
        dC[token] += row
    return dC


def batchnorm_backward(dout, x, gamma, eps):
    std = (x.var(0, correction=0) + eps).sqrt()
    unit = (x - x.mean(0)) / std
    dx = gamma / std * (dout - dout.mean(0) - unit * (dout * unit).mean(0))
    return dx, (dout * unit).sum(0), dout.sum(0)


def causal_convolution(x, past, now, dilation):
    return x @ now + F.pad(x, (0, 0, dilation, 0))[: len(x)] @ past


def average(x):
    weights = torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=x.dtype))
    return weights / weights.sum(1, keepdim=True) @ x


def attention(q, k, v):
    T = q.shape[1]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v
"""


def lines(capsys):
    return re.findall(r"^(right|wrong|to do)  (.*)$", capsys.readouterr().out, re.M)


def test_every_exercise_can_be_solved(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(SOLUTIONS)
    assert main([str(tmp_path / "mine.py")]) == 0
    assert lines(capsys) == [("right", exercise.__name__) for exercise in EXERCISES]


def test_what_is_not_written_yet_is_to_do(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def first_loss(V):\n    return 3.2958368660\n")
    for argv in ([], [str(tmp_path / "mine.py")]):
        assert main(argv) == 0
        said = lines(capsys)
        assert len(said) == len(EXERCISES) and said[0][0] == "to do" and said[0][1].startswith("Lecture 1. softmax(")
        assert (("right", "first_loss") in said) == bool(argv)


WRONG = {
    "tanh_backward": ("lambda dout, out: dout * (1 - out)", r"dx is \S+ instead of \S+ at \[\d, \d\]; \d+% .*"),
    "linear_backward": ("lambda dout, x, W: (dout @ W.T, x.T @ dout, dout.sum(1))", r"db has the shape \(8,\) .*"),
    "first_loss": ("lambda V: V", r"nats is 27 instead of 3.29584; 100% of it is off"),
    "average": ("lambda x: x.mean(1, keepdim=True).expand_as(x)", r"\(B, T, C\) is .*"),
    "softmax": ("lambda values: values[7]", "IndexError: .*"),
    "attention": ("lambda q, k, v: q * float('nan')", r"\(B, T, D\) is nan instead of .*"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name, tmp_path, capsys):
    source, words = WRONG[name]
    (tmp_path / "mine.py").write_text(f"{name} = {source}\n")
    assert main([str(tmp_path / "mine.py")]) == 1
    told = [line for kind, line in lines(capsys) if kind == "wrong"]
    assert len(told) == 1 and re.fullmatch(f"{name}: {words}", told[0])


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_exercise_is_told_in_a_line(exercise):
    assert re.match(rf"Lecture [1-7]\. {exercise.__name__}\(.*\): ", exercise.__doc__) and "\n" not in exercise.__doc__
    assert check(exercise, lambda *_: None).startswith("wrong")
