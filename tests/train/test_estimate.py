import dataclasses

import pytest

from sgqlm import config
from sgqlm.models import presets
from sgqlm.parallel import chips, plan
from sgqlm.train import aot, estimate, expected, flops

LENGTH = 192  # no other size of the model
KIB = 1024


def job(*parts, remat="full", batch_size=32, llm=None, known=(), **stage) -> aot.Job:
    cfg = config.ModelConfig(
        vision=config.VisionConfig(
            image_size=28, patch_size=14, width=16, num_layers=2, num_heads=2, mlp_dim=24
        ),
        llm=llm or config.LlmConfig(
            vocab_size=320, width=64, num_layers=6, num_heads=4, num_kv_heads=4, head_dim=16,
            mlp_dim=160,
        ),
        graph=config.GraphConfig(enabled=False),
        llm_lora=config.LoraConfig(rank=2, alpha=4.0),
    )  # fmt: skip
    row = config.StageConfig(
        batch_size=batch_size, learning_rates=dict.fromkeys(parts, 1e-3), **stage
    )
    train = config.TrainConfig(stages=(row,), remat=remat)
    return aot.Job(config.Config(model=cfg, train=train), row, LENGTH, frozenset(known))


@pytest.fixture(scope="module")
def adapters():
    return estimate.Estimator(job("llm_lora", "projector"), "cpu")


def kept(found: estimate.Estimator, remat: str, **options) -> aot.Kept:
    return aot.kept(estimate.with_changes(found.job, remat, 1), found.params, **options)


def test_remat_keeps_what_it_says(adapters):
    llm = adapters.job.model.llm
    layer_input = llm.num_layers * LENGTH * llm.width * 2
    found = {name: kept(adapters, name) for name in ("none", "dots", "qkv", "full")}
    sizes = [found[name].total for name in ("none", "dots", "qkv", "full")]
    assert sizes == sorted(sizes, reverse=True)
    # the inputs of the layers, and around them a few arrays as large as one of them
    assert layer_input < found["full"].total < 2.5 * layer_input
    assert found["full"].divided < 0.01 * layer_input
    # q, k, v and the result of attention
    assert found["qkv"].total - found["full"].total == pytest.approx(4 * layer_input, rel=0.02)


def test_fused_attention_keeps_no_square(adapters):
    llm = adapters.job.model.llm
    whole, fused = kept(adapters, "none"), kept(adapters, "none", without={(LENGTH, LENGTH)})
    square = llm.num_layers * llm.num_heads * LENGTH**2
    assert (whole.total - fused.total) / square == pytest.approx(10, abs=4)  # two to four arrays
    on_tpu = estimate.Estimator(adapters.job._replace(length=512), "tpu")
    assert on_tpu.program.name == "xla"  # heads of 16 are too narrow for the kernel


def test_the_output_matrix_is_not_kept_once_a_piece():
    llm = dataclasses.replace(job().settings.model.llm, vocab_size=16000)
    found = estimate.Estimator(job("llm_lora", llm=llm), "cpu")
    assert kept(found, "full").constant < 2 * llm.vocab_size * llm.width * 2


def test_memory_follows_the_mesh_and_the_micro_batches(adapters):
    one = adapters.memory(adapters.job, {"data": 1, "fsdp": 1, "tensor": 1})
    eight = adapters.memory(adapters.job, {"data": 1, "fsdp": 8, "tensor": 1})
    assert eight.activations == pytest.approx(one.activations / 8, rel=0.01)
    assert one.frozen / 9 < eight.frozen < one.frozen / 7.5
    double = estimate.with_changes(adapters.job, "full", 2)
    halved = adapters.memory(double, {"data": 1, "fsdp": 1, "tensor": 1})
    assert halved.activations == pytest.approx(one.activations / 2, rel=0.01)
    assert halved.gradients == 2 * one.gradients
    assert halved.trainable == one.trainable
    tensor = {"data": 1, "fsdp": 1, "tensor": 4}
    none = estimate.with_changes(adapters.job, "none", 1)
    less = adapters.memory(none, tensor).activations
    assert less < 0.6 * adapters.memory(none, {"fsdp": 1}).activations


