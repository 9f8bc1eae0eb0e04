"""Run a model on test scenes: answers, controls, and the questions it asks."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from sgqlm import config as config_lib
from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs
from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import prior, scenes
from sgqlm.scenes import questions
from sgqlm.viz import quickstart_report


def evaluate_scenes(
    model: ask.Responder,
    cases: Sequence[scenes.SceneCase],
    *,
    answer_prior: prior.Prior,
    settings: config_lib.EvalConfig = config_lib.EvalConfig(),
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Score the full model, the answer prior and the test-time diagnostics.

    `no_graph` leaves the graph out, `shuffled_graph` gives every image that of another one,
    `edges_permuted` keeps the nodes and lets each edge run between two others of its scene.

    Args:
        model: the model; one that reads annotated predicates is refused.
        cases: test scenes.
        answer_prior: counted from training questions.
        settings: batch size, tokens, number of asked questions, seed.
        progress: told the name of each part before it starts.

    Returns:
        `test`, `prior`, `no_graph`, `shuffled_graph` and `edges_permuted`, each
        `{"accuracy", "by_family"}`, and `asked`, see `score_asked`.
    """
    tell = progress or (lambda name: None)
    asked = [(i, question) for i, case in enumerate(cases) for question in case.questions]
    truth = [question for _, question in asked]
    rows = [
        inputs.Row([inputs.human(question.text)], cases[i].image, cases[i].entities)
        for i, question in asked
    ]
    other = inputs.derangement(len(cases), settings.seed)
    arms = {
        "test": rows,
        "no_graph": [dataclasses.replace(row, entities=None) for row in rows],
        "shuffled_graph": [
            dataclasses.replace(row, entities=cases[other[i]].entities)
            for row, (i, _) in zip(rows, asked, strict=True)
        ],
        "edges_permuted": [
            dataclasses.replace(row, permute_edges=settings.seed + i)
            for row, (i, _) in zip(rows, asked, strict=True)
        ],
    }
    result = {"prior": prior.score(truth, [prior.answer(answer_prior, q) for q in truth])}
    for name, changed in arms.items():
        tell(name)
        answers = model.respond(
            changed,
            max_new_tokens=settings.max_new_tokens,
            sampling=sample.Sampling(),
            batch_size=settings.batch_size,
        )
        result[name] = prior.score(truth, answers)
    tell("asked")
    result["asked"] = score_asked(model, cases[: settings.num_asked], settings=settings)
    return result


def score_asked(
    model: ask.Responder,
    cases: Sequence[scenes.SceneCase],
    *,
    settings: config_lib.EvalConfig,
) -> dict:
    """Let the model ask one question an image and judge them.

    Args:
        model: the model.
        cases: test scenes.
        settings: temperature and seed of the draws.

    Returns:
        `questions` (their number), `distinct_share`, `well_formed_share` (the scene grammar
        parses the question and the scene holds what it refers to) and
        `well_formed_share_shuffled` (asked with the graph of another scene, judged by the scene
        of the image).
    """
    other = inputs.derangement(len(cases), settings.seed)

    def draw(entities):
        rows = [
            inputs.Row((), case.image, found, open_role="vuser")
            for case, found in zip(cases, entities, strict=True)
        ]
        return model.respond(
            rows,
            max_new_tokens=4 * settings.max_new_tokens,
            sampling=sample.Sampling(settings.ask_temperature),
            draws=[(settings.seed, at) for at in range(len(rows))],
            batch_size=settings.batch_size,
        )

    def well_formed(texts):
        hits = [
            questions.is_well_formed(text, case.scene)
            for text, case in zip(texts, cases, strict=True)
        ]
        return round(sum(hits) / max(len(hits), 1), 4)

    own = draw([case.entities for case in cases])
    shuffled = draw([cases[other[i]].entities for i in range(len(cases))])
    return {
        "questions": len(own),
        "distinct_share": round(len(set(own)) / max(len(own), 1), 4),
        "well_formed_share": well_formed(own),
        "well_formed_share_shuffled": well_formed(shuffled),
    }


def collect_examples(
    model: model_lib.VisionLanguageModel,
    cases: Sequence[scenes.SceneCase],
    *,
    settings: config_lib.EvalConfig = config_lib.EvalConfig(),
    questions_each: int = 3,
) -> list[quickstart_report.Example]:
    """Collect what the report shows of some test images, the families of questions in turn.

    Args:
        model: the model.
        cases: test scenes to show.
        settings: temperature, tokens and seed.
        questions_each: questions the model asks about each image, and answers.

    Returns:
        One example a case.
    """
    chosen = [_pick(case, i) for i, case in enumerate(cases)]
    base = [inputs.Row((), case.image, case.entities) for case in cases]
    answers = model.respond(
        [
            dataclasses.replace(row, turns=[inputs.human(question.text)])
            for row, question in zip(base, chosen, strict=True)
        ],
        max_new_tokens=settings.max_new_tokens,
    )
    asked = [
        ask.questions(
            model,
            row,
            count=questions_each,
            sampling=sample.Sampling(settings.ask_temperature),
            max_new_tokens=4 * settings.max_new_tokens,
            seed=settings.seed + i,
        )
        for i, row in enumerate(base)
    ]
    flat = [(i, text) for i, texts in enumerate(asked) for text in texts]
    own = ask.answer_own(
        model,
        [base[i] for i, _ in flat],
        [text for _, text in flat],
        max_new_tokens=settings.max_new_tokens,
    )
    pairs = [
        [(text, given) for (j, text), given in zip(flat, own, strict=True) if j == i]
        for i in range(len(cases))
    ]
    return [
        example(
            model,
            inputs.Row([inputs.human(question.text)], case.image, case.entities),
            answer=answer,
            truth=question.answer,
            asked=found,
        )
        for case, question, answer, found in zip(cases, chosen, answers, pairs, strict=True)
    ]


def _pick(case: scenes.SceneCase, index: int) -> questions.Question:
    wanted = prior.FAMILIES[index % len(prior.FAMILIES)]
    fitting = [q for q in case.questions if q.family == wanted] or case.questions
    return fitting[index % len(fitting)]


def example(
    model: model_lib.VisionLanguageModel,
    row: inputs.Row,
    *,
    answer: str,
    truth: str,
    asked: Sequence[tuple[str, str]] = (),
) -> quickstart_report.Example:
    """Collect what a page shows of one answered question.

    Args:
        model: the model.
        row: one question about an image.
        answer: what the model said.
        truth: what it should have said.
        asked: questions of its own, with its answers.

    Returns:
        The example, with the attention of the model's graph.

    Raises:
        SgqlmError: the row has no image.
    """
    image = row.image
    if image is None:
        raise errors.SgqlmError("an example is about an image, and the row has none")
    question = row.turns[0]["value"].replace("<image>", "").strip()
    found = row.entities or graphs.Entities.empty((image.height, image.width))
    has_graph = model.config.model.graph.enabled and len(found) > 0
    graph = model.scene_graph(image, question, found) if has_graph else None
    return quickstart_report.Example(
        image=image,
        entities=graph.entities if graph else found.take([]),
        node_attention=graph.node_attention if graph else np.zeros(0, np.float32),
        edges=graph.edges if graph else np.zeros((0, 0), np.float32),
        nearest=model.prototype_map(image),
        square=model.square(image),
        question=question,
        answer=answer,
        truth=truth,
        asked=asked,
    )
