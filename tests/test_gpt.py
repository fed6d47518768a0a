"""What gpt.py promises. Small models on small texts; nothing here needs a graphics card or the network."""

import json
import math
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PIPES, let_go, posix, same
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gpt  # noqa: E402

pytestmark = pytest.mark.usefixtures("haste")
NAMES, VERBS, BEASTS = ("Ann", "Bob", "Cid"), ("saw", "fed", "hid"), ("cat", "dog", "eel", "fox")
TEXT = "".join(f"{a} {b} the {c}.\n" for a in NAMES for b in VERBS for c in BEASTS) * 6
TINY = dict(device="cpu", block_size=16, n_layer=2, n_head=2, n_embd=16, batch_size=4, eval_chars=400, max_new_tokens=8)
OPENING = ("resume", "init_from", "sample_only", "eval", "attention")  # the modes that begin with a trained model
SHAPES = dict(block_size=12, n_layer=2, n_head=2, n_embd=16)
VARIANTS = {
    "mini": dict(preset="mini", **SHAPES),
    "gpt2": dict(preset="gpt2", **SHAPES),
    "rotary-alone": dict(preset="mini", lookback=1, **SHAPES),
    "learned-lookback": dict(preset="mini", positions="learned", lookback=3, activation="gelu", **SHAPES),
    "bigram": dict(preset="bigram", block_size=12),
}
CPU = gpt.Plan(torch.device("cpu"), "float32", False, "")


