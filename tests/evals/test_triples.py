import pytest

from sgqlm.evals import triples
from sgqlm.evals.metrics import scene_graph


@pytest.mark.parametrize(
    ("text", "found", "failed"),
    [
        ("man -> holding -> racket; Net->behind->man.", 2, 0),
        ("1. The man -> holding -> a racket\n2) net | behind | man\n- net => near => man", 3, 0),
        ("(man, holding, racket); <net, behind, man>\n[a \u2192 b \u2192 c]", 3, 0),
        ("A man holds a racket.", 0, 1),
        ("man -> holding; a -> b -> c -> d; -> on -> x; man -> on -> mat", 1, 3),
        ("man, holding, racket", 0, 1),
        ("", 0, 0),
        (" ;\n; ", 0, 0),
    ],
)
def test_texts_are_read(text, found, failed):
    done = triples.parse(text)
    assert (len(done.triples), done.num_failed) == (found, failed)


def test_names_come_in_one_form():
    done = triples.parse("1. The Tall  Man -> Is holding -> a tennis_racket.")
    assert done.triples == [("tall man", "is holding", "tennis racket")]


def test_names_alone_decide_and_order_is_rank():
    truth = triples.named_truth([("man", "on", "horse"), ("man", "on", "horse")], ["on", "by"])
    assert truth.triplets.tolist() == [[0, 1, 0], [0, 1, 0]]
    told = [("man", "under", "horse"), ("guy", "on", "horse")]
    found = triples.predicted(told, ["on", "by"], name=lambda word: {"guy": "man"}.get(word, word))
    done = scene_graph.evaluate([found], [truth], mode="sgdet", ks=(1, 2))
    assert (done["ng-R@1"], done["ng-R@2"]) == (0, 1)  # what is no predicate takes a rank
    none = triples.predicted([], ["on"])
    assert scene_graph.evaluate([none], [truth], mode="sgdet")["R@20"] == 0
