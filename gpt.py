"""gpt: give it any text, and it writes more of the kind, character by character.

    python gpt.py -i input.txt -o out/gpt                      # train, evaluate, write a page
    python gpt.py -o out/gpt --sample-only --prompt "ROMEO:"   # write more, from what was trained
    torchrun --nproc-per-node 2 gpt.py --preset baby           # the same on two graphics cards

    run = gpt.train("input.txt", preset="mini")                # the same in Python; also from a string
    run = gpt.load("out/gpt")
    print(run.generate("ROMEO:", 200))

A GPT is a stack of two ideas: attention between the characters, and a small network at each. What stands where:

    the lecture     settings · text · averaging the past · models, simplest first · loss and writing · training
    the lessons     the optimizer that saves two thirds of the steps · another text · where the heads look
    the workshop    settings and flags · text of any size · checkpoints · devices · console · figures · command line

Shapes: B batch, T time (characters of a context), C channels, H heads, D channels of a head, V vocabulary.
Losses are in nats per character.
"""

import argparse
import atexit
import codecs
import contextlib
import copy
import csv
import ctypes
import gc
import hashlib
import html
import io
import json
import math
import os
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
import torch.distributed as dist
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
    """All settings of a run. A row of PRESETS may override them; None: no default, read only where a row names it."""

    input_file: str = setting("data", "input.txt", "text file (UTF-8), of any size", "-i", what="FILE")

    preset: str = setting("model", "auto", "defaults, see the list below (auto: baby on CUDA, else mini)", what="NAME")
    block_size: int = setting("model", 64, "context length in characters", low=1, high=65_536)
    n_layer: int = setting("model", None, "number of layers", low=1, high=1024)
    n_head: int = setting("model", None, "number of attention heads", low=1, high=1024)
    n_embd: int = setting("model", None, "channels of the embedding, and throughout", low=1, high=65_536)
    lookback: int = setting("model", None, "sum the embeddings of the last N characters (GPT-2: 1)", low=1, high=64)
    positions: str = setting("model", None, "how heads know distances (GPT-2: learned)", choices=("rotary", "learned"))
    activation: str = setting("model", None, "what makes the MLP non-linear (GPT-2: gelu)", choices=("relu2", "gelu"))
    tied: bool = setting("model", None, "the head shares the token embedding's weights (GPT-2: yes)")
    dropout: float = setting("model", None, "share of channels dropped while training", high=0.99, fixed=False)

    max_steps: int = setting("training", 2000, "stop after this many steps (-1: go on until Ctrl-C)", low=-1)
    batch_size: int = setting("training", 24, "contexts per step, of all processes together", "-b", low=1, high=10**6)
    grad_accum: int = setting("training", 0, "micro-batches per step in each process (0: as many as memory requires)")
    learning_rate: float = setting("training", 0.03, "peak learning rate", "-l", high=1e30)
    weight_decay: float = setting("training", 0.0, "decoupled weight decay of the matrices", "-w")
    optimizer: str = setting("training", None, "update rule", choices=("muon", "adamw"), fixed=True)
    schedule: str = setting("training", "linear", "decay of the rate", choices=("cosine", "linear", "step", "constant"))
    warmup_steps: int = setting("training", 0, "steps in which the learning rate climbs to its peak")
    decay_steps: int = setting("training", 0, "where the schedule ends (0: --max-steps, or the preset's if more)")
    grad_clip: float = setting("training", 0.0, "largest gradient norm allowed (0: no clipping)")
    patience: int = setting("training", 0, "stop after this many evaluations without a new best (0: never)")
    eval_interval: int = setting("training", 0, "steps between evaluations (0: a tenth of the run)")
    quiet: bool = setting("training", False, "no samples between the rows")
    threads: int = setting("training", 0, "CPU threads (0: as many as help)", high=1024)
    seed: int = setting("training", 1337, "seeds weights, batches, dropout and samples", high=2**63 - 1, fixed=True)

    num_samples: int = setting("sampling", 1, "how many texts to write", high=10**6)
    max_new_tokens: int = setting("sampling", 500, "characters per text")
    temperature: float = setting("sampling", 0.8, "below 1 more cautious, above 1 bolder; 0: always the likeliest")
    top_k: int = setting("sampling", 0, "choose among the k likeliest characters only (0: all)", low=-1)
    top_p: float = setting("sampling", 1.0, "choose among the likeliest that make up this probability", high=1)
    stop: str = setting("sampling", "", "end a text after the first occurrence of this", what="TEXT")
    prompt: str = setting("sampling", "", "text to go on from, or FILE:path to read it", "--prefix", what="TEXT")

    work_dir: str = setting("run", "", "folder for checkpoints, log and figures [out]", "-o", what="FOLDER")
    device: str = setting("run", "auto", "auto, cpu, cuda, cuda:N or mps", what="DEVICE")
    dtype: str = setting("run", "auto", "arithmetic of the layers", choices=("auto", "float32", "bfloat16", "float16"))
    compile: str = setting("run", "auto", "let torch.compile fuse the layers", choices=("auto", "on", "off"))
    eval_chars: int = setting("training", 200_000, "characters an evaluation looks at, evenly spread (0: all)")

    resume: bool = setting("mode", False, "go on from last.pt in the work folder, exactly")
    init_from: str = setting("mode", "", "begin with the weights of this model.pt", what="FILE")
    sample_only: bool = setting("mode", False, "write from model.pt in the work folder")
    eval: str = setting("mode", "", "score this file with model.pt in the work folder", what="FILE")
    interactive: bool = setting("mode", False, "type beginnings, and model.pt goes on from each")
    attention: str = setting("mode", "", "draw where the heads of model.pt look while they read this", what="TEXT")
# fmt: on


# ----------------------------------------------------------------------------------------------------------------------
# Text: an array of tokens; a batch is rows of it


@dataclass
class Vocab:
    """The alphabet, sorted: character `chars[i]` is token `i`."""

    chars: str

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        """Text to an array of tokens (N,). Raises UserError that names the characters it does not know."""
        tokens = np.searchsorted(codes_of(self.chars), codes_of(text))  # by code points
        if unknown := sorted(set(text) - set(self.chars)):
            raise UserError(f"unknown to this model: {' '.join(map(repr, unknown[:20]))}; it knows {self.chars!r}")
        return tokens

    def decode(self, tokens):
        return "".join(self.chars[t] for t in tokens)


class Text:
    """Tokens, and the parts of them: the first 90 % to learn from, the rest to be judged on."""

    def __init__(self, tokens, vocab, digest="", places=()):
        n, n1 = len(tokens), int(0.9 * len(tokens))
        self.tokens, self.vocab, self.digest, self.places = tokens, vocab, digest, places  # digest: sha256 of it
        self.parts = {"train": (0, n1), "val": (n1, n), "all": (0, n)}  # first token, last token + 1

    def rows(self, starts, length):
        """Tokens (B, length) that begin at `starts` (B,), as a tensor."""
        return torch.from_numpy(self.tokens[np.asarray(starts)[:, None] + np.arange(length)].astype(np.int64))

    def batch(self, starts, block_size, device):
        """starts (B,) -> inputs (B, T) and targets (B, T), the same one character later."""
        rows = self.rows(starts, block_size + 1)  # (B, T + 1)
        if device.type == "cuda":
            rows = rows.pin_memory().to(device, non_blocking=True)  # the copy runs while the GPU computes
        return rows[:, :-1].to(device), rows[:, 1:].to(device)


# ----------------------------------------------------------------------------------------------------------------------
# Attention, four times the same: how the lecture gets from an average to a head


def average_by_loops(x):
    """Every position's mean over itself and its past: (B, T, C) -> (B, T, C), by a loop."""
    return torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], 1)


def average_by_matmul(x):
    """The same as a product with a lower triangle whose rows sum to one."""
    T = x.shape[1]
    weights = torch.tril(torch.ones(T, T))
    return (weights / weights.sum(1, keepdim=True)) @ x  # (T, T) @ (B, T, C)


def average_by_softmax(x):
    """The same as a softmax over zeros, the future masked: learned scores can take the place of the zeros."""
    T = x.shape[1]
    weights = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    return weights @ x


