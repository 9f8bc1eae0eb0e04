from sgqlm.train import goodput


def record(kind, step=0, stage="a", **seconds):
    return {"kind": kind, "stage": stage, "step": step, **seconds}


def train(step, seconds):
    return record("train", step, step_seconds=seconds, compile_seconds=1.0, data_wait_seconds=0.5)


def test_one_attempt():
    found = goodput.account(
        [
            record("start", stage="", seconds=3.0),
            record("set_up", seconds=1.0),
            train(2, 8.0),
            record("eval", 2, seconds=2.0, loss=None),
            record("checkpoint", 2, seconds=0.5),
            record("stage", 2, seconds=99.0),
        ]
    )
    assert found["start_up_seconds"] == 4.0
    assert found["evaluation_seconds"] == 2.0
    assert found["lost_seconds"] == 0.0
    assert found["goodput"] == 8.0 / 16.0
    assert goodput.line(found).startswith("goodput 50%: start up 4s, compile 1s,")


def test_what_is_done_again_is_lost_and_counted_once():
    saved = [record("start", stage="", seconds=1.0), train(2, 8.0), record("checkpoint", 2)]
    again = record("start", 2, seconds=2.0)
    killed = [*saved, train(4, 10.0), again]
    assert goodput.account(killed)["lost_seconds"] == 11.5  # with its compilation and waiting
    twice = goodput.account([*killed, train(3, 4.0), again, train(4, 6.0)])
    assert twice["lost_seconds"] == 11.5 + 2.0 + 5.5
    assert twice["step_seconds"] == 8.0 + 6.0
    assert twice["start_up_seconds"] == 1.0 + 2.0


def test_a_fallback_loses_what_followed_the_older_checkpoint():
    records = [record("start", stage="", seconds=0.0)]
    records += [record("checkpoint", 2), train(4, 5.0), record("checkpoint", 4), train(6, 7.0)]
    assert goodput.account([*records, record("start", 4)])["lost_seconds"] == 8.5
    assert goodput.account([*records, record("start", 2)])["lost_seconds"] == 15.0
    assert goodput.account([*records, record("start", 0, stage="")])["lost_seconds"] == 15.0
    assert goodput.account([])["goodput"] == 0.0
