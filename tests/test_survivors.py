"""Small promises that a mutation of the source broke while no other test noticed."""

import csv
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import gpt
import makemore

TEXT = "to be or not to be, that is the question.\n" * 20
LINES = ["anna", "bob", "carla", "dora", "emil", "fritz", "gerda", "hans", "ida", "jan"] * 3
TINY = {
    gpt: dict(n_layer=1, n_head=2, n_embd=8, block_size=8, batch_size=4, preset="mini", device="cpu"),
    makemore: dict(n_embd=4, n_embd2=8, batch_size=8, type="mlp", device="cpu"),
}
both = pytest.mark.parametrize("module", [gpt, makemore], ids=lambda module: module.__name__)


class Stop(Exception):
    """Ends what a test has seen enough of."""


def train(module, **given):
    return module.train(TEXT if module is gpt else LINES, **TINY[module], **given)


def console(module, step=0, max_steps=10, losses=(1.0,), **given):
    """A console of a run that is no more than where it stands."""
    progress = SimpleNamespace(step=step, seconds=0.0, history=[])
    run = SimpleNamespace(progress=progress, config=SimpleNamespace(max_steps=max_steps), interval=100, **given)
    made = module.Console(run, verbose=False)
    made.losses = [torch.tensor(loss) for loss in losses]
    return made


# ----------------------------------------------------------------------------------------------------------------------
# The console


@both
@pytest.mark.parametrize("step, limit, left", [(10, 40, "0:00:30 left"), (10, -1, None), (1000, 1000, None)])
def test_time_is_left_only_where_steps_are(module, monkeypatch, step, limit, left):
    monkeypatch.setattr(module, "speed", lambda run, pace: "")
    line = console(module, step, int(str(limit))).line("", 1.0)
    assert line.endswith(left) if left else "left" not in line