def attend(q, k, v):
    """Attention written out: the scores q·k decide how much of each earlier v is averaged (Vaswani et al. 2017).

    q is (B, H, T, D), k and v (B, H, S, D), S = T or more. Returns averages (B, H, T, D) and weights (B, H, T, S).
    With q = 0 all scores are equal: the fourth way to average the past.
    """
    T, S = q.shape[-2], k.shape[-2]  # the T queries are the last T of the S positions
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    weights = (q.shape[-1] ** -0.5 * q @ k.mT).masked_fill(future, -math.inf).softmax(-1)  # (B, H, T, S)
    return weights @ v, weights


# ----------------------------------------------------------------------------------------------------------------------
# Models, simplest first. A class takes (config, vocab_size); its forward maps tokens (B, T) to logits (B, T, V).


class Bigram(nn.Module):
    """A table: the next character from the current one. It sees one character; the GPT exists to see more."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(vocab_size, vocab_size), freeze=False)

    def forward(self, idx):
        return self.table(idx)  # (B, T, V)


class Rotary(nn.Module):
    """Turn pairs of channels by an angle that grows with the position: q·k then knows distances (Su et al. 2021).

    q and k are brought to unit scale first (Henry et al. 2020): scores stay in a range in which softmax still learns.
    """

    def __init__(self, block_size, head_size):
        super().__init__()
        frequency = 1000.0 ** -torch.linspace(0, 1, head_size // 2 + 1)[:-1]  # a turn in 6, ..., in 5000 characters
        angle = (torch.arange(block_size)[:, None] * frequency)[:, None, None]  # (T, 1, 1, D/2)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1), persistent=False)  # (T, 1, 1, D)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), -1), persistent=False)

    def forward(self, x, start):  # (B, T, ..., D), of the positions start, start + 1, ...
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        unit = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(unit * cos, unit.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)  # a pair: D/2 apart


class CausalSelfAttention(nn.Module):
    """All heads of a layer at once: every position takes a weighted average of itself and the earlier ones.

    A position's query says what it looks for, its key what it can be found by, its value what it hands over: `attend`.
    """

    def __init__(self, config, rotary):
        super().__init__()
        self.n_head, self.rotary = config.n_head, rotary
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.watched, self.weights = False, None  # whether to keep the attention weights: see attention_maps

    def forward(self, x, start=0, cache=None):  # start: how many positions came before x
        B, T, C = x.shape
        qkv = self.qkv(x)  # (B, T, 3 C)
        if x.device.type == "cpu" and qkv.dtype == torch.bfloat16:
            qkv = qkv.float()  # where products are faster in bfloat16, the attention kernel is still slower
        qk, v = qkv.view(B, T, 3, self.n_head, -1).split((2, 1), 2)  # (B, T, 2 and 1, H, D)
        q, k = (self.rotary(qk, start) if self.rotary else qk).transpose(1, 3).unbind(2)  # (B, H, T, D) each
        v = v[:, :, 0].transpose(1, 2)  # (B, H, T, D)
        if cache is not None:  # (B, H, 2, block_size, D), keys and values up to `start`
            cache[:, :, :, start : start + T] = torch.stack((k, v), 2)
            k, v = cache[:, :, :, : start + T].unbind(2)  # (B, H, start + T, D) each
        if self.watched or 1 < T < k.shape[2]:  # the kernel's mask needs as many queries as keys
            y, self.weights = attend(q, k, v)
        else:  # the same in one kernel that never writes the (T, T) weights down (Dao et al. 2022)
            with torch.autocast("cpu", enabled=False):  # or it would turn the float32 from above back
                y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class MLP(nn.Module):
    """A small network at each position. relu², a relu squared, learns faster than gelu (So et al. 2021)."""

    def __init__(self, config):
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        x = self.up(x)  # (B, T, 4 C)
        return self.proj(F.relu(x).square() if self.activation == "relu2" else F.gelu(x))  # (B, T, C)


class ChannelDropout(nn.Dropout1d):
    """Zero a share p of the channels, from all positions (Tompson et al. 2015): one mask for all costs no time."""

    def forward(self, x):
        return super().forward(x.mT).mT if self.training and self.p else x


class Block(nn.Module):
    """Attention between the positions, then an MLP at each; both are added to their input (residual connections).

    Each input is first normalised to mean 0 and a learned scale (Ba et al. 2016), however large it has grown.
    """

    def __init__(self, config, rotary):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(config.n_embd, bias=False), CausalSelfAttention(config, rotary)
        self.norm2, self.mlp = nn.LayerNorm(config.n_embd, bias=False), MLP(config)
        self.dropout = ChannelDropout(config.dropout)

    def forward(self, x, start=0, cache=None):
        x = x + self.dropout(self.attn(self.norm1(x), start, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


def initialise(model, table_std=0.3):
    """First weights, by kind. Zeros end every sublayer: a block starts as the identity, and the loss at about ln V."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=table_std)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.6 * layer.in_features**-0.5 * (not re.search(r"\b(proj|head)$", name)))


@dataclass
class Cache:
    """What the layers have computed of a text so far, so that one more character costs one position's work."""

    recent: torch.Tensor  # (B, lookback - 1), the last tokens
    layers: list  # keys and values of each layer, (B, H, 2, block_size, D), or None if they are not needed again
    length: int = 0


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2019), with what has been learned since; see the flags for GPT-2's."""

    def __init__(self, config, vocab_size):
        super().__init__()
        head_size, rest = divmod(config.n_embd, config.n_head)
        if rest:
            raise UserError(f"--n-embd {config.n_embd} does not divide among --n-head {config.n_head}: take a multiple")
        if config.positions == "rotary" and head_size % 2:
            raise UserError(f"rotary positions turn pairs: {config.n_embd} / {config.n_head} channels per head is odd")
        self.block_size, self.n_head, self.padding = config.block_size, config.n_head, vocab_size  # before the text
        self.token = nn.Embedding(vocab_size, config.n_embd)
        self.earlier = nn.ModuleList(nn.Embedding(vocab_size + 1, config.n_embd) for _ in range(config.lookback - 1))
        rotary = Rotary(config.block_size, head_size) if config.positions == "rotary" else None
        self.position = None if rotary else nn.Embedding(config.block_size, config.n_embd)
        self.dropout = ChannelDropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        initialise(self, table_std=0.02 if config.tied else 0.3)  # small where the table is the head, too
        if config.tied:
            self.head.weight = self.token.weight

    def new_cache(self, batch_size):
        device, C = self.token.weight.device, self.token.weight.shape[1]
        shape = batch_size, self.n_head, 2, self.block_size, C // self.n_head
        layers = [self.token.weight.new_zeros(shape) for _ in self.blocks]
        return Cache(torch.full((batch_size, len(self.earlier)), self.padding, device=device), layers)

    def embed(self, past, start):
        """Tokens (B, lookback - 1 + T) -> (B, T, C): the sum of the embeddings of the last `lookback` characters.

        Attention need not first fetch what stands two characters back: the first layer already knows the word it is in
        (after the smear and n-gram embeddings of the nanoGPT speed runs, 2025).
        """
        n = len(self.earlier)
        x = self.token(past[:, n:])
        for back, table in enumerate(self.earlier, 1):
            x = x + table(past[:, n - back : -back])
        return x if self.position is None else x + self.position.weight[start : start + x.shape[1]]

    def forward(self, idx, cache=None):
        """Logits (B, T, V). With a cache, idx goes on where the last call ended."""
        if cache is None:  # the text begins here, and nothing is kept of it
            cache = Cache(idx.new_full((len(idx), len(self.earlier)), self.padding), [None] * len(self.blocks))
        past = torch.cat((cache.recent, idx), 1)  # (B, lookback - 1 + T)
        x = self.dropout(self.embed(past, cache.length))  # (B, T, C)
        for block, kv in zip(self.blocks, cache.layers, strict=True):
            x = block(x, cache.length, kv)
        cache.recent, cache.length = past[:, idx.shape[1] :], cache.length + idx.shape[1]
        return self.head(self.norm(x))  # (B, T, V)


@dataclass(frozen=True)
class Entry:
    """A row of the registry: the class, a line about it, and the settings that it uses with their defaults."""

    model: type
    about: str
    defaults: dict
    threads: int = 1024  # at most; on more, small operations only wait for each other


SIZE = dict(n_layer=4, n_head=4, n_embd=128, dropout=0.0)
OURS = dict(lookback=4, positions="rotary", activation="relu2", tied=False, optimizer="muon")
GPT2 = dict(lookback=1, positions="learned", activation="gelu", tied=True)
ADAMW = dict(optimizer="adamw", learning_rate=3e-3, warmup_steps=100, weight_decay=0.1)

