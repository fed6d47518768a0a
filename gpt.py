"""gpt: give it any text, and it writes more of the kind, character by character.

    python gpt.py                                          # train on input.txt, evaluate, write a page
    python gpt.py --sample-only --prompt "ROMEO:"          # write more, from what was trained
    torchrun --nproc-per-node 2 gpt.py --preset baby       # the same on two cards

A GPT is a stack of two ideas: attention, in which every character asks the earlier ones, and a small network in which
it thinks about the answers. The file reads from top to bottom: configuration, text (encoded once, to a file that is
never read whole), attention and the model, evaluation and writing, the optimizer that makes it fast, choosing a device,
training on one machine or many, checkpoints, figures, and the command line that ties them together.

Legend for shapes: B batch, T time (characters of a context), C channels, H heads, D channels of a head, V vocabulary.
Losses are in nats per character.
"""

import argparse
import codecs
import contextlib
import csv
import gc
import hashlib
import io
import json
import math
import os
import pickle
import re
import signal
import sys
import textwrap
import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
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
    input_file: str = option("input.txt", "text file (UTF-8), of any size", "-i", group="data")

    model = partial(option, group="model", fixed=True)
    preset: str = model("auto", "a set of defaults, see the list below (auto: mini, or baby on a graphics card)")
    block_size: int = model(64, "context length in characters", low=1, high=65_536)
    n_layer: int = model(4, "number of layers", low=1, high=1024)
    n_head: int = model(4, "number of attention heads", low=1, high=1024)
    n_embd: int = model(128, "channels of the embedding, and of the Transformer throughout", low=1, high=65_536)
    lookback: int = model(4, "embeddings of so many last characters are summed (GPT-2: 1)", low=1, high=64)
    positions: str = model("rotary", "how heads know distances (GPT-2: learned)", choices=("rotary", "learned"))
    norm: str = model("rms", "what every sublayer's input goes through (GPT-2: layer)", choices=("rms", "layer"))
    activation: str = model("relu2", "what makes the network non-linear (GPT-2: gelu)", choices=("relu2", "gelu"))
    tied: bool = model(False, "the head shares the token embedding's weights (GPT-2: yes)")
    dropout: float = option(0.0, "share of activations dropped while training", group="model", low=0, high=0.99)

    train = partial(option, group="training")
    max_steps: int = train(2000, "stop after this many steps (-1: go on until Ctrl-C)", low=-1)
    batch_size: int = train(24, "contexts per step, those of all processes together", "-b", low=1, high=1_000_000)
    grad_accum: int = train(0, "pieces to cut each process's share of the batch into (0: as memory needs)", low=0)
    learning_rate: float = train(0.03, "peak learning rate", "-l", low=0)
    weight_decay: float = train(0.0, "decoupled weight decay of the matrices", "-w", low=0)
    optimizer: str = train("muon", "how gradients become steps", choices=("muon", "adamw"), fixed=True)
    schedule: str = train("linear", "how the rate falls: to zero, or (step) to a tenth for the last quarter",
                          choices=("cosine", "linear", "step", "constant"))
    warmup_steps: int = train(0, "steps in which the learning rate climbs to its peak", low=0)
    decay_steps: int = train(0, "where the schedule ends (0: --max-steps, or the preset's default if more)", low=0)
    grad_clip: float = train(0.0, "longest gradient allowed, as a norm (0: any)", low=0)
    patience: int = train(0, "stop after so many evaluations without a new best (0: never)", low=0)
    seed: int = train(1337, "seed of first weights, batches, dropout and samples", low=0, high=2**63 - 1, fixed=True)
    init_from: str = train("", "begin with the weights of this model.pt; new characters of the text are learned")

    sampling = partial(option, group="sampling")
    num_samples: int = sampling(1, "how many texts to write", low=0, high=1_000_000)
    max_new_tokens: int = sampling(500, "characters per text", low=0)
    temperature: float = sampling(0.8, "below 1 tamer than the model, above 1 wilder; 0: always the likeliest", low=0)
    top_k: int = sampling(0, "choose among the k likeliest characters only (0: all)", low=-1)
    top_p: float = sampling(1.0, "choose among the likeliest characters that make up this probability", low=0, high=1)
    prompt: str = sampling("", "text to go on from, or FILE:path to read it from a file")

    run = partial(option, group="run")
    work_dir: str = run("out", "folder for model.pt, last.pt, tokens.bin, log.csv and figures", "-o")
    device: str = run("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = run("auto", "arithmetic of the layers", choices=("auto", "float32", "bfloat16", "float16"))
    compile: str = run("auto", "let torch.compile fuse the layers", choices=("auto", "on", "off"))
    eval_interval: int = run(0, "steps between evaluations (0: a tenth of the run)", low=0)
    eval_chars: int = run(200_000, "characters an evaluation looks at, evenly spread over the part (0: all)", low=0)

    mode = partial(option, group="instead of training a new model")
    resume: bool = mode(False, "go on from last.pt in the work folder, exactly")
    sample_only: bool = mode(False, "write from model.pt in the work folder")
    eval: str = mode("", "score this file with model.pt in the work folder")
    attention: str = mode("", "draw where the heads of model.pt look while reading this text: attention.png")

    del model, train, sampling, run, mode
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
# Text: encoded once, piece by piece, to a file of small integers of which only what is needed is ever in memory


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


@dataclass
class Vocab:
    """The alphabet, sorted: character `chars[i]` is token `i`."""

    chars: str

    def __len__(self):
        return len(self.chars)

    def encode(self, text):
        """Text to an array of tokens (N,). Raises UserError that names the characters it does not know."""
        alphabet = np.array([ord(c) for c in self.chars], dtype=np.uint32)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        tokens = np.searchsorted(alphabet, codes)
        unknown = alphabet[np.minimum(tokens, len(alphabet) - 1)] != codes
        if unknown.any():
            names = " ".join(repr(chr(c)) for c in np.unique(codes[unknown])[:20])
            raise UserError(f"unknown to this model: {names}; it knows {self.chars!r}")
        return tokens

    def decode(self, tokens):
        return "".join(self.chars[t] for t in tokens)


CHUNK = 2**22  # bytes in memory at a time while a text is read


def read_chunks(path):
    """Yield a UTF-8 file of any size as strings of about CHUNK characters, without a BOM and with LF line ends."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    lines = 1
    try:
        with open(path, "rb") as f:
            while True:
                block = f.read(CHUNK)
                if b"\0" in block[: 2**20]:
                    raise UserError(f"{path} is a binary file: a text file in UTF-8 is needed")
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as e:
                    line, byte = lines + e.object.count(b"\n", 0, e.start), f.tell() - len(e.object) + e.start
                    bad = f"line {line}, byte {byte} is 0x{e.object[e.start]:02x}"
                    raise UserError(f"{path} is not UTF-8: {bad}") from None
                yield text
                lines += text.count("\n")
                if not block:
                    return
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None


def codes_of(text):
    """The code points of a string as an array (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def survey(path, tokens_path, more_chars=""):
    """Return the header of an encoded text, a dict: what the file at `path` holds, and how to know it again.

    The file is only hashed where tokens_path already holds it: size, time and hash agree. Otherwise it is read once.
    """
    digest, head = hashlib.sha256(), read_header(tokens_path)[0]
    try:
        stat = os.stat(path)
        if not os.path.isfile(path):
            raise UserError(f"cannot read {path}: not a regular file, and a text is read more than once")
        with open(path, "rb") as f:
            while block := f.read(CHUNK):
                digest.update(block)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    source = dict(size=stat.st_size, time=stat.st_mtime_ns, sha256=digest.hexdigest())
    if head and head["source"] == source and set(more_chars) <= set(head["chars"]):
        return head

    seen, ascii_seen, count = np.zeros(sys.maxunicode + 1, dtype=bool), b"", 0
    for text in read_chunks(path):
        count += len(text)
        if text.isascii():  # deleting what is known leaves what is new: ten times faster than looking at each
            ascii_seen += bytes(set(text.encode().translate(None, ascii_seen)))
        else:
            seen[codes_of(text)] = True
    chars = "".join(map(chr, np.flatnonzero(seen))) + ascii_seen.decode() + more_chars
    chars = "".join(sorted(set(chars)))
    dtype = next(d for d in ("uint8", "uint16", "uint32") if len(chars) <= np.iinfo(d).max + 1)
    return dict(program="gpt", source=source, chars=chars, dtype=dtype, count=count)


def read_header(tokens_path):
    """Return (header, bytes that it takes), or (None, 0) where there is no whole encoded text."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open(tokens_path, "rb") as f:
            line = f.readline()
        head = json.loads(line)
        if os.path.getsize(tokens_path) == len(line) + head["count"] * np.dtype(head["dtype"]).itemsize:
            return head, len(line)
    return None, 0


def encode_file(path, head, tokens_path):
    """Write head as one line of JSON and then the tokens; whoever interrupts it leaves no half a file behind."""
    alphabet = codes_of(head["chars"])
    table = np.zeros(max(256, int(alphabet.max(initial=0)) + 1), dtype=head["dtype"])
    table[alphabet] = np.arange(len(alphabet))
    temporary = tokens_path.with_name(f".{tokens_path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            line = json.dumps(head).encode()
            f.write(line + b" " * (-(len(line) + 1) % 16) + b"\n")  # tokens begin at an address that suits their type
            for text in read_chunks(path):
                if table.itemsize == 1 and text.isascii():
                    f.write(text.encode().translate(table[:256].tobytes()))
                else:
                    f.write(table[codes_of(text)].tobytes())
        os.replace(temporary, tokens_path)
    except OSError as e:
        raise UserError(f"cannot write {tokens_path}: {e.strerror}") from None
    except IndexError:
        pass  # a character that was not there before: told below
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    stat = os.stat(path)
    if (stat.st_size, stat.st_mtime_ns) != (head["source"]["size"], head["source"]["time"]):
        tokens_path.unlink(missing_ok=True)
        raise UserError(f"{path} changed while it was read: start again when it is finished")


@dataclass
class Text:
    """Tokens, wherever they are, and the parts of them to learn from and to be judged on."""

    tokens: callable  # returns the array of all tokens
    vocab: Vocab
    parts: dict  # name -> (first token, last token + 1)
    digest: str = ""

    def rows(self, starts, length):
        """Tokens (B, length) that begin at `starts` (B,), as a tensor."""
        # asked for anew each time: a map's pages count as this process's memory for as long as the map lives
        return torch.from_numpy(self.tokens()[np.asarray(starts)[:, None] + np.arange(length)].astype(np.int64))

    def batch(self, starts, block_size, device):
        """starts (B,) -> inputs (B, T) and targets (B, T), the same one character later."""
        rows = self.rows(starts, block_size + 1)
        if device.type == "cuda":
            rows = rows.pin_memory().to(device, non_blocking=True)  # the copy runs while the card computes
        return rows[:, :-1].to(device), rows[:, 1:].to(device)

    def draw(self, part, batch_size, block_size, generator):
        """Random starts (B,) in a part."""
        low, high = self.parts[part]
        return low + torch.randint(high - low - block_size, (batch_size,), generator=generator)


def open_text(tokens_path):
    """An encoded text on disk: the first 90 % to learn from, the rest to be judged on."""
    head, offset = read_header(tokens_path)
    n, n1 = head["count"], train_size(head["count"])
    tokens = partial(np.memmap, tokens_path, mode="r", dtype=head["dtype"], offset=offset, shape=n)
    return Text(tokens, Vocab(head["chars"]), {"train": (0, n1), "val": (n1, n)}, head["source"]["sha256"])


def train_size(count):
    return int(0.9 * count)


# ----------------------------------------------------------------------------------------------------------------------
# Attention, four times the same: how the lecture gets from an average to a head


def average_by_loops(x):
    """Every position's mean over itself and its past: (B, T, C) -> (B, T, C), as one would say it."""
    return torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], 1)


