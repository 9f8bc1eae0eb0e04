"""The published recipes: every configuration builds, and its numbers are those of the papers."""

import pathlib

import pytest

from sgqlm import config, errors
from sgqlm.cli import common, train
from sgqlm.data import cards
from sgqlm.models import vlm
from sgqlm.train import stages
from tests import paths

# Recipe -> its stages in order: (batch, {part: learning rate}, data). LLaVA-1.5 for the numbers of
# LLaVA-SG (its paper names none), the paper of SQ-LLaVA, and their union for sgqlm.
PRETRAIN, MIX = "llava_pretrain_558k", "llava_v1_5_mix665k"
RELATIONS = ["visual_genome", "open_images_vrd", "grit"]
ADAPTERS = {"llm_lora": 2e-4, "vision_lora": 2e-5}
SGQLM = {
    "align": (256, {"projector": 1e-3, "prototypes": 1e-3}, [PRETRAIN]),
    "graph": (256, {"graph": 1e-3}, RELATIONS),
    "instruct": (
        128,
        {"projector": 2e-5, "prototypes": 2e-5, "graph": 2e-5, **ADAPTERS},
        [MIX],
    ),
}
PUBLISHED = {
    "llava_sg_7b": {
        "align": (256, {"projector": 1e-3}, [PRETRAIN]),
        "graph": (256, {"graph": 1e-3}, RELATIONS),
        "instruct": (128, {"projector": 2e-5, "graph": 2e-5, "llm": 2e-5}, [MIX]),
    },
    "sq_llava_7b": {
        "align": (256, {"projector": 1e-3, "prototypes": 1e-3}, [PRETRAIN]),
        "instruct": (128, {"projector": 2e-5, "prototypes": 2e-5, **ADAPTERS}, [MIX]),
    },
    "sgqlm_7b": SGQLM,
    "sgqlm_13b": SGQLM,
}
MIXTURES = sorted(p for p in (paths.ROOT / "configs" / "data").glob("*.py") if p.stem[0] != "_")
LLM = {"7b": (32, 4096, 11008, 32), "13b": (40, 5120, 13824, 40)}  # Vicuna v1.5


