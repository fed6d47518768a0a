"""The lectures' exercises, checked: write the functions in a file of your own and see which are right.

    python tests/exercises.py                # what there is to write
    python tests/exercises.py mine.py        # what is right in yours, and how far off the rest is

Each exercise below is a function of the learner's function: it calls that, and yields (what, found, right) to compare.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import gpt
import makemore
import micrograd

randn = torch.Generator().manual_seed(1)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=randn).requires_grad_()


def characters(*shape, V=27):
    return torch.randint(V, shape, generator=randn)


def gradients(output, *inputs):
    """Some dout of the output's shape, and what autograd makes of it at the inputs."""
    dout = torch.randn(output.shape, dtype=torch.float64, generator=randn)
    return dout, torch.autograd.grad(output, inputs, dout)


# ----------------------------------------------------------------------------------------------------------------------
# Lectures 1 to 4


def softmax(yours):
    """Lecture 1. softmax(values): a list of Values to the list of their probabilities. exp() and / will do."""
    a, b = ([micrograd.Value(x) for x in (0.0, 3.0, -2.0, 1.0)] for _ in range(2))
    found, right = yours(a), micrograd.softmax(b)
    yield "probabilities", [p.data for p in found], [p.data for p in right]
    for probs in (found, right):
        (-probs[3].log()).backward()
    yield "gradients", [v.grad for v in a], [v.grad for v in b]


def one_hot_logits(yours):
    """Lecture 2. one_hot_logits(x, W): characters (B,) to their rows of W (V, V), by F.one_hot and @ alone."""
    x, W = characters(8), normal(27, 27)
    yield "logits", yours(x, W), W[x]


def contexts(yours):
    """Lecture 3. contexts(tokens, n): a line's tokens to inputs (T + 1, n) and targets (T + 1,), 0 before and after."""
    vocab = makemore.Vocab("abcdefghijklmnopqrstuvwxyz")
    data = makemore.Windows(["emma"], vocab, block_size=3)
    inputs, targets = yours(vocab.encode("emma").tolist(), 3)
    x, y = data.batch(torch.arange(len(data)))
    yield "inputs", inputs, x
    yield "targets", targets, y


def first_loss(yours):
    """Lecture 4. first_loss(V): what a network of V characters should begin with, in nats, if it knows nothing."""
    yield "nats", yours(27), makemore.cross_entropy(torch.zeros(1, 27, dtype=torch.float64), torch.tensor([5]))


def fold_batchnorm(yours):
    """Lecture 4. fold_batchnorm(W, gamma, beta, mean, var, eps): the (W, b) for which W x + b is BatchNorm of W x."""
    x, W, (gamma, beta, mean, std) = normal(8, 4), normal(5, 4), normal(4, 5).detach()
    var = std**2
    weight, bias = yours(W, gamma, beta, mean, var, 1e-5)
    yield "W x + b", F.linear(x, weight, bias), F.batch_norm(F.linear(x, W), mean, var, gamma, beta)


# ----------------------------------------------------------------------------------------------------------------------
# Lecture 5: backpropagation by hand. `dout` is the gradient of the loss with respect to what the layer gave


def cross_entropy_backward(yours):
    """Lecture 5. cross_entropy_backward(logits, y): the gradient (B, V) of the mean loss. Softmax minus ... over B."""
    logits, y = normal(8, 27), characters(8)
    yield "dlogits", yours(logits.detach(), y), torch.autograd.grad(F.cross_entropy(logits, y), logits)[0]


def tanh_backward(yours):
    """Lecture 5. tanh_backward(dout, out): the gradient at tanh's input, from its output alone."""
    x = normal(8, 5)
    dout, (dx,) = gradients(torch.tanh(x), x)
    yield "dx", yours(dout, torch.tanh(x).detach()), dx


