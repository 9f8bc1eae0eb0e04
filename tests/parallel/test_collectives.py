import pytest

from sgqlm.parallel import collectives

# One loop of four layers that calls a fusion, a conditional, and an asynchronous gather outside.
PROGRAM = """\
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner (p: bf16[16,8]) -> bf16[64,8] {
  ROOT %g = bf16[64,8]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (carry: (s32[], /*index=1*/f32[8])) -> (s32[], f32[8]) {
  %f = bf16[64,8]{1,0} fusion(%x), kind=kLoop, calls=%inner
  %r = f32[16]{0} reduce-scatter(%y), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %z)
}

%condition (carry: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%once (p: f32[4]) -> f32[4] {
  ROOT %q = (f32[4]{0}, f32[2,3]{1,0}) all-reduce(%p, %o), replica_groups={}, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%start), condition=%condition, body=%body, metadata={op_name="jit(step)/llm/while"}@
  %s = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
  %d = f32[32]{0} all-gather-done(%s)
  %k = f32[4]{0} conditional(%which, %a, %b), branch_computations={%once, %once}
  ROOT %out = f32[8]{0} copy(%p)
}
"""  # noqa: E501
KNOWN = ', backend_config={"known_trip_count":{"n":"4"}}'


@pytest.mark.parametrize(
    ("text", "trips"),
    [(PROGRAM.replace("@", KNOWN), None), (PROGRAM.replace("@", ""), {"/llm/": 4})],
)
def test_loops_multiply_what_their_bodies_send(text, trips):
    found = collectives.count(text, trips=trips)
    assert found == {
        "all-gather": collectives.Total(4 + 1, 4 * 64 * 8 + 32),
        "reduce-scatter": collectives.Total(4, 4 * 16 * 4),  # what goes in: four times the result
        "all-reduce": collectives.Total(2, 2 * (4 + 6)),
    }
    assert collectives.elements(found) == 5 * 0 + 4 * 512 + 32 + 256 + 20


def test_a_loop_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="how often does this loop run"):
        collectives.count(PROGRAM.replace("@", ""), trips={"/vision/": 3})


def test_a_program_of_one_device_sends_nothing():
    text = "HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %c = f32[8] copy(%p)\n}\n"
    assert collectives.count(text) == {}