def average_by_matmul(x):
    """The same as a product with a lower triangle whose rows sum to one."""
    T = x.shape[1]
    weights = torch.tril(torch.ones(T, T))
    return (weights / weights.sum(1, keepdim=True)) @ x  # (T, T) @ (B, T, C)


def average_by_softmax(x):
    """The same as a softmax over zeros, the future masked: now the zeros may become anything."""
    T = x.shape[1]
    weights = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    return weights @ x


def attend(q, k, v, scale):
    """Attention written out: the scores q·k decide how much of each earlier v is averaged (Vaswani et al. 2017).

    q, k, v are (B, H, T, D). Returns the averages (B, H, T, D) and the weights (B, H, T, T), whose rows sum to one.
    With q = 0 all scores are equal: the fourth way to average the past.
    """
    T, S = q.shape[-2], k.shape[-2]  # a query at the end of S keys sees all of them, the one before it one less, ...
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    weights = (scale * q @ k.mT).masked_fill(future, -math.inf).softmax(-1)  # (B, H, T, S)
    return weights @ v, weights


# ----------------------------------------------------------------------------------------------------------------------
# Models, simplest first. Each takes tokens (B, T) and answers with logits (B, T, V) for every next character.


class Bigram(nn.Module):
    """A table: the next character from the current one. What it cannot do is what the GPT is for."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.block_size = config.block_size
        self.table = nn.Embedding.from_pretrained(torch.zeros(vocab_size, vocab_size), freeze=False)

    def new_cache(self, batch_size):
        return None

    def forward(self, idx, cache=None):
        return self.table(idx)  # (B, T, V)


class Norm(nn.Module):
    """Give each position's channels a common scale: by their root mean square (Zhang & Sennrich 2019) or LayerNorm."""

    def __init__(self, config):
        super().__init__()
        self.shape = (config.n_embd,)
        self.gain = nn.Parameter(torch.ones(self.shape)) if config.norm == "layer" else None

    def forward(self, x):
        return F.rms_norm(x, self.shape) if self.gain is None else F.layer_norm(x, self.shape, self.gain)