# fmt: off
PRESETS = {
    "bigram": Entry(Bigram, "a table of what follows what: the baseline",
                    dict(batch_size=64, max_steps=1000, learning_rate=0.05), threads=1),
    "tiny": Entry(GPT, "70,000 parameters: words after two seconds on two cores",
                  dict(OURS, n_layer=1, n_head=2, n_embd=64, dropout=0.0, max_steps=200, learning_rate=.04), threads=2),
    "mini": Entry(GPT, "0.8M parameters: good text in two minutes on two cores",
                  dict(SIZE, **OURS, block_size=128, batch_size=12, max_steps=1200), threads=8),
    "gpt2": Entry(GPT, "GPT-2's recipe at mini's size, to compare with",
                  {**SIZE, **GPT2, **ADAMW, "batch_size": 12, "max_steps": 2000, "learning_rate": 1e-3,
                   "schedule": "cosine", "grad_clip": 1.0}, threads=8),
    "small": Entry(GPT, "2.7M parameters, for a processor and a quarter of an hour; --compile on makes it faster",
                   dict(OURS, n_layer=6, n_head=6, n_embd=192, block_size=256, dropout=0.15, batch_size=12,
                        learning_rate=0.02)),
    "baby": Entry(GPT, "10.7M parameters, for any graphics card with 8 GB, or less with more patience",
                  dict(OURS, n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2, batch_size=64)),
    "large": Entry(GPT, "51M parameters, for much text and a card with 24 GB",
                   dict(OURS, n_layer=16, n_head=8, n_embd=512, block_size=512, dropout=0.1, batch_size=64,
                        max_steps=10_000)),
}
# fmt: on


# ----------------------------------------------------------------------------------------------------------------------
# Loss, evaluation, writing: in eval mode, and without touching the random numbers of training


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


