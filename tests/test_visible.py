"""Learning made visible: what a run says and draws while it learns, and how it says that it was stopped."""

import csv
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
    monkeypatch.setattr(gpt, "measure_peak", lambda plan: 1.0)  # it takes seconds


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
    with_samples = train(module, quiet=True, verbose=True, dropout=0.1) if module is gpt else train(module, quiet=True)
    assert "    " + with_samples.progress.samples[-1] + "\n" not in capsys.readouterr().out
    monkeypatch.setattr(module, "glimpse", lambda run: "")
    without = train(module, dropout=0.1) if module is gpt else train(module)
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
