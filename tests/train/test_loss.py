import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import types
from sgqlm.train import loss


def problem(rows=3, length=12, width=5, vocab=7):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(rows, length, width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(width, vocab)), jnp.float32)
    targets = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    targets[rng.random(targets.shape) < 0.4] = types.IGNORE
    return hidden, kernel, jnp.asarray(targets)


def test_losses_are_those_of_a_literal_loop():
    hidden, kernel, targets = problem()
    losses, hits = loss.token_losses(lambda h: h @ kernel, hidden, targets)
    logits = np.asarray(hidden @ kernel, np.float64)
    for b, t in np.ndindex(targets.shape):
        row, target = logits[b, t], int(targets[b, t])
        if target == types.IGNORE:
            assert (losses[b, t], hits[b, t]) == (0.0, 0.0)
        else:
            expected = -row[target] + np.log(np.exp(row).sum())
            np.testing.assert_allclose(losses[b, t], expected, rtol=1e-5)
            assert hits[b, t] == float(row.argmax() == target)


def total_and_gradients(hidden, kernel, targets):
    def total(kernel, hidden):
        return loss.token_losses(lambda h: h @ kernel, hidden, targets)[0].sum()

    return jax.value_and_grad(total, argnums=(0, 1))(kernel, hidden)


@pytest.mark.parametrize("limit", [3 * 7 * 6, 3 * 7, 1])
def test_pieces_give_the_same_losses_and_gradients(monkeypatch, limit):
    hidden, kernel, targets = problem()
    whole = total_and_gradients(hidden, kernel, targets)
    losses, hits = loss.token_losses(lambda h: h @ kernel, hidden, targets)
    monkeypatch.setattr(loss, "LOGITS_LIMIT", limit)
    pieces = total_and_gradients(hidden, kernel, targets)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # sums in another order
    for a, b in zip(
        loss.token_losses(lambda h: h @ kernel, hidden, targets), (losses, hits), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("labelled", "expected"), [(0, 0), (2, 1), (3, 2), (12, 6)])
def test_the_vocabulary_matmul_runs_on_labelled_positions_only(monkeypatch, labelled, expected):
    hidden, kernel, _ = problem()
    targets = np.full((3, 12), types.IGNORE, np.int32)
    targets[1, 12 - labelled :] = 3  # at the end of one row
    monkeypatch.setattr(loss, "LOGITS_LIMIT", 3 * 7 * 2)  # pieces of two positions
    calls = []

    def head(rows):
        jax.debug.callback(lambda _: calls.append(1), rows.sum())
        return rows @ kernel

    jax.block_until_ready(loss.token_losses(head, hidden, jnp.asarray(targets)))
    jax.effects_barrier()
    assert len(calls) == expected


def test_labels_are_shifted_by_one():
    labels = jnp.asarray([[-100, 5, 6]])
    np.testing.assert_array_equal(loss.shift(labels, types.IGNORE), [[5, 6, -100]])
