"""What makemore promises: the lecture's data, honest losses, exact resumption, and one line for every mistake."""

import csv
import io
import itertools
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import PIPES, fitting, invent, same
from hypothesis import given
from hypothesis import strategies as st

import makemore
from makemore import MODELS, BatchNorm1d, Config, Corpus, Lines, Run, Vocab, Windows

pytestmark = pytest.mark.usefixtures("haste")
SCRIPT = Path(makemore.__file__)
LECTURE = Path(__file__).parents[2] / "shared/data/names.txt"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FINAL = r"final: train (\d+\.\d{4}) dev (\d+\.\d{4}) test (\d+\.\d{4}) nats/char \(best at step (\d+)\)"
SMALL = dict(n_layer=2, n_head=2, n_embd=8, n_embd2=12)
RUN = dict(**SMALL, batch_size=16, dropout=0.2, eval_interval=10, warmup_steps=5)

needs_lecture = pytest.mark.skipif(not LECTURE.exists(), reason="the lecture's names are not on this machine")
every_type = pytest.mark.parametrize("kind", MODELS)
networks = pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "ngram"])  # learn step by step
window_models = [kind for kind, entry in MODELS.items() if entry.model.windowed]


# ----------------------------------------------------------------------------------------------------------------------
# Help for the tests


def make(kind, lines, **given):
    """A new run for these lines, however few: all of them are there to train on."""
    corpus = Corpus(Vocab("".join(sorted(set("".join(lines))))), max(map(len, lines)), "", train=lines)
    config = makemore.configure(dict(type=kind, device="cpu", **fitting(kind, **given)))
    config.block_size = makemore.MODELS[kind].model.context(config, corpus.longest)
    model = makemore.build(config, len(corpus.vocab))
    run = Run(config, corpus, model)
    if kind == "ngram":
        model.fit(run.examples("train"), run.examples("train"))
    return run


def shake(model):
    """Weights far from a quiet start, so that whatever can differ does differ."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)


def mean_loss(model, data, tokens=32_768):
    return makemore.line_losses(model, data, tokens).sum().item() / data.count


def line_logits(run, line):
    """Logits (n + 1, V) for the characters of one line and its end, by the road that training takes."""
    data = run.examples([line])
    with makemore.inference(run.model):
        return run.model(data.batch(torch.arange(len(data)))[0]).view(-1, len(run.vocab))


def contents(folder):
    """Everything below a folder: path to bytes, None for a folder."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def load(path):
    return torch.load(path, weights_only=True)


def same_state(a, b):
    """Two last.pt hold the same weights, optimizer and step."""
    a, b = load(a), load(b)
    parts = ("model", "optimizer", "vocab")
    return a["progress"]["step"] == b["progress"]["step"] and all(same(a[part], b[part]) for part in parts)


def flags(**given):
    return [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def lines_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "lines.txt"
    path.write_text("\n".join(invent(80)) + "\n")
    return path


@pytest.fixture(scope="session")
def first_half(lines_file, tmp_path_factory):
    """kind -> the folder of a run of 20 steps, trained once and never to be written to."""
    folders = {}

    def get(kind):
        if kind not in folders:
            folder = tmp_path_factory.mktemp("trained") / kind
            argv = ["-i", str(lines_file), "-o", str(folder), "--type", kind]
            with redirect_stdout(io.StringIO()) as out:
                assert makemore.main(argv + flags(**fitting(kind, **RUN, max_steps=20))) == 0
            folders[kind] = folder, out.getvalue()
        return folders[kind]

    return get


@pytest.fixture
def trained(first_half, tmp_path):
    """kind -> a copy of that folder that may be changed."""
    return lambda kind: shutil.copytree(first_half(kind)[0], tmp_path / "trained" / kind)


# ----------------------------------------------------------------------------------------------------------------------
# Data


def corpus_of(path, **given):
    return makemore.load_corpus(Config(input_file=str(path), **given))


@needs_lecture
def test_standard_split_is_the_lectures():
    words = LECTURE.read_text().splitlines()
    random.seed(42)
    random.shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    corpus = corpus_of(LECTURE)
    assert (corpus.train, corpus.dev, corpus.test) == (words[:n1], words[n1:n2], words[n2:])
    assert corpus.train[:4] == ["yuheng", "diondre", "xavien", "jori"]  # as the lectures print them
    assert corpus.vocab.chars == LETTERS and len(corpus.vocab) == 27


@needs_lecture
def test_standard_split_has_the_published_number_of_predictions():
    corpus = corpus_of(LECTURE)
    for lines, count in ((corpus.train, 182_625), (corpus.dev, 22_655), (corpus.test, 22_866)):
        assert len(Windows(lines, corpus.vocab)) == Windows(lines, corpus.vocab).count == count
        data = Lines(lines, corpus.vocab)
        assert data.count == count
        assert sum(int((data.batch(index)[1] >= 0).sum()) for index in data.in_order(1000)) == count


class Counts(nn.Module):
    """Counts of what followed each context, smoothed by alpha: published figures need no training."""

    windowed = True

    def __init__(self, data, size, vocab_size, alpha=0.2):
        super().__init__()
        self.place = vocab_size ** torch.arange(size)
        x, y = data.batch(torch.arange(len(data)))
        table = torch.zeros(vocab_size**size, vocab_size).index_put(
            ((x * self.place).sum(1), y), torch.ones(len(y)), accumulate=True
        )
        self.logits = ((table + alpha) / (table + alpha).sum(1, keepdim=True)).log()

    def forward(self, idx):
        return self.logits[(idx * self.place).sum(1)]


@needs_lecture
@pytest.mark.parametrize("size, published", [(1, (2.4542, 2.4530, 2.4579)), (2, (2.1914, 2.2223, 2.2235))])
def test_data_and_evaluation_give_the_published_losses_of_counts(size, published):
    corpus = corpus_of(LECTURE)
    model = Counts(Windows(corpus.train, corpus.vocab, "cpu", size), size, len(corpus.vocab))
    run = Run(Config(block_size=size, device="cpu"), corpus, model)
    assert [round(run.evaluate(part), 4) for part in makemore.PARTS] == list(published)


@pytest.mark.parametrize("n", range(3, 25))
def test_every_split_gets_a_line_however_few_there_are(tmp_path, n):
    (tmp_path / "f.txt").write_text("\n".join(invent(n)))
    corpus = corpus_of(tmp_path / "f.txt")
    assert sorted(corpus.train + corpus.dev + corpus.test) == invent(n)
    assert min(len(corpus.train), len(corpus.dev), len(corpus.test)) >= 1
    assert len(corpus.train) >= len(corpus.test)


def test_the_split_does_not_follow_the_seed(lines_file):
    assert corpus_of(lines_file, seed=1) == corpus_of(lines_file, seed=2)


def test_dedup_drops_repeated_lines_only_when_asked(tmp_path):
    (tmp_path / "f.txt").write_text("a\nb\na\nc\nb\nd\n")
    for dedup, expected in ((False, "aabbcd"), (True, "abcd")):
        corpus = corpus_of(tmp_path / "f.txt", dedup=dedup)
        assert sorted([*corpus.train, *corpus.dev, *corpus.test]) == list(expected)


@pytest.mark.parametrize(
    "raw",
    [
        b"ana\nbo\ncy",
        b"ana\nbo\ncy\n",
        b"ana\r\nbo\r\ncy\r\n",
        b"\xef\xbb\xbfana\nbo\ncy\n",
        b"\n ana \n\n\tbo\ncy \n\n",
        "ana\r\nbo\r\ncy\r\n".encode("utf-16"),
    ],
    ids=["bare", "unix", "windows", "BOM", "white space", "PowerShell's >"],
)
def test_line_ends_byte_order_marks_and_blanks_do_not_reach_the_vocabulary(tmp_path, raw):
    (tmp_path / "f.txt").write_bytes(raw)
    assert makemore.read_lines(tmp_path / "f.txt") == ["ana", "bo", "cy"]
    assert corpus_of(tmp_path / "f.txt").vocab.chars == "abcnoy"


def test_unicode_survives(tmp_path):
    lines = ["zoë", "Борис", "美咲", "🦊ren", "mary ann"]
    (tmp_path / "f.txt").write_text("\n".join(lines), encoding="utf-8")
    corpus = corpus_of(tmp_path / "f.txt")
    assert sorted(corpus.train + corpus.dev + corpus.test) == sorted(lines)
    for line in lines:
        assert corpus.vocab.decode(corpus.vocab.encode(line).tolist()) == line


@given(st.text(min_size=1))
def test_vocabulary_takes_any_character_there_and_back(text):
    vocab = Vocab("".join(sorted(set(text))))
    tokens = vocab.encode(text).tolist()
    assert vocab.decode(tokens) == text
    assert min(tokens) >= 1 and max(tokens) < len(vocab)  # 0 is kept for start and end


def test_unknown_characters_are_named_and_known_ones_are_not():
    with pytest.raises(makemore.UserError, match=r"unknown.*'!' 'x'.*knows 'abc'"):
        Vocab("abc").encode("abxc!")


some_lines = st.lists(st.text("abcd", min_size=1, max_size=7), min_size=1, max_size=8)


@given(some_lines, st.integers(1, 9))
def test_windows_are_the_lectures_contexts(lines, block_size):
    vocab, expected = Vocab("abcd"), []
    for line in lines:
        context = [0] * block_size
        for token in [1 + "abcd".index(ch) for ch in line] + [0]:
            expected.append((context, token))
            context = [*context[1:], token]
    data = Windows(lines, vocab, "cpu", block_size)
    x, y = data.batch(torch.arange(len(data)))
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == expected
    assert x.dtype == y.dtype == torch.int64


@given(some_lines, st.data())
def test_lines_are_inputs_and_targets_no_wider_than_the_longest_needs(lines, draw):
    data = Lines(lines, Vocab("abcd"))
    assert len(data) == len(lines)
    index = draw.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=5))
    width = max(len(lines[i]) for i in index) + 1
    x, y = data.batch(torch.tensor(index))
    for i, inputs, targets in zip(index, x.tolist(), y.tolist(), strict=True):
        tokens = [1 + "abcd".index(ch) for ch in lines[i]]
        padding = width - len(tokens) - 1
        assert inputs == [0, *tokens] + [0] * padding
        assert targets == [*tokens, 0] + [-1] * padding