def _load(name, arg=":my sets"):
    return common.load_config([f"--config={paths.ROOT}/configs/{name}.py{arg}"])[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_stages_are_the_published_ones(name):
    rows = {row.name: row for row in _load(name).train.stages}
    assert list(rows) == list(PUBLISHED[name])
    for stage, (batch, rates, data) in PUBLISHED[name].items():
        row = rows[stage]
        assert row.batch_size == batch
        assert dict(row.learning_rates) == rates
        assert [source.name for source in row.sources] == data
        assert [pathlib.Path(source.path) for source in row.sources] == [
            pathlib.Path("my sets", source) for source in data
        ]
        # one pass, cosine after 3 % warm-up, no decay, as all three sources have it
        assert (row.epochs, row.steps, row.warmup, row.final_lr) == (1.0, 0, 0.03, 0.0)
        assert (row.weight_decay, row.clip_norm, row.b1, row.b2) == (0.0, 1.0, 0.9, 0.999)
        assert row.template == ("plain" if stage == "align" else "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_is_the_published_one(name):
    settings = _load(name)
    model, size = settings.model, name.rsplit("_", 1)[1]
    llm, vision = model.llm, model.vision
    assert (llm.num_layers, llm.width, llm.mlp_dim, llm.num_heads) == LLM[size]
    assert (vision.image_size, vision.num_layers, vision.feature_layer) == (336, 24, -2)
    assert model.compute_dtype == "bfloat16"
    assert model.graph.enabled == (name != "sq_llava_7b")
    has_lora = name != "llava_sg_7b"
    lora = (128, 256.0, 0.05), (32, 64.0, 0.2)
    found = [(a.rank, a.alpha, a.dropout) for a in (model.llm_lora, model.vision_lora)]
    assert found == (list(lora) if has_lora else [(0, 0.0, 0.0)] * 2)
    prototypes = model.prototypes
    if has_lora:
        assert (prototypes.mode, prototypes.num_prototypes, prototypes.iterations) == (
            "paper",
            256,
            2,
        )
    else:
        assert prototypes.mode == "none"
        graph = model.graph
        assert not (graph.use_boxes or graph.edge_geometry or graph.edge_visual)
        assert graph.labels == "none"


@pytest.mark.parametrize("name", PUBLISHED)
def test_self_questioning_and_templates(name):
    settings = _load(name)
    asked = {row.name: row.self_questioning for row in settings.train.stages}
    assert settings.text.template == ("vicuna_v1" if name == "llava_sg_7b" else "v1_sq")
    assert asked.pop("instruct") == (0.0 if name == "llava_sg_7b" else 0.5)
    assert set(asked.values()) == {0.0}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_run_fits_the_machines_of_the_page(name):
    settings = _load(name)
    assert settings.data.buckets[-1] == 2048
    assert settings.train.remat != "none"
    assert settings.train.save_every > 0
    assert settings.train.spike_factor > 1
    shapes = vlm.param_shapes(settings.model)
    for row in settings.train.stages:
        stages.check(row, shapes)
        for chips in (1, 2, 4, 8, 16):
            assert row.batch_size % (chips * row.accumulation) == 0
    assert config.from_config_dict(config.to_dict(settings)) == settings


def test_sq_llava_can_take_the_data_of_the_released_weights():
    settings = _load("sq_llava_7b", ":sets,sharegpt4v")
    rows = {row.name: row for row in settings.train.stages}
    names = {stage: [s.name for s in row.sources] for stage, row in rows.items()}
    assert names == {
        "align": [PRETRAIN],
        "align_captions": ["sharegpt4v_pretrain_1246k"],
        "instruct": ["sharegpt4v_mix665k"],
    }
    assert dict(rows["align_captions"].learning_rates) == {"projector": 2e-4, "prototypes": 2e-4}
    assert rows["align_captions"].template == "plain" and rows["instruct"].batch_size == 128
    assert settings.train.init == "sets/vicuna_7b"
    assert settings.train.workdir != _load("sq_llava_7b").train.workdir
    with pytest.raises(errors.SgqlmError, match="no mixture 'x'"):
        _load("sq_llava_7b", ":sets,x")


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_every_mixture_is_of_known_data_sets_and_loads_alone(path):
    settings = common.load_config([f"--config={path}:my sets"])[0]
    known = {card.name for card in cards.every()}
    for row in settings.train.stages:
        for source in row.sources:
            assert source.name in known
            assert source.path == f"my sets/{source.name}" and source.weight == 1.0


def test_neighbours_of_two_folders_do_not_mix(tmp_path):
    """Two configurations in one process may import different neighbours of one name."""
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "near.py").write_text(f"SEED = {number}")
        text = "import near\ndef get_config(arg=''): return {'train': {'seed': near.SEED}}"
        (folder / "c.py").write_text(text)
        assert common.load_config([f"--config={folder}/c.py"])[0].train.seed == number


def test_the_graph_stays_out_until_it_is_trained():
    rows = {row.name: row for row in _load("sgqlm_7b").train.stages}
    assert rows["align"].sources[0].entities == "none"
    assert rows["instruct"].sources[0].entities == ""


def test_without_the_data_it_says_so_at_once(tmp_path):
    words = [f"--config={paths.ROOT}/configs/sq_llava_7b.py:{tmp_path}/sets"]
    words += [f"--config.train.workdir={tmp_path}/run"]
    with pytest.raises(errors.SgqlmError, match="there is no data set") as caught:
        train.run(words)
    assert caught.value.code == errors.USAGE
    assert str(tmp_path / "sets" / PRETRAIN) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_bucket_address_is_no_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"--config={paths.ROOT}/configs/base.py:tiny", "--config.train.workdir=gs://b/run"]
    with pytest.raises(errors.SgqlmError, match="is not a folder") as caught:
        train.run(words)
    assert caught.value.code == errors.USAGE
    assert not list(tmp_path.iterdir())
