"""makemore: give it a file of things, one per line, and it makes more of them.

    python makemore.py -i names.txt --type mlp -o out/mlp      # train, evaluate, sample
    python makemore.py -o out/mlp --sample-only --prefix jo    # sample from what was trained
    python makemore.py -o out/mlp --eval other.txt             # score any file

Every model answers the same question: which character comes next? They range from a table of bigrams to a Transformer.
The file reads from top to bottom: configuration, data, layers written by hand, models (simplest first), evaluation and
sampling, training, checkpoints, figures, and the command line that ties them together.

Legend for shapes: B batch, T time (characters of a line), C channels, H heads, V vocabulary. Token 0 starts and ends
every line and is drawn as '.'. Losses are in nats per character; the end of a line counts as a character.
"""

import argparse
import contextlib
import copy
import csv
import hashlib
import io
import itertools
import math
import os
import pickle
import random
import re
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class UserError(Exception):
    """A mistake that the user can mend: `main` prints it as one line and exits with status 2."""


# ----------------------------------------------------------------------------------------------------------------------
# Configuration: every setting stands here once; flags, help, validation and checkpoints derive from it


def option(default, help, *short, group, choices=None, low=None, high=None, fixed=False):
    """A dataclass field that knows its flag. `fixed` ones belong to a model and cannot change once it is trained."""
    meta = dict(help=help, short=short, group=group, choices=choices, low=low, high=high, fixed=fixed)
    return field(default=default, metadata=meta)


# fmt: off
@dataclass
class Config:
    data = partial(option, group="data", fixed=True)
    input_file: str = option("names.txt", "text file with one thing per line (UTF-8)", "-i", group="data")
    split: str = data("standard", "the lecture's 80/10/10, or drawn from --seed", choices=("standard", "random"))
    dedup: bool = data(False, "drop repeated lines before splitting (changes published losses)")

    model = partial(option, group="model", fixed=True)
    type: str = model("transformer", "which model, see the list below")
    block_size: int = model(0, "context length in characters [what the longest line needs]", low=1, high=65_536)
    n_layer: int = model(4, "number of layers", low=1, high=1024)
    n_head: int = model(4, "number of attention heads", low=1, high=1024)
    n_embd: int = model(64, "channels of the embedding, and of the Transformer throughout", low=1, high=65_536)
    n_embd2: int = model(64, "channels elsewhere: hidden units of mlp, wavenet, rnn, gru, lstm", low=1, high=65_536)
    dropout: float = option(0.0, "share of activations dropped while training", group="model", low=0, high=0.99)
    batchnorm: bool = model(False, "mlp, wavenet: BatchNorm before every tanh")
    direct: bool = model(False, "mlp: connect the embeddings to the output directly, too")
    conv: str = model("tree", "wavenet: over a window, or over the line", choices=("tree", "dilated"))
    init: str = model("kaiming", "first weights: kaiming with gain and a quiet last layer; torch: as nn.Linear; "
                      "normal: far too loud; zeros: never to differ", choices=("kaiming", "torch", "normal", "zeros"))
    n: int = model(6, "ngram: its order, context and character together", low=1, high=8)
    smoothing: str = model("kneser-ney", "ngram: for what was never seen", choices=("kneser-ney", "additive"))
    strength: float = model(0.0, "ngram: count to add, or factor to Kneser-Ney's discounts (0: chosen on dev)", low=0)

    train = partial(option, group="training")
    max_steps: int = train(10_000, "stop after this many steps (-1: go on until Ctrl-C)", low=-1)
    batch_size: int = train(256, "lines (mlp, wavenet, bigram: contexts) per step", "-b", low=1, high=1_000_000)
    learning_rate: float = train(1e-3, "peak learning rate", "-l", low=0)
    weight_decay: float = train(0.01, "decoupled weight decay of the matrices", "-w", low=0)
    optimizer: str = train("adamw", "how gradients become steps", choices=("adamw", "sgd"), fixed=True)
    schedule: str = train("cosine", "how the rate falls: to zero, or (step) to a tenth for the last quarter",
                          choices=("cosine", "linear", "step", "constant"))
    warmup_steps: int = train(100, "steps in which the learning rate climbs to its peak", low=0)
    decay_steps: int = train(0, "where the schedule ends (0: --max-steps, or the type's default if more)", low=0)
    grad_clip: float = train(0.0, "longest gradient allowed, as a norm (0: any)", low=0)
    backprop: str = train("autograd", "manual: mlp --batchnorm, gradients by hand", choices=("autograd", "manual"))
    seed: int = train(3407, "seed of weights, batches, dropout, samples", low=0, high=2**63 - 1, fixed=True)

    sampling = partial(option, group="sampling")
    num_samples: int = sampling(20, "how many samples to print", low=0, high=1_000_000)
    temperature: float = sampling(1.0, "below 1 tamer than the model, above 1 wilder; 0: always the likeliest", low=0)
    top_k: int = sampling(0, "choose among the k likeliest characters only (0: all)", low=-1)
    top_p: float = sampling(1.0, "choose among the likeliest characters that make up this probability", low=0, high=1)
    prefix: str = sampling("", "text that every sample begins with")

    run = partial(option, group="run")
    work_dir: str = run("out", "folder for model.pt, last.pt, log.csv and figures", "-o")
    device: str = run("auto", "auto, cpu, cuda, cuda:N or mps")
    eval_interval: int = run(0, "steps between evaluations on dev (0: a twentieth of the run)", low=0)
    diagnose: bool = run(False, "draw what goes on inside: activations, gradients, updates, dead neurons")

    mode = partial(option, group="instead of training a new model")
    resume: bool = mode(False, "go on from last.pt in the work folder, exactly")
    sample_only: bool = mode(False, "sample from model.pt in the work folder")
    eval: str = mode("", "score this file with model.pt in the work folder, line by line: scores.csv")
    mix: str = mode("", "mix the models of these folders (a,b,...) into the work folder, shares chosen on dev")
    fold_batchnorm: bool = mode(False, "fold BatchNorm of model.pt into its weights: folded/model.pt")
    find_lr: bool = mode(False, "try learning rates from tiny to absurd: find_lr.png")
    check_backprop: bool = mode(False, "compare 26 hand-written gradients with autograd's")

    del data, model, train, sampling, run, mode
# fmt: on


def parse_args(argv, program, description, epilog, config_class):
    """Return the settings that were given explicitly on the command line, as a dict of field name to value."""

    class OneLine(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(f"{message} (see --help)")

    class Layout(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog):
            super().__init__(prog, max_help_position=30, width=120)

    parser = OneLine(program, description=description, epilog=epilog, formatter_class=Layout, allow_abbrev=False)
    groups = {
        title: parser.add_argument_group(title)
        for title in dict.fromkeys(f.metadata["group"] for f in fields(config_class))
    }
    for f in fields(config_class):
        names = ["--" + f.name.replace("_", "-"), *f.metadata["short"]]
        how = dict(default=argparse.SUPPRESS, help=f.metadata["help"])
        if isinstance(f.default, bool):
            how["action"] = argparse.BooleanOptionalAction if f.metadata["group"] == "model" else "store_true"
        else:
            how |= dict(type=type(f.default), choices=f.metadata["choices"])
            how["help"] += f" [{f.default}]" * (f.default not in ("", 0))
            how["metavar"] = None if how["choices"] else f.name.split("_")[-1].upper()
        groups[f.metadata["group"]].add_argument(*names, **how)
    # --max_steps is as good as --max-steps
    argv = [
        flag.replace("_", "-") + eq + value if flag.startswith("--") else flag + eq + value
        for flag, eq, value in (arg.partition("=") for arg in argv)
    ]
    return vars(parser.parse_args(argv))


def check_ranges(given, config_class):
    """Raise UserError for the first setting given that is outside what its field allows; defaults may be special."""
    for f in fields(config_class):
        value, low, high = given.get(f.name, f.default), f.metadata["low"], f.metadata["high"]
        flag = "--" + f.name.replace("_", "-")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag} {value}: must be a finite number")
        if f.name in given and low is not None and value < low:
            raise UserError(f"{flag} {value}: must be at least {low}")
        if f.name in given and high is not None and value > high:
            raise UserError(f"{flag} {value}: must be at most {high}")


# ----------------------------------------------------------------------------------------------------------------------
# Data: a file of lines, once through the encoder, and then one tensor from which every batch is an index


MAX_LINE = 4096  # characters; attention over more would take all memory there is


def read_text(path):
    """Return the file's text, or raise UserError that says what is wrong with it."""
    try:
        raw = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if b"\0" in raw[:1_000_000]:
        raise UserError(f"{path} is a binary file: a text file in UTF-8 is needed")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")  # Windows likes to put a byte order mark there
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path} is not UTF-8: line {line}, byte {e.start} is 0x{raw[e.start]:02x}") from None


def read_lines(path):
    """Return the non-empty lines of a file, stripped of surrounding white space."""
    numbered = [(i, line.strip()) for i, line in enumerate(read_text(path).split("\n"), 1)]
    lines = [line for _, line in numbered if line]
    if not lines:
        raise UserError(f"{path} is empty: one thing per line is needed")
    for i, line in numbered:
        if len(line) > MAX_LINE:
            raise UserError(
                f"{path}, line {i} has {len(line):,} characters, the limit is {MAX_LINE:,}: "
                "break it up, or train gpt.py, which is made for running text"
            )
    return lines


@dataclass
class Vocab:
    """The alphabet: character `chars[i]` is token `i + 1`; token 0 starts and ends every line."""

    chars: str

    def __len__(self):
        return len(self.chars) + 1

    def encode(self, text):
        """Text to an array of tokens (N,). Raises UserError that names the characters it does not know."""
        alphabet = np.array([ord(c) for c in self.chars], dtype=np.uint32)  # in order
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        tokens = np.searchsorted(alphabet, codes)
        unknown = alphabet[np.minimum(tokens, len(alphabet) - 1)] != codes
        if unknown.any():
            names = " ".join(repr(chr(c)) for c in np.unique(codes[unknown])[:20])
            raise UserError(f"unknown to this model: {names}; it knows {self.chars!r}")
        return tokens + 1

    def decode(self, tokens):
        return "".join(self.chars[t - 1] for t in tokens)