@pytest.mark.parametrize("kind_of_data", [Lines, Windows])
def test_in_order_visits_every_example_once(kind_of_data):
    data = kind_of_data(invent(50), Vocab(LETTERS))
    assert sorted(torch.cat(data.in_order(40)).tolist()) == list(range(len(data)))
    assert 20 < max(data.batch(index)[0].numel() for index in data.in_order(40)) <= 40


def test_evaluation_pads_little():
    """Lines of one length are evaluated together: most batches hold no padding at all."""
    data = Lines(["a"] * 20 + ["abcdefgh"] * 20 + ["a", "abcdefgh"] * 10, Vocab("abcdefgh"))
    assert sum(bool((data.batch(index)[1] < 0).any()) for index in data.in_order(90)) == 0


# ----------------------------------------------------------------------------------------------------------------------
# Layers against torch's own


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    ours, theirs, x = makemore.Linear(5, 3, bias=bias), nn.Linear(5, 3, bias=bias), torch.randn(2, 4, 5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))


def test_linear_keeps_the_standard_deviation():
    y = makemore.Linear(400, 400, gain=2.0)(torch.randn(400, 400))
    assert y.std().item() == pytest.approx(2.0, rel=0.05)


def test_embedding():
    ours, theirs, idx = makemore.Embedding(7, 3), nn.Embedding(7, 3), torch.randint(7, (2, 4))
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(idx), theirs(idx))


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (2, 5), (1, 3, 5)], ids=str)
def test_batchnorm(shape):
    """Outputs, gradients and running statistics, training and then evaluating, in 2-D and 3-D."""
    ours, theirs = BatchNorm1d(5), nn.BatchNorm1d(5)
    gamma, beta = torch.randn(2, 5)
    for layer, names in ((ours, ("gamma", "beta")), (theirs, ("weight", "bias"))):
        for name, value in zip(names, (gamma, beta), strict=True):
            getattr(layer, name).data.copy_(value)
    to_torch = (lambda x: x.transpose(1, 2)) if len(shape) == 3 else (lambda x: x)  # torch has channels second
    for _ in range(3):
        x = 3 + 2 * torch.randn(shape)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a), to_torch(theirs(to_torch(b)))
        weight = torch.randn(shape)
        (y * weight).sum().backward()
        (z * weight).sum().backward()
        torch.testing.assert_close(y, z, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), to_torch(theirs(to_torch(x))), atol=1e-5, rtol=1e-4)


def test_batchnorm_on_a_batch_of_one_is_finite():
    layer = BatchNorm1d(4)
    y = layer(torch.randn(1, 4))
    y.sum().backward()
    everything = [y, layer.running_mean, layer.running_var, layer.gamma.grad, layer.beta.grad, layer.eval()(y)]
    assert all(t.isfinite().all() for t in everything)