@both
def test_the_pace_is_of_the_steps_since_the_clock_was_started(module, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    told = console(module, step=20)
    told.start_clock()
    now[0], told.run.progress.step, told.losses = 105.0, 30, [torch.tensor(1.0), torch.tensor(2.0)]
    assert told.stop_clock() == 1.5 and told.pace == 0.5 and told.run.progress.seconds == 5.0


@both
def test_a_star_marks_what_is_better_than_all_before(module, monkeypatch, capsys):
    monkeypatch.setattr(gpt, "measure_peak", lambda *_: 1.0)  # it takes seconds
    train(module, max_steps=12, eval_interval=2, learning_rate=0.3, verbose=True)
    rows = re.findall(r"^step .* (?:val|dev) (\d\.\d+)([* ])", capsys.readouterr().out, re.M)
    assert len(rows) == 7
    best = math.inf
    for loss, star in rows:
        assert (star == "*") == (float(loss) < best)
        best = min(best, float(loss))


# ----------------------------------------------------------------------------------------------------------------------
# The command line and the machine


@both
@pytest.mark.parametrize(
    "error, status, told",
    [
        (MemoryError(), 2, "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 2, "out of memory: "),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["memory", "torch's memory", "Ctrl-C"],
)
def test_how_the_command_line_ends(module, error, status, told, monkeypatch, capsys):
    def fail(*given, **more):
        raise error

    monkeypatch.setattr(module, "start_run", fail)
    assert module.main(["--max-steps", "1"]) == status
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == bool(told)


@both
def test_a_fault_of_ours_is_not_called_a_lack_of_memory(module, monkeypatch):
    def fail(*given, **more):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(module, "start_run", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        module.main(["--max-steps", "1"])


@both
def test_the_command_line_is_read_from_its_first_word(module, monkeypatch, capsys):
    monkeypatch.setattr(module.sys, "argv", ["program", "--no-such-flag", "--nor-this"])
    assert module.main() == 2 and "--no-such-flag" in capsys.readouterr().err


@both
def test_a_device_is_tried(module, monkeypatch):
    assert module.try_device("cpu") == math.inf
    assert isinstance(module.try_device("cuda:0"), str)  # conftest hides the cards
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3e9, 8e9))
    assert module.try_device("cuda:0") == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_float16_alone_scales_its_gradients(dtype, monkeypatch):
    def seen(device, enabled):
        raise Stop(enabled)

    plan = replace(gpt.make_plan({"device": "cpu"}), dtype="".join(list(dtype)))  # as it comes from a command line
    monkeypatch.setattr(gpt, "make_plan", lambda given: plan)
    monkeypatch.setattr(torch.amp, "GradScaler", seen)
    with pytest.raises(Stop) as stop:
        train(gpt, max_steps=1)
    assert stop.value.args == (dtype == "float16",)


@pytest.mark.parametrize("capability, dtype, told", [((6, 1), "float16", "slow before 7.0"), ((7, 0), "auto", "")])
def test_half_precision_is_slow_on_old_cards(capability, dtype, told):
    why = gpt.plan_card(gpt.Card(0, "card", capability, 8), 7.0, dtype, "auto").why
    assert told in why and ("slow before 7.0" in why) == bool(told)


def test_a_card_older_than_all_that_torch_speaks_is_told_so():
    words = "CUDA error: no kernel image is available"
    assert "--device cpu" in gpt.explain_unusable(gpt.Card(0, "GTX 680", (3, 0), 2), words, "2.13")
    assert "torch<2.15" in gpt.explain_unusable(gpt.Card(0, "GTX 980", (5, 0), 4), words, "2.13")


@pytest.mark.parametrize("device", ["mps", "auto"])
def test_metal_has_no_bfloat16(device):
    with pytest.raises(gpt.UserError, match="on mps take float32"):
        gpt.plan_device(gpt.Machine([], lambda device: math.inf, "2.13", mps=True), device, "bfloat16")


@both
def test_a_file_that_cannot_be_read_is_told(module, monkeypatch, tmp_path):
    def denied(*given, **more):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(module, "open", denied, raising=False)
    monkeypatch.setattr(module.Path, "read_bytes", denied)
    for read in (module.load_checkpoint, lambda path: list(module.read_chunks(path))):
        with pytest.raises(module.UserError, match=r"cannot read .*text\.txt: Permission denied"):
            read(str(tmp_path / "text.txt"))


# ----------------------------------------------------------------------------------------------------------------------
# Models


@both
def test_a_sketch_is_made_of_what_can_be_sketched_and_is_not_too_large(module, monkeypatch):
    for width, device in ((8, "cpu"), (8000, "meta")):  # what may be large takes no memory
        config = module.Config(n_embd=width)
        monkeypatch.setattr(module, "build", lambda *_: 1 / 0)
        assert module.sketch(config, 5) == {}  # a model of one's own that cannot be made without numbers
        monkeypatch.setattr(module, "build", lambda *_: torch.nn.Linear(2, 3))
        weight = module.sketch(config, 5)["weight"]
        assert (weight.shape, weight.device.type) == ((3, 2), device)
    monkeypatch.setattr(module, "MAX_PARAMETERS", 8)
    with pytest.raises(module.UserError, match="9 parameters is too large, the limit is 8"):
        module.sketch(config, 5)


@both
def test_a_part_that_the_data_does_not_have_is_named(module):
    with pytest.raises(module.UserError, match="'half'"):
        train(module, max_steps=1).evaluate("half")


@both
def test_the_defaults_of_every_row_are_such_as_a_user_may_give(module):
    for kind, row in module.ROWS.items():
        for name, value in row.defaults.items():
            rules = module.SETTINGS[name].metadata
            if isinstance(value, (int, float)):
                assert rules["low"] <= value <= rules["high"], (kind, name)
            assert value is None or rules["choices"] is None or value in rules["choices"], (kind, name)


@pytest.mark.parametrize("kind", [kind for kind in makemore.MODELS if kind != "ngram"])
def test_weights_that_are_not_finite_are_refused_for_every_type(kind, tmp_path):
    """Numbers that no training would keep."""
    settings = {**TINY[makemore], "n_layer": 1, "n_head": 2, "type": kind}
    run = makemore.train(LINES, max_steps=0, **{k: v for k, v in settings.items() if k in makemore.uses(kind)})
    run.save(tmp_path)
    checkpoint = torch.load(tmp_path / "model.pt", weights_only=True)
    next(iter(checkpoint["model"].values())).view(-1)[0] = math.nan
    torch.save(checkpoint, tmp_path / "model.pt")
    with pytest.raises(makemore.UserError, match="not finite"):
        makemore.load(tmp_path)


@both
def test_numbers_that_are_not_finite_are_told_where_a_model_is_only_sketched(module):
    with pytest.raises(ValueError, match="the weight holds numbers that are not finite"):
        module.compare("the weight", torch.tensor([math.inf]), torch.zeros(1, device="meta"))


def test_a_context_length_that_counts_do_not_read_may_be_anything(tmp_path):
    run = makemore.train(LINES, type="ngram", n=3, work_dir=tmp_path)
    checkpoint = torch.load(tmp_path / "model.pt", weights_only=True)
    checkpoint["config"]["block_size"] = 10**24
    torch.save(checkpoint, tmp_path / "model.pt")
    loaded = makemore.load(tmp_path)
    assert loaded.sample(3) == run.sample(3) and loaded.config.block_size == 2


@pytest.mark.parametrize("tied, std", [(True, 0.02), (False, 0.3)])
def test_first_weights_of_a_gpt(tied, std):
    config = gpt.configure({**TINY[gpt], "n_embd": 64, "tied": tied})
    model = gpt.build(config, 100)
    assert model.token.weight.std().item() == pytest.approx(std, rel=0.1)
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear):
            expected = 0 if name.endswith("proj") else 0.6 / math.sqrt(layer.in_features)
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_learned_positions_are_a_table_and_rotary_ones_are_none(positions):
    model = gpt.build(gpt.configure({**TINY[gpt], "positions": positions}), 5)
    assert (model.position is None) == (positions == "rotary")
    assert any(isinstance(part, gpt.Rotary) for part in model.modules()) == (positions == "rotary")


# ----------------------------------------------------------------------------------------------------------------------
# Text and writing


@pytest.mark.parametrize("later", ["shorter", "longer", "with another letter"])
def test_a_text_that_changes_while_it_is_encoded_is_told(later, tmp_path):
    path, tokens = tmp_path / "text.txt", tmp_path / "tokens.bin"
    path.write_text(TEXT, encoding="utf-8")
    head = gpt.survey(str(path))
    path.write_text({"shorter": TEXT[:99], "longer": 2 * TEXT}.get(later, TEXT + "Ω"), encoding="utf-8")
    with pytest.raises(gpt.UserError, match="changed while it was read"):
        gpt.write_atomic(tokens, gpt.encode(str(path), head))
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_writing_reads_the_prompt_once_and_then_one_character_at_a_time():
    config = gpt.configure({**TINY[gpt], "max_new_tokens": 3})
    model, lengths = gpt.build(config, 5), []
    model.register_forward_pre_hook(lambda model, given: lengths.append(given[0].shape[1]))
    list(gpt.continuation(model, torch.zeros(1, 4, dtype=torch.long), config))
    assert lengths == [4, 1, 1]


def test_a_single_text_is_written_bare_and_several_are_numbered(capsys):
    run = train(gpt, max_steps=1, max_new_tokens=5)
    gpt.write(run)
    assert len(capsys.readouterr().out) == 6  # and the end of the line
    run.config.num_samples = 2
    gpt.write(run)
    assert re.findall("^--- (.*) ---$", capsys.readouterr().out, re.M) == ["1 of 2", "2 of 2"]


@both
def test_a_run_that_was_killed_while_it_moved_what_was_there_is_in_nobodys_way(module, tmp_path):
    previous = tmp_path / "previous"
    for step in (1, 2):
        train(module, max_steps=step, work_dir=tmp_path)
        if step == 1:
            previous.mkdir()
            (tmp_path / "last.pt").rename(previous / "last.pt")
    assert {"last.pt", "log.csv", "model.pt"} <= {path.name for path in previous.iterdir()}
    for name in ("last.pt", "model.pt"):
        assert module.load(previous, name).config.max_steps == 1 and module.load(tmp_path, name).config.max_steps == 2


def test_every_line_of_a_short_file_is_told_once(tmp_path, cli):
    """As likely or as strange, and in scores.csv with four decimals."""
    folder, some = tmp_path / "out", LINES[:7]
    train(makemore, work_dir=folder, max_steps=1)
    (tmp_path / "some.txt").write_text("\n".join(some), encoding="utf-8")
    status, out, err = cli("-o", folder, "--eval", tmp_path / "some.txt")
    assert (status, err) == (0, "")
    assert sorted(re.findall(r"^  \d\.\d{4}  (.*)$", out, re.M)) == some
    rows = list(csv.DictReader((folder / "scores.csv").open(encoding="utf-8")))
    for row in rows:
        mean = float(row["nats"]) / (len(row["line"]) + 1)
        assert float(row["nats_per_char"]) == pytest.approx(mean, abs=1e-4)


def test_the_table_of_layers_tells_of_tanh_what_holds_for_tanh_only(capsys, monkeypatch):
    output = torch.tensor([[1.0, 0.0, 0.5, -1.0], [1.0, 1.0, 0.0, 0.5]])
    rows = [makemore.LayerRow(kind.lower(), kind, output, output, None, None, 0.5, 0.25) for kind in ("Tanh", "Linear")]
    monkeypatch.setattr(makemore, "first_batch", lambda run: ())
    monkeypatch.setattr(makemore, "inspect_layers", lambda model: (3.0, rows))
    assert makemore.print_layers(SimpleNamespace(model=None, vocab="." * 27)) is rows
    tanh, linear = capsys.readouterr().out.splitlines()[2:]
    assert re.search(r" 50\.0 +25\.0 ", tanh) and "50.0" not in linear
