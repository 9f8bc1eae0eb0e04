from sgqlm.evals import published


def test_scores_are_looked_up_with_their_source():
    first = published.known("LLaVA-1.5-7B")["pope"]
    assert first.score == 85.9 and "zoo" in first.source
    assert published.known("SQ-LLaVA*-13B")["pope"].score == 87.4
    assert published.known("LLaVA-1.5-13B")["mmvet"].score == 36.1
    assert published.known("LLaVA-1.5-13B")["llava_wild"].score == 72.5
    assert published.known("ShareGPT4V-7B")["seed"].note == "images of SEED alone"
    assert published.known("none") == {}


def test_what_nobody_has_seen_is_never_known():
    assert not {value.model for value in published.UNVERIFIED} & set(published.models())
    assert {value.certainty for value in published.UNVERIFIED} == {published.MEMORY}
    assert {value.certainty for value in published.KNOWN} == {published.OWN, published.THIRD_PARTY}
    weak = [v for v in published.KNOWN if v.certainty == published.THIRD_PARTY]
    assert [(v.model, v.benchmark) for v in weak] == [("ShareGPT4V-7B", "pope")]
    assert not set(published.ABSENT) & set(published.models())


def test_the_table_is_well_formed():
    values = [*published.KNOWN, *published.UNVERIFIED]
    keys = [(value.model, value.benchmark) for value in values]
    assert len(keys) == len(set(keys)) == 4 * 11 + 4 * 10 + 11 + 10
    for value in values:
        assert value.benchmark in published.BENCHMARKS and 20 < value.score < 90
        assert value.certainty in published.CERTAINTY and value.source
