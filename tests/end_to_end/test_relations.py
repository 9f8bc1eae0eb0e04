"""Relations can be learned: from the edges, through the messages, to the words.

The nodes carry their right labels and the edges the drawn predicates (`edge_oracle`, the diagnostic
upper bound), so that only the path is tested: what a tower can see of a relation is another matter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config, types
from sgqlm.data import pipeline
from sgqlm.models import presets, vlm
from sgqlm.scenes import grammar, questions, render, world
from sgqlm.text import tokenizer
from sgqlm.train import loss, optim, state, step

NUM_SCENES = 200
NUM_TURNS = 2  # sets of relations a scene appears with: equal questions, other answers
SCENES = config.SceneConfig(missed=0.0, spurious=0.0, box_jitter=0.0)
TEXT = config.TextConfig(system="")
LENGTH = 40
BATCH = 32
STEPS = 3000


def _questions(scene: world.Scene, seed: int):
    """Ask for the partner of every subject; the words depend on subjects and predicates only."""
    rng = np.random.default_rng((scene.index, seed))
    for relation in scene.relations:
        if nouns := questions.references(scene, relation.subject):
            for attribute in ("colour", "shape"):
                noun = nouns[int(rng.integers(len(nouns)))]
                text = grammar.write(
                    "one_hop", 0, attribute=attribute, first=noun, predicate=relation.predicate
                )
                answer = getattr(scene.objects[relation.object], attribute)
                yield [
                    {"from": "human", "value": "<image>\n" + text},
                    {"from": "gpt", "value": answer},
                ]


def _samples(index: int, turn: int):
    """Yield a scene whose partners changed places `turn` times, so that none is known by heart."""
    scene = world.make_scene(SCENES, "train", index)
    _, id_mask = render.draw(scene)
    entities, truth = world.detect(scene, id_mask, SCENES)
    slot = {int(k): i for i, k in enumerate(truth)}
    labels = [" ".join(scene.objects[k].words) for k in truth]
    objects = np.roll([r.object for r in scene.relations], turn).tolist()
    changed = [
        dataclasses.replace(relation, object=other)
        for relation, other in zip(scene.relations, objects, strict=True)
        if relation.subject != other
    ]
    scene = dataclasses.replace(scene, relations=tuple(changed))
    relations = [(slot[r.subject], r.predicate, slot[r.object]) for r in scene.relations]
    entities = dataclasses.replace(entities, labels=labels)
    for turns in _questions(scene, turn):
        yield pipeline.Sample(index, None, turns, entities, f"scene/{index}", relations=relations)


def _model(vocab_size: int) -> config.ModelConfig:
    tiny = presets.get("tiny")
    none = config.LoraConfig()
    return dataclasses.replace(
        tiny,
        llm=dataclasses.replace(tiny.llm, vocab_size=vocab_size),
        graph=dataclasses.replace(tiny.graph, edge_oracle=True, edge_visual=False, impl="dense"),
        projector=config.ProjectorConfig(merge=8),  # the images are blank: one token is enough
        prototypes=config.PrototypeConfig(mode="none"),
        llm_lora=none,
        vision_lora=none,
        region_words=0,
    )


def _accuracy(params, model, batch, features, permutation=None):
    rows, _ = vlm.embed(params, model, batch, features=features, edge_permutation=permutation)
    hidden = vlm.Vlm(model).apply({"params": params}, rows, method=lambda m, x: m.llm(x))
    found = vlm.head(params, model, hidden)[:, :-1].argmax(-1)
    wanted = batch.labels[:, 1:]
    counted = (wanted >= 0) & (wanted != 2)  # words, not the end of the turn
    return ((found == wanted) & counted).sum() / counted.sum()


def _rows(batch: types.Batch, picked) -> types.Batch:
    return types.Batch(*jax.tree.map(lambda x: x[picked], tuple(batch)))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_one_hop_questions_are_overfit_with_true_edges_only():
    scenes = [world.make_scene(SCENES, "train", i) for i in range(2 * NUM_SCENES)]
    usable = [i for i, scene in enumerate(scenes) if len(scene.relations) > 2][:NUM_SCENES]
    samples = [s for i in usable for turn in range(NUM_TURNS) for s in _samples(i, turn)]
    corpus = [turn["value"] for sample in samples for turn in sample.turns]
    words = tokenizer.load(tokenizer.train([*grammar.words(), *corpus], 512))
    model = _model(words.vocab_size)
    args = {"model": model, "text": TEXT, "tokenizer": words, "length": LENGTH}
    whole = pipeline.make_batch(samples, **args)
    blank = np.zeros((len(samples), model.vision.num_patches, model.vision.width), np.float32)
    params = jax.jit(lambda key: vlm.init_params(model, key))(jax.random.key(0))
    row = config.StageConfig(
        learning_rates={"llm": 1e-3, "graph": 1e-3}, b2=0.98, warmup=0.05, final_lr=0.02
    )
    trainable, frozen = state.split(params, row.learning_rates)
    optimizer = optim.make(row, STEPS)
    current = step.init_state(trainable, optimizer)

    def lm(params, batch, key, features=None):
        return loss.lm_loss(params, model, batch, features=features, key=key)

    train_step = step.make_train_step(lm, optimizer)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    for index in range(STEPS):
        picked = rng.choice(len(samples), BATCH, replace=False)
        batch = _rows(whole, picked)
        current, report = train_step(current, frozen, batch, blank[:BATCH], key)
        if index % 250 == 249:
            print(f"step {index + 1}: {float(report['answer_accuracy']):.3f} of the batch's words")
    trained = state.join(current.trainable, frozen)

    turn = np.tile(np.arange(model.graph.num_nodes, dtype=np.int32), (len(samples), 1))
    for row_index, valid in enumerate(whole.graph.valid):
        count = int(valid.sum())
        turn[row_index, :count] = np.roll(np.arange(count), 1)
    accuracy = jax.jit(_accuracy, static_argnums=1)
    intact = float(accuracy(trained, model, whole, blank))
    permuted = float(accuracy(trained, model, whole, blank, jnp.asarray(turn)))
    print(f"one-hop answers: {intact:.3f} with true edges, {permuted:.3f} with permuted edges")
    assert intact >= 0.95
    assert permuted <= 0.7
