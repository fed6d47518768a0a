"""Learning made visible: what a run says and draws while it learns, and how it says that it was stopped."""

import contextlib
import csv
import html.parser
import io
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch

import gpt
import makemore

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "names.txt").read_text(encoding="utf-8").split()[:300]
DATA = {makemore: LINES, gpt: "\n".join(LINES)}
TINY = {
    makemore: dict(type="mlp", n_embd=4, n_embd2=8, batch_size=16),
    gpt: dict(preset="mini", n_layer=1, n_head=2, n_embd=8, block_size=8, batch_size=4, dtype="float32"),
}
both = pytest.mark.parametrize("module", [makemore, gpt], ids=["makemore", "gpt"])


def train(module, **given):
    settings = {**TINY[module], "max_steps": 12, "eval_interval": 4, "device": "cpu", **given}
    return module.train(DATA[module], **settings)


@pytest.fixture(autouse=True)
def no_peak(monkeypatch):
    monkeypatch.setattr(gpt, "measure_peak", lambda *_: 1.0)  # it takes seconds


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, by the name of their file."""
    figures, save = {}, matplotlib.figure.Figure.savefig

    def keep(figure, target, **given):
        figures[len(figures)] = figure
        return save(figure, target, **given)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def words_of(figure):
    """What stands in the legend and at the bottom of a figure."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()], figure.get_supxlabel()


# ----------------------------------------------------------------------------------------------------------------------
# Rows


