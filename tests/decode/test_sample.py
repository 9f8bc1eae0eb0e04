import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm.decode import sample

LOGITS = jnp.log(jnp.array([0.15, 0.5, 0.05, 0.3]))


def draw(sampling, count=4000):
    keys = sample.row_keys(0, jnp.arange(count))
    tokens = sample.choose(
        jnp.tile(LOGITS, (count, 1)), keys, step=0, sampling=sampling, mode=sampling.mode
    )
    return np.bincount(np.asarray(tokens), minlength=4) / count


def test_greedy_takes_the_first_of_equal_logits():
    logits = jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    keys = sample.row_keys(0, jnp.arange(2))
    tokens = sample.choose(logits, keys, step=0, sampling=sample.Sampling(), mode="greedy")
    assert tokens.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (sample.Sampling(1.0), [0.15, 0.5, 0.05, 0.3]),
        (sample.Sampling(0.5), [0.0225, 0.25, 0.0025, 0.09]),
        (sample.Sampling(1.0, top_k=2), [0, 0.5, 0, 0.3]),
        (sample.Sampling(1.0, top_p=0.6), [0, 0.5, 0, 0.3]),
        (sample.Sampling(1.0, top_p=0.81), [0.15, 0.5, 0, 0.3]),
        (sample.Sampling(1.0, top_k=3, top_p=0.5), [0, 0.5, 0, 0]),
    ],
)
def test_draws_follow_the_filtered_distribution(sampling, expected):
    expected = np.array(expected) / np.sum(expected)
    # 4000 draws: one standard error is at most .008
    np.testing.assert_allclose(draw(sampling), expected, atol=0.03)


def test_top_p_keeps_one_token_whatever_its_probability():
    kept = sample.truncate(jnp.array([[0.0, 0.0, 0.0]]), 0, 0.0)
    assert np.isfinite(kept).tolist() == [[True, False, False]]


def test_a_row_draws_the_same_in_any_batch_and_differently_at_each_step():
    sampling = sample.Sampling(1.0)
    logits = jax.random.normal(jax.random.key(3), (6, 50))

    def tokens(rows, step):
        keys = sample.row_keys(7, jnp.array(rows))
        picked = logits[jnp.array(rows)]
        drawn = sample.choose(picked, keys, step=step, sampling=sampling, mode=sampling.mode)
        return drawn.tolist()

    whole = tokens(range(6), 0)
    assert [tokens([row], 0)[0] for row in range(6)] == whole
    assert tokens([4, 1], 0) == [whole[4], whole[1]]
    assert tokens(range(6), 1) != whole


def test_mode_names_what_a_program_must_do():
    assert sample.Sampling().mode == "greedy"
    assert sample.Sampling(0.0, top_k=3).mode == "greedy"
    assert sample.Sampling(0.7).mode == "plain"
    assert sample.Sampling(0.7, top_p=0.9).mode == "truncated"