class Rotary(nn.Module):
    """Turn pairs of channels by an angle that grows with the position: q·k then knows distances (Su et al. 2021).

    q and k are brought to unit scale first (Henry et al. 2020): scores stay in a range in which softmax still learns.
    """

    def __init__(self, block_size, head_size):
        super().__init__()
        frequency = 1000.0 ** -torch.linspace(0, 1, head_size // 2 + 1)[:-1]  # from once around in 6 characters to 6000
        angle = torch.arange(block_size)[:, None] * frequency  # (T, D/2)
        self.register_buffer("cos", angle.cos()[:, None], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None], persistent=False)

    def forward(self, x, start):  # (B, T, H, D)
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        a, b = F.rms_norm(x, x.shape[-1:]).chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


class CausalSelfAttention(nn.Module):
    """All heads of a layer at once: every position asks all earlier ones, and gets an average of what they answer."""

    def __init__(self, config, rotary):
        super().__init__()
        self.n_head, self.dropout, self.rotary = config.n_head, config.dropout, rotary
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.weights = None  # set to a list, it makes forward leave the attention weights there: see attention_maps

    def forward(self, x, start=0, cache=None):
        B, T, C = x.shape
        qkv = self.qkv(x)
        if x.device.type == "cpu" and qkv.dtype == torch.bfloat16:
            qkv = qkv.float()  # processors multiply much faster in bfloat16, but the attention kernel there is slower
        q, k, v = qkv.view(B, T, 3, self.n_head, C // self.n_head).unbind(2)  # (B, T, H, D) each
        if self.rotary:
            q, k = self.rotary(q, start), self.rotary(k, start)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            keys, values = cache  # (B, H, block_size, D), filled up to `start`
            keys[:, :, start : start + T], values[:, :, start : start + T] = k, v
            k, v = keys[:, :, : start + T], values[:, :, : start + T]
        dropout = self.dropout if self.training else 0.0
        if self.weights is not None or 1 < T < k.shape[2]:  # the kernel's causal mask is for as many queries as keys
            y, weights = attend(q, k, v, q.shape[-1] ** -0.5)
            if self.weights is not None:
                self.weights.append(weights)
        else:  # the same in one kernel that never writes the (T, T) weights down (Dao et al. 2022)
            with torch.autocast("cpu", enabled=False):  # or it would turn the float32 from above back
                y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=dropout)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class FeedForward(nn.Module):
    """What a position makes of what it heard. relu², a relu squared, learns faster than gelu (So et al. 2021)."""

    def __init__(self, config):
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        x = self.up(x)  # (B, T, 4 C)
        return self.proj(F.relu(x).square() if self.activation == "relu2" else F.gelu(x))  # (B, T, C)


class Block(nn.Module):
    """Talk to each other, then think alone; both are added to the stream that runs past them."""

    def __init__(self, config, rotary):
        super().__init__()
        self.norm1, self.attention = Norm(config), CausalSelfAttention(config, rotary)
        self.norm2, self.think = Norm(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, start=0, cache=None):
        x = x + self.dropout(self.attention(self.norm1(x), start, cache))
        return x + self.dropout(self.think(self.norm2(x)))


@dataclass
class Cache:
    """What the layers have computed of a text so far, so that one more character costs one position's work."""

    recent: torch.Tensor  # (B, lookback - 1), the last tokens
    layers: list  # keys and values of each layer, (B, H, block_size, D) each
    length: int = 0


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2019), with what has been learned since; see the flags for GPT-2's."""

    def __init__(self, config, vocab_size):
        super().__init__()
        if config.n_embd % config.n_head:
            raise UserError(f"--n-embd {config.n_embd} does not divide among --n-head {config.n_head}: take a multiple")
        head_size = config.n_embd // config.n_head
        if config.positions == "rotary" and head_size % 2:
            raise UserError(f"rotary positions turn pairs: {config.n_embd} / {config.n_head} channels per head is odd")
        self.block_size, self.n_head, self.nothing = config.block_size, config.n_head, vocab_size
        self.token = nn.Embedding(vocab_size, config.n_embd)
        self.before = nn.ModuleList(nn.Embedding(vocab_size + 1, config.n_embd) for _ in range(config.lookback - 1))
        rotary = Rotary(config.block_size, head_size) if config.positions == "rotary" else None
        self.position = None if rotary else nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.n_layer))
        self.norm = Norm(config)
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.initialise(table_std=0.02 if config.tied else 0.3)  # tables that are heads, too, must speak softly
        if config.tied:
            self.head.weight = self.token.weight

    def initialise(self, table_std):
        """Every sublayer starts as the identity and the head calls all characters equally likely: a loss of ln V."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                zero, table = "proj" in name or "head" in name, "blocks" not in name
                nn.init.normal_(weight, std=0.0 if zero else table_std if table else 0.6 * weight.shape[1] ** -0.5)

    def new_cache(self, batch_size):
        device, C = self.token.weight.device, self.token.weight.shape[1]
        shape = (batch_size, self.n_head, self.block_size, C // self.n_head)
        layers = [(torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in self.blocks]
        return Cache(torch.full((batch_size, len(self.before)), self.nothing, device=device), layers)

    def embed(self, idx, recent, start):
        """Tokens (B, T) -> (B, T, C): the sum of an embedding for each of the last `lookback` characters.

        What stands two characters back need not be fetched by attention first: with this, the first layer already
        knows the word it is in (after the smear and n-gram embeddings of the nanoGPT speed runs, 2025).
        """
        T, n = idx.shape[1], len(self.before)
        x = self.token(idx)
        past = torch.cat((recent, idx), 1)  # (B, n + T)
        for back, table in enumerate(self.before, 1):
            x = x + table(past[:, n - back : n - back + T])
        return x if self.position is None else x + self.position.weight[start : start + T]

    def forward(self, idx, cache=None):
        """Logits (B, T, V). With a cache, idx goes on where the last call ended."""
        start = 0 if cache is None else cache.length
        recent = idx.new_full((len(idx), len(self.before)), self.nothing) if cache is None else cache.recent
        x = self.dropout(self.embed(idx, recent, start))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, start, None if cache is None else cache.layers[i])
        if cache is not None:
            cache.recent = torch.cat((recent, idx), 1)[:, idx.shape[1] :]
            cache.length += idx.shape[1]
        return self.head(self.norm(x))  # (B, T, V)


@dataclass(frozen=True)
class Preset:
    """A row of the registry: the model's class, a line about it, the defaults that suit it."""

    model: type
    about: str
    defaults: dict


GPT2 = dict(lookback=1, positions="learned", norm="layer", activation="gelu", tied=True)
ADAMW = dict(optimizer="adamw", learning_rate=3e-3, warmup_steps=100, weight_decay=0.1)

# fmt: off
PRESETS = {
    "bigram": Preset(Bigram, "a table of what follows what: the baseline",
                     dict(batch_size=64, max_steps=1000, optimizer="adamw", learning_rate=0.05)),
    "mini": Preset(GPT, "0.8M parameters: good text in two minutes on two cores",
                   dict(block_size=128, batch_size=12, max_steps=1200)),
    "gpt2": Preset(GPT, "GPT-2's recipe at mini's size, to compare with",
                   {**GPT2, **ADAMW, "batch_size": 12, "max_steps": 2000, "learning_rate": 1e-3, "schedule": "cosine",
                    "grad_clip": 1.0}),
    "baby": Preset(GPT, "10.7M parameters, for any graphics card with 8 GB, or less with more patience",
                   dict(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2, batch_size=64, max_steps=2000)),
    "large": Preset(GPT, "51M parameters, for much text and a card with 24 GB",
                    dict(n_layer=16, n_head=8, n_embd=512, block_size=512, dropout=0.1, batch_size=64,
                         max_steps=10_000)),
}
# fmt: on


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation and writing: exact, in eval mode, and blind to the random numbers of training


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


