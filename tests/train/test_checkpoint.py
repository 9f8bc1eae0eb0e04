import dataclasses
import gc
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.models import vlm
from sgqlm.train import checkpoint
from tests.models import helpers
from tests.train import toys


def meta(step=1, *, stage="toy", index=0, **fields):
    return checkpoint.Meta({}, stage, index, step, False, **fields)


def write(folder, step=1, seed=0, **options):
    return checkpoint.save(folder, meta(step), toys.params(seed), keep=9, **options)


def flip_byte(folder):
    file = max((folder / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    return file


def test_round_trip_keeps_bits_and_dtypes(tmp_path):
    params = toys.params()
    params["graph"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["graph"])
    opt = {"m": params["projector"], "count": jnp.asarray(3, jnp.int32)}
    folder = checkpoint.save(tmp_path, meta(), params, opt=opt, tokenizer=b"pieces")
    loaded = checkpoint.load_params(folder)
    assert toys.same(params, loaded)
    assert loaded["graph"]["out"]["kernel"].dtype == jnp.bfloat16
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), opt)
    assert toys.same(opt, checkpoint.load_opt(folder, target))
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    assert checkpoint.verify(folder) == []


def test_the_newest_is_found_and_old_ones_go(tmp_path):
    for step in (2, 10, 9):
        checkpoint.save(tmp_path, meta(step), toys.params(), keep=2)
    checkpoint.save(tmp_path, meta(1, stage="next", index=1), toys.params(), keep=2)
    names = [path.name for path in checkpoint.find(tmp_path)]
    assert names == ["00-toy-0000010", "01-next-0000001"]
    assert checkpoint.latest(tmp_path)[1].stage == "next"


def test_a_flipped_byte_falls_back_loudly(tmp_path, capsys):
    write(tmp_path, 1)
    damaged = flip_byte(write(tmp_path, 2))
    folder, found = checkpoint.latest(tmp_path)
    assert found.step == 1
    message = capsys.readouterr().err
    assert "DAMAGED CHECKPOINT" in message
    assert damaged.name in message
    assert toys.same(toys.params(), checkpoint.load_params(folder))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "extra"])
def test_no_intact_checkpoint_is_an_error(tmp_path, damage):
    folder = write(tmp_path)
    if damage == "flip":
        flip_byte(folder)
    elif damage == "truncate":
        (folder / "meta.json").write_text("{")
    elif damage == "delete":
        next((folder / "params").glob("_*METADATA")).unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("")
    else:
        (folder / "params" / "more").write_text("")
    with pytest.raises(errors.SgqlmError, match="no intact checkpoint") as caught:
        checkpoint.latest(tmp_path)
    assert caught.value.code == errors.CHECKPOINT


def test_what_is_half_written_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    aside = tmp_path / ".writing-00-toy-0000002"
    write(tmp_path, 2).rename(aside)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["00-toy-0000001"]
    assert checkpoint.remove_unfinished(tmp_path) == ["00-toy-0000002"]
    assert not aside.exists()


# orbax leaves the other writes of a checkpoint to a loop that is closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_save_leaves_the_older_one(tmp_path):
    write(tmp_path, 1)
    noise = np.random.default_rng(0).normal(size=(300, 300))  # nothing a disk could compress
    large = {"graph": {"out": {"kernel": jnp.asarray(noise, jnp.float32)}}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(errors.SgqlmError, match="00-toy-0000002 could not be") as caught:
            checkpoint.save(tmp_path, meta(2), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        gc.collect()  # they are heard of here, not in a later test
    assert caught.value.code == errors.RESOURCES
    assert "File too large" in caught.value.why
    assert "it has 0.4 MB and" in caught.value.why
    assert [p.name for p in tmp_path.iterdir()] == ["00-toy-0000001"]


def test_another_dtype_is_refused_not_cast(tmp_path):
    params = toys.params()
    opt = {"m": params["projector"], "count": jnp.asarray(3, jnp.int32)}
    folder = checkpoint.save(tmp_path, meta(), params, opt=opt)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(kind):
        fields = {"dtype": kind, "sharding": one}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, **fields), opt["m"])

    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=one)
    with pytest.raises(errors.SgqlmError, match="another dtype") as caught:
        checkpoint.load_opt(folder, {"m": target(jnp.bfloat16), "count": count})
    assert caught.value.code == errors.CHECKPOINT
    assert caught.value.where.endswith("opt: m/fc1/bias")
    assert caught.value.why == "float32 is stored, bfloat16 is wanted"
    tree = json.loads((folder / "meta.json").read_text())
    tree["leaves"]["graph/out/kernel"][0] = "float16"
    (folder / "meta.json").write_text(json.dumps(tree))
    with pytest.raises(errors.SgqlmError, match="another dtype") as caught:
        checkpoint.load_params(folder)
    assert caught.value.where.endswith("params: graph/out/kernel")


def test_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    with pytest.raises(errors.SgqlmError, match="no checkpoint was found"):
        checkpoint.load_model(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    folder = write(tmp_path)
    tree = json.loads((folder / "meta.json").read_text()) | {"format": 99}
    (folder / "meta.json").write_text(json.dumps(tree))
    with pytest.raises(errors.SgqlmError, match="format 99"):
        checkpoint.read_meta(folder)


@pytest.fixture(scope="module")
def based(tmp_path_factory, tokenizer_model):
    """A whole checkpoint of a small model, and one that holds what differs from it."""
    root = tmp_path_factory.mktemp("based")
    cfg = helpers.small_config()
    rng = np.random.default_rng(0)
    shapes = vlm.param_shapes(cfg)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    tree = config.to_dict(config.Config(model=cfg))
    first = dataclasses.replace(meta(), config=tree)
    base = checkpoint.save(root / "base", first, params, tokenizer=tokenizer_model)
    tuned = {**params, "projector": jax.tree.map(lambda x: x + 1, params["projector"])}
    origin = {"path": str(base), "digest": checkpoint.digest(base)}
    second = dataclasses.replace(first, base=origin)
    flat = [f"{p}" for p in checkpoint.read_meta(base).leaves if not p.startswith("projector")]
    folder = checkpoint.save(
        root / "tuned", second, tuned, tokenizer=tokenizer_model, from_base=frozenset(flat)
    )
    return base, folder, tuned, cfg


def test_a_checkpoint_joins_its_base(based, tmp_path):
    base, folder, tuned, cfg = based
    found, params, tokenizer = checkpoint.load_model(folder)
    assert found.model == cfg
    assert toys.same(params, tuned)
    assert tokenizer.encode("red", bos=False)
    sizes = [sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in (base, folder)]
    assert sizes[1] < 0.5 * sizes[0]
    moved = tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(errors.SgqlmError, match="base of this checkpoint is not there"):
        checkpoint.load_model(folder)
    assert toys.same(checkpoint.load_model(folder, base=moved)[1], tuned)
    moved.rename(base)


def test_another_base_is_refused(based, tmp_path):
    _, folder, _, _ = based
    other = write(tmp_path)
    with pytest.raises(errors.SgqlmError, match="has changed"):
        checkpoint.load_model(folder, base=other)


def test_shapes_that_do_not_fit_are_told(based):
    _, folder, _, cfg = based
    wider = dataclasses.replace(cfg, llm_lora=config.LoraConfig(rank=3))
    with pytest.raises(errors.SgqlmError, match="does not fit the model") as caught:
        checkpoint.check_shapes(checkpoint.read_meta(folder), wider, where=str(folder))
    assert "lora_a" in caught.value.why
