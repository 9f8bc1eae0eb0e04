"""Generate with parameters on a training mesh of eight devices and on one; print JSON.

Run as a script: the number of devices is fixed before jax starts.
"""

import dataclasses
import json
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import sgqlm
from sgqlm import config
from sgqlm import model as model_lib
from sgqlm.decode import generate, inputs, score
from sgqlm.evals import scenes
from sgqlm.models import llama
from sgqlm.parallel import collectives, rules
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import checkpoint
from tests import tiny_model
from tests.train import toys

ROWS, SLOTS = 4, 32


def count(generator: generate.Generator, params, mesh) -> dict:
    """Count the collectives of one decode step over a cache that lies as in generation."""
    llm = generator.config.llm
    place = jax.sharding.NamedSharding(
        mesh, rules.spec(("batch", "heads", None, None), mesh=mesh.axis_names)
    )
    shape = (ROWS, llm.num_kv_heads, SLOTS, llm.head_dim)
    layer = jax.device_put(jnp.zeros(shape), place)
    rows = mesh_lib.put_batch(np.zeros(ROWS, np.int32), mesh)
    cache = llama.Cache((layer,) * llm.num_layers, (layer,) * llm.num_layers, rows)
    step = jax.jit(lambda p, t, c: llama.decode_step(p, generator.config, t, c))
    with jax.set_mesh(mesh):
        return collectives.count(step.lower(params, rows, cache).compile().as_text())


def reload(model: model_lib.VisionLanguageModel) -> model_lib.VisionLanguageModel:
    """Save a model and load it on a mesh."""
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    with tempfile.TemporaryDirectory() as folder:
        words = model.tokenizer.model_bytes
        checkpoint.save(folder, meta, model.params, tokenizer=words)
        return sgqlm.load(folder, mesh={"data": -1, "tensor": 2})


def scores(model: model_lib.VisionLanguageModel, cases) -> list:
    """Score two continuations of questions about the images, of all rows and of one."""
    settings, words = model.config, model.tokenizer
    rows = [
        inputs.Row([inputs.human(case.questions[0].text)], case.image, case.entities)
        for case in cases
    ]
    prepared = [inputs.prepare(row, settings, words) for row in rows]
    length = generate.bucket(max(row.length for row in prepared))
    scorer = score.Scorer(model._generator)
    found = score.choices([[7, 8, 2], [7, 9]])
    return [
        scorer.score(inputs.collate(part, length, settings.model), found).tolist()
        for part in (prepared, prepared[:1])
    ]


def shared(cases, mesh) -> list:
    """Return answers about one and three images: with what their questions share run once, or not.

    On one device and on the mesh, which has four batch shards.
    """
    one = tiny_model.make(252)
    params = jax.device_put(one.params, rules.param_shardings(one.params, mesh))
    many = model_lib.VisionLanguageModel(one.config, params, one.tokenizer)
    texts = ["what is it?", "what colour is the star?", "is there a circle?", "hello"]
    texts += [f"{text} and why?" for text in texts]
    out = []
    for count in (1, 3):
        about = [(case, text) for text in texts for case in cases[:count]]
        rows = [inputs.Row([inputs.human(t)], case.image, case.entities) for case, t in about]
        found = []
        for model in (one, many):
            for generate.SHARED_FLOPS in (1e10, 0):
                batch = model._collate(model._prepare(rows))
                is_shared = model._generator._groups(batch) is not None
                answers = model.respond(rows, max_new_tokens=6, batch_size=32)
                found.append([is_shared, answers])
        out.append(found)
    return out


def main():
    assert len(jax.devices()) == 8
    one = tiny_model.make()
    cases = scenes.make_cases(tiny_model.SCENES, count=ROWS)
    rows = [c.image for c in cases], [c.questions[0].text for c in cases]
    rows = (*rows, [c.entities for c in cases])
    mesh = mesh_lib.make({"data": 2, "fsdp": 2, "tensor": 2})
    params = jax.device_put(one.params, rules.param_shardings(one.params, mesh))
    many = model_lib.VisionLanguageModel(one.config, params, one.tokenizer)
    texts = {
        name: [
            model.generate(*rows, max_new_tokens=6),
            model.generate(*(r[:1] for r in rows), max_new_tokens=6),
        ]
        for name, model in (("one", one), ("many", many))
    }
    scored = {name: scores(model, cases) for name, model in (("one", one), ("many", many))}
    generator = many._generator
    decode = mesh_lib.for_decode(mesh)
    q = generator.params["llm"]["blocks"][0]["attn"]["q"]["kernel"]
    gathering = llama.unstack(jax.device_put(params, rules.param_shardings(params, mesh))["llm"])
    plain = dataclasses.replace(one.config.model, llm_lora=generator.config.llm_lora)
    training = generate.Generator(plain, one.params, eos_id=0)
    loaded = reload(one)
    stacked = loaded.params["llm"]["blocks"]["attn"]["q"]["kernel"]
    report = {
        "loaded": list(stacked.sharding.shard_shape(stacked.shape)),
        "same": toys.same(loaded.params, one.params),
        **texts,
        "scores": scored,
        "shared": shared(cases, mesh),
        "layers": one.config.model.llm.num_layers,
        "kernel": [list(q.shape), list(q.sharding.shard_shape(q.shape))],
        "decode": count(generator, generator.params["llm"], decode),
        "training": count(training, gathering, mesh),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