@dataclass
class Corpus:
    """What a file of lines holds: its vocabulary and its lines, split in three."""

    vocab: Vocab
    train: list[str]
    dev: list[str]
    test: list[str]
    longest: int  # characters in the longest line
    digest: str  # sha256 of the lines in the order of the file


def load_corpus(config):
    """Read and split config.input_file. The standard split is the lecture's: seed 42, one shuffle, 80/10/10."""
    lines = read_lines(config.input_file)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if config.dedup:
        lines = list(dict.fromkeys(lines))
    n = len(lines)
    if n < 3:
        raise UserError(f"{config.input_file} has too few lines, {n}: train, dev and test need one each")
    vocab = Vocab("".join(sorted(set("".join(lines)))))
    random.Random(42 if config.split == "standard" else config.seed).shuffle(lines)
    n2 = min(int(0.9 * n), n - 1)  # however few the lines, dev and test get one each
    n1 = min(int(0.8 * n), n2 - 1)
    return Corpus(vocab, lines[:n1], lines[n1:n2], lines[n2:], max(map(len, lines)), digest)


class Lines:
    """Lines as examples: `batch` gives whole lines, as long as the longest among them needs.

    All lines lie in one stream of tokens with `gap` zeros before, between and after them, so that a line with its start
    and end is a slice, and so is the context of any of its characters, padded with the start token as it should be.
    """

    gap = 1

    def __init__(self, lines, vocab, device="cpu"):
        chars = vocab.encode("".join(lines))
        self.lengths = torch.tensor([len(line) for line in lines])
        self.starts = torch.cumsum(self.lengths + self.gap, 0) - self.lengths  # where each line's first character lies
        stream = np.zeros(len(chars) + self.gap * (len(lines) + 1) + int(self.lengths.max()), dtype=np.int32)
        gaps_before = np.repeat(self.gap * np.arange(1, len(lines) + 1), self.lengths.numpy())
        stream[np.arange(len(chars)) + gaps_before] = chars
        self.stream = torch.from_numpy(stream).to(device)
        self.device = device

    def __len__(self):
        return len(self.lengths)

    def batch(self, index):
        """index (B,) -> inputs (B, T) and targets (B, T), which are -1 after the end of a line."""
        length = self.lengths[index]
        column = torch.arange(int(length.max()) + 2)  # the start token, the characters, the end token
        rows = self.stream[((self.starts[index] - 1)[:, None] + column).to(self.device)].long()  # (B, T + 1)
        inside = (column[:-1] <= length[:, None]).to(self.device)
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
        """All examples once, in batches of similar lengths with at most that many tokens."""
        return torch.argsort(self.lengths, stable=True).split(max(1, tokens // (int(self.lengths.max()) + 1)))


class Windows(Lines):
    """Characters as examples: `batch` gives the `block_size` tokens before each of them."""

    def __init__(self, lines, vocab, device="cpu", block_size=3):
        self.gap = block_size
        super().__init__(lines, vocab, device)
        is_char = self.stream != 0
        is_target = is_char[block_size:] | is_char[block_size - 1 : -1]  # a character, or the zero right after one
        self.first = is_target.nonzero()[:, 0]  # where each example's window begins
        self.windows = self.stream.unfold(0, block_size + 1, 1)  # (N, block_size + 1), a view of the stream
        self.ends = torch.cumsum(self.lengths + 1, 0)  # the number of examples up to the end of each line

    def __len__(self):
        return len(self.first)

    def batch(self, index):
        """index (B,) -> contexts (B, block_size) and targets (B,)."""
        rows = self.windows[self.first[index.to(self.device)]].long()  # (B, block_size + 1)
        return rows[:, :-1], rows[:, -1]

    def line_of(self, index):
        return torch.searchsorted(self.ends, index, right=True)

    def in_order(self, tokens):
        return torch.arange(len(self)).split(max(1, tokens // self.windows.shape[1]))


# ----------------------------------------------------------------------------------------------------------------------
# Layers, written by hand as the lectures teach them; a test holds each against torch's own


class Linear(nn.Module):
    """y = x W + b with Kaiming initialisation (He et al. 2015): `gain` makes up for the non-linearity."""

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


class ContextLinear(Linear):
    """A Linear layer over the embeddings of several characters side by side: (B, T) -> (B, fan_out).

    A character brings the same numbers wherever it occurs. So where there are more examples than characters, multiply
    the whole alphabet by the weights of each place once, and then look the products up and add them: the same sums in a
    third of the time.
    """

    def forward(self, idx, embedding):
        (B, T), (V, C) = idx.shape, embedding.weight.shape
        if B <= V:
            return super().forward(embedding(idx).flatten(1))
        weight = self.weight.view(-1, T, C).transpose(0, 1).reshape(-1, C)  # (T fan_out, C)
        alphabet = torch.arange(V, device=idx.device)
        products = F.linear(embedding(alphabet), weight).view(V * T, -1)  # row v T + t: character v at place t
        total = F.embedding_bag(idx * T + torch.arange(T, device=idx.device), products, mode="sum")
        return total if self.bias is None else total + self.bias


class Positions(Embedding):
    """A row of numbers for every place in the line: (B, T) -> (T, C)."""

    def forward(self, idx):
        if idx.shape[1] > len(self.weight):
            raise UserError(f"a line of {idx.shape[1] - 1} characters: this model knows {len(self.weight) - 1} places")
        return self.weight[: idx.shape[1]]


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
        if self.training:
            mean, var = self.statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.gamma * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.beta - mean * scale, x, scale)

    def statistics(self, x):
        """Mean and variance of the batch, remembered on the way; the remembered variance is unbiased, as in torch."""
        var, mean = torch.var_mean(x, tuple(range(x.ndim - 1)), correction=0)  # over all but the channels
        n = x.numel() // x.shape[-1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / max(n - 1, 1)), self.momentum)
        return mean, var


class Tanh(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


class Dropout(nn.Module):
    """Silence a share p of the numbers while training, and raise the rest to make up for it (Srivastava et al. 2014).

    A byte of chance for each number is enough, and a fifth of the price of nn.Dropout's; so p is rounded to 256ths.
    """

    def __init__(self, p):
        super().__init__()
        self.silent = round(256 * p)

    def forward(self, x):
        if not (self.training and self.silent):
            return x
        if x.device.type != "cpu":  # a card has chance in plenty
            return F.dropout(x, self.silent / 256)
        chance = torch.empty(x.numel() // 8 + 1, dtype=torch.long).random_(-(2**63), None)
        loud = chance.view(torch.uint8)[: x.numel()].view(x.shape) >= self.silent
        return x * loud.to(x.dtype).mul_(256 / (256 - self.silent))


class FlattenConsecutive(nn.Module):
    """Lay `n` neighbours in time side by side: (B, T, C) -> (B, T/n, n C), and (B, n C) when one is left."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        B, T, C = x.shape
        x = x.view(B, T // self.n, self.n * C)
        return x.squeeze(1) if x.shape[1] == 1 else x


class Sequential(nn.ModuleList):
    """Layers applied one after the other."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def reinitialise(model, scheme):
    """Replace our first weights ("kaiming") by others that the lectures compare them with."""
    draw = {
        "torch": lambda p, fan_in: p.uniform_(-(fan_in**-0.5), fan_in**-0.5),  # what nn.Linear does
        "normal": lambda p, fan_in: p.normal_(),  # far too loud: sure of itself before it has seen anything
        "zeros": lambda p, fan_in: p.zero_(),  # nothing ever learns to differ from its neighbour
    }
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, Linear) and scheme in draw:
                for p in layer.parameters():
                    draw[scheme](p, layer.weight.shape[1])


TANH_GAIN = 5 / 3  # tanh squashes; this gain keeps the standard deviation from layer to layer
HEAD_GAIN = 0.1  # a quiet last layer: every network starts by calling all characters equally likely, at a loss of ln V


# ----------------------------------------------------------------------------------------------------------------------
# Models, simplest first. A window model sees contexts (B, block_size) and answers (B, V); a sequence model sees the
# beginnings of lines (B, T) and answers every next character at once, (B, T, V).


class WindowModel(nn.Module):
    """Sees contexts (B, block_size), answers (B, V)."""

    windowed = True

    @staticmethod
    def context(config, longest):
        return config.block_size


class SequenceModel(nn.Module):
    """Sees the beginnings of lines (B, T), answers every next character at once, (B, T, V)."""

    windowed = False

    @staticmethod
    def context(config, longest):
        """The longest line and the start token have to fit."""
        if 0 < config.block_size <= longest:
            raise UserError(f"--block-size {config.block_size} is too short: the longest line here needs {longest + 1}")
        return config.block_size or longest + 1


def find(keys, query):
    """Where each query stands in the sorted keys, or -1."""
    at = torch.searchsorted(keys, query).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == query, at, -1)


class NGram(WindowModel):
    """Counts of what followed every context of up to n - 1 characters. Counting is all its training.

    A context of k characters is a node of a tree that is read from the newest character to the oldest, so the shorter
    contexts, to which smoothing falls back, are met on the way. What level k says is mixed with what level k-1 says:

        p_k = (count - discount) / total + (what the discounts freed) / total * p_{k-1},      p_{-1} = 1 / V

    Interpolated modified Kneser-Ney (Chen & Goodman 1999): three discounts a level, for counts of 1, 2 and more, and
    below the top a count of distinct contexts instead of occurrences. Additive smoothing is the same with no discount,
    `strength` added to every count, and nothing between the top level and the uniform one.
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        self.V, self.additive = vocab_size, config.smoothing == "additive"
        self.levels = range(config.n)
        grid = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0] if self.additive else [i / 10 for i in range(5, 16)]
        self.grid = [config.strength] if config.strength else grid
        start = torch.full((config.n,), config.strength or 1.0, dtype=torch.float64)
        self.strength = nn.Parameter(start, requires_grad=False)  # chosen on dev, not descended to

    @staticmethod
    def context(config, longest):
        return max(1, config.n - 1)

    def load_state_dict(self, state):
        """The tables are as long as the data made them."""
        for name, tensor in state.items():
            if name != "strength":
                self.register_buffer(name, tensor)
        super().load_state_dict(state)

    def fit(self, train, dev):
        """Count the windows of `train`, then choose the strength on `dev`, level by level, longest context first."""
        windows = train.windows[train.first].long()  # (N, block_size + 1)
        target, V = windows[:, -1], self.V
        node, below = torch.zeros_like(target), None
        for k in self.levels:
            contexts = torch.zeros(1, dtype=torch.long, device=node.device)
            if k:
                contexts, node = torch.unique(node * V + windows[:, -1 - k], return_inverse=True)
            pairs, pair, count = torch.unique(node * V + target, return_inverse=True, return_counts=True)
            if k and not self.additive:  # the level below counts in how many of these contexts its pairs occur
                parent = torch.empty_like(pairs).scatter_(0, pair, below)
                self._level(k - 1, counts=torch.bincount(parent, minlength=len(getattr(self, f"pairs{k - 1}"))))
            self._level(k, contexts=contexts, pairs=pairs, counts=count)
            below = pair
        found = self.look_up(*dev.batch(torch.arange(len(dev))))
        for k in reversed(self.levels) if not self.additive else [self.levels[-1]]:
            losses = {}
            for strength in self.grid:
                self.strength[k] = strength
                losses[strength] = -self.mix(found).log().mean().item()
            self.strength[k] = min(losses, key=losses.get)

    def _level(self, k, **tables):
        """Set tables of level k and what follows from them: totals, kinds and discounts."""
        for name, tensor in tables.items():
            self.register_buffer(f"{name}{k}", tensor)
        contexts, pairs, counts = (getattr(self, f"{name}{k}") for name in ("contexts", "pairs", "counts"))
        kind = F.one_hot(counts.clamp(max=3) - 1, 3).double()  # (pairs, 3): seen once, twice, more often
        node = pairs // self.V
        zeros = torch.zeros(len(contexts), 3, dtype=torch.float64, device=kind.device)
        self.register_buffer(f"kinds{k}", zeros.index_add(0, node, kind))  # (contexts, 3)
        self.register_buffer(f"totals{k}", zeros[:, 0].index_add(0, node, counts.double()))  # (contexts,)
        n1, n2, n3, n4 = ((counts == i).sum().item() for i in (1, 2, 3, 4))
        y = n1 / max(1, n1 + 2 * n2)
        freed = [i - (i + 1) * y * more / max(1, few) for i, few, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
        discounts = torch.tensor(freed, dtype=torch.float64, device=kind.device).clamp(min=0.1)
        self.register_buffer(f"discounts{k}", discounts)

    def look_up(self, idx, tokens):
        """For contexts (B, block_size) and tokens (B,) or (B, Q): what every level has counted."""
        tokens = tokens.view(len(idx), -1)
        node, found = torch.zeros(len(idx), dtype=torch.long, device=idx.device), []
        for k in self.levels:
            contexts, pairs, counts, totals, kinds = (
                getattr(self, f"{name}{k}") for name in ("contexts", "pairs", "counts", "totals", "kinds")
            )
            if k:
                node = torch.where(node < 0, -1, find(contexts, node * self.V + idx[:, -k]))
            seen = (node >= 0)[:, None]
            pair = find(pairs, node[:, None] * self.V + tokens)
            count = torch.where(seen & (pair >= 0), counts[pair], 0)
            found.append((seen, count, totals[node][:, None], kinds[node]))
        return found

    def mix(self, found):
        """The probabilities (B, Q) of what was looked up."""
        p = torch.full_like(found[0][1], 1, dtype=torch.float64) / self.V
        for k, (seen, count, total, kinds) in enumerate(found):
            if self.additive:
                if k < self.levels[-1]:
                    continue
                freed = self.strength[k] * self.V
                total, kept = total + freed, count
            else:
                discounts = getattr(self, f"discounts{k}") * self.strength[k]
                discounts = discounts.minimum(1 + torch.arange(3, device=p.device))  # nobody gives more than they have
                freed = kinds @ discounts[:, None]
                kept = count - F.pad(discounts, (1, 0))[count.clamp(max=3)]
            p = torch.where(seen, (kept + freed * p) / total, p)
        return p

    def forward(self, idx):
        tokens = torch.arange(self.V, device=idx.device).expand(len(idx), -1)
        return self.mix(self.look_up(idx, tokens)).log().float()  # (B, V)


class Bigram(WindowModel):
    """A table of logits with one row for every context. With --block-size 2 it is a trigram, and so on."""

    def __init__(self, config, vocab_size):
        super().__init__()
        if vocab_size ** (config.block_size + 1) > 2**28:
            raise UserError(
                f"--block-size {config.block_size} needs a table of {vocab_size}^{config.block_size + 1} numbers"
            )
        self.table = Embedding(vocab_size**config.block_size, vocab_size, std=0.0)

    def forward(self, idx):
        row, V = idx[:, 0], self.table.weight.shape[1]
        for column in idx.unbind(1)[1:]:
            row = row * V + column  # a context is a number written in base V
        return self.table(row)  # (B, V)


def tanh_layer(fan_in, fan_out, batchnorm, dropout, linear=Linear):
    """Linear, perhaps BatchNorm (which makes the bias superfluous), tanh, perhaps dropout."""
    layers = [linear(fan_in, fan_out, bias=not batchnorm, gain=TANH_GAIN)]
    layers += [BatchNorm1d(fan_out)] * batchnorm + [Tanh()]
    return layers + [Dropout(dropout)] * (dropout > 0)


class MLP(WindowModel):
    """Embeddings of the last block_size characters, side by side, through tanh layers (Bengio et al. 2003).

    With `direct`, the embeddings also reach the output straight, as in the paper's equation 1.
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        width, hidden = config.block_size * config.n_embd, config.n_embd2
        self.tok = Embedding(vocab_size, config.n_embd)
        self.direct = ContextLinear(width, vocab_size, bias=False, gain=HEAD_GAIN) if config.direct else None
        self.first, *layers = tanh_layer(width, hidden, config.batchnorm, config.dropout, ContextLinear)
        for _ in range(config.n_layer - 1):
            layers += tanh_layer(hidden, hidden, config.batchnorm, config.dropout)
        self.layers = Sequential([*layers, Linear(hidden, vocab_size, gain=HEAD_GAIN)])

    def forward(self, idx):
        logits = self.layers(self.first(idx, self.tok))  # (B, V)
        return logits + self.direct(idx, self.tok) if self.direct else logits


class WaveNet(WindowModel):
    """Two neighbours are fused at a time, then two pairs, and so on up a tree (after van den Oord et al. 2016)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        depth = config.block_size.bit_length() - 1
        if 2**depth != config.block_size or depth == 0:
            raise UserError(
                f"--block-size {config.block_size}: wavenet halves its context in every layer, so 2, 4, 8, ..."
            )
        layers, width = [Embedding(vocab_size, config.n_embd)], config.n_embd
        for _ in range(depth):
            layers += [FlattenConsecutive(2), *tanh_layer(2 * width, config.n_embd2, config.batchnorm, config.dropout)]
            width = config.n_embd2
        self.layers = Sequential([*layers, Linear(width, vocab_size, gain=HEAD_GAIN)])

    def forward(self, idx):
        return self.layers(idx)  # (B, V)


class DilatedWaveNet(SequenceModel):
    """Causal convolutions that reach 1, 2, 4, ... characters back (van den Oord et al. 2016).

    Each layer opens a gate for what it found, adds it to the stream (residual) and hands it to the output (skip).
    """

    def __init__(self, config, vocab_size):
        super().__init__()
        C, S = config.n_embd, config.n_embd2
        self.tok = Embedding(vocab_size, C)
        self.convs = nn.ModuleList(
            Linear(2 * C, 2 * C) for _ in range(config.n_layer)
        )  # two taps in, tanh and gate out
        self.outs = nn.ModuleList(Linear(C, C + S, gain=config.n_layer**-0.5) for _ in range(config.n_layer))
        self.split = [C, S]
        self.dropout = Dropout(config.dropout)
        self.think = Linear(S, S, gain=2**0.5)
        self.head = Linear(S, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        x, skips = self.tok(idx), 0  # (B, T, C)
        for i, (conv, out) in enumerate(zip(self.convs, self.outs, strict=True)):
            past = F.pad(x, (0, 0, 2**i, 0))[:, : x.shape[1]]  # what stood 2^i steps earlier, zeros before the start
            found, gate = conv(torch.cat((past, x), -1)).chunk(2, -1)
            residual, skip = out(self.dropout(torch.tanh(found) * torch.sigmoid(gate))).split(self.split, -1)
            x, skips = x + residual, skips + skip
        return self.head(self.dropout(F.relu(self.think(F.relu(skips)))))  # (B, T, V)


class Places:
    """Where the characters stand in a batch of lines (B, T), so that no work is done on the padding behind them."""

    def __init__(self, idx):
        inside = idx != 0
        inside[:, 0] = True  # a 0 in front is the start; any other is padding
        self.shape, self.where = idx.shape, inside.flatten().nonzero()[:, 0]  # (N,)

    def take(self, x):
        """(B, T, C) -> (N, C)"""
        return x.flatten(0, 1).index_select(0, self.where)

    def put(self, x):
        """(N, C) -> (B, T, C), zero in the padding"""
        return x.new_zeros(self.shape.numel(), x.shape[1]).index_copy(0, self.where, x).view(*self.shape, -1)


class BoW(SequenceModel):
    """A bag of words: every position averages what stands before it, order forgotten but for the position embedding."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.tok = Embedding(vocab_size, config.n_embd)
        self.pos = Positions(config.block_size, config.n_embd)
        self.up = Linear(config.n_embd, config.n_embd2, gain=TANH_GAIN)
        self.down = Linear(config.n_embd2, config.n_embd)
        self.head = Linear(config.n_embd, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        time, places = torch.arange(idx.shape[1], device=idx.device), Places(idx)
        x = self.tok(idx) + self.pos(idx)  # (B, T, C)
        x = places.take(x + x.cumsum(1) / (time + 1)[:, None])  # the mean of the past, without a mask: (N, C)
        x = x + self.down(torch.tanh(self.up(x)))
        return places.put(self.head(x))  # (B, T, V)


class Recurrence(nn.Module):
    """What all recurrent layers share: a learned start, one projection of all inputs at once, a loop over time.

    A cell says how many `gates` its projections feed, how many `states` it carries, and how to `step` from one time to
    the next; state 0 is what the layer above sees.
    """

    gates = states = 1

    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.input = Linear(n_in, self.gates * n_hidden)
        self.hidden = Linear(n_hidden, self.gates * n_hidden)
        self.start = nn.Parameter(torch.zeros(self.states, 1, n_hidden))

    def forward(self, x):  # (B, T, C) -> (B, T, hidden)
        inputs = self.input(x).unbind(1)  # T times (B, gates * hidden): the loop is left with the part that must be one
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
        parts = [2 * h.shape[1], h.shape[1]]
        (x_gates, x_new), (u_gates, u_new) = x.split(parts, 1), u.split(parts, 1)
        r, z = torch.sigmoid(x_gates + u_gates).chunk(2, 1)  # reset, update
        return [torch.lerp(torch.tanh(x_new + r * u_new), h, z)]  # (1 - z) new + z h


class LSTMCell(Recurrence):
    """A second state, the cell, runs along a road with gates only (Hochreiter & Schmidhuber 1997)."""

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
        self.tok = Embedding(vocab_size, config.n_embd)
        self.cells = nn.ModuleList([cell(a, b) for a, b in itertools.pairwise(widths)])
        self.dropout = Dropout(config.dropout)
        self.head = Linear(config.n_embd2, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        x = self.dropout(self.tok(idx))  # (B, T, C)
        for cell in self.cells:
            x = self.dropout(cell(x))  # (B, T, hidden)
        return self.head(x)  # (B, T, V)


class CausalSelfAttention(nn.Module):
    """Every position asks all earlier ones and averages what answers (Vaswani et al. 2017)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd, gain=(2 * config.n_layer) ** -0.5)
        self.dropout = Dropout(config.dropout)  # of the weights, too: on few data it is worth more than its price

    def forward(self, x, places):  # (N, C)
        B, T = places.shape
        q, k, v = places.put(self.qkv(x)).view(B, T, 3, self.n_head, -1).transpose(1, 3).unbind(2)  # (B, H, T, C/H)
        if self.training and self.dropout.silent:
            future = torch.full((T, T), -math.inf, device=x.device).triu(1)
            weights = (q @ k.mT * q.shape[-1] ** -0.5 + future).softmax(-1)  # (B, H, T, T), rows sum to one
            y = self.dropout(weights) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # the same in one kernel
        return self.proj(places.take(y.transpose(1, 2).flatten(2)))  # (N, C)


class Block(nn.Module):
    """Talk to each other, then think alone; both are added to the stream that runs past them."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.norm = nn.LayerNorm(C)
        self.attend = CausalSelfAttention(config)
        self.think = nn.Sequential(
            nn.LayerNorm(C), Linear(C, 4 * C), nn.GELU(), Linear(4 * C, C, gain=(2 * config.n_layer) ** -0.5)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x, places):  # (N, C)
        x = x + self.dropout(self.attend(self.norm(x), places))
        return x + self.dropout(self.think(x))


class Transformer(SequenceModel):
    """The GPT-2 recipe at pocket size: normalisation first, GELU, learned positions (Radford et al. 2019)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"--n-embd {config.n_embd} does not divide among --n-head {config.n_head}: take a multiple")
        self.tok = Embedding(vocab_size, config.n_embd)
        self.pos = Positions(config.block_size, config.n_embd, std=0.1)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = Linear(config.n_embd, vocab_size, gain=HEAD_GAIN)

    def forward(self, idx):
        places = Places(idx)
        x = self.dropout(places.take(self.tok(idx) + self.pos(idx)))  # (N, C)
        for block in self.blocks:
            x = block(x, places)
        return places.put(self.head(self.norm(x)))  # (B, T, V)


class Mixture(SequenceModel):
    """Trained models that vote: p = sum of share times p, with the shares chosen on dev (Jelinek & Mercer 1980).

    Counts remember what networks smooth over, networks know what nobody has counted: together they beat either.
    """

    def __init__(self, members, sizes, shares):
        super().__init__()
        self.members, self.sizes = nn.ModuleList(members), sizes  # sizes: how much context a window model sees
        self.register_buffer("shares", shares)  # (K,)

    def votes(self, idx):
        """The log-probabilities of every member: (K, B, T, V)."""
        votes = []
        for member, size in zip(self.members, self.sizes, strict=True):
            if member.windowed:
                windows = F.pad(idx, (size - 1, 0)).unfold(1, size, 1)  # (B, T, size)
                logits = member(windows.flatten(0, 1)).unflatten(0, idx.shape)
            else:
                logits = member(idx)
            votes.append(logits.log_softmax(-1))
        return torch.stack(votes)

    def forward(self, idx):
        return (self.votes(idx) + self.shares.log()[:, None, None, None]).logsumexp(0)  # (B, T, V)

    def fit(self, dev):
        """Choose the shares by expectation-maximisation, which can only climb here; return the members' losses (K,)."""
        said = []
        with inference(self):
            for index in dev.in_order(32_768):
                x, y = dev.batch(index)
                votes, came = self.votes(x)[:, y >= 0], y[y >= 0].expand(len(self.members), -1)[..., None]
                said.append(votes.gather(-1, came)[..., 0].cpu())
        p = torch.cat(said, 1).double().exp()  # (K, N): how likely each member found what came
        shares = self.shares.cpu().double()
        for _ in range(1000):
            weighted = shares[:, None] * p
            shares = (weighted / weighted.sum(0)).mean(1)
        self.shares.copy_(shares)
        return -p.log().mean(1)


@dataclass(frozen=True)
class Entry:
    """A row of the registry: the class, a line about it, the defaults that suit it, and the class's fixed arguments."""

    model: type
    about: str
    defaults: dict
    fixed: dict = field(default_factory=dict)


# fmt: off
MODELS = {
    "ngram": Entry(
        NGram, "counts of --n characters in a row, smoothed (Kneser & Ney 1995)", dict(max_steps=0)),
    "bigram": Entry(
        Bigram, "a table: the next character from the last --block-size ones",
        dict(block_size=1, batch_size=4096, learning_rate=0.05, max_steps=3000)),
    "mlp": Entry(
        MLP, "embeddings of the last --block-size characters into tanh layers (Bengio et al. 2003)",
        dict(block_size=3, n_layer=1, n_embd=24, n_embd2=256, learning_rate=3e-3, max_steps=15_000)),
    "wavenet": Entry(
        WaveNet, "a tree of convolutions over the last --block-size characters, with BatchNorm",
        dict(block_size=8, n_embd=24, n_embd2=128, batchnorm=True, learning_rate=3e-3, max_steps=8000)),
    "wavenet-dilated": Entry(
        DilatedWaveNet, "the same as --type wavenet --conv dilated: gated causal convolutions with skips",
        dict(n_layer=4, n_embd=64, n_embd2=128, batch_size=128, learning_rate=3e-3, max_steps=3000, dropout=0.1)),
    "bow": Entry(
        BoW, "the average of everything so far, order forgotten",
        dict(n_embd=64, n_embd2=256, batch_size=128, learning_rate=3e-3, max_steps=5000)),
    "rnn": Entry(
        Recurrent, "the plain recurrent network (Elman 1990)",
        dict(n_layer=1, n_embd=48, n_embd2=128, batch_size=128, learning_rate=3e-3, max_steps=5000, grad_clip=1.0),
        dict(cell=RNNCell)),
    "gru": Entry(
        Recurrent, "the recurrent network with gates (Cho et al. 2014)",
        dict(n_layer=1, n_embd=48, n_embd2=128, batch_size=128, learning_rate=3e-3, max_steps=4000, grad_clip=1.0),
        dict(cell=GRUCell)),
    "lstm": Entry(
        Recurrent, "the recurrent network with gates and a memory cell (Hochreiter & Schmidhuber 1997)",
        dict(n_layer=1, n_embd=48, n_embd2=128, batch_size=128, learning_rate=3e-3, max_steps=4000, grad_clip=1.0),
        dict(cell=LSTMCell)),
    "transformer": Entry(
        Transformer, "attention (Vaswani et al. 2017) after the recipe of GPT-2",
        dict(n_layer=4, n_head=4, n_embd=64, dropout=0.1, batch_size=128, learning_rate=3e-3, max_steps=3000,
             weight_decay=0.1)),
}
# fmt: on


def lasting(config, resumed):
    """The settings of a trained model; what was for its run only is back at its default, unless that run goes on."""
    kept = ("data", "model", "training", *["run"] * resumed)
    return replace(config, **{f.name: f.default for f in fields(config) if f.metadata["group"] not in kept})


def configure(given, trained=None):
    """Settings given explicitly win over those of a trained model, or else of the type's defaults."""
    if given.get("type") == "wavenet" and given.get("conv") == "dilated":
        given = {**given, "type": "wavenet-dilated"}
    base = trained or replace(Config(), type=given.get("type", Config.type))
    if not trained and base.type not in MODELS:
        raise UserError(f"--type {base.type} is unknown: choose among {', '.join(MODELS)}")
    for f in fields(Config):
        free = f.name == "seed" and "resume" not in given  # other samples from the same model are welcome
        if trained and f.metadata["fixed"] and not free and given.get(f.name, old := getattr(trained, f.name)) != old:
            flag = "--" + f.name.replace("_", "-")
            raise UserError(
                f"{flag} {given[f.name]}: the model in this folder was trained with {old}; leave {flag} out"
            )
    config = replace(base, **{**({} if trained else MODELS[base.type].defaults), **given})
    check_ranges(given, Config)
    return config


def build(config, vocab_size, longest):
    """Return the model that config describes and the config with its context length settled.

    Sequence models need a position for every character of the longest line and for the start token.
    """
    entry = MODELS[config.type]
    config = replace(config, block_size=entry.model.context(config, longest))
    if config.block_size < 1:
        raise UserError(f"--block-size {config.block_size}: {config.type} needs at least 1")
    torch.manual_seed(config.seed)
    model = entry.model(config, vocab_size, **entry.fixed)
    reinitialise(model, config.init)
    return model, config


def examples(model, lines, vocab, config, device):
    """The lines as the kind of examples that the model takes."""
    if model.windowed:
        return Windows(lines, vocab, device, config.block_size)
    return Lines(lines, vocab, device)


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation and sampling: exact, in eval mode, and blind to the random numbers of training


def cross_entropy(logits, targets, reduction="mean"):
    """Negative log-likelihood of the targets in nats; targets of -1 do not count. The one loss for all models."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1, reduction=reduction)


@contextlib.contextmanager
def inference(model):
    """Eval mode and no gradients, for as long as it lasts."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def line_losses(model, data, tokens=32_768):
    """Return the loss of every line in nats, its end included: (lines,)."""
    losses = torch.zeros(len(data.lengths), dtype=torch.float64)
    with inference(model):
        for index in data.in_order(tokens):
            x, y = data.batch(index)
            nats = cross_entropy(model(x), y, reduction="none").view(len(index), -1).sum(1)
            losses.index_add_(0, data.line_of(index), nats.cpu().double())
    return losses


def evaluate(model, data, tokens=32_768):
    """Return the exact mean loss over all predictions, in nats per character, and their number."""
    count = int((data.lengths + 1).sum())
    return line_losses(model, data, tokens).sum().item() / count, count


def next_token_probs(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Logits (B, V) to probabilities (B, V) by temperature, top-k and top-p (Holtzman et al. 2020)."""
    if temperature < 1e-10:  # 0, or as good as 0
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # no overflow, however small the temperature
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probs = logits.softmax(-1)
    if top_p < 1:
        ranked, order = probs.sort(descending=True, dim=-1)
        before = ranked.cumsum(-1) - ranked
        ranked[:, 1:][before[:, 1:] >= top_p] = 0  # the likeliest always stays
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
    return probs


def generate(model, vocab, config, limit, generator, device):
    """Return config.num_samples lines, drawn character by character, none longer than limit."""
    n = config.num_samples
    idx = torch.tensor([0, *vocab.encode(config.prefix)]).expand(n, -1)  # (n, t)
    alive = torch.ones(n, dtype=torch.bool)
    with inference(model):
        while idx.shape[1] <= limit and alive.any():
            seen = F.pad(idx, (config.block_size, 0))[:, -config.block_size :] if model.windowed else idx
            logits = model(seen.to(device))
            last = logits if model.windowed else logits[:, -1]
            probs = next_token_probs(last.float().cpu(), config.temperature, config.top_k, config.top_p)
            token = torch.multinomial(probs, 1, generator=generator)  # (n, 1)
            token[~alive] = 0
            idx = torch.cat((idx, token), 1)
            alive &= token[:, 0] != 0
    return [vocab.decode(t for t in row if t) for row in idx.tolist()]


def print_samples(samples, corpus):
    """Print samples, sorted by where they occur in the data; new ones are what makemore is for."""
    if corpus is None:
        print("\n".join(samples))
        return
    places = {name: set(getattr(corpus, name)) for name in ("train", "dev", "test")}
    groups = {name: [] for name in ("train", "dev", "test", "new")}
    for s in samples:
        groups[next((name for name, lines in places.items() if s in lines), "new")].append(s)
    for name, group in groups.items():
        print(f"{'in ' + name if name != 'new' else 'new'} ({len(group)}):" + "".join("\n  " + s for s in group))
    n = max(len(samples), 1)
    new, unique = len(groups["new"]), len(set(samples))
    print(f"samples: {len(samples)}, new {100 * new / n:.0f} %, unique {100 * unique / n:.0f} %")


# ----------------------------------------------------------------------------------------------------------------------
# Backpropagation by hand, for the MLP with one BatchNorm layer, and what becomes of BatchNorm after training


def batchnorm_parts(model):
    """The four layers (embedding, linear, batchnorm, linear) that the hand-written backward pass is written for."""
    layers = [m for m in model.modules() if isinstance(m, (Embedding, Linear, BatchNorm1d, Dropout))]
    if not isinstance(model, MLP) or [type(m) for m in layers] != [Embedding, ContextLinear, BatchNorm1d, Linear]:
        raise UserError(
            "the hand-written backward pass is for --type mlp --batchnorm --n-layer 1, without --dropout and --direct"
        )
    return layers


@torch.no_grad()
def manual_gradients(model, x, y):
    """Set p.grad of every parameter without autograd and return the loss. x (B, T), y (B,).

    The two long chains are fused: cross-entropy's gradient is softmax minus one-hot, and BatchNorm's is the gradient
    less its mean and less its share along the normalised input (Ioffe & Szegedy 2015, section 3, simplified).
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
    n, rows = len(y), torch.arange(len(y))
    C, W1, gain, bias, W2, b2 = (
        p.detach().double().requires_grad_()
        for p in (embedding.weight, hidden.weight.T, norm.gamma, norm.beta, head.weight.T, head.bias)
    )
    b1 = torch.zeros(
        W1.shape[1], dtype=torch.float64, requires_grad=True
    )  # BatchNorm takes it away again: its gradient is 0
    emb = C[x]  # (B, T, E)
    embcat = emb.flatten(1)  # (B, T E)
    hprebn = embcat @ W1 + b1  # (B, H)
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
    forward = dict(
        logprobs=logprobs, probs=probs, counts_sum_inv=counts_sum_inv, counts_sum=counts_sum, counts=counts,
        norm_logits=norm_logits, logit_maxes=logit_maxes, logits=logits, h=h, W2=W2, b2=b2, hpreact=hpreact,
        bngain=gain,
        bnbias=bias, bnraw=bnraw, bnvar_inv=bnvar_inv, bnvar=bnvar, bndiff2=bndiff2, bndiff=bndiff, bnmean=bnmean,
        hprebn=hprebn, embcat=embcat, W1=W1, b1=b1, emb=emb, C=C,
    )  # fmt: skip
    truth = dict(zip(forward, torch.autograd.grad(loss, list(forward.values())), strict=True))

    d = {}
    with torch.no_grad():
        d["logprobs"] = torch.zeros_like(logprobs).index_put((rows, y), torch.tensor(-1.0 / n, dtype=torch.float64))
        d["probs"] = d["logprobs"] / probs
        d["counts_sum_inv"] = (d["probs"] * counts).sum(1, keepdim=True)
        d["counts_sum"] = -d["counts_sum_inv"] * counts_sum_inv**2
        d["counts"] = d["probs"] * counts_sum_inv + d["counts_sum"]  # two ways lead to counts: their gradients add
        d["norm_logits"] = d["counts"] * counts
        d["logit_maxes"] = -d["norm_logits"].sum(1, keepdim=True)  # 0 but for rounding: it only guards against overflow
        d["logits"] = d["norm_logits"] + d["logit_maxes"] * F.one_hot(logits.argmax(1), logits.shape[1])
        d["h"] = d["logits"] @ W2.T
        d["W2"] = h.T @ d["logits"]
        d["b2"] = d["logits"].sum(0)
        d["hpreact"] = d["h"] * (1 - h**2)
        d["bngain"] = (d["hpreact"] * bnraw).sum(0)
        d["bnbias"] = d["hpreact"].sum(0)
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
    return [
        (
            name,
            torch.equal(d[name], truth[name]),
            torch.allclose(d[name], truth[name]),
            (d[name] - truth[name]).abs().max().item(),
        )
        for name in forward
    ]


@torch.no_grad()
def fold_batchnorm(model, config, vocab_size, longest):
    """Return a model without BatchNorm that computes the same in eval mode, and its config.

    With the statistics fixed, BatchNorm is a scale and a shift of every channel, and so can live in the layer before.
    """
    if not config.batchnorm:
        raise UserError(f"this {config.type} has no BatchNorm to fold")
    folded, config = build(replace(config, batchnorm=False), vocab_size, longest)
    layers = (m for m in folded.modules() if isinstance(m, (Embedding, Linear)))
    for m in model.modules():
        if isinstance(m, (Embedding, Linear)):
            layer = next(layers)
            layer.load_state_dict(m.state_dict(), strict=False)
        elif isinstance(m, BatchNorm1d):
            scale = m.gamma * torch.rsqrt(m.running_var + m.eps)
            layer.weight.mul_(scale[:, None])
            layer.bias.copy_(m.beta - m.running_mean * scale)
    return folded, config


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: plain dicts, complete in themselves, moved into place when they are whole


def write_atomic(path, data):
    """Write bytes to path so that at any moment the old file or the new one is there, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e.strerror}; what was there before is kept") from None


def save_checkpoint(path, checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getbuffer())


def load_checkpoint(path, program):
    """Return the checkpoint at path, written by this program, or raise UserError. Checkpoints never run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: train first, or point --work-dir at a trained folder") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: it is corrupt, or carries code, which a checkpoint never needs") from None
    except Exception:
        raise UserError(f"{path} is corrupt: not a checkpoint, or cut short") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("program") != program:
        raise UserError(f"{path} is not a checkpoint of {program}")
    if missing := [key for key in CHECKPOINT_KEYS if key not in checkpoint]:
        raise UserError(f"{path} is not complete: it lacks {', '.join(missing)}")
    return checkpoint


def make_work_dir(path):
    """Create the folder if needed and make sure that files can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write in the folder {path}: {e.strerror}") from None
    return Path(path)


# ----------------------------------------------------------------------------------------------------------------------
# Training


def pick_device(name):
    """Turn --device into a torch.device that works, or raise UserError that says why it does not."""
    if name == "auto":
        if torch.cuda.is_available():
            try:
                return pick_device("cuda")
            except UserError as e:
                print(f"{e}; going on with the cpu", file=sys.stderr)
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError(f"--device {name} is unknown: auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    try:  # a card that torch has no kernels for is reported as available: only doing something tells
        torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device)).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        why = str(e).strip().splitlines()[0].rstrip(".")
        if "no kernel image" in str(e):
            why = (
                "this torch has no kernels for the card; for a GTX 9xx or 10xx: "
                'pip install "torch<2.15" --index-url https://download.pytorch.org/whl/cu126'
            )
        elif device.type == "cuda" and not torch.backends.cuda.is_built():
            why = "this torch is built without CUDA; https://pytorch.org/get-started/locally has the command"
        raise UserError(f"--device {name} cannot be used: {why}") from None
    return device


class StopOnSignal:
    """While it lasts, a first Ctrl-C (or TERM) only sets `signum` so that the loop can end in order; a second kills."""

    def __enter__(self):
        self.signum = 0
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, signum, frame):
        self.signum = signum
        self.__exit__()

    def __exit__(self, *exc):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def clock(seconds):
    """Seconds as m:ss or h:mm:ss."""
    m, s = divmod(round(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


def learning_rate(step, config, horizon):
    """Climb for warmup_steps, then come down as --schedule says until `horizon`."""
    climb = min(1.0, (step + 1) / (config.warmup_steps + 1))
    way = min(1.0, max(0, step - config.warmup_steps) / max(1, horizon - config.warmup_steps))
    fall = {
        "constant": 1.0,
        "linear": 1 - way,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * way),
        "step": 0.1 if way >= 0.75 else 1.0,
    }
    return config.learning_rate * climb * fall[config.schedule]


def make_optimizer(model, config):
    """AdamW or SGD; only matrices decay, never biases and gains."""
    parameters = list(model.parameters())
    groups = [
        dict(params=[p for p in parameters if p.ndim >= 2], weight_decay=config.weight_decay),
        dict(params=[p for p in parameters if p.ndim < 2], weight_decay=0.0),
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0  # spent training, evaluation not counted
    best_loss: float = math.inf  # on dev
    best_step: int = 0
    history: list = field(default_factory=list)  # the rows of log.csv


LOG_COLUMNS = ("step", "seconds", "train_loss", "dev_loss", "lr")


# All that is needed to go on as if nothing had happened, or to sample from the folder alone
CHECKPOINT_KEYS = (
    "config",
    "progress",
    "vocab",
    "longest",
    "digest",
    "model",
    "optimizer",
    "batches",
    "rng",
    "cuda_rng",
)


def snapshot(model, optimizer, generator, progress, config, corpus):
    """The state of a run as one plain dict."""
    cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    run = (asdict(config), asdict(progress), corpus.vocab.chars, corpus.longest, corpus.digest)
    states = (model.state_dict(), optimizer.state_dict(), generator.get_state(), torch.get_rng_state(), cuda_rng)
    return {"program": "makemore", **dict(zip(CHECKPOINT_KEYS, run + states, strict=True))}


def restore(checkpoint, optimizer, generator):
    """Undo `snapshot` for everything but the model, and return the progress."""
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict(checkpoint["optimizer"])
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay  # what the command line says now counts
    generator.set_state(checkpoint["batches"])
    torch.set_rng_state(checkpoint["rng"])
    if len(checkpoint["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    return Progress(**checkpoint["progress"])


def write_csv(path, columns, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


class Console:
    """A line for every evaluation and, on a terminal, one that moves in between."""

    def __init__(self, max_steps):
        self.max_steps, self.live, self.drawn = max_steps, sys.stdout.isatty(), 0.0

    def head(self, step):
        return f"step {step}/{self.max_steps}" if self.max_steps >= 0 else f"step {step}"

    def left(self, step, pace):
        return f"{clock((self.max_steps - step) * pace)} left" if self.max_steps > step else ""

    def tick(self, step, loss, pace):
        if self.live and time.perf_counter() - self.drawn > 0.2:
            self.drawn = time.perf_counter()
            line = f"{self.head(step)}  loss {loss:.4f}  {1000 * pace:.2f} ms/step  {self.left(step, pace)}"
            print(f"\r\033[K{line}", end="", flush=True)

    def row(self, step, train_loss, dev_loss, improved, lr, pace):
        clear = "\r\033[K" if self.live else ""
        print(
            f"{clear}{self.head(step):<18}  train {train_loss:.4f}  dev {dev_loss:.4f}{'*' if improved else ' '}  "
            f"lr {lr:.2e}  {1000 * pace:7.2f} ms/step  {self.left(step, pace)}",
            flush=True,
        )


def check_finite(loss, step, progress, work_dir):
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} by step {step}: {work_dir / 'model.pt'} keeps the model of step {progress.best_step}; "
            "try a lower --learning-rate, or --grad-clip 1"
        )


def train(model, corpus, config, device, work_dir, checkpoint=None, meter=None):
    """Train until --max-steps or a signal, keeping model.pt (best on dev) and last.pt. Return the signal or 0."""
    data = {name: examples(model, getattr(corpus, name), corpus.vocab, config, device) for name in ("train", "dev")}
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)  # draws the batches and nothing else
    progress = restore(checkpoint, optimizer, generator) if checkpoint else Progress()
    horizon = config.decay_steps or max(config.max_steps, MODELS[config.type].defaults["max_steps"])
    interval = config.eval_interval or max(1, (config.max_steps if config.max_steps > 0 else horizon) // 20)
    console = Console(config.max_steps)
    if isinstance(model, NGram):
        config = replace(config, max_steps=0)
        if not checkpoint:
            model.fit(data["train"], data["dev"])
            print(
                "strength, shortest context first:",
                ", ".join(f"{s:.2g}" for s in model.strength[-1 if model.additive else 0 :].tolist()),
            )

    recent, since = [], time.perf_counter()  # losses and time since the last evaluation
    model.train()
    with StopOnSignal() as stop:
        while True:
            step, lr = progress.step, learning_rate(progress.step, config, horizon)
            over = stop.signum or 0 <= config.max_steps <= step

            # once in a while: evaluate, save, report
            if (step % interval == 0 or over) and not (progress.history and progress.history[-1][0] == step):
                spent = time.perf_counter() - since
                progress.seconds += spent
                train_loss = torch.stack(recent).mean().item() if recent else math.nan
                dev_loss, _ = evaluate(model, data["dev"])
                check_finite(dev_loss, step, progress, work_dir)
                improved = dev_loss < progress.best_loss
                if improved:
                    progress.best_loss, progress.best_step = dev_loss, step
                progress.history.append([step, round(progress.seconds, 3), train_loss, dev_loss, lr])
                state = snapshot(model, optimizer, generator, progress, config, corpus)
                for name in ("model.pt", "last.pt") if improved else ("last.pt",):
                    save_checkpoint(work_dir / name, state)
                write_csv(work_dir / "log.csv", LOG_COLUMNS, progress.history)
                console.row(step, train_loss, dev_loss, improved, lr, spent / max(1, len(recent)))
                recent, since = [], time.perf_counter()
            if over:
                return stop.signum

            # learn
            x, y = data["train"].batch(torch.randint(len(data["train"]), (config.batch_size,), generator=generator))
            if config.backprop == "manual":
                loss = manual_gradients(model, x, y)
            else:
                loss = cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
            if config.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            progress.step += 1
            if meter:
                meter()

            recent.append(loss.detach())
            if progress.step % 10 == 0:  # a GPU has to wait when asked for a number, so not at every step
                check_finite(loss.item(), progress.step, progress, work_dir)
                console.tick(progress.step, loss.item(), (time.perf_counter() - since) / len(recent))


# ----------------------------------------------------------------------------------------------------------------------
# Diagnostics: hooks take a look inside during one batch and return rows; tables and figures are drawn from rows


@dataclass
class LayerRow:
    """What one layer did with one batch. Only layers with weights have the last two."""

    name: str
    kind: str
    output: torch.Tensor
    grad: torch.Tensor  # of the loss with respect to the output
    weight: torch.Tensor | None = None
    weight_grad: torch.Tensor | None = None

    @property
    def saturated(self):
        """Share of outputs where tanh has gone flat and passes no gradient on."""
        return (self.output.abs() > 0.97).float().mean().item()

    @property
    def dead(self):
        """Share of neurons that are flat for every example of the batch."""
        return (self.output.abs() > 0.99).flatten(0, -2).all(0).float().mean().item()


def inspect_layers(model, x, y):
    """One forward and backward pass through a copy of the model: (loss, a LayerRow for every layer, in order)."""
    model, rows = copy.deepcopy(model).train(), []

    def look(name, layer, inputs, output):
        output.retain_grad()
        rows.append((name, layer, output))

    for name, layer in model.named_modules():
        if not list(layer.children()) and not isinstance(layer, Dropout):
            layer.register_forward_hook(partial(look, name))
    loss = cross_entropy(model(x), y)
    loss.backward()
    weights = [getattr(layer, "weight", None) for _, layer, _ in rows]
    return loss.item(), [
        LayerRow(name, type(layer).__name__, out.detach(), out.grad, w, None if w is None else w.grad)
        for (name, layer, out), w in zip(rows, weights, strict=True)
    ]


class UpdateMeter:
    """Called after every step: log10 of how far each matrix moved, by its size (both as standard deviations)."""

    def __init__(self, model):
        self.matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
        self.rows, self.before = [], [p.detach().clone() for p in self.matrices.values()]

    @torch.no_grad()
    def __call__(self):
        pairs = list(zip(self.matrices.values(), self.before, strict=True))
        self.rows.append([((p - old).std() / p.std()).clamp(min=1e-9).log10().item() for p, old in pairs])
        for p, old in pairs:
            old.copy_(p)


def print_layers(loss, rows, vocab_size):
    print(f"loss {loss:.4f} on a batch; a network that knows nothing has ln {vocab_size} = {math.log(vocab_size):.4f}")
    print(
        f"{'layer':<22}{'kind':<19}{'output':<18}{'mean':>7}{'std':>7}{'flat %':>8}{'dead %':>8}"
        f"{'grad std':>10}{'grad:data':>11}"
    )
    for r in rows:
        tanh = f"{100 * r.saturated:8.1f}{100 * r.dead:8.1f}" if r.kind == "Tanh" else " " * 16
        ratio = (
            f"{(r.weight_grad.std() / r.weight.std()).item():11.1e}"
            if r.weight is not None and r.weight.ndim == 2 and r.weight.any()
            else ""
        )
        print(
            f"{r.name:<22}{r.kind:<19}{tuple(r.output.shape)!s:<18}{r.output.mean():7.2f}{r.output.std():7.2f}{tanh}"
            f"{r.grad.std():10.1e}{ratio}"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Figures


@contextlib.contextmanager
def drawing(path, columns=1, size=(7, 4.2)):
    """Axes to draw on; afterwards the figure is at `path` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1]), layout="constrained")
    axes = figure.subplots(1, columns)
    for ax in [axes] if columns == 1 else axes:
        ax.spines[["top", "right"]].set_visible(False)
    yield axes
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


def plot_losses(path, history, best_step, vocab_size, title):
    """Draw the rows of log.csv: the train and dev loss over the steps, and where the best model stands."""
    steps, _, train_loss, dev_loss, _ = zip(*history, strict=True)
    best, uniform = min(dev_loss), math.log(vocab_size)
    with drawing(path) as ax:
        ax.plot(steps, train_loss, color="#8fb8de", label="train (mean since the last evaluation)")
        ax.plot(steps, dev_loss, color="#c8553d", label="dev")
        ax.plot(best_step, best, "o", color="#c8553d", markersize=5)
        ax.annotate(
            f"best {best:.4f}", (best_step, best), (0, 9), textcoords="offset points", ha="right", color="#c8553d"
        )
        ax.axhline(uniform, color="0.6", linewidth=0.8, linestyle=":")
        ax.text(0, uniform, f" ln {vocab_size} = {uniform:.2f}: knows nothing", color="0.45", va="bottom", fontsize=8)
        bottom = min(*dev_loss, *(x for x in train_loss if x == x), uniform) - 0.05
        ax.set(title=title, xlabel="step", ylabel="nats per character", ylim=(bottom, uniform + 0.15))
        ax.legend(frameon=False)


def plot_inside(work_dir, rows, meter, data, vocab):
    """Draw activations.png, weights.png, dead.png, embedding.png and bigrams.png; return their names."""
    import matplotlib

    def shades(n):
        return matplotlib.colormaps["viridis"]([i / max(1, n) for i in range(n)])

    def histogram(ax, values, **style):
        heights, edges = torch.histogram(values.flatten().float().cpu(), bins=80, density=True)
        ax.plot((0.5 * (edges[:-1] + edges[1:])).numpy(), heights.numpy(), linewidth=1.2, **style)

    drawn = []
    tanhs = [r for r in rows if r.kind == "Tanh"]
    if tanhs:
        drawn.append("activations.png")
        with drawing(work_dir / drawn[-1], columns=2) as (left, right):
            for r, color in zip(tanhs, shades(len(tanhs)), strict=True):
                label = f"{r.name}: std {r.output.std():.2f}, {100 * r.saturated:.0f} % flat"
                histogram(left, r.output, color=color, label=label)
                histogram(right, r.grad, color=color, label=f"{r.name}: std {r.grad.std():.1e}")
            for x in (-0.97, 0.97):
                left.axvline(x, color="#c8553d", linewidth=0.8, linestyle="--")
            left.set(title="tanh outputs: alike from layer to layer, few beyond ±0.97", xlabel="output", yticks=[])
            right.set(title="their gradients: neither shrinking nor growing with depth", xlabel="gradient", yticks=[])
            left.legend(frameon=False, fontsize=8)
            right.legend(frameon=False, fontsize=8)
        drawn.append("dead.png")
        flat = (tanhs[0].output.abs() > 0.99).flatten(0, -2)[:128]
        with drawing(work_dir / drawn[-1]) as ax:
            ax.imshow(flat.cpu().numpy(), cmap="gray", interpolation="nearest", aspect="auto")
            ax.set(
                title=f"{tanhs[0].name}: white is |tanh| > 0.99; a column white throughout is a dead neuron",
                xlabel="neuron",
                ylabel="example",
            )
    matrices = [r for r in rows if r.weight is not None and r.weight.ndim == 2]
    drawn.append("weights.png")
    with drawing(work_dir / drawn[-1], columns=2) as (left, right):
        for r, color in zip(matrices, shades(len(matrices)), strict=True):
            ratio = (r.weight_grad.std() / r.weight.std()).item()
            histogram(
                left, r.weight_grad, color=color, label=f"{r.name} {tuple(r.weight.shape)}: grad:data {ratio:.0e}"
            )
        for i, (name, color) in enumerate(zip(meter.matrices, shades(len(meter.matrices)), strict=True)):
            right.plot([row[i] for row in meter.rows], color=color, linewidth=0.8, label=name)
        right.axhline(-3, color="#c8553d", linewidth=1, linestyle="--")
        left.set(title="weight gradients: no matrix should stand apart", xlabel="gradient", yticks=[], yscale="log")
        right.set(title="update:data, log10: around -3 (dashed) it learns at a good pace", xlabel="step")
        left.legend(frameon=False, fontsize=7)
        right.legend(frameon=False, fontsize=7)
    table = next((r.weight.detach() for r in rows if r.kind == "Embedding" and len(r.weight) == len(vocab)), None)
    if table is not None and table.shape[1] >= 2:
        drawn.append("embedding.png")
        centred = table - table.mean(0)
        where = (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T).cpu().numpy()
        with drawing(work_dir / drawn[-1], size=(6, 6)) as ax:
            ax.scatter(where[:, 0], where[:, 1], s=220, color="#8fb8de")
            for (x, y), char in zip(where, "." + vocab.chars, strict=True):
                ax.text(x, y, char, ha="center", va="center")
            ax.set(
                title="embedding, its two widest directions: letters used alike stand together", xticks=[], yticks=[]
            )
    drawn.append("bigrams.png")
    names, show = "." + vocab.chars, min(len(vocab), 40)
    with drawing(work_dir / drawn[-1], size=(12, 12)) as ax:
        counts = data.bigrams(len(vocab))[:show, :show].cpu().numpy()
        ax.imshow(counts, cmap="Blues")
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                color = "white" if count > counts.max() / 2 else "0.35"
                ax.text(j, i - 0.18, names[i] + names[j], ha="center", va="center", fontsize=7, color=color)
                ax.text(j, i + 0.22, count, ha="center", va="center", fontsize=6, color=color)
        ax.set(title="bigrams: how often the column's character follows the row's", xticks=[], yticks=[])
    return drawn


def find_learning_rate(model, data, config, path):
    """Train a copy for 400 steps at rates from 1e-5 to 10, draw the loss against the rate, and return a good rate.

    The range test of Smith (2017): the rate to take is where the loss still falls steeply, well before its minimum.
    """
    model = copy.deepcopy(model).train()
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    rates, losses, smooth = torch.logspace(-5, 1, 400).tolist(), [], []
    for rate in rates:
        x, y = data.batch(torch.randint(len(data), (config.batch_size,), generator=generator))
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        smooth.append(loss.item() if not smooth else 0.9 * smooth[-1] + 0.1 * loss.item())
        if not smooth[-1] < 2 * smooth[0]:
            break
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    best = rates[lowest] / 3
    with drawing(path) as ax:
        ax.plot(rates[: len(losses)], losses, color="#8fb8de", linewidth=0.8, label="loss of the batch")
        ax.plot(rates[: len(losses)], smooth, color="#c8553d", label="smoothed")
        ax.axvline(best, color="0.4", linestyle="--", linewidth=1)
        ax.annotate(f"{best:.1e}", (best, max(smooth[: lowest + 1])), (5, 0), textcoords="offset points", color="0.3")
        ax.set(
            title="range test: take the rate where the loss still falls, a third of where it is lowest",
            xlabel="learning rate",
            ylabel="nats per character",
            xscale="log",
            ylim=(min(losses) - 0.1, smooth[0] * 1.3),
        )
        ax.legend(frameon=False)
    return best


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def type_table():
    """The models and their defaults, for --help."""
    lines = ["models for --type, and the defaults that suit them:"]
    for name, entry in MODELS.items():
        lines += [
            f"  {name:<12} {entry.about}",
            " " * 15 + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in entry.defaults.items()),
        ]
    return "\n".join(lines)


def open_model(checkpoint):
    """Rebuild (model, vocab, config) from a checkpoint alone."""
    try:
        config = Config(**checkpoint["config"])
        vocab = Vocab(checkpoint["vocab"])
        if config.type == "mixture":
            members, _, configs = zip(*map(open_model, checkpoint["members"]), strict=True)
            return Mixture(members, [c.block_size for c in configs], checkpoint["model"]["shares"]), vocab, config
        model, config = build(config, len(vocab), checkpoint["longest"])
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise UserError(f"the checkpoint does not fit this version of makemore: {str(e).splitlines()[0]}") from None
    return model, vocab, config


def mix_checkpoints(folders):
    """A checkpoint whose members are the models of these folders, with equal shares."""
    checkpoints = [load_checkpoint(Path(folder) / "model.pt", "makemore") for folder in folders]
    configs = [open_model(checkpoint)[2] for checkpoint in checkpoints]
    first, config = checkpoints[0], configs[0]
    for folder, checkpoint, c in zip(folders, checkpoints, configs, strict=True):
        alike = (c.split, c.dedup) == (config.split, config.dedup) and (c.split != "random" or c.seed == config.seed)
        if not alike or checkpoint["digest"] != first["digest"]:
            raise UserError(
                f"--mix: {folder} was trained on other lines than {folders[0]}, or on another split of them"
            )
    config = Config(config.input_file, config.split, config.dedup, "mixture", seed=config.seed)
    members = [{k: c[k] for k in ("config", "vocab", "longest", "model", "members") if k in c} for c in checkpoints]
    shares = torch.full((len(members),), 1 / len(members))
    return {**first, "config": asdict(config), "members": members, "model": {"shares": shares}, "optimizer": {}}


def find_corpus(config, trained, digest):
    """The corpus that a model was trained on, or None where the file is gone or has changed since."""
    with contextlib.suppress(UserError):
        corpus = load_corpus(replace(trained, input_file=config.input_file))
        if corpus.digest == digest:
            return corpus
    return None


@dataclass
class Job:
    """What every mode of the command line works with."""

    config: Config
    model: nn.Module
    vocab: Vocab
    longest: int  # characters in the longest line, the limit of samples
    corpus: Corpus | None  # None where the data of a trained model is gone
    device: torch.device
    work_dir: Path
    checkpoint: dict | None

    def examples(self, lines):
        return examples(self.model, lines, self.vocab, self.config, self.device)

    def first_batch(self):
        training = self.examples(self.corpus.train)
        return training.batch(torch.arange(min(len(training), self.config.batch_size)))


def open_job(given):
    """Set up what the command line describes: a new model, or the one in the work folder."""
    work_dir, checkpoint = Path(given.get("work_dir", Config.work_dir)), None
    if not given.keys().isdisjoint(("resume", "sample_only", "eval", "mix", "fold_batchnorm")):
        if "mix" in given:
            folders = given["mix"].split(",")
            if work_dir.resolve() in [Path(folder).resolve() for folder in folders]:
                raise UserError(f"--mix: {work_dir} is one of the folders to mix; name another with --work-dir")
            checkpoint = mix_checkpoints(folders)
        else:
            checkpoint = load_checkpoint(work_dir / ("last.pt" if "resume" in given else "model.pt"), "makemore")
        model, vocab, trained = open_model(checkpoint)
        trained = lasting(trained, "resume" in given)
        config = configure(given, trained)
        corpus, longest = find_corpus(config, trained, checkpoint["digest"]), checkpoint["longest"]
    else:
        config = configure(given)
        corpus = load_corpus(config)
        vocab, longest = corpus.vocab, corpus.longest
        model, config = build(config, len(vocab), longest)
    vocab.encode(config.prefix)  # names the characters it does not know
    if len(config.prefix) >= longest:
        raise UserError(f"--prefix {config.prefix!r} must be shorter than the longest line, {longest} characters")
    device = pick_device(config.device)
    return Job(config, model.to(device), vocab, longest, corpus, device, work_dir, checkpoint)


def run_eval(job):
    lines = read_lines(job.config.eval)
    losses = line_losses(job.model, job.examples(lines)).tolist()
    rows = [(line, round(nats, 4), round(nats / (len(line) + 1), 4)) for line, nats in zip(lines, losses, strict=True)]
    ranked = sorted(rows, key=lambda row: row[2])
    for title, some in (("likeliest", ranked[:5]), ("strangest", ranked[5:][-5:])):
        print(f"{title}:" + "".join(f"\n  {mean:.4f}  {line}" for line, _, mean in some))
    count = sum(map(len, lines)) + len(lines)
    print(f"eval: {sum(losses) / count:.4f} nats/char over {count} characters in {len(lines)} lines")
    write_csv(job.work_dir / "scores.csv", ("line", "nats", "nats_per_char"), rows)
    print(f"line by line: {job.work_dir / 'scores.csv'}")


def run_sample(job):
    if job.corpus is None:
        print(f"makemore: {job.config.input_file} is gone or has changed: samples are not sorted", file=sys.stderr)
    generator = torch.Generator().manual_seed(job.config.seed)
    print_samples(generate(job.model, job.vocab, job.config, job.longest, generator, job.device), job.corpus)


def run_mix(job):
    if job.corpus is None:
        raise UserError(f"{job.config.input_file} is gone or has changed: --mix chooses the shares on its dev lines")
    folder = make_work_dir(job.work_dir)
    dev = job.model.fit(job.examples(job.corpus.dev)).tolist()
    print("share  dev")
    for share, loss, name in zip(job.model.shares.tolist(), dev, job.config.mix.split(","), strict=True):
        print(f"{share:5.3f}  {loss:.4f}  {name}")
    save_checkpoint(folder / "model.pt", {**job.checkpoint, "model": {"shares": job.model.shares.cpu()}})
    report(job, "")
    run_sample(job)


def run_fold(job):
    folded, config = fold_batchnorm(job.model, job.config, len(job.vocab), job.longest)
    folder = make_work_dir(job.work_dir / "folded")
    save_checkpoint(folder / "model.pt", {**job.checkpoint, "config": asdict(config), "model": folded.state_dict()})
    if job.corpus:
        losses = [evaluate(m, job.examples(job.corpus.dev))[0] for m in (job.model, folded.to(job.device))]
        print("dev {:.6f} with BatchNorm, {:.6f} with it folded".format(*losses))
    print(f"the folded model: {folder}")


def run_find_lr(job):
    path = make_work_dir(job.work_dir) / "find_lr.png"
    rate = find_learning_rate(job.model, job.examples(job.corpus.train), job.config, path)
    print(f"try --learning-rate {rate:.1e}; see {path}")


def run_check_backprop(job):
    rows = check_backprop(job.model, *job.first_batch())
    print(f"{'gradient':<16}{'exact':<7}{'approx':<8}max difference")
    for name, exact, approx, difference in rows:
        print(f"{name:<16}{exact!s:<7}{approx!s:<8}{difference:.1e}")


def report(job, remark):
    """Print the exact losses on the three parts of the data: the one line that counts."""
    losses = [evaluate(job.model, job.examples(getattr(job.corpus, name)))[0] for name in ("train", "dev", "test")]
    print("final: train {:.4f} dev {:.4f} test {:.4f} nats/char".format(*losses) + remark)


def run_training(job):
    """The main job: train, pick the best on dev, report, sample. Returns 128 + signal if it was stopped by one."""
    model, corpus, config, work_dir = job.model, job.corpus, job.config, job.work_dir
    if corpus is None:
        raise UserError(f"{config.input_file} is gone or has changed: --resume needs the lines that the run began with")
    if config.backprop == "manual":
        batchnorm_parts(model)
    make_work_dir(work_dir)
    sizes = ", ".join(f"{len(getattr(corpus, name)):,} {name}" for name in ("train", "dev", "test"))
    print(f"data: {config.input_file}: {sizes} lines, {len(job.vocab)} tokens, longest line {job.longest}")
    known = set(corpus.train)
    repeated = sum(line in known for line in corpus.test)
    print(f"overlap: {repeated:,} of the test lines are training lines, too; --dedup would drop repeated lines")
    count = sum(p.numel() for p in model.parameters())
    print(f"model: {config.type}, {count:,} parameters, context {config.block_size}, on {job.device}")

    meter = None
    if config.diagnose:
        meter = UpdateMeter(model)
        print_layers(*inspect_layers(model, *job.first_batch()), len(job.vocab))
    signum = train(model, corpus, config, job.device, work_dir, job.checkpoint, meter)
    if config.diagnose:
        loss, rows = inspect_layers(model, *job.first_batch())
        print_layers(loss, rows, len(job.vocab))
        figures = plot_inside(work_dir, rows, meter, job.examples(corpus.train), job.vocab)
        print("figures:", ", ".join(str(work_dir / name) for name in figures))

    progress = load_checkpoint(work_dir / "last.pt", "makemore")["progress"]
    model.load_state_dict(load_checkpoint(work_dir / "model.pt", "makemore")["model"])
    title = f"{config.type} on {Path(config.input_file).name}"
    plot_losses(work_dir / "loss.png", progress["history"], progress["best_step"], len(job.vocab), title)
    report(job, f" (best at step {progress['best_step']})")
    run_sample(job)
    return 128 + signum if signum else 0


MODES = {
    "eval": run_eval, "sample_only": run_sample, "mix": run_mix, "fold_batchnorm": run_fold,
    "find_lr": run_find_lr, "check_backprop": run_check_backprop, "resume": run_training,
}  # fmt: skip


def run(argv):
    """Do what the command line asks for and return the exit status."""
    about = "Train a character-level language model on a file of lines, then sample."
    given = parse_args(argv, "makemore", about, type_table(), Config)
    modes = [mode for mode in MODES if mode in given]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} do not go together".replace("_", "-"))
    return (MODES[modes[0]] if modes else run_training)(open_job(given)) or 0


def main(argv=None):
    """The command line's entry: returns the exit status, 2 for a mistake of the user, told in one line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console that lacks a character shows '?' instead
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as e:
        print("makemore:", *str(e).splitlines(), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(e):
            raise
        print("makemore: out of memory: lower --batch-size, --n-embd, --n-embd2 or --n-layer", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever was reading, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