def test_batchnorm_evaluation_ignores_the_rest_of_the_batch():
    layer, x = BatchNorm1d(4), torch.randn(8, 4)
    layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_flatten_consecutive_keeps_neighbours_together():
    x = torch.arange(2 * 4 * 3).view(2, 4, 3)
    pairs = makemore.FlattenConsecutive(2)(x)
    assert pairs.shape == (2, 2, 6) and pairs[0, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert makemore.FlattenConsecutive(2)(pairs).tolist() == x.view(2, 12).tolist()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_recurrent_cells(name):
    ours, theirs = getattr(makemore, name + "Cell")(5, 6), getattr(nn, name)(5, 6, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    for side, suffix in ((ours.input, "ih_l0"), (ours.hidden, "hh_l0")):
        getattr(theirs, f"weight_{suffix}").data.copy_(side.weight)
        getattr(theirs, f"bias_{suffix}").data.copy_(side.bias)
    x = torch.randn(3, 7, 5)
    start = [s.expand(1, 3, 6).contiguous() for s in ours.start]
    torch.testing.assert_close(ours(x), theirs(x, tuple(start) if name == "LSTM" else start[0])[0])


def test_attention_is_a_softmax_over_the_past():
    config = SimpleNamespace(n_embd=8, n_head=2, n_layer=1)
    layer, x = makemore.CausalSelfAttention(config), torch.randn(3, 5, 8)
    packing = makemore.Packing(torch.ones(3, 5))  # nothing is padding
    q, k, v = layer.qkv(x).split(8, -1)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / 4**0.5
        weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
        heads.append(weights @ v[..., h])
    y = packing.unpack(layer(packing.pack(x), packing))
    torch.testing.assert_close(y, layer.proj(torch.cat(heads, -1)))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout(p):
    """The share that falls silent, the mean that stays, and no trace of it in evaluation."""
    layer, x = makemore.Dropout(p), torch.ones(300, 77, requires_grad=True)
    y = layer(x)
    silent = (y == 0).float().mean().item()
    assert silent == pytest.approx(p, abs=0.01) and y.mean().item() == pytest.approx(1, abs=0.05)
    assert len(y.unique()) == (2 if p else 1)
    y.sum().backward()
    assert torch.equal(x.grad, y)  # what was silent gets no gradient, either
    assert not p or not torch.equal(layer(x), layer(x))
    assert layer.eval()(x) is x


# ----------------------------------------------------------------------------------------------------------------------
# Every model of the registry


@every_type
def test_shape(kind):
    lines = invent(20)
    run = make(kind, lines, **SMALL)
    x, y = run.examples(lines).batch(torch.arange(6))
    assert run.model(x).shape == (*y.shape, len(run.vocab))


@networks
@pytest.mark.parametrize(
    "sizes", [{}, SMALL, dict(SMALL, n_layer=6, n_embd=32, n_embd2=256)], ids=["own", "small", "deep"]
)
def test_an_untrained_model_knows_nothing(kind, sizes):
    lines = invent(300)
    for seed in (1, 2):
        run = make(kind, lines, seed=seed, **sizes)
        x, y = run.examples(lines).batch(torch.arange(64))
        for loss in (run.evaluate("train"), makemore.cross_entropy(run.model.train()(x), y).item()):
            assert loss == pytest.approx(math.log(len(run.vocab)), rel=0.02)


@every_type
def test_a_later_character_never_changes_an_earlier_logit(kind):
    line = "abcdefgh"
    run = make(kind, [line], **SMALL)
    shake(run.model)
    before = line_logits(run, line)
    for t in range(len(line)):
        after = line_logits(run, line[:t] + "a" * (t != 0) + "h" * (t == 0) + line[t + 1 :])
        torch.testing.assert_close(after[: t + 1], before[: t + 1], atol=0, rtol=0)  # row t predicts character t
        assert not torch.allclose(after[t + 1], before[t + 1])


@pytest.mark.parametrize("kind", window_models)
def test_a_window_model_sees_its_context_all_of_it_and_nothing_else(kind):
    line = "abcdefghijklmnop"
    run = make(kind, [line], **SMALL)
    shake(run.model)
    before, changed = line_logits(run, line), line_logits(run, "b" + line[1:])
    seen = [i for i in range(len(before)) if not torch.allclose(before[i], changed[i])]
    assert seen == list(range(1, run.config.block_size + 1))
    x = torch.randint(len(run.vocab), (9, run.config.block_size))
    with makemore.inference(run.model):
        torch.testing.assert_close(run.model(x)[3:4], run.model(x[3:4]))


@pytest.mark.parametrize("optimizer, decay", [("adamw", 0.1), ("sgd", 0.001)])
def test_a_step_shrinks_matrices_by_about_as_much_with_either_optimizer(optimizer, decay):
    """Both multiply the decay by the rate, and SGD's rates are a hundred times AdamW's; the rest never decays."""
    run = make("mlp", ["abcd"], optimizer=optimizer, **SMALL)
    groups = makemore.make_optimizer(run.model, run.config).param_groups
    assert {(p.ndim >= 2, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, decay),
        (False, 0.0),
    }


def test_lookback_sums_an_embedding_for_each_of_the_last_characters():
    """The first table is that of the character itself, the second that of the one before. Lines begin after zeros."""
    model, seen = make("transformer", ["abcd"], n_layer=1, n_head=1, n_embd=4, lookback=3).model, []
    for table in model.tokens:
        table.register_forward_hook(lambda table, inputs, output: seen.append(inputs[0].tolist()))
    model(torch.tensor([[0, 1, 2, 3]]))
    assert seen == [[[0, 1, 2, 3]], [[0, 0, 1, 2]], [[0, 0, 0, 1]]]


@networks
def test_overfits_one_batch_down_to_its_entropy_and_no_further(kind):
    """Nothing that sees only what a model may see predicts better than the frequencies after each context."""
    lines = ["olivia", "otto", "liam", "mia", "zoe"]
    run = make(kind, lines, n_layer=3, n_head=2, n_embd=24, n_embd2=32, dropout=0.0)
    model, size, follows = run.model, run.config.block_size, {}
    for line in lines:
        for i, ch in enumerate(line + "."):
            seen = ("." * size + line[:i])[-size:] if model.windowed else line[:i]
            follows.setdefault(seen, Counter())[ch] += 1
    total = sum(sum(c.values()) for c in follows.values())
    entropy = -sum(n * math.log(n / sum(c.values())) for c in follows.values() for n in c.values()) / total

    data = run.examples(lines)
    x, y = data.batch(torch.arange(len(data)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 if kind == "bigram" else 0.02)
    for _ in range(150):
        loss = makemore.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert entropy - 1e-4 < loss.item() < entropy + 0.03


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation


@every_type
def test_evaluation_is_exact(kind):
    """As if every prediction of every line were made alone, from what stands before it."""
    lines = invent(25)
    run = make(kind, lines, **SMALL, dropout=0.5)
    model, size, scores = run.model, run.config.block_size, []
    shake(model)
    model.eval()
    for line in lines:
        tokens, nats = [*run.vocab.encode(line).tolist(), 0], 0.0
        for i, token in enumerate(tokens):
            if model.windowed:
                logits = model(torch.tensor([([0] * size + tokens[:i])[-size:]]))[0]
            else:
                logits = model(torch.tensor([[0, *tokens[:i]]]))[0, -1]
            nats -= logits.log_softmax(-1)[token].item()
        scores.append(nats)
    model.train()
    data, count = run.examples(lines), sum(len(line) + 1 for line in lines)
    assert data.count == count
    for tokens in (1, 7, 2048):
        assert mean_loss(model, data, tokens) == pytest.approx(sum(scores) / count, rel=1e-5)
    assert run.evaluate("train") == pytest.approx(sum(scores) / count, rel=1e-5)
    assert run.score(lines) == pytest.approx(scores, rel=1e-4)


@every_type
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_and_sampling_touch_nothing(kind, training):
    lines = invent(20)
    run = make(kind, lines, **SMALL, dropout=0.5)
    model = run.model.train(training)
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    rngs = torch.get_rng_state(), random.getstate()
    for look in (lambda: run.evaluate("train"), lambda: run.score(lines), run.sample, run.probabilities):
        assert look() == look()
    assert set(modes) == {(False, False)}
    assert model.training is training
    assert same(weights, dict(model.state_dict()))
    assert torch.equal(rngs[0], torch.get_rng_state()) and rngs[1] == random.getstate()


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


class Oracle(nn.Module):
    """Always the same distribution; token 0 ends the line."""

    windowed = False

    def __init__(self, *probs):
        super().__init__()
        self.logits = torch.tensor(probs).log()

    def forward(self, idx):
        return self.logits.expand(*idx.shape, -1)


def draw(model, vocab, limit=6, seed=1, **settings):
    return Run(Config(seed=seed, device="cpu", **settings), Corpus(vocab, limit, ""), model).sample()


def test_top_k_keeps_the_k_likeliest():
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    keep = lambda k: makemore.next_token_probs(probs.log(), top_k=k)[0].tolist()  # noqa: E731
    assert keep(1) == pytest.approx([0, 1, 0, 0])
    assert keep(2) == pytest.approx([0, 4 / 7, 3 / 7, 0])
    for k in (-1, 0, 4, 5, 1000):  # upstream crashes above the vocabulary
        assert keep(k) == pytest.approx(probs[0].tolist())


@pytest.mark.parametrize(
    "top_p, kept",
    [(0.0, [1]), (0.39, [1]), (0.41, [1, 2]), (0.71, [1, 2, 3]), (0.95, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_make_it_up(top_p, kept):
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    left = makemore.next_token_probs(probs.log(), top_p=top_p)
    assert left.nonzero()[:, 1].tolist() == kept
    torch.testing.assert_close(left[:, kept] / left.sum(), probs[:, kept] / probs[:, kept].sum())


def test_temperature():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]])
    torch.testing.assert_close(makemore.next_token_probs(logits, 2.0), (logits / 2).softmax(-1))
    greedy = F.one_hot(logits.argmax(-1), 3).float()
    for temperature in (0.0, 1e-3, 1e-20, 1e-40, 1e-300):
        torch.testing.assert_close(makemore.next_token_probs(logits, temperature), greedy)


def test_samples_follow_the_model():
    samples = draw(Oracle(0.2, 0.5, 0.3), Vocab("ab"), limit=1, num_samples=20_000)
    shares = {s: n / len(samples) for s, n in Counter(samples).items()}
    assert shares == pytest.approx({"": 0.2, "a": 0.5, "b": 0.3}, abs=0.02)


def test_samples_end_at_the_end_token_and_at_the_limit():
    samples = draw(Oracle(0.4, 0.6), Vocab("a"), limit=4, num_samples=500)
    lengths = Counter(map(len, samples))
    assert lengths.keys() == {0, 1, 2, 3, 4}
    assert lengths[0] / len(samples) == pytest.approx(0.4, abs=0.1)  # nothing grows after the end


def test_prefix_is_kept_and_needs_no_company():
    samples = draw(Oracle(0.3, 0.4, 0.3), Vocab("ab"), prefix="abb", num_samples=50)
    assert len(samples) == 50 and all(s.startswith("abb") for s in samples) and len(set(samples)) > 1
    assert draw(Oracle(0.3, 0.7), Vocab("a"), num_samples=0) == []


@every_type
def test_sampling_is_what_the_model_says_after_a_prefix(kind):
    """Greedy sampling, step by step, is the argmax of the logits that training would see for the same line."""
    lines = invent(20)
    run, longest = make(kind, lines, **SMALL), max(map(len, lines))
    shake(run.model)
    samples = run.sample(3, prefix=lines[0][:1], temperature=0.0)
    assert len(samples) == 3 and samples[0] == samples[1] == samples[2]
    logits = line_logits(run, samples[0])
    expected = [*run.vocab.encode(samples[0]).tolist(), 0][1:longest]
    assert logits.argmax(-1).tolist()[1:longest] == expected
    after = run.probabilities(samples[0][:1])  # every character's, likeliest first
    assert next(iter(after)) == samples[0][1:2] and [*after.values()] == sorted(after.values(), reverse=True)
    wanted = dict(zip(["", *run.vocab.chars], logits[1].softmax(0).tolist(), strict=True))
    assert after == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_seed_decides_the_samples():
    one, again, other = (draw(Oracle(0.1, 0.5, 0.4), Vocab("ab"), seed=s) for s in (1, 1, 2))
    assert one == again != other


def test_what_is_given_to_sample_wins_over_the_settings_of_the_run():
    settings = dict(prefix="a", temperature=0.7, top_k=2, top_p=0.9, seed=5)
    run = Run(Config(device="cpu", num_samples=50), Corpus(Vocab("ab"), 6, ""), Oracle(0.2, 0.5, 0.3))
    assert run.sample(30, **settings) == draw(run.model, run.vocab, num_samples=30, **settings)
    assert run.sample() == draw(run.model, run.vocab, num_samples=50, seed=Config.seed)  # nothing was kept


def test_samples_are_sorted_by_where_they_occur(capsys):
    corpus = Corpus(Vocab("ab"), 2, "", "", ["a", "aa"], ["b"], ["ab"])
    samples = ["b", "a", "bb", "ab", "a", "aa", "ba", "bb"]
    makemore.print_samples(SimpleNamespace(sample=lambda: samples, data=corpus))
    out = capsys.readouterr().out
    assert re.findall(r"^(\w[\w ]*) \((\d)\):((?:\n  \w+)*)", out, re.M) == [
        ("in train", "3", "\n  a\n  a\n  aa"),
        ("in dev", "1", "\n  b"),
        ("in test", "1", "\n  ab"),
        ("new", "3", "\n  bb\n  ba\n  bb"),
    ]
    assert out.splitlines()[-1] == "samples: 8, new 38 %, unique 75 %"


# ----------------------------------------------------------------------------------------------------------------------
# Training and what it leaves behind


def test_a_run_reports_and_leaves_its_files(pictures, cli, lines_file, tmp_path):
    argv = ["-i", lines_file, "-o", tmp_path / "a/b", "--type", "mlp", "--max-steps", 25, "--eval-interval", 10]
    status, out, err = cli(*argv, "--n-embd2", 8, "--num-samples", 7)
    assert (status, err) == (0, "")
    assert re.search(rf"^{FINAL}\nin train \(\d+\):\n", out, re.M)
    assert re.search(r"\nsamples: 7, new \d+ %, unique \d+ %\n$", out)
    assert "80 lines" in out or "64 train, 8 dev, 8 test lines" in out
    progress = re.findall(r"^step (\d+)/25 .*train \S+ .*dev \d+\.\d+.* [\d.]+ ms/step(.*left)?", out, re.M)
    assert [int(step) for step, _ in progress] == [10, 20, 25] and progress[1][1]
    assert re.search(r"^step 0/25 +train –  dev \d+\.\d+\*  lr \S+$", out, re.M)  # no step yet, so no pace

    folder = tmp_path / "a/b"
    assert {p.name for p in folder.iterdir()} == {".lock", "model.pt", "last.pt", "log.csv", "samples.txt", "loss.png"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = list(csv.DictReader(io.StringIO((folder / "log.csv").read_text())))
    assert list(rows[0]) == ["step", "seconds", "train_loss", "dev_loss", "lr"]
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 25]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 < float(row["train_loss"]) < 9 for row in rows[1:])
    assert all(0 < float(row["dev_loss"]) < 9 and float(row["lr"]) >= 0 for row in rows)


def test_the_best_model_on_dev_is_kept_and_reported(cli, lines_file, tmp_path):
    """A far too long run on few lines: the end is worse than the best."""
    argv = ["-i", lines_file, "-o", tmp_path, "--type", "mlp", "-l", 0.1, "--max-steps", 60, "--eval-interval", 5]
    status, out, _ = cli(*argv)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))
    best = min(rows, key=lambda row: float(row["dev_loss"]))
    assert status == 0 and 0 < int(best["step"]) < 60
    final = re.search(FINAL, out)
    assert final[4] == best["step"] and final[2] == f"{float(best['dev_loss']):.4f}"
    assert load(tmp_path / "model.pt")["progress"]["step"] == int(best["step"])

    before = (tmp_path / "model.pt").read_bytes()
    status, out, _ = cli("-o", tmp_path, "--resume", "--max-steps", 70)  # no better: the old best stays
    assert status == 0 and re.search(FINAL, out)[0] == final[0]
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_run_of_no_steps_leaves_a_model(cli, lines_file, tmp_path):
    status, out, err = cli("-i", lines_file, "-o", tmp_path, "--max-steps", 0)
    assert (status, err) == (0, "") and "(best at step 0)" in out
    assert cli("-o", tmp_path, "--sample-only")[0] == 0