@both
def test_samples_come_with_every_row_and_are_kept(module, capsys, tmp_path):
    run = train(module, work_dir=tmp_path, learning_rate=0.1, verbose=True)
    out = capsys.readouterr().out
    rows = list(csv.reader((tmp_path / "samples.txt").read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in rows] == ["step", "0", "4", "8", "12"] and rows[0][2] == "sample"
    assert [row[1] for row in rows[1:]] == [f"{row[3]:.4f}" for row in run.progress.history]
    assert [row[2] for row in rows[1:]] == run.progress.samples and len(set(run.progress.samples)) > 1
    for sample in run.progress.samples:
        assert "\n" not in sample and " " * 20 + sample + "\n" in out


@both
def test_samples_do_not_touch_the_random_numbers_of_training(module, monkeypatch, capsys):
    with_samples = train(module, quiet=True, verbose=True, dropout=0.1)
    assert "    " + with_samples.progress.samples[-1] + "\n" not in capsys.readouterr().out
    monkeypatch.setattr(module, "glimpse", lambda run: "")
    without = train(module, dropout=0.1)
    for name, weight in with_samples.model.state_dict().items():
        assert torch.equal(weight, without.model.state_dict()[name]), name


@both
def test_a_run_that_goes_on_keeps_its_samples(module, tmp_path):
    train(module, work_dir=tmp_path / "once", max_steps=12, decay_steps=12)
    train(module, work_dir=tmp_path / "twice", max_steps=8, decay_steps=12)
    module.load(tmp_path / "twice", "last.pt").train(max_steps=12)
    assert (tmp_path / "twice" / "samples.txt").read_bytes() == (tmp_path / "once" / "samples.txt").read_bytes()


@both
@pytest.mark.parametrize("seconds, lines", [(19, 0), (21, 1)])
def test_where_nothing_moves_a_line_comes_every_twenty_seconds(module, seconds, lines, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "speed", lambda run, pace: f"{pace:.1f} s")
    progress = SimpleNamespace(step=0, seconds=0.0, history=[])
    told = module.Console(SimpleNamespace(progress=progress, config=SimpleNamespace(max_steps=40)), verbose=True)
    told.start_clock()
    now[0], progress.step = seconds, 10
    told.stepped(torch.tensor(2.5))
    out = capsys.readouterr().out
    assert out.count("\n") == lines == out.count("step 10/40") == out.count("loss 2.5000") and "\r" not in out


@both
def test_a_terminal_has_a_line_that_moves(module, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "speed", lambda run, pace: "")
    progress = SimpleNamespace(step=10, seconds=0.0, history=[])
    told = module.Console(SimpleNamespace(progress=progress, config=SimpleNamespace(max_steps=40)), verbose=True)
    told.start_clock()
    now[0] = 0.3
    progress.step = 20
    told.stepped(torch.tensor(2.5))
    assert terminal.getvalue().startswith("\r\033[Kstep 20/40") and "\n" not in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("COLUMNS", "12")
    now[0], progress.step = 0.6, 30
    told.stepped(torch.tensor(2.5))
    assert terminal.getvalue().lstrip("\0") == "\r\033[Kstep 30/40 "  # what wraps could not be wiped


@both
def test_a_run_without_an_end_in_sight_says_how_long_it_takes(module, monkeypatch):
    monkeypatch.setattr(module, "speed", lambda run, pace: "")
    limits = SimpleNamespace(max_steps=module.SETTINGS["max_steps"].metadata["high"])
    told = module.Console(SimpleNamespace(progress=SimpleNamespace(step=0), config=limits), verbose=True)
    told.losses = [torch.tensor(1.0)]
    assert re.search(r"step 0/1000000000000000 .* \d+ days, \d+:\d\d:\d\d left", told.line("loss 1.0", 100.0))


@both
def test_a_run_that_was_stopped_says_so_and_how_it_goes_on(module, monkeypatch):
    run = train(module)
    assert module.outcome(run) == f"(best at step {run.progress.best_step})"
    run.stop.signum, run.folder = signal.SIGINT, Path("out/here")
    assert f"stopped at step 12, and all is kept: python {module.__name__}.py -o " in module.outcome(run)
    assert module.outcome(run).endswith("--resume goes on)")


def test_patience_ends_a_training_that_learns_no_more():
    run = train(makemore, learning_rate=0.0, max_steps=1000, eval_interval=5, patience=3)
    assert run.progress.step == 15 and run.progress.best_step == 0
    assert train(makemore, max_steps=20, eval_interval=5, patience=3).progress.step == 20


# ----------------------------------------------------------------------------------------------------------------------
# What counts, scores and samples say


def test_counts_have_no_rate_no_parameters_and_no_curve(cli, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(LINES), encoding="utf-8")
    argv = ["-i", tmp_path / "names.txt", "-o", tmp_path / "out", "--type", "ngram", "--n", "3"]
    status, out, err = cli(*argv)
    assert (status, err) == (0, "") and "parameters" not in out and " lr " not in out
    lines = makemore.load(tmp_path / "out").data.lines("train")
    pairs = {("." + line)[i : i + 2] for line in lines for i in range(len(line))}
    contexts = re.search(r"contexts of 0, 1, ... characters: (\d+) (\d+) (\d+); strength", out)
    assert [int(n) for n in contexts.groups()] == [1, len(set("".join(lines))) + 1, len(pairs) + 1]
    assert not (tmp_path / "out" / "loss.png").exists() and (tmp_path / "out" / "log.csv").exists()


@pytest.mark.parametrize("count, titles", [(3, ["from likeliest to strangest"]), (11, ["likeliest", "strangest"])])
def test_a_few_scores_are_one_list(count, titles, cli, tmp_path):
    train(makemore, work_dir=tmp_path / "out")
    (tmp_path / "some.txt").write_text("\n".join(LINES[:count]), encoding="utf-8")
    status, out, err = cli("--eval", tmp_path / "some.txt", "-o", tmp_path / "out")
    assert (status, err) == (0, "") and re.findall(r"^(\D*):$", out, re.M) == titles
    shown = re.findall(r"^  (\d+\.\d+)  (\w+)$", out, re.M)
    assert len(shown) == min(count, 10) and {line for _, line in shown} <= set(LINES[:count])
    assert [float(nats) for nats, _ in shown] == sorted(float(nats) for nats, _ in shown)


def test_a_blank_sample_is_not_new(capsys, monkeypatch):
    run = train(makemore)
    monkeypatch.setattr(run, "sample", lambda: ["", "zzzz", run.data.train[0]])
    makemore.print_samples(run)
    out = capsys.readouterr().out
    assert "blank (1):" in out and "new (1):\n  zzzz" in out and "in train (1):" in out and "new 33 %" in out


# ----------------------------------------------------------------------------------------------------------------------
# Figures


@both
def test_the_losses_hold_every_mini_batch_and_say_what_was_best(module, drawn, tmp_path):
    run = train(module, work_dir=tmp_path)
    module.plot_losses(run)
    figure, (ax,) = drawn[0], drawn[0].axes
    legend, command = words_of(figure)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert len(lines["mini-batches"]) == 12 and (lines["mini-batches"][:, 0] == np.arange(12) + 0.5).all()
    means = lines["mini-batches"][:, 1].reshape(3, 4).mean(1)
    assert means == pytest.approx([row[2] for row in run.progress.history[1:]], rel=1e-5)
    held_out = next(label for label in lines if label in ("dev", "val"))
    assert lines[held_out][:, 1].tolist() == [row[3] for row in run.progress.history]
    assert f"best {held_out} {run.progress.best_loss:.4f} at step {run.progress.best_step}" in ax.get_title()
    assert set(lines) - {"_child4"} <= set(legend) and not ax.get_legend()
    low, high = ax.get_ylim()
    assert all(low < y < high for _, y in np.concatenate([*lines.values()]) if y == y)
    assert command == module.command(run)


@both
def test_the_command_in_a_figure_makes_the_same_settings_again(module):
    run = train(module, learning_rate=0.25, input_file=None)
    command = module.command(run).split()
    assert command[:2] == ["python", f"{module.__name__}.py"] and "--work-dir" not in command
    again = module.configure(module.check_settings(module.parse_args(command[2:])))
    for name, value in vars(run.config).items():
        if module.SETTINGS[name].metadata["group"] in ("model", "training"):
            assert getattr(again, name) == value, name


@pytest.mark.parametrize("module, given", [(makemore, {"type": "wavenet", "batchnorm": False}), (gpt, {"tied": False})])
def test_the_command_in_a_figure_can_switch_off(module, given):
    given = {"preset": "gpt2", **given} if module is gpt else given
    config = module.configure(module.check_settings(given))
    words = module.command(SimpleNamespace(config=config)).split()
    assert [word for word in words if word.startswith("--no-")] == [f"--no-{list(given)[-1]}"]
    assert module.configure(module.parse_args(words[2:])) == config


def test_letters_never_hide_each_other():
    rng = np.random.default_rng(1)
    for n, width in ((27, 1.0), (5, 1e-3), (60, 1.0)):
        moved = makemore.apart(width * rng.normal(size=(n, 2)))
        gaps = np.hypot(*(moved[:, None] - moved).T) + np.eye(len(moved))
        assert gaps.min() > 0.045
    spread = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.allclose(makemore.apart(7 * spread + 3), spread)  # what is far apart stays where it is


def test_figures_say_what_this_run_shows(drawn, tmp_path):
    run = train(makemore, n_layer=3, work_dir=tmp_path, init="normal")
    run.meter = makemore.UpdateMeter(run.model)
    _, rows = makemore.inspect_layers(run.model, *makemore.first_batch(run))
    makemore.plot_inside(run, rows, rows)
    tanhs = [row for row in rows if row.kind == "Tanh"]
    titles = [ax.get_title() for figure in drawn.values() for ax in figure.axes]
    assert f"up to {100 * max(r.saturated for r in tanhs):.0f} % saturated; healthy is under 10 %" in titles[0]
    assert titles[2].startswith("before training: ") and f"{100 * tanhs[0].dead:.0f} % dead" in titles[3]
    assert words_of(drawn[0])[0] == [f"tanh {i}: {100 * r.saturated:.0f} % saturated" for i, r in enumerate(tanhs, 1)]


def test_nobody_looks_ahead_in_the_picture_of_attention(drawn, tmp_path):
    run = train(gpt, work_dir=tmp_path)
    gpt.plot_attention(tmp_path / "attention.png", run, "anna")
    head, *_, scale = drawn[0].axes
    seen = np.ma.filled(head.images[0].get_array(), np.nan)
    assert (np.isnan(seen) == (np.tri(4) == 0)).all() and np.nansum(seen, 1) == pytest.approx(np.ones(4), abs=1e-5)
    assert [label.get_text() for label in head.get_yticklabels()] == list("anna")
    assert "share of a character's" in scale.get_ylabel()


# ----------------------------------------------------------------------------------------------------------------------
# Surprise: a text, each character coloured by its nats


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: the tags, and the characters of the text with their colour and their guesses."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.chars = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "i":
            given = dict(attrs)
            nats, *guesses = given["data-guess"].split("\n")
            share = float(re.search(r"/ (\S+)\)", given["style"])[1])
            self.chars.append(["", float(nats.removesuffix(" nats")), share, guesses])

    def handle_data(self, data):
        if self.tags[-1] == "i":
            self.chars[-1][0] += data

    def handle_endtag(self, tag):
        if tag == "i":
            self.tags.append("/i")

    def text(self):
        return "".join(char for char, *_ in self.chars)


def check_page(page, text, losses):
    """The text is all there, and so is the loss of every character; the guesses are shares, the likeliest first."""
    assert page.text() == text.replace("\n", "¶\n") and "script" not in page.tags and "link" not in page.tags
    assert [nats for _, nats, *_ in page.chars] == pytest.approx(losses, abs=0.0051)
    for _, nats, share, guesses in page.chars:
        assert share == pytest.approx(min(nats / 6, 1), abs=0.006)
        shares = [int(guess.split("%")[0]) for guess in guesses]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 103


@pytest.mark.parametrize("kind", [*makemore.MODELS, "mixture"])
def test_surprise_of_lines(kind, cli, tmp_path):
    def tiny(kind, name):
        given = dict(type=kind, n_embd=8, n_embd2=8, max_steps=2, device="cpu")
        given = {name: value for name, value in given.items() if name in makemore.uses(kind)}
        return makemore.train(["<script>", "a b", "&amp;", *LINES], work_dir=tmp_path / name, **given)

    run = tiny("bigram" if kind == "mixture" else kind, "out")
    if kind == "mixture":
        tiny("rnn", "other")
        assert cli("--mix", f"{tmp_path / 'out'},{tmp_path / 'other'}", "-o", tmp_path / "mixed")[0] == 0
        run = makemore.load(tmp_path / "mixed")
    lines = ["<script>", "anna", "&amp;", *LINES[:30]]
    (tmp_path / "some.txt").write_text("\n".join(lines), encoding="utf-8")
    status, out, err = cli("--eval", tmp_path / "some.txt", "-o", run.folder)
    assert (status, err) == (0, "") and f"character by character: {run.folder / 'surprise.html'}" in out
    page, text = Page(run.folder / "surprise.html"), "".join(f"{line}\n" for line in lines)
    shares = [run.probabilities(line[:i]).get(line[i : i + 1]) for line in lines for i in range(len(line) + 1)]
    check_page(page, text, -np.log(shares))
    first = run.probabilities("")
    guessed = [guess.split("% ")[1].replace("¶", "") for guess in page.chars[0][3]]
    assert len(set(guessed)) == 5  # of those that are equally likely, any
    assert [first[char] for char in guessed] == pytest.approx(list(first.values())[:5], rel=1e-5)


def test_surprise_of_a_text(tmp_path, capsys):
    text = "<script>alert('&amp;')</script>\n\n" + DATA[gpt]
    run = gpt.train(text, **TINY[gpt], max_steps=12, work_dir=tmp_path / "out", device="cpu")
    (tmp_path / "some.txt").write_text(text[:25_000] * 20, encoding="utf-8")
    assert gpt.main(["-o", str(tmp_path / "out"), "--eval", str(tmp_path / "some.txt"), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"character by character: {tmp_path / 'out' / 'surprise.html'}" in out
    page, text = Page(tmp_path / "out" / "surprise.html"), (text[:25_000] * 20)[:20_000]
    check_page(page, text, [0, *run.score(text)])
    assert page.tags.count("i") == 20_000 and len(page.chars[0][3]) == 0 and len(page.chars[1][3]) == 5


def test_a_title_is_text_too(tmp_path):
    run = train(makemore)
    page = tmp_path / "surprise.html"
    makemore.write_surprise(page, run, "<b>.txt & more", "a", [[0.5, 0.5, 0.25, 1, 0]], "¶ab")
    words = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;.txt &amp; more" in words and "http" not in words
    assert Page(page).chars[0][3] == [" 50% a", " 25% ¶"]


# ----------------------------------------------------------------------------------------------------------------------
# Talking to a model


def talk(module, folder, said, monkeypatch, capsys, *argv):
    """What a model in a folder answers: a list, one for each line said."""
    said, answers = iter(said), []

    def read(prompt):
        answers.append(capsys.readouterr().out)
        with contextlib.suppress(StopIteration):
            return next(said)
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    assert module.main(["-o", str(folder), "--interactive", *argv]) == 0
    return answers[1:]


@both
def test_a_model_goes_on_from_what_is_typed(module, tmp_path, monkeypatch, capsys):
    run, length = train(module, work_dir=tmp_path), "max_new_tokens" if module is gpt else "num_samples"

    def answer(beginning, seed, number, **given):
        if module is gpt:
            return run.generate(beginning, number, seed=seed, **given) + "\n"
        return "".join(f"{s}\n" for s in run.sample(number, prefix=beginning, seed=seed, **given))

    said, seed = ["an", "an", ":temperature 0.5", "an", f":{length} 2", ":seed 5", "ma"], run.config.seed
    said += [":seed x", ":n_layer 3", "an\0", "§", ""]
    told = talk(module, tmp_path, said, monkeypatch, capsys, f"--{length.replace('_', '-')}=9")
    assert told[0] == answer("an", seed, 9) and told[1] == answer("an", seed + 1, 9) != told[0]
    assert told[2] == "" and told[3] == answer("an", seed + 2, 9, temperature=0.5)
    assert told[6] == answer("ma", 5, 2, temperature=0.5)
    assert "--seed" in told[7] and "only settings of sampling, not n_layer" in told[8] and "NUL" in told[9]
    assert "unknown to this model: '§'" in told[10] and told[11] == answer("", 6, 2, temperature=0.5)
    assert talk(module, tmp_path, [":quit", "an"], monkeypatch, capsys) == []


@both
def test_what_is_typed_in_no_known_encoding_ends_in_one_line(module, tmp_path, monkeypatch, capsys):
    train(module, work_dir=tmp_path)
    typed = io.TextIOWrapper(io.BytesIO(b"an\n\xff\nan\n"), "utf-8")
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed).rstrip())
    assert module.main(["-o", str(tmp_path), "--interactive"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{module.PROGRAM}: ") and "can't decode byte 0xff" in err and err.count("\n") == 1


def test_a_text_ends_where_it_is_told_to(tmp_path, capsys):
    run = train(gpt, work_dir=tmp_path)
    whole, several = run.generate("anna", 200), run.generate("anna", 200, num_samples=3)
    stop = next(whole[i : i + 2] for i in range(30, 200) if all(whole[i : i + 2] in text[4:] for text in several))
    cut = whole[: 4 + whole[4:].index(stop) + 2]
    assert run.generate("anna", 200, stop=stop) == cut and "".join(run.stream("anna", 200, stop=stop)) == cut
    expected = ["anna" + "".join(text[4:].partition(stop)[:2]) for text in several]
    assert run.generate("anna", 200, num_samples=3, stop=stop) == expected != several
    assert run.generate("anna", 200, stop="§") == whole
    capsys.readouterr()
    argv = ["--sample-only", "--prompt=anna", "--max-new-tokens=200", f"--stop={stop}"]
    assert gpt.main(["-o", str(tmp_path), *argv]) == 0
    assert capsys.readouterr().out == cut + "\n"