def windows(low, high, block_size, limit=0):
    """Yield (starts, length) of contexts that cover the tokens low..high side by side, in batches.

    With a `limit`, about so many characters are looked at, in at least one window, evenly spaced, always the same.
    """
    count = high - low - 1  # the first token has nothing before it to be predicted from
    block_size = min(block_size, count)
    n, rest = divmod(count, block_size)
    starts = low + block_size * np.arange(n)
    if limit and count > limit:
        starts, rest = np.linspace(low, high - 1 - block_size, max(1, limit // block_size)).astype(np.int64), 0
    at_once = max(1, 8192 // block_size)
    for i in range(0, len(starts), at_once):
        yield starts[i : i + at_once], block_size
    if rest:
        yield np.array([high - 1 - rest]), rest


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


def continuation(model, idx, config):
    """Yield the next tokens (B,) of the texts idx (B, T), config.max_new_tokens times.

    With a cache, each character costs one position's work. A full context is cut to its second half and starts afresh,
    so the model always sees between half and all of its block_size; a model without a cache sees exactly the same.
    """
    device, size = next(model.parameters()).device, config.block_size
    generator = torch.Generator().manual_seed(config.seed)
    seen = fresh = idx[:, -size:].to(device)
    new_cache = getattr(model, "new_cache", lambda batch_size: None)  # a model of one's own may have none
    cache = new_cache(len(idx))
    for _ in range(config.max_new_tokens):
        if seen.shape[1] > size:
            seen = fresh = seen[:, -max(1, size // 2) :]
            cache = new_cache(len(idx))
        with torch.inference_mode(), inference(model):  # not around the yield, or it would hold for the caller, too
            logits = (model(seen) if cache is None else model(fresh, cache))[:, -1]  # (B, V)
        probs = next_token_probs(logits.float().cpu(), config.temperature, config.top_k, config.top_p)
        token = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
        yield token[:, 0]
        fresh = token.to(device)
        seen = torch.cat((seen, fresh), 1)


# ----------------------------------------------------------------------------------------------------------------------
# Training, and all that one does with a model: a Run holds together what belongs together


class Run:
    """A model, its alphabet, its settings and its folder: what the command line and a notebook both work with."""

    def __init__(self, config, data, model, plan, verbose=False):
        self.config, self.data, self.vocab = config, data, data.vocab  # data: a Text, empty until it is asked for
        self.plan, self.device, self.processes = plan, plan.device, plan.processes
        self.model = self.net = model.to(self.device)  # net: what training calls, compiled or shared by processes
        self.folder = Path(config.work_dir) if config.work_dir else None  # None: nothing is written
        self.progress, self.console = Progress(), Console(self, verbose and self.processes.rank == 0)
        self.optimizers, self.scaler, self.memory, self.kept, self.source = [], None, {}, {}, None  # see `keep`

    def evaluate(self, part="val"):
        """The mean loss over a part ("train" or "val") in nats per character; config.eval_chars of them, 0: all."""
        add, mine = partial(cross_entropy, reduction="sum"), slice(self.processes.rank, None, self.processes.size)
        losses = [(x.item(), n) for x, n in self.losses(text_of(self), part, add, self.config.eval_chars, mine)]
        total, count = self.processes.sum(sum(x for x, _ in losses), sum(n for _, n in losses))
        return total / count

    def score(self, text):
        """The loss in nats of each character after the first, an array (T - 1,), in windows of block_size."""
        text, each = Text(self.vocab.encode(text), self.vocab), partial(cross_entropy, reduction="none")
        return torch.cat([loss for loss, _ in self.losses(text, "all", each)]).float().cpu().numpy()

    def losses(self, text, part, measure, limit=0, share=slice(None)):
        """Yield measure(logits, targets) of every batch of windows and its size, or of a process's share of them."""

        def loss_of(starts, length):
            x, y = text.batch(starts, length, self.device)
            with inference(self.model), self.plan.autocast():
                return measure(self.model(x), y), y.numel()

        batches = windows(*part_of(text, part), self.config.block_size, limit)
        for starts, length in list(batches)[share]:
            yield from in_memory(loss_of, starts, length)

    def stream(self, prompt=None, max_new_tokens=None, **settings):
        """Yield the prompt, then a character at a time. Settings: those of sampling and the seed; else as `config`."""
        c, prompt, tokens = wishes(self, prompt, max_new_tokens, **settings)
        text = ""
        yield prompt
        for token in continuation(self.model, tokens[None], c):
            yield (char := self.vocab.decode(token))
            if c.stop and (text := text + char).endswith(c.stop):
                return

    def generate(self, prompt=None, max_new_tokens=None, num_samples=None, **settings):
        """The prompt and what follows as a string; with num_samples, a list of so many. Settings as for `stream`."""
        if num_samples is None:
            return "".join(self.stream(prompt, max_new_tokens, **settings))
        c, prompt, tokens = wishes(self, prompt, max_new_tokens, num_samples=num_samples, **settings)
        steps = list(continuation(self.model, tokens.expand(c.num_samples, -1), c)) if c.num_samples else []
        texts = [self.vocab.decode(step[i] for step in steps) for i in range(c.num_samples)]
        return [prompt + "".join(text.partition(c.stop)[:2] if c.stop else text) for text in texts]

    def attention(self, text):
        """The attention weights while reading a text, an array (n_layer, n_head, T, T); row t is where t looks."""
        if not 0 < len(text) <= self.config.block_size:
            raise UserError(f"attention is looked at over 1 to {self.config.block_size} characters, not {len(text)}")
        return attention_maps(self.model, torch.from_numpy(self.vocab.encode(text)).to(self.device)).numpy()

    def train(self, **settings):
        """Learn until max_steps, patience or Ctrl-C, and end with the best weights on val; call it again to go on."""
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
        return self.processes.stopped(self) or 0 <= c.max_steps <= self.progress.step or 0 < c.patience <= waited(self)

    def draw(self):
        """The micro-batches of a step: all processes draw the same contexts, and each takes its share."""
        c, share, (low, high) = self.config, self.config.batch_size // self.processes.size, self.data.parts["train"]
        room = high - low - c.block_size
        n = min(10**6, max(1, room // c.block_size))  # contexts of an epoch, side by side; each epoch shifts them
        index, epoch = drawn(n, c.batch_size, self.progress.step, c.seed)
        starts = low + ((index + 0.618 * epoch % 1) * (room / n)).astype(np.int64)  # each epoch cuts at new places
        reseed(self.device, c.seed + self.progress.step * self.processes.size + self.processes.rank)
        mine = np.split(starts[self.processes.rank * share :][:share], self.micro_batches)
        return [self.data.batch(part, c.block_size, self.device) for part in mine]

    def learn(self):
        rate, batches, losses = learning_rate(self.progress.step, self.config, self.horizon), self.draw(), []
        for i, (x, y) in enumerate(batches, 1):
            sync = i == len(batches) or self.processes.size == 1  # the last: the processes average their gradients
            with contextlib.nullcontext() if sync else self.net.no_sync():
                with self.plan.autocast():
                    loss = cross_entropy(self.net(x), y) / len(batches)
                self.scaler.scale(loss).backward()  # scaled in float16 only, where small gradients would round to 0
            losses.append(loss.detach())
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        with self.plan.autocast():  # for Muon's products
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.console.stepped(torch.stack(losses).sum())

    def checkpoint(self):
        p = self.progress
        if p.history and p.history[-1][0] == p.step:
            return  # done already, where a resumed run begins or a finished one ends
        train_loss = self.processes.sum(self.console.stop_clock())[0] / self.processes.size
        val_loss = self.evaluate("val")
        check_finite(self, val_loss)
        improved = val_loss < p.best_loss
        rate = learning_rate(p.step, self.config, self.horizon)
        p.history.append([p.step, round(p.seconds, 3), train_loss, val_loss, rate])
        p.samples.append(glimpse(self))
        keep(self, improved)
        self.console.row(improved)

    def save(self, folder):
        """Write the model as it is now into a folder, from which `load` restores it for use or further training."""
        save_run(self, folder)

    @classmethod
    def load(cls, work_dir, name="model.pt", verbose=False, **settings):
        """The run in a folder, to write, score, evaluate or train further; settings by keyword, as for `train`."""
        given = check_settings({**settings, "work_dir": work_dir})
        return open_run(load_checkpoint(Path(work_dir) / name), given, verbose)


# ======================================================================================================================
# THE LESSONS: what is worth knowing outside the main line. Each can be read, or skipped, by itself.
# ======================================================================================================================
# Order, schedule and optimizer: where two thirds of the steps are saved


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


def orthogonalise(g):
    """Matrices (N, R, C) to about the nearest ones whose singular values are all 1, by products alone.

    Newton-Schulz: an odd polynomial of X, c1 X + c3 (X Xᵀ) X + c5 (X Xᵀ)² X, acts on each singular value alone. The
    coefficients, one triple per iteration, push them toward 1 as fast as can be ("Polar Express", Amsel et al. 2025).
    """
    if g.shape[-2] > g.shape[-1]:
        return orthogonalise(g.mT).mT
    x = g / (1.02 * g.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    a = x @ x.mT  # (N, R, R)
    product = None
    for i, (c1, c3, c5) in enumerate(POLAR_EXPRESS, 1):
        q = torch.baddbmm(a, a, a, beta=c3, alpha=c5)
        q.diagonal(dim1=-2, dim2=-1).add_(c1)
        # X becomes q ... q q X: only the small (R, R) factors are multiplied until the end
        product = q if product is None else q @ product
        if i < len(POLAR_EXPRESS):
            a = q @ a @ q
    return product @ x


POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): every direction in a matrix moves by the same amount.

    A gradient's few large singular values drown out the small ones, through which rare things are learned. Only for the
    matrices inside a network: AdamW trains embeddings, gains and the head. Matrices of one shape are orthogonalised as
    one batch, in the dtype of the layers.
    """

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.9):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in (p for p in group["params"] if p.grad is not None):  # a layer may be frozen, or unused
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                grads = [p.grad for p in params]
                buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])  # a look ahead (Nesterov 1983)
                height = columns if rows == 3 * columns else rows  # Q, K and V are three matrices, not one
                update = orthogonalise(torch.stack(nesterov).view(-1, height, columns)).view(-1, rows, columns)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                step_size = -group["lr"] * max(1, height / columns) ** 0.5  # as much change in the output for any shape
                torch._foreach_add_(params, update.unbind(), alpha=step_size)


def make_optimizers(model, config):
    """A list of optimizers; each group's `scale` says how its rate relates to --learning-rate.

    Muon takes the matrices of Linear layers, except model.head; AdamW the embeddings and the rest, at their own rates.
    """
    head, parameters = getattr(model, "head", None), list(model.parameters())  # a tied weight counts once
    tables = {m.weight for m in model.modules() if type(m) is nn.Embedding}
    inner = {m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head} - tables

    def group(scale, weight_decay, belongs):
        return dict(params=[p for p in parameters if belongs(p)], scale=scale, weight_decay=weight_decay)

    if config.optimizer == "muon" and inner:
        muon = Muon([group(1.0, config.weight_decay, lambda p: p in inner)], lr=0.0)
        groups = [group(1.0, 0.0, lambda p: p in tables), group(0.7, 0.0, lambda p: p not in inner | tables)]
        return [muon, torch.optim.AdamW(groups, lr=0.0, betas=(0.8, 0.95), eps=1e-10, fused=True)]
    groups = [group(1.0, config.weight_decay, lambda p: p.ndim > 1), group(1.0, 0.0, lambda p: p.ndim <= 1)]
    return [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)]


# ----------------------------------------------------------------------------------------------------------------------
# Another text: a trained model goes on with characters that it has never seen


def transfer(model, checkpoint, chars):
    """Copy a trained model's weights into one that knows more characters; return those that are new to it.

    Where sizes differ, the dimension is the vocabulary, or the vocabulary and one row more for padding.
    """
    old, state = checkpoint["vocab"], model.state_dict()
    known = [chars.index(c) for c in old]
    places = {len(old): known, len(old) + 1: [*known, len(chars)]}
    for name, weight in checkpoint["model"].items():
        sizes = zip(weight.shape, state[name].shape, strict=True)
        state[name][np.ix_(*(np.arange(n) if n == m else places[n] for n, m in sizes))] = weight
    return "".join(c for c in chars if c not in old)


# ----------------------------------------------------------------------------------------------------------------------
# A look inside: where the heads look


def attention_maps(model, idx):
    """The attention weights of every layer, (n_layer, H, T, T), while reading idx (T,)."""
    layers = [m for m in model.modules() if isinstance(m, CausalSelfAttention)]
    if not layers:
        raise UserError("this model has no attention to look at")
    for layer in layers:
        layer.watched = True
    try:
        with inference(model):
            model(idx[None])
        return torch.stack([layer.weights[0] for layer in layers]).float().cpu()
    finally:
        for layer in layers:
            layer.watched, layer.weights = False, None


# ======================================================================================================================
# THE WORKSHOP: what turns a model into a library and a program. No reader of models has to come here.
# ======================================================================================================================
# The library: gpt.train(...), gpt.load(...), and what a Run needs of it


def train(data=None, verbose=False, **settings):
    """Train a model and return its Run.

    `data` is a file, or the text itself: a string with a line break in it. Settings are named like the flags and pass
    the same checks; a UserError, which is a ValueError, says what is wrong. Nothing is written unless work_dir names a
    folder (without one, the text has to fit in memory); nothing is printed unless `verbose`. Ctrl-C stops the training
    cleanly: the run so far is returned, and run.train() continues it.
    """
    if isinstance(data, os.PathLike) or (isinstance(data, str) and "\n" not in data and len(data) < 4096):
        settings["input_file"], data = data, None
    if not isinstance(data, str | None):
        raise UserError(f"a file or a text is needed, not {data!r:.60}")
    given = check_settings(settings, modes=("resume", "init_from"))
    run = start_run(given, verbose, data).train()
    if run.stop.signum == signal.SIGTERM:  # everything is saved: now it may take effect
        signal.raise_signal(signal.SIGTERM)
    return run


load = Run.load


def start_run(given, verbose=False, text=None):
    """The run that the settings ask for: a new one, one that the work folder holds, or one that learns another text."""
    mode, checkpoint, trained = mode_of(given), None, None
    if MODES[mode].opens:
        checkpoint = load_checkpoint(given.get("init_from") or Path(given.get("work_dir", "")) / MODES[mode].opens)
        if mode != "init_from":
            return open_run(checkpoint, given, verbose, text)
        trained = open_run(checkpoint, {"device": "cpu"}).config  # its weights need not be on a GPU twice
    plan = make_plan(given)
    if not trained and given.get("preset", "auto") == "auto":
        given = {**given, "preset": "baby" if plan.device.type == "cuda" else "mini"}
    config = configure(given, trained, verbose)
    sketch(config, 2)  # an impossible shape is told before the text is read
    if text is not None:  # the folder keeps what no file holds
        config = replace(config, input_file=config.work_dir and str(Path(config.work_dir) / KEPT[0]))
    chars = checkpoint["vocab"] if checkpoint else ""
    data = prepare_text(config, plan, Text([], Vocab(chars), places=[config.input_file]), text)
    sketch(config, len(data.vocab))
    run = Run(config, data, build(config, len(data.vocab)), plan, verbose)
    run.source = None if text is None else text.encode("utf-8", "surrogatepass")
    with fitting():
        run.new_chars = transfer(run.model, checkpoint, data.vocab.chars) if checkpoint else ""
    return run


def open_run(checkpoint, given, verbose=False, text=None):
    """The run that a checkpoint holds, with the settings given in place of its own where they may change."""
    with fitting():
        trained, vocab, progress = judged(checkpoint), Vocab(checkpoint["vocab"]), Progress(**checkpoint["progress"])
        compare("the model", checkpoint["model"], sketch(trained, len(vocab)))
    config = configure(given, trained, verbose)
    plan, paths = make_plan(asdict(config)), places(checkpoint, config, given) if text is None else [""]  # "": text
    data = Text([], vocab, checkpoint["digest"], paths)  # to be read when it is asked for
    if "resume" in given:
        data = prepare_text(config, plan, data, text)
    with fitting():
        model = build(config, len(vocab))
        model.load_state_dict(checkpoint["model"])
    run = Run(config, data, model.eval(), plan, verbose)
    run.progress, run.kept = progress, asdict(progress)
    return run


@contextlib.contextmanager
def learning(run, settings):
    """A context for training: it locks the folder, makes Ctrl-C a request to stop, and ends with the best model."""
    threads = torch.get_num_threads()
    with locked(run.folder) if run.folder and run.processes.rank == 0 else contextlib.nullcontext():
        try:
            begin(run, settings)
            try:
                with StopOnSignal() as stop:
                    yield stop
                run.processes.sum(0)  # a barrier: rank 0 has written everything
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
    if settings:
        given = check_settings(settings, group="training") | {"resume": True}
        run.config = configure(given, run.config, run.console.verbose)
    c, run.data = run.config, text_of(run)
    run.horizon = c.decay_steps or max(c.max_steps, PRESETS[c.preset].defaults.get("max_steps", Config.max_steps))
    run.interval = c.eval_interval or max(1, (c.max_steps if c.max_steps > 0 else run.horizon) // 10)
    check_shares(c, run.processes.size)
    torch.set_num_threads(threads_for(c))
    keep_memory()
    run.optimizers = make_optimizers(run.model, c)
    run.scaler = torch.amp.GradScaler("cuda", enabled=run.plan.dtype == "float16")  # keeps small gradients from 0
    losses = restore(run, stored(run, "last.pt")) if run.progress.history else ()
    run.micro_batches = micro_batches(c, len(run.vocab), run.plan.free, run.processes.size)
    run.peak = measure_peak(run.plan) if run.console.verbose else math.inf
    run.model.train()
    run.net = try_compile(run) if run.plan.compile else run.model
    if run.processes.size > 1:
        run.net = nn.parallel.DistributedDataParallel(run.net)
    run.console.start_clock(losses)


def wishes(run, prompt, length=None, **settings):
    """The settings updated with these sampling settings, the prompt they name, and its tokens (T,)."""
    c = replace(run.config, **check_settings(dict(settings, prompt=prompt, max_new_tokens=length), group="sampling"))
    return c, *read_prompt(c.prompt, run.vocab)


def waited(run):
    """How many evaluations there were since the best; those that a Ctrl-C added do not count."""
    losses = [row[3] for row in run.progress.history if row[0] % run.interval == 0]
    return len(losses) - 1 - losses.index(min(losses))


def text_of(run):
    """The text that a run was trained on: at hand, or where it is found, which writes nothing."""
    if not len(run.data.tokens):
        run.data = prepare_text(replace(run.config, work_dir=""), run.plan, run.data)
    return run.data


def part_of(text, name):
    """Where a part of a text begins and ends."""
    if name not in text.parts:
        raise UserError(f"there is no part {name!r} of the text: train or val")
    low, high = text.parts[name]
    if high - low < 2:
        raise UserError("a text that short cannot be scored: the first character has nothing before it")
    return low, high


# ----------------------------------------------------------------------------------------------------------------------
# Settings and flags: one check for both, and a word about those that nobody reads

PROGRAM, KIND, ROWS = "gpt", "preset", PRESETS  # ours; what follows is the same in both trainers
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
    """The settings given, on top of those of a trained model or else of the preset's row."""
    kind, other = trained.preset if trained else given["preset"], given.get("init_from")
    if not trained and kind not in PRESETS:
        raise UserError(f"--preset {kind} is unknown: choose among {', '.join(PRESETS)}")
    given, defaults = heeded(given, kind, verbose), PRESETS[kind].defaults
    free = {"seed", "optimizer"} if other else set() if "resume" in given else {"seed"}  # other samples are welcome
    for name in given.keys() - free if trained else ():
        if SETTINGS[name].metadata["fixed"] and given[name] != (old := getattr(trained, name)):
            what = other or "the model in this folder"
            raise UserError(f"{flag(name)} {given[name]}: {what} was trained with {old}; leave {flag(name)} out")
    if trained and not other:
        own = {n: f.default for n, f in SETTINGS.items() if GROUP[n] == "run" and "resume" not in given}
        return replace(trained, **{**own, **given})
    if trained:  # another text: the shape stays, all else is new
        given = {n: getattr(trained, n) for n, group in GROUP.items() if group == "model"} | given
    if given.get("optimizer") == "adamw" and defaults.get("optimizer") != "adamw":
        defaults = {**defaults, **ADAMW}
    return replace(Config(), **{**defaults, **given, "preset": kind})


def check_shares(config, size):
    """Raise UserError where the batch cannot be divided evenly among processes and micro-batches."""
    n = max(1, config.grad_accum)
    if config.batch_size % (size * n):
        among = f"{size} process{'es'[: 2 * (size > 1)]} times --grad-accum {n}"
        raise UserError(f"--batch-size {config.batch_size} does not divide evenly among {among}: take a multiple")


def build(config, vocab_size):
    """A new model as config describes it; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        reseed(torch.device("cpu"), config.seed)  # where models are made
        return PRESETS[config.preset].model(config, vocab_size)


# ----------------------------------------------------------------------------------------------------------------------
# Files: read with care, written whole or not at all; a text becomes a file of small integers that is never read whole

CHUNK = 2**22  # bytes in memory at a time while a text is read
MAX_CHARS = 65_536  # distinct ones: more than any text has, and two bytes hold them
KEPT = ("trained_on.txt", "input.txt", TOKENS := "tokens.bin")  # a text in a work folder; the second in older ones
MAX_PARAMETERS = 10**9  # take 16 GB to train


def codes_of(text):
    """The code points of a string as an array (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


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


def survey(path, more_chars=""):
    """Return the header of an encoded text, a dict: what the file at `path` holds, and how to know it again."""
    seen, ascii_seen, count, digest = np.zeros(sys.maxunicode + 1, dtype=bool), b"", 0, hashlib.sha256()
    for text in read_chunks(path):
        raw = text.encode()
        count += len(text)
        digest.update(raw)
        if text.isascii():  # deleting what is known leaves what is new: ten times faster than looking at each
            ascii_seen += bytes(set(raw.translate(None, ascii_seen)))
        else:
            seen[codes_of(text)] = True
    chars = "".join(sorted({*map(chr, np.flatnonzero(seen)), *ascii_seen.decode(), *more_chars}))
    dtype, source = "uint8" if len(chars) <= 256 else "uint16", dict(sha256=digest.hexdigest())
    return dict(program="gpt", source=source, chars=chars, dtype=dtype, count=count)


def read_header(tokens_path):
    """Return (header, bytes that it takes), or (None, 0) where there is no whole encoded text."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        with open(tokens_path, "rb") as f:
            line = f.readline()
        head = json.loads(line)
        size, known = np.dtype(head["dtype"]).itemsize, head["chars"] and head["source"]["sha256"]
        if known and os.path.getsize(tokens_path) == len(line) + head["count"] * size:
            return head, len(line)
    return None, 0


def encode(path, head):
    """Yield head as one line of JSON and then the tokens, as bytes; UserError where the file is no longer the same."""
    alphabet, digest = codes_of(head["chars"]), hashlib.sha256()
    table = np.zeros(sys.maxunicode + 1, dtype=head["dtype"])
    table[alphabet] = np.arange(len(alphabet))
    line = json.dumps(head).encode()
    yield line + b" " * (-(len(line) + 1) % 16) + b"\n"  # tokens begin at an address that suits their type
    for text in read_chunks(path):
        raw = text.encode()
        digest.update(raw)
        ascii_only = table.itemsize == 1 and text.isascii()
        yield raw.translate(table[:256].tobytes()) if ascii_only else table[codes_of(text)].tobytes()
    if digest.hexdigest() != head["source"]["sha256"]:
        raise UserError(f"{path} changed while it was read: start again when it is finished")


class TokenFile(Text):
    """An encoded text on disk, of which only what is needed is ever in memory."""

    def __init__(self, path, places=()):
        head, self.offset = read_header(path)
        self.path, self.file = path, open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the text is)
        tokens = np.memmap(self.file, mode="r", dtype=head["dtype"], offset=self.offset, shape=head["count"])
        super().__init__(tokens, Vocab(head["chars"]), head["source"]["sha256"], places)

    def __del__(self):
        self.file.close()

    def rows(self, starts, length):
        """Read, not memory-mapped: mapped pages count as memory, and truncating a mapped file crashes the process."""
        size, pieces = self.tokens.itemsize, []
        for start in np.asarray(starts).tolist():
            self.file.seek(self.offset + size * start)
            pieces.append(self.file.read(size * length))
        data = b"".join(pieces)
        tokens = np.frombuffer(data, self.tokens.dtype, len(data) // size).astype(np.int64)
        if len(tokens) < length * len(pieces) or tokens.max() >= len(self.vocab):
            raise UserError(f"{self.path} was cut or changed by somebody: delete it, and it is made anew")
        return torch.from_numpy(tokens.reshape(-1, length))


def text_in_memory(path, more_chars, text):
    """A file, or the text itself, as a Text whose alphabet has at least more_chars."""
    text = "".join(read_chunks(path)) if text is None else re.sub("\r\n?", "\n", text.removeprefix("\ufeff"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    vocab = Vocab("".join(sorted(set(text) | set(more_chars))))
    return Text(vocab.encode(text), vocab, digest, [os.path.abspath(path)] if path else [])


def check_text(config, n, vocab):
    """Raise UserError if a text of n characters is too short, or has too many distinct ones, or the prompt new ones."""
    name, n1 = config.input_file or "the text", int(0.9 * n)
    if len(vocab) > MAX_CHARS:  # a row for each would take all memory
        raise UserError(f"{name} has {len(vocab):,} distinct characters, the limit is {MAX_CHARS:,}: is it text?")
    if n1 <= config.block_size or n - n1 < 2:
        need = max(20, math.ceil((config.block_size + 1) / 0.9) + 1)
        raise UserError(f"{name} has {n:,} characters: --block-size {config.block_size} needs {need:,}, or lower it")
    read_prompt(config.prompt, vocab)


def prepare_text(config, plan, wanted, text=None):
    """Check text and settings against each other, then make the work folder and encode the text if needed; return it.

    `wanted` has no tokens; it says where they may be found, the digest to match ("": any) and the known characters, to
    which others may be added if any digest will do. `text`, if given, is used instead of a file.
    """
    processes, chars, digest, tokens = plan.processes, wanted.vocab.chars, wanted.digest, Path(config.work_dir) / TOKENS
    check_shares(config, processes.size)
    processes.open(plan.device)

    def read(path):  # what is encoded already, or a file, into memory or encoded into the work folder
        if digest and path and not os.path.isfile(path):
            return None
        if digest and Path(path).name == TOKENS:
            return TokenFile(path, wanted.places) if read_header(path)[0] else None
        if text is not None or not config.work_dir:
            return text_in_memory(path, chars, text)
        head = survey(path, chars)
        if digest in ("", head["source"]["sha256"]):
            check_text(config, head["count"], Vocab(head["chars"]))
            if read_header(tokens)[0] != head:
                with locked(config.work_dir):
                    write_atomic(tokens, encode(path, head))
            return TokenFile(tokens, [os.path.abspath(path)])

    def find():
        for data in map(read, reversed(wanted.places)):  # what is encoded comes last
            if data and (not digest or (digest, chars) == (data.digest, data.vocab.chars)):
                check_text(config, len(data.tokens), data.vocab)
                return data
        raise UserError(f"{gone(wanted.places)}: what this model was trained on is needed")

    # first the process that writes, then one on every other machine, then those that only read
    turn = min(processes.rank, 1) + min(processes.local_rank, 1)
    for now in range(3 if processes.size > 1 else 1):
        if now == turn:
            data = find()
        processes.sum(0)
    return data


def read_prompt(prompt, vocab):
    """The text to go on from, as given or from FILE:path, and its tokens (T,); a new line where there is none."""
    if prompt.startswith("FILE:"):
        prompt = "".join(read_chunks(prompt[5:]))
    start = prompt or ("\n" if "\n" in vocab.chars else vocab.chars[0])
    return prompt, torch.from_numpy(vocab.encode(start))


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

FILES = ("last.pt", KEPT[0], "log.csv", "samples.txt", "loss.png", "attention.png", "surprise.html", "model.pt")
LOG_COLUMNS = ("step", "seconds", "train_loss", "val_loss", "lr")


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
    config={"preset": "", "input_file": ""}, progress=asdict(Progress()), vocab="", digest="", file="", model={},
    optimizers=[], scaler={}, losses=[],
)  # fmt: skip


def snapshot(run):
    """All that is needed to go on as if nothing had happened, or to write from the folder alone, as one plain dict."""
    return dict(
        program=PROGRAM,
        config=asdict(run.config),
        progress=asdict(run.progress),
        vocab=run.vocab.chars,
        digest=run.data.digest,
        file=run.data.places[0] if run.data.places else "",
        model=run.model.state_dict(),
        optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
        scaler=run.scaler.state_dict() if run.scaler else {},
        losses=run.processes.everyone(run.console.carried()),
    )


def restore(run, checkpoint):
    """Restore what `snapshot` saved, except the settings. Return the losses since the last row that was due."""
    with fitting():
        mine, kept = ([row[::3] for row in rows] for rows in (run.progress.history, checkpoint["progress"]["history"]))
    if kept[: len(mine)] != mine:  # steps and losses
        raise UserError(f"{run.folder} holds another run by now: load that, or give this one another folder")
    with fitting():
        for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
            if checkpoint["progress"]["step"]:
                optimizer.load_state_dict(optimizer_state(optimizer, state))
        run.model.load_state_dict(checkpoint["model"])
        if checkpoint["scaler"] and run.scaler.is_enabled():
            run.scaler.load_state_dict(checkpoint["scaler"])
        run.progress = Progress(**checkpoint["progress"])
        losses = checkpoint["losses"][run.processes.rank % len(checkpoint["losses"])]  # of as many as there were
        compare("the losses", losses, torch.zeros(len(losses)))
        return losses.to(run.device).unbind() if run.progress.step % run.interval else ()  # stopped between two rows


def keep(run, best):
    """Save the state as last.pt, and as model.pt if it is the best, in the folder or else in memory, and the log."""
    state, p = snapshot(run), run.progress
    if not run.folder:
        run.memory |= dict.fromkeys(["model.pt"] * best + ["last.pt"], copy.deepcopy(state))
    elif run.processes.rank == 0:
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
# Devices: what a machine has, and what is best done with it


@dataclass(frozen=True)
class Card:
    """A CUDA device as torch numbers it."""

    index: int
    name: str
    capability: tuple  # (8, 6), say
    memory: float  # GB

    def __str__(self):
        return f"{self.name} ({self.capability[0]}.{self.capability[1]})"


# What torch sees. trial: see `try_device`; no_cuda: why there is no CUDA; bf16: whether the CPU is faster with it
Machine = namedtuple("Machine", "cards trial version no_cuda mps bf16", defaults=("", False, bool))


class Processes:
    """The processes that train together, as torchrun started them; a single one will do, too."""

    def __init__(self):
        defaults = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        given = {name: os.environ.get(name, default) for name, default in defaults.items()}
        whole = all(map(str.isdecimal, given.values())) and int(given["RANK"]) < int(given["WORLD_SIZE"])
        if not whole or (given["WORLD_SIZE"] != "1" and not {"RANK", "MASTER_ADDR"} <= os.environ.keys()):
            words = ", ".join(f"{name}={value}" for name, value in given.items())
            raise UserError(f"{words} make no sense: torchrun sets these, without it they have to be unset")
        self.rank, self.local_rank, self.size = map(int, given.values())

    def open(self, device):
        if self.size > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            nccl = device.type == "cuda" and dist.is_nccl_available()  # not on Windows
            dist.init_process_group("nccl" if nccl else "gloo")
            atexit.register(dist.destroy_process_group)
            atexit.register(gc.collect)  # runs before: what still refers to the group must go first

    def everyone(self, value):
        """The values of all processes, a list by rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def stopped(self, run):
        """Whether the run has got a signal: all processes stop, or none."""
        if self.size > 1 and run.progress.step % 10:
            return False  # to ask the others takes time
        run.stop.signum = max(self.everyone(run.stop.signum))
        return bool(run.stop.signum)

    def sum(self, *values):
        return [sum(column) for column in zip(*self.everyone(values), strict=True)]


@dataclass(frozen=True)
class Plan:
    """Where and how to compute, and why so."""

    device: torch.device
    dtype: str
    compile: bool
    why: str
    free: float = math.inf  # GB of memory
    processes: Processes = field(default_factory=Processes, compare=False)

    def autocast(self):
        return torch.autocast(self.device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")


# No torch for CUDA 13 supports cards before 7.5. Without --force-reinstall, pip keeps the build already installed
INSTALL_LEGACY = 'pip install --force-reinstall "torch<2.15" --index-url https://download.pytorch.org/whl/cu126'


def try_device(device):
    """Compute something on a device, for nothing else tells whether it works: free GB, or torch's reason why not."""
    try:
        torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device)).sum().item()
        return torch.cuda.mem_get_info(device)[0] / 1e9 if device.startswith("cuda") else math.inf
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        return textwrap.shorten((str(e).strip() or type(e).__name__).splitlines()[0].rstrip("."), 200)


def plan_device(machine, device="auto", dtype="auto", compile="auto"):
    """Choose device, dtype and whether to compile, from the arguments alone: the tests check it on a table of cards.

    The best card that works is taken, and no other is touched: any use of a card takes some of its memory. Raises
    UserError where a request cannot be met, with the command that fixes it.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (":" in device and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"--device {device} is unknown: auto, cpu, cuda, cuda:N or mps")
    wanted = [card for card in machine.cards if kind in ("auto", "cuda") and number in ("", str(card.index))]
    reasons = []
    for card in sorted(wanted, key=lambda c: (c.capability >= (7, 0), c.memory, c.capability), reverse=True):
        found = machine.trial(f"cuda:{card.index}")
        if not isinstance(found, str):
            return plan_card(card, found, dtype, compile)
        reasons.append(explain_unusable(card, found, machine.version))
    if kind == "cuda" and machine.cards and not wanted:
        there = ", ".join(f"{c.index} is {c.name}" for c in machine.cards)
        raise UserError(f"--device {device}: there is no card {number}; {there}")
    if kind == "cuda":
        why = "; ".join(reasons) or machine.no_cuda or "torch sees no card; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        raise UserError(f"--device {device} cannot be used: {why}")
    if dtype == "float16":
        raise UserError(f"--dtype float16 needs a CUDA device: on {kind} take float32 or bfloat16")
    if kind == "mps" or (kind == "auto" and machine.mps):
        words = machine.trial("mps") if machine.mps else "this torch or this machine has no Metal"
        if dtype == "bfloat16" and (kind == "mps" or not isinstance(words, str)):
            raise UserError("--dtype bfloat16: on mps take float32")
        if not isinstance(words, str):
            return Plan(torch.device("mps"), "float32", compile == "on", "Metal")
        if kind == "mps":
            raise UserError(f"--device mps cannot be used: {words}")
        reasons = [f"Metal: {words}"]
    why = "as asked" if kind == "cpu" else "; ".join(reasons) or "no CUDA device"
    chosen = ("bfloat16" if machine.bf16() else "float32") if dtype == "auto" else dtype
    return Plan(torch.device("cpu"), chosen, compile == "on", why)


def explain_unusable(card, words, version):
    """Why torch cannot compute on a card that it sees, and what would mend it."""
    if "no kernel image" not in words:
        return f"{card}: {words}"
    if card.capability < (5, 0):
        return f"{card} is older than any CUDA that torch still speaks; take --device cpu"
    cure = INSTALL_LEGACY if card.capability < (7, 5) else "pip install --upgrade torch"
    return f"torch {version} has no kernels for {card}; {cure}"


def plan_card(card, free, dtype, compile):
    """What a card that works does best. bfloat16 before 8.0 is emulated, whatever is_bf16_supported says."""
    modern = card.capability >= (8, 0)
    chosen = ("bfloat16" if modern else "float32") if dtype == "auto" else dtype
    if compile == "on" and card.capability < (7, 0):
        raise UserError(f"--compile on: Triton needs a card of 7.0 or newer, not {card}; leave it off")
    reasons = {
        f"{card}, {free:.1f} GB free": True,
        "half precision is emulated, slow or fragile before 8.0": dtype == "auto" and not modern,
        "warning: bfloat16 is emulated before 8.0, slower than float32": chosen == "bfloat16" and not modern,
        "warning: float16 is slow before 7.0": chosen == "float16" and card.capability < (7, 0),
        "warning: float16 is known to give NaN on the GTX 16 series": chosen == "float16" and "GTX 16" in card.name,
        "not compiled before 8.0": compile == "auto" and not modern,
    }
    compiled, why = compile == "on" or (compile == "auto" and modern), "; ".join(w for w, so in reasons.items() if so)
    return Plan(torch.device("cuda", card.index), chosen, compiled, why, free)


def make_plan(settings):
    """A Plan for the machine as it is."""
    device, dtype, compile = (settings.get(name, "auto") for name in ("device", "dtype", "compile"))
    cards, no_cuda, processes = [], "", Processes()
    try:
        torch.cuda.init()
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            cards.append(Card(i, card.name, (card.major, card.minor), card.total_memory / 1e9))
    except (RuntimeError, AssertionError) as e:  # torch's own words tell a missing driver from one that is too old
        no_cuda = str(e).strip().splitlines()[0]
    if not torch.backends.cuda.is_built():
        no_cuda = f"torch {torch.__version__} is built without CUDA; see https://pytorch.org/get-started/locally"
    if processes.size > 1 and device in ("auto", "cuda") and (cards or device == "cuda"):
        device = f"cuda:{processes.local_rank}"  # one GPU for each process of a machine
    machine = Machine(cards, try_device, torch.__version__, no_cuda, torch.backends.mps.is_available(), bfloat16_pays)
    plan = plan_device(machine, device, dtype, compile)
    torch.set_float32_matmul_precision("high")  # TF32 where there is any
    return replace(plan, processes=processes)


def measure_peak(plan, n=1024, clock=time.perf_counter):
    """Multiply two (n, n) matrices for a moment: the operations per second that this machine reaches at best."""
    best, seconds = 0.0, 0.0
    with contextlib.suppress(torch.OutOfMemoryError):
        while not best or (plan.device.type == "cuda" and n <= 8192 and seconds < 0.02):  # larger, while that is quick
            a = torch.ones(n, n, device=plan.device, dtype=getattr(torch, plan.dtype))
            for _ in range(6):
                start = clock()
                (a @ a)[0, 0].item()  # asking for a number waits for the product
                seconds = clock() - start
                best = max(best, 2 * n**3 / seconds)
            n *= 2
    return best or math.inf


@lru_cache(maxsize=1)
def bfloat16_pays():
    """Whether this CPU multiplies natively in bfloat16, and faster than in float32: Intel's AVX-512 alone is slower."""
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return False
    clock = time.perf_counter if os.name == "nt" else time.thread_time  # minds nothing beside it; coarse on Windows
    plans = (Plan(torch.device("cpu"), dtype, False, "") for dtype in ("bfloat16", "float32"))
    bfloat16, float32 = (measure_peak(plan, 256, clock) for plan in plans)
    return bfloat16 > float32


def in_memory(compute, rows, *given):
    """[compute(rows, ...)]; where memory runs out, the same for each half of the rows, recursively."""
    try:
        return [compute(rows, *given)]
    except (MemoryError, RuntimeError) as e:
        if len(rows) == 1 or not out_of_memory(e):
            raise
    half = len(rows) // 2  # out here, where the exception holds no memory any more
    return in_memory(compute, rows[:half], *given) + in_memory(compute, rows[half:], *given)


def bytes_needed(config, vocab_size, parts=1):
    """About the memory that training takes: weights with their gradient and momenta, and what backward keeps."""
    C, tokens = config.n_embd or 0, config.batch_size * config.block_size / parts
    weights = 12 * (config.n_layer or 0) * C * C + ((config.lookback or 0) + 1) * vocab_size * C
    kept = (config.n_layer or 0) * 26 * C + 4 * vocab_size  # numbers per character
    return 4 * (4 * weights + tokens * kept)


def micro_batches(config, vocab_size, free, size=1):
    """How many micro-batches to cut each process's share of the batch into, so that one fits in `free` GB."""
    if config.grad_accum:
        return config.grad_accum
    share = config.batch_size // size
    divisors = (n for n in range(1, share + 1) if share % n == 0)
    return next((n for n in divisors if bytes_needed(config, vocab_size, n * size) < 0.9e9 * free), share)


def try_compile(run):
    """The compiled model, or the model itself where that fails: errors may come when it is first called."""
    start = time.perf_counter()
    try:
        fast = torch.compile(run.model)
        rows = run.config.batch_size // run.processes.size // run.micro_batches
        x, y = run.data.batch([0] * rows, run.config.block_size, run.device)
        with run.plan.autocast():
            loss = cross_entropy(fast(x), y)
        loss.backward()
        run.console.say(f"compile: {timedelta(seconds=round(time.perf_counter() - start))} for the first step")
    except Exception as e:  # whatever a compiler may raise
        why = (str(e).strip() or type(e).__name__).splitlines()[0][:100]
        run.console.say(f"compile: goes on without, slower ({why})")
        fast = run.model
    run.model.zero_grad(set_to_none=True)
    return fast


def keep_memory():
    """Let a process on Linux keep what it frees: what goes back to the system returns as thousands of page faults."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        for threshold in (-1, -3):  # of the free memory at the end of the heap, and of blocks beside it
            ctypes.CDLL(None).mallopt(threshold, 2**30)


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
    return run.generate(prompt="", max_new_tokens=70, stop="", seed=run.config.seed).strip().replace("\n", " / ")


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
    c, chars = run.config, run.config.batch_size * run.config.block_size  # per step
    flops = chars * flops_per_char(run.model, c) / pace
    words = f"{1000 * pace:6.1f} ms/step {chars / pace:9,.0f} chars/s {flops / 1e9:7,.0f} GFLOP/s"
    return f"{words} ({100 * flops / (run.peak * run.processes.size):.0f} % of peak)"


def flops_per_char(model, config):
    """Operations to train on one character: 6 per weight of a matrix, and the attention's two products."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    layers = sum(isinstance(m, CausalSelfAttention) for m in model.modules())
    return 6 * weights + 6 * layers * (config.n_embd or 0) * config.block_size


def introduce(run):
    """Say what is about to happen, and why so."""
    c, plan, processes = run.config, run.plan, run.processes
    sizes = ", ".join(f"{high - low:,} {name}" for name, (low, high) in run.data.parts.items() if name != "all")
    run.console.say(f"data: {c.input_file}: {sizes} characters, {len(run.vocab)} distinct")
    if c.init_from:
        new = f"; new characters, to be learned: {run.new_chars!r}" if run.new_chars else ""
        run.console.say(f"init: from {c.init_from}{new}")
    n = threads_for(c)
    threads = f", {n} thread{'s'[: n - 1]}" * (plan.device.type == "cpu")
    how = f"{plan.dtype}{threads}{', compiled' * plan.compile}{f', {processes.size} processes' * (processes.size > 1)}"
    run.console.say(f"device: {plan.device}, {how} ({plan.why})")
    size = sum(p.numel() for p in run.model.parameters())
    batch = f"{c.batch_size} contexts of {c.block_size} a step"
    run.console.say(f"model: {c.preset}, {size:,} parameters, {batch}, {c.optimizer or 'adamw'}")


def write(run):
    """Print config.num_samples texts: a single one as it comes into being, several when they are complete."""
    if run.config.num_samples == 1:
        try:
            for piece in run.stream():
                print(piece, end="", flush=True)
        finally:
            print()
    else:
        for i, text in enumerate(run.generate(num_samples=run.config.num_samples), 1):
            print(f"--- {i} of {run.config.num_samples} ---\n{text}")


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


def plot_attention(path, run, text):
    """Draw the attention weights while reading a text: in each row, where the character on the left looks."""
    n_layer, n_head, T, _ = (maps := run.attention(text)).shape
    size = max(2.0, min(8.0, 0.2 * T))
    labels = [{"\n": "¶", " ": "␣"}.get(c, c) for c in text] if T <= 40 else []
    with drawing(path, run, n_layer, n_head, (size, size)) as axes:
        from matplotlib.colors import PowerNorm

        for i, ax in enumerate(np.ravel(axes)):
            layer, head = divmod(i, n_head)
            seen = np.where(np.tri(T), maps[layer, head], np.nan)  # nobody looks ahead: that half stays white
            shares = ax.imshow(seen, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows faint ones
            ax.set_xticks(range(len(labels)), labels, family="monospace")
            ax.set_yticks(range(len(labels)), labels, family="monospace")
            ax.tick_params(length=0)
            ax.set_title(f"layer {layer + 1}, head {head + 1}")
        about = "share of a character's (row's) attention that goes to another (column)"
        np.ravel(axes)[0].figure.colorbar(shares, ax=axes, label=about, shrink=0.8, aspect=40)


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
    """The main job: train, report, write. Returns 128 + signal if it was stopped by one."""
    with locked(run.folder) if run.processes.rank == 0 else contextlib.nullcontext():
        introduce(run)  # nothing is announced where nothing can be kept
    run.train()
    run.console.say(f"final: train {run.evaluate('train'):.4f} val {run.evaluate('val'):.4f} nats/char {outcome(run)}")
    if run.processes.rank == 0:
        write(run)
        with optional():
            plot_losses(run)
    run.processes.sum(0)  # all leave together
    return 128 + run.stop.signum if run.stop.signum else 0


def do_eval(run):
    text = "".join(read_chunks(run.config.eval))
    loss = run.score(text).mean()
    print(f"eval: {loss:.4f} nats/char over {len(text) - 1} characters")
    text, names = text[:20_000], run.vocab.chars.replace("\n", "¶").replace(" ", "␣")
    found = torch.cat([x for x, _ in run.losses(Text(run.vocab.encode(text), run.vocab), "all", guessed)])
    with optional():
        title, page = f"{run.config.eval}: {loss:.4f} nats per character", run.folder / "surprise.html"
        write_surprise(page, run, title, text, [[1.0], *found.tolist()], names)  # the first is given, and no surprise
        print(f"character by character: {page}")


def do_attention(run):
    text, path = run.config.attention[-run.config.block_size :], run.folder / "attention.png"
    plot_attention(path, run, text)
    print(f"attention: {path}")


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
                    run.config = wishes(run, line)[0]
                    write(run)
                    run.config.seed += 1  # so that the same beginning goes on otherwise
            except UserError as e:
                print(e)


# A function of a run, the checkpoint that it opens, and the settings and groups of settings that it reads
Mode = namedtuple("Mode", "do opens reads")
MODES = {
    "train": Mode(do_train, "", "data model training sampling run"),
    "resume": Mode(do_train, "last.pt", "data dropout training sampling run"),
    "init_from": Mode(do_train, "model.pt", "data model training sampling run"),
    "sample_only": Mode(write, "model.pt", "sampling seed work_dir device"),
    "interactive": Mode(do_interactive, "model.pt", "sampling seed work_dir device"),
    "eval": Mode(do_eval, "model.pt", "work_dir device dtype"),
    "attention": Mode(do_attention, "model.pt", "work_dir device"),
}
MEMORY_HINT = "cut the batch (--grad-accum 4), or lower --batch-size, --block-size, --n-embd, --n-layer, --num-samples"


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