@pytest.mark.parametrize("kind", ["wavenet", "transformer"])
def test_the_evaluation_interval_does_not_change_the_weights(cli, lines_file, tmp_path, kind):
    argv = ["-i", lines_file, "--type", kind]
    argv += flags(**fitting(kind, **SMALL, dropout=0.3, batch_size=8, max_steps=12))
    for interval in (1, 5):
        assert cli(*argv, "-o", tmp_path / str(interval), "--eval-interval", interval)[0] == 0
    assert same_state(tmp_path / "1/last.pt", tmp_path / "5/last.pt")


@pytest.mark.parametrize("kind", ["bow", "gru"])
def test_the_seed_decides_the_weights(cli, lines_file, tmp_path, kind):
    argv = ["-i", lines_file, "--type", kind, *flags(**fitting(kind, **SMALL, max_steps=3))]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli(*argv, "-o", tmp_path / name, "--seed", seed)[0] == 0
    assert same_state(tmp_path / "a/last.pt", tmp_path / "b/last.pt")
    assert not same_state(tmp_path / "a/last.pt", tmp_path / "c/last.pt")


def test_a_batch_of_one_trains(cli, lines_file, tmp_path):
    small = fitting("wavenet", **SMALL, batch_size=1, max_steps=5)
    status, out, err = cli("-i", lines_file, "-o", tmp_path, "--type", "wavenet", *flags(**small))
    assert (status, err) == (0, "") and re.search(FINAL, out)


@every_type
def test_resumed_is_uninterrupted_to_the_last_bit(cli, first_half, trained, lines_file, tmp_path, kind):
    """20 steps, then on to 40, is 40 steps: weights, optimizer, random states, log, best model. Dropout is on."""
    folder, whole = trained(kind), tmp_path / "whole"
    status, resumed, err = cli("-o", folder, "--resume", *flags(**fitting(kind, max_steps=40, eval_interval=10)))
    assert (status, err) == (0, "")
    argv = ["-i", lines_file, "-o", whole, "--type", kind, *flags(**fitting(kind, **RUN, max_steps=40))]
    status, uninterrupted, err = cli(*argv)
    assert (status, err) == (0, "")
    assert kind == "ngram" or not same_state(first_half(kind)[0] / "last.pt", whole / "last.pt")
    assert same_state(folder / "last.pt", whole / "last.pt")
    assert same(load(folder / "model.pt")["model"], load(whole / "model.pt")["model"])
    logs = [[r[:1] + r[2:] for r in csv.reader(io.StringIO((f / "log.csv").read_text()))] for f in (folder, whole)]
    assert logs[0] == logs[1]
    assert resumed[resumed.index("final:") :] == uninterrupted[uninterrupted.index("final:") :]


def test_resuming_a_finished_run_changes_nothing(cli, trained):
    folder = trained("rnn")
    before = {name: (folder / name).read_bytes() for name in ("model.pt", "last.pt", "log.csv")}
    status, out, _ = cli("-o", folder, "--resume")
    assert status == 0 and re.search(FINAL, out)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_settings_given_at_resumption_count(cli, first_half, tmp_path):
    ends = {}
    for change in ("", "--weight-decay 5", "--learning-rate 0.1", "--batch-size 4"):
        folder = shutil.copytree(first_half("mlp")[0], tmp_path / f"run{len(ends)}")
        assert cli("-o", folder, "--resume", "--max-steps", 30, *change.split())[0] == 0
        ends[change] = load(folder / "last.pt")["model"]
    plain = ends.pop("")
    assert [change for change, end in ends.items() if same(plain, end)] == []


class Killed(BaseException):
    """SIGKILL as the files see it: nobody tidies up."""