def settled(variant, **given):
    """The complete settings of a variant."""
    return gpt.configure({**VARIANTS[variant], **given})


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    return settled(request.param)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors are not worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def shaken(config, vocab_size=11):
    """A model whose outputs depend on everything: the zero-initialised matrices get noise."""
    model = gpt.build(config, vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def flag(name):
    return "--" + name.replace("_", "-")


def small(*args):
    """These arguments, behind as many of TINY as the mode and the preset that they ask for use: they overrule them."""
    args = [str(arg) for arg in args]
    mode = next((mode for mode in OPENING if flag(mode) in args), "train")
    used = gpt.reads(mode) & gpt.uses(args[args.index("--preset") + 1] if "--preset" in args else "mini")
    return [*(f"{flag(name)}={value}" for name, value in TINY.items() if name in used), *args]


def run(*args):
    """Run the command line in this process, with small settings."""
    let_go()
    return gpt.main(small(*args))


def command(*args):
    """Start the command line as a process of its own."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, str(ROOT / "gpt.py"), *small(*args)], env=env, **PIPES)


def weights(folder, name="last.pt"):
    return gpt.load_checkpoint(Path(folder) / name)


# --- the lesson -------------------------------------------------------------------------------------------------------


def test_four_ways_to_average_the_past():
    """From an average to attention in four steps, each the same numbers as the one before."""
    x = torch.randn(2, 6, 4)  # (B, T, C)

    said = gpt.average_by_loops(x)  # 1. say it: position t is the mean of positions 0..t
    assert torch.equal(said[:, 0], x[:, 0])
    assert torch.allclose(said[:, 3], (x[:, 0] + x[:, 1] + x[:, 2] + x[:, 3]) / 4)

    multiplied = gpt.average_by_matmul(x)  # 2. a matrix product does all the means at once
    assert torch.allclose(multiplied, said, atol=1e-6)

    softened = gpt.average_by_softmax(x)  # 3. so does a softmax over zeros with the future at minus infinity
    assert torch.allclose(softened, said, atol=1e-6)

    # 4. and attention is that, with scores q·k in place of the zeros: where q is 0, it is the plain average still
    v = x[:, None]  # (B, one head, T, D)
    attended, w = gpt.attend(torch.zeros_like(v), torch.randn_like(v), v)
    assert torch.allclose(attended[:, 0], said, atol=1e-6)
    assert torch.allclose(w[0, 0], torch.tril(torch.ones(6, 6)) / torch.arange(1, 7)[:, None])

    # what the lesson is for: with a real q, each position weighs its past as it likes, and never its future
    attended, w = gpt.attend(torch.randn_like(v), torch.randn_like(v), v)
    assert not torch.allclose(attended[:, 0], said, atol=0.1)
    assert torch.allclose(w.sum(-1), torch.ones(2, 1, 6))
    assert torch.equal(w.triu(1), torch.zeros_like(w))


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_written_out_attention_is_the_fused_kernel(queries):
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind()
    q = q[:, :, -queries:]
    y, w = gpt.attend(q, k, v)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[-queries:]
    assert torch.allclose(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), atol=1e-6)
    assert torch.allclose(w.sum(-1), torch.ones(2, 4, queries))


def test_attention_maps_leave_the_logits_alone():
    model, idx = shaken(settled("mini")), torch.randint(11, (12,))
    fused = model(idx[None])
    maps = gpt.attention_maps(model, idx)
    assert maps.shape == (2, 2, 12, 12)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 12))
    model.blocks[0].attn.watched = model.blocks[1].attn.watched = True
    assert torch.allclose(model(idx[None]), fused, atol=1e-5)


def test_dropout_takes_channels_from_all_positions_of_a_context():
    x = torch.ones(3, 7, 128)
    kept = gpt.ChannelDropout(0.5)(x)
    assert torch.equal(kept, kept[:, :1].expand(-1, 7, -1)) and set(kept.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(kept[0], kept[1]) and 0.4 < (kept == 0).float().mean() < 0.6
    model, idx = gpt.build(gpt.configure(dict(preset="mini", n_layer=1, dropout=0.5)), 11), torch.arange(11)[None]
    torch.nn.init.normal_(model.head.weight)
    assert not torch.equal(model(idx), model(idx))
    assert torch.equal(model.eval()(idx), model(idx))


# --- models -----------------------------------------------------------------------------------------------------------


def test_untrained_models_know_nothing(variant):
    model = gpt.build(variant, 65)
    idx = torch.randint(65, (4, 12))
    logits = model(idx)
    assert logits.shape == (4, 12, 65)
    assert gpt.cross_entropy(logits, torch.randint(65, (4, 12))).item() == pytest.approx(math.log(65), rel=0.02)


def test_a_later_character_never_changes_an_earlier_logit(variant):
    model, idx = shaken(variant), torch.randint(11, (3, 12))
    before = model(idx)
    for t in range(12):
        other = idx.clone()
        other[:, t] = (other[:, t] + 1) % 11
        after = model(other)
        assert torch.allclose(after[:, :t], before[:, :t], atol=1e-6)
        assert not torch.allclose(after[:, t], before[:, t], atol=1e-3)


def test_a_batch_is_its_rows(variant):
    model, idx = shaken(variant), torch.randint(11, (3, 12))
    rows = torch.cat([model(row[None]) for row in idx])
    assert torch.allclose(model(idx), rows, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_model_learns_one_batch_by_heart(variant, optimizer):
    config = replace(variant, optimizer=optimizer, learning_rate=0.02)
    model = gpt.build(config, 11)
    x = torch.arange(12).repeat(2, 1) % 11  # after 3 comes 4: even a bigram can know that
    optimizers = gpt.make_optimizers(model, config)
    for _ in range(100):
        loss = gpt.cross_entropy(model(x[:, :-1]), x[:, 1:])
        model.zero_grad()
        loss.backward()
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = config.learning_rate * group["scale"]
            o.step()
    assert loss.item() < 0.5


def test_every_parameter_is_trained_by_exactly_one_group(variant):
    for optimizer in ("muon", "adamw"):
        model = gpt.build(variant, 11)
        groups = [g for o in gpt.make_optimizers(model, replace(variant, optimizer=optimizer)) for g in o.param_groups]
        trained = [id(p) for g in groups for p in g["params"]]
        assert sorted(trained) == sorted(id(p) for p in model.parameters())


def test_a_weight_that_a_table_and_a_layer_share_is_stepped_once():
    model = torch.nn.Module()
    model.lm_head, model.inner = torch.nn.Linear(8, 11, bias=False), torch.nn.Linear(8, 8)
    model.wte = torch.nn.Embedding(11, 8)
    model.wte.weight = model.lm_head.weight  # tied as nanoGPT ties it, by another name than ours
    muon, adamw = gpt.make_optimizers(model, gpt.configure(dict(preset="mini")))
    assert [g["params"] for g in muon.param_groups] == [[model.inner.weight]]
    assert [len(g["params"]) for g in adamw.param_groups] == [1, 1]


def test_only_a_layer_of_just_that_name_begins_with_zeros():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("proj", "head", "multihead", "projection")})
    gpt.initialise(model)
    assert [bool(layer.weight.any()) for layer in model.values()] == [False, False, True, True]


def test_rotary_scores_depend_on_distance_only():
    rotary = gpt.Rotary(20, 8)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind()
    scores = [(rotary(q, i) * rotary(k, i - 3)).sum().item() for i in (3, 9, 19)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert (rotary(q, 9) * rotary(k, 2)).sum().item() != pytest.approx(scores[0], abs=1e-3)
    for dtype in (torch.bfloat16, torch.float16):  # as the layers of a GPU give them
        for amp in (True, False):
            with torch.autocast("cpu", dtype, enabled=amp):
                coarse = rotary(q.to(dtype), 9)
            assert coarse.dtype == dtype and torch.allclose(coarse.float(), rotary(q, 9), atol=0.03)


# --- the optimizer ----------------------------------------------------------------------------------------------------


def stretched(*shape):
    """Matrices whose singular values go from 1/30 to 1, and the same with all of them 1."""
    u, _, vh = torch.linalg.svd(torch.randn(*shape), full_matrices=False)
    return u @ torch.diag(torch.logspace(-1.5, 0, min(shape[-2:]))) @ vh, u @ vh


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 64), (3, 64, 16)])
def test_orthogonalise_levels_the_singular_values_and_keeps_the_directions(shape, monkeypatch):
    g, ideal = stretched(*shape)
    quick = gpt.orthogonalise(g)  # the three iterations that training makes do with
    further = (3.3184196573706, -2.4884880243149, 0.5100489401237), (2.300652019955, -1.668903984575, 0.41880731195)
    monkeypatch.setattr(gpt, "POLAR_EXPRESS", (*gpt.POLAR_EXPRESS, *further))
    x = gpt.orthogonalise(g)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.8 and values.max() < 1.2
    assert F.cosine_similarity(x.flatten(1), ideal.flatten(1)).min() > 0.98
    assert torch.allclose(x[1:2], gpt.orthogonalise(g[1:2]), atol=1e-3)  # each matrix for itself
    assert F.cosine_similarity(quick.flatten(1), ideal.flatten(1)).min() > 0.9
    assert F.cosine_similarity(g.flatten(1), ideal.flatten(1)).max() < 0.8


def test_muon_takes_q_k_and_v_for_three_matrices():
    stacked, g = torch.nn.Parameter(torch.randn(24, 8)), torch.randn(24, 8)
    apart = [torch.nn.Parameter(part.detach().clone()) for part in stacked.chunk(3)]
    stacked.grad = g
    for p, part in zip(apart, g.chunk(3), strict=True):
        p.grad = part.clone()
    gpt.Muon([stacked], lr=0.1).step()
    gpt.Muon(apart, lr=0.1).step()
    assert torch.allclose(stacked, torch.cat(apart), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 128, 128), (3, 128, 512)])
def test_bfloat16_is_enough_for_muon(shape):
    g = stretched(*shape)[0]
    exact = gpt.orthogonalise(g)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = gpt.orthogonalise(g).float()
    assert F.cosine_similarity(coarse.flatten(1), exact.flatten(1)).min() > 0.99
    assert torch.linalg.svdvals(coarse).max() < 1.1 * torch.linalg.svdvals(exact).max()


def test_muon_is_its_formula():
    p = torch.nn.Parameter(torch.randn(32, 8))
    start, buffer = p.detach().clone(), torch.zeros(32, 8)
    muon = gpt.Muon([p], lr=0.1, weight_decay=0.5, momentum=0.9)
    for _ in range(3):
        g = torch.randn(32, 8)
        p.grad = g
        muon.step()
        buffer = 0.9 * buffer + 0.1 * g
        update = gpt.orthogonalise((0.1 * g + 0.9 * buffer)[None])[0]
        start = start * (1 - 0.05) - 0.1 * 2 * update  # sqrt(32 / 8) = 2
    assert torch.allclose(p, start, atol=1e-5)


# --- text -------------------------------------------------------------------------------------------------------------


def encoded(path, folder):
    head = gpt.survey(path)
    gpt.write_atomic(folder / "tokens.bin", gpt.encode(path, head))
    return gpt.TokenFile(folder / "tokens.bin")


ALPHABET = st.characters(exclude_characters="\0", exclude_categories=("Cs",))


@given(text=st.text(ALPHABET | st.sampled_from("ab\r\n"), min_size=1), chunk=st.integers(1, 9), bom=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_encoder(tmp_path_factory, text, chunk, bom):
    """However the chunks cut characters, line ends and the BOM."""
    folder = tmp_path_factory.mktemp("e")
    path = folder / "t"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt, "CHUNK", chunk)
        if not text.removeprefix("\ufeff" * (not bom)):
            return
        got = encoded(path, folder)
    expected = text.removeprefix("\ufeff" * (not bom)).replace("\r\n", "\n").replace("\r", "\n")
    assert got.vocab.decode(got.tokens) == expected
    assert got.vocab.chars == "".join(sorted(set(expected)))


@pytest.mark.parametrize(("distinct", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16")])
def test_tokens_take_the_smallest_type(tmp_path, distinct, dtype):
    path = tmp_path / "t"
    text = "".join(map(chr, range(0x10000, 0x10000 + distinct)))
    path.write_text(text, encoding="utf-8")
    got = encoded(path, tmp_path)
    assert got.tokens.dtype == dtype
    assert got.vocab.decode(got.tokens) == text


def test_encoding_is_reused_only_where_the_text_is_the_same(tmp_path, corpus):
    encoded(corpus, tmp_path)
    tokens = tmp_path / "tokens.bin"
    head = gpt.read_header(tokens)[0]
    assert gpt.survey(corpus) == head
    stat = os.stat(corpus)
    Path(corpus).write_text(TEXT.replace("cat", "CAT"), encoding="utf-8")
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time, another text
    assert "T" in gpt.survey(corpus)["chars"]
    tokens.write_bytes(tokens.read_bytes()[:-1])  # cut short
    assert gpt.read_header(tokens) == (None, 0)


def test_an_interrupted_encode_leaves_nothing_and_the_next_one_works(tmp_path, corpus, monkeypatch):
    def interrupted(path, read=gpt.read_chunks, calls=[]):  # noqa: B006
        calls.append(1)
        for text in read(path):
            yield text
            if len(calls) == 2:  # the first reading is the survey
                raise KeyboardInterrupt

    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "read_chunks", interrupted)
        assert run("-i", corpus, "-o", work, "--max-steps", 2) == 130
    assert [p.name for p in work.iterdir()] == [".lock"]
    assert run("-i", corpus, "-o", work, "--max-steps", 2) == 0


@given(low=st.integers(0, 50), count=st.integers(2, 200), block=st.integers(1, 20))
def test_windows_cover_every_prediction_once(low, count, block):
    seen = []
    for starts, length in gpt.windows(low, low + count, block, 0):
        for s in starts:
            seen += range(s + 1, s + 1 + length)
    assert sorted(seen) == list(range(low + 1, low + count))


@given(count=st.integers(30, 3000), block=st.integers(1, 20), limit=st.integers(1, 300))
def test_a_limited_evaluation_looks_at_so_many_inside_the_part(count, block, limit):
    batches = list(gpt.windows(7, 7 + count, block, limit))
    starts = np.concatenate([s for s, length in batches for _ in range(length == block)])
    if count - 1 > limit:
        assert len(starts) == max(1, limit // block)
        assert starts.min() == 7 and starts.max() + block < 7 + count


def test_evaluation_is_the_mean_over_all_predictions(tmp_path, corpus):
    text = encoded(corpus, tmp_path)
    config = settled("mini", eval_chars=0)
    model = shaken(config, len(text.vocab)).train()
    low, high = text.parts["val"]
    tokens = torch.from_numpy(np.array(text.tokens[low:high])).long()
    model.eval()
    nll = [
        gpt.cross_entropy(
            model(tokens[None, i : i + 12][:, : len(tokens) - 1 - i]), tokens[None, i + 1 : i + 13], "sum"
        )
        for i in range(0, len(tokens) - 1, 12)
    ]
    model.train()
    got = gpt.Run(config, text, model, CPU).evaluate("val")
    assert got == pytest.approx(sum(nll).item() / (len(tokens) - 1), abs=1e-6)
    assert model.training


# --- writing ----------------------------------------------------------------------------------------------------------


def test_the_cache_changes_nothing(variant):
    """Far past the context length, for every kind of model: the same logits, so the same characters."""
    model, idx = shaken(variant), torch.randint(11, (3, 5))
    config = replace(variant, max_new_tokens=40, temperature=1.0)
    texts = [torch.stack(list(gpt.continuation(m, idx, config))) for m in (model, torch.nn.Sequential(model))]
    assert torch.equal(*texts)
    assert hasattr(model, "new_cache") == (variant.preset != "bigram")  # which is called on the whole context
    if variant.preset != "bigram":
        cache = model.new_cache(3)
        idx = torch.randint(11, (3, 12))
        pieces = [model(part, cache) for part in idx.split([4, 1, 1, 3, 3], 1)]
        assert torch.allclose(torch.cat(pieces, 1), model(idx), atol=1e-5)


def test_a_prompt_longer_than_the_context_and_a_context_of_one():
    for block_size in (1, 2, 12):
        config = settled("mini", block_size=block_size, max_new_tokens=7)
        out = list(gpt.continuation(shaken(config), torch.randint(11, (2, 30)), config))
        assert len(out) == 7 and out[0].shape == (2,)


def test_writing_is_blind_to_the_mode_it_finds(corpus):
    config = settled("mini", dropout=0.5, max_new_tokens=20, seed=3)
    model, state = shaken(config).train(), torch.get_rng_state()
    a, b = (list(gpt.continuation(model, torch.zeros(1, 1).long(), config)) for _ in "ab")
    assert torch.equal(torch.stack(a), torch.stack(b))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # and to the random numbers of training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that has seen enough to spell."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert run("-i", path, "-o", folder / "out", "--max-steps", 150, "--decay-steps", 150, "--batch-size", 16) == 0
    return folder / "out"


def test_the_trained_folder_is_complete(trained):
    files = {".lock", "model.pt", "last.pt", "log.csv", "samples.txt", "loss.png", "tokens.bin"}
    assert {p.name for p in trained.iterdir()} == files
    rows = (trained / "log.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,train_loss,val_loss,lr" and len(rows) == 12
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert float(rows[-1].split(",")[3]) < 1.0


def test_sampling_from_the_folder_alone(trained, capsys, tmp_path):
    def sample(*args):
        assert run("-o", trained, "--sample-only", "--max-new-tokens", 60, *args) == 0
        return capsys.readouterr().out

    assert " the " in sample("--temperature", 0)
    assert sample("--seed", 1) == sample("--seed", 1) != sample("--seed", 2)
    assert sample("--prompt", "Bob saw").startswith("Bob saw")
    (tmp_path / "p").write_text("Cid hid", encoding="utf-8")
    assert sample("--prompt", f"FILE:{tmp_path / 'p'}").startswith("Cid hid")
    assert sample("--top-k", 1) == sample("--temperature", 0) == sample("--top-p", 0)
    assert sample("--top-k", 1000) == sample("--top-k", 0)
    many = sample("--num-samples", 3, "--prompt", "Ann", "--temperature", 2)
    assert many.count("---\nAnn") == 3 and len(set(re.split(r"--- \d of 3 ---\n", many)[1:])) == 3
    assert sample("--num-samples", 0) == ""
    assert len(sample("--prompt", "Bob", "--max-new-tokens", 5)) == 3 + 5 + 1


def test_eval_scores_any_file(trained, capsys, tmp_path):
    low, high = gpt.TokenFile(trained / "tokens.bin").parts["val"]
    path = tmp_path / "v.txt"
    path.write_text(TEXT[low:high], encoding="utf-8")
    assert run("-o", trained, "--eval", path) == 0
    out = capsys.readouterr().out
    found = re.fullmatch(r"eval: ([\d.]+) nats/char over (\d+) characters\ncharacter by character: .*\n", out)
    assert int(found[2]) == high - low - 1
    opened = gpt.load(trained, device="cpu", eval_chars=0)
    exact = opened.evaluate("val")
    assert float(found[1]) == pytest.approx(exact, abs=1e-4)
    each = opened.score(TEXT[low:high])  # the same, character by character
    assert each.shape == (high - low - 1,) and each.mean() == pytest.approx(exact, abs=1e-5)


def test_attention_is_drawn(pictures, trained):
    assert run("-o", trained, "--attention", "Bob saw the fox.\nAnn hid") == 0
    assert (trained / "attention.png").read_bytes()[:4] == b"\x89PNG"
    (trained / "attention.png").unlink()


def test_a_prefix_is_a_prompt(trained, capsys):
    assert run("-o", trained, "--sample-only", "--prompt", "Bob saw") == 0
    told = capsys.readouterr().out
    assert run("-o", trained, "--sample-only", "--prefix", "Bob saw") == 0
    assert capsys.readouterr().out == told and told.startswith("Bob saw")


def test_the_command_line_and_the_library_are_one(trained, tmp_path, capsys):
    opened, state = gpt.load(trained, device="cpu", max_new_tokens=40), torch.get_rng_state()
    given = dict(prompt="Ann", temperature=0.5, top_k=5, top_p=0.9, seed=7)
    text = opened.generate(**given)
    assert run("-o", trained, "--sample-only", "--max-new-tokens", 40, *(f"--{k}={v}" for k, v in given.items())) == 0
    assert capsys.readouterr().out == text + "\n" and len(text) == 3 + 40
    assert "".join(opened.stream(**given)) == text
    assert opened.generate(**{**given, "seed": 8}) != text != opened.generate("Ann")
    three = opened.generate(**given, num_samples=3)
    assert len(set(three)) == 3 and all(t.startswith("Ann") and len(t) == 43 for t in three)
    assert opened.generate(num_samples=0) == [] and opened.generate("Bob", 0) == "Bob"

    maps = opened.attention("Bob saw the fox.")
    assert maps.shape == (2, 2, 16, 16) and np.allclose(maps.sum(-1), 1, atol=1e-5)
    opened.save(tmp_path / "copy")
    assert gpt.load(tmp_path / "copy", device="cpu", max_new_tokens=40).generate(**given) == text
    assert torch.equal(torch.get_rng_state(), state)


LIBRARY_MISTAKES = {
    "unknown characters": (lambda run, folder: run.generate("77"), "unknown to this model: '7'"),
    "out of range": (lambda run, folder: run.generate(temperature=-1), "temperature.*a number from 0"),
    "too short to score": (lambda run, folder: run.score("a"), "the first.* has nothing before it"),
    "nothing to attend to": (lambda run, folder: run.attention(""), "1 to 16 characters, not 0"),
    "longer than the context": (lambda run, folder: run.attention("Bob saw the cat.\n"), "1 to 16 characters, not 17"),
    "no such part": (lambda run, folder: run.evaluate("test"), "no part 'test'"),
    "another width": (lambda run, folder: gpt.load(run.folder, n_embd=32), "trained with 16"),
    "nothing to load": (lambda run, folder: gpt.load(folder), "there is no .*model.pt"),
    "the command line's": (lambda run, folder: gpt.train(TEXT, eval="x"), "eval is for the command line"),
    "unknown preset": (lambda run, folder: gpt.train(TEXT, preset="huge"), "huge is unknown: choose among"),
    "unknown setting": (lambda run, folder: gpt.train(TEXT, nonsense=3), "--nonsense"),
    "unknown flag": (lambda run, folder: gpt.train(TEXT, nonsense=True), "--nonsense"),
    "unknown flag, off": (lambda run, folder: gpt.train(TEXT, nonsense=False, **TINY, max_steps=1), "nonsense"),
    "shape of a trained model": (lambda run, folder: run.train(block_size=8), "settings of training, not block_size"),
    "seed of a trained model": (lambda run, folder: run.train(seed=8), "trained with 1337"),
    "too short a text": (lambda run, folder: gpt.train("a\nb", device="cpu"), "has 3 characters.*--block-size"),
    "no such file": (lambda run, folder: gpt.train(folder / "none"), "cannot read .*none"),
}


@pytest.mark.parametrize("mistake", LIBRARY_MISTAKES)
def test_mistakes_in_python_are_value_errors_of_one_line(mistake, trained, tmp_path):
    make, message = LIBRARY_MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as e:
        make(gpt.load(trained, device="cpu"), tmp_path)
    assert type(e.value) is gpt.UserError and "\n" not in str(e.value)


def test_the_library_learns_what_the_command_line_does(tmp_path, corpus, monkeypatch, capsys):
    """From a file or a string, at once or in parts, and without a word or a file where none is asked for."""
    assert run("-i", corpus, "-o", tmp_path / "o", "--max-steps", 6, "--decay-steps", 9) == 0
    expected = weights(tmp_path / "o", "model.pt")["model"]
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    trained = [gpt.train(text, **TINY, preset="mini", max_steps=6, decay_steps=9) for text in (corpus, TEXT)]
    parts = gpt.train(TEXT, **TINY, preset="mini", max_steps=3, decay_steps=9, eval_interval=1)
    trained.append(parts.train(max_steps=6))
    for learned in trained:
        assert same(dict(learned.model.state_dict()), dict(expected))
    assert capsys.readouterr() == ("", "") and sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("source", ["file", "string"])
def test_the_library_fills_the_folder_that_it_is_given(tmp_path, corpus, source):
    data, work = corpus if source == "file" else TEXT, tmp_path / "not" / "there yet"
    learned = gpt.train(data, **TINY, preset="mini", max_steps=3, work_dir=work)
    assert {"model.pt", "last.pt", "log.csv"} <= {p.name for p in work.iterdir()}
    assert gpt.load(work, device="cpu").generate("Bob", 20) == learned.generate("Bob", 20)


def test_the_figure_waits_for_the_text(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setattr(gpt, "plot_losses", lambda trained: told.append(capsys.readouterr().out))
    told = []
    assert run("-i", corpus, "-o", tmp_path / "o", "--max-steps", 2, "--prompt", "Bob saw") == 0
    assert len(told) == 1 and len(told[0].partition("\nBob saw")[2]) == 8 + 1


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["mini", "gpt2", "bigram"])
def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, corpus, preset):
    common = ["-i", corpus, "--preset", preset, "--dropout", 0.1, "--eval-interval", 3]
    assert run(*common, "-o", tmp_path / "whole", "--max-steps", 12) == 0
    assert run(*common, "-o", tmp_path / "parts", "--max-steps", 5) == 0
    assert run("-i", corpus, "-o", tmp_path / "parts", "--resume", "--max-steps", 12, "--eval-interval", 3) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for key in ("model", "optimizers", "losses", "vocab", "digest"):
        assert same(whole[key], parts[key]), key
    assert whole["progress"]["step"] == parts["progress"]["step"] == 12
    assert gpt.Progress(**whole["progress"]).best_loss == gpt.Progress(**parts["progress"]).best_loss


def test_a_resumed_run_computes_as_it_began(tmp_path, corpus):
    """In the same arithmetic, without being told again."""
    assert run("-i", corpus, "-o", tmp_path / "whole", "--dtype", "bfloat16", "--max-steps", 6) == 0
    assert run("-i", corpus, "-o", tmp_path / "parts", "--dtype", "bfloat16", "--max-steps", 3) == 0
    assert run("-o", tmp_path / "parts", "--resume", "--max-steps", 6) == 0
    assert same(weights(tmp_path / "whole")["model"], weights(tmp_path / "parts")["model"])


def test_the_evaluation_interval_does_not_change_the_weights(tmp_path, corpus):
    for interval in (1, 4, 100):
        args = ("--dropout", 0.1, "--max-steps", 9, "--eval-interval", interval)
        assert run("-i", corpus, "-o", tmp_path / str(interval), *args) == 0
    one, four, hundred = (weights(tmp_path / str(i)) for i in (1, 4, 100))
    assert same(one["model"], four["model"]) and same(one["model"], hundred["model"])


def test_accumulation_does_not_change_the_losses(tmp_path, corpus):
    losses = []
    for pieces in (1, 2, 4):
        args = ("--grad-accum", pieces, "--max-steps", 8, "--eval-interval", 2)
        assert run("-i", corpus, "-o", tmp_path / str(pieces), *args) == 0
        losses.append([row[2:4] for row in weights(tmp_path / str(pieces))["progress"]["history"][1:]])
    assert np.allclose(losses[0], losses[1], atol=1e-5) and np.allclose(losses[0], losses[2], atol=1e-5)


def test_bfloat16_trains_on_a_processor_too(tmp_path, corpus):
    assert run("-i", corpus, "-o", tmp_path / "o", "--dtype", "bfloat16", "--max-steps", 30, "--decay-steps", 30) == 0
    assert gpt.Progress(**weights(tmp_path / "o")["progress"]).best_loss < 2.5
    assert all(p.dtype == torch.float32 for p in weights(tmp_path / "o")["model"].values())


def test_patience_ends_a_run_that_no_longer_improves(tmp_path, corpus):
    args = ("--max-steps", 50, "--learning-rate", 0, "--eval-interval", 2, "--patience", 3)
    assert run("-i", corpus, "-o", tmp_path / "o", *args) == 0
    progress = gpt.Progress(**weights(tmp_path / "o")["progress"])
    assert (progress.step, progress.best_step) == (6, 0)


def test_compile_that_fails_is_told_and_done_without(tmp_path, corpus, monkeypatch, capsys):
    def broken(model):
        def call(x):
            model(x)
            raise RuntimeError("Triton is not installed\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    args = ("--dropout", 0.1, "--max-steps", 5)
    assert run("-i", corpus, "-o", tmp_path / "a", "--compile", "on", *args) == 0
    assert "compile: goes on without, slower (Triton is not installed)" in capsys.readouterr().out
    assert run("-i", corpus, "-o", tmp_path / "b", "--compile", "off", *args) == 0
    assert same(weights(tmp_path / "a")["model"], weights(tmp_path / "b")["model"])


def test_finetuning_keeps_what_is_known_and_names_what_is_new(trained, tmp_path, capsys):
    path = tmp_path / "new.txt"
    path.write_text(TEXT.replace("eel", "élan"), encoding="utf-8")
    assert run("-i", path, "-o", tmp_path / "o", "--init-from", trained / "model.pt", "--max-steps", 4) == 0
    assert "new characters, to be learned: 'é'" in capsys.readouterr().out
    history = weights(tmp_path / "o")["progress"]["history"]
    assert history[0][3] < 2.5  # it begins far below ln V
    old = weights(trained, "model.pt")
    start = gpt.build(gpt.Config(**weights(tmp_path / "o")["config"]), len(old["vocab"]) + 1)
    chars = weights(tmp_path / "o")["vocab"]
    assert gpt.transfer(start, old, chars) == "é"
    idx = torch.from_numpy(gpt.Vocab(old["vocab"]).encode("Bob saw the fox."))[None]
    new_idx = torch.from_numpy(gpt.Vocab(chars).encode("Bob saw the fox."))[None]
    before = gpt.load(trained, device="cpu").model.eval()(idx)
    after = start.eval()(new_idx)[..., [chars.index(c) for c in old["vocab"]]]
    assert torch.allclose(before, after, atol=1e-5)


def test_weights_of_any_number_of_dimensions_are_transferred():
    new, old = (torch.nn.ModuleList([torch.nn.Conv1d(n, 2, 5), torch.nn.PReLU()]) for n in (4, 3))
    for layers, slope in ((new, 0.25), (old, 0.5)):
        layers[1].weight = torch.nn.Parameter(torch.tensor(slope))
    assert gpt.transfer(new, dict(vocab="abd", model=old.state_dict()), "abcd") == "c"
    assert torch.equal(new[0].weight[:, [0, 1, 3]], old[0].weight) and new[1].weight == 0.5


class Own(torch.nn.Module):
    """The least that a model has to be: a class that takes the settings, and a forward."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.token = torch.nn.Embedding(vocab_size, config.n_embd)
        self.hidden = torch.nn.Linear(config.n_embd, config.n_embd)
        self.head = torch.nn.Linear(config.n_embd, vocab_size)

    def forward(self, idx):
        return self.head(torch.relu(self.hidden(self.token(idx))))


@pytest.mark.parametrize("optimizer", [{}, dict(optimizer="adamw"), dict(optimizer="muon")], ids=str)
def test_a_model_of_ones_own_is_served_like_the_others(tmp_path, corpus, monkeypatch, capsys, optimizer):
    folder, common = tmp_path / "parts", ["-i", corpus, "--preset", "own", "--learning-rate", 0.03, "--num-samples", 0]
    with monkeypatch.context() as patch:
        patch.setitem(gpt.PRESETS, "own", gpt.Entry(Own, "a model of one's own", dict(n_embd=16, **optimizer)))
        assert run(*common, "-o", tmp_path / "whole", "--max-steps", 100, "--decay-steps", 100) == 0
        assert run(*common, "-o", folder, "--max-steps", 50, "--decay-steps", 100) == 0
        assert run("-o", folder, "--preset", "own", "--resume", "--max-steps", 100) == 0
        a, b = weights(tmp_path / "whole"), weights(folder)
        for key in ("model", "optimizers", "losses", "vocab", "digest"):
            assert same(a[key], b[key]), key
        best = gpt.Progress(**b["progress"]).best_loss
        assert best < math.log(len(b["vocab"])) - 1
        assert run(*common, "-o", tmp_path / "tuned", "--init-from", folder / "model.pt", "--max-steps", 2) == 0
        assert weights(tmp_path / "tuned")["progress"]["history"][0][3] == pytest.approx(best, abs=1e-5)
        assert capsys.readouterr().err == ""

        sample = ["-o", folder, "--preset", "own", "--sample-only", "--prompt", "Bob", "--max-new-tokens", 40]
        assert run(*sample) == 0
        opened = gpt.load(folder, device="cpu", eval_chars=0)
        assert capsys.readouterr().out == opened.generate("Bob", 40) + "\n"
        assert run("-o", folder, "--preset", "own", "--eval", corpus) == 0
        found = float(re.match(r"eval: ([\d.]+) nats/char", capsys.readouterr().out)[1])
        idx = torch.from_numpy(opened.vocab.encode(TEXT))  # it sees the last character only, so windows do not matter
        exact = gpt.cross_entropy(opened.model.eval()(idx[None, :-1]), idx[None, 1:]).item()
        assert opened.score(TEXT).mean() == pytest.approx(exact, abs=1e-5)
        assert found == pytest.approx(exact, abs=1e-4)
        assert opened.evaluate("val") == pytest.approx(best, abs=1e-5)

        assert run("-o", folder, "--preset", "own", "--attention", "Bob") == 2
        assert "no attention" in capsys.readouterr().err
    assert gpt.main(["-o", str(folder), "--sample-only"]) == 2  # without its row
    assert re.fullmatch("gpt: .*'own' is not known here.*\n", capsys.readouterr().err)


def test_a_bigram_finetunes_too(corpus, tmp_path, capsys):
    assert run("-i", corpus, "-o", tmp_path / "a", "--preset", "bigram", "--max-steps", 30) == 0
    (tmp_path / "n.txt").write_text(TEXT + "§" * 30, encoding="utf-8")
    model = tmp_path / "a" / "model.pt"
    assert run("-i", tmp_path / "n.txt", "-o", tmp_path / "b", "--init-from", model, "--max-steps", 2) == 0
    history = weights(tmp_path / "b")["progress"]["history"]
    assert history[0][3] < math.log(len(weights(tmp_path / "b")["vocab"])) - 0.2


# --- processes and signals --------------------------------------------------------------------------------------------


def start_two(script):
    """Two processes that train together: by torchrun, or without it on Windows, where it wants a library that lacks."""
    if os.name != "nt":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return [subprocess.Popen([*torchrun, script], **PIPES)]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        world = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), USE_LIBUV="0")
    env = {**os.environ, **world}
    return [subprocess.Popen([sys.executable, script], env=env | dict(RANK=i, LOCAL_RANK=i), **PIPES) for i in "01"]


