"""The trainers as libraries: what a Run answers, settings by keyword, models of one's own, and no setting unheard."""

import contextlib
import functools
import inspect
import io
import itertools
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import ipykernel.kernelspec
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from conftest import PIPES, let_go, same

import gpt
import makemore

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = (ROOT / "names.txt").read_text(encoding="utf-8").split()[:90]
PLAY = (ROOT / "input.txt").read_text(encoding="utf-8")[:3000]
TYPES, PRESETS = list(makemore.MODELS), list(gpt.PRESETS)
DATA = {makemore: NAMES, gpt: PLAY}
TINY = {
    makemore: dict(n_layer=1, n_head=2, n_embd=8, n_embd2=12, batch_size=16, warmup_steps=0, device="cpu"),
    gpt: dict(n_layer=1, n_head=2, n_embd=8, block_size=16, batch_size=4, warmup_steps=0, device="cpu"),
}
USUAL = {makemore: "mlp", gpt: "mini"}

both = pytest.mark.parametrize("module", [makemore, gpt], ids=lambda module: module.__name__)
every_type = pytest.mark.parametrize("kind", TYPES)
every_preset = pytest.mark.parametrize("kind", PRESETS)


# ----------------------------------------------------------------------------------------------------------------------
# Help for the tests


def tiny(module, kind=None, **given):
    """Settings of a small model of this kind, as far as it uses them."""
    kind = kind or USUAL[module]
    return {module.KIND: kind, **{k: v for k, v in {**TINY[module], **given}.items() if k in module.uses(kind)}}


def train(module, data=None, kind=None, **given):
    return module.train(DATA[module] if data is None else data, **tiny(module, kind), **given)


def flag(name):
    return "--" + name.replace("_", "-")


def weights(run):
    return dict(run.model.state_dict())


def checkpoint(folder, name="last.pt"):
    return torch.load(Path(folder) / name, weights_only=True)


def same_state(a, b, name="last.pt"):
    """Two folders hold the same weights, momenta, losses and step."""
    a, b = checkpoint(a, name), checkpoint(b, name)
    parts = a.keys() & {"model", "optimizer", "optimizers", "losses", "vocab", "digest"}
    return a["progress"]["step"] == b["progress"]["step"] and all(same(a[part], b[part]) for part in parts)


def answers(run):
    """What a run says when asked."""
    if isinstance(run, makemore.Run):
        return run.sample(9), run.sample(3, prefix="a", seed=8), run.score(["ann", "bo"]), run.probabilities("an")
    return run.generate("The", 9), run.generate(None, 3, num_samples=2, seed=8), run.score("The sun\nand").tolist()