@pytest.mark.parametrize("moment", range(4, 16))
def test_killed_between_any_two_writes_it_resumes(cli, lines_file, tmp_path, monkeypatch, moment):
    argv = ["-i", lines_file, "--type", "bigram", "--eval-interval", 2, "--max-steps", 6, "-o"]
    assert cli(*argv, tmp_path / "whole")[0] == 0
    writes, replace = itertools.count(), os.replace

    def replace_or_die(*args):
        if next(writes) == moment:
            raise Killed
        replace(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace_or_die)
        cli(*argv, tmp_path / "killed")
    assert cli(*argv, tmp_path / "killed", "--resume")[0] == 0
    assert same_state(tmp_path / "killed/last.pt", tmp_path / "whole/last.pt")
    assert same(*(load(tmp_path / run / "model.pt")["model"] for run in ("killed", "whole")))


def start(*argv):
    """The script in a process of its own, up to its first line of progress."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), *map(str, argv)], **PIPES)
    for line in process.stdout:
        if line.startswith("step"):
            break
    return process


def test_killed_and_then_interrupted_it_resumes(cli, lines_file, tmp_path):
    """At random moments; while it lives, the folder is its own, and Ctrl-C ends it in order."""
    run = tmp_path / "run"
    argv = ["-i", lines_file, "--type", "mlp", "--decay-steps", 1000, "--device", "cpu"]
    argv += flags(**fitting("mlp", **SMALL, dropout=0.2))
    delay = random.Random(0)
    for mode in ([], ["--resume"]):
        process = start(*argv, "-o", run, "--max-steps", -1, "--eval-interval", 3, *mode)
        try:
            status, _, err = cli(*argv, "-o", run, "--max-steps", 1)
            assert status == 2 and "in use by another training" in err
            time.sleep(delay.uniform(0, 0.3))
            assert process.poll() is None, process.stderr.read()
            if mode and os.name == "posix":  # elsewhere nothing else can be sent than what kills
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
                assert (process.returncode, err) == (130, "") and re.search(rf"{FINAL[:-2]}; stopped at step \d+", out)
        finally:
            process.kill()
            process.communicate()
    steps = load(run / "last.pt")["progress"]["step"] + 10
    for mode in (["-o", run, "--resume"], ["-o", tmp_path / "whole"]):
        assert cli(*argv, *mode, "--max-steps", steps, "--eval-interval", 1000)[0] == 0
    assert same_state(run / "last.pt", tmp_path / "whole/last.pt")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_ends_the_run_in_order(cli, lines_file, tmp_path, monkeypatch, signum):
    """The current step is the last one; then it saves, evaluates, samples, and can be resumed as if nothing was."""
    argv = ["-i", lines_file, "--type", "bigram", "--decay-steps", 1000, "-o"]
    learning_rate, before = makemore.learning_rate, signal.getsignal(signum)

    def interrupted(step, *args):
        if step == 7:
            signal.raise_signal(signum)
        return learning_rate(step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(makemore, "learning_rate", interrupted)
        status, out, err = cli(*argv, tmp_path / "run", "--max-steps", 50)
    assert (status, err) == (128 + signum, "")
    again = rf"stopped at step (\d+), .* -o {re.escape(str(tmp_path / 'run'))} --resume goes on"
    assert int(re.search(rf"^{FINAL[:-2]}; {again}\)\nin train", out, re.M)[5]) == 8
    assert load(tmp_path / "run/last.pt")["progress"]["step"] == 8
    assert signal.getsignal(signum) == before

    assert cli("-o", tmp_path / "run", "--resume", "--max-steps", 12)[0] == 0
    assert cli(*argv, tmp_path / "whole", "--max-steps", 12)[0] == 0
    assert same_state(tmp_path / "run/last.pt", tmp_path / "whole/last.pt")


@pytest.mark.parametrize("interval", [1, 1000])
@pytest.mark.parametrize("kind", ["mlp", "wavenet", "transformer"])
def test_a_loss_of_nan_stops_and_keeps_the_last_good_model(cli, trained, kind, interval):
    folder = trained(kind)
    before = (folder / "model.pt").read_bytes()
    status, out, err = cli("-o", folder, "--resume", *flags(max_steps=3000, eval_interval=interval, learning_rate=1e30))
    assert status == 2 and err.count("\n") == 1
    message = re.search(r"\b(?:nan|inf)\b.*step (\d+).*model\.pt.*--learning-rate", err)
    assert int(message[1]) <= 50
    assert "final:" not in out
    assert (folder / "model.pt").read_bytes() == before
    assert all(t.isfinite().all() for t in load(folder / "last.pt")["model"].values())
    assert cli("-o", folder, "--sample-only")[0] == 0


def test_a_full_disk_keeps_the_old_files(cli, trained):
    """The limit on file sizes makes real writes fail in the middle."""
    resource = pytest.importorskip("resource")
    folder = trained("mlp")
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        status, _, err = cli("-o", folder, "--resume", "--max-steps", 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and err.count("\n") == 1 and "cannot write" in err
    assert contents(folder) == before
    assert cli("-o", folder, "--resume", "--max-steps", 30)[0] == 0


# ----------------------------------------------------------------------------------------------------------------------
# The command line


def test_sampling_needs_nothing_but_the_folder(cli, first_half, monkeypatch, tmp_path):
    """The same samples as at the end of training; no file is touched; flags vary them."""
    folder, out = first_half("transformer")
    before = contents(folder)
    monkeypatch.chdir(tmp_path)
    status, alone, err = cli("--sample-only", "-o", folder)
    assert (status, err) == (0, "") and alone == out[out.index("in train (") :]
    assert cli("--sample-only", "-o", folder, "--seed", 5)[1] != alone
    for extra in ("--top-k 1", "--top-k 1000", "--top-p 0.5", "--temperature 0", "--prefix ba", "--num-samples 3"):
        status, varied, err = cli("--sample-only", "-o", folder, *extra.split())
        assert (status, err) == (0, "") and (varied == alone) is (extra == "--top-k 1000")
    assert contents(folder) == before and list(tmp_path.iterdir()) == []


def test_sampling_without_the_data_says_so(cli, trained, lines_file):
    folder = trained("bigram")
    checkpoint = load(folder / "model.pt")
    checkpoint["config"]["input_file"] = checkpoint["file"] = str(folder / "gone.txt")
    torch.save(checkpoint, folder / "model.pt")
    status, out, err = cli("--sample-only", "-o", folder)
    assert status == 0 and len(out.splitlines()) == 20 and err.count("\n") == 1
    assert "in train" in cli("--sample-only", "-o", folder, "-i", lines_file)[1]


@every_type
def test_eval_scores_any_file_with_what_final_said(cli, first_half, lines_file, tmp_path, kind):
    folder, out = first_half(kind)
    corpus = corpus_of(lines_file)
    (tmp_path / "test.txt").write_text("\n".join(corpus.test))
    status, report, err = cli("-o", folder, "--eval", tmp_path / "test.txt")
    count = sum(map(len, corpus.test)) + len(corpus.test)
    loss = re.search(FINAL, out)[3]
    assert (status, err) == (0, "")
    *_, line, where = report.splitlines()
    assert line == f"eval: {loss} nats/char over {count} characters in {len(corpus.test)} lines"
    page = folder / "surprise.html"
    assert where == f"line by line: {folder / 'scores.csv'}, character by character: {page}" and page.exists()
    header, *rows = csv.reader((folder / "scores.csv").open())
    assert header == ["line", "nats", "nats_per_char"] and [row[0] for row in rows] == corpus.test
    assert sum(float(row[1]) for row in rows) / count == pytest.approx(float(loss), abs=1e-4)


def test_eval_scores_a_line_by_itself(cli, first_half, tmp_path):
    """The score of a line does not depend on its company, and the likeliest and strangest are named."""
    folder, lines = first_half("gru")[0], ["bazo", "ba", "xxxxx", "zoxubi"]
    scores = []
    for name, some in (("all.txt", lines), ("one.txt", lines[2:3])):
        (tmp_path / name).write_text("\n".join(some))
        assert cli("-o", folder, "--eval", tmp_path / name)[0] == 0
        scores += [float(r["nats"]) for r in csv.DictReader((folder / "scores.csv").open()) if r["line"] == "xxxxx"]
    assert scores[0] == pytest.approx(scores[1], abs=2e-4)
    (tmp_path / "six.txt").write_text("\n".join([*lines, "bo", "zi"]))
    report = cli("-o", folder, "--eval", tmp_path / "six.txt")[1]
    likeliest, strangest = report.partition("strangest:")[::2]
    assert "xxxxx" in strangest and "xxxxx" not in likeliest


@every_type
def test_eval_of_longer_lines_than_were_trained_on_works_or_is_refused(cli, first_half, tmp_path, kind):
    (tmp_path / "long.txt").write_text("ba" * 50 + "\nba\n")
    status, out, err = cli("-o", first_half(kind)[0], "--eval", tmp_path / "long.txt")
    refused = kind in ("bow", "transformer")  # those that have positions
    assert (status, out.count("\n"), err.count("\n")) == ((2, 0, 1) if refused else (0, 5, 0))


def test_the_command_line_of_upstream_runs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(invent(300)))
    command = "-i names.txt -o names --type transformer --n-layer 4 --n-embd 64 -b 32 -l 5e-4 --max-steps 60 --top-k 10"
    status, out, err = cli(*command.split())
    assert (status, err) == (0, "") and re.search(FINAL, out)
    assert (tmp_path / "names/model.pt").exists()
    status, out, err = cli(*command.split(), "--sample-only")  # the flags may be repeated: those for training are named
    assert (status, err.count("\n")) == (0, 1) and "samples: 20," in out
    named = re.findall(r"(--\S+) is not used by --sample-only, only by training, --resume\b", err)
    assert named == ["--batch-size", "--learning-rate", "--max-steps"] and err.count("is not used") == 3


@every_type
def test_a_setting_that_a_type_does_not_use_is_named_in_one_line_and_dropped(cli, lines_file, tmp_path, kind):
    given = dict(SMALL, n=2, batchnorm=None, max_steps=1)
    argv = [word for word in flags(**given) if word != "None"]
    ignored = [name for name in given if name not in makemore.uses(kind)]
    status, out, err = cli("-i", lines_file, "-o", tmp_path, "--type", kind, *argv)
    assert status == 0 and re.search(FINAL, out) and err.count("\n") == 1 and err.startswith("makemore: --")
    named = [re.fullmatch(rf"(--\S+) is not used by {kind}, only by (.+)", part) for part in err[10:-1].split("; ")]
    assert [match[1][2:].replace("-", "_") for match in named] == ignored
    for name, match in zip(ignored, named, strict=True):
        assert match[2].split(", ") == [other for other in MODELS if name in makemore.uses(other)]
    config, wanted = load(tmp_path / "model.pt")["config"], makemore.configure(dict(type=kind))
    assert [config[name] for name in ignored] == [getattr(wanted, name) for name in ignored]


def test_the_line_that_names_an_unused_setting(cli, lines_file, tmp_path):
    argv = ["-i", lines_file, "-o", tmp_path, "--type", "mlp", "--max-steps", 1]
    unused = "makemore: --n-head is not used by mlp, only by transformer\n"
    assert cli(*argv, "--n-head", 2)[2] == unused
    status, _, err = cli("-i", tmp_path / "none", *argv[2:], "--n-head", 2)  # and then what is wrong
    assert status == 2 and err.startswith(unused + "makemore: ") and err.count("\n") == 2
    with pytest.warns(UserWarning) as caught:
        makemore.train(invent(10), type="mlp", max_steps=1, n_head=2)
    assert [str(w.message) for w in caught] == ["--n-head is not used by mlp, only by transformer"]
    assert caught[0].filename == __file__  # it points at the caller's line


def test_prompt_is_prefix(cli, first_half):
    folder = first_half("bigram")[0]
    prefix, prompt = (cli("-o", folder, "--sample-only", flag, "ba") for flag in ("--prefix", "--prompt"))
    assert prefix == prompt and prompt[0] == 0 and prompt[1].count("\n  ba") == 20


def test_underscores_are_as_good_as_hyphens(cli, lines_file, tmp_path):
    argv = ["--type", "bigram", "--max_steps=2", "--num_samples", 3, "--top_k", -1]
    status, out, _ = cli(f"--input_file={lines_file}", "--work_dir", tmp_path, *argv)
    assert status == 0 and "samples: 3," in out


def test_help_tells_every_flag_and_the_defaults_of_every_type(capsys):
    with pytest.raises(SystemExit) as stop:
        makemore.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    upstream = """--input-file -i --work-dir -o --type --max-steps --device --seed --resume --sample-only --top-k
        --n-layer --n-head --n-embd --n-embd2 --batch-size -b --learning-rate -l --weight-decay -w"""
    ours = "--block-size --dropout --eval-interval --num-samples --temperature --top-p --prefix --prompt --eval"
    assert [flag for flag in (upstream + " " + ours).split() if not re.search(rf"{flag}\b", text)] == []
    assert "--split" not in text
    rows = re.split(rf"^  ({'|'.join(MODELS)}) ", text, flags=re.M)[1:]
    assert rows[::2] == [*MODELS]
    for entry, row in zip(MODELS.values(), rows[1::2], strict=True):
        words = " ".join(row.split())
        for name, value in entry.defaults.items():
            flag = f"--{name.replace('_', '-')}"
            told = {"True": flag, "False": flag.replace("--", "--no-")}.get(str(value), f"{flag} {value}")
            assert value is None or told in words


@pytest.mark.parametrize("kind", [None, *MODELS])
def test_help_for_a_type_tells_its_defaults_and_what_it_does_not_use(capsys, kind):
    with pytest.raises(SystemExit) as stop:
        makemore.main([*(["--type", kind] if kind else []), "--help"])
    text = capsys.readouterr().out.partition("\n\n--type is one of")[0]
    told = {}  # flag: what is said about it, without white space
    for block in re.split(r"^  (?=-)", re.sub(r"\n\n\S.*", "", text), flags=re.M)[1:]:
        told[re.match(r"[\w-]+", block)[0]] = "".join(block.split())
    assert stop.value.code == 0 and len(told) >= len(makemore.SETTINGS)
    defaults = MODELS[kind].defaults if kind else {}
    vary = {name for entry in MODELS.values() for name in entry.defaults}
    for name, setting in makemore.SETTINGS.items():
        text, used = told["--" + name.replace("_", "-")], not kind or name in makemore.uses(kind)
        assert text.endswith(f"(notusedby{kind})") is not used, text
        default = defaults.get(name, setting.default if kind or name not in vary else None)
        if used and default not in (None, "") and default is not False:
            assert text.endswith(f"[{default}]"), text
    if kind == "gru":
        assert told["--n-embd2"].endswith("[128]") and told["--learning-rate"].endswith("[0.008]")
        assert told["--n-head"].endswith("(notusedbygru)") and told["--block-size"].endswith("(notusedbygru)")
    for argv in (["--help", f"--type={kind}"], ["--type", str(kind), "--help"]):  # either way round
        with pytest.raises(SystemExit):
            makemore.main(argv if kind else ["--help"])
    texts = capsys.readouterr().out
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]


def test_three_lines_train(cli, tmp_path):
    (tmp_path / "f.txt").write_text("ab\nb\nca\n")
    for kind in MODELS:
        argv = ["-i", tmp_path / "f.txt", "-o", tmp_path / kind, "--type", kind]
        status, out, err = cli(*argv, *flags(**fitting(kind, max_steps=2)))
        assert (status, err) == (0, "") and re.search(FINAL, out), kind


def test_alone_in_an_empty_folder_it_trains_on_five_lines(tmp_path):
    """And where the file is the program, there is nobody who called it: what is not used is told all the same."""
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "five.txt").write_text("ana\nbob\ncy\ndora\neve\n")
    command = [sys.executable, "makemore.py", "-i", "five.txt", "--max-steps", "3", "--n", "2"]
    done = subprocess.run(command, cwd=tmp_path, **PIPES)
    assert done.returncode == 0 and re.search(FINAL, done.stdout)
    assert done.stderr == "makemore: --n is not used by transformer, only by ngram\n"
    assert {p.name for p in tmp_path.iterdir()} == {"makemore.py", "five.txt", "out"}


# ----------------------------------------------------------------------------------------------------------------------
# The library: what the command line does, in Python


def test_training_in_python_is_training_on_the_command_line(cli, first_half, lines_file, tmp_path, capsys, monkeypatch):
    """From a file or from its lines, into a folder that is made for it or into none: the same model, and not a word."""
    monkeypatch.chdir(tmp_path)
    wanted, settings = load(first_half("gru")[0] / "model.pt"), dict(type="gru", **fitting("gru", **RUN, max_steps=20))
    for data, folder in ((lines_file, "a/b"), (lines_file.read_text().split(), None), (str(lines_file), None)):
        run = makemore.train(data, work_dir=folder, **settings)
        assert same(dict(run.model.state_dict()), wanted["model"]) and run.progress.step == 20
        assert same(run.progress.history[-1][3:], wanted["progress"]["history"][-1][3:])
        assert [p.name for p in tmp_path.iterdir()] == ["a"]  # only the first has a folder
    assert {p.name for p in (tmp_path / "a/b").iterdir()} >= {"model.pt", "last.pt", "log.csv"}
    assert capsys.readouterr() == ("", "")
    assert makemore.load("a/b").sample(50) == run.sample(50)
    assert makemore.load("a/b").evaluate("test") == run.evaluate("test")


def test_training_goes_on_in_python_as_if_it_had_never_stopped(tmp_path):
    lines, settings = invent(60), dict(type="transformer", **fitting("transformer", **RUN))
    whole = makemore.train(lines, max_steps=40, **settings)
    assert whole.progress.step == 40 and not whole.model.training
    in_memory = makemore.train(lines, max_steps=20, **settings).train(max_steps=40)
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    makemore.train(path, max_steps=20, work_dir=tmp_path, **settings)
    from_folder = makemore.load(tmp_path).train(max_steps=40)
    for run in (in_memory, from_folder):
        assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))
        assert [row[:1] + row[3:] for row in run.progress.history] == [r[:1] + r[3:] for r in whole.progress.history]


@every_type
def test_a_saved_model_comes_back(first_half, tmp_path, kind):
    run = makemore.load(first_half(kind)[0])
    run.save(tmp_path / "copy")
    again, lines = makemore.load(tmp_path / "copy"), invent(10, seed=5)
    assert again.sample(20) == run.sample(20) and again.score(lines) == run.score(lines)
    assert again.probabilities("ba") == run.probabilities("ba")


@pytest.mark.parametrize(
    "settings, says",
    [(dict(temperature=-1), "--temperature -1"), (dict(colour="red"), "colour"), (dict(n_embd=9), "--n-embd 9.* 8")],
)
def test_a_mistake_in_what_load_is_given_is_a_value_error(first_half, settings, says):
    with pytest.raises(ValueError, match=says):
        makemore.load(first_half("mlp")[0], **settings)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input: one line on standard error, exit status 2, nothing created, nothing overwritten


def assert_refused(cli, folder, *argv, says=""):
    before = contents(folder)
    status, out, err = cli(*argv)
    assert status == 2
    assert (out, err.count("\n")) == ("", 1), err
    assert re.search(says, err, re.I), err
    assert contents(folder) == before


BAD_FILES = {
    "empty": (b"", "empty"),
    "only white space": (b" \n\r\n\t\n", "empty"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary|UTF-8"),
    "UTF-16 without a BOM": ("ana\nbo\ncy\n".encode("utf-16-le"), "binary|UTF-8"),
    "UTF-16 cut": ("ana\nbo\ncy\n".encode("utf-16")[:-1], "not UTF-16"),
    "Latin-1": ("ana\nbo\nzoë\n".encode("latin-1"), r"UTF-8.*line 3\b.*\b9\b.*0xeb"),
    "Latin-1 after a BOM": (b"\xef\xbb\xbfana\nbo\nzo\xeb\n", r"UTF-8.*line 3\b.*\b12\b.*0xeb"),
    "one line": (b"ana\n", "too few|at least 3"),
    "two lines": (b"ana\nbo\n", "too few|at least 3"),
    "one enormous line": (b"x" * 5_000_000, r"line 1\b"),
    "one enormous line among others": (b"ana\nbo\n" + b"x" * 100_000 + b"\ncy\n", r"line 3\b"),
}


@pytest.mark.parametrize("raw, says", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(cli, tmp_path, monkeypatch, raw, says):
    monkeypatch.chdir(tmp_path)
    Path("f.txt").write_bytes(raw)
    assert_refused(cli, tmp_path, "-i", "f.txt", says="f.txt.*" + says if "line" not in says else says)


@pytest.mark.parametrize(
    "argv, says",
    [
        ("-i missing.txt", "missing.txt"),
        ("-i folder", "folder"),
        ("-i same.txt --dedup", "few"),
        ("-i ok.txt -o ok.txt", "ok.txt"),
        ("-i ok.txt -o ok.txt/out", "ok.txt"),
        ("-i ok.txt --type gpt5", "gpt5.*transformer"),
        ("-i ok.txt --no-such-flag", "no-such-flag"),
        ("-i ok.txt stray", "stray"),
        ("-i ok.txt --n-embd", "n-embd"),
        ("-i ok.txt --n-embd ten", "n-embd.*ten"),
        ("-i ok.txt --n-embd 10 --n-head 4", "10.*4"),
        ("-i ok.txt --split random", "--split random"),
        *[(f"-i ok.txt --{flag} {n}", f"{flag}.*{n}") for flag in
          ("n-layer", "n-head", "n-embd", "n-embd2", "batch-size") for n in (0, -1)],
        ("-i ok.txt --block-size -1", "block-size.*-1"),
        ("-i ok.txt --block-size 0", "block-size.*0"),
        ("-i ok.txt --type wavenet --block-size 6", "block-size 6"),
        ("-i ok.txt --type bigram --block-size 50", "block-size 50"),
        ("-i ok.txt --type transformer --block-size 2", "block-size 2"),
        ("-i ok.txt -b 0", "--batch-size 0: must be a number from 1 to 1e.06"),
        ("-i ok.txt -l -1", "learning-rate"),
        ("-i ok.txt -l nan", "learning-rate"),
        ("-i ok.txt -l inf", "learning-rate"),
        ("-i ok.txt -w -0.1", "weight-decay"),
        ("-i ok.txt --dropout 1", "dropout"),
        ("-i ok.txt --dropout -0.1", "dropout"),
        ("-i ok.txt --max-steps -2", "max-steps"),
        ("-i ok.txt --max-steps 1e3", "max-steps"),
        ("-i ok.txt --eval-interval -1", "eval-interval"),
        ("-i ok.txt --seed -1", "seed"),
        ("-i ok.txt --seed 99999999999999999999", "seed"),
        ("-i ok.txt --num-samples -1", "num-samples"),
        ("-i ok.txt --temperature -1", "temperature"),
        ("-i ok.txt --temperature nan", "temperature"),
        ("-i ok.txt --top-k -2", "top-k"),
        ("-i ok.txt --top-p 1.5", "top-p"),
        ("-i ok.txt --top-p -0.5", "top-p"),
        ("-i ok.txt --prefix a7", "'7'"),
        ("-i ok.txt --prefix anaanaanaana", "prefix"),
        ("-i ok.txt --device warp", "warp"),
        ("-i ok.txt --device meta", "meta"),
        ("-i ok.txt --device privateuseone", "privateuseone"),
        ("-i ok.txt --n-embd 1000000000000", "--n-embd 1000000000000: must be a number from 1 to 65536"),
        ("-i ok.txt --block-size 1000000000000", "--block-size 1000000000000: must be a number from 1 to 65536"),
        ("-i ok.txt --batch-size 1000000000000000", "--batch-size 1000000000000000: must be a number from 1 to 1e.06"),
        ("-i ok.txt --resume", "last.pt"),
        ("--sample-only", "model.pt"),
        ("--sample-only -o nowhere/at/all", "nowhere"),
        ("--eval ok.txt", "model.pt"),
        ("-i ok.txt --eval=", "--eval is empty"),
        ("-i ok.txt --mix=", "--mix is empty"),
        ("-i ok.txt --work-dir=", "--work-dir is empty"),
        ("--resume --sample-only", "argument --sample-only: not allowed with argument --resume"),
    ],
)  # fmt: skip
def test_bad_arguments(cli, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("ok.txt").write_text("ana\nbo\ncy\nana\n")
    Path("same.txt").write_text("ana\nbo\nana\nbo\n")
    assert_refused(cli, tmp_path, "--max-steps", 2, *argv.split(), says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_absent_device(cli, lines_file, tmp_path, device):
    assert_refused(cli, tmp_path, "-i", lines_file, "-o", tmp_path / "out", "--device", device, says=device)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_unwritable_folder(cli, lines_file, tmp_path):
    tmp_path.chmod(0o500)
    for folder in (tmp_path, tmp_path / "out"):
        assert_refused(cli, tmp_path, "-i", lines_file, "-o", folder, says="cannot write")


@pytest.mark.parametrize("folder", ["/proc/out", "/sys/out"])
def test_a_folder_that_nobody_can_write_in(cli, lines_file, tmp_path, folder):
    if not Path(folder).parent.is_dir():
        pytest.skip("only Linux has it")
    assert_refused(cli, tmp_path, "-i", lines_file, "-o", folder, says=folder)


def test_a_message_stays_one_line_whatever_it_quotes(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(cli, tmp_path, "-i", "no\nsuch.txt", says="such")
    assert_refused(cli, tmp_path, "--type", "m\nlp", says="lp")


@pytest.mark.parametrize(
    "argv, says",
    [
        ("--sample-only --prefix b7", "'7'"),
        ("--resume --max-steps 30 --prefix b7", "'7'"),
        ("--sample-only --prefix " + "ba" * 20, "prefix"),
        ("--sample-only --type mlp", "type.*transformer"),
        ("--sample-only --n-embd 16", "n-embd.*8"),
        ("--sample-only --temperature -1", "temperature"),
        ("--sample-only --num-samples 1000000000000", "--num-samples 1000000000000: must be a number from 0 to 1e.06"),
        ("--eval missing.txt", "missing.txt"),
        ("--eval empty.txt", "empty"),
        ("--eval strange.txt", "unknown.*'1' '2'.*knows"),
        ("--eval=", "--eval is empty"),
        ("--resume -i other.txt", "other.txt"),
        ("--resume -i missing.txt", "missing.txt"),
        ("--resume --type mlp", "type.*transformer"),
        ("--resume --n-layer 3", "n-layer.*2"),
        ("--resume --seed 5", "seed"),
        ("--resume --max-steps -5", "max-steps"),
        ("--resume --sample-only", "argument --sample-only: not allowed with argument --resume"),
    ],
)
def test_bad_arguments_with_a_trained_folder(cli, trained, tmp_path, monkeypatch, argv, says):
    folder = trained("transformer")
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("strange.txt").write_text("ba\nb21\n")
    Path("other.txt").write_text("\n".join(invent(80, seed=2)))
    assert_refused(cli, tmp_path, "-o", folder, *argv.split(), says=says)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints that are not what this version writes


def test_members_that_are_all_but_sure_of_the_wrong_thing_get_weights():
    """Where every member's probability of a character is 0 in floating point, its logarithm still tells them apart."""
    lines = makemore.Lines(["ab", "ba"], makemore.Vocab("ab"))
    runs = [makemore.train(["ab", "ba", "aa", "bb"], type="bigram", max_steps=0, device="cpu") for _ in range(2)]
    for run, loss in zip(runs, (2000.0, 2001.0), strict=True):
        run.model.table.weight.data[:, 0] = loss
    mixture = makemore.Mixture(runs, torch.full((2,), 0.5))
    assert mixture.choose_weights(lines).tolist() == pytest.approx([4000 / 3, 4002 / 3])
    assert mixture.weights.tolist() == pytest.approx([1.0, 0.0], abs=0.01)