@posix
def test_a_killed_process_ends_the_others_and_torchrun_goes_on_by_itself(tmp_path, corpus):
    """As the README has it, with a SIGKILL of the second process, and the losses of a run that nobody killed."""
    common = ["-i", corpus, "--eval-interval", 2, "--num-samples", 0, "--dtype", "float32", "--decay-steps", 2000]
    for name, steps in (("whole", 8), ("parts", 0)):
        assert run(*common, "-o", tmp_path / name, "--max-steps", steps) == 0
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import gpt

def rate_or_die(step, *given, rate=gpt.learning_rate):
    if (step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (5, "1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(step, *given)

gpt.learning_rate, gpt.plot_losses, gpt.measure_peak = rate_or_die, lambda run: None, lambda *_: 1.0
sys.exit(gpt.main(["-o", {str(tmp_path / "parts")!r}, "--resume", "--max-steps", "8", "--eval-interval", "2"]))
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run([*torchrun, "--max-restarts", "1", script], env=env, timeout=120, **PIPES)
    assert done.returncode == 0 and "exitcode: -9" in done.stderr, done.stderr
    a, b = (weights(tmp_path / name)["progress"]["history"] for name in ("whole", "parts"))
    assert [row[0] for row in a] == [row[0] for row in b] == [0, 2, 4, 6, 8]
    assert np.allclose([row[2:4] for row in a[1:]], [row[2:4] for row in b[1:]], atol=1e-5)


def test_two_processes_learn_what_one_does_and_go_on_exactly_each_with_its_own_chance(tmp_path, corpus):
    """Broken off and resumed, as one process; with dropout, which differs between them, as two that were not stopped.

    All in the same two processes, for to start them takes longer than the rest; before every run they are disturbed.
    What one process learned they evaluate together.
    """

    def until(end):
        return ["--max-steps", end, "--decay-steps", 2000]

    common, dropout = ["-i", corpus, "--eval-interval", 5, "--num-samples", 0, "--dtype", "float32"], ["--dropout", 0.2]
    runs = [
        small(*common, "-o", tmp_path / "two", *until(10**6)),
        small(*common, "-o", tmp_path / "two", "--resume", *until(15)),
        small(*common, "-o", tmp_path / "whole", *dropout, *until(12)),
        small(*common, "-o", tmp_path / "parts", *dropout, *until(7)),
        small("-o", tmp_path / "parts", "--resume", "--max-steps", 12),
    ]
    assert run(*common, "-o", tmp_path / "one", *until(15)) == 0
    a = weights(tmp_path / "one")["progress"]["history"]
    script = tmp_path / "script.py"
    script.write_text(f"""
import contextlib, sys
sys.path.insert(0, {str(ROOT)!r})
import gpt, torch

class Killed(BaseException):
    pass

def rate_or_die(step, *given, rate=gpt.learning_rate):
    if step == 13 and given[0].max_steps == 10**6:
        raise Killed
    return rate(step, *given)

gpt.learning_rate, gpt.plot_losses, gpt.measure_peak = rate_or_die, lambda run: None, lambda *_: 1.0
assert abs(gpt.load({str(tmp_path / "one")!r}, "last.pt").evaluate() - {a[-1][3]}) < 1e-5
for argv in {runs!r}:
    torch.manual_seed(99)
    with contextlib.suppress(Killed):
        assert gpt.main(argv) == 0
""")
    two = start_two(script)
    try:
        told = [process.communicate(timeout=120) for process in two]
    finally:
        for process in two:
            process.terminate()
    assert [process.returncode for process in two] == [0] * len(two), told
    assert sum(out.count("final:") for out, _ in told) == len(runs) - 1  # of the first process, but for what was killed

    b = weights(tmp_path / "two")["progress"]["history"]
    assert [row[0] for row in a] == [row[0] for row in b] == [0, 5, 10, 15]
    assert np.allclose([row[2:4] for row in a[1:]], [row[2:4] for row in b[1:]], atol=1e-5)

    a, b = (weights(tmp_path / name) for name in ("whole", "parts"))
    for part in ("model", "optimizers", "losses"):
        assert same(a[part], b[part]), part
    whole, parts = ({row[0]: row[2:] for row in checkpoint["progress"]["history"]} for checkpoint in (a, b))
    assert list(whole) == [0, 5, 10, 12] and list(parts) == [0, 5, 7, 10, 12]
    assert same(whole, {step: parts[step] for step in whole})


def test_what_is_random_in_a_step_follows_from_the_step_and_the_process(corpus):
    model, seen = gpt.train(corpus, preset="mini", max_steps=0, batch_size=4, quiet=True), {}
    for size, rank, step in ((1, 0, 0), (1, 0, 1), (2, 0, 7), (2, 1, 7), (2, 0, 8), (2, 1, 8)):
        model.processes, model.progress.step, model.micro_batches = types.SimpleNamespace(rank=rank, size=size), step, 1
        for _ in range(2):
            (x, _), *_ = model.draw()
            seen.setdefault((size, rank, step), []).append((x, torch.rand(5)))
    assert all(same(first, second) for first, second in seen.values())
    assert len({tuple(drawn.tolist()) for (_, drawn), _ in seen.values()}) == len(seen)  # no two drop the same channels


@posix
def test_ctrl_c_saves_reports_and_exits_130(tmp_path, corpus):
    args = ("-i", corpus, "-o", tmp_path / "o", "--max-steps", 10**6, "--decay-steps", 500, "--eval-interval", 10)
    process = command(*args)
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    assert "final: train" in out
    step = weights(tmp_path / "o")["progress"]["step"]
    assert step >= 20
    assert run("-i", corpus, "-o", tmp_path / "o", "--resume", "--max-steps", step + 1) == 0


@posix
def test_ctrl_c_while_writing(trained):
    process = command("-o", trained, "--sample-only", "--max-new-tokens", 10**7)
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    assert out.endswith("\n")


def test_a_reader_that_goes_away_is_no_error(trained):
    process = command("-o", trained, "--sample-only", "--max-new-tokens", 10**7)
    assert process.stdout.read(20)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


# --- devices ----------------------------------------------------------------------------------------------------------

CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_110", "sm_120", "compute_120"]
CARDS = {  # name: (capability, GB free), and what is planned under cu126, cu128 and cu130: dtype and compile, or None
    "GTX 750 Ti": ((5, 0), 1.9, "float32 no", None, None),
    "GTX 970": ((5, 2), 3.8, "float32 no", None, None),
    "GTX 1060": ((6, 1), 5.8, "float32 no", None, None),
    "GTX 1070": ((6, 1), 7.9, "float32 no", None, None),
    "GTX 1080 Ti": ((6, 1), 10.8, "float32 no", None, None),
    "GTX 1650": ((7, 5), 3.8, "float32 no", "float32 no", "float32 no"),
    "GTX 1660": ((7, 5), 5.8, "float32 no", "float32 no", "float32 no"),
    "RTX 2060": ((7, 5), 5.8, "float32 no", "float32 no", "float32 no"),
    "T4": ((7, 5), 14.6, "float32 no", "float32 no", "float32 no"),
    "V100": ((7, 0), 15.8, "float32 no", "float32 no", None),
    "A100": ((8, 0), 39.5, "bfloat16 yes", "bfloat16 yes", "bfloat16 yes"),
    "RTX 3060": ((8, 6), 11.8, "bfloat16 yes", "bfloat16 yes", "bfloat16 yes"),
    "RTX 4090": ((8, 9), 23.6, "bfloat16 yes", "bfloat16 yes", "bfloat16 yes"),
    "H100": ((9, 0), 79.0, "bfloat16 yes", "bfloat16 yes", "bfloat16 yes"),
    "RTX 5090": ((12, 0), 31.4, None, "bfloat16 yes", "bfloat16 yes"),
}
OTHERS = {"MIG 1g.10gb": ((9, 0), 9.6), "RX 7900": ((11, 0), 23.9)}  # a slice of an H100, a card by AMD


def runs_on(capability, archs):
    """Whether a card has kernels in a torch built for these: binaries of its own generation, or older PTX."""
    for kind, number in (arch.split("_") for arch in archs):
        built = (int(number[:-1]), int(number[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def plan(*names, archs=CU128, full=(), no_cuda="", mps=False, bf16=False, tried=None, **wishes):
    """The plan for a machine with these cards, those in `full` without memory, and a torch for these architectures."""
    cards = [gpt.Card(i, f"NVIDIA {name}", *(CARDS | OTHERS)[name][:2]) for i, name in enumerate(names)]

    def trial(device):
        (tried if tried is not None else []).append(device)
        if device == "mps":
            return math.inf if mps != "broken" else "MPS backend out of memory"
        card = cards[int(device[5:])]
        if not runs_on(card.capability, archs):
            return "CUDA error: no kernel image is available for execution on the device"
        return "CUDA out of memory" if card.index in full else card.memory

    return gpt.plan_device(gpt.Machine(cards, trial, "2.10.0", no_cuda, bool(mps), lambda: bf16), **wishes)


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("wheel", ["cu126", "cu128", "cu130"])
def test_card_table(name, wheel):
    archs = dict(cu126=CU126, cu128=CU128, cu130=CU130)[wheel]
    expected = CARDS[name][2 + ["cu126", "cu128", "cu130"].index(wheel)]
    auto = plan(name, archs=archs)
    if expected is None:  # auto falls back to the processor and says why; who asks for the card is told what to do
        assert auto.device.type == "cpu" and name in auto.why
        with pytest.raises(gpt.UserError, match=r"no kernels.*pip install") as e:
            plan(name, archs=archs, device="cuda")
        legacy = CARDS[name][0] < (7, 5)
        assert ("cu126" in str(e.value)) == legacy and ("--upgrade" in str(e.value)) != legacy
        assert str(e.value) and "\n" not in str(e.value)
    else:
        assert auto.device == torch.device("cuda", 0)
        assert f"{auto.dtype} {'yes' if auto.compile else 'no'}" == expected
        assert plan(name, archs=archs, device="cuda:0") == auto
        assert name in auto.why


def test_cards_of_different_kinds():
    assert plan("GTX 1070", "RTX 3060").device == torch.device("cuda", 1)  # the other has no kernels in this torch
    assert plan("GTX 1070", "RTX 3060", archs=CU126).device == torch.device("cuda", 1)  # more memory, and newer
    assert plan("RTX 3060", "GTX 750 Ti", archs=CU126).device == torch.device("cuda", 0)
    assert plan("GTX 1070", "RTX 3060", archs=CU126, device="cuda:0").device == torch.device("cuda", 0)
    with pytest.raises(gpt.UserError, match="GTX 1070"):
        plan("RTX 3060", "GTX 1070", device="cuda:1")
    with pytest.raises(gpt.UserError, match="no card 2; 0 is NVIDIA GTX 1070, 1 is NVIDIA RTX 3060"):
        plan("GTX 1070", "RTX 3060", device="cuda:2")


def test_wishes_for_arithmetic_and_compiling():
    assert plan("RTX 2060", dtype="float16").dtype == "float16"
    assert "NaN" in plan("GTX 1660", dtype="float16").why and "NaN" not in plan("RTX 2060", dtype="float16").why
    assert "emulated" in plan("T4", dtype="bfloat16").why
    assert plan("RTX 4090", dtype="float32").dtype == "float32"
    assert not plan("RTX 4090", compile="off").compile
    assert plan("V100", compile="on").compile
    with pytest.raises(gpt.UserError, match="Triton"):
        plan("GTX 1080 Ti", archs=CU126, compile="on")


NOT_BUILT = "this torch 2.10.0 is built without CUDA; https://pytorch.org/get-started/locally has the command"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."
LEGACY = 'pip install --force-reinstall "torch<2.15" --index-url https://download.pytorch.org/whl/cu126'
NO_KERNELS = "torch 2.10.0 has no kernels for NVIDIA GTX 1070 (6.1); " + LEGACY
MACHINES = {  # machine: (its facts, what is asked for, the device or None, what the user is told)
    "no CUDA in torch": (dict(no_cuda=NOT_BUILT), "cuda", None, f"--device cuda cannot be used: {NOT_BUILT}"),
    "no driver": (dict(no_cuda=NO_DRIVER), "cuda", None, f"--device cuda cannot be used: {NO_DRIVER}"),
    "driver too old": (dict(no_cuda=OLD_DRIVER), "cuda:0", None, f"--device cuda:0 cannot be used: {OLD_DRIVER}"),
    "no driver, auto": (dict(no_cuda=NO_DRIVER), "auto", "cpu", "no CUDA device"),
    "empty CUDA_VISIBLE_DEVICES": (
        {}, "cuda", None,
        "--device cuda cannot be used: torch sees no card; check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    "GTX 1070, cu126": (dict(names=["GTX 1070"], archs=CU126), "cuda", "cuda:0", "NVIDIA GTX 1070 (6.1), 7.9 GB free"),
    "GTX 1070, cu130": (
        dict(names=["GTX 1070"], archs=CU130), "cuda", None, f"--device cuda cannot be used: {NO_KERNELS}"),
    "GTX 1070, cu130, auto": (dict(names=["GTX 1070"], archs=CU130), "auto", "cpu", NO_KERNELS),
    "GTX 1650": (dict(names=["GTX 1650"], archs=CU130), "auto", "cuda:0", "NVIDIA GTX 1650 (7.5), 3.8 GB free"),
    "RTX 5090, cu126": (
        dict(names=["RTX 5090"], archs=CU126), "cuda", None,
        "--device cuda cannot be used: torch 2.10.0 has no kernels for NVIDIA RTX 5090 (12.0); "
        "pip install --upgrade torch"),
    "a full card": (dict(names=["RTX 3060"], full=[0]), "auto", "cpu", "NVIDIA RTX 3060 (8.6): CUDA out of memory"),
    "cuda:1 of two, the first full": (
        dict(names=["RTX 4090", "RTX 3060"], full=[0]), "cuda:1", "cuda:1", "NVIDIA RTX 3060 (8.6), 11.8 GB free"),
    "two, the better full": (
        dict(names=["RTX 4090", "RTX 3060"], full=[0]), "auto", "cuda:1", "NVIDIA RTX 3060 (8.6), 11.8 GB free"),
    "a slice of a card (MIG)": (dict(names=["MIG 1g.10gb"]), "auto", "cuda:0", "NVIDIA MIG 1g.10gb (9.0), 9.6 GB free"),
    "ROCm": (dict(names=["RX 7900"], archs=["compute_00"]), "auto", "cuda:0", "NVIDIA RX 7900 (11.0), 23.9 GB free"),
    "Metal": (dict(mps=True), "auto", "mps", "Metal"),
    "Metal that fails": (dict(mps="broken"), "auto", "cpu", "Metal: MPS backend out of memory"),
    "Metal that fails, asked for": (
        dict(mps="broken"), "mps", None, "--device mps cannot be used: MPS backend out of memory"),
    "no Metal": ({}, "mps", None, "--device mps cannot be used: this torch or this machine has no Metal"),
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_user_is_told_about_the_machine(machine):
    facts, device, expected, words = MACHINES[machine]
    facts = dict(facts)
    names = facts.pop("names", [])
    if expected is None:
        with pytest.raises(gpt.UserError) as e:
            plan(*names, device=device, **facts)
        assert str(e.value) == words
    else:
        found = plan(*names, device=device, **facts)
        assert (str(found.device), found.why.partition("; not compiled")[0].partition("; half")[0]) == (expected, words)


def test_only_the_card_that_is_taken_is_touched():
    """Whatever computes on a card takes some hundred MB of its memory, in every process."""
    plan("GTX 1070", "RTX 3060", "RTX 2060", archs=CU126, tried=(tried := []))
    assert tried == ["cuda:1"]
    plan("RTX 3060", "RTX 4090", device="cuda:0", tried=(tried := []))
    assert tried == ["cuda:0"]
    plan("RTX 3060", device="cpu", tried=(tried := []))
    assert tried == []


def test_what_does_not_hang_on_cards():
    with pytest.raises(gpt.UserError, match="float16"):
        plan(dtype="float16")
    assert (plan().dtype, plan(dtype="bfloat16").dtype) == ("float32", "bfloat16")
    assert (plan(bf16=True).dtype, plan(bf16=True, dtype="float32").dtype) == ("bfloat16", "float32")
    assert not plan().compile and not plan(bf16=True).compile
    unasked = gpt.Machine([gpt.Card(0, "A100", (8, 0), 40.0)], lambda device: 40.0, "2.13", bf16=pytest.fail)
    assert gpt.plan_device(unasked).dtype == "bfloat16"  # the card's: no processor is tried where it does not matter
    assert gpt.plan_device(unasked, "cpu", "float32").dtype == "float32"
    assert plan(mps=True).dtype == "float32"
    for nonsense in ("gpu", "cuda:", "cuda:x", "cpu:1", "mps:0", ""):
        with pytest.raises(gpt.UserError, match="unknown"):
            plan("A100", device=nonsense)


@pytest.mark.parametrize(
    "known, speeds, pays",
    [(False, (2, 1), False), (True, (2, 1), True), (True, (1, 2), False)],
    ids=["unknown to the processor", "known and faster", "known and slower"],
)
def test_bfloat16_has_to_be_faster_where_the_processor_knows_it(monkeypatch, known, speeds, pays):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known)
    speed = dict(zip(("bfloat16", "float32"), speeds, strict=True))
    monkeypatch.setattr(gpt, "measure_peak", lambda plan, n, clock: speed[plan.dtype])
    gpt.bfloat16_pays.cache_clear()
    try:
        assert gpt.bfloat16_pays() is pays
        assert gpt.make_plan(dict(device="cpu")).dtype == ("bfloat16" if pays else "float32")
    finally:
        gpt.bfloat16_pays.cache_clear()


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_an_evaluation_that_does_not_fit_is_made_in_smaller_pieces(trained, monkeypatch, words):
    run, asked = gpt.load(trained, device="cpu"), []
    whole = run.evaluate(), run.score(TEXT[:300])
    forward = type(run.model).forward

    def small(self, idx, *cache):
        asked.append(len(idx))
        if len(idx) > 2:
            raise RuntimeError(words)
        return forward(self, idx, *cache)

    monkeypatch.setattr(type(run.model), "forward", small)
    assert run.evaluate() == pytest.approx(whole[0], abs=1e-6) and max(asked) > 2
    assert np.allclose(run.score(TEXT[:300]), whole[1], atol=1e-5)


def test_a_loss_that_is_lost_in_half_precision_asks_for_more_of_it(trained):
    run = gpt.load(trained, device="cpu")
    run.config = replace(run.config, dtype="float16")
    with pytest.raises(gpt.UserError, match="try --dtype float32"):
        gpt.check_finite(run, math.nan)


def test_the_peak_is_measured_with_little_memory_first(monkeypatch, measure_peak=gpt.measure_peak):
    """On a card, products grow while they are quick, and what was measured stays when memory ends."""
    sizes, ones = [], torch.ones

    def small(n, m, device, **given):
        sizes.append(n)
        if n > 2048:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ones(8, 8)

    monkeypatch.setattr(torch, "ones", small)
    card = gpt.Plan(torch.device("cuda", 0), "float32", False, "")
    assert math.isfinite(measure_peak(card)) and sizes == [1024, 2048, 4096]


def test_the_batch_is_cut_to_fit_the_card():
    baby = gpt.configure(dict(preset="baby"))
    needed = gpt.bytes_needed(baby, 65) / 1e9
    assert needed < 7.5
    assert gpt.micro_batches(baby, 65, 7.9) == 1
    assert gpt.micro_batches(baby, 65, 1.9) > 1
    assert gpt.micro_batches(baby, 65, 0.0) == 64
    assert gpt.micro_batches(replace(baby, grad_accum=2), 65, 0.1) == 2


# --- mistakes of the user ---------------------------------------------------------------------------------------------


class Attack:
    def __reduce__(self):
        return (os.mkdir, ("should-not-be-there",))


@pytest.fixture
def bad(tmp_path, corpus, trained):
    """Files with something wrong in each, and the folder in which nothing may appear."""
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("To be", encoding="utf-8")
    (tmp_path / "latin1").write_bytes(b"a line\ncaf\xe9\n" * 100)
    (tmp_path / "cut").write_bytes(b"a line\n" * 100 + b"\xe2\x82")
    (tmp_path / "binary").write_bytes(b"MZ\0\1" * 100)
    (tmp_path / "one").write_text("x", encoding="utf-8")
    for name, blob in dict(
        code=pickle.dumps(Attack()), junk=b"not a checkpoint", cut=(trained / "model.pt").read_bytes()[:5000]
    ).items():
        (tmp_path / f"m_{name}").mkdir()
        (tmp_path / f"m_{name}" / "model.pt").write_bytes(blob)
    (tmp_path / "m_other").mkdir()
    torch.save(dict(program="makemore"), tmp_path / "m_other" / "model.pt")
    return dict(tmp=tmp_path, text=corpus, trained=trained)


MISTAKES = {
    "no such file": ("-i {tmp}/none", "cannot read .*none"),
    "a folder": ("-i {tmp}", "cannot read"),
    "empty text": ("-i {tmp}/empty", "has 0 characters.*--block-size"),
    "text shorter than the context": ("-i {tmp}/short", "has 5 characters: --block-size 16 needs 20"),
    "latin-1": ("-i {tmp}/latin1", "not UTF-8: line 2, byte 10 is 0xe9"),
    "cut character": ("-i {tmp}/cut", "not UTF-8: line 101, byte 700 is 0xe2"),
    "binary": ("-i {tmp}/binary", "binary file"),
    "unknown flag": ("--nonsense 3", "--nonsense"),
    "abbreviated flag": ("--max-s 3", "--max-s"),
    "not a number": ("--max-steps many", "many"),
    "nan": ("-i {text} --learning-rate nan", "nan: must be a number from 0 to 1e.30"),
    "out of range": ("-i {text} --top-p 1.5", "must be a number from 0 to 1$"),
    "unknown preset": ("-i {text} --preset huge", "huge is unknown: choose among"),
    "unknown activation": ("-i {text} --activation swish", "swish"),
    "heads": ("-i {text} --n-embd 18 --n-head 4", "18 does not divide"),
    "odd heads": ("-i {text} --n-embd 6 --n-head 2", "odd"),
    "accumulation": ("-i {text} --batch-size 6 --grad-accum 4", "6 does not divide evenly among 1 process times .* 4"),
    "device": ("-i {text} --device gpu", "gpu is unknown"),
    "half on a processor": ("-i {text} --dtype float16", "float16"),
    "prompt": ("-i {text} --prompt Zürich", "unknown to this model: 'Z' 'r' 'ü'; it knows"),
    "prompt file": ("-i {text} --prompt FILE:{tmp}/none", "cannot read .*none"),
    "two modes": ("--resume --sample-only", "argument --sample-only: not allowed with argument --resume"),
    "nothing to resume": ("-i {text} --resume", "there is no .*last.pt"),
    "nothing to sample": ("--sample-only", "there is no .*model.pt"),
    "nothing to start from": ("-i {text} --init-from {tmp}/none.pt", "there is no .*none.pt"),
    "a checkpoint that carries code": ("-o {tmp}/m_code --sample-only", "refused: it is corrupt, or carries code"),
    "a checkpoint that is junk": ("-o {tmp}/m_junk --sample-only", "refused: it is corrupt, or carries code"),
    "a checkpoint cut short": ("-o {tmp}/m_cut --sample-only", "refused: it is corrupt, or carries code"),
    "another program's": ("-o {tmp}/m_other --sample-only", "not a checkpoint of gpt"),
    "another width": ("-o {trained} --sample-only --n-embd 32", "trained with 16"),
    "another context": ("-i {text} --init-from {trained}/model.pt --block-size 32", "trained with 16"),
    "strange prompt": ("-o {trained} --sample-only --prompt 1+1", "unknown to this model: '\\+' '1'"),
    "strange file": ("-o {trained} --eval {tmp}/latin1", "not UTF-8"),
    "nothing to score": ("-o {trained} --eval {tmp}/one", "short.*the first character has nothing before it"),
    "attention to the unknown": ("-o {trained} --attention 77", "unknown to this model: '7'"),
    "another text": ("-o {trained} -i {tmp}/short --resume", "has changed"),
    "work folder in a file": ("-i {text} -o {text}/out", "cannot write in the folder"),
    "nothing named to score": ("-o {trained} --eval ''", "--eval is empty"),
    "nothing named to start from": ("-i {text} --init-from ''", "--init-from is empty"),
    "nothing to pay attention to": ("-o {trained} --attention ''", "--attention is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_is_made(mistake, bad, capsys, monkeypatch):
    args, message = MISTAKES[mistake]
    monkeypatch.chdir(bad["tmp"])
    before = sorted(map(str, bad["tmp"].rglob("*"))), sorted(map(str, bad["trained"].iterdir()))
    args = [a.format(**bad) for a in shlex.split(args)]
    shape = [] if {flag(mode) for mode in OPENING} & set(args) else [f"{flag(k)}={v}" for k, v in TINY.items()]
    assert gpt.main([*shape, *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gpt: ") and err.count("\n") == 1
    assert re.search(message, err)
    assert (sorted(map(str, bad["tmp"].rglob("*"))), sorted(map(str, bad["trained"].iterdir()))) == before


def test_a_full_memory_is_told_with_the_flags_that_help(corpus, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(gpt.Run, "train", full)
    assert run("-i", corpus, "-o", tmp_path / "o") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--grad-accum" in err and "--block-size" in err


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_best(corpus, tmp_path, capsys):
    assert run("-i", corpus, "-o", tmp_path / "o", "--learning-rate", 1e30, "--max-steps", 40) == 2
    assert "lower --learning-rate" in capsys.readouterr().err
    assert (tmp_path / "o" / "model.pt").exists()


def test_help_names_every_preset(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        gpt.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in gpt.PRESETS)


@pytest.mark.parametrize("preset", gpt.PRESETS)
def test_help_about_a_preset_tells_its_defaults(preset, capsys):
    with pytest.raises(SystemExit) as e:
        gpt.main(["--preset", preset, "--help"])
    assert e.value.code == 0
    told = capsys.readouterr().out.partition("--preset is one of these")[0]  # the flags, without the table of presets
    told = [" ".join(words.split()) for words in re.split(r"\n  (?=-)|\n\n", told)]
    told = {name[1]: words for words in told if (name := re.match("--([a-z-]+)", words))}
    defaults = gpt.PRESETS[preset].defaults
    if preset == "gpt2":
        assert told["learning-rate"].endswith("[0.001]") and told["positions"].endswith("[learned]")
    if preset == "bigram":
        assert told["learning-rate"].endswith("[0.05]") and told["n-layer"].endswith("(not used by bigram)")
    for name, f in gpt.SETTINGS.items():
        words, default = told[flag(name)[2:]], defaults.get(name, f.default)
        if name not in gpt.uses(preset):
            assert words.endswith(f"(not used by {preset})")
        elif default is None or default is False or default == "":
            assert "not used" not in words and (name == "work_dir" or not words.endswith("]"))
        else:
            assert words.endswith(f"[{default}]")


def test_flags_that_nobody_reads_are_named_in_one_line_and_dropped(tmp_path, corpus, capsys):
    def told(*args):
        assert run(*args) == 0
        return capsys.readouterr().err

    unused = "gpt: --n-head is not used by bigram, only by tiny, mini, gpt2, small, baby, large\n"
    common = ("-i", corpus, "-o", tmp_path / "o", "--num-samples", 0)
    assert told(*common, "--preset", "bigram", "--n-head", 3, "--max-steps", 2) == unused
    assert weights(tmp_path / "o")["config"]["n_head"] is None
    err = told("-o", tmp_path / "o", "--preset", "bigram", "--sample-only", "--batch-size", 3)
    assert err == "gpt: --batch-size is not used by --sample-only, only by training, --resume, --init-from\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        err = told(*common, "--preset", "bigram", "--resume", "--n-head", 3, "--max-steps", 3)
    assert err + "".join(str(w.message) for w in caught) == unused
    assert weights(tmp_path / "o")["config"]["n_head"] is None
    with pytest.warns(UserWarning, match="^--n-head is not used by bigram, only by"):  # in Python, it is a warning
        gpt.load(tmp_path / "o", device="cpu", n_head=3)


def test_underscores_are_as_good_as_hyphens(corpus, tmp_path):
    assert run("-i", corpus, "--work_dir", tmp_path / "o", "--max_steps", 1, "--eval_interval=1") == 0
    assert json.loads((tmp_path / "o" / "tokens.bin").open("rb").readline())["count"] == len(TEXT)


# --- a run in a program -----------------------------------------------------------------------------------------------

SMALL = dict(preset="mini", n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=4, max_steps=3, device="cpu")


def test_a_stream_that_waits_leaves_its_caller_alone():
    run = gpt.train(TEXT, **SMALL)
    stream = run.stream("Bob", 9)
    next(stream), next(stream)
    assert torch.is_grad_enabled()
    run.train(max_steps=5)
    assert run.progress.step == 5


def test_a_new_weight_decay_counts_when_a_run_goes_on():
    run = gpt.train(TEXT, **{**SMALL, "preset": "gpt2"}, weight_decay=0.1)
    run.train(max_steps=4, weight_decay=0.5)
    assert {group["weight_decay"] for o in run.optimizers for group in o.param_groups} == {0.5, 0.0}


def test_an_encoded_text_with_more_characters_is_not_taken_for_the_text(tmp_path, corpus):
    (tmp_path / "b.txt").write_text(TEXT.replace("cat", "kat"), encoding="utf-8")
    first = gpt.train(TEXT + "@#\n", **SMALL, work_dir=str(tmp_path / "a"))
    model = str(first.folder / "model.pt")
    more = gpt.start_run(dict(SMALL, input_file=corpus, work_dir=str(tmp_path / "o"), init_from=model))
    assert more.vocab.chars == first.vocab.chars
    again = gpt.start_run(dict(SMALL, input_file=corpus, work_dir=str(tmp_path / "o")))
    assert again.vocab.chars == "".join(sorted(set(TEXT)))


def test_a_text_whose_held_out_part_is_shorter_than_the_context():
    run = gpt.train("a\nbcdefghij" * 50, **{**SMALL, "block_size": 64}, eval_chars=10)
    assert math.isfinite(run.evaluate("val"))


def test_a_model_in_double_precision_writes():
    run = gpt.train(TEXT, **SMALL)
    single = run.generate("Bob", 20, temperature=0)
    run.model.double()
    assert run.generate("Bob", 20, temperature=0) == single


def test_batches_that_cannot_be_shared_are_refused_in_python_too():
    run = gpt.train(TEXT, **SMALL)
    with pytest.raises(gpt.UserError, match="5 does not divide evenly"):
        run.train(max_steps=4, batch_size=5, grad_accum=2)


def test_what_was_saved_from_a_loaded_run_goes_on(tmp_path):
    gpt.train(TEXT, **SMALL, work_dir=str(tmp_path / "a"))
    gpt.load(tmp_path / "a").save(tmp_path / "b")
    run = gpt.load(tmp_path / "b", input_file=str(tmp_path / "a/trained_on.txt"))
    assert run.train(max_steps=5).progress.step == 5