def files(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.fixture(autouse=True)
def elsewhere(request):
    """A test begins in an empty folder; and a disk that is slow to sync is nobody's subject here."""
    if request.cls is None:
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
        monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def sketched(monkeypatch):
    """No real figures, no measuring of the machine."""
    for module in (makemore, gpt):
        monkeypatch.setattr(module, "drawing", sketch(Path.write_text))
    monkeypatch.setattr(gpt, "measure_peak", lambda *_: 1e9)


@pytest.fixture(scope="module")
def trained():
    """(module, kind) -> a run of a few steps in memory; to ask, not to train on."""
    runs = {}

    def get(module, kind=None):
        kind = kind or USUAL[module]
        if (module, kind) not in runs:
            settings = tiny(module, kind, max_steps=12, learning_rate=0.02)
            runs[module, kind] = module.train(DATA[module], **settings)
        return runs[module, kind]

    return get


# ----------------------------------------------------------------------------------------------------------------------
# makemore: what a Run answers


@every_type
def test_scores_add_up_to_what_evaluate_says(trained, kind):
    run = trained(makemore, kind)
    assert set(makemore.PARTS) == {"train", "dev", "test"} and run.evaluate() == run.evaluate("dev")
    for part, lines in zip(makemore.PARTS, makemore.split_lines(NAMES), strict=True):
        nats = run.score(lines)
        assert isinstance(nats, list) and all(type(x) is float and 0 < x < math.inf for x in nats)
        assert sum(nats) / sum(len(line) + 1 for line in lines) == pytest.approx(run.evaluate(part), rel=1e-9)
        assert run.score(lines[:1] * 2) == pytest.approx([nats[0]] * 2, rel=1e-5)  # whoever stands beside it


@every_type
def test_probabilities_are_what_the_scores_are_made_of(trained, kind):
    run = trained(makemore, kind)
    for prefix in ("", "a", "ma"):
        p = run.probabilities(prefix)
        assert sum(p.values()) == pytest.approx(1, abs=1e-5) and all(x >= 0 for x in p.values())
        assert p.keys() == {"", *run.vocab.chars} and list(p.values()) == sorted(p.values(), reverse=True)
    assert run.probabilities() == run.probabilities("")
    line = "maria"
    chain = [run.probabilities(line[:i])[c] for i, c in enumerate([*line, ""])]
    assert run.score([line]) == pytest.approx([-sum(map(math.log, chain))], rel=1e-5)
    # one character more: the difference of two scores, where each has an end of its own
    short, long = run.score(["ma", "mar"])
    p = math.exp(short - long) * run.probabilities("ma")[""] / run.probabilities("mar")[""]
    assert run.probabilities("ma")["r"] == pytest.approx(p, rel=1e-4)


@every_type
def test_samples(trained, kind):
    run = trained(makemore, kind)
    samples = run.sample(30, prefix="ma", seed=5)
    assert samples == run.sample(30, prefix="ma", seed=5) != run.sample(30, prefix="ma", seed=6)
    assert len(samples) == 30 and all(s.startswith("ma") for s in samples)
    assert max(map(len, samples)) <= max(map(len, NAMES)) and set("".join(samples)) <= set(run.vocab.chars)
    assert len(run.sample()) == 20 and run.sample(0) == []

    likeliest = "ma"
    while len(likeliest) < max(map(len, NAMES)) and (c := next(iter(run.probabilities(likeliest)))):
        likeliest += c
    for greedy in (dict(temperature=0), dict(top_k=1), dict(top_p=1e-6), dict(temperature=0, seed=9)):
        assert run.sample(3, prefix="ma", **greedy) == [likeliest] * 3, greedy
    assert set(run.sample(40, prefix="ma", temperature=50, seed=1)) != set(run.sample(40, prefix="ma", seed=1))


def test_a_mixture_answers_like_any_other(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(NAMES))
    for kind in ("ngram", "mlp"):
        train(makemore, lines, kind, work_dir=kind, **{} if kind == "ngram" else dict(max_steps=5))
    with contextlib.redirect_stdout(io.StringIO()):
        assert makemore.main(["--mix", "ngram,mlp", "-o", "mix"]) == 0
    run, members = makemore.load("mix"), [makemore.load(kind) for kind in ("ngram", "mlp")]
    (a, b), (p, q) = run.model.weights.tolist(), (m.probabilities("a") for m in members)
    product = {char: p[char] ** a * q[char] ** b for char in p}
    assert run.probabilities("a") == pytest.approx({c: x / sum(product.values()) for c, x in product.items()}, rel=1e-4)
    assert run.evaluate("dev") <= min(m.evaluate("dev") for m in members) + 1e-6
    assert run.sample(3, prefix="a", seed=4) == run.sample(3, prefix="a", seed=4)
    with pytest.raises(makemore.UserError, match="not trained any further"):
        run.train()


# ----------------------------------------------------------------------------------------------------------------------
# gpt: what a Run answers


@every_preset
def test_texts(trained, kind):
    run = trained(gpt, kind)
    text = run.generate("The sun", 24, seed=5)
    assert type(text) is str and text.startswith("The sun") and len(text) == 7 + 24
    assert set(text) <= set(run.vocab.chars)
    assert text == run.generate("The sun", 24, seed=5) != run.generate("The sun", 24, seed=6)
    assert text == run.generate(prompt="The sun", max_new_tokens=24, seed=5)
    assert run.generate("The", 0) == "The" and len(run.generate(max_new_tokens=4)) == 4
    for given in ({}, dict(temperature=0.5, top_k=5, top_p=0.9, seed=7), dict(temperature=0)):
        pieces = list(run.stream("The sun", 24, **given))
        assert pieces[0] == "The sun" and all(len(piece) == 1 for piece in pieces[1:])
        assert "".join(pieces) == run.generate("The sun", 24, **given) and len(pieces) == 25
    likeliest = "The"
    for _ in range(12):  # all of it fits into the context
        idx = torch.from_numpy(run.vocab.encode(likeliest))
        likeliest += run.vocab.decode([run.model(idx[None])[0, -1].argmax()])
    for greedy in (dict(temperature=0), dict(top_k=1, seed=1), dict(top_p=1e-6, seed=2)):
        assert run.generate("The", 12, **greedy) == likeliest, greedy

    several = run.generate("The", 12, num_samples=3, seed=5)
    assert type(several) is list and [len(s) for s in several] == [15] * 3 and len(set(several)) == 3
    assert all(s.startswith("The") for s in several) and run.generate("The", 12, num_samples=0) == []
    assert run.generate("The", 12, num_samples=1, seed=5) == [run.generate("The", 12, seed=5)]


def test_a_stream_comes_as_it_is_made(trained, monkeypatch):
    run, steps = trained(gpt), []
    monkeypatch.setattr(gpt, "next_token_probs", lambda *a, f=gpt.next_token_probs: steps.append(1) or f(*a))
    stream = run.stream("The", 10**9)
    assert inspect.isgenerator(stream) and next(stream) == "The" and not steps
    for _ in range(3):
        next(stream)
    assert len(steps) == 3


@every_preset
def test_scores_are_the_losses_of_the_tokens(trained, kind):
    run = trained(gpt, kind)
    for text in ("To", "The sun and moon!"[: run.config.block_size + 1]):
        idx = torch.from_numpy(run.vocab.encode(text.replace("!", "\n")))
        nats = run.score(text.replace("!", "\n"))
        assert isinstance(nats, np.ndarray) and nats.shape == (len(text) - 1,)
        with torch.no_grad():
            logprobs = run.model(idx[None, :-1])[0].log_softmax(-1)
        assert nats == pytest.approx(-logprobs[torch.arange(len(idx) - 1), idx[1:]].numpy(), abs=1e-5)
    assert run.score(PLAY[:100]).shape == (99,)


@every_preset
def test_evaluate_is_the_mean_score(trained, kind):
    run, n1 = trained(gpt, kind), int(0.9 * len(PLAY))
    for part, text in (("train", PLAY[:n1]), ("val", PLAY[n1:])):
        assert run.evaluate(part) == pytest.approx(run.score(text).mean(), rel=1e-5)
    assert run.evaluate() == run.evaluate("val")


@every_preset
def test_attention(trained, kind):
    run, text = trained(gpt, kind), "To be, or not to"
    if kind == "bigram":
        with pytest.raises(gpt.UserError, match="no attention"):
            run.attention(text)
        return
    for T in (1, 5, 16):
        maps = run.attention(text[:T])
        assert isinstance(maps, np.ndarray) and maps.shape == (run.config.n_layer, run.config.n_head, T, T)
        assert maps.sum(-1) == pytest.approx(np.ones(maps.shape[:-1]), abs=1e-5) and (maps >= 0).all()
        assert not np.triu(maps, k=1).any()


# ----------------------------------------------------------------------------------------------------------------------
# Where the data comes from, and what is written


@both
def test_a_file_a_path_and_the_data_itself_train_the_same(module, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n".join(NAMES) if module is makemore else PLAY)
    wanted = weights(train(module, max_steps=3))
    forms = [str(path), path]
    if module is makemore:
        forms += [tuple(NAMES), iter(NAMES)]
    else:
        forms += [PLAY.replace("\n", "\r\n")]
    for data in forms:
        run = train(module, data, max_steps=3)
        assert same(weights(run), wanted) and run.folder is None
        assert run.config.input_file == (str(path) if data in (path, str(path)) else "")
    assert same(weights(module.train(**tiny(module), input_file=str(path), max_steps=3)), wanted)


def contexts(run, steps):
    """Where the contexts begin that so many steps read, from the step at which the run stands."""
    starts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.data, "batch", lambda part, *_: starts.extend(part.tolist()))
        for _ in range(steps):
            run.draw()
            run.progress.step += 1
    return starts


def test_an_epoch_brings_every_context_once_and_the_next_one_others_in_another_order():
    run = gpt.train(PLAY, **tiny(gpt, max_steps=0))
    size, (_, high) = run.config.block_size, run.data.parts["train"]
    steps = (high - size) // size // run.config.batch_size  # of an epoch
    epochs = contexts(run, steps), contexts(run, steps)
    for starts in map(sorted, epochs):
        assert min(np.diff(starts)) >= size and starts[0] >= 0 and starts[-1] + size < high
    assert not set(epochs[0]) & set(epochs[1])
    assert [start // size for start in epochs[0]] != [start // size for start in epochs[1]]
    assert epochs[1] != sorted(epochs[1])
    run.progress.step = steps + 3  # as if it went on from there
    assert contexts(run, 2) == epochs[1][3 * run.config.batch_size :][: 2 * run.config.batch_size]
    other = gpt.train(PLAY, **tiny(gpt, max_steps=0), seed=1)
    assert contexts(other, steps) != epochs[0]


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_an_epoch_brings_every_name_and_every_window_once(kind, monkeypatch):
    run = makemore.train(NAMES, **tiny(makemore, kind, max_steps=0))
    data, seen = run.examples("train"), []
    monkeypatch.setattr(data, "batch", lambda index, batch=data.batch: seen.extend(index.tolist()) or batch(index))
    steps = len(data) // 16  # of an epoch
    for _ in range(2 * steps):
        run.learn() if run.optimizer else run.train(max_steps=1)
    epochs = seen[: 16 * steps], seen[16 * steps : 32 * steps]
    assert all(len(set(epoch)) == 16 * steps for epoch in epochs) and epochs[0] != epochs[1]
    assert set(epochs[0]) <= set(range(len(data))) and sorted(epochs[0]) != epochs[0]


@both
def test_what_dropout_draws_follows_from_the_seed_on_every_device(module, monkeypatch):
    drawn = []
    for seed in (7, 7, 8):
        module.reseed(torch.device("cpu"), seed)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    told = []
    monkeypatch.setattr(torch, "manual_seed", told.append)
    module.reseed(torch.device("cuda", 1), 5)
    assert told == [5]


@both
def test_a_draw_of_more_than_there_are_has_all_of_them(module):
    for step in range(9):
        index, epoch = module.drawn(7, 17, step, 1)
        assert epoch == step and sorted(set(map(index.tolist().count, range(7)))) == [2, 3]
    assert module.drawn(7, 3, 5, 1)[1] == 2 and not set(module.drawn(7, 3, 4, 1)[0]) & set(module.drawn(7, 3, 5, 1)[0])


def test_a_batch_of_more_contexts_than_there_are_has_all_of_them():
    run = gpt.train(PLAY[:400], **tiny(gpt, max_steps=0, batch_size=64))
    starts = contexts(run, 1)
    n = (360 - 16) // 16
    often = [starts.count(start) for start in set(starts)]
    assert len(starts) == 64 and len(often) == n and set(often) == {64 // n, 64 // n + 1}


@both
def test_text_from_a_program_is_not_called_by_the_name_of_a_file(module):
    data = ["a", "b"] if module is makemore else "too\nshort"
    with pytest.raises(module.UserError) as e:
        train(module, data, max_steps=1)
    assert f"{module.Config.input_file} " not in str(e.value)


@both
def test_a_folder_keeps_the_run_wherever_one_stands(module, tmp_path, monkeypatch):
    run = train(module, max_steps=6, work_dir="deep/kept")
    run.save(str(tmp_path / "another"))
    assert {"model.pt", "last.pt", "log.csv"} <= {*files("deep/kept")}
    monkeypatch.chdir(tmp_path.parent)
    before = torch.get_rng_state()
    loaded = module.load(tmp_path / "deep/kept")
    assert torch.equal(torch.get_rng_state(), before)
    assert answers(loaded) == answers(run) and same(weights(loaded), weights(run))
    assert loaded.folder == tmp_path / "deep/kept" and loaded.config.n_embd == 8 and loaded.vocab == run.vocab
    assert same(module.load(str(tmp_path / "deep/kept")).progress.history, run.progress.history)
    assert module.load(tmp_path / "deep/kept", "last.pt").progress.step == 6

    loaded.save(tmp_path / "a/copy")
    assert "model.pt" in files(tmp_path / "a/copy")
    for folder in ("a/copy", "another"):
        assert answers(module.load(tmp_path / folder)) == answers(run)


@both
def test_a_loaded_model_is_ready_to_be_asked(module, trained):
    """As `train` hands it over: in eval mode, whatever it is that asks."""
    trained(module).save("kept")
    assert not trained(module).model.training and not module.load("kept").model.training


@both
def test_a_loaded_run_evaluates_on_the_data_where_it_still_is(module, tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n".join(NAMES) if module is makemore else PLAY)
    wanted = train(module, path, max_steps=3, work_dir="kept").evaluate()
    train(module, path, max_steps=3).save("saved")
    assert module.load("kept").evaluate() == module.load("saved").evaluate() == wanted
    path.write_text("another\nthing\nhere\n" * 9)
    with pytest.raises(module.UserError, match=r"data\.txt has changed: what this model was trained on is needed"):
        module.load("saved").evaluate()
    train(module, NAMES if module is makemore else PLAY, max_steps=3).save("alone")
    Path("alone/trained_on.txt").rename("alone/input.txt")  # its name in older folders
    assert module.load("alone").evaluate() == wanted
    Path("alone/input.txt").unlink()
    with pytest.raises(module.UserError, match=r"^there is no text in the folder: what this model was trained on"):
        module.load("alone").evaluate()
    assert answers(module.load("saved")) == answers(module.load("kept"))


@both
def test_a_folder_keeps_the_data_that_no_file_holds(module, tmp_path, monkeypatch):
    wanted = train(module, max_steps=3, work_dir="kept").evaluate()
    assert module.load("kept").evaluate() == wanted
    before = checkpoint("kept")["model"]
    with pytest.raises(module.UserError, match="the text has changed" if module is makemore else "changed"):
        train(module, NAMES[:30] if module is makemore else PLAY[:900], work_dir="kept", resume=True, max_steps=9)
    assert same(checkpoint("kept")["model"], before) and module.load("kept").evaluate() == wanted


@both
@pytest.mark.parametrize("work_dir", ["kept", None])
def test_a_folder_brings_the_data_that_no_file_holds_along(module, work_dir, tmp_path, monkeypatch):
    run = train(module, max_steps=3, work_dir=work_dir)
    wanted = run.evaluate()
    if not work_dir:
        run.save("kept")
    monkeypatch.chdir(tmp_path.anchor)
    assert module.load(tmp_path / "kept").evaluate() == wanted
    let_go()
    shutil.move(tmp_path / "kept", tmp_path / "moved")
    assert module.load(tmp_path / "moved").evaluate() == wanted


@both
def test_without_a_folder_nothing_is_written_and_nothing_said(module, capsys):
    run = train(module, max_steps=4)
    answers(run)
    run.evaluate()
    run.train(max_steps=6)
    assert files() == [] and capsys.readouterr() == ("", "")
    train(module, max_steps=4, work_dir="kept")
    answers(module.load("kept"))
    assert capsys.readouterr() == ("", "")


@both
def test_verbose_says_what_the_command_line_says(module, capsys):
    train(module, max_steps=4, work_dir="kept", verbose=True)
    out, err = capsys.readouterr()
    assert err == "" and re.search(r"^step 0/4 .*\n .*\nstep 1/4 ", out, re.MULTILINE)
    module.load("kept", verbose=True).score(NAMES if module is makemore else "The")
    assert capsys.readouterr() == ("", "")


# ----------------------------------------------------------------------------------------------------------------------
# Keywords are the flags


MISTAKES = [
    (dict(colour="red"), "colour"),
    (dict(colour=True), "colour"),
    (dict(colour=False), "colour"),
    (dict(batch_size=2.5), "batch_size"),
    (dict(batch_size="many"), "batch_size"),
    (dict(max_steps=True), "max_steps"),
    (dict(max_steps=[3]), "max_steps"),
    (dict(batch_size=0), "batch_size"),
    (dict(learning_rate="fast"), "learning_rate"),
    (dict(learning_rate=math.nan), "learning_rate"),
    (dict(learning_rate=-1), "learning_rate"),
    (dict(dropout=1.0), "dropout"),
    (dict(max_steps=-2), "max_steps"),
    (dict(schedule="square"), "schedule"),
    (dict(top_p=1.5), "top_p"),
    (dict(temperature=-0.1), "temperature"),
    (dict(seed=-1), "seed"),
    (dict(work_dir=""), "work_dir"),
    (dict(device="tpu"), "device"),
    (dict(device="cuda"), "device"),
]


@both
@pytest.mark.parametrize("given, name", MISTAKES, ids=str)
def test_a_mistake_is_a_value_error_that_names_the_flag(module, given, name):
    settings = {**tiny(module, max_steps=1), **given}
    with pytest.raises(ValueError, match=flag(name)) as e:
        module.train(DATA[module], **settings)
    assert type(e.value) is module.UserError and "\n" not in str(e.value) and files() == []


@both
@pytest.mark.parametrize("given, name", [(g, n) for g, n in MISTAKES if n != "work_dir"], ids=str)
def test_load_checks_what_train_checks(module, given, name, trained):
    trained(module).save("kept")
    with pytest.raises(ValueError, match=flag(name)) as e:
        module.load("kept", **given)
    assert type(e.value) is module.UserError


@both
def test_an_unknown_kind_is_named_with_those_that_there_are(module):
    first = next(iter(module.ROWS))
    with pytest.raises(ValueError, match=f"{flag(module.KIND)} nope is unknown: choose among {first}"):
        module.train(DATA[module], **{module.KIND: "nope"})


@both
def test_none_is_as_good_as_not_given(module):
    nothing = dict(work_dir=None, learning_rate=None, seed=None, resume=None)
    assert same(weights(train(module, max_steps=3, **nothing)), weights(train(module, max_steps=3)))


@both
@pytest.mark.parametrize(
    "settings", [dict(temperature=-1), dict(top_p=2), dict(top_k=1.5), dict(seed=-1), dict(seed="x")], ids=str
)
def test_sampling_checks_its_settings(module, settings, trained):
    run = trained(module)
    with pytest.raises(module.UserError, match=flag(next(iter(settings)))):
        run.sample(2, **settings) if module is makemore else run.generate("a", 2, **settings)
    with pytest.raises(module.UserError, match="-1: must be a number from 0 to 1e"):
        run.sample(-1) if module is makemore else run.generate("a", -1)
    with pytest.raises(module.UserError, match="unknown to this model: 'É'"):
        run.sample(1, prefix="É") if module is makemore else run.generate("É", 1)


NO_SAMPLING = [dict(n_embd=8), dict(max_steps=3), dict(work_dir="x"), dict(resume=True), dict(colour=1)]


@pytest.mark.parametrize("given", NO_SAMPLING, ids=str)
def test_samples_take_nothing_but_settings_of_sampling(given, trained):
    with pytest.raises((TypeError, ValueError), match=next(iter(given))):
        trained(makemore).sample(2, **given)


@pytest.mark.parametrize("given", NO_SAMPLING, ids=str)
def test_texts_take_nothing_but_settings_of_sampling(given, trained):
    run = trained(gpt)
    for ask in (run.generate, lambda *prompt, **given: next(run.stream(*prompt, **given))):
        with pytest.raises((TypeError, ValueError), match=next(iter(given)).replace("_", "[-_]")):
            ask("a", 2, **given)


WRONG_DATA = {
    makemore: [5, [5], [], "", [""], b"ab\n", None, [*"abc", "d\re"], [*"abc", "d\0e"]],
    gpt: [5, ["a\n", "b"], [], "", b"ab\n"],
}


@pytest.mark.parametrize("module, data", [(m, data) for m, some in WRONG_DATA.items() for data in some], ids=str)
def test_what_is_no_data_is_refused(module, data):
    with pytest.raises(module.UserError):
        module.train(data, **tiny(module, max_steps=1))  # None is the default file, which is not here


MODES_OF_THE_PROGRAM = [(m, name) for m in (makemore, gpt) for name in m.MODES if name not in ("train", "resume")]
each_mode = pytest.mark.parametrize("module, mode", MODES_OF_THE_PROGRAM, ids=lambda x: getattr(x, "__name__", x))


def asked(module, mode):
    return {mode: True if module.SETTINGS[mode].type is bool else "x"}


@each_mode
def test_modes_of_the_command_line_are_refused(module, mode):
    says = "there is no x" if mode == "init_from" else f"{mode} is for the command line"  # the first is a way to begin
    with pytest.raises(module.UserError, match=says):
        train(module, **asked(module, mode))


@pytest.mark.filterwarnings("ignore")
@each_mode
def test_load_refuses_the_modes_of_the_command_line(module, mode, trained):
    trained(module).save("kept")
    with pytest.raises(module.UserError, match=mode.replace("_", "[-_]")):
        module.load("kept", **asked(module, mode))


def test_diagnose_is_for_the_command_line():
    with pytest.raises(makemore.UserError, match="diagnose is for the command line"):
        train(makemore, diagnose=True)


@pytest.mark.parametrize(
    "call", [lambda run: run.train(diagnose=True), lambda run: makemore.load("kept", diagnose=True)]
)
def test_diagnose_is_for_the_command_line_later_too(call):
    with pytest.raises(makemore.UserError, match="diagnose"):
        call(train(makemore, max_steps=1, work_dir="kept"))


@both
def test_load_has_one_folder(module, trained):
    trained(module).save("kept")
    with pytest.raises((TypeError, module.UserError), match=r"work.dir"):
        module.load("kept", work_dir="other")


UNUSED = {
    makemore: ("mlp", dict(n=3), "--n is not used by mlp, only by ngram"),
    gpt: ("bigram", dict(n_layer=2), "--n-layer is not used by bigram, only by tiny, mini, gpt2, small, baby, large"),
}
CALLS = {
    "train": lambda module, kind, given: train(module, kind=kind, max_steps=1, **given),
    "load": lambda module, kind, given: module.load("kept", **given),
    "resume": lambda module, kind, given: train(module, kind=kind, work_dir="kept", resume=True, **given),
}


@both
@pytest.mark.parametrize("call", CALLS)
def test_a_setting_that_nobody_reads_is_a_warning_to_the_caller(module, call):
    kind, given, says = UNUSED[module]
    usual = train(module, kind=kind, max_steps=1, work_dir="kept")
    with pytest.warns(UserWarning, match=says) as caught:
        run = CALLS[call](module, kind, given)
    assert len(caught) == 1 and same(weights(run), weights(usual))


@both
@pytest.mark.parametrize("call", ["train", "load", "resume"])
def test_the_warning_points_to_the_line_that_called(module, call):
    kind, given, _ = UNUSED[module]
    train(module, kind=kind, max_steps=1, work_dir="kept")
    resume = dict(work_dir="kept", resume=True) if call == "resume" else {}
    with pytest.warns(UserWarning) as caught:
        if call == "load":
            module.load("kept", **given)
        else:
            module.train(DATA[module], **tiny(module, kind), max_steps=1, **given, **resume)
    assert caught[0].filename == __file__


def test_counts_warn_of_settings_of_training(trained):
    run = train(makemore, kind="ngram")
    with pytest.warns(UserWarning, match="--learning-rate is not used by ngram, only by bigram, mlp") as caught:
        run.train(learning_rate=0.1)
    assert caught[0].filename == __file__


@both
@pytest.mark.parametrize(
    "given", [dict(n_embd=9), dict(temperature=0.5), dict(work_dir="x"), dict(device="cpu")], ids=str
)
def test_train_takes_settings_of_training_only(module, given):
    run = train(module, max_steps=2)
    before = weights(run)
    with pytest.raises(module.UserError, match=f"settings of training, not {next(iter(given))}"):
        run.train(**given)
    for fixed in (dict(seed=5), dict(optimizer="sgd" if module is makemore else "adamw")):
        with pytest.raises(module.UserError, match=f"{flag(next(iter(fixed)))} .* was trained with"):
            run.train(**fixed)
    with pytest.raises(module.UserError, match="--max-steps"):
        run.train(max_steps="more")
    assert same(weights(run), before) and run.train().progress.step == 2


# ----------------------------------------------------------------------------------------------------------------------
# Going on


KINDS = [(makemore, "mlp"), (makemore, "transformer"), (gpt, "mini")]
some_kinds = pytest.mark.parametrize("module, kind", KINDS, ids=lambda x: getattr(x, "__name__", x))


GOING_ON = dict(decay_steps=12, dropout=0.2, eval_interval=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(module, kind) -> a run of nine steps in one go, and its folder; neither is changed."""
    runs = {}

    def get(module, kind):
        if (module, kind) not in runs:
            folder = tmp_path_factory.mktemp("whole")
            path = folder / "data.txt"
            path.write_text("\n".join(NAMES) if module is makemore else PLAY)
            runs[module, kind] = train(module, path, kind, max_steps=9, work_dir=folder, **GOING_ON), folder
        return runs[module, kind]

    return get


@some_kinds
@pytest.mark.parametrize("place", ["memory", "folder", "a loaded folder", "a saved run", "resume", "the folder alone"])
def test_it_goes_on_as_if_it_had_never_stopped(module, kind, place, whole, tmp_path):
    path, (whole, folder) = tmp_path / "data.txt", whole(module, kind)
    path.write_text("\n".join(NAMES) if module is makemore else PLAY)
    given = dict(kind=kind, **GOING_ON, work_dir=None if place in ("memory", "a saved run") else "parts")
    run = train(module, path, max_steps=4, **given)
    assert run.progress.step == 4
    if place == "a saved run":
        run.save("parts")
    if place == "resume":
        run = train(module, path, max_steps=9, **given, resume=True)
    elif place == "the folder alone":
        run = module.train(work_dir="parts", resume=True, max_steps=9)
    else:
        run = (module.load("parts") if place in ("a loaded folder", "a saved run") else run).train(max_steps=9)
    assert run.progress.step == 9 and not run.model.training
    rows = [row[:1] + row[3:] for row in run.progress.history if row[0] != 4]
    assert rows == [row[:1] + row[3:] for row in whole.progress.history]
    if run.progress.best_step == whole.progress.best_step:
        assert same(weights(run), weights(whole))
    if place != "memory":
        assert same_state(folder, "parts")
    assert run.train().progress.step == 9  # a finished run has nothing left to do


@both
def test_what_memory_keeps_is_not_touched_by_what_comes_after(module):
    """Also not by steps that were interrupted for good: from what was kept, it goes on exactly."""
    given = dict(decay_steps=9, eval_interval=3)
    wanted, run = train(module, max_steps=9, **given), train(module, max_steps=3, **given)
    with pytest.raises(KeyboardInterrupt), module.learning(run, dict(max_steps=9)):
        for _ in range(2):
            run.learn()
        raise KeyboardInterrupt
    assert same(weights(run.train(max_steps=9)), weights(wanted))
    assert [row[3] for row in run.progress.history] == [row[3] for row in wanted.progress.history]


@both
@pytest.mark.parametrize("work_dir", ["out", None])
def test_a_training_that_came_to_nothing_leaves_the_best_model(module, work_dir):
    run = train(module, max_steps=3, work_dir=work_dir)
    wanted = answers(run)
    with pytest.raises(module.UserError, match=f"the loss is .* keeps the model of step {run.progress.best_step}"):
        run.train(max_steps=60, learning_rate=1e30)
    assert answers(run) == wanted and not run.model.training
    run.save("saved")
    assert answers(module.load("saved")) == wanted


@both
@pytest.mark.parametrize("work_dir", ["out", None])
def test_a_training_that_was_broken_off_or_could_not_be_saved_goes_on(module, work_dir, monkeypatch):
    """From the state that was saved last, whatever it was that failed."""
    whole, run = train(module, max_steps=9, decay_steps=9), train(module, max_steps=3, decay_steps=9, work_dir=work_dir)
    saved = answers(run)
    for broken in ("pack" if work_dir else "snapshot", "learning_rate", "glimpse"):
        with monkeypatch.context() as patch, pytest.raises((module.UserError, KeyboardInterrupt)):
            error = module.UserError("the disk is full") if broken == "pack" else KeyboardInterrupt
            patch.setattr(module, broken, lambda *_, error=error: (_ for _ in ()).throw(error))
            run.train(max_steps=9)
        assert run.progress.step == 3 and len(run.progress.samples) == len(run.progress.history)
        assert answers(run) == saved
    assert same(weights(run.train(max_steps=9)), weights(whole))


@both
def test_a_model_that_was_saved_untrained_begins_anew_after_its_first_row_failed(module, monkeypatch, tmp_path):
    (tmp_path / "data.txt").write_text("\n".join(NAMES) if module is makemore else PLAY)
    wanted = train(module, tmp_path / "data.txt", max_steps=3)
    given = module.check_settings(dict(**tiny(module), input_file="data.txt", max_steps=3))
    module.start_run(given).save("out")
    run = module.load("out")
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            run.train()
        assert run.progress == module.Progress()
    assert same(weights(run.train()), weights(wanted))


@both
def test_a_mask_of_minus_infinity_in_a_model_of_ones_own_is_no_fault_of_its_file(module, monkeypatch):
    rows, kind = (module.MODELS, "bigram") if module is makemore else (module.PRESETS, "bigram")

    class Masked(rows[kind].model):
        def __init__(self, *given):
            super().__init__(*given)
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    monkeypatch.setitem(rows, kind, module.replace(rows[kind], model=Masked))
    train(module, kind=kind, max_steps=3, work_dir="out")
    assert module.load("out").train(max_steps=6).progress.step == 6
    broken = checkpoint("out", "model.pt")
    broken["model"]["mask"][0, 0] = math.inf
    torch.save(broken, "out/model.pt")
    with pytest.raises(module.UserError, match="not finite"):
        module.load("out")


def test_a_loaded_run_is_measured_as_before():
    run = train(gpt, max_steps=3, eval_interval=1, work_dir="out", eval_chars=20)
    assert gpt.load("out").evaluate() == run.evaluate() != gpt.load("out", eval_chars=0).evaluate()


@both
def test_other_settings_are_refused_in_any_spelling(module):
    run = train(module, max_steps=2)
    with pytest.raises(module.UserError, match="only settings of training, not n_embd"):
        run.train(**{"n-embd": 9})


@both
@pytest.mark.parametrize("progress", [None, {"history": 5}, {"history": [7]}], ids=str)
def test_a_broken_state_to_go_on_from_is_refused(module, progress):
    train(module, max_steps=3, work_dir="out")
    broken = checkpoint("out") | {"progress": progress}
    torch.save(broken, "out/last.pt")
    with pytest.raises(module.UserError, match="the checkpoint does not fit this version"):
        module.load("out").train(max_steps=6)


@both
def test_going_on_keeps_the_settings_of_sampling(module):
    run = train(module, max_steps=2, temperature=0.5, top_k=3, num_samples=2)
    run.train(max_steps=4)
    assert (run.config.temperature, run.config.top_k, run.config.num_samples) == (0.5, 3, 2)
    run.save("saved")
    assert module.load("saved").config.temperature == module.Config.temperature  # which were for that run only


@both
def test_a_finished_run_stays_as_it_is(module):
    run = train(module, max_steps=3)
    before, history = weights(run), list(run.progress.history)
    before = {name: tensor.clone() for name, tensor in before.items()}
    for go_on in (run.train, lambda: run.train(max_steps=2), lambda: run.train(max_steps=3)):
        assert same(weights(go_on()), before) and run.progress.history == history


@both
def test_resume_needs_a_folder_with_a_run(module):
    for given in (dict(), dict(work_dir="none")):
        with pytest.raises(module.UserError, match=r"there is no .*last\.pt"):
            train(module, resume=True, **given)
    assert files() == []


def test_a_text_from_a_program_may_begin_with_a_byte_order_mark():
    run = train(gpt, "\ufeff" + PLAY, max_steps=2, work_dir="out")
    assert "\ufeff" not in run.vocab.chars and gpt.load("out").evaluate("all") == run.evaluate("all")


def test_tokens_are_drawn_as_the_lecture_draws_them():
    run = train(makemore, kind="bow", max_steps=0)
    x, _ = run.examples("train").batch(torch.arange(2))
    words = ["." + line for line in run.data.train[:2]]
    assert [run.vocab.decode(row) for row in x] == [word.ljust(max(map(len, words)), ".") for word in words]


def test_a_frozen_layer_stays_as_it_is():
    run = train(gpt, max_steps=2)
    frozen = list(run.model.blocks[0].mlp.parameters())
    for p in frozen:
        p.requires_grad_(False)
    before, head = [p.clone() for p in frozen], run.model.head.weight.clone()
    run.train(max_steps=4)
    assert same(before, frozen) and not torch.equal(run.model.head.weight, head)


@pytest.mark.parametrize("library", [object(), None], ids=["without mallopt", "as on Windows"])
def test_memory_need_not_be_kept(library, monkeypatch):
    asked = []
    monkeypatch.setattr(gpt.ctypes, "CDLL", lambda name: asked.append(name) or library or int(name))
    assert train(gpt, max_steps=1).progress.step == 1 and asked == [None]


def test_a_stream_leaves_the_model_as_it_is_between_two_characters():
    run = train(gpt, max_steps=2)
    wanted, stream = run.generate("the", 8), run.stream("the", 8)
    run.model.train()
    text = next(stream)
    for piece in stream:
        assert run.model.training
        text += piece
    assert text == wanted


def test_finetuning_in_python():
    first = train(gpt, max_steps=4, work_dir="first")
    run = train(gpt, PLAY + "~~\n", init_from="first/model.pt", max_steps=0)
    assert set(run.vocab.chars) == {*first.vocab.chars, "~"} and os.listdir() == ["first"]
    assert torch.equal(run.model.token.weight[:-1], first.model.token.weight) and run.progress.step == 0  # ~ is last


@pytest.mark.parametrize("work_dir", [None, "second"])
def test_what_was_finetuned_reads_its_text_in_its_own_alphabet_when_it_is_loaded(work_dir):
    """The text that it learned last may lack characters that it knows from the first."""
    train(gpt, max_steps=0, work_dir="first")
    other = PLAY.replace(" ", "").replace("a", "~")
    run = train(gpt, other, init_from="first/model.pt", max_steps=2, work_dir=work_dir)
    run.save("copy")
    Path("other.txt").write_text(other, encoding="utf-8")
    loaded = gpt.load("copy", input_file="other.txt")
    assert loaded.evaluate() == run.evaluate() == pytest.approx(loaded.score(other[int(0.9 * len(other)) :]).mean())


def test_a_part_is_shared_by_processes_and_a_score_is_not():
    run, totals = train(gpt, PLAY * 10, max_steps=0), []
    whole, scores = run.evaluate("train"), run.score(PLAY)
    for rank in (0, 1):
        run.processes = SimpleNamespace(rank=rank, size=2, sum=lambda *values: totals.append(values) or values)
        run.evaluate("train")
        assert (run.score(PLAY) == scores).all()
    (a, n), (b, m) = totals
    assert n and m and (a + b) / (n + m) == pytest.approx(whole)


def test_a_text_may_hold_any_separator():
    run = train(gpt, "a\0b\n" * 500, max_steps=4)
    assert run.generate("a", 99, num_samples=1) == [run.generate("a", 99)] and "\0" in run.generate("a", 99)


# ----------------------------------------------------------------------------------------------------------------------
# Ctrl-C, and threads


@pytest.fixture
def signals_at(monkeypatch):
    """Send signals from inside the training, when it comes to a step: each once."""

    def arm(module, step, *signums):
        left, rate = list(signums), module.learning_rate

        def learning_rate(now, *args):
            while now == step and left:
                signal.raise_signal(left.pop(0))
            return rate(now, *args)

        monkeypatch.setattr(module, "learning_rate", learning_rate)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield arm
    assert {s: signal.getsignal(s) for s in before} == before
    signal.signal(signal.SIGINT, inherited)


@both
@pytest.mark.parametrize("folder", [None, "kept"])
def test_ctrl_c_hands_back_what_was_learned_so_far(module, folder, signals_at):
    whole = train(module, max_steps=20, eval_interval=5, work_dir="whole")
    signals_at(module, 7, signal.SIGINT)
    run = train(module, max_steps=20, eval_interval=5, work_dir=folder)
    assert run.progress.step == 8 and run.progress.history[-1][0] == 8 and not run.model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert math.isfinite(run.evaluate()) and answers(run)
    if folder:
        assert answers(module.load(folder)) == answers(run)
    run.train()
    assert run.progress.step == 20
    rows = [row[:1] + row[3:] for row in run.progress.history if row[0] != 8]
    assert rows == [row[:1] + row[3:] for row in whole.progress.history]
    if folder:
        assert same_state(folder, "whole")


@both
def test_an_endless_run_is_ended_by_ctrl_c_and_can_be_bounded(module, signals_at):
    signals_at(module, 9, signal.SIGINT)
    run = train(module, max_steps=-1)
    assert run.progress.step == 10 and answers(run)
    assert run.train(max_steps=12).progress.step == 12


@both
def test_a_second_ctrl_c_is_a_keyboard_interrupt(module, signals_at):
    signals_at(module, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(module, max_steps=20)


@both
def test_a_term_takes_effect_when_everything_is_saved(module, signals_at):
    saved = []
    previous = signal.signal(signal.SIGTERM, lambda *_: saved.append(checkpoint("kept")["progress"]["step"]))
    try:
        signals_at(module, 3, signal.SIGTERM)
        run = train(module, max_steps=20, eval_interval=5, work_dir="kept")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert saved == [4] == [run.progress.step]


@both
def test_a_mistake_in_training_leaves_the_handlers_alone(module, signals_at):
    with pytest.raises(module.UserError, match="the loss is"):
        train(module, max_steps=300, learning_rate=1e30)


@both
def test_a_thread_trains_and_answers(module, trained):
    got = []
    thread = threading.Thread(target=lambda: got.append(train(module, max_steps=12, learning_rate=0.02)))
    thread.start()
    thread.join(60)
    (run,) = got
    assert same(weights(run), weights(trained(module))) and answers(run) == answers(trained(module))
    assert run.train(max_steps=13).progress.step == 13


# ----------------------------------------------------------------------------------------------------------------------
# Models of one's own: the scripts of the README, as they stand there


OWN = {makemore: ("mine", "names.txt"), gpt: ("convolution", "input.txt")}


def script_of_the_readme(name):
    (script,) = re.findall(rf"```python\n(# {name}\.py\n.*?)```", README, re.DOTALL)
    return script


@both
def test_a_model_of_ones_own_takes_twenty_lines(module):
    title, *lines = script_of_the_readme(OWN[module][0]).splitlines()
    assert title == f"# {OWN[module][0]}.py" and len(lines) <= 20


@both
def test_a_model_of_ones_own(module, tmp_path, monkeypatch, sketched, capsys):
    """It trains, is killed, resumes, samples and scores like ours, and the stock program says what it lacks."""
    kind, data = OWN[module]
    (tmp_path / f"{kind}.py").write_text(script_of_the_readme(kind), encoding="utf-8")
    shutil.copy(module.__file__, tmp_path)
    text = (ROOT / data).read_text(encoding="utf-8")
    (tmp_path / data).write_text("\n".join(text.split()[:300]) if module is makemore else text[:8000])
    train = [flag(module.KIND), kind, "--device", "cpu", "-b", "8", "--eval-interval", "5", "--decay-steps", "500"]
    train += ["--dtype", "float32"] if module is gpt else []  # elsewhere than here, the processor decides
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    endless = [sys.executable, f"{kind}.py", *train, "--max-steps", "-1", "-o", "out"]
    process = subprocess.Popen(endless, cwd=tmp_path, env=env, **PIPES)
    assert any(re.match("step [1-9]", line) for line in process.stdout) and process.poll() is None
    process.kill()
    assert process.communicate()[1] == ""
    reached = checkpoint("out")["progress"]["step"]
    assert reached >= 5

    def call(*argv):
        """The script in this process, where starting takes no time."""
        monkeypatch.setattr(sys, "argv", [f"{kind}.py", *argv])
        with pytest.raises(SystemExit) as e:
            runpy.run_path(f"{kind}.py", run_name="__main__")
        out, err = capsys.readouterr()
        assert (e.value.code, err) == (0, "")
        return out

    brief = ["--max-new-tokens", "30"] if module is gpt else ["--num-samples", "4"]
    steps = ["--max-steps", str(reached + 7), *brief]
    with monkeypatch.context() as patch:
        patch.setitem(module.ROWS, kind, None)  # the script's own; and afterwards it is stock again
        resumed, whole = call("-o", "out", "--resume", *steps), call(*train, "-o", "whole", *steps)
        assert same_state("out", "whole") and same_state("out", "whole", "model.pt")
        last = re.compile(r"^final: train \d\.\d{4} .*$", re.MULTILINE)
        assert last.search(resumed)[0] == last.search(whole)[0]
        progress = module.Progress(**checkpoint("out")["progress"])
        assert progress.best_loss < progress.history[0][3]

        samples = call("-o", "out", "--sample-only", "--prefix", "a", *brief)
        if module is makemore:
            assert sum(line.startswith("  a") for line in samples.splitlines()) == 4
        else:
            assert samples.startswith("a") and len(samples) == 1 + 30 + 1
        assert re.search(r"^eval: \d\.\d{4} nats/char", call("-o", "out", "--eval", data), re.MULTILINE)

        about, defaults = module.ROWS[kind].about, module.ROWS[kind].defaults
        row = re.search(rf"^  {kind} +{re.escape(about)}\n((?: {{18}}.*\n?)+)", call("--help"), re.MULTILINE)[1]
        assert row.split() == [word for name, x in defaults.items() for word in (flag(name), str(x))]
        of_it = " ".join(call(flag(module.KIND), kind, "--help").partition("is one of these")[0].split())
        assert re.search(rf"channels of the embedding[^\[]* \[{defaults['n_embd']}\]", of_it)
        assert f"peak learning rate [{defaults['learning_rate']}]" in of_it and f"(not used by {kind})" in of_it

    for argv in (["--sample-only"], ["--eval", data], ["--resume"]):
        assert module.main(["-o", "out", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"{module.KIND} {kind!r} is not known here" in err


# ----------------------------------------------------------------------------------------------------------------------
# In a notebook


CELLS = {
    "load": "import makemore, gpt\nnames, play = makemore.load('names', device='cpu'), gpt.load('play', device='cpu')",
    "sample": "names.sample(5, prefix='ma')",
    "score": "names.score(['anna', 'bob'])",
    "train": "makemore.train(['ann', 'bob', 'cid', 'dan'] * 9, type='bigram', max_steps=3, device='cpu').sample(2)",
    "interrupt": """
        import _thread, signal, threading, time

        def interrupt(before=signal.getsignal(signal.SIGINT)):
            while signal.getsignal(signal.SIGINT) is before:  # until it trains
                time.sleep(0.01)
            _thread.interrupt_main()

        threading.Thread(target=interrupt).start()
        endless = makemore.train(['ann', 'bob', 'cid', 'dan'] * 9, type='bigram', max_steps=-1, device='cpu')
        endless.progress.step >= 0, len(endless.sample(3))
    """,
    "write": "for piece in play.stream('The', 20):\n    print(piece, end='')",
    "nats": "play.score('The sun').shape",
    "attention": "play.attention('The sun').shape",
    "warning": "import warnings; names = makemore.load('names', n=3)",
    "program": "gpt.main(['-o', 'play', '--device', 'cpu', '--attention', 'The sun'])",
    "graph": "from micrograd import Value\n(Value(2.0, 'x') * Value(-3.0, 'w') + Value(6.9, 'b')).tanh()",
    "plot": "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot(play.score('The sun and moon'));",
}


def test_in_a_notebook(tmp_path, trained, monkeypatch):
    """Loads, samples, scores, trains, can be interrupted, and shows pictures; silent where nothing is to be said."""
    trained(makemore).save("names")
    trained(gpt).save("play")
    spec = tmp_path / "jupyter/kernels/this-python"
    ipykernel.kernelspec.write_kernel_spec(spec)  # of the interpreter that runs the tests, whatever else is installed
    for name, value in dict(
        JUPYTER_PATH=tmp_path / "jupyter", JUPYTER_RUNTIME_DIR=tmp_path / "runtime", IPYTHONDIR=tmp_path / "ipython",
        JUPYTER_CONFIG_DIR=tmp_path / "jupyter", PYTHONPATH=ROOT, PYDEVD_DISABLE_FILE_VALIDATION=1,
    ).items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(textwrap.dedent(source)) for source in CELLS.values()]
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=60, kernel_name="this-python", resources=where).execute()

    outputs = {name: cell.outputs for name, cell in zip(CELLS, book.cells, strict=True)}

    def shown(name, mime="text/plain"):
        (data,) = [o["data"] for o in outputs[name] if o["output_type"] in ("execute_result", "display_data")]
        return data[mime]

    def printed(name):
        return "".join(o["text"] for o in outputs[name] if o["output_type"] == "stream")

    assert outputs["load"] == []
    assert eval(shown("sample")) == trained(makemore).sample(5, prefix="ma") and printed("sample") == ""
    assert eval(shown("score")) == pytest.approx(trained(makemore).score(["anna", "bob"]))
    assert len(eval(shown("train"))) == 2 and printed("train") == ""
    assert shown("interrupt") == "(True, 3)" and printed("interrupt") == ""
    assert printed("write") == trained(gpt).generate("The", 20)
    assert shown("nats") == "(6,)" and shown("attention") == "(1, 2, 7, 7)"
    assert "UserWarning: --n is not used by mlp, only by ngram" in printed("warning")
    picture = Path("play/attention.png")
    assert printed("program") == f"attention: {picture}\n" and (tmp_path / picture).exists()
    svg = shown("graph", "image/svg+xml")
    assert "<svg" in svg and "tanh" in svg
    assert len(shown("plot", "image/png")) > 1000


# ----------------------------------------------------------------------------------------------------------------------
# The table: every setting, given a value that must matter, changes what comes out, or is refused, or named as not used


class Pen:
    """Stands in for axes, and for whatever belongs to them: notes what is drawn."""

    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)  # numpy asks what it is
        return Pen(self.calls, f"{self.name}.{name}")

    def __call__(self, *args, **given):
        self.calls.append((self.name, args, given))
        return 0.0, 1.0


def sketch(write):
    """What takes the place of `drawing`: a hundred times as fast, and the file is what was drawn, in words."""

    def plain(x):
        return np.asarray(x).tolist() if hasattr(x, "__array__") else type(x).__name__

    @contextlib.contextmanager
    def drawing(path, run, rows=1, columns=1, size=None):
        calls = []
        pens = [Pen(calls, str(i)) for i in range(rows * columns)]
        yield pens[0] if len(pens) == 1 else pens
        write(path, json.dumps(calls, default=plain))

    return drawing


# fmt: off
CHANGED = dict(  # values that differ from every default, and from TINY's
    n_layer=2, n_head=4, n_embd=12, n_embd2=20, lookback=2, dropout=0.5, max_steps=3, batch_size=8, learning_rate=0.5,
    weight_decay=50.0, schedule="step", warmup_steps=50, decay_steps=3, grad_clip=1e-6, eval_interval=1, seed=5,
    num_samples=7, temperature=0, top_k=1, top_p=0.01, work_dir="other", device="cuda", threads=2,
    input_file="other.txt",
    quiet=True, patience=1, interactive=True, resume=True, sample_only=True, eval="other.txt",
)
CHANGED = {
    makemore: dict(
        **CHANGED, block_size=16, dedup=True, type="bow", batchnorm=True, direct=True, init="zeros",
        n=3, smoothing="additive", strength=1.5, optimizer="sgd", backprop="manual", diagnose=True, prefix="a",
        num_workers=4, mix="mlp,ngram,mlp", fold_batchnorm=True, find_lr=True, check_backprop=True,
    ),
    gpt: dict(
        **CHANGED, block_size=20, preset="gpt2", positions="learned", activation="gelu",
        tied=True, optimizer="adamw", grad_accum=2, max_new_tokens=5, prompt="Th", dtype="bfloat16",
        compile="on", eval_chars=50, stop="e", init_from="mini/other.pt", attention="The sun",
    ),
}
AT_ONCE = {"num_samples", "max_new_tokens", "stop", "temperature", "top_p", "prefix", "prompt", "work_dir", "device"}
ALSO = {name: dict(max_steps=0) for name in AT_ONCE}  # no training is needed to see that these matter
ALSO["patience"] = dict(eval_interval=1, learning_rate=20)  # and this only matters where the loss does not fall
MODES = [
    *((makemore, "resume", kind) for kind in ("mlp", "ngram", "transformer")),
    *((makemore, "sample_only", kind) for kind in ("mlp", "ngram")),
    *((makemore, mode, "mlp") for mode in ("eval", "mix", "find_lr", "check_backprop")),
    (makemore, "fold_batchnorm", "wavenet"),
    *((gpt, mode, kind) for mode in ("resume", "init_from", "sample_only") for kind in ("mini", "bigram")),
    *((gpt, mode, "mini") for mode in ("eval", "attention")),
]
SPOKEN_OF = ("input_file", "work_dir", "init_from", "eval", "type", "backprop")  # in other words than the flag's name

def base(module, mode, kind):
    """The settings of the command that others are compared with."""
    shape, folder = tiny(module, kind, input_file="data.txt"), dict(work_dir="out", device="cpu")
    shape.pop("warmup_steps", 0)
    if mode == "check_backprop":
        shape.pop("device")
    steps = {"max_steps": 2, "eval_interval": 2, "warmup_steps": 0, "decay_steps": 8}
    steps = {k: v for k, v in steps.items() if k in module.uses(kind)}
    samples = {"num_samples": 9} if module is makemore else {"max_new_tokens": 7}
    tuning = dict(init_from=f"{kind}/model.pt", input_file="data.txt", batch_size=4)
    return {
        "train": {**shape, **folder, **steps, **samples},
        "resume": {**folder, "resume": True, **{k: 4 for k in steps if k == "max_steps"}, **samples},
        "init_from": {**folder, **steps, **tuning, **samples},
        "sample_only": {**folder, "sample_only": True, **samples},
        "eval": {**folder, "eval": "data.txt"},
        "mix": {**folder, "mix": "ngram,mlp", **samples},
        "fold_batchnorm": {**folder, "fold_batchnorm": True},
        "find_lr": {**folder, **shape, "find_lr": True},
        "check_backprop": {**shape, **(dict(batchnorm=True) if kind == "mlp" else {}), "check_backprop": True},
        "attention": {**folder, "attention": "To be"},
    }[mode]
# fmt: on


def another(module, mode, kind, name):
    """A value of this setting that is not the one that it has."""
    row, wanted = module.ROWS[kind].defaults, CHANGED[module][name]
    now = {**row, **base(module, mode, kind)}.get(name, module.SETTINGS[name].default)
    if name == "init_from":
        wanted = f"{kind}/other.pt"
    if name == module.KIND:
        now = kind
    if isinstance(now, bool) and wanted == now:
        return not now
    choices = module.SETTINGS[name].metadata["choices"] or module.ROWS
    return wanted if wanted != now else next(choice for choice in choices if choice != now)


def asked_about(module, mode, kind):
    """The settings to be tried: all but those that say to do something else instead, which are tried once per mode."""
    for name, f in module.SETTINGS.items():
        instead = f.metadata["group"] == "mode" and name != mode
        if not (instead and (mode == "train" or kind != USUAL[module])) and not (name == mode and f.type is bool):
            yield name


def command(settings):
    """Settings as a command line; what is True or False is a flag alone."""
    for name, x in settings.items():
        yield from [flag(name if x else f"no_{name}")] if isinstance(x, bool) else [flag(name), str(x)]


def copied(x):
    """A nest of dicts, lists and tensors anew, as a checkpoint that was written and read."""
    if isinstance(x, dict):
        return {key: copied(value) for key, value in x.items()}
    if isinstance(x, list):
        return [copied(value) for value in x]
    return x.clone() if isinstance(x, torch.Tensor) else x


Outcome = namedtuple("Outcome", "status out err held config")  # held: what the files hold; config: as it was understood


@pytest.fixture(scope="class")
def does(tmp_path_factory):
    """Run a command in a folder of its own, where every trained folder that MODES opens is at hand.

    Files are kept in a dict instead of on a disk, but for encoded texts, which are not read as a whole; and what takes
    time and is not the subject here is left out.
    """
    disk, shelves, numbers = {}, {}, itertools.count()

    def outcome(module, mode, kind, settings):
        place, (do, opens, _) = f"run{next(numbers)}/", module.MODES[mode]
        settings = {k: f"{place}{v}" if k == "work_dir" else v for k, v in settings.items()}
        for path in ("model.pt", "last.pt") if opens and mode not in ("mix", "init_from") else ():
            disk[f"{place}out/{path}"] = disk[f"{kind}/{path}"]
        os.chdir(shelves[module])
        run, out, err = None, io.StringIO(), io.StringIO()

        def spy(opened):
            """Where something is named as not used, all that counts is how the rest was understood."""
            nonlocal run
            run = opened
            return None if "is not used by" in err.getvalue() else do(run)

        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: print("a warning:", message, file=err)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(module.MODES, mode, module.MODES[mode]._replace(do=spy))
                status = module.main(list(command(settings)))
        held = {}
        for path in [path for path in disk if path.startswith(place)]:
            content = held[path.removeprefix(place)] = disk.pop(path)
            if path.endswith(".pt"):
                rows = [row[:1] + row[2:] for row in content["progress"]["history"]]  # without the seconds
                best_step = module.Progress(**content["progress"]).best_step
                held[path.removeprefix(place)] = content["model"], rows, best_step
            elif path.endswith("log.csv"):
                held[path.removeprefix(place)] = None  # has seconds, and nothing else that is new
        out = re.sub(rf" +[\d.]+ ms/step.*|{place[:-1]}[/\\]", "", out.getvalue())
        return Outcome(status, out, err.getvalue(), held, run and {**asdict(run.config), "work_dir": ""})

    def store(path, content):
        if Path(path).name == "tokens.bin":
            Path(path).write_bytes(b"".join(content))
        else:
            disk[Path(path).as_posix()] = copied(content)

    def stored(path):
        return copied(disk.get(Path(path).as_posix()))

    with pytest.MonkeyPatch.context() as patch:
        for module, data in ((makemore, NAMES[:30] + NAMES[:6]), (gpt, PLAY[:450])):
            load = module.load_checkpoint
            patch.setattr(module, "load_checkpoint", lambda path, load=load: stored(path) or load(path))
            patch.setattr(module, "locked", lambda path: os.makedirs(path, exist_ok=True) or contextlib.nullcontext())
            patch.setattr(module, "pack", lambda checkpoint: checkpoint)
            patch.setattr(module, "write_atomic", lambda path, content, ready=None: store(path, content))
            patch.setattr(module, "drawing", sketch(store))
            patch.setattr(module, "table_of_rows", str)
            shelves[module] = tmp_path_factory.mktemp(module.__name__)
            for name, part in (("data.txt", data), ("other.txt", data[: 2 * len(data) // 3])):
                (shelves[module] / name).write_text("\n".join(part) if module is makemore else part)
        patch.setattr(gpt, "measure_peak", lambda *_: 1e9)
        patch.setattr(torch, "compile", lambda model: model)
        patch.setattr(torch, "logspace", lambda a, b, n, f=torch.logspace: f(a, b, n // 20))
        patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)  # the others are slow to hear of it
        patch.chdir(tmp_path_factory.getbasetemp())
        for module, kind in {(module, kind): None for module, _, kind in MODES}:
            os.chdir(shelves[module])
            given = dict(input_file="data.txt", eval_interval=2, decay_steps=8, learning_rate=0.1)
            for name, steps in (("other", 0), (kind, 2)):
                module.train(**tiny(module, kind, **given, max_steps=steps), work_dir=name)
            disk[f"{kind}/other.pt"] = disk["other/model.pt"]
        yield outcome


def complaint(usual, found, module, name):
    """What is wrong where this came of another value of a setting, or ""."""
    heard = flag(name) in found.err or name in SPOKEN_OF
    if found.err.count("\n") > 1:
        return f"more than one line: {found.err}"
    if found.status == 2:
        fine = found.err.startswith(f"{module.PROGRAM}: ") and heard and not found.out
        return "" if fine else f"refused, but not at once, or in other words: {found.out}{found.err}"
    if found.status != 0:
        return f"status {found.status}"
    if "is not used by" in found.err:
        fine = f"{flag(name)} is not used by " in found.err and found.config == usual.config
        return "" if fine else f"something else is ignored, or used nevertheless: {found.err}"
    changed = found.out != usual.out or not same(found.held, usual.held)
    return "" if changed else "ignored in silence"


TRAINED = [(module, kind) for module in (makemore, gpt) for kind in module.ROWS if kind not in ("baby", "large")]
KINDS_AND_MODES = [(module, "train", kind) for module, kind in TRAINED] + MODES  # without larger ones of the same


class TestEverySetting:
    @pytest.mark.parametrize("module, mode, kind", KINDS_AND_MODES, ids=lambda x: getattr(x, "__name__", x))
    def test_matters_or_is_refused_or_is_named(self, does, module, mode, kind):
        """There is no other way: nothing that is asked for is ignored without a word."""
        usually = functools.cache(lambda *more: does(module, mode, kind, base(module, mode, kind) | dict(more)))
        wrong = {}
        for name in asked_about(module, mode, kind):
            also = ALSO.get(name, {}) if "max_steps" in base(module, mode, kind) else {}
            if name == "stop" and name in module.reads(mode):
                also = {**also, "max_new_tokens": 300}  # a text that comes to it
            usual, value = usually(*also.items()), another(module, mode, kind, name)
            assert (usual.status, usual.err) == (0, "")
            if name == module.KIND and not module.MODES[mode].opens:
                found = does(module, mode, kind, base(module, mode, value))  # in the sizes that it has
            else:
                found = does(module, mode, kind, {**base(module, mode, kind), **also, name: value})
            if words := complaint(usual, found, module, name):
                wrong[name] = words
        assert wrong == {}