def test_mixtures_can_be_mixed_again_and_are_not_trained(cli, first_half, lines_file, tmp_path):
    gru, ngram, transformer = (first_half(kind)[0] for kind in ("gru", "ngram", "transformer"))
    assert cli("--mix", f"{gru},{transformer}", "-o", tmp_path / "inner")[0] == 0
    status, out, err = cli("--mix", f"{ngram},{tmp_path / 'inner'}", "-o", tmp_path / "outer")
    assert (status, err) == (0, "") and out.count("\n", 0, out.index("final:")) >= 3
    assert cli("-o", tmp_path / "outer", "--eval", lines_file)[0] == 0
    assert_refused(cli, tmp_path, "-o", tmp_path / "outer", "--resume", says="last.pt")


@pytest.mark.parametrize("mode", ["--sample-only", "--resume", "--eval", "--mix"])
def test_a_checkpoint_of_another_version_is_refused_by_what_it_lacks(cli, trained, lines_file, tmp_path, mode):
    folder = trained("mlp")
    for path in folder.glob("*.pt"):
        checkpoint = load(path)
        del checkpoint["config"]["threads"]
        torch.save(checkpoint, path)
    argv = {"--eval": ["-o", folder, mode, lines_file], "--mix": [mode, f"{folder},{folder}"]}.get(mode)
    assert_refused(cli, tmp_path, *(argv or ["-o", folder, mode]), says="version of makemore: it lacks threads")


