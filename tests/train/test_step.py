import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm.train import optim, state, step
from tests.train import toys


def make(row, steps=10, **options):
    optimizer = optim.make(row, steps)
    trainable, frozen = state.split(toys.params(), row.learning_rates)
    first = step.init_state(trainable, optimizer)
    return step.make_train_step(toys.loss, optimizer, **options), first, frozen


KEY = jax.random.key(0)


def test_a_step_lowers_the_loss_and_leaves_frozen_parameters():
    train_step, current, frozen = make(toys.stage(learning_rates={"projector": 0.05}))
    before = jax.tree.map(np.asarray, frozen)
    losses = []
    for _ in range(5):
        current, report = train_step(current, frozen, toys.batch(0), None, KEY)
        losses.append(float(report["loss"]))
    assert losses[-1] < losses[0]
    assert toys.same(frozen, before)
    assert float(report["rows"]) == 8.0
    np.testing.assert_allclose(report["error"], report["loss"], rtol=1e-6)


def test_accumulation_equals_one_large_batch():
    # no noise: the micro-batches draw other keys than the whole batch
    def loss(params, batch, key, features=None):
        return toys.loss(params, batch, None)

    row = toys.stage(clip_norm=0.5)
    found = []
    for count in (1, 2, 4):
        optimizer = optim.make(row, 10)
        trainable, frozen = state.split(toys.params(), row.learning_rates)
        current = step.init_state(trainable, optimizer)
        train_step = step.make_train_step(loss, optimizer, accumulation=count)
        current, report = train_step(current, frozen, toys.batch(3), None, KEY)
        found.append((jax.tree.map(np.asarray, current.trainable), report))
    for tree, report in found[1:]:
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(found[0][0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # sums in another order
        for name in ("loss", "grad_norm", "rows"):
            np.testing.assert_allclose(report[name], found[0][1][name], rtol=1e-5)


def test_micro_batches_of_unequal_weight_are_not_averaged_twice():
    def loss(params, batch, key, features=None):
        keep = batch.row < 3  # three of eight rows, unevenly over the micro-batches
        y = (batch.images @ params["projector"]["fc1"]["kernel"]).sum(-1)
        return (y * keep).sum(), keep.sum().astype(jnp.float32), {}

    row = toys.stage()
    optimizer = optim.make(row, 10)
    trainable, frozen = state.split(toys.params(), row.learning_rates)
    expected = loss(toys.params(), toys.batch(0), None)
    current = step.init_state(trainable, optimizer)
    train_step = step.make_train_step(loss, optimizer, accumulation=4)
    _, report = train_step(current, frozen, toys.batch(0), None, KEY)
    np.testing.assert_allclose(report["loss"], expected[0] / expected[1], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    train_step, current, frozen = make(toys.stage())
    current, _ = train_step(current, frozen, toys.batch(0), None, KEY)
    before = jax.tree.map(np.asarray, (current.trainable, current.opt))
    for expected in (1, 2):
        current, report = train_step(current, frozen, toys.batch(1, bad=True), None, KEY)
        assert int(report["bad_run"]) == expected
    assert toys.same(before, (current.trainable, current.opt))
    current, report = train_step(current, frozen, toys.batch(2), None, KEY)
    assert (int(report["bad_run"]), int(report["skipped"]), int(current.step)) == (0, 2, 4)
    assert not toys.same(before[0], current.trainable)


def test_one_compilation_per_shape():
    train_step, current, frozen = make(toys.stage())
    for index, rows in enumerate((8, 8, 16, 8, 16)):
        current, _ = train_step(current, frozen, toys.batch(index, rows), None, KEY)
    assert train_step._cache_size() == 2


def test_decay_and_rates():
    row = toys.stage(learning_rates={"projector": 0.1, "graph": 0.02}, weight_decay=0.5)
    optimizer = optim.make(row, 1)
    trainable, _ = state.split(toys.params(), row.learning_rates)
    opt = optimizer.transform.init(trainable)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    new, _ = optimizer.update(zeros, opt, trainable, step=0)
    old = trainable["projector"]["fc1"]
    np.testing.assert_allclose(
        new["projector"]["fc1"]["kernel"], old["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6
    )
    np.testing.assert_array_equal(new["projector"]["fc1"]["bias"], old["bias"])
    np.testing.assert_allclose(
        new["graph"]["out"]["kernel"], trainable["graph"]["out"]["kernel"] * 0.99, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("step_index", "expected"),
    [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)],
)
def test_schedule(step_index, expected):
    factor = optim.cosine(toys.stage(warmup=0.1, final_lr=0.1), 100)
    np.testing.assert_allclose(factor(step_index), expected, atol=1e-6)


def test_clipping_counts_the_trainable_part_only():
    def update(rates):
        row = toys.stage(learning_rates=rates, clip_norm=1e-3)
        optimizer = optim.make(row, 10)
        trainable, frozen = state.split(toys.params(), rates)
        current = step.init_state(trainable, optimizer)
        train_step = step.make_train_step(toys.loss, optimizer)
        return train_step(current, frozen, toys.batch(0), None, KEY)[1]["grad_norm"]

    whole = update({"projector": 1e-2, "graph": 1e-2})
    assert float(update({"projector": 1e-2})) < float(whole)


def test_the_table_tells_what_lies_on_one_device():
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"), axis_types=axes)
    places = {"kernel": ("fsdp",), "bias": ()}
    leaves = {
        name: jax.ShapeDtypeStruct(
            (8, 4)[: 2 - len(name) % 2],
            jnp.bfloat16,
            sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)),
        )
        for name, axes in places.items()
    }
    rows = state.part_table({"projector": {"fc1": leaves}}, {"projector": 1.0})
    sizes = {name: 2 * leaf.size for name, leaf in leaves.items()}
    assert rows[0].bytes == sum(sizes.values())
    assert rows[0].device_bytes == sizes["kernel"] // 4 + sizes["bias"]
    assert "MiB on each device" in state.format_table(rows)


def test_masters_are_float32():
    tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toys.params())
    trainable, frozen = state.split(tree, {"projector"})
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert jax.tree.structure(state.join(trainable, frozen)) == jax.tree.structure(tree)