def windows(low, high, block_size, limit):
    """Yield (starts, length) of contexts that cover the tokens low..high side by side, in batches.

    Where that are more than `limit` characters (0: any), there are only so many, evenly spread, and always the same.
    """
    count = high - low - 1  # the first token has nothing before it to be predicted from
    n, rest = divmod(count, block_size)
    starts = low + block_size * np.arange(n)
    if limit and count > limit:
        starts, rest = np.linspace(low, high - 1 - block_size, max(1, limit // block_size)).astype(np.int64), 0
    at_once = max(1, 8192 // block_size)
    for i in range(0, len(starts), at_once):
        yield starts[i : i + at_once], block_size
    if rest:
        yield np.array([high - 1 - rest]), rest


def evaluate(model, text, part, config, plan, world):
    """Return the mean loss over a part in nats per character; each process looks at its share of the windows."""
    total, count = 0.0, 0
    batches = list(windows(*text.parts[part], config.block_size, config.eval_chars))
    with inference(model):
        for starts, length in batches[world.rank :: world.size]:
            x, y = text.batch(starts, length, plan.device)
            with plan.autocast():
                total += cross_entropy(model(x), y, reduction="sum").item()
            count += y.numel()
    total, count = world.sum(total, count)
    return total / count


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


@torch.no_grad()
def generate(model, idx, config, generator, cached=True):
    """Yield the next tokens (B,) of the texts idx (B, T), config.max_new_tokens times.

    With the cache a character costs one position's work. A context that is full starts afresh with its latter half, so
    that the model always sees between half and all of its block_size; without the cache it sees the very same.
    """
    device = next(model.parameters()).device
    seen = fresh = idx[:, -model.block_size :].to(device)
    cache = model.new_cache(len(idx)) if cached else None
    with inference(model):
        for _ in range(config.max_new_tokens):
            if seen.shape[1] > model.block_size:
                seen = fresh = seen[:, -max(1, model.block_size // 2) :]
                cache = model.new_cache(len(idx)) if cached else None
            logits = (model(fresh, cache) if cached else model(seen))[:, -1]  # (B, V)
            probs = next_token_probs(logits.float().cpu(), config.temperature, config.top_k, config.top_p)
            token = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
            yield token[:, 0]
            fresh = token.to(device)
            seen = torch.cat((seen, fresh), 1)


def read_prompt(prompt, vocab):
    """The text to go on from, as given or from FILE:path, and its tokens (T,); a new line where there is none."""
    if prompt.startswith("FILE:"):
        prompt = read_text(prompt[5:])
    start = prompt or ("\n" if "\n" in vocab.chars else vocab.chars[0])
    return prompt, torch.from_numpy(vocab.encode(start))


def write(model, vocab, config):
    """Print config.num_samples texts: a single one as it comes into being, several when they are complete."""
    prompt, tokens = read_prompt(config.prompt, vocab)
    idx = tokens.expand(config.num_samples, -1)
    new = generate(model, idx, config, torch.Generator().manual_seed(config.seed))
    if config.num_samples == 1:
        print(prompt, end="")
        for token in new:
            print(vocab.decode(token), end="", flush=True)
        print()
    elif config.num_samples:
        texts = torch.stack(list(new), 1) if config.max_new_tokens else idx[:, :0]  # (B, T)
        for i, row in enumerate(texts.tolist(), 1):
            print(f"--- {i} of {config.num_samples} ---\n{prompt}{vocab.decode(row)}")


# ----------------------------------------------------------------------------------------------------------------------
# The optimizer: where two thirds of the steps are saved


def orthogonalise(g, iterations=3):
    """Matrices (N, R, C) to about the nearest ones whose singular values are all 1, by products alone.

    Newton-Schulz: an odd polynomial of X, a X + b (X Xᵀ) X + c (X Xᵀ)² X, acts on each singular value alone. The
    coefficients, one triple per iteration, push them toward 1 as fast as can be ("Polar Express", Amsel et al. 2025).
    """
    if g.shape[-2] > g.shape[-1]:
        return orthogonalise(g.mT, iterations).mT
    x = g / (1.02 * g.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    a = x @ x.mT  # (N, R, R)
    product = None
    for i, (c1, c3, c5) in enumerate(POLAR_EXPRESS[:iterations]):
        q = torch.baddbmm(a, a, a, beta=c3, alpha=c5)
        q.diagonal(dim1=-2, dim2=-1).add_(c1)
        # all that happens to X is a product of such q, so X itself, up to four times as wide, can wait for the end
        product = q if product is None else q @ product
        if i < iterations - 1:
            a = q @ a @ q
    return product @ x


POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): every direction in a matrix moves by the same amount.

    A gradient's few large singular values drown all others, and the rare things of a text are among the others. For
    matrices that act on a stream only; tables, gains and the head are AdamW's. The matrices of one shape go through the
    products together, and in float32, which old cards and processors do faster than bfloat16.
    """

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.9):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                grads = [p.grad for p in params]
                buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])  # a look ahead (Nesterov 1983)
                update = orthogonalise(torch.stack(nesterov))  # (N, rows, columns)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                step_size = -group["lr"] * max(1, rows / columns) ** 0.5  # as much change in the output for any shape
                torch._foreach_add_(params, update.unbind(), alpha=step_size)


def make_optimizers(model, config):
    """A list of optimizers; each group's `scale` says how its rate relates to --learning-rate."""
    named = dict(model.named_parameters())  # a tied weight counts once
    matrices = [p for name, p in named.items() if "blocks" in name and p.ndim == 2]
    tables = [p for name, p in named.items() if "blocks" not in name and "head" not in name and p.ndim == 2]
    others = [p for name, p in named.items() if p.ndim < 2 or name == "head.weight"]
    if config.optimizer == "muon" and matrices:
        groups = [dict(params=tables, scale=1.0), dict(params=others, scale=0.7)]
        muon = Muon([dict(params=matrices, scale=1.0)], lr=0.0, weight_decay=config.weight_decay)
        return [muon, torch.optim.AdamW(groups, lr=0.0, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)]
    decayed = [p for p in named.values() if p.ndim >= 2]
    rest = [p for p in named.values() if p.ndim < 2]
    groups = [dict(params=decayed, weight_decay=config.weight_decay, scale=1.0)]
    groups += [dict(params=rest, weight_decay=0.0, scale=1.0)] if rest else []
    return [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)]


# ----------------------------------------------------------------------------------------------------------------------
# Devices: what a machine has, and what is best done with it


@dataclass(frozen=True)
class Card:
    """A CUDA device as torch numbers it."""

    index: int
    name: str
    capability: tuple  # (8, 6), say
    free: float  # GB of memory


@dataclass(frozen=True)
class Plan:
    """Where and how to compute, and why so."""

    device: torch.device
    dtype: str
    compile: bool
    why: str
    free: float = math.inf  # GB of memory

    def autocast(self):
        return torch.autocast(self.device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")


INSTALL_CUDA = "https://pytorch.org/get-started/locally has the command"
INSTALL_LEGACY = 'pip install "torch<2.15" --index-url https://download.pytorch.org/whl/cu126'
LAST_LEGACY = (7, 5)  # cards before this one are in no torch for CUDA 13


def has_kernels(capability, archs):
    """Whether a torch built for `archs` ("sm_86", "compute_90", ...) has something that this card can run.

    A card runs binaries of its own generation with a minor number up to its own, and PTX ("compute") of any before it.
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        exact = number[-1:] in ("a", "f")  # sm_90a: made for one chip
        digits = number.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and built <= capability and not exact:
            return True
        if kind == "sm" and built[0] == capability[0] and (built == capability if exact else built <= capability):
            return True
    return False


def plan_device(cards, archs, version, device="auto", dtype="auto", compile="auto", mps=False, bf16=False):
    """Choose a device, its arithmetic and whether to compile, from facts alone: the tests hold a table of cards to it.

    cards are what torch sees, archs what it was built for (empty: without CUDA), version its version; mps and bf16 say
    whether there is Metal and whether the processor knows bfloat16. Raises UserError where a wish cannot be met, with
    the command that mends it.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (":" in device and not (kind == "cuda" and number.isdigit())):
        raise UserError(f"--device {device} is unknown: auto, cpu, cuda, cuda:N or mps")
    usable = [card for card in cards if has_kernels(card.capability, archs)]

    if kind == "cuda" and not archs:
        raise UserError(f"--device {device}: this torch {version} is built without CUDA; {INSTALL_CUDA}")
    if kind == "cuda" and not cards:
        raise UserError(f"--device {device}: torch sees no card; check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if number and int(number) >= len(cards):
        there = ", ".join(f"{c.index} is {c.name}" for c in cards)
        raise UserError(f"--device {device}: there is no card {number}; {there}")
    if kind == "mps" and not mps:
        raise UserError("--device mps: this torch or this machine has no Metal")

    wanted = [cards[int(number)]] if number else cards
    if kind == "cuda" and not any(card in usable for card in wanted):
        raise UserError(f"--device {device} cannot be used: {explain_unusable(wanted[0], version)}")
    if kind == "cuda" or (kind == "auto" and usable):
        card = max((c for c in wanted if c in usable), key=lambda c: (c.capability >= (7, 0), c.free, c.capability))
        return plan_card(card, dtype, compile)
    if dtype == "float16":
        raise UserError(f"--dtype float16 needs a CUDA device: on {kind} take float32 or bfloat16")
    if kind == "mps" or (kind == "auto" and mps):
        if dtype == "bfloat16":
            raise UserError("--dtype bfloat16: on mps take float32")
        return Plan(torch.device("mps"), "float32", compile == "on", "Metal")
    why = "as asked" if kind == "cpu" else explain_unusable(cards[0], version) if cards else "no CUDA device"
    if dtype == "auto" and bf16:  # not by itself: in float32, two processes learn what one does to the fifth digit
        why += "; --dtype bfloat16 is faster on this processor"
    return Plan(torch.device("cpu"), "float32" if dtype == "auto" else dtype, compile == "on", why)


def version_of(card):
    return ".".join(map(str, card.capability))


def explain_unusable(card, version):
    """Why torch cannot compute on a card that it sees, and what would mend it."""
    name = f"{card.name} ({version_of(card)})"
    if card.capability < (5, 0):
        return f"{name} is older than any CUDA that torch still speaks; take --device cpu"
    if card.capability < LAST_LEGACY:
        return f"torch {version} has no kernels for {name}; {INSTALL_LEGACY}"
    return f"torch {version} has no kernels for {name}; pip install --upgrade torch"


def plan_card(card, dtype, compile):
    """What a usable card does best. bfloat16 before 8.0 is emulated, whatever is_bf16_supported says."""
    modern = card.capability >= (8, 0)
    reasons = [f"{card.name}, {version_of(card)}, {card.free:.1f} GB free"]
    chosen = ("bfloat16" if modern else "float32") if dtype == "auto" else dtype
    if dtype == "auto" and not modern:
        reasons.append("half precision is emulated, slow or fragile before 8.0")
    if chosen == "bfloat16" and not modern:
        reasons.append("warning: bfloat16 is emulated before 8.0, slower than float32")
    if chosen == "float16" and card.capability < (7, 0):
        reasons.append("warning: float16 is slow before 7.0")
    if chosen == "float16" and "GTX 16" in card.name:
        reasons.append("warning: float16 is known to give NaN on the GTX 16 series")
    if compile == "on" and card.capability < (7, 0):
        raise UserError(
            f"--compile on: Triton needs a card of 7.0 or newer, {card.name} has {version_of(card)}; leave it off"
        )
    if compile == "auto" and not modern:
        reasons.append("not compiled before 8.0")
    compiled = compile == "on" or (compile == "auto" and modern)
    return Plan(torch.device("cuda", card.index), chosen, compiled, "; ".join(reasons), card.free)


def look_around(config, world):
    """Make a Plan from the machine as it is, and see that it works by doing something with it."""
    archs = torch.cuda.get_arch_list() if torch.backends.cuda.is_built() else []
    cards = []
    for i in range(torch.cuda.device_count()):
        with contextlib.suppress(RuntimeError):
            name, free = torch.cuda.get_device_name(i), torch.cuda.mem_get_info(i)[0] / 1e9
            cards.append(Card(i, name, torch.cuda.get_device_capability(i), free))
    wish = config.device
    if world.size > 1 and wish in ("auto", "cuda") and (cards or wish == "cuda"):
        wish = f"cuda:{world.local_rank}"  # one card for each process of a machine
    mps, bf16 = torch.backends.mps.is_available(), getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    plan = plan_device(cards, archs, torch.__version__, wish, config.dtype, config.compile, mps, bf16)
    pick_device(str(plan.device))
    torch.set_float32_matmul_precision("high")  # TF32 where there is any
    return plan


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


def measure_peak(plan):
    """Multiply two matrices for a moment: the operations per second that this machine reaches at best."""
    n = 8192 if plan.device.type == "cuda" else 1024
    generator = torch.Generator(plan.device).manual_seed(0)  # its own, so that no dropout falls differently for it
    a = torch.randn(n, n, device=plan.device, dtype=getattr(torch, plan.dtype), generator=generator)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # asking for a number waits for the product
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


# ----------------------------------------------------------------------------------------------------------------------
# Training, on one machine or many


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


class World:
    """The processes that train together, as torchrun started them; a single one is a world, too."""

    def __init__(self):
        self.rank, self.local_rank, self.size = (int(os.environ.get(k, d)) for k, d in WORLD_VARIABLES)
        self.device = torch.device("cpu")

    def open(self, device):
        if self.size > 1:
            self.device = device
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def close(self):
        if dist.is_initialized():
            gc.collect()  # what still refers to the group must go before it
            dist.destroy_process_group()

    def gather(self, values, op):
        if self.size == 1:
            return values
        values = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, op)
        return values.tolist()

    def sum(self, *values):
        return self.gather(values, dist.ReduceOp.SUM)

    def max(self, value):
        return self.gather([value], dist.ReduceOp.MAX)[0]


WORLD_VARIABLES = (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0  # spent training, evaluation not counted
    best_loss: float = math.inf  # on val
    best_step: int = 0
    history: list = field(default_factory=list)  # the rows of log.csv


LOG_COLUMNS = ("step", "seconds", "train_loss", "val_loss", "lr")


def write_csv(path, columns, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomic(path, text.getvalue().encode())


class Console:
    """A line for every evaluation and, on a terminal, one that moves in between."""

    def __init__(self, config, model, plan, vocab_size):
        self.max_steps, self.live, self.drawn = config.max_steps, sys.stdout.isatty(), 0.0
        self.chars = config.batch_size * config.block_size  # per step
        self.flops = self.chars * flops_per_char(model, config)
        self.peak = measure_peak(plan)

    def head(self, step):
        return f"step {step}/{self.max_steps}" if self.max_steps >= 0 else f"step {step}"

    def left(self, step, pace):
        return f"{clock((self.max_steps - step) * pace)} left" if self.max_steps > step else ""

    def tick(self, step, loss, pace):
        if self.live and time.perf_counter() - self.drawn > 0.2:
            self.drawn = time.perf_counter()
            line = f"{self.head(step)}  loss {loss:.4f}  {1000 * pace:.1f} ms/step  {self.left(step, pace)}"
            print(f"\r\033[K{line}", end="", flush=True)

    def row(self, step, train_loss, val_loss, improved, lr, pace):
        clear = "\r\033[K" if self.live else ""
        speed = f"{1000 * pace:6.1f} ms/step {self.chars / pace:9,.0f} chars/s {self.flops / pace / 1e9:7,.0f} GFLOP/s"
        share = f"({100 * self.flops / pace / self.peak:.0f} % of peak)"
        print(
            f"{clear}{self.head(step):<15} train {train_loss:.4f}  val {val_loss:.4f}{'*' if improved else ' '} "
            f"lr {lr:.1e} {speed + ' ' + share if step else ''}  {self.left(step, pace) if step else ''}".rstrip(),
            flush=True,
        )


def flops_per_char(model, config):
    """Operations to train on one character: 6 per weight of a matrix, and the attention's two products."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6 * weights + 6 * len(getattr(model, "blocks", ())) * config.n_embd * config.block_size


def check_finite(loss, step, progress, work_dir):
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} by step {step}: {work_dir / 'model.pt'} keeps the model of step {progress.best_step}; "
            "try a lower --learning-rate, or --grad-clip 1"
        )


def bytes_needed(config, vocab_size, pieces=1):
    """About the memory that training takes: weights with their gradient and momenta, and what backward keeps."""
    C, tokens = config.n_embd, config.batch_size * config.block_size / pieces
    weights = 12 * config.n_layer * C * C + (config.lookback + 1) * vocab_size * C
    kept = config.n_layer * 26 * C + 4 * vocab_size  # numbers per character
    return 4 * (4 * weights + tokens * kept)


def pieces_needed(config, vocab_size, free, size=1):
    """Into how many pieces to cut each process's share of the batch so that it fits in `free` GB."""
    if config.grad_accum:
        return config.grad_accum
    share = config.batch_size // size
    fits = (
        n for n in range(1, share + 1) if share % n == 0 and bytes_needed(config, vocab_size, n * size) < 0.9e9 * free
    )
    return next(fits, share)


def try_compile(model, plan, batch):
    """The compiled model, or the model itself where that fails: its errors come only when it is first called."""
    fast = torch.compile(model)
    with torch.random.fork_rng([plan.device] if plan.device.type == "cuda" else []):
        try:
            with plan.autocast():
                loss = cross_entropy(fast(batch[0]), batch[1])
            loss.backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # whatever a compiler may raise
            why = (str(e).strip() or type(e).__name__).splitlines()[0][:100]
            print(f"compile: goes on without, slower ({why})", flush=True)
            fast = model
    model.zero_grad(set_to_none=True)
    return fast


def train(model, text, config, plan, world, work_dir, checkpoint=None):
    """Train until --max-steps, --patience or a signal, keeping model.pt (best on val) and last.pt. Return a signal."""
    generator = torch.Generator().manual_seed(config.seed)  # draws the batches and nothing else
    optimizers = make_optimizers(model, config)
    scaler = torch.amp.GradScaler("cuda", enabled=plan.dtype == "float16")  # keeps small gradients from vanishing
    progress = restore(checkpoint, optimizers, scaler, generator) if checkpoint else Progress()
    horizon = config.decay_steps or max(config.max_steps, PRESETS[config.preset].defaults["max_steps"])
    interval = config.eval_interval or max(1, (config.max_steps if config.max_steps > 0 else horizon) // 10)
    pieces = pieces_needed(config, len(text.vocab), plan.free, world.size)
    share = config.batch_size // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)  # of the batch that all processes draw alike

    def draw():
        starts = text.draw("train", config.batch_size, config.block_size, generator)[mine]
        return [text.batch(part, config.block_size, plan.device) for part in starts.chunk(pieces)]

    console = Console(config, model, plan, len(text.vocab)) if world.rank == 0 else None
    net = model
    if plan.compile:
        before = generator.get_state()
        net = try_compile(model, plan, draw()[0])
        generator.set_state(before)
    if world.size > 1:
        net = nn.parallel.DistributedDataParallel(net)

    recent, since = [], time.perf_counter()  # losses and time since the last evaluation
    model.train()
    with StopOnSignal() as stop:
        while True:
            step, lr = progress.step, learning_rate(progress.step, config, horizon)
            signum = int(world.max(stop.signum)) if world.size == 1 or step % 10 == 0 else 0  # all stop, or none
            waited = sum(row[0] > progress.best_step for row in progress.history)
            over = signum or 0 <= config.max_steps <= step or 0 < config.patience <= waited

            # once in a while: evaluate, save, report
            if (step % interval == 0 or over) and not (progress.history and progress.history[-1][0] == step):
                spent = time.perf_counter() - since
                progress.seconds += spent
                train_loss = world.sum(torch.stack(recent).mean().item() if recent else math.nan)[0] / world.size
                val_loss = evaluate(model, text, "val", config, plan, world)
                check_finite(val_loss, step, progress, work_dir)
                improved = val_loss < progress.best_loss
                if improved:
                    progress.best_loss, progress.best_step = val_loss, step
                progress.history.append([step, round(progress.seconds, 3), train_loss, val_loss, lr])
                if world.rank == 0:
                    state = snapshot(model, optimizers, scaler, generator, progress, config, text)
                    for name in ("model.pt", "last.pt") if improved else ("last.pt",):
                        save_checkpoint(work_dir / name, state)
                    write_csv(work_dir / "log.csv", LOG_COLUMNS, progress.history)
                    console.row(step, train_loss, val_loss, improved, lr, spent / max(1, len(recent)))
                recent, since = [], time.perf_counter()
                continue  # patience may have run out
            if over:
                return signum

            # learn
            batches = draw()
            losses = []
            for i, (x, y) in enumerate(batches, 1):
                with net.no_sync() if world.size > 1 and i < len(batches) else contextlib.nullcontext():
                    with plan.autocast():
                        loss = cross_entropy(net(x), y) / len(batches)
                    scaler.scale(loss).backward()
                losses.append(loss.detach())
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["scale"]
            if config.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            model.zero_grad(set_to_none=True)
            progress.step += 1

            recent.append(torch.stack(losses).sum())
            if progress.step % 10 == 0:  # a GPU has to wait when asked for a number, so not at every step
                check_finite(recent[-1].item(), progress.step, progress, work_dir)
                if console:
                    console.tick(progress.step, recent[-1].item(), (time.perf_counter() - since) / len(recent))


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


def snapshot(model, optimizers, scaler, generator, progress, config, text):
    """All that is needed to go on as if nothing had happened, or to write from the folder alone, as one plain dict."""
    return dict(
        program="gpt",
        config=asdict(config),
        progress=asdict(progress),
        vocab=text.vocab.chars,
        digest=text.digest,
        model=model.state_dict(),
        optimizers=[optimizer.state_dict() for optimizer in optimizers],
        scaler=scaler.state_dict(),
        batches=generator.get_state(),
        rng=torch.get_rng_state(),
        cuda_rng=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


CHECKPOINT_KEYS = (
    *("config", "progress", "vocab", "digest", "model", "optimizers"),
    *("scaler", "batches", "rng", "cuda_rng"),
)


def restore(checkpoint, optimizers, scaler, generator):
    """Undo `snapshot` for everything but the model, and return the progress."""
    for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    if checkpoint["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(checkpoint["scaler"])
    generator.set_state(checkpoint["batches"])
    torch.set_rng_state(checkpoint["rng"])
    if len(checkpoint["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    return Progress(**checkpoint["progress"])


def open_model(checkpoint):
    """Rebuild (model, vocab, config) from a checkpoint alone."""
    try:
        config = Config(**checkpoint["config"])
        vocab = Vocab(checkpoint["vocab"])
        model = build(config, len(vocab))
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise UserError(f"the checkpoint does not fit this version of gpt: {str(e).splitlines()[0]}") from None
    return model, vocab, config


def transplant(model, checkpoint, chars):
    """Copy a trained model's weights into one that knows more characters; return those that are new to it."""
    old = checkpoint["vocab"]
    places = torch.tensor([chars.index(c) for c in old])
    state = model.state_dict()
    for name, weight in checkpoint["model"].items():
        rows = torch.cat((places, torch.tensor([len(chars)]))) if "before" in name else places
        if state[name].shape == weight.shape:
            state[name].copy_(weight)
        elif name == "table.weight":
            state[name][places[:, None], places] = weight
        else:
            state[name][rows] = weight
    return "".join(c for c in chars if c not in old)


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def plot_losses(path, history, best_step, vocab_size, title):
    """Draw the rows of log.csv: the train and dev loss over the steps, and where the best model stands."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, _, train_loss, dev_loss, _ = zip(*history, strict=True)
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    ax.plot(steps, train_loss, color="#8fb8de", label="train (mean since the last evaluation)")
    ax.plot(steps, dev_loss, color="#c8553d", label="val")
    best = min(dev_loss)
    ax.plot(best_step, best, "o", color="#c8553d", markersize=5)
    ax.annotate(f"best {best:.4f}", (best_step, best), (0, 9), textcoords="offset points", ha="right", color="#c8553d")
    uniform = math.log(vocab_size)
    ax.axhline(uniform, color="0.6", linewidth=0.8, linestyle=":")
    ax.text(0, uniform, f" ln {vocab_size} = {uniform:.2f}: knows nothing", color="0.45", va="bottom", fontsize=8)
    ax.set(
        title=title,
        xlabel="step",
        ylabel="nats per character",
        ylim=(min(*dev_loss, *train_loss[1:], best) - 0.05, uniform + 0.15),
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def attention_maps(model, idx):
    """The attention weights of every layer, (n_layer, H, T, T), while reading idx (T,)."""
    heads = [block.attention for block in model.blocks]
    for head in heads:
        head.weights = []
    try:
        with inference(model):
            model(idx[None])
        return torch.stack([head.weights[0][0] for head in heads]).float().cpu()
    finally:
        for head in heads:
            head.weights = None


def plot_attention(path, maps, text):
    """Draw maps (n_layer, H, T, T): in each row, where the character on the left looks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_layer, n_head, T, _ = maps.shape
    size = max(1.8, min(4.0, 0.16 * T))
    figure, axes = plt.subplots(
        n_layer, n_head, figsize=(size * n_head + 0.6, size * n_layer + 0.8), squeeze=False, layout="constrained"
    )
    labels = [{"\n": "¶", " ": "␣"}.get(c, c) for c in text]
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            ax.imshow(maps[i, j].sqrt().numpy(), cmap="magma", vmin=0, vmax=1)  # the root shows the faint ones
            ax.set_xticks(range(T) if T <= 40 else [], labels if T <= 40 else [], fontsize=6, family="monospace")
            ax.set_yticks(range(T) if T <= 40 else [], labels if T <= 40 else [], fontsize=6, family="monospace")
            ax.tick_params(length=0)
            ax.set_title(f"layer {i + 1}, head {j + 1}", fontsize=8)
    figure.suptitle("where each character (row) looks (column)", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def preset_table():
    """The presets and their defaults, for --help."""
    lines = ["presets for --preset, and what they set:"]
    for name, entry in PRESETS.items():
        flags = " ".join(f"--{k.replace('_', '-')} {v}".replace(" True", "") for k, v in entry.defaults.items())
        lines += [
            f"  {name:<8} {entry.about}",
            *textwrap.wrap(flags, 105, initial_indent=" " * 11, subsequent_indent=" " * 11),
        ]
    return "\n".join(lines)


def refuse_changes(given, trained, reason, free=()):
    """Raise UserError where a flag contradicts what a model already is."""
    for f in fields(Config):
        if f.metadata["fixed"] and f.name not in free and given.get(f.name, old := getattr(trained, f.name)) != old:
            flag = "--" + f.name.replace("_", "-")
            raise UserError(f"{flag} {given[f.name]}: {reason} was trained with {old}; leave {flag} out")


def lasting(config, resumed):
    """The settings of a trained model; what was for its run only is back at its default, unless that run goes on."""
    kept = ("data", "model", "training", *["run"] * resumed)
    return replace(config, **{f.name: f.default for f in fields(config) if f.metadata["group"] not in kept})


def configure(given, plan, trained=None):
    """Settings given explicitly win over those of a trained model, or else of the preset's defaults."""
    if trained and not given.get("init_from"):
        free = () if "resume" in given else ("seed",)  # other samples from the same model are welcome
        refuse_changes(given, trained, "the model in this folder", free)
        return replace(trained, **given)
    preset = given.get("preset", "auto")
    if trained:  # another text: the shape stays, all else is new
        refuse_changes(given, trained, given["init_from"], ("seed", "optimizer"))
        shape = {f.name: getattr(trained, f.name) for f in fields(Config) if f.metadata["group"] == "model"}
        given, preset = {**shape, **given}, trained.preset
    elif preset == "auto":
        preset = "mini" if plan.device.type == "cpu" else "baby"
    if preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown: choose among {', '.join(PRESETS)}")
    defaults = PRESETS[preset].defaults
    if given.get("optimizer") == "adamw" and defaults.get("optimizer") != "adamw":
        defaults = {**defaults, **ADAMW}
    return replace(Config(), **{**defaults, **given, "preset": preset})


def check_text(head, config):
    """Raise UserError where the text is too short for the context."""
    n, n1 = head["count"], train_size(head["count"])
    if n1 <= config.block_size or n - n1 < 2:
        need = max(20, math.ceil((config.block_size + 1) / 0.9) + 1)
        raise UserError(
            f"{config.input_file} has {n:,} characters: --block-size {config.block_size} needs {need:,}, or lower it"
        )


def check_shares(config, size):
    """Raise UserError where the batch cannot be divided evenly among processes and pieces."""
    pieces = max(1, config.grad_accum)
    if config.batch_size % (size * pieces):
        raise UserError(
            f"--batch-size {config.batch_size} does not divide evenly among {size} process{'es'[: 2 * (size > 1)]}"
            f" times --grad-accum {pieces}: take a multiple of {size * pieces}"
        )


def build(config, vocab_size):
    torch.manual_seed(config.seed)
    return PRESETS[config.preset].model(config, vocab_size)


def use(model, vocab, config, plan, work_dir, limit):
    """Score a file, draw the attention or write, with a trained model."""
    if config.eval:
        tokens = vocab.encode(read_text(config.eval))
        if len(tokens) < 2:
            raise UserError(f"{config.eval} is too short to be scored: the first character has nothing before it")
        text = Text(lambda: tokens, vocab, {"all": (0, len(tokens))})
        loss = evaluate(model, text, "all", replace(config, eval_chars=limit), plan, World())
        print(f"eval: {loss:.4f} nats/char over {len(tokens) - 1} characters")
    elif config.attention:
        if not hasattr(model, "blocks"):
            raise UserError(f"--attention: a {config.preset} has none")
        text = config.attention[-config.block_size :]
        maps = attention_maps(model, torch.from_numpy(vocab.encode(text)).to(plan.device))
        plot_attention(work_dir / "attention.png", maps, text)
        print(f"attention: {work_dir / 'attention.png'}")
    else:
        write(model, vocab, config)


def prepare_text(config, vocab, digest, world, work_dir):
    """Check text and settings against each other, then make the work folder and encode what is not yet. Return a Text.

    vocab is that of a model that goes on, and digest the text's that it began with, where there are.
    """
    tokens_path = work_dir / "tokens.bin"
    # first the process that writes, then one on every other machine, then those that only read
    turn = min(world.rank, 1) + min(world.local_rank, 1)
    for now in range(3 if world.size > 1 else 1):
        if now == turn:
            head = survey(config.input_file, tokens_path, vocab.chars if vocab else "")
            if digest and head["source"]["sha256"] != digest:
                raise UserError(f"{config.input_file} has changed: --resume needs the text that the run began with")
            check_text(head, config)
            read_prompt(config.prompt, Vocab(head["chars"]))
            make_work_dir(work_dir)
            if read_header(tokens_path)[0] != head:
                encode_file(config.input_file, head, tokens_path)
        world.sum(0)
    return open_text(tokens_path)


def run(argv, world):
    """Do what the command line asks for and return the exit status."""
    given = parse_args(argv, "gpt", "Train a GPT on any text, then let it write.", preset_table(), Config)
    modes = [mode for mode in ("resume", "sample_only", "eval", "attention", "init_from") if given.get(mode)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} do not go together".replace("_", "-"))
    check_ranges(given, Config)
    work_dir = Path(given.get("work_dir", Config.work_dir))
    mode, checkpoint, model, vocab, trained = modes[0] if modes else "", None, None, None, None
    if mode:
        name = "last.pt" if mode == "resume" else "model.pt"
        checkpoint = load_checkpoint(given.get("init_from") or work_dir / name, "gpt")
        model, vocab, trained = open_model(checkpoint)
        trained = lasting(trained, mode == "resume")
    plan = look_around(replace(trained if mode == "resume" else Config(), **given), world)
    config = configure(given, plan, trained)
    if mode in ("sample_only", "eval", "attention"):
        use(model.to(plan.device), vocab, config, plan, work_dir, given.get("eval_chars", 0))
        return 0

    # a new model, a model that goes on, or one that learns another text
    check_shares(config, world.size)
    if not mode:
        build(config, 2)  # an impossible shape is told before the text is read
    world.open(plan.device)
    text = prepare_text(config, vocab, checkpoint["digest"] if mode == "resume" else "", world, work_dir)
    new = ""
    if mode != "resume":
        model = build(config, len(text.vocab))
        new = transplant(model, checkpoint, text.vocab.chars) if checkpoint else ""
    model.to(plan.device)
    torch.manual_seed(config.seed + world.rank)  # dropout falls differently on every share of the batch
    if world.rank == 0:
        introduce(model, text, config, plan, world, new)
    signum = train(model, text, config, plan, world, work_dir, checkpoint if mode == "resume" else None)

    world.sum(0)  # until everything is written
    model.load_state_dict(load_checkpoint(work_dir / "model.pt", "gpt")["model"])
    losses = [evaluate(model, text, part, config, plan, world) for part in ("train", "val")]
    if world.rank == 0:
        progress = load_checkpoint(work_dir / "last.pt", "gpt")["progress"]
        title = f"{config.preset} on {Path(config.input_file).name}"
        plot_losses(work_dir / "loss.png", progress["history"], progress["best_step"], len(text.vocab), title)
        print("final: train {:.4f} val {:.4f} nats/char".format(*losses), f"(best at step {progress['best_step']})")
        write(model, text.vocab, config)
    world.sum(0)  # all leave together
    return 128 + signum if signum else 0


def introduce(model, text, config, plan, world, new):
    """Say what is about to happen, and why so."""
    sizes = ", ".join(f"{high - low:,} {name}" for name, (low, high) in text.parts.items())
    print(f"data: {config.input_file}: {sizes} characters, {len(text.vocab)} distinct")
    if config.init_from:
        print(f"init: from {config.init_from}" + (f"; new characters, to be learned: {new!r}" if new else ""))
    processes = f", {world.size} processes" if world.size > 1 else ""
    print(f"device: {plan.device}, {plan.dtype}{', compiled' if plan.compile else ''}{processes} ({plan.why})")
    size = sum(p.numel() for p in model.parameters())
    batch = f"{config.batch_size} contexts of {config.block_size} a step"
    print(f"model: {config.preset}, {size:,} parameters, {batch}, {config.optimizer}", flush=True)


def main(argv=None):
    """The command line's entry: returns the exit status, 2 for a mistake of the user, told in one line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a console that lacks a character shows '?' instead
    world = World()
    try:
        return run(sys.argv[1:] if argv is None else argv, world)
    except UserError as e:
        print("gpt:", *str(e).splitlines(), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(e):
            raise
        hint = "cut the batch with --grad-accum 4, or lower --batch-size, --block-size, --n-embd or --n-layer"
        print(f"gpt: out of memory: {hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # whoever was reading, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        world.close()


if __name__ == "__main__":
    sys.exit(main())