def linear_backward(yours):
    """Lecture 5. linear_backward(dout, x, W): (dx, dW, db) of x @ W + b. Let the shapes tell what to transpose."""
    x, W, b = normal(8, 4), normal(4, 5), normal(5)
    dout, right = gradients(x @ W + b, x, W, b)
    yield from zip(("dx", "dW", "db"), yours(dout, x.detach(), W.detach()), right, strict=True)


def embedding_backward(yours):
    """Lecture 5. embedding_backward(dout, idx, V): dC (V, C) of C[idx]. A character that comes twice adds up."""
    idx, C = characters(8, 3, V=6), normal(6, 2)
    dout, (dC,) = gradients(C[idx], C)
    yield "dC", yours(dout, idx, 6), dC


def batchnorm_backward(yours):
    """Lecture 5. batchnorm_backward(dout, x, gamma, eps): (dx, dgamma, dbeta), in training, the variance over B."""
    x, gamma, beta = normal(8, 5), normal(5), normal(5)
    dout, right = gradients(F.batch_norm(x, None, None, gamma, beta, training=True), x, gamma, beta)
    yield from zip(("dx", "dgamma", "dbeta"), yours(dout, x.detach(), gamma.detach(), 1e-5), right, strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# Lectures 6 and 7


def causal_convolution(yours):
    """Lecture 6. causal_convolution(x, past, now, dilation): x (T, C) @ now + x, dilation steps earlier, @ past."""
    x, past, now = normal(9, 4), normal(4, 5), normal(4, 5)
    right = F.conv1d(F.pad(x.T, (2, 0)), torch.stack((past.T, now.T), -1), dilation=2).T
    yield "(T, C)", yours(x, past, now, 2), right


def average(yours):
    """Lecture 7. average(x): each position's mean over itself and its past, (B, T, C), by one product. tril helps."""
    x = normal(2, 5, 3)
    yield "(B, T, C)", yours(x), gpt.average_by_loops(x)


def attention(yours):
    """Lecture 7. attention(q, k, v): one head, (B, T, D) each, scaled, nobody looks ahead."""
    q, k, v = normal(2, 5, 3), normal(2, 5, 3), normal(2, 5, 3)
    yield "(B, T, D)", yours(q, k, v), gpt.attend(q[:, None], k[:, None], v[:, None])[0][:, 0]


EXERCISES = [
    softmax, one_hot_logits, contexts, first_loss, fold_batchnorm, cross_entropy_backward, tanh_backward,
    linear_backward, embedding_backward, batchnorm_backward, causal_convolution, average, attention,
]  # fmt: skip


def difference(found, right):
    """How far what was found is off, in words; "" if it is right."""
    found, right = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float) for x in (found, right))
    if found.shape != right.shape:
        return f"has the shape {found.shape} instead of {right.shape}"
    off = np.abs(found - right)
    if np.allclose(found, right, rtol=1e-5, atol=1e-6):
        return ""
    worst = np.unravel_index(np.nan_to_num(off, nan=np.inf).argmax(), off.shape)
    place = f" at {[int(i) for i in worst]}" * bool(worst)
    return f"is {found[worst]:.6g} instead of {right[worst]:.6g}{place}; {(off > 1e-6).mean():.0%} of it is off"


def check(exercise, yours):
    """A line about a learner's function: right, or wrong and how, or what is to be written."""
    if yours is None:
        return f"to do  {exercise.__doc__}"
    try:
        for what, found, right in exercise(yours):
            if words := difference(found, right):
                return f"wrong  {exercise.__name__}: {what} {words}"
    except Exception as e:  # whatever a function of somebody else's may raise
        return f"wrong  {exercise.__name__}: {type(e).__name__}: {e}"
    return f"right  {exercise.__name__}"


def main(argv):
    mine = runpy.run_path(argv[0]) if argv else {}
    said = [check(exercise, mine.get(exercise.__name__)) for exercise in EXERCISES]
    print(*said, sep="\n")
    return int(any(line.startswith("wrong") for line in said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