class Boom:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


BAD_CHECKPOINTS = {
    "empty": lambda good, raw, mark: b"",
    "text": lambda good, raw, mark: b"not a checkpoint\n",
    "noise": lambda good, raw, mark: random.Random(1).randbytes(5000),
    "half": lambda good, raw, mark: raw[: len(raw) // 2],
    "its last byte missing": lambda good, raw, mark: raw[:-1],
    "a list": lambda good, raw, mark: saved([1, 2]),
    "weights alone": lambda good, raw, mark: saved(good["model"]),
    "of another program": lambda good, raw, mark: saved({**good, "program": "gpt"}),
    "of another version": lambda good, raw, mark: saved({**good, "config": {**good["config"], "flavour": 1}}),
    "of an unknown type": lambda good, raw, mark: saved({**good, "config": {**good["config"], "type": "gpt5"}}),
    "of other sizes": lambda good, raw, mark: saved({**good, "config": {**good["config"], "n_embd2": 13}}),
    "of nonsense": lambda good, raw, mark: saved(dict.fromkeys(good, None) | {"program": "makemore"}),
    "code inside": lambda good, raw, mark: saved({**good, "config": Boom(mark)}),
    "plain code": lambda good, raw, mark: pickle.dumps(Boom(mark)),
}


@pytest.mark.parametrize("mode", ["--sample-only", "--resume", "--eval"])
@pytest.mark.parametrize("spoil", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_bad_checkpoints(cli, trained, lines_file, tmp_path, mode, spoil):
    folder = trained("mlp")
    path = folder / ("last.pt" if mode == "--resume" else "model.pt")
    path.write_bytes(spoil(load(path), path.read_bytes(), tmp_path / "mark"))
    argv = [mode, *{"--eval": [lines_file], "--resume": ["--max-steps", 30]}.get(mode, [])]
    assert_refused(cli, tmp_path, "-o", folder, *argv, says=r"(last|model)\.pt|checkpoint")


def test_a_checkpoint_that_lacks_a_part_is_refused_or_not_needed(cli, first_half, tmp_path):
    good = load(first_half("mlp")[0] / "last.pt")
    for part in good:
        folder = tmp_path / part
        folder.mkdir()
        for name in ("last.pt", "model.pt"):
            torch.save({k: v for k, v in good.items() if k != part}, folder / name)
        for mode in ("--sample-only", "--resume"):
            status, _, err = cli("-o", folder, mode)
            needed = (part, mode) != ("losses", "--sample-only")
            assert (status, err.count("\n")) == ((2, 1) if needed else (0, 0)), (part, mode, err)


def test_a_folder_as_checkpoint(cli, tmp_path):
    (tmp_path / "model.pt").mkdir()
    assert_refused(cli, tmp_path, "-o", tmp_path, "--sample-only", says="model.pt")


def test_a_mistake_in_python_leaves_the_lines_of_a_good_run_alone(tmp_path):
    makemore.train(invent(30), type="bigram", max_steps=1, work_dir=str(tmp_path / "run"))
    with pytest.raises(makemore.UserError, match="divide"):
        makemore.train(invent(9), type="transformer", n_head=3, work_dir=str(tmp_path / "run"))
    assert makemore.load(tmp_path / "run").evaluate("dev") > 0


@pytest.mark.parametrize("line", ["ab\ncd", " ab", "ab\t", "", 7])
def test_lines_that_would_not_survive_their_own_file_are_refused(line):
    with pytest.raises(makemore.UserError, match="list of lines"):
        makemore.train([*invent(9), line], type="bigram", max_steps=1)


def test_what_was_saved_from_a_loaded_run_goes_on(tmp_path):
    makemore.train(invent(30), type="bigram", max_steps=2, work_dir=str(tmp_path / "a"))
    makemore.load(tmp_path / "a").save(tmp_path / "b")
    assert makemore.load(tmp_path / "b").train(max_steps=4).progress.step == 4


def test_folding_leaves_the_random_numbers_of_the_caller_alone(lines_file):
    run = makemore.train(lines_file, type="mlp", batchnorm=True, n_embd2=8, max_steps=2)
    before = torch.get_rng_state()
    folded = makemore.fold_batchnorm(run)
    assert torch.equal(before, torch.get_rng_state()) and folded.folder is None
