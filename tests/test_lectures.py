"""What the lectures teach, as tests: smoothed counts, first weights, gradients by hand, BatchNorm folded away."""

import contextlib
import csv
import io
import math
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import fitting

import makemore
from makemore import MODELS, Run

pytestmark = pytest.mark.usefixtures("haste")
ROOT = Path(makemore.__file__).parent
CHINESE = ["王芳", "李伟", "王伟", "李娜", "张敏", "刘洋", "陈静", "赵磊", "黄勇", "吴秀英", "朱桂英", "何辉"] * 2
PLACES = ["São Paulo", "Zürich", "Kraków", "Reykjavík", "Île de Ré", "Ağrı", "Đà Nẵng", "Ōsaka", "Saint-Étienne"] * 3
WORDS = ["the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "as", "his"] * 2


def build(kind, lines, **given):
    """A new model for these lines, all of them as its data, and the run around it."""
    run = makemore.start_run(dict(type=kind, device="cpu", **given), lines=lines)
    return run.model, run.examples(lines), run


def mean_loss(model, data):
    return makemore.line_losses(model, data).sum().item() / data.count


def flags(**given):
    return [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]


def batches(data, size, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield data.batch(torch.randint(len(data), (size,), generator=generator))


@pytest.fixture(scope="module")
def names():
    return random.Random(1).sample((ROOT / "names.txt").read_text().split(), 1500)


# ----------------------------------------------------------------------------------------------------------------------
# Counting


def kneser_ney(lines, order):
    """Modified Kneser-Ney written out as in Chen & Goodman, with dictionaries: p(context, character)."""
    alphabet = [*sorted(set("".join(lines))), "."]
    counts = [Counter() for _ in range(order)]
    for line in lines:
        text = "." * (order - 1) + line + "."
        for i in range(order - 1, len(text)):
            counts[order - 1][text[i - order + 1 : i + 1]] += 1
    for k in reversed(range(order - 1)):  # below the top: in how many contexts, not how often
        for longer in counts[k + 1]:
            counts[k][longer[1:]] += 1
    discounts, totals, kinds = [], [], []
    for table in counts:
        n1, n2, n3, n4 = (sum(c == i for c in table.values()) for i in (1, 2, 3, 4))
        y = n1 / max(1, n1 + 2 * n2)  # at the bottom, every character is frequent: a tenth is taken all the same
        freed = [i - (i + 1) * y * more / max(1, few) for i, few, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
        discounts.append([0, *(max(0.1, d) for d in freed)])
        totals.append(Counter())
        kinds.append(defaultdict(Counter))
        for text, c in table.items():
            totals[-1][text[:-1]] += c
            kinds[-1][text[:-1]][min(c, 3)] += 1

    def p(context, char):
        answer = 1 / len(alphabet)
        for k in range(order):
            at = context[len(context) - k :]
            if totals[k][at]:
                c = counts[k][at + char]
                freed = sum(discounts[k][i] * n for i, n in kinds[k][at].items())
                answer = (c - discounts[k][min(c, 3)] + freed * answer) / totals[k][at]
        return answer

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_what_chen_and_goodman_wrote(names, order):
    model, train, run = build("ngram", names, n=order, strength=1.0)
    model.fit(train, train)
    p, alphabet = kneser_ney(names, order), "." + run.vocab.chars
    for context in (".....", "...an", "....m", "arian", "zqzqz"):
        context = context[len(context) - order + 1 :] if order > 1 else ""
        idx = torch.tensor([[alphabet.index(c) for c in context] or [0]])
        wanted = torch.tensor([p(context, c) for c in alphabet])
        torch.testing.assert_close(model(idx)[0].exp(), wanted, rtol=1e-4, atol=1e-7)


def test_additive_smoothing_adds_to_every_count(names):
    model, train, run = build("ngram", names, n=2, smoothing="additive", strength=0.5)
    model.fit(train, train)
    V = len(run.vocab)
    counts = train.bigrams(V) + 0.5
    torch.testing.assert_close(model(torch.arange(V)[:, None]).exp(), counts / counts.sum(1, keepdim=True))


@pytest.mark.parametrize("smoothing", ["kneser-ney", "additive"])
@pytest.mark.parametrize("n", range(1, 9))
def test_counts_make_a_distribution_whatever_was_seen(n, smoothing):
    model, train, run = build("ngram", WORDS, n=n, smoothing=smoothing)
    model.fit(train, train)
    idx = torch.randint(len(run.vocab), (50, run.config.block_size))
    torch.testing.assert_close(model(idx).exp().sum(1), torch.ones(50))
    assert model(idx).isfinite().all()


def test_the_strength_is_the_best_on_dev(names):
    train, dev = names[:1200], names[1200:]
    losses = {}
    for strength in (0.0, 0.01, 0.1, 1.0, 10.0):  # 0: chosen by the model
        model, data, run = build("ngram", train, n=3, smoothing="additive", strength=strength)
        held_out = run.examples(dev)
        model.fit(data, held_out)
        losses[strength] = mean_loss(model, held_out)
    assert losses[0.0] <= min(losses.values()) + 1e-9


@pytest.mark.parametrize("block_size", [1, 2])
def test_the_table_learns_the_counts(names, block_size):
    """A network of logits descends to the very frequencies that counting gives."""
    model, data, *_ = build("bigram", names[:100], block_size=block_size, weight_decay=0)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, history_size=30, line_search_fn="strong_wolfe")
    x, y = data.batch(torch.arange(len(data)))

    def closure():
        optimizer.zero_grad()
        loss = makemore.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    counted, train, *_ = build("ngram", names[:100], n=block_size + 1, smoothing="additive", strength=1e-9)
    counted.fit(train, train)
    assert mean_loss(model, data) == pytest.approx(mean_loss(counted, train), abs=2e-3)


# ----------------------------------------------------------------------------------------------------------------------
# First weights


@pytest.mark.parametrize("init, low, high", [("kaiming", 0.55, 0.80), ("torch", 0.0, 0.4), ("normal", 0.85, 1.0)])
def test_first_weights_decide_what_reaches_the_last_tanh(names, init, low, high):
    model, data, *_ = build("mlp", names, n_layer=5, n_embd2=100, init=init)
    _, rows = makemore.inspect_layers(model, *data.batch(torch.arange(256)))
    last = [row for row in rows if row.kind == "Tanh"][-1]
    assert low <= last.output.std() <= high
    assert (last.saturated > 0.5) == (init == "normal")


def test_all_zeros_never_learn_to_differ(names):
    """Only the last bias gets a gradient: the network learns how frequent the characters are, and no more."""
    model, data, *_ = build("mlp", names, init="zeros")
    x, y = data.batch(torch.arange(500))
    makemore.cross_entropy(model(x), y).backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert moved == ["layers.1.bias"]


def test_direct_connections_leave_a_straight_way(names):
    """With the hidden layer silenced, the embeddings still reach the output."""
    model, data, *_ = build("mlp", names, direct=True)
    x, _ = data.batch(torch.arange(64))
    with torch.no_grad():
        model.layers[-1].weight.zero_()
        wanted = model.token(x).flatten(1) @ model.direct.weight.T + model.layers[-1].bias
    torch.testing.assert_close(model(x), wanted)


def test_batchnorm_keeps_any_depth_alive(names):
    model, data, *_ = build("mlp", names, n_layer=6, n_embd2=100, batchnorm=True, init="normal")
    _, rows = makemore.inspect_layers(model, *data.batch(torch.arange(512)))
    stds = [row.output.std().item() for row in rows if row.kind == "Tanh"]
    assert len(stds) == 6 and max(stds) - min(stds) < 0.05


# ----------------------------------------------------------------------------------------------------------------------
# Two ways to the same numbers


@pytest.mark.parametrize("examples", [1, 10, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_looks_its_products_up(examples, bias):
    """More examples than characters or fewer: the outputs and gradients are those of a plain Linear."""
    layer, table = makemore.ContextLinear(4 * 6, 5, bias), makemore.Embedding(12, 6)
    idx, g = torch.randint(12, (examples, 4)), torch.randn(examples, 5)
    results = []
    for f in (lambda: layer(idx, table), lambda: F.linear(table(idx).flatten(1), layer.weight, layer.bias)):
        y = f()
        results.append([y.detach(), *torch.autograd.grad(y, [*layer.parameters(), *table.parameters()], g)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind, entry in MODELS.items() if not entry.model.windowed])
def test_a_line_is_read_alike_alone_and_beside_longer_ones(names, kind):
    model, data, *_ = build(kind, names)
    model.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        x, _ = data.batch(torch.arange(40))
        together = model(x)
        for i in range(0, 40, 5):
            alone = model(data.batch(torch.tensor([i]))[0])[0]
            torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_dilated_convolutions_reach_twice_as_far_with_every_layer(names):
    for layers in (1, 2, 3):
        model, *_ = build("wavenet-dilated", names, n_layer=layers, n_embd=8, n_embd2=8)
        embedded = model.token(torch.randint(1, 20, (1, 16))).detach().requires_grad_()
        model.token.forward = lambda idx, embedded=embedded: embedded
        (model(torch.ones(1, 16, dtype=torch.long))[0, -1] ** 2).sum().backward()
        reached = (embedded.grad.abs().sum(-1)[0] > 0).nonzero()[:, 0]
        assert reached.tolist() == list(range(16 - 2**layers, 16))


# ----------------------------------------------------------------------------------------------------------------------
# Backpropagation by hand


def test_the_26_gradients(names):
    model, data, *_ = build("mlp", names, batchnorm=True)
    rows = makemore.check_backprop(model, *data.batch(torch.arange(32)))
    assert len(rows) == len({name for name, *_ in rows}) == 26
    for name, exact, approximate, difference in rows:
        assert approximate and (exact or difference < 1e-8), name


def test_a_thousand_steps_by_hand_and_by_autograd_end_at_the_same_weights(names):
    ends = []
    for by_hand in (True, False):
        model, data, *_ = build("mlp", names, batchnorm=True, n_embd=6, n_embd2=24, learning_rate=1e-3)
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(data, 32, 1000):
            if by_hand:
                makemore.manual_gradients(model, x, y)
            else:
                optimizer.zero_grad()
                makemore.cross_entropy(model(x), y).backward()
            optimizer.step()
        ends.append([t.detach() for t in model.state_dict().values()])
        assert mean_loss(model, data) < math.log(27) - 0.5
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "wavenet"])
def test_batchnorm_folds_into_the_weights(names, kind):
    model, data, run = build(kind, names, batchnorm=True, n_embd=8, n_embd2=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for x, y in batches(data, 64, 60):
        optimizer.zero_grad()
        makemore.cross_entropy(model(x), y).backward()
        optimizer.step()
    other = makemore.fold_batchnorm(run)
    folded = other.model
    assert isinstance(other, Run) and run.config.batchnorm and not other.config.batchnorm
    assert not any(isinstance(layer, makemore.BatchNorm1d) for layer in folded.modules())
    model.eval(), folded.eval()
    for size in (1, 500):  # a batch of one works, too
        x, _ = data.batch(torch.arange(size))
        torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-5)


def test_folding_on_the_command_line(cli, tmp_path, names):
    (tmp_path / "names.txt").write_text("\n".join(names))
    folder = tmp_path / "out"
    given = ["--n-embd", 8, "--n-embd2", 16, "--max-steps", 20, "--num-samples", 3]
    assert cli("-i", tmp_path / "names.txt", "-o", folder, "--type", "mlp", "--batchnorm", *given)[0] == 0
    status, out, _ = cli("-o", folder, "--fold-batchnorm")
    with_it, without = map(float, re.search(r"dev (\S+) with BatchNorm, (\S+) with it folded", out).groups())
    assert status == 0 and with_it == pytest.approx(without, abs=1e-5)
    samples = [cli("-o", where, "--sample-only", "--num-samples", 8)[1] for where in (folder, folder / "folded")]
    assert samples[0] == samples[1]
    assert cli("-o", folder / "folded", "--fold-batchnorm")[0] == 2  # nothing is left to fold


# ----------------------------------------------------------------------------------------------------------------------
# Voting


@pytest.fixture(scope="module")
def voters(names, tmp_path_factory):
    """Folders of a window model, a sequence model and a model of other lines."""
    where = tmp_path_factory.mktemp("voters")
    (where / "names.txt").write_text("\n".join(names))
    (where / "words.txt").write_text("\n".join(WORDS))
    for kind, file, steps in (("ngram", "names", 0), ("gru", "names", 400), ("mlp", "words", 1)):
        given = flags(**fitting(kind, n_embd=8, n_embd2=16, max_steps=steps, num_samples=0))
        with contextlib.redirect_stdout(io.StringIO()):
            argv = ["-i", str(where / f"{file}.txt"), "-o", str(where / kind), "--type", kind, *given]
            assert makemore.main(argv) == 0
    return where


def test_a_mixture_beats_its_members_on_dev_and_is_a_model_like_any_other(cli, voters, tmp_path):
    status, out, err = cli("--mix", f"{voters / 'ngram'},{voters / 'gru'}", "-o", tmp_path / "mix")
    rows = re.findall(r"^ ([01]\.\d{3})  (\d\.\d{4})  ", out, re.M)
    final = re.search(r"final: train (\S+) dev (\S+) test (\S+)", out)
    assert (status, err) == (0, "") and sum(float(weight) for weight, _ in rows) == pytest.approx(1, abs=2e-3)
    names = [str(voters / kind) for kind in ("ngram", "gru")]
    table = "weight  dev\n" + "".join(f" {w}  {d}  {name}\n" for (w, d), name in zip(rows, names, strict=True))
    assert out.startswith(table + "final: ")
    assert float(final[2]) < min(float(loss) for _, loss in rows)
    (tmp_path / "test.txt").write_text("\n".join(makemore.load_corpus(makemore.Config(str(voters / "names.txt"))).test))
    assert f"eval: {final[3]} nats/char" in cli("-o", tmp_path / "mix", "--eval", tmp_path / "test.txt")[1]
    assert cli("-o", tmp_path / "mix", "--sample-only", "--prefix", "ma")[1].count("\n  ma") == 20
    nested = cli("--mix", f"{tmp_path / 'mix'},{voters / 'gru'}", "-o", tmp_path / "nested")
    assert nested[0] == 0 and float(re.search(r"dev (\d\S+) test", nested[1])[1]) <= float(final[2]) + 1e-4


def test_a_mixture_is_the_weighted_mean_of_log_probabilities(names):
    counts, train, counting = build("ngram", names, n=3)
    counts.fit(train, train)
    network, lines, learning = build("gru", names)
    x, y = lines.batch(torch.arange(30))
    mixture = makemore.Mixture([counting, learning], torch.tensor([0.25, 0.75])).eval()
    flat, real = counts(train.batch(torch.arange(int((y >= 0).sum())))[0]).exp(), network(x).softmax(-1)[y >= 0]
    product = flat**0.25 * real**0.75
    wanted = product / product.sum(1, keepdim=True)
    torch.testing.assert_close(mixture(x)[y >= 0].softmax(-1), wanted, rtol=1e-4, atol=1e-6)


def test_no_other_weights_are_better_on_dev(voters):
    runs = [makemore.load(voters / kind) for kind in ("ngram", "gru")]
    mixture, dev = makemore.Mixture(runs, torch.full((2,), 0.5)), runs[1].examples("dev")
    members = mixture.choose_weights(dev).tolist()
    assert members == pytest.approx([run.evaluate("dev") for run in runs], abs=1e-5)
    chosen = mixture.weights[0].item()
    losses = {}
    for share in (chosen, *torch.linspace(0, 1, 51).tolist()):
        mixture.weights.copy_(torch.tensor([share, 1 - share]))
        losses[share] = makemore.line_losses(mixture, dev).sum().item() / dev.count
    assert 0 < chosen < 1 and losses[chosen] <= min(losses.values()) + 1e-6


@pytest.mark.parametrize(
    "argv, says",
    [
        ("ngram,mlp", "other lines"),
        ("ngram,nowhere", "train first"),
        ("", "--mix is empty: "),
        ("ngram,gru --prefix 7", "'7'"),
    ],
)
def test_what_cannot_be_mixed(cli, voters, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(voters)
    status, out, err = cli("--mix", *argv.split(" "), "-o", tmp_path / "mix")
    assert status == 2 and out == "" and says in err and err.count("\n") == 1 and not (tmp_path / "mix").exists()


def test_models_can_be_mixed_when_their_lines_have_moved(cli, voters, tmp_path):
    for kind in ("ngram", "gru"):
        checkpoint = torch.load(voters / kind / "model.pt", weights_only=True)
        checkpoint["config"]["input_file"] = checkpoint["file"] = str(tmp_path / "gone.txt")
        (tmp_path / kind).mkdir()
        torch.save(checkpoint, tmp_path / kind / "model.pt")
    argv = ["--mix", f"{tmp_path / 'ngram'},{tmp_path / 'gru'}", "-o", tmp_path / "mix"]
    status, out, err = cli(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1) and "gone.txt" in err and not (tmp_path / "mix").exists()
    status, out, err = cli(*argv, "-i", voters / "names.txt")
    assert (status, err) == (0, "") and "final: " in out


def test_a_mixture_never_takes_the_place_of_a_member(cli, voters):
    before = (voters / "gru/model.pt").read_bytes()
    status, _, err = cli("--mix", f"{voters / 'ngram'},{voters / 'gru'}", "-o", voters / "gru")
    assert status == 2 and "another" in err and (voters / "gru/model.pt").read_bytes() == before


# ----------------------------------------------------------------------------------------------------------------------
# Looking inside


def test_update_meter_measures_the_step(names):
    model, *_ = build("mlp", names)
    meter = makemore.UpdateMeter(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * p.std() * torch.randn_like(p))
    meter()
    assert len(meter.rows) == 1 and all(value == pytest.approx(-2, abs=0.15) for value in meter.rows[0])


def test_dead_neurons_are_counted():
    before = torch.full((10, 4), 0.5)
    before[:, 0], before[:5, 1] = 9.0, -9.0  # the first is flat for all, the second for half
    model = torch.nn.Sequential(makemore.Linear(4, 4), torch.nn.Tanh())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4)), model[0].bias.zero_()
    loss, (linear, tanh) = makemore.inspect_layers(model, before, torch.zeros(10, dtype=torch.long))
    assert (tanh.kind, tanh.dead, tanh.saturated, tanh.weight) == ("Tanh", 0.25, 0.375, None) and loss > 0
    assert linear.weight_grad.shape == (4, 4) and torch.equal(tanh.output, before.tanh())


def test_a_layer_of_torchs_own_that_has_several_outputs_is_passed_over():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.gru, self.head = makemore.Embedding(5, 4), torch.nn.GRU(4, 4), makemore.Linear(4, 5)

        def forward(self, idx):
            return self.head(self.gru(self.token(idx))[0])

    _, rows = makemore.inspect_layers(Own(), torch.arange(4)[None], torch.arange(4)[None])
    assert [row.name for row in rows] == ["token", "head"]


@pytest.mark.parametrize("kind", MODELS)
def test_diagnose_draws_for_every_network(pictures, cli, tmp_path, kind):
    if kind == "ngram":
        pytest.skip("counts have no layers")
    (tmp_path / "words.txt").write_text("\n".join(["tea", "eat", "ten", "net", "neat", "ant", "tan", "nan"] * 3))
    small = flags(**fitting(kind, n_embd=8, n_embd2=8, n_layer=2, max_steps=5))
    status, out, err = cli("-i", tmp_path / "words.txt", "-o", tmp_path, "--type", kind, "--diagnose", *small)
    assert (status, err) == (0, "") and out.count("loss ") >= 2
    drawn = re.search(r"figures: (.*)", out)[1].split(", ")
    assert {"weights.png", "bigrams.png"} <= {Path(path).name for path in drawn}
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_find_lr_finds_a_rate_that_learns_and_leaves_the_model_alone(pictures, cli, names, tmp_path):
    model, data, run = build("mlp", names)
    before = [p.clone() for p in model.parameters()]
    rate, rates, losses, smooth = makemore.find_learning_rate(run)
    assert 1e-4 < rate < 1 and len(rates) == len(losses) == len(smooth) > 100
    assert rates == sorted(rates) and rate == pytest.approx(rates[smooth.index(min(smooth))] / 3)
    assert all(map(torch.equal, before, model.parameters()))
    (tmp_path / "names.txt").write_text("\n".join(names))
    argv = ["-i", tmp_path / "names.txt", "-o", tmp_path, "--type", "mlp", "--device", "cpu"]
    path = tmp_path / "find_lr.png"
    assert cli(*argv, "--find-lr") == (0, f"try --learning-rate {rate:.1e}; see {path}\n", "")
    assert path.stat().st_size > 10_000
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for x, y in batches(data, 256, 100):
        optimizer.zero_grad()
        loss = makemore.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < losses[0] - 0.5


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant"])
def test_schedules_climb_and_fall(schedule):
    config = makemore.configure(dict(type="mlp", schedule=schedule, warmup_steps=10, learning_rate=1.0))
    rates = [makemore.learning_rate(step, config, 110) for step in range(120)]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx({"constant": 1.0, "step": 0.1}.get(schedule, 0.0))


# ----------------------------------------------------------------------------------------------------------------------
# Other alphabets


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lines", [CHINESE, PLACES, WORDS], ids=["Chinese", "places", "words"])
def test_any_alphabet(tmp_path, kind, lines):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    small = flags(**fitting(kind, n_embd=8, n_embd2=8, n_layer=2, max_steps=9, num_samples=10))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert makemore.main(["-i", str(path), "-o", str(tmp_path / "out"), "--type", kind, *small]) == 0
        assert makemore.main(["-o", str(tmp_path / "out"), "--eval", str(path)]) == 0
    samples = re.findall(r"^  (.+)$", out.getvalue(), re.M)
    alphabet = set("".join(lines)) | set("0123456789. ")
    assert samples and set("".join(samples)) <= alphabet
    with open(tmp_path / "out/scores.csv", encoding="utf-8") as f:
        scores = list(csv.DictReader(f))
    assert [row["line"] for row in scores] == lines and all(math.isfinite(float(row["nats"])) for row in scores)