def test_offload_moves_to_the_host(adapters):
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    away = estimate.with_changes(adapters.job, "offload", 1)
    assert adapters.host_bytes(adapters.job, mesh) == 0
    assert adapters.host_bytes(away, mesh) > 0
    stays = adapters.memory(estimate.with_changes(adapters.job, "full", 1), mesh)
    assert adapters.memory(away, mesh).activations == stays.activations


def test_the_cheapest_change_is_taken(adapters):
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    plain = estimate.Estimator(estimate.with_changes(adapters.job, "none", 1), "cpu")
    need = plain.memory(plain.job, mesh).total
    chip = chips.Chip("small", 1e12, int(0.95 * need / plan.USABLE), "gpu")
    found = plain.fixes(mesh, chip)
    assert found is not None
    assert plan.fits(found.memory, chip)
    assert found.text in ("remat=dots", "accumulation=2")
    # nothing helps where the weights alone are too much for all chips that are tried
    tiny = chips.Chip("tiny", 1e12, 1000, "gpu")
    assert plain.fixes(mesh, tiny) is None


DATA = expected.Data(64, "here", 100.0, 128.0, "here")


def test_time_and_money():
    chip, prices = chips.get("v5e"), chips.read_prices()
    one = job("llm_lora", "projector")
    found = estimate.effort(one, DATA, chip=chip, num_chips=4, mfu=0.5, prices=prices)
    assert found.steps == 2
    shape = flops.Shape(100, 100 - 4)  # four image tokens, the rest may be labelled
    work = flops.total(flops.sample(one.model, one.stage.learning_rates, shape)).model
    assert found.hours == pytest.approx(2 * 32 * work / (0.5 * chip.peak * 4) / 3600)
    assert found.dollars is not None
    assert found.dollars[0] == pytest.approx(4 * found.hours * prices.chips["v5e"].on_demand)
    unknown = DATA._replace(num_samples=None)
    found = estimate.effort(one, unknown, chip=chip, num_chips=4, mfu=0.5, prices=prices)
    assert (found.steps, found.hours, found.dollars) == (None, None, None)
    fixed = one._replace(stage=dataclasses.replace(one.stage, steps=9))
    found = estimate.effort(fixed, unknown, chip=None, num_chips=4, mfu=0.5, prices=prices)
    assert (found.steps, found.hours) == (9, None)


def test_cache_bytes_of_known_models():
    assert estimate.cache_bytes(presets.get("vicuna_7b"), 1, 1) == 512 * KIB
    assert estimate.cache_bytes(presets.get("vicuna_13b"), 1, 1) == 800 * KIB


def test_evaluation_has_whole_weights_but_for_tensor(adapters):
    given = config.EvalConfig(batch_size=10, max_new_tokens=8)
    whole, cache = estimate.evaluation(adapters, {"data": 1, "fsdp": 4, "tensor": 1}, given)
    assert cache == estimate.cache_bytes(adapters.job.settings.model, 3, LENGTH + 8)
    half, shared = estimate.evaluation(adapters, {"data": 1, "fsdp": 4, "tensor": 2}, given)
    assert half < whole
    assert shared == cache // 2


def test_checkpoints_leave_the_base_out(adapters):
    whole = estimate.checkpoint_bytes(adapters)
    based = estimate.Estimator(
        adapters.job._replace(
            settings=dataclasses.replace(
                adapters.job.settings,
                train=dataclasses.replace(adapters.job.settings.train, init="base"),
            )
        ),
        "cpu",
    )
    sizes = aot.sizes(based.params)
    trained = sum(n for path, n in sizes.items() if based.trains(path))
    # parameters and two moments in float32, and nothing else
    assert estimate.checkpoint_bytes(based) == 12 * trained < whole
