"""makemore: give it a file of things, one per line, and it makes more of them.

    python makemore.py -i names.txt --type mlp -o out/mlp      # train, evaluate, sample
    python makemore.py -o out/mlp --sample-only --prefix jo    # sample from what was trained
    python makemore.py -o out/mlp --eval other.txt             # score any file

    run = makemore.train("names.txt", type="mlp")              # the same in Python; also from a list of strings
    run = makemore.load("out/mlp")
    run.sample(5, prefix="jo")

Every model answers the same question: which character comes next? What stands where in this file:

    the lecture     settings · data · layers · models, simplest first · loss, evaluation, sampling · training
    the lessons     counting · two exercises · backpropagation by hand · mixtures · a look inside · order and rates
    the workshop    library · settings · files · checkpoints · devices and signals · console · figures · command line

Shapes: B batch, T time (characters of a line), C channels, H heads, V vocabulary, N any count. Token 0 starts and ends
every line and is drawn as '.'. Losses are in nats per character; the end of a line counts as a character.
"""

import argparse
import codecs
import contextlib
import copy
import csv
import hashlib
import html
import io
import itertools
import math
import os
import random
import re
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
import warnings
import zipfile
from collections import namedtuple
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path

# Set before torch is loaded: its threads then sleep while waiting for others, and Ctrl-C reaches Python on Windows
os.environ |= {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1", "FOR_DISABLE_CONSOLE_CTRL_HANDLER": "1", **os.environ}

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it as one line and exits with status 2."""


# ----------------------------------------------------------------------------------------------------------------------
# Settings: each stands here once; flags, help, checks and checkpoints derive from it


def setting(group, default, help, *names, what=None, low=0, high=10**15, choices=None, fixed=None):
    """A field of Config and its flag. names: short forms; what: its placeholder; fixed: a trained model keeps it."""
    fixed = group == "model" if fixed is None else fixed
    meta = dict(group=group, help=help, names=names, what=what, low=low, high=high, choices=choices, fixed=fixed)
    return field(default=default, metadata=meta)


# fmt: off
@dataclass
class Config:
    """All settings of a run. A model's row in MODELS overrides these defaults; None: used only if the row names it."""

    input_file: str = setting("data", "names.txt", "text file with one thing per line (UTF-8)", "-i", what="FILE")
    dedup: bool = setting("data", False, "drop repeats before splitting (published losses keep them)", fixed=True)

    type: str = setting("model", "transformer", "which model, see the list below", what="TYPE")
    block_size: int = setting("model", None, "context length in characters", low=1, high=65_536)
    n_layer: int = setting("model", None, "number of layers", low=1, high=1024)
    n_head: int = setting("model", None, "number of attention heads", low=1, high=1024)
    n_embd: int = setting("model", None, "channels of the embedding (and of the Transformer)", low=1, high=65_536)
    n_embd2: int = setting("model", None, "channels of the hidden layers", low=1, high=65_536)
    lookback: int = setting("model", None, "sum the embeddings of the last N characters (GPT-2: 1)", low=1, high=64)
    dropout: float = setting("model", None, "share of activations dropped while training", high=0.99, fixed=False)
    batchnorm: bool = setting("model", None, "BatchNorm before every tanh")
    direct: bool = setting("model", None, "connect the embeddings to the output directly, too")
    init: str = setting("model", None, "initial weights", choices=("kaiming", "torch", "normal", "zeros"))
    n: int = setting("model", None, "order of the n-gram: context plus next character", low=1, high=8)
    smoothing: str = setting("model", None, "how unseen n-grams get a probability", choices=("kneser-ney", "additive"))
    strength: float = setting("model", None, "count to add, or factor to Kneser-Ney's discounts (0: chosen on dev)")

    max_steps: int = setting("training", 10_000, "stop after this many steps (-1: go on until Ctrl-C)", low=-1)
    batch_size: int = setting("training", 256, "lines (or contexts) per step", "-b", low=1, high=10**6)
    learning_rate: float = setting("training", 1e-3, "peak learning rate", "-l", high=1e30)
    weight_decay: float = setting("training", 0.1, "decoupled decay of the matrices (sgd: a hundredth)", "-w")
    optimizer: str = setting("training", "adamw", "update rule", choices=("adamw", "sgd"), fixed=True)
    schedule: str = setting("training", "cosine", "decay of the rate", choices=("cosine", "linear", "step", "constant"))
    warmup_steps: int = setting("training", 100, "steps in which the learning rate climbs to its peak")
    decay_steps: int = setting("training", 0, "where the schedule ends (0: --max-steps, or the type's default if more)")
    grad_clip: float = setting("training", 0.0, "largest gradient norm allowed (0: no clipping)")
    backprop: str = setting("training", None, "manual: gradients by hand", choices=("autograd", "manual"), fixed=True)
    patience: int = setting("training", 0, "stop after this many evaluations without a new best (0: never)")
    eval_interval: int = setting("training", 0, "steps between evaluations on dev (0: a twentieth of the run)")
    diagnose: bool = setting("training", False, "draw activations, gradients, updates and dead neurons")
    quiet: bool = setting("training", False, "no samples between the rows")
    threads: int = setting("training", 0, "CPU threads (0: as many as help)", high=1024)
    seed: int = setting("training", 3407, "seeds weights, batches, dropout and samples", high=2**63 - 1, fixed=True)

    num_samples: int = setting("sampling", 20, "how many samples to print", high=10**6)
    temperature: float = setting("sampling", 1.0, "below 1 more cautious, above 1 bolder; 0: always the likeliest")
    top_k: int = setting("sampling", 0, "choose among the k likeliest characters only (0: all)", low=-1)
    top_p: float = setting("sampling", 1.0, "choose among the likeliest that make up this probability", high=1)
    prefix: str = setting("sampling", "", "text that every sample begins with", "--prompt", what="TEXT")

    work_dir: str = setting("run", "", "folder for model.pt, last.pt, log.csv and figures [out]", "-o", what="FOLDER")
    device: str = setting("run", "auto", "auto, cpu, cuda, cuda:N or mps", what="DEVICE")
    num_workers: int = setting("upstream", 0, "accepted but ignored: no step waits for its data", "-n")

    resume: bool = setting("mode", False, "go on from last.pt in the work folder, exactly")
    sample_only: bool = setting("mode", False, "sample from model.pt in the work folder")
    eval: str = setting("mode", "", "score this file with model.pt in the work folder, line by line", what="FILE")
    interactive: bool = setting("mode", False, "type the beginnings of lines; model.pt completes each")
    mix: str = setting("mode", "", "mix the models of these folders (a,b,...) into the work folder", what="FOLDERS")
    fold_batchnorm: bool = setting("mode", False, "fold BatchNorm of model.pt into its weights: folded/model.pt")
    find_lr: bool = setting("mode", False, "try learning rates from tiny to absurd: find_lr.png")
    check_backprop: bool = setting("mode", False, "compare 26 hand-written gradients with autograd's")
# fmt: on


# ----------------------------------------------------------------------------------------------------------------------
# Data: all lines become tokens in one tensor, into which every batch indexes


@dataclass
class Vocab:
    """The alphabet, sorted: character `chars[i]` is token `i + 1`; token 0 starts and ends every line."""

    chars: str

    def __len__(self):
        return len(self.chars) + 1

    def encode(self, text):
        """Text to an array of tokens (N,). Raises UserError that names the characters it does not know."""
        if unknown := sorted(set(text) - set(self.chars)):
            raise UserError(f"unknown to this model: {' '.join(map(repr, unknown[:20]))}; it knows {self.chars!r}")
        token = {c: i for i, c in enumerate(self.chars, 1)}
        return np.array([token[c] for c in text], dtype=np.int64)

    def decode(self, tokens):
        return "".join(("." + self.chars)[t] for t in tokens)


PARTS = ("train", "dev", "test")


@dataclass
class Corpus:
    """The lines, split in three (empty where the file is gone), and what a checkpoint keeps of them."""

    vocab: Vocab
    longest: int  # characters in the longest line
    digest: str  # sha256 of the lines in the order of the file
    places: list[str] = ()  # files that hold the lines, or may hold them
    train: list[str] = ()
    dev: list[str] = ()
    test: list[str] = ()

    def lines(self, part):
        if part not in PARTS:
            raise UserError(f"there is no part {part!r} of the data: choose among {', '.join(PARTS)}")
        if not self.train:
            raise UserError(f"{gone(self.places)}: what this model was trained on is needed")
        return getattr(self, part)


def split_lines(lines):
    """The lecture's three parts: seed 42, one shuffle, 80/10/10. However few the lines, dev and test get one each."""
    lines, n = list(lines), len(lines)
    random.Random(42).shuffle(lines)
    n2 = min(int(0.9 * n), n - 1)
    n1 = min(int(0.8 * n), n2 - 1)
    return lines[:n1], lines[n1:n2], lines[n2:]


class Lines:
    """Examples are whole lines; `batch` pads them to the longest among them.

    All lines lie in one stream of tokens with `gap` zeros before, between and after them, so that a line with its start
    and end is a slice (gap 1), and so is any character's context, padded with start tokens (gap block_size, see below).
    """

    gap = 1

    def __init__(self, lines, vocab, device="cpu", block_size=None):
        chars = vocab.encode("".join(lines))
        self.lengths = torch.tensor([len(line) for line in lines])  # (lines,)
        self.count = int((self.lengths + 1).sum())  # predictions: every character, and the end of every line
        self.starts = torch.cumsum(self.lengths + self.gap, 0) - self.lengths  # where each line's first character lies
        beyond = int(self.lengths.max())  # so that `batch` can read a row of the longest line's length from any start
        stream = np.zeros(len(chars) + self.gap * (len(lines) + 1) + beyond, dtype=np.int32)  # (N,)
        gaps_before = np.repeat(self.gap * np.arange(1, len(lines) + 1), self.lengths.numpy())
        stream[np.arange(len(chars)) + gaps_before] = chars
        self.stream = torch.from_numpy(stream).to(device)

    def __len__(self):
        return len(self.lengths)

    def batch(self, index):
        """index (B,) -> inputs (B, T) and targets (B, T), which are -1 after the end of a line."""
        length = self.lengths[index][:, None]  # (B, 1)
        column = torch.arange(int(length.max()) + 2)  # (T + 1,): the start token, the characters, the end token
        rows = self.stream[((self.starts[index] - 1)[:, None] + column).to(self.stream.device)].long()  # (B, T + 1)
        inside = (column[:-1] <= length).to(self.stream.device)  # (B, T): the start token and the characters
        return rows[:, :-1] * inside, rows[:, 1:].masked_fill(~inside, -1)

    def bigrams(self, vocab_size):
        """How often character j follows character i: (V, V)."""
        a, b = self.stream[:-1], self.stream[1:]
        pairs = (a * vocab_size + b)[(a != 0) | (b != 0)]  # two zeros in a row are a gap between lines
        return torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size)

    def line_of(self, index):
        """Which line each example belongs to: (B,) -> (B,)."""
        return index

    def in_order(self, tokens):
        """Every example once, in batches of lines of similar length, with at most `tokens` tokens each."""
        return torch.argsort(self.lengths, stable=True).split(max(1, tokens // (int(self.lengths.max()) + 1)))


class Windows(Lines):
    """Characters as examples: `batch` gives the `block_size` tokens before each of them."""

    def __init__(self, lines, vocab, device="cpu", block_size=3):
        self.gap = block_size
        super().__init__(lines, vocab, device)
        is_char = self.stream != 0
        is_target = is_char[block_size:] | is_char[block_size - 1 : -1]  # a character, or the 0 after it: a line's end
        self.first = is_target.nonzero()[:, 0]  # where each example's window begins
        self.windows = self.stream.unfold(0, block_size + 1, 1)  # (N, block_size + 1), a view of the stream
        self.ends = torch.cumsum(self.lengths + 1, 0)  # the number of examples up to the end of each line

    def __len__(self):
        return len(self.first)

    def batch(self, index):
        """index (B,) -> contexts (B, block_size) and targets (B,)."""
        rows = self.windows[self.first[index.to(self.stream.device)]].long()  # (B, block_size + 1)
        return rows[:, :-1], rows[:, -1]

    def line_of(self, index):
        return torch.searchsorted(self.ends, index, right=True)

    def in_order(self, tokens):
        return torch.arange(len(self)).split(max(1, tokens // self.windows.shape[1]))


# ----------------------------------------------------------------------------------------------------------------------
# Layers, written by hand as the lectures teach them; a test holds each against torch's own


class Linear(nn.Module):
    """y = x Wᵀ + b with Kaiming initialisation (He et al. 2015): `gain` makes up for the non-linearity."""

    def __init__(self, fan_in, fan_out, bias=True, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * gain / fan_in**0.5)
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """A row of numbers for every token."""

    def __init__(self, num, dim, std=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num, dim) * std)

    def forward(self, idx):
        return F.embedding(idx, self.weight)


class Positions(Embedding):
    """A row of numbers for every position in the line: (B, T) -> (T, C)."""

    def forward(self, idx):
        T, limit = idx.shape[1], len(self.weight)
        if limit < T:
            raise UserError(f"a line of {T - 1} characters is too long: this model has positions for {limit - 1}")
        return self.weight[:T]


class BatchNorm1d(nn.Module):
    """Give every channel mean 0 and variance 1 over the batch, and over time if there is one (Ioffe & Szegedy 2015).

    Training uses the batch's own statistics and remembers their running average, which evaluation uses.
    """

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x):  # (B, C) or (B, T, C)
        mean, var = self.statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = self.gamma * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.beta - mean * scale, x, scale)  # gamma (x - mean) / std + beta

    def statistics(self, x):
        """Mean and variance of the batch; moves the running averages, too (unbiased variance there, as in torch)."""
        var, mean = torch.var_mean(x, tuple(range(x.ndim - 1)), correction=0)  # over all but the channels
        n = x.numel() // x.shape[-1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
        return mean, var


class Dropout(nn.Module):
    """Set a share p of the numbers to zero while training, and scale up the rest (Srivastava et al. 2014).

    On a CPU one random byte decides for each number, at a fifth of nn.Dropout's cost; so p is rounded to 256ths.
    """

    def __init__(self, p):
        super().__init__()
        self.dropped = round(256 * p)  # of 256 possible bytes

    def forward(self, x):
        if not (self.training and self.dropped):
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.dropped / 256)
        random_bytes = torch.empty(x.numel() // 8 + 1, dtype=torch.long).random_(-(2**63), None).view(torch.uint8)
        mask = random_bytes[: x.numel()].view(x.shape) >= self.dropped
        return x * mask.to(x.dtype).mul_(256 / (256 - self.dropped))


class FlattenConsecutive(nn.Module):
    """Lay `n` neighbours in time side by side: (B, T, C) -> (B, T/n, n C), and (B, n C) when one is left."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        B, T, C = x.shape
        return x.view(B, T // self.n, self.n * C).squeeze(1)  # squeezes only if T / n is 1


TANH_GAIN = 5 / 3  # tanh squashes; this gain keeps the standard deviation from layer to layer
HEAD_GAIN = 0.1  # small weights in the last layer: at first all characters are about equally likely, at a loss of ln V


# ----------------------------------------------------------------------------------------------------------------------
# Models, simplest first. A class takes (config, vocab_size) and is one of two kinds:


class WindowModel(nn.Module):
    """Takes contexts of a fixed length (B, block_size), returns logits (B, V)."""

    windowed = True

    @staticmethod
    def context(config, longest):
        return config.block_size


class SequenceModel(nn.Module):
    """Takes the beginnings of lines (B, T), returns logits for every next character at once, (B, T, V)."""

    windowed = False

    @staticmethod
    def context(config, longest):
        """The longest line and the start token have to fit."""
        if config.block_size and config.block_size <= longest:
            raise UserError(f"--block-size {config.block_size} is too short: the longest line here needs {longest + 1}")
        return config.block_size or longest + 1


class Bigram(WindowModel):
    """A table of logits with one row for every context. With --block-size 2 it is a trigram, and so on."""

    def __init__(self, config, vocab_size):
        super().__init__()
        n = config.block_size
        if vocab_size ** (n + 1) > 2**28:
            raise UserError(f"--block-size {n} needs a table of {vocab_size}^{n + 1} numbers")
        self.table = Embedding(vocab_size**n, vocab_size, std=0.0)

    def forward(self, idx):
        row, V = idx[:, 0], self.table.weight.shape[1]
        for column in idx.unbind(1)[1:]:
            row = row * V + column  # a context is a number written in base V
        return self.table(row)  # (B, V)


class ContextLinear(Linear):
    """A Linear layer over the embeddings of several characters side by side: (B, T) -> (B, fan_out).

    A character has the same embedding wherever it occurs. So when a batch has more examples than the alphabet has
    characters, multiply the whole alphabet by each position's weights once, then look up the products and add them:
    the same sums in a third of the time.
    """

    def forward(self, idx, embedding):
        (B, T), (V, C) = idx.shape, embedding.weight.shape
        if B <= V:
            return super().forward(embedding(idx).flatten(1))
        weight = self.weight.view(-1, T, C).transpose(0, 1).reshape(-1, C)  # (T fan_out, C)
        alphabet = torch.arange(V, device=idx.device)
        products = F.linear(embedding(alphabet), weight).view(V * T, -1)  # row v T + t: character v at position t
        total = F.embedding_bag(idx * T + torch.arange(T, device=idx.device), products, mode="sum")
        return total if self.bias is None else total + self.bias


def tanh_layer(fan_in, fan_out, batchnorm, dropout, linear=Linear):
    """Linear, perhaps BatchNorm (which makes the bias superfluous), tanh, perhaps dropout."""
    layers = [linear(fan_in, fan_out, bias=not batchnorm, gain=TANH_GAIN)]
    layers += [BatchNorm1d(fan_out), nn.Tanh()] if batchnorm else [nn.Tanh()]
    return [*layers, Dropout(dropout)] if dropout else layers


class MLP(WindowModel):
    """Embeddings of the last block_size characters, side by side, through tanh layers (Bengio et al. 2003).

    With `direct`, the embeddings also reach the output straight, as in the paper's equation 1.
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        width, hidden = config.block_size * config.n_embd, config.n_embd2
        self.token = Embedding(vocab_size, config.n_embd)
        self.direct = ContextLinear(width, vocab_size, bias=False, gain=HEAD_GAIN) if config.direct else None
        self.first, *layers = tanh_layer(width, hidden, config.batchnorm, config.dropout, ContextLinear)
        for _ in range(config.n_layer - 1):
            layers += tanh_layer(hidden, hidden, config.batchnorm, config.dropout)
        self.layers = nn.Sequential(*layers, Linear(hidden, vocab_size, gain=HEAD_GAIN))

    def forward(self, idx):
        logits = self.layers(self.first(idx, self.token))  # (B, V)
        return logits + self.direct(idx, self.token) if self.direct else logits


class WaveNet(WindowModel):
    """Neighbours are fused in pairs, then pairs of pairs, and so on up a tree (after van den Oord et al. 2016)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        n, depth = config.block_size, config.block_size.bit_length() - 1
        if 2**depth != n or depth == 0:
            raise UserError(f"--block-size {n}: wavenet halves its context in every layer, so 2, 4, 8, ...")
        layers, width = [Embedding(vocab_size, config.n_embd)], config.n_embd
        for _ in range(depth):
            layers += [FlattenConsecutive(2), *tanh_layer(2 * width, config.n_embd2, config.batchnorm, config.dropout)]
            width = config.n_embd2
        self.layers = nn.Sequential(*layers, Linear(width, vocab_size, gain=HEAD_GAIN))

    def forward(self, idx):
        return self.layers(idx)  # (B, V)


class Packing:
    """Where the characters stand in a batch of padded lines (B, T), so that no work is done on the padding."""

    def __init__(self, idx):
        inside = idx != 0
        inside[:, 0] = True  # a 0 in front is the start token; any other is padding
        self.shape, self.where = idx.shape, inside.flatten().nonzero()[:, 0]  # (N,)

    def pack(self, x):
        """(B, T, C) -> (N, C)"""
        return x.flatten(0, 1).index_select(0, self.where)

    def unpack(self, x):
        """(N, C) -> (B, T, C), zero in the padding"""
        return x.new_zeros(self.shape.numel(), x.shape[1]).index_copy(0, self.where, x).view(*self.shape, -1)


class BoW(SequenceModel):
    """A bag of words: every position averages itself and the past; only the position embedding tells the order."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.token = Embedding(vocab_size, config.n_embd)
        self.position = Positions(config.block_size, config.n_embd)
        self.up = Linear(config.n_embd, config.n_embd2, gain=TANH_GAIN)
        self.down = Linear(config.n_embd2, config.n_embd)
        self.head = Linear(config.n_embd, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        count, packing = torch.arange(1, idx.shape[1] + 1, device=idx.device)[:, None], Packing(idx)
        x = self.token(idx) + self.position(idx)  # (B, T, C)
        x = packing.pack(x + x.cumsum(1) / count)  # the mean of itself and the past, without a mask: (N, C)
        x = x + self.down(torch.tanh(self.up(x)))
        return packing.unpack(self.head(x))  # (B, T, V)


class Recurrence(nn.Module):
    """What all recurrent layers share: a learned initial state, one projection of all inputs at once, a loop over time.

    A cell says how many `gates` its projections feed, how many `states` it carries, and how to `step` from one time to
    the next, given x, the projected input, and u, the projected state 0. State 0 is also what the layer above sees.
    """

    gates = states = 1

    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.input = Linear(n_in, self.gates * n_hidden)
        self.hidden = Linear(n_hidden, self.gates * n_hidden)
        self.start = nn.Parameter(torch.zeros(self.states, 1, n_hidden))

    def forward(self, x):  # (B, T, C) -> (B, T, hidden)
        inputs = self.input(x).unbind(1)  # T times (B, gates * hidden): only what depends on the state is in the loop
        state = [s.expand(len(x), -1) for s in self.start]
        outputs = []
        for xt in inputs:
            state = self.step(xt, self.hidden(state[0]), *state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)


class RNNCell(Recurrence):
    """h' = tanh(x + U h)  (Elman 1990; as a language model, Mikolov et al. 2010)."""

    def step(self, x, u, h):
        return [torch.tanh(x + u)]


class GRUCell(Recurrence):
    """Gates decide what to forget and what to renew (Cho et al. 2014, reset after the product as in cuDNN)."""

    gates = 3

    def step(self, x, u, h):
        sizes = [2 * h.shape[1], h.shape[1]]
        (x_gates, x_new), (u_gates, u_new) = x.split(sizes, 1), u.split(sizes, 1)
        r, z = torch.sigmoid(x_gates + u_gates).chunk(2, 1)  # reset, update
        return [torch.lerp(torch.tanh(x_new + r * u_new), h, z)]  # (1 - z) new + z h


class LSTMCell(Recurrence):
    """A second state, the cell, is only ever scaled and added to (Hochreiter & Schmidhuber 1997)."""

    gates, states = 4, 2

    def step(self, x, u, h, c):
        i, f, new, o = (x + u).chunk(4, 1)  # input, forget, new, output
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(new)
        return [torch.sigmoid(o) * torch.tanh(c), c]


class Recurrent(SequenceModel):
    """Embedding, n_layer recurrent layers of the given cell, head."""

    def __init__(self, config, vocab_size, cell):
        super().__init__()
        widths = [config.n_embd] + [config.n_embd2] * config.n_layer
        self.token = Embedding(vocab_size, config.n_embd)
        self.cells = nn.ModuleList([cell(a, b) for a, b in itertools.pairwise(widths)])
        self.dropout = Dropout(config.dropout)
        self.head = Linear(config.n_embd2, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        x = self.dropout(self.token(idx))  # (B, T, C)
        for cell in self.cells:
            x = self.dropout(cell(x))  # (B, T, hidden)
        return self.head(x)  # (B, T, V)


class CausalSelfAttention(nn.Module):
    """Every position averages itself and the past, weighted by how well keys match its query (Vaswani et al. 2017)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd, gain=(2 * config.n_layer) ** -0.5)

    def forward(self, x, packing):  # (N, C)
        B, T = packing.shape
        q, k, v = packing.unpack(self.qkv(x)).view(B, T, 3, self.n_head, -1).transpose(1, 3).unbind(2)  # (B, H, T, C/H)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # softmax(q kᵀ / √(C/H)) v, and none of the future
        return self.proj(packing.pack(y.transpose(1, 2).flatten(2)))  # (N, C)


class Block(nn.Module):
    """Attention between the positions, then an MLP at each; both are added to their input (residual connections)."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.norm = nn.LayerNorm(C)
        self.attn = CausalSelfAttention(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(C), Linear(C, 4 * C), nn.GELU(), Linear(4 * C, C, gain=(2 * config.n_layer) ** -0.5)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x, packing):  # (N, C)
        x = x + self.dropout(self.attn(self.norm(x), packing))
        return x + self.dropout(self.mlp(x))


class Transformer(SequenceModel):
    """The GPT-2 recipe at pocket size: normalisation first, GELU, learned positions (Radford et al. 2019).

    Unlike GPT-2, each input sums the embeddings of the last `lookback` characters (after the nanoGPT speed runs, 2025).
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"--n-embd {config.n_embd} does not divide among --n-head {config.n_head}: take a multiple")
        self.tokens = nn.ModuleList(Embedding(vocab_size, config.n_embd, 0.5) for _ in range(config.lookback))
        self.position = Positions(config.block_size, config.n_embd, std=0.1)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = Linear(config.n_embd, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        packing, n = Packing(idx), len(self.tokens)
        recent = F.pad(idx, (n - 1, 0)).unfold(1, n, 1).unbind(2)[::-1]  # n times (B, T), the newest character first
        x = sum((table(i) for table, i in zip(self.tokens, recent, strict=True)), self.position(idx))  # (B, T, C)
        x = self.dropout(packing.pack(x))  # (N, C)
        for block in self.blocks:
            x = block(x, packing)
        return packing.unpack(self.head(self.norm(x)))  # (B, T, V)


@dataclass(frozen=True)
class Entry:
    """A row of the registry: the class, a line about it, and the settings that it uses with their defaults."""

    model: type
    about: str
    defaults: dict
    fixed: dict = field(default_factory=dict)  # further arguments of the class
    threads: int = 1024  # at most; on more, small operations only wait for each other


# fmt: off
RECURRENT = dict(n_layer=1, n_embd=48, n_embd2=128, dropout=0.0, init="kaiming", batch_size=128, learning_rate=8e-3,
                 grad_clip=1.0)
MODELS = {
    "bigram": Entry(
        Bigram, "a table: the next character from the last --block-size ones",
        dict(block_size=1, batch_size=4096, learning_rate=0.02, weight_decay=0.0, max_steps=1500), threads=1),
    "mlp": Entry(
        MLP, "embeddings of the last --block-size characters into tanh layers (Bengio et al. 2003)",
        dict(block_size=8, n_layer=1, n_embd=24, n_embd2=256, dropout=0.0, batchnorm=False, direct=False,
             init="kaiming", backprop="autograd", learning_rate=3e-3, max_steps=15_000), threads=1),
    "wavenet": Entry(
        WaveNet, "a tree of convolutions over the last --block-size characters, with BatchNorm",
        dict(block_size=8, n_embd=24, n_embd2=128, dropout=0.0, batchnorm=True, init="kaiming",
             learning_rate=3e-3, max_steps=8000), threads=1),
    "bow": Entry(
        BoW, "the average of everything so far, order forgotten",
        dict(block_size=None, n_embd=64, n_embd2=256, init="kaiming", batch_size=128, learning_rate=0.01,
             weight_decay=0.01, max_steps=5000), threads=1),
    "rnn": Entry(
        Recurrent, "the plain recurrent network (Elman 1990)", dict(RECURRENT, max_steps=5000), dict(cell=RNNCell), 2),
    "gru": Entry(
        Recurrent, "the one with gates (Cho et al. 2014)", dict(RECURRENT, max_steps=4000), dict(cell=GRUCell), 2),
    "lstm": Entry(
        Recurrent, "the one with gates and a memory cell (Hochreiter & Schmidhuber 1997)",
        dict(RECURRENT, max_steps=4000), dict(cell=LSTMCell), 2),
    "transformer": Entry(
        Transformer, "attention (Vaswani et al. 2017) after the recipe of GPT-2",
        dict(block_size=None, n_layer=4, n_head=4, n_embd=64, lookback=4, dropout=0.15, init="kaiming",
             batch_size=128, learning_rate=5e-3, max_steps=3500), threads=4),
}
# fmt: on


def build(config, vocab_size):
    """A new model as config describes it; the caller's random numbers are left alone."""
    entry = MODELS[config.type]
    with torch.random.fork_rng(devices=[]):
        reseed(torch.device("cpu"), config.seed)  # where models are made
        model = entry.model(config, vocab_size, **entry.fixed)
        reinitialise(model, config.init)
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Loss, evaluation, sampling: exact, in eval mode, and without touching the random numbers of training


def cross_entropy(logits, targets, reduction="mean"):
    """Negative log-likelihood of the targets in nats. Targets are tokens (-1 is ignored) or probabilities (..., V)."""
    rows = logits.flatten(0, -2), targets.flatten(0, logits.ndim - 2)  # (N, V), and (N,) or (N, V)
    return F.cross_entropy(*rows, ignore_index=-1, reduction=reduction)


@contextlib.contextmanager
def inference(model):
    """A context: eval mode and no gradients; afterwards the mode is as before."""
    was_training = model.training
    if was_training:  # only if needed: visiting every layer would take a fifth of the time per character written
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def line_losses(model, data, tokens=32_768):
    """Return the loss of every line in nats, its end included: (lines,). `tokens` bounds the size of a batch."""
    losses = torch.zeros(len(data.lengths), dtype=torch.float64)
    with inference(model):
        for index in data.in_order(tokens):
            x, y = data.batch(index)
            nats = cross_entropy(model(x), y, reduction="none").view(len(index), -1).sum(1)
            losses.index_add_(0, data.line_of(index), nats.cpu().double())  # a line's characters may be many examples
    return losses


def next_token_probs(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Logits (B, V) to weights (B, V) for torch.multinomial, by temperature, top-k and top-p (Holtzman et al. 2020)."""
    if temperature < 1e-10:  # 0, or as good as 0
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # no overflow, however small the temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -math.inf)
    probs = logits.softmax(-1)
    if top_p < 1:
        ranked, order = probs.sort(descending=True, dim=-1)
        likelier = ranked.cumsum(-1) - ranked  # the probability of all that is likelier
        ranked[:, 1:][likelier[:, 1:] >= top_p] = 0  # the likeliest always stays
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
    return probs


# ----------------------------------------------------------------------------------------------------------------------
# Training, and all that one does with a model: a Run holds together what belongs together


def make_optimizer(model, config):
    """AdamW or SGD. Matrices and the initial states of recurrent layers decay; biases and gains never do."""
    matrices, others = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    decay = config.weight_decay * (0.01 if config.optimizer == "sgd" else 1)  # multiplied by the rate, larger for SGD
    groups = [dict(params=params, weight_decay=d) for params, d in ((matrices, decay), (others, 0.0)) if params]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


class Run:
    """A model, its alphabet, its settings and its folder: what the command line and a notebook both work with."""

    def __init__(self, config, data, model, verbose=False):
        self.config, self.data, self.vocab = config, data, data.vocab  # data: a Corpus, with its lines if at hand
        self.encode_prefix(config.prefix)  # a bad prefix raises here, not after training
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        self.folder = Path(config.work_dir) if config.work_dir else None  # None: nothing is written
        self.progress, self.console = Progress(), Console(self, verbose)
        self.optimizer = self.meter = None
        self.parts, self.memory, self.kept, self.source = {}, {}, {}, None  # see `examples`, `keep`, `set_aside`

    def evaluate(self, part="dev"):
        """The exact mean loss over "train", "dev" or "test", in nats per character."""
        data = self.examples(part)
        return line_losses(self.model, data).sum().item() / data.count

    def score(self, lines):
        """The loss of each line in nats, its end included: a list of floats."""
        return line_losses(self.model, self.examples(check_lines(lines))).tolist()

    def probabilities(self, prefix=""):
        """What comes after a prefix, {character: probability}, likeliest first; '' is the end of the line."""
        with inference(self.model):
            p = self.next_logits(self.encode_prefix(prefix)[None])[0].softmax(0).tolist()
        return dict(sorted(zip(["", *self.vocab.chars], p, strict=True), key=lambda pair: -pair[1]))

    def sample(self, n=None, prefix=None, temperature=None, top_k=None, top_p=None, seed=None):
        """Return n new lines, none longer than the longest of the data. What is not given is as in `config`."""
        given = dict(num_samples=n, prefix=prefix, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        c = replace(self.config, **check_settings(given))
        generator = torch.Generator().manual_seed(c.seed)
        idx = self.encode_prefix(c.prefix).expand(c.num_samples, -1)  # (n, t)
        alive = torch.ones(c.num_samples, dtype=torch.bool)
        with inference(self.model):
            while idx.shape[1] <= self.data.longest and alive.any():
                probs = next_token_probs(self.next_logits(idx), c.temperature, c.top_k, c.top_p)
                token = torch.multinomial(probs, 1, generator=generator)  # (n, 1)
                token[~alive] = 0
                idx = torch.cat((idx, token), 1)  # (n, t + 1)
                alive &= token[:, 0] != 0
        return [self.vocab.decode(t for t in row if t) for row in idx.tolist()]

    def next_logits(self, idx):
        """Beginnings of lines (B, t), the start token in front -> logits (B, V) for what comes next."""
        size, windowed = self.config.block_size, self.model.windowed
        logits = self.model((F.pad(idx, (size, 0))[:, -size:] if windowed else idx).to(self.device))
        return (logits if windowed else logits[:, -1]).float().cpu()

    def encode_prefix(self, prefix):
        """The start token and the prefix as tokens (t,). Raises UserError where no line can begin like that."""
        if len(prefix) >= self.data.longest:
            raise UserError(f"--prefix {prefix!r} must be shorter than the longest line, {self.data.longest} letters")
        return torch.tensor([0, *self.vocab.encode(prefix)])

    def train(self, **settings):
        """Learn until max_steps, patience or Ctrl-C, and end with the best weights on dev; call it again to go on."""
        with learning(self, settings) as self.stop:
            self.checkpoint()  # evaluate, keep the best, save, report
            while not self.over():
                self.learn()  # batch, forward, backward, step
                if self.progress.step % self.interval == 0:
                    self.checkpoint()
            self.checkpoint()
        return self

    def over(self):
        c = self.config
        return self.stop.signum or 0 <= c.max_steps <= self.progress.step or 0 < c.patience <= waited(self)

    def learn(self):
        c, data = self.config, self.examples("train")
        rate = learning_rate(self.progress.step, c, self.horizon)
        x, y = data.batch(torch.from_numpy(drawn(len(data), c.batch_size, self.progress.step, c.seed)[0]))
        reseed(self.device, c.seed + self.progress.step)  # so dropout, too, is known from the step alone
        if c.backprop == "manual":
            loss = manual_gradients(self.model, x, y)
        else:
            loss = cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
        if c.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.progress.step += 1
        if self.meter:  # --diagnose
            self.meter()
        self.console.stepped(loss.detach())

    def checkpoint(self):
        p = self.progress
        if p.history and p.history[-1][0] == p.step:
            return  # done already, where a resumed run begins or a finished one ends
        train_loss, dev_loss = self.console.stop_clock(), self.evaluate("dev")
        check_finite(self, dev_loss)
        improved = dev_loss < p.best_loss
        rate = learning_rate(p.step, self.config, self.horizon)
        p.history.append([p.step, round(p.seconds, 3), train_loss, dev_loss, rate])
        p.samples.append(glimpse(self))
        keep(self, improved)
        self.console.row(improved)

    def examples(self, lines):
        """Lines, or the part of the data with that name, as the kind of examples that the model takes."""
        if isinstance(lines, str):
            if lines not in self.parts:
                self.parts[lines] = self.examples(self.data.lines(lines))
            return self.parts[lines]
        kind = Windows if self.model.windowed else Lines
        return kind(lines, self.vocab, self.device, self.config.block_size)

    def save(self, folder):
        """Write the model as it is now into a folder, from which `load` restores it for use or further training."""
        save_run(self, folder)

    @classmethod
    def load(cls, work_dir, name="model.pt", verbose=False, **settings):
        """The run that a folder holds, to sample, score, evaluate or train on; settings by keyword as for `train`."""
        given = check_settings({**settings, "work_dir": work_dir})
        return open_run(load_checkpoint(Path(work_dir) / name), given, verbose)


# ======================================================================================================================
# THE LESSONS: what the lectures do outside the main line. Each can be read, or skipped, by itself.
# ======================================================================================================================
# Counting: the model that needs no network, and the number that every network has to beat


class NGram(WindowModel):
    """Counts of what followed every context of up to n - 1 characters. A model with a method `fit` learns in one go.

    A context of k characters is a node of a tree, reached by reading from the newest character to the oldest, so the
    shorter contexts, to which smoothing falls back, lie on the way. Level k's estimate is mixed with level k-1's:

        p_k = (count - discount) / total + (what the discounts freed) / total * p_{k-1},      p_{-1} = 1 / V

    Interpolated modified Kneser-Ney (Chen & Goodman 1999): three discounts a level, for counts of 1, 2 and more, and
    below the top a count of distinct contexts instead of occurrences. Additive smoothing is the same with no discount,
    `strength` added to every count, and nothing between the top level and the uniform one.
    """

    tables = ("contexts", "pairs", "counts")  # sorted keys: V × row of the context below + character; V × row + target

    def __init__(self, config, vocab_size):
        super().__init__()
        self.V, self.additive, self.levels = vocab_size, config.smoothing == "additive", [None] * config.n
        self.mixed = range(config.n)[-1 if self.additive else 0 :]  # the levels that enter the mixture
        grid = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0] if self.additive else [i / 10 for i in range(5, 16)]
        self.grid = [config.strength] if config.strength else grid
        start = torch.full((config.n,), config.strength or 1.0, dtype=torch.float64)
        self.strength = nn.Parameter(start, requires_grad=False)  # chosen on dev, not by gradient descent

    @staticmethod
    def context(config, longest):
        return max(1, config.n - 1)

    def _apply(self, *_, **__):
        return self  # counts stay on the CPU, in float64, whatever device other models move to

    def state_dict(self, **_):
        levels = enumerate(self.levels)
        tables = {f"{name}{k}": t for k, level in levels for name, t in zip(self.tables, level or (), strict=False)}
        return {"strength": self.strength.data, **tables}

    def load_state_dict(self, state):
        self.strength.data = state["strength"]
        compare("strength", self.strength.data, torch.zeros(len(self.levels), dtype=torch.float64))
        for k in range(len(self.levels)):
            contexts, pairs, counts = (state[f"{name}{k}"] for name in self.tables)
            for table, like in ((contexts, contexts), (pairs, pairs), (counts, pairs)):
                compare("a table", table, torch.zeros(len(like), dtype=torch.long))
            self.levels[k] = self.level(contexts, pairs, counts)

    def fit(self, train, dev):
        """Count the windows of `train`, then choose the strength on `dev`, level by level, longest context first."""
        windows = train.windows[train.first].long().cpu()  # (N, block_size + 1)
        target, V = windows[:, -1], self.V  # (N,)
        node, pair_below, tables = torch.zeros_like(target), None, []  # node: the context, (N,)
        for k in range(len(self.levels)):
            contexts = torch.zeros(1, dtype=torch.long)
            if k:
                contexts, node = torch.unique(node * V + windows[:, -1 - k], return_inverse=True)
            pairs, pair, counts = torch.unique(node * V + target, return_inverse=True, return_counts=True)
            if k and not self.additive:  # the level below counts how many of these contexts each of its pairs occurs in
                parent = torch.empty_like(pairs).scatter_(0, pair, pair_below)
                tables[-1][2] = torch.bincount(parent)
            tables.append([contexts, pairs, counts])
            pair_below = pair
        self.levels = [self.level(*table) for table in tables]
        found = self.look_up(*dev.batch(torch.arange(len(dev))))
        for k in reversed(self.mixed):
            losses = {}
            for strength in self.grid:
                self.strength[k] = strength
                losses[strength] = -self.mix(found).log().mean().item()
            self.strength[k] = min(losses, key=losses.get)
        contexts = " ".join(f"{len(x[0]):,}" for x in self.levels)
        strengths = " ".join(f"{self.strength[k]:.2g}" for k in self.mixed)
        return f"contexts of 0, 1, ... characters: {contexts}; strength of smoothing, shortest first: {strengths}"

    def level(self, contexts, pairs, counts):
        """The tables of one level, sorted: contexts, pairs of context and character, and what follows from counts."""
        kind = F.one_hot(counts.clamp(max=3) - 1, 3).double()  # (pairs, 3): seen once, twice, more often
        node, zeros = pairs // self.V, torch.zeros(len(contexts), 3, dtype=torch.float64)
        kinds, totals = zeros.index_add(0, node, kind), zeros[:, 0].index_add(0, node, counts.double())  # per context
        n1, n2, n3, n4 = ((counts == i).sum().item() for i in (1, 2, 3, 4))
        y = n1 / max(1, n1 + 2 * n2)
        ideal = [i - (i + 1) * y * more / max(1, few) for i, few, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
        discounts = torch.tensor(ideal, dtype=torch.float64).clamp(min=0.1)
        return contexts, pairs, counts, totals, kinds, discounts

    def look_up(self, idx, tokens):
        """For contexts (B, block_size) and tokens (B,) or (B, Q): what every level has counted."""

        def find(keys, query):  # where each query stands in the sorted keys, or -1
            at = torch.searchsorted(keys, query).clamp(max=len(keys) - 1)
            return torch.where(keys[at] == query, at, -1)

        idx, tokens = idx.cpu(), tokens.cpu().view(len(idx), -1)  # counting needs float64, but no GPU
        node, found = torch.zeros(len(idx), dtype=torch.long), []
        for k, (contexts, pairs, counts, totals, kinds, _) in enumerate(self.levels):
            if k:
                node = find(contexts, node * self.V + idx[:, -k])  # a node of -1 makes it negative, as no key is
            pair = find(pairs, node[:, None] * self.V + tokens)
            count = torch.where(pair >= 0, counts[pair], 0)
            found.append(((node >= 0)[:, None], count, totals[node][:, None], kinds[node]))
        return found

    def mix(self, found):
        """The probabilities (B, Q) of what was looked up."""
        p = torch.full_like(found[0][1], 1, dtype=torch.float64) / self.V
        for k in self.mixed:
            strength, (seen, count, total, kinds) = self.strength[k], found[k]
            if self.additive:
                freed = strength * self.V
                total, kept = total + freed, count
            else:
                discounts = (self.levels[k][-1] * strength).minimum(1 + torch.arange(3))  # at most the count itself
                freed = kinds @ discounts[:, None]
                kept = count - F.pad(discounts, (1, 0))[count.clamp(max=3)]
            p = torch.where(seen, (kept + freed * p) / total, p)
        return p

    def forward(self, idx):
        tokens = torch.arange(self.V).expand(len(idx), -1)
        return self.mix(self.look_up(idx, tokens)).log().float().to(idx.device)  # (B, V)


MODELS["ngram"] = Entry(
    NGram, "counts of --n characters in a row, smoothed (Kneser & Ney 1995)",
    dict(n=6, smoothing="kneser-ney", strength=0.0, max_steps=0),
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Two exercises: the WaveNet of the paper, and initial weights to compare with ours


class DilatedWaveNet(SequenceModel):
    """Causal convolutions that reach 1, 2, 4, ... characters back, at every position (van den Oord et al. 2016).

    Each layer gates what it found, adds it to its input (residual) and to the sum that the output sees (skip).
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        C, S = config.n_embd, config.n_embd2
        self.token = Embedding(vocab_size, C)
        layers = range(config.n_layer)
        self.convs = nn.ModuleList(Linear(2 * C, 2 * C) for _ in layers)  # two taps in, tanh and gate out
        self.outs = nn.ModuleList(Linear(C, C + S, gain=config.n_layer**-0.5) for _ in layers)
        self.sizes = [C, S]
        self.dropout = Dropout(config.dropout)
        self.mlp = Linear(S, S, gain=2**0.5)
        self.head = Linear(S, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        x, skips = self.token(idx), 0  # (B, T, C)
        for i, (conv, out) in enumerate(zip(self.convs, self.outs, strict=True)):
            past = F.pad(x, (0, 0, 2**i, 0))[:, : x.shape[1]]  # what stood 2^i steps earlier, zeros before the start
            found, gate = conv(torch.cat((past, x), -1)).chunk(2, -1)
            residual, skip = out(self.dropout(torch.tanh(found) * torch.sigmoid(gate))).split(self.sizes, -1)
            x, skips = x + residual, skips + skip
        return self.head(self.dropout(F.relu(self.mlp(F.relu(skips)))))  # (B, T, V)


MODELS["wavenet-dilated"] = Entry(
    DilatedWaveNet, "gated causal convolutions over the whole line, with skips (van den Oord et al. 2016)",
    dict(n_layer=4, n_embd=64, n_embd2=128, dropout=0.1, init="kaiming", batch_size=128, learning_rate=3e-3,
         max_steps=3000), threads=2,
)  # fmt: skip


def reinitialise(model, scheme):
    """Draw the weights of all Linear layers anew; "kaiming" leaves them as they are."""
    draw = {
        "torch": lambda p, fan_in: p.uniform_(-(fan_in**-0.5), fan_in**-0.5),  # what nn.Linear does
        "normal": lambda p, fan_in: p.normal_(),  # far too large: confident before it has seen anything
        "zeros": lambda p, fan_in: p.zero_(),  # no symmetry breaking: all neurons of a layer stay the same
    }
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, Linear) and scheme in draw:
                for p in layer.parameters():
                    draw[scheme](p, layer.weight.shape[1])


# ----------------------------------------------------------------------------------------------------------------------
# Backpropagation by hand, for the MLP with one BatchNorm layer, and folding BatchNorm away after training


def batchnorm_parts(model):
    """The four layers (embedding, linear, batchnorm, linear) that the hand-written backward pass covers."""
    layers = [m for m in model.modules() if isinstance(m, (Embedding, Linear, BatchNorm1d, Dropout))]
    if not isinstance(model, MLP) or [type(m) for m in layers] != [Embedding, ContextLinear, BatchNorm1d, Linear]:
        raise UserError("gradients by hand are for --type mlp --batchnorm --n-layer 1, without --dropout and --direct")
    return layers


@torch.no_grad()
def manual_gradients(model, x, y):
    """Set p.grad of every parameter without autograd and return the loss. x (B, T), y (B,).

    The two long chains are fused: cross-entropy's gradient is softmax minus one-hot, and BatchNorm's is the gradient
    minus its mean and minus its projection onto the normalised input (Ioffe & Szegedy 2015, section 3, simplified).
    """
    embedding, hidden, norm, head = batchnorm_parts(model)
    # forward
    flat = embedding(x).flatten(1)  # (B, T C)
    pre = F.linear(flat, hidden.weight)  # (B, hidden)
    mean, var = norm.statistics(pre)
    inv_std = torch.rsqrt(var + norm.eps)
    unit = (pre - mean) * inv_std  # mean 0, variance 1
    h = torch.tanh(norm.gamma * unit + norm.beta)
    logprobs = F.log_softmax(head(h), -1)  # (B, V)
    loss = -logprobs.gather(1, y[:, None]).mean()
    # backward
    dlogits = (logprobs.exp() - F.one_hot(y, logprobs.shape[1])) / len(y)
    dact = (dlogits @ head.weight) * (1 - h * h)  # (B, hidden)
    dbeta, dgamma = dact.sum(0), (dact * unit).sum(0)
    dpre = norm.gamma * inv_std * (dact - (dbeta + unit * dgamma) / len(y))
    dflat = dpre @ hidden.weight
    head.weight.grad, head.bias.grad = dlogits.T @ h, dlogits.sum(0)
    norm.gamma.grad, norm.beta.grad = dgamma, dbeta
    hidden.weight.grad = dpre.T @ flat
    rows = dflat.view(-1, embedding.weight.shape[1])  # (B T, C): every use of a character adds to its row
    embedding.weight.grad = torch.zeros_like(embedding.weight).index_add_(0, x.flatten(), rows)
    return loss


def check_backprop(model, x, y):
    """Return 26 rows (name, exact, approximate, max difference): each step's gradient by hand against autograd's.

    The forward pass is chopped into the smallest steps, in float64; the backward pass takes them one by one in reverse.
    """
    embedding, hidden, norm, head = batchnorm_parts(model)
    n, rows, x, y = len(y), torch.arange(len(y)), x.cpu(), y.cpu()  # not every device has float64
    C, W1, gain, bias, W2, b2 = (
        p.detach().cpu().double().requires_grad_()
        for p in (embedding.weight, hidden.weight.T, norm.gamma, norm.beta, head.weight.T, head.bias)
    )
    b1 = torch.zeros(W1.shape[1]).double().requires_grad_()  # BatchNorm subtracts it with the mean: its gradient is 0
    emb = C[x]  # (B, T, E)
    embcat = emb.flatten(1)  # (B, T E)
    hprebn = embcat @ W1 + b1  # (B, hidden)
    bnmean = hprebn.sum(0) / n
    bndiff = hprebn - bnmean
    bndiff2 = bndiff**2
    bnvar = bndiff2.sum(0) / n
    bnvar_inv = (bnvar + norm.eps) ** -0.5
    bnraw = bndiff * bnvar_inv
    hpreact = gain * bnraw + bias
    h = torch.tanh(hpreact)
    logits = h @ W2 + b2  # (B, V)
    logit_maxes = logits.amax(1, keepdim=True)
    norm_logits = logits - logit_maxes
    counts = norm_logits.exp()
    counts_sum = counts.sum(1, keepdim=True)
    counts_sum_inv = 1 / counts_sum
    probs = counts * counts_sum_inv
    logprobs = probs.log()
    loss = -logprobs[rows, y].mean()
    forward, d = locals(), {}
    with torch.no_grad():
        d["logprobs"] = torch.zeros_like(logprobs).index_put((rows, y), torch.tensor(-1.0 / n, dtype=torch.float64))
        d["probs"] = d["logprobs"] / probs
        d["counts_sum_inv"] = (d["probs"] * counts).sum(1, keepdim=True)
        d["counts_sum"] = -d["counts_sum_inv"] * counts_sum_inv**2
        d["counts"] = d["probs"] * counts_sum_inv + d["counts_sum"]  # counts is used twice: its gradients add
        d["norm_logits"] = d["counts"] * counts
        d["logit_maxes"] = -d["norm_logits"].sum(1, keepdim=True)  # 0 but for rounding: it only guards against overflow
        d["logits"] = d["norm_logits"] + d["logit_maxes"] * F.one_hot(logits.argmax(1), logits.shape[1])
        d["h"] = d["logits"] @ W2.T
        d["W2"] = h.T @ d["logits"]
        d["b2"] = d["logits"].sum(0)
        d["hpreact"] = d["h"] * (1 - h**2)
        d["gain"] = (d["hpreact"] * bnraw).sum(0)
        d["bias"] = d["hpreact"].sum(0)
        d["bnraw"] = d["hpreact"] * gain
        d["bnvar_inv"] = (d["bnraw"] * bndiff).sum(0)
        d["bnvar"] = d["bnvar_inv"] * -0.5 * (bnvar + norm.eps) ** -1.5
        d["bndiff2"] = d["bnvar"].expand_as(bndiff2) / n
        d["bndiff"] = d["bnraw"] * bnvar_inv + d["bndiff2"] * 2 * bndiff
        d["bnmean"] = -d["bndiff"].sum(0)
        d["hprebn"] = d["bndiff"] + d["bnmean"] / n
        d["embcat"] = d["hprebn"] @ W1.T
        d["W1"] = embcat.T @ d["hprebn"]
        d["b1"] = d["hprebn"].sum(0)
        d["emb"] = d["embcat"].view_as(emb)
        d["C"] = torch.zeros_like(C).index_add(0, x.flatten(), d["emb"].flatten(0, 1))

    pairs = zip(d.items(), torch.autograd.grad(loss, [forward[name] for name in d]), strict=True)
    return [(name, torch.equal(a, b), torch.allclose(a, b), (a - b).abs().max().item()) for (name, a), b in pairs]


@torch.no_grad()
def fold_batchnorm(run):
    """Return a run whose model has no BatchNorm and computes the same in eval mode.

    With the statistics fixed, BatchNorm is a scale and a shift of every channel, which the layer before can absorb.
    """
    if not run.config.batchnorm:
        raise UserError(f"this {run.config.type} has no BatchNorm to fold")
    config = replace(run.config, batchnorm=False, backprop="autograd", work_dir="")
    folded = build(config, len(run.vocab)).to(run.device)
    layers = (m for m in folded.modules() if isinstance(m, (Embedding, Linear)))
    for m in run.model.modules():
        if isinstance(m, (Embedding, Linear)):
            layer = next(layers)
            layer.load_state_dict(m.state_dict(), strict=False)
        elif isinstance(m, BatchNorm1d):
            scale = m.gamma * torch.rsqrt(m.running_var + m.eps)
            layer.weight.mul_(scale[:, None])
            layer.bias.copy_(m.beta - m.running_mean * scale)
    return Run(config, run.data, folded.eval())


# ----------------------------------------------------------------------------------------------------------------------
# Mixtures: counts remember what networks smooth over, networks know what nobody has counted; together they beat either


class Mixture(SequenceModel):
    """The log-probabilities of trained models, averaged with weights chosen on dev and normalised (Klakow 1998)."""

    def __init__(self, runs, weights):
        super().__init__()
        self.runs, self.members = runs, nn.ModuleList(run.model for run in runs)
        self.register_buffer("weights", weights)  # (K,), exponents of the members' probabilities

    def state_dict(self, **_):
        return {"exponents": self.weights}  # the members have checkpoints of their own

    def member_logprobs(self, idx):
        """What each of the K members expects: (B, T, K, V)."""
        logprobs = []
        for member, run in zip(self.members, self.runs, strict=True):
            if member.windowed:
                size = run.config.block_size
                windows = F.pad(idx, (size - 1, 0)).unfold(1, size, 1)  # (B, T, size)
                logits = member(windows.flatten(0, 1)).unflatten(0, idx.shape)
            else:
                logits = member(idx)
            logprobs.append(logits.log_softmax(-1).clamp(min=-1e4))  # 0 times minus infinity would be nan
        return torch.stack(logprobs, 2)

    def forward(self, idx):
        return self.weights @ self.member_logprobs(idx)  # logits (B, T, V)

    def choose_weights(self, dev):
        """Choose the weights, positive and of sum 1, that are best on dev; return the members' losses there (K,)."""
        batches = dev.in_order(2**20 // len(self.runs[0].vocab))
        with inference(self):  # of a long dev a part, lines of every length, is enough for so few numbers
            pairs = map(dev.batch, batches[:: 1 + len(batches) // 64])
            found = [(self.member_logprobs(x)[y >= 0].cpu().double(), y[y >= 0].cpu()) for x, y in pairs]
        logprobs, targets = map(torch.cat, zip(*found, strict=True))  # (N, K, V), (N,)
        weights = torch.zeros(len(self.runs), dtype=torch.float64, requires_grad=True)  # before their softmax

        def loss():
            mean = cross_entropy(weights.softmax(0) @ logprobs, targets)
            weights.grad = torch.autograd.grad(mean, weights)[0]
            return mean

        torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe").step(loss)
        self.weights.copy_(weights.detach().softmax(0))
        return torch.stack([cross_entropy(p, targets) for p in logprobs.unbind(1)])


def mix(given):
    """A run whose model is the mixture of the models in several folders, with equal weights."""
    folders, target = given["mix"].split(","), Path(given["work_dir"]).resolve()
    if target in [Path(folder).resolve() for folder in folders]:
        raise UserError(f"--mix: {target} is one of the folders to mix; name another with --work-dir")
    runs = [Run.load(folder, input_file=given.get("input_file")) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if (run.data.digest, run.config.dedup) != (runs[0].data.digest, runs[0].config.dedup):
            raise UserError(f"--mix: {folder} was trained on other lines than {folders[0]}")
    shared = {name: getattr(runs[0].config, name) for name in ("input_file", "dedup", "seed")}
    config = configure(given, replace(Config(), type="mixture", **shared), verbose=True)
    return Run(config, runs[0].data, Mixture(runs, torch.full((len(runs),), 1 / len(runs))), verbose=True)


# ----------------------------------------------------------------------------------------------------------------------
# A look inside: what activations, gradients and updates do


# What one layer did with one batch. `grad`: the loss's gradient w.r.t. the output; `saturated`: the share of outputs
# beyond ±0.97, where a tanh passes on hardly any gradient; `dead`: share of neurons beyond ±0.99 for every example
LayerRow = namedtuple("LayerRow", "name kind output grad weight weight_grad saturated dead")


def inspect_layers(model, x, y):
    """One forward and backward pass through a copy of the model: (loss, a LayerRow per call of a layer, in order)."""
    model, rows = copy.deepcopy(model).train(), []

    def look(name, layer, inputs, output):
        output.retain_grad()
        rows.append((name, layer, output))

    for name, layer in model.named_modules():
        if not list(layer.children()) and not isinstance(layer, (Dropout, nn.RNNBase)):
            layer.register_forward_hook(partial(look, name))
    loss = cross_entropy(model(x), y)
    loss.backward()
    found = []
    for name, layer, out in rows:
        weight, size, kind = getattr(layer, "weight", None), out.detach().abs(), type(layer).__name__
        shares = (size > 0.97).float().mean().item(), (size > 0.99).flatten(0, -2).all(0).float().mean().item()
        found.append(LayerRow(name, kind, out.detach(), out.grad, weight, getattr(weight, "grad", None), *shares))
    return loss.item(), found


class UpdateMeter:
    """Called after every step: log10 of std(update) / std(weights) for each matrix."""

    def __init__(self, model):
        self.matrices = [p for p in model.parameters() if p.ndim == 2]
        self.rows, self.previous = [], [p.detach().clone() for p in self.matrices]

    def __call__(self):
        now = [p.detach().clone() for p in self.matrices]
        pairs = zip(now, self.previous, strict=True)
        self.rows.append([((p - old).std() / p.std()).clamp(min=1e-9).log10().item() for p, old in pairs])
        self.previous = now


# ----------------------------------------------------------------------------------------------------------------------
# Order and rates: which examples a step sees, the schedule, and a test of which rate a model tolerates


def drawn(n, batch_size, step, seed):
    """Which of n examples a step learns from, and its epoch: known from the step alone, so nothing has to be saved."""
    epoch, i = divmod(step, max(1, n // batch_size))
    return shuffled(max(n, batch_size), seed, epoch)[i * batch_size :][:batch_size] % n, epoch


@lru_cache(maxsize=1)
def shuffled(n, seed, epoch):
    """The numbers below n, each once, in this epoch's own order: drawn with replacement, a third would be missed."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def reseed(device, seed):
    """Seed all draws from now on, of weights or dropout. (Seeding idle devices as well would take far longer.)"""
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)


def learning_rate(step, config, horizon):
    """Climb for warmup_steps, then come down as --schedule says until `horizon`."""
    climb = min(1.0, (step + 1) / (config.warmup_steps + 1))
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, horizon - config.warmup_steps))  # from 0 to 1
    fall = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
        "step": 0.1 if done >= 0.75 else 1.0,
    }
    return config.learning_rate * climb * fall[config.schedule]


def find_learning_rate(run):
    """Train a copy for up to 400 steps, at rates 1e-5 to 10: return a good rate, rates, losses and their running mean.

    The range test of Smith (2017): the rate to take is where the loss still falls steeply, well before its minimum.
    """
    if hasattr(run.model, "fit"):
        raise UserError(f"--find-lr: {run.config.type} counts, and has no learning rate")
    run = Run(replace(run.config, schedule="constant", warmup_steps=0), run.data, copy.deepcopy(run.model))
    begin(run, {})
    rates, losses, smooth = torch.logspace(-5, 1, 400).tolist(), [], []
    for run.config.learning_rate in rates:
        run.learn()
        losses.append(run.console.losses[-1].item())
        smooth.append(0.9 * smooth[-1] + 0.1 * losses[-1] if smooth else losses[-1])
        if not smooth[-1] < 2 * smooth[0]:
            break
    return rates[smooth.index(min(smooth))] / 3, rates[: len(losses)], losses, smooth


# ======================================================================================================================
# THE WORKSHOP: what turns a model into a library and a program. No reader of models has to come here.
# ======================================================================================================================
# The library: makemore.train(...), makemore.load(...), and what a Run needs of it


def train(data=None, verbose=False, **settings):
    """Train a model and return its Run.

    `data` is a file or a list of strings; the settings are the flags by name and pass the same checks: a bad one raises
    UserError, a ValueError that says what is wrong. Nothing is written unless work_dir names a folder, nothing printed
    unless `verbose`. Ctrl-C ends training cleanly and returns what was learned so far; run.train() then continues it.
    """
    if isinstance(data, (str, os.PathLike)):
        settings["input_file"], data = data, None
    given = check_settings(settings, modes=("resume",))
    run = start_run(given, verbose, None if data is None else check_lines(data)).train()
    if run.stop.signum == signal.SIGTERM:  # everything is saved: now it may take effect
        signal.raise_signal(signal.SIGTERM)
    return run


load = Run.load


def start_run(given, verbose=False, lines=None):
    """The run that the settings ask for: a new one, one that the work folder holds, or the mixture of several."""
    if "mix" in given:
        return mix(given)
    if name := MODES[mode_of(given)].opens:
        return open_run(load_checkpoint(Path(given.get("work_dir", "")) / name), given, verbose, lines)
    config = configure(given, None, verbose)
    if lines is not None:  # the folder keeps what no file holds
        config = replace(config, input_file=config.work_dir and str(Path(config.work_dir) / KEPT[0]))
    data = load_corpus(config, lines)
    config = replace(config, block_size=MODELS[config.type].model.context(config, data.longest))
    sketch(config, len(data.vocab))
    model = build(config, len(data.vocab))
    if config.backprop == "manual":
        batchnorm_parts(model)
    run = Run(config, data, model, verbose)
    run.source = None if lines is None else "\n".join(lines).encode("utf-8", "surrogatepass")
    return run


def open_run(checkpoint, given, verbose=False, lines=None, data=None):
    """The run that a checkpoint holds, with the settings given in place of its own where they may change."""
    with fitting():
        trained, progress = judged(checkpoint), Progress(**checkpoint["progress"])
    config = configure(given, trained, verbose)
    with fitting():
        data, weights = data or find_corpus(checkpoint, config, given, lines), checkpoint["model"]
        if config.type == "mixture":
            members = [open_run(member, {}, data=data) for member in checkpoint["members"]]
            compare("the model", weights, {"exponents": torch.zeros(len(members))})
            model = Mixture(members, weights["exponents"])
        else:
            config.block_size = MODELS[config.type].model.context(config, data.longest)
            compare("the model", weights, sketch(config, len(data.vocab)))
            (model := build(config, len(data.vocab))).load_state_dict(weights)
    run = Run(config, data, model.eval(), verbose)
    run.progress, run.kept = progress, asdict(progress)
    return run


def find_corpus(checkpoint, config, given, lines=None):
    """The data that a checkpoint was trained on, without its lines where they are gone or have changed."""
    paths = places(checkpoint, config, given) if lines is None else [""]  # "": the list
    for path in paths:
        with contextlib.suppress(UserError):
            corpus = load_corpus(replace(config, input_file=path), lines)
            if corpus.digest == checkpoint["digest"]:
                return corpus
    return Corpus(Vocab(checkpoint["vocab"]), checkpoint["longest"], checkpoint["digest"], paths)


@contextlib.contextmanager
def learning(run, settings):
    """A context for training: it locks the folder, makes Ctrl-C a request to stop, and ends with the best model."""
    threads = torch.get_num_threads()
    with locked(run.folder) if run.folder else contextlib.nullcontext():
        try:
            begin(run, settings)
            try:
                with StopOnSignal() as stop:
                    yield stop
            finally:  # also where it broke off: the run is what was saved last, and its model the best
                run.progress = Progress(**copy.deepcopy(run.kept))
                if run.kept:
                    best = stored(run, "model.pt")
                    with fitting():
                        run.model.load_state_dict(best["model"])
                run.model.eval()
        finally:
            torch.set_num_threads(threads)


def begin(run, settings):
    """Get ready to learn: from the start, or exactly where the run left off."""
    if run.config.type not in MODELS:
        raise UserError(f"a {run.config.type} is not trained any further: train its members")
    if settings:
        given = check_settings(settings, group="training") | {"resume": True}
        run.config = configure(given, run.config, run.console.verbose)
    c, defaults, fit = run.config, MODELS[run.config.type].defaults, getattr(run.model, "fit", None)
    if fit:
        c = run.config = replace(c, max_steps=0)
    run.horizon = c.decay_steps or max(c.max_steps, defaults.get("max_steps", Config.max_steps))
    run.interval = c.eval_interval or max(1, (c.max_steps if c.max_steps > 0 else run.horizon) // 20)
    torch.set_num_threads(threads_for(c))
    run.optimizer = make_optimizer(run.model, c)
    losses = restore(run, stored(run, "last.pt")) if run.progress.history else ()
    train, dev = run.examples("train"), run.examples("dev")  # made before the clock runs
    if fit and not run.progress.history:
        run.console.say(fit(train, dev))
    run.model.train()
    run.console.start_clock(losses)


def waited(run):
    """How many evaluations there were since the best; those that a Ctrl-C added do not count."""
    losses = [row[3] for row in run.progress.history if row[0] % run.interval == 0]
    return len(losses) - 1 - losses.index(min(losses))


# ----------------------------------------------------------------------------------------------------------------------
# Settings and flags: one check for both, and a word about those that nobody reads

PROGRAM, KIND, ROWS = "makemore", "type", MODELS  # ours; what follows is the same in both trainers
SETTINGS = {f.name: f for f in fields(Config)}
GROUP = {n: f.metadata["group"] for n, f in SETTINGS.items()}
PASSING = {n: f.default for n, f in SETTINGS.items() if GROUP[n] in ("sampling", "mode")}  # of one run only


def flag(name):
    return "--" + name.replace("_", "-")


def parse_args(argv):
    """Return the settings that a command line gives, as a dict of name to value, or raise UserError."""

    def fail(message):
        raise UserError(f"{message} (see --help)")

    argv = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), arg) for arg in argv]  # --max_steps will do
    asked = re.search(rf"{flag(KIND)}[= ](\S+)", " ".join(argv))
    kind = asked[1] if asked and asked[1] in ROWS else None
    parser = argparse.ArgumentParser(
        PROGRAM, description=(__doc__ or "").partition("\n")[0], epilog=table_of_rows(), allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120),
    )  # fmt: skip
    parser.error, groups = fail, {}
    for name, f in SETTINGS.items():
        rules, group = f.metadata, GROUP[name]
        if group not in groups:
            titled = parser.add_argument_group("instead of training, one of" if group == "mode" else group)
            groups[group] = titled.add_mutually_exclusive_group() if group == "mode" else titled
        how = dict(dest=name, default=argparse.SUPPRESS, help=rules["help"] + default_text(f, kind))
        if f.type is bool:
            how["action"] = argparse.BooleanOptionalAction if group == "model" else "store_true"
        else:
            metavar = None if rules["choices"] else rules["what"] or ("N" if f.type is int else "X")
            how |= dict(type=f.type, choices=rules["choices"], metavar=metavar)
        groups[group].add_argument(flag(name), *rules["names"], **how)
    given = vars(parser.parse_args(argv))
    for name, value in given.items():
        rules = SETTINGS[name].metadata
        if value == [] or (value == "" and GROUP[name] != "sampling"):  # []: argparse takes --flag=-- so
            raise UserError(f"{flag(name)} is empty: give it a value, or leave it out")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{flag(name)} holds a NUL character, which no text has")
        if isinstance(value, (int, float)) and not rules["low"] <= value <= rules["high"]:
            raise UserError(f"{flag(name)} {value}: must be a number from {rules['low']} to {rules['high']:g}")
    return given


def as_flags(settings):
    """Yield settings as the words of flags: what is True is a flag alone, and None is as good as not given."""
    for name, value in settings.items():
        known = SETTINGS.get(name)
        if known and known.type is bool and isinstance(value, bool):
            if value or GROUP[name] == "model":
                yield [flag(name if value else f"no_{name}")]
        elif value is not None or not known:
            yield [flag(name), str(value)]


def check_settings(settings, modes=(), group=""):
    """Settings by name, checked as flags are."""
    for name in (name.replace("-", "_") for name in settings):
        if group and GROUP.get(name, group) != group and name != "seed":
            raise UserError(f"only settings of {group}, not {name}: in Python, give that to load()")
        if name in {*MODES, "diagnose"}.difference(modes):
            raise UserError(f"{name} is for the command line; in Python, load a run, which can do all of that")
    return parse_args(["=".join(words) for words in as_flags(settings)])


def default_text(f, kind):
    """What --help says of a default: that of the kind it was asked about, or else one that holds for all."""
    if kind and f.name not in uses(kind):
        return f" (not used by {kind})"
    varies = any(f.name in row.defaults for row in ROWS.values())
    default = ROWS[kind].defaults.get(f.name, f.default) if kind else None if varies else f.default
    return "" if default is None or default == "" or default is False else f" [{default}]"


def table_of_rows():
    """The registry for --help: what there is, the settings that each uses and their defaults."""
    lines = [f"{flag(KIND)} is one of these, with these defaults ({flag(KIND)} NAME --help shows them above):"]
    for name, row in ROWS.items():
        table = textwrap.wrap(" ".join(map(" ".join, as_flags(row.defaults))), 100, break_on_hyphens=False)
        lines += [f"  {name:<15} {row.about}", *(" " * 18 + line for line in table)]
    return "\n".join(lines)


def uses(kind):
    """The settings that a kind of model reads: those that its row names, and those that have a default for all."""
    row, training = ROWS.get(kind), {n for n, group in GROUP.items() if group == "training"} - {"seed"}
    names = {n for n, f in SETTINGS.items() if f.default is not None} | (row.defaults.keys() if row else set())
    return names - training if row is None or hasattr(row.model, "fit") else names


def reads(mode):
    """The settings that a mode reads. Where a trained model is opened, `fixed` ones are compared with its own."""
    words = {mode, *MODES[mode].reads.split()}
    compared = {n for n, f in SETTINGS.items() if MODES[mode].opens and f.metadata["fixed"]} - {"seed"}
    return compared | {n for n, group in GROUP.items() if {n, group} & words}


def mode_of(given):
    """What is to be done: a name in MODES."""
    return next((mode for mode in MODES if mode in given), "train")


def heeded(given, kind, verbose):
    """The given settings that this mode and kind of model use; one line names the others, and what does use them."""
    mode, ignored = mode_of(given), {}
    for name in given:
        if name not in reads(mode):
            ignored[name] = flag(mode), ", ".join(flag(m) for m in MODES if name in reads(m))
        elif name not in uses(kind):
            ignored[name] = kind, ", ".join(k for k in ROWS if name in uses(k))
    if ignored and os.environ.get("RANK", "0") == "0":  # one of several processes is enough
        words = (f"{flag(n)} is not used by {', only by '.join(filter(None, who))}" for n, who in ignored.items())
        line = "; ".join(words).replace("--train", "training")
        depth = 1  # a warning is about the line that called this file
        while not verbose and sys._getframe(depth).f_code.co_filename in (__file__, contextlib.__file__):
            depth += 1
        print(f"{PROGRAM}: {line}", file=sys.stderr) if verbose else warnings.warn(line, stacklevel=depth + 1)
    return {name: value for name, value in given.items() if name not in ignored}


def configure(given, trained=None, verbose=False):
    """The settings given, on top of those of a trained model or else of the row of the type."""
    kind = trained.type if trained else given.get("type", Config.type)
    if not trained and kind not in MODELS:
        raise UserError(f"--type {kind} is unknown: choose among {', '.join(MODELS)}")
    given = heeded(given, kind, verbose)
    if trained:
        for name in given.keys() - (set() if "resume" in given else {"seed"}):  # other samples are welcome
            if SETTINGS[name].metadata["fixed"] and given[name] != (old := getattr(trained, name)):
                why = f"the model in this folder was trained with {old}; leave {flag(name)} out"
                raise UserError(f"{flag(name)} {given[name]}: {why}")
        if bool(given.get("dropout", trained.dropout)) != bool(trained.dropout):
            raise UserError(f"--dropout {given['dropout']} after training with {trained.dropout}: on or off is fixed")
        own = {n: f.default for n, f in SETTINGS.items() if GROUP[n] == "run" and "resume" not in given}
        return replace(trained, **{**own, **given})
    return replace(Config(), **{**MODELS[kind].defaults, **given})


# ----------------------------------------------------------------------------------------------------------------------
# Files: read with care, written whole or not at all

CHUNK = 2**22  # bytes in memory at a time while a text is read
MAX_CHARS = 65_536  # distinct ones: more than any text has
MAX_PARAMETERS = 10**9  # take 16 GB to train
KEPT = ("trained_on.txt", "input.txt")  # the lines in a work folder; the second in older ones
MAX_LINE = 4096  # characters; attention over more would take all memory there is


def read_chunks(path):
    """Yield a text file of any size as strings of at most CHUNK characters, without a BOM and with LF line ends.

    UTF-8, or UTF-16 where the file says so by its BOM, as those do that PowerShell writes.
    """
    if not os.path.isfile(path):
        why = "it is no file: a text is read more than once" if os.path.exists(path) else "No such file or directory"
        raise UserError(f"cannot read {path}: {why}")
    try:
        with open(path, "rb") as f:
            utf16 = f.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            text = io.TextIOWrapper(f, "utf-16" if utf16 else "utf-8-sig")
            try:
                while chunk := text.read(CHUNK):
                    if "\0" in chunk:
                        raise UserError(f"{path} is a binary file: a text file in UTF-8 is needed")
                    yield chunk
            except UnicodeDecodeError as e:
                byte = f.tell() - len(e.object) + e.start
                f.seek(0)
                line = 1 + sum(f.tell() <= byte for _ in f)
                bad = f"line {line}, byte {byte} is 0x{e.object[e.start]:02x}"
                raise UserError(f"{path} is not UTF-{16 if utf16 else 8}: {bad}") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None


def places(checkpoint, config, given):
    """Where the text of a checkpoint may be: as named now, or where it was when it was trained on, or in the folder."""
    kept = [str(path) for name in KEPT if (path := Path(config.work_dir) / name).exists()]
    paths = [given["input_file"]] if "input_file" in given else [checkpoint["file"], config.input_file, *kept]
    return list(dict.fromkeys(os.path.abspath(path) for path in paths if path))


def gone(paths):
    """Why none of these files is the one that a model was trained on."""
    words = (f"there is no {p}" if p and not os.path.isfile(p) else f"{p or 'the text'} has changed" for p in paths)
    return ", ".join(words) or "there is no text in the folder"


def read_lines(path):
    """Return the non-empty lines of a file, stripped of surrounding white space."""
    lines = [line.strip() for line in "".join(read_chunks(path)).split("\n")]
    if not any(lines):
        raise UserError(f"{path} is empty: one thing per line is needed")
    for i, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            too_long = f"{path}, line {i} has {len(line):,} characters, the limit is {MAX_LINE:,}"
            raise UserError(f"{too_long}: break it up, or train gpt.py, which is made for running text")
    return [line for line in lines if line]


def check_lines(lines):
    """Lines from a program instead of a file, as a list."""
    lines = list(lines) if hasattr(lines, "__iter__") and not isinstance(lines, str) else []
    whole = (isinstance(s, str) and 0 < len(s) <= MAX_LINE and [s] == re.split("[\r\n\0]", s.strip()) for s in lines)
    if not lines or not all(whole):
        raise UserError(f"a list of lines is needed, each of 1 to {MAX_LINE:,} characters, with no blanks around it")
    return lines


def load_corpus(config, lines=None):
    """The Corpus of the lines given, or else of those in config.input_file."""
    name, lines = (config.input_file, read_lines(config.input_file)) if lines is None else ("the list", lines)
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    if config.dedup:
        lines = list(dict.fromkeys(lines))
    if len(lines) < 3:
        raise UserError(f"{name} has too few lines, {len(lines)}: train, dev and test need one each")
    vocab = Vocab("".join(sorted(set("".join(lines)))))
    if len(vocab.chars) > MAX_CHARS:
        raise UserError(f"{name} has {len(vocab.chars):,} distinct characters, the limit is {MAX_CHARS:,}: is it text?")
    places = [os.path.abspath(config.input_file)] if config.input_file else []
    return Corpus(vocab, max(map(len, lines)), digest, places, *split_lines(lines))


def write_atomic(path, pieces, ready=lambda: None):
    """Write bytes to path: at any moment the old file or the new one is there, whole. `ready` is called in between."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # if a kill leaves it behind, the next write reuses it
    try:
        with open(temporary, "wb") as f:
            f.writelines(pieces)
            f.flush()
            os.fsync(f.fileno())
        ready()
        move(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}; what was there before is kept") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def move(source, target):
    """Replace a file by another; on Windows, where this fails while the target is open, retry for a second."""
    for _ in range(9 if os.name == "nt" else 0):
        with contextlib.suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(0.1)
    os.replace(source, target)


@contextlib.contextmanager
def locked(folder):
    """A context: the folder is there and no other program trains in it. A lock ends with its process at the latest."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as e:
        raise UserError(f"cannot write in the folder {folder}: {e.strerror}") from None
    with file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"{folder} is in use by another training: wait for it, or name another folder") from None
        except OSError:
            pass  # not every file system has locks
        yield


def set_aside(run, folder):
    """Move what an earlier run left in the folder to previous/ inside it, in place of the one before that.

    last.pt is moved first and model.pt last, so a last.pt in previous/ but not in the folder reveals a kill: during
    these moves, which then continue, or during a run's first save, which must not replace a complete run in previous/.
    """
    previous = folder / "previous"
    killed = (previous / "last.pt").exists() and not (folder / "last.pt").exists()
    if killed and (previous / "model.pt").exists() and (folder / "model.pt").exists():  # which may never have had one
        killed = len(load_checkpoint(folder / "model.pt")["progress"]["history"]) == 1
    there = [name for name in FILES if (folder / name).exists()]
    if (killed and (previous / "model.pt").exists()) or not there:
        return
    if there[-1] != "model.pt":  # somebody's own
        raise UserError(f"{folder / there[0]} is there already, and not of this run: name another folder")
    previous.mkdir(exist_ok=True)
    for name in () if killed else reversed(FILES):
        (previous / name).unlink(missing_ok=True)
    for name in FILES:
        held = [] if name.endswith(".pt") else [PermissionError]  # on Windows, a log that somebody looks at stays
        with contextlib.suppress(FileNotFoundError, *held):
            move(folder / name, previous / name)
    with contextlib.suppress(OSError):  # an output that is closed or full is told later, as no fault of the folder
        run.console.say(f"what an earlier run left in {folder} is now in {previous}")


@contextlib.contextmanager
def optional():
    """A context: whatever cannot be drawn or logged in it is reported in one line, and work continues."""
    try:
        yield
    except (ImportError, UserError) as e:
        print(f"{PROGRAM}: warning: {e}", file=sys.stderr)


def write_csv(path, columns, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomic(path, [text.getvalue().encode("utf-8", "surrogatepass")])


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: plain dicts, complete in themselves

PICTURES = ("loss.png", "activations.png", "dead.png", "weights.png", "embedding.png", "bigrams.png")
FILES = ("last.pt", KEPT[0], "log.csv", "samples.txt", "scores.csv", "surprise.html", *PICTURES, "model.pt")
LOG_COLUMNS = ("step", "seconds", "train_loss", "dev_loss", "lr")


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0  # spent training, evaluation not counted
    history: list = field(default_factory=list)  # the rows of log.csv
    samples: list = field(default_factory=list)  # what it wrote then

    best_loss = property(lambda self: min((row[3] for row in self.history), default=math.inf))  # on the held-out part
    best_step = property(lambda self: min(self.history, key=lambda row: row[3], default=[0])[0])


PATTERN = dict(  # what `snapshot` makes, see `compare`
    config={"type": "", "input_file": ""}, progress=asdict(Progress()), vocab="", longest=0, digest="", file="",
    model={}, optimizer={},
)  # fmt: skip


def snapshot(run):
    """All that is needed to go on as if nothing had happened, or to sample from the folder alone, as one plain dict."""
    kept = dict(config=asdict(run.config), progress=asdict(run.progress), losses=run.console.carried())
    data = dict(vocab=run.vocab.chars, longest=run.data.longest, digest=run.data.digest, file=[*run.data.places, ""][0])
    weights = dict(model=run.model.state_dict(), optimizer=run.optimizer.state_dict() if run.optimizer else {})
    members = {"members": [snapshot(member) for member in run.model.runs]} if hasattr(run.model, "runs") else {}
    return {"program": PROGRAM, **kept, **data, **weights, **members}


def restore(run, checkpoint):
    """Restore what `snapshot` saved, except the settings. Return the losses since the last row that was due."""
    with fitting():
        mine, kept = ([row[::3] for row in rows] for rows in (run.progress.history, checkpoint["progress"]["history"]))
    if kept[: len(mine)] != mine:  # steps and losses
        raise UserError(f"{run.folder} holds another run by now: load that, or give this one another folder")
    with fitting():
        if checkpoint["progress"]["step"]:
            run.optimizer.load_state_dict(optimizer_state(run.optimizer, checkpoint["optimizer"]))
        run.model.load_state_dict(checkpoint["model"])
        run.progress = Progress(**checkpoint["progress"])
        losses = checkpoint["losses"]
        compare("the losses", losses, torch.zeros(len(losses)))
        return losses.to(run.device).unbind() if run.progress.step % run.interval else ()  # stopped between two rows


def keep(run, best):
    """Save the state as last.pt, and as model.pt if it is the best, in the folder or else in memory, and the log."""
    state, p = snapshot(run), run.progress
    if not run.folder:
        run.memory |= dict.fromkeys(["model.pt"] * best + ["last.pt"], copy.deepcopy(state))
    else:
        first, data = len(p.history) == 1, pack(state)
        if best:
            write_atomic(run.folder / "model.pt", data, partial(set_aside, run, run.folder) if first else lambda: None)
        if first and run.source is not None:
            write_atomic(run.folder / KEPT[0], [run.source])
        with optional():
            write_csv(run.folder / "log.csv", LOG_COLUMNS, p.history)
            samples = ([row[0], f"{row[3]:.4f}", text] for row, text in zip(p.history, p.samples, strict=True))
            write_csv(run.folder / "samples.txt", ("step", LOG_COLUMNS[3], "sample"), samples)
        write_atomic(run.folder / "last.pt", data)  # last, so that whatever it promises is there
    run.kept = state["progress"]


def stored(run, name):
    """What was saved under this name."""
    return load_checkpoint(run.folder / name) if run.folder else copy.deepcopy(run.memory[name])


def save_run(run, folder):
    """Write model.pt as the run stands, and last.pt if it has learned, to go on from."""
    folder, learned = Path(folder), run.progress.history
    own = learned and run.folder and run.folder.resolve() == folder.resolve()
    with locked(folder):
        last = learned and (run.memory or (run.folder and (run.folder / "last.pt").exists())) and stored(run, "last.pt")
        ready = (lambda: None) if own else partial(set_aside, run, folder)
        write_atomic(folder / "model.pt", pack(snapshot(run)), ready)
        if run.source is not None:
            write_atomic(folder / KEPT[0], [run.source])
        if last:
            write_atomic(folder / "last.pt", pack(last))


def pack(checkpoint):
    """A checkpoint as bytes, in one piece."""
    torch.save(checkpoint, buffer := io.BytesIO())
    return [buffer.getbuffer()]


def load_checkpoint(path):
    """Return the checkpoint at path, written by this program, or raise UserError. Checkpoints never run code."""
    try:
        raw = io.BytesIO(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no {path}: train first, or point --work-dir at a trained folder") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(raw) as archive:
            warnings.simplefilter("ignore")
            if any(entry.compress_type for entry in archive.infolist()) or archive.testzip():
                raise ValueError  # torch compresses nothing, and does not compare the checksums that it writes
            raw.seek(0)
            checkpoint = torch.load(raw, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch, zipfile and pickle may raise
        raise UserError(f"{path} is refused: it is corrupt, or carries code, which a checkpoint never needs") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("program") != PROGRAM:
        raise UserError(f"{path} is not a checkpoint of {PROGRAM}")
    return checkpoint


@contextlib.contextmanager
def fitting():
    """A context: what goes wrong in it is the fault of a checkpoint."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"the checkpoint does not fit this version of {PROGRAM}: {why}") from None


def compare(name, found, pattern):
    """Raise ValueError unless a part of a checkpoint is like `pattern`: its keys, types, shapes, all numbers finite."""
    if not isinstance(found, type(pattern)):
        raise ValueError(f"{name} is of another kind")
    if isinstance(pattern, dict):
        for key in pattern:
            if key not in found:
                raise ValueError(f"{name} lacks {key}")
            compare(f"{name}, {key}", found[key], pattern[key])
    elif isinstance(pattern, torch.Tensor):
        if (found.shape, found.dtype) != (pattern.shape, pattern.dtype):
            raise ValueError(f"{name} has the shape {tuple(found.shape)} instead of {tuple(pattern.shape)}")
        if not found.isfinite().all() and (pattern.is_meta or not torch.equal(found, pattern)):  # some masks are so
            raise ValueError(f"{name} holds numbers that are not finite")


def judged(checkpoint):
    """Raise ValueError where a checkpoint is not made as `snapshot` makes it; return its settings."""
    compare("it", checkpoint, PATTERN)
    progress, vocab, saved = checkpoint["progress"], checkpoint["vocab"], checkpoint["config"] | PASSING
    in_order = vocab and checkpoint["digest"] and list(vocab) == sorted(set(vocab))
    history, kinds = progress["history"], [int, float, float, float, float]
    numbers = all([type(x) for x in row] == kinds and 0 <= row[3] < math.inf for row in history)
    at_end = progress["step"] == (history[-1][0] if history else 0) and len(progress["samples"]) == len(history)
    if not (in_order and numbers and at_end):
        raise ValueError("its parts contradict each other")
    if saved[KIND] not in (*ROWS, *["mixture"] * ("mix" in MODES)):
        raise ValueError(f"its {KIND} {saved[KIND]!r} is not known here: run the script that defines it")
    used = uses(saved[KIND]) - {"input_file"}  # which is "" where there was no file, as no flag can say
    if lacks := [n for n in used if saved.get(n) is None]:
        raise ValueError(f"it lacks {', '.join(sorted(lacks))}")
    given = {n: saved[n] for n in used if saved[n] != SETTINGS[n].default}
    return replace(Config(**saved), **check_settings(given, modes=SETTINGS))  # TypeError where one is not known


def optimizer_state(optimizer, state):
    """A state for `load_state_dict`, checked against that after one step; the optimizer keeps its own rates etc."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    fresh, found = optimizer.state_dict(), state["state"]
    compare("the optimizer", found, {i: fresh["state"][i] for i in found} or fresh["state"])
    return {**fresh, "state": found}


def sketch(config, vocab_size):
    """A model's state dict, on the meta device if it may be large; {} if that fails. Refuse one that is too large."""
    numbers = [name for name, f in SETTINGS.items() if GROUP[name] == "model" and f.type is int]
    widest = max(vocab_size, *(getattr(config, name) or 0 for name in numbers if name != "n_layer"))
    small = (config.n_layer or 1) * widest**2 <= 10**7  # torch takes a second to get ready for tensors without memory
    try:
        with torch.device("cpu" if small else "meta"):
            model = build(config, vocab_size)
    except UserError:
        raise
    except Exception:  # a model of one's own may need real numbers
        return {}
    count = sum(p.numel() for p in model.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"a model of {count:,} parameters is too large, the limit is {MAX_PARAMETERS:,}: {MEMORY_HINT}")
    return dict(model.state_dict())


# ----------------------------------------------------------------------------------------------------------------------
# Devices, signals, and what a run says


def try_device(device):
    """Compute something on a device, for nothing else tells whether it works: free GB, or torch's reason why not."""
    try:
        torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device)).sum().item()
        return torch.cuda.mem_get_info(device)[0] / 1e9 if device.startswith("cuda") else math.inf
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        return textwrap.shorten((str(e).strip() or type(e).__name__).splitlines()[0].rstrip("."), 200)


def pick_device(name):
    """Turn --device into a torch.device that works, or raise UserError that says why it does not."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"--device {name} is unknown: auto, cpu, cuda, cuda:N or mps")
    cards, reasons = [f"cuda:{i}" for i in range(torch.cuda.device_count())], []
    metal = ["mps"] * torch.backends.mps.is_available()
    for device in {"auto": [*cards, *metal, "cpu"], "cuda": cards or ["cuda"]}.get(name, [name]):
        words = try_device(device)
        if not isinstance(words, str):
            if reasons:
                print(f"{PROGRAM}: {'; '.join(reasons)}; going on with {device}", file=sys.stderr)
            return torch.device(device)
        if "no kernel image" in words:
            words += "; https://download.pytorch.org/whl/cu126 has torch<2.15 for a GTX 9xx or 10xx"
        if "not compiled" in words:
            words += "; https://pytorch.org/get-started/locally has the command to install"
        reasons.append(f"--device {device} cannot be used: {words}")
    raise UserError("; ".join(reasons))


def threads_for(config):
    """How many threads to train with: those asked for, or as many as help, up to one per core or OMP_NUM_THREADS."""
    return config.threads or min(ROWS[getattr(config, KIND)].threads, torch.get_num_threads())


class StopOnSignal(contextlib.ExitStack):
    """While it lasts, a first Ctrl-C (or TERM) only sets `signum` so that the loop can end in order; a second kills."""

    signum = 0

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for s in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, s, signal.signal(s, self.note))
        return self

    def note(self, signum, frame):
        self.signum = signum
        self.close()  # what was there before is back


def check_finite(run, loss):
    if not math.isfinite(loss):
        kept = f"{run.folder / 'model.pt' if run.folder else 'memory'} keeps the model of step {run.progress.best_step}"
        float16 = getattr(run.config, "dtype", "") == "float16"
        advice = "try --dtype float32" if float16 else "try a lower --learning-rate, or --grad-clip 1"
        raise UserError(f"the loss is {loss} by step {run.progress.step}: {kept}; {advice}")


def glimpse(run):
    """What the model writes now, on one line; always from the same random numbers, and not from those of training."""
    return "  ".join(run.sample(5, prefix="", seed=run.config.seed))


def outcome(run):
    """Which weights the run ended with; and if Ctrl-C ended it, how it goes on."""
    done, again = run.progress.step, f"python {PROGRAM}.py -o {shlex.quote(str(run.folder))} --resume"
    stopped = f"; stopped at step {done}, and all is kept: {again} goes on" * bool(run.stop.signum)
    return f"(best at step {run.progress.best_step}{stopped})"


class Console:
    """The losses and the time since the last evaluation; a line for every evaluation, and one that moves in between."""

    def __init__(self, run, verbose):
        self.run, self.verbose, self.live = run, verbose, verbose and sys.stdout.isatty()
        self.losses, self.clear = [], "\r\033[K" * self.live  # what wipes the line that moves
        self.curve = torch.zeros(0)  # the loss of every mini-batch

    def say(self, *words, **how):
        if self.verbose:
            print(*words, **how, flush=True)

    def carried(self):
        """The losses since the last evaluation that was due, for a checkpoint: (steps,)."""
        return torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)

    def start_clock(self, losses=()):
        self.losses, self.begun = list(losses), self.run.progress.step
        self.since = self.drawn = time.perf_counter()

    def stop_clock(self):
        """Book the time spent learning; return the mean loss since the last evaluation that was due, or nan."""
        spent, steps = time.perf_counter() - self.since, self.run.progress.step - self.begun
        self.run.progress.seconds += spent
        self.pace = spent / max(1, steps)  # seconds per step
        self.curve = torch.cat((self.curve, self.carried()[len(self.losses) - steps :]))
        return torch.stack(self.losses).mean().item() if self.losses else math.nan

    def stepped(self, loss):
        self.losses.append(loss)
        if self.run.progress.step % 10 == 0:  # a GPU has to wait when asked for a number, so not at every step
            check_finite(self.run, loss.item())
            now = time.perf_counter()
            if now - self.drawn > (0.2 if self.live else 20):
                self.drawn, pace = now, (now - self.since) / (self.run.progress.step - self.begun)
                width = shutil.get_terminal_size().columns - 1 if self.live else None  # what wraps cannot be wiped
                self.say(self.clear + self.line(f"loss {loss:.4f}", pace)[:width], end="" if self.live else None)

    def row(self, improved):
        """The last row of the history; then the clock runs again."""
        _, _, train_loss, held_out, lr = self.run.progress.history[-1]
        name = LOG_COLUMNS[3].removesuffix("_loss")
        losses = f"train {train_loss:.4f}  {name} {held_out:.4f}{'*' if improved else ' '}".replace("nan", "–")
        rate = f"  lr {lr:.2e}" * (self.run.config.max_steps != 0)
        self.say(self.clear + self.line(losses + rate, self.pace).rstrip())
        if not self.run.config.quiet:
            self.say(" " * 20 + self.run.progress.samples[-1])
        self.start_clock(self.losses if self.run.progress.step % self.run.interval else ())

    def line(self, losses, pace):
        step, limit = self.run.progress.step, self.run.config.max_steps
        head = f"step {step}/{limit}" if limit >= 0 else f"step {step}"
        left = f"  {timedelta(seconds=min(1e12, round((limit - step) * pace)))} left" if limit > step else ""
        return f"{head:<18}  {losses}  " + (speed(self.run, pace) + left) * bool(self.losses)


def speed(run, pace):
    return f"{1000 * pace:7.2f} ms/step"


def introduce(run):
    """Say what is about to happen."""
    corpus, config, threads = run.data, run.config, threads_for(run.config)
    sizes = ", ".join(f"{len(corpus.lines(part)):,} {part}" for part in PARTS)
    print(f"data: {config.input_file}: {sizes} lines, {len(run.vocab)} tokens, longest line {corpus.longest}")
    repeated = sum(map(set(corpus.train).__contains__, corpus.test))
    print(f"overlap: {repeated:,} of the test lines are training lines, too; --dedup would drop repeated lines")
    count, fit = sum(p.numel() for p in run.model.parameters()), hasattr(run.model, "fit")
    where = f"on {run.device}" + f", {threads} thread{'s'[: threads - 1]}" * (run.device.type == "cpu")
    print(f"model: {config.type}, {'counts' if fit else f'{count:,} parameters'}, context {config.block_size}, {where}")


def report(run, remark=""):
    """Print the exact losses on the three parts of the data: the one line that counts."""
    print("final:", *(f"{part} {run.evaluate(part):.4f}" for part in PARTS), f"nats/char{remark}")


def print_samples(run):
    """Print samples, sorted by where they occur in the data; new ones are what makemore is for."""
    samples, corpus = run.sample(), run.data
    if not corpus.train:
        print(f"makemore: {gone(corpus.places)}: samples are not sorted", file=sys.stderr)
        print("\n".join(samples))
        return
    places = {f"in {part}": set(corpus.lines(part)) for part in PARTS}
    places["blank"] = {s for s in samples if not s.strip()}
    groups = {name: [] for name in (*places, "new")}
    for s in samples:
        groups[next((name for name, lines in places.items() if s in lines), "new")].append(s)
    for name, group in groups.items():
        if group or name != "blank":
            print(f"{name} ({len(group)}):" + "".join("\n  " + s for s in group))
    n, new, unique = max(len(samples), 1), len(groups["new"]), len(set(samples))
    print(f"samples: {len(samples)}, new {100 * new / n:.0f} %, unique {100 * unique / n:.0f} %")


def print_layers(run):
    """Print what inspect_layers finds in a batch, as a table, and return its rows."""
    (loss, rows), V = inspect_layers(run.model, *first_batch(run)), len(run.vocab)
    print(f"loss {loss:.4f} on a batch; a network that knows nothing has ln {V} = {math.log(V):.4f}")
    statistics = f"{'mean':>7}{'std':>7}{'satur. %':>9}{'dead %':>8}{'grad std':>10}{'grad:data':>11}"
    print(f"{'layer':<22}{'kind':<19}{'output':<18}{statistics}")
    for r in rows:
        tanh = f"{100 * r.saturated:9.1f}{100 * r.dead:8.1f}" if r.kind == "Tanh" else " " * 17
        trained = r.weight is not None and r.weight.ndim == 2 and r.weight.any()
        ratio = f"{(r.weight_grad.std() / r.weight.std()).item():11.1e}" if trained else ""
        statistics = f"{r.output.mean():7.2f}{r.output.std():7.2f}{tanh}{r.grad.std():10.1e}{ratio}"
        print(f"{r.name:<22}{r.kind:<19}{tuple(r.output.shape)!s:<18}{statistics}")
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# Figures

BLUE, RED = "#8fb8de", "#c8553d"


@contextlib.contextmanager
def drawing(path, run, rows=1, columns=1, size=(7, 4.2)):
    """Axes to draw on, one or an array of them; afterwards the figure is at `path` as a PNG. Leaves pyplot alone.

    The legend is above the axes, where it hides nothing; below them is the command that made the run.
    """
    try:
        import matplotlib.figure
    except ImportError as e:
        raise UserError(f"no {path} without matplotlib: {e}") from None
    off = ("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math", "text.usetex")  # $ is plain
    with matplotlib.rc_context({"font.size": 9, **dict.fromkeys(off, False)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is drawn as a box
        figure = matplotlib.figure.Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield (axes := figure.subplots(rows, columns))
        lines = [line for ax in np.ravel(axes) for line in ax.get_legend_handles_labels()[0]]
        if lines:
            figure.legend(handles=lines, loc="outside upper center", ncols=int(size[0] * columns / 2.3))
        figure.supxlabel(command(run), fontsize=7, color="0.6", x=0.01, ha="left")
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=110)
    write_atomic(path, [buffer.getvalue()])


def command(run):
    """The command line that repeats such a run; undecodable bytes in a file name become '?'."""
    c, groups = asdict(run.config), ("data", "model", "training")
    usual = {n: f.default for n, f in SETTINGS.items()} | (ROWS[c[KIND]].defaults if c[KIND] in ROWS else {})
    chosen = {n: c[n] for n, group in GROUP.items() if group in groups and c[n] != usual[n]}
    return " ".join([f"python {PROGRAM}.py", *map(shlex.join, as_flags(chosen))]).encode("utf-8", "replace").decode()


def plot_losses(run):
    """Draw loss.png: the losses of mini-batches, smoothed, and of both parts over the steps, and where it was best."""
    p, batches, uniform = run.progress, run.console.curve, math.log(len(run.vocab))
    if len(p.history) == 1:
        return  # what is counted in one go has no curve
    steps, _, train_loss, held_out, _ = zip(*p.history, strict=True)
    name, n = LOG_COLUMNS[3].removesuffix("_loss"), max(1, len(batches) // 200)
    smooth = batches[: len(batches) // n * n].view(-1, n).mean(1)
    places = p.step - len(batches) + n * np.arange(0.5, len(smooth))
    with drawing(run.folder / "loss.png", run) as ax:
        ax.plot(places, smooth, color="0.8", label=f"mini-batches, means of {n}" if n > 1 else "mini-batches")
        ax.plot(steps, train_loss, color=BLUE, label="train, mean since the last evaluation")
        ax.plot(steps, held_out, color=RED, label=name)
        ax.axhline(uniform, color="0.6", linewidth=0.8, linestyle=":", label=f"ln {len(run.vocab)}: knows nothing")
        ax.plot(p.best_step, p.best_loss, "o", color=RED, markersize=5)
        kind, file = getattr(run.config, KIND), Path(run.config.input_file).name.encode("utf-8", "replace").decode()
        ax.set_title(f"{kind} on {file}: best {name} {p.best_loss:.4f} at step {p.best_step}")
        ax.set(xlabel="step", ylabel="nats per character")


def plot_inside(run, before, rows):
    """Draw what inspect_layers found before training and after, and the UpdateMeter."""
    import matplotlib

    style = dict(bins=80, density=True, histtype="step")

    def shaded(items):
        return zip(items, matplotlib.colormaps["viridis"](np.linspace(0, 1, len(items), endpoint=False)), strict=True)

    def spread(tensors):
        stds = [t.std().item() for t in tensors]
        return f"standard deviations {max(stds) / max(min(stds), 1e-30):.1f} × apart"

    if tanhs := [r for r in rows if r.kind == "Tanh"]:
        with drawing(run.folder / "activations.png", run, columns=2) as (left, right):
            for i, (r, color) in enumerate(shaded(tanhs), 1):
                label = f"tanh {i}: {100 * r.saturated:.0f} % saturated"
                left.hist(r.output.flatten().cpu(), label=label, color=color, **style)
                right.hist(r.grad.flatten().cpu(), color=color, **style)
            left.vlines((-0.97, 0.97), *left.get_ylim(), color=RED, linewidth=0.8, linestyle="--")
            most = f"up to {100 * max(r.saturated for r in tanhs):.0f} % saturated; healthy is under 10 %"
            left.set(title=f"tanh outputs: {most}", xlabel="output", yticks=[])
            words = f"{spread([r.grad for r in tanhs])}; healthy is under 3"
            right.set(title=f"their gradients: {words}", xlabel="gradient", yticks=[])
        with drawing(run.folder / "dead.png", run, columns=2) as axes:
            for ax, when, some in zip(axes, ("before training", "after"), (before, rows), strict=True):
                r = next(r for r in some if r.kind == "Tanh")
                beyond = (r.output.abs() > 0.99).flatten(0, -2)[:128].cpu().numpy()
                ax.imshow(beyond, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
                share = f"{100 * beyond.mean():.0f} % of tanh 1 beyond ±0.99 (white), {100 * r.dead:.0f} % dead"
                ax.set(title=f"{when}: {share}", xlabel="neuron", ylabel="example")
    with drawing(run.folder / "weights.png", run, columns=2) as (left, right):
        matrices = [r for r in rows if r.weight is not None and r.weight.ndim == 2]
        for r, color in shaded(matrices):
            label = f"{r.name} {tuple(r.weight.shape)}: grad:data {r.weight_grad.std() / r.weight.std():.0e}"
            left.hist(r.weight_grad.flatten().cpu(), label=label, color=color, log=True, **style)
        columns = np.reshape(run.meter.rows, (-1, len(run.meter.matrices))).T
        for updates, color in shaded(columns):
            right.plot(updates, color=color, linewidth=0.8)
        right.axhline(-3, color=RED, linewidth=1, linestyle="--")
        left.set(title=f"gradients of the matrices: {spread([r.weight_grad for r in matrices])}", xlabel="gradient")
        left.yaxis.set_visible(False)
        ends = [f"{x:.1f}" for x in sorted(columns[:, -1:].flatten())]
        words = f"ends at {ends[0]} to {ends[-1]}, a good pace is around -3" if ends else ""
        right.set(title=f"update:data, log10: {words}", xlabel="step")
    table = next((r.weight for r in rows if r.kind == "Embedding" and len(r.weight) == len(run.vocab)), None)
    if table is not None and table.shape[1] >= 2:
        centred = table.detach() - table.detach().mean(0)
        where = apart((centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).cpu().numpy())
        with drawing(run.folder / "embedding.png", run, size=(6, 6)) as ax:
            ax.scatter(*where.T, s=220, color=BLUE)
            for (x, y), char in zip(where, "." + run.vocab.chars, strict=True):
                ax.text(x, y, char, ha="center", va="center")
            ax.set_title("embedding, its two widest directions")
            ax.axis("off")
    with drawing(run.folder / "bigrams.png", run, size=(12, 12)) as ax:
        names = ("." + run.vocab.chars)[:40]
        counts = run.examples("train").bigrams(len(run.vocab))[:40, :40].cpu().numpy()
        ax.imshow(counts, cmap="Blues")
        for (i, j), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "0.35"
            ax.text(j, i, f"{names[i]}{names[j]}\n{int(count)}", ha="center", va="center", fontsize=6, color=color)
        ax.set_title("bigrams: how often the column's character follows the row's")
        ax.axis("off")


def apart(points, distance=0.05):
    """Points (N, 2) in a unit square, moved until no two are closer than `distance`: letters do not hide each other."""
    points = (points - points.min(0)) / np.maximum(np.ptp(points, 0), 1e-9).max()
    for _ in range(300):
        offset = points[:, None] - points  # (N, N, 2)
        gap = np.hypot(*offset.T) + np.eye(len(points))
        points = points + 0.5 * (offset / gap[..., None] * np.maximum(0, distance - gap)[..., None]).sum(1)
    return points


PAGE = """<!doctype html><meta charset="utf-8"><title>surprise</title><style>
:root {{ color-scheme: light dark; font: 15px/1.7 monospace }} body {{ margin: 2em max(1em, 50% - 45ch) }}
main {{ white-space: pre-wrap; overflow-wrap: anywhere }} i {{ font-style: normal; position: relative }}
i:hover::after {{ content: attr(data-guess); position: absolute; z-index: 1; top: 1.7em; left: 0; padding: 0 1em;
white-space: pre; background: Canvas; border: 1px solid }}</style><h3>{title}</h3><p>The redder, the more surprising,
from 0 to 6 nats. Point at a character to see what was expected there.</p><main>{text}</main><p>{command}</p>"""


def guessed(logits, y):
    """For each target the probability that it had, those of the five likeliest tokens, and which these are: (N, 11)."""
    p, y = logits.float().softmax(-1)[y >= 0], y[y >= 0]  # (N, V), (N,)
    return torch.cat((p.gather(1, y[:, None]), *p.topk(min(5, p.shape[1]))), 1).cpu()


def write_surprise(path, run, title, text, rows, names):
    """A page of a text, each character coloured by its nats, and what was expected in its place; rows as `guessed`."""
    spans = []
    for char, (p, *likeliest) in zip(text, rows, strict=True):
        nats, pairs = -math.log(max(p, 1e-30)), np.reshape(likeliest, (2, -1)).T
        guess = html.escape("\n".join([f"{nats:.2f} nats", *(f"{q:4.0%} {names[int(t)]}" for q, t in pairs)]))
        style = f"background: rgb(200 85 61 / {min(nats / 6, 1):.2f})"
        spans.append(f'<i style="{style}" data-guess="{guess}">{html.escape(char)}</i>'.replace(">\n", ">¶\n"))
    page = PAGE.format(title=html.escape(title), text="".join(spans), command=html.escape(command(run)))
    write_atomic(path, [page.encode("utf-8", "replace")])


# ----------------------------------------------------------------------------------------------------------------------
# Command line: every mode is a few lines on top of a Run


def do_train(run):
    """The main job: train, report, sample. Returns 128 + signal if it was stopped by one."""
    with locked(run.folder):
        introduce(run)  # nothing is announced where nothing can be kept
    if run.config.diagnose:
        run.meter, before = UpdateMeter(run.model), print_layers(run)
    run.train()
    if run.config.diagnose:
        rows = print_layers(run)
        with optional():
            plot_inside(run, before, rows)
            print("figures:", ", ".join(map(str, sorted(run.folder.glob("*.png")))))
    report(run, f" {outcome(run)}")
    print_samples(run)
    with optional():
        plot_losses(run)
    return 128 + run.stop.signum if run.stop.signum else 0


def do_eval(run):
    lines = read_lines(run.config.eval)
    losses = run.score(lines)
    rows = [(line, round(nats, 4), round(nats / (len(line) + 1), 4)) for line, nats in zip(lines, losses, strict=True)]
    ranked = sorted(rows, key=lambda row: row[2])
    ends = {"likeliest": ranked[:5], "strangest": ranked[-5:]}
    for title, some in (ends if len(ranked) > 10 else {"from likeliest to strangest": ranked}).items():
        print(f"{title}:" + "".join(f"\n  {mean:.4f}  {line}" for line, _, mean in some))
    count = sum(map(len, lines)) + len(lines)
    print(f"eval: {sum(losses) / count:.4f} nats/char over {count} characters in {len(lines)} lines")
    lines = lines[: 1 + "\n".join(lines)[:20_000].count("\n")]  # those of the first 20,000 characters
    data, text = run.examples(lines), "".join(f"{line}\n" for line in lines)
    with inference(run.model):
        batches = map(data.batch, torch.arange(len(data)).split(16))
        found = [row for x, y in batches for row in guessed(run.model(x), y).tolist()]
    with optional():
        write_csv(run.folder / "scores.csv", ("line", "nats", "nats_per_char"), rows)
        title, page = f"{run.config.eval}: {sum(losses) / count:.4f} nats per character", run.folder / "surprise.html"
        write_surprise(page, run, title, text, found, "¶" + run.vocab.chars)
        print(f"line by line: {run.folder / 'scores.csv'}, character by character: {page}")


def do_mix(run):
    losses = run.model.choose_weights(run.examples("dev")).tolist()
    print("weight  dev")
    for weight, loss, name in zip(run.model.weights.tolist(), losses, run.config.mix.split(","), strict=True):
        print(f"{weight:6.3f}  {loss:.4f}  {name}")
    run.save(run.folder)
    report(run)
    print_samples(run)


def do_fold(run):
    folded = fold_batchnorm(run)
    folded.save(run.folder / "folded")
    if run.data.train:
        print(f"dev {run.evaluate('dev'):.6f} with BatchNorm, {folded.evaluate('dev'):.6f} with it folded")
    print(f"the folded model: {run.folder / 'folded'}")


def do_find_lr(run):
    best, rates, losses, smooth = find_learning_rate(run)
    path = run.folder / "find_lr.png"
    print(f"try --learning-rate {best:.1e}; see {path}")
    with optional(), locked(run.folder), drawing(path, run) as ax:
        ax.plot(rates, losses, color=BLUE, label="loss of the batch")
        ax.plot(rates, smooth, color=RED, label="smoothed")
        title = f"range test: {best:.1e} is a third of the rate where the loss is lowest"
        ax.set(title=title, xlabel="learning rate", ylabel="nats per character", xscale="log")
        ax.xaxis.set_major_formatter("{x:.0e}")
        ax.set_ylim(min(losses) - 0.1, smooth[0] * 1.3)
        ax.axvline(best, color="0.4", linestyle="--", linewidth=1)


def do_check_backprop(run):
    rows = check_backprop(run.model, *first_batch(run))
    print(f"{'gradient':<16}{'exact':<7}{'approx':<8}max difference")
    for name, exact, approx, difference in rows:
        print(f"{name:<16}{exact!s:<7}{approx!s:<8}{difference:.1e}")


def first_batch(run):
    data = run.examples("train")
    return data.batch(torch.arange(min(len(data), run.config.batch_size)))


def do_interactive(run):
    """Read beginnings and go on from each, until :quit or the end of the input."""
    print("type a beginning; :temperature 0.5, :seed 7 and so on set what --help lists under sampling; :quit leaves")
    with contextlib.suppress(EOFError):
        while (line := input("> ")) != ":quit":
            name, _, value = line[1:].partition(" ")
            try:
                if line.startswith(":"):
                    run.config = replace(run.config, **check_settings({name: value}, group="sampling"))
                else:
                    print("\n".join(run.sample(prefix=line)))
                    run.config.seed += 1  # so that the same beginning goes on otherwise
            except UserError as e:
                print(e)


# A function of a run, the checkpoint that it opens, and the settings and groups of settings that it reads
Mode = namedtuple("Mode", "do opens reads")
MODES = {
    "train": Mode(do_train, "", "data model training sampling run"),
    "resume": Mode(do_train, "last.pt", "input_file dropout training sampling run"),
    "sample_only": Mode(print_samples, "model.pt", "input_file sampling seed run"),
    "eval": Mode(do_eval, "model.pt", "run"),
    "interactive": Mode(do_interactive, "model.pt", "input_file sampling seed run"),
    "mix": Mode(do_mix, "model.pt", "input_file sampling seed run"),
    "fold_batchnorm": Mode(do_fold, "model.pt", "input_file run"),
    "find_lr": Mode(do_find_lr, "", "data model batch_size weight_decay optimizer seed run"),
    "check_backprop": Mode(do_check_backprop, "", "data model batch_size seed"),
}
MEMORY_HINT = "lower --batch-size, --n-embd, --n-embd2, --n-layer or --num-samples"


def out_of_memory(e):
    """Whether that is what an exception says: every device and every system has words of its own."""
    return isinstance(e, MemoryError) or re.search("(out of|not enough|allocate) memory|ALLOC_FAILED", str(e))


def refuse(message):
    """Say it on stderr, in one line, if anybody listens; return the exit status."""
    with contextlib.suppress(OSError):
        print(f"{PROGRAM}:", *str(message).splitlines(), file=sys.stderr)
    return 2


def main(argv=None):
    """The command line's entry: returns the exit status, 2 for a mistake of the user, told in one line."""
    sys.stdin, sys.stdout = sys.stdin or open(os.devnull), sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (<&- >&-)
    if hasattr(sys.stdout, "reconfigure"):  # what a console lacks becomes '?'; files are UTF-8, on Windows, too
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="replace")
    try:
        given = parse_args(sys.argv[1:] if argv is None else argv)
        mode = mode_of(given)
        if "work_dir" in reads(mode):
            given.setdefault("work_dir", "out")
        status = MODES[mode].do(start_run(given, verbose=True)) or 0
        sys.stdout.flush()
        return status
    except (UserError, UnicodeDecodeError) as e:  # the second: of what is typed at --interactive
        return refuse(e)
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        return refuse(f"out of memory: {MEMORY_HINT}")
    except KeyboardInterrupt:
        return 130
    except OSError as e:  # of the output; `head`, say, closes it when it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError) or os.name == "nt":  # where it is told as EINVAL
            return 0
        return refuse(f"cannot write the output: {e.strerror}")


if __name__ == "__main__":
    sys.exit(main())
