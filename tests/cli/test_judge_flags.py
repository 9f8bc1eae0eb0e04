import argparse

import pytest

from sgqlm import errors
from sgqlm.cli import judge_flags
from tests.evals import benchmark_files as files


def test_flags_are_of_the_judge_and_the_benchmarks_that_are_scored(tmp_path):
    parser = argparse.ArgumentParser()
    judge_flags.add(parser)
    files.lines(tmp_path / "r.jsonl", [{"prompt": "p", "judge": "m", "reply": "1"}])
    by = f"--judge=replay:{tmp_path / 'r.jsonl'}"
    found = judge_flags.settings(parser.parse_args([by]), ["mmvet", "gqa"])
    assert found.parallel == 1 and not found.retry and found.runs == 1 and not found.is_open
    assert judge_flags.settings(parser.parse_args([]), ["gqa"]).is_open
    for name in ("rule.json", "again.json", "prompt.txt"):
        (tmp_path / name).write_text("{}")
    prompts = [f"--judge-prompt={tmp_path / name}" for name in ("rule.json", "prompt.txt")]
    args = parser.parse_args([by, *prompts])
    assert (
        judge_flags.settings(args, ["mmvet", "llava_wild"]).prompt("mmvet") == args.judge_prompt[1]
    )
    for words, tasks, message in (
        (prompts, ["mmvet"], "rule.json"),
        (prompts[:1], ["mmbench"], "mmbench take none"),
        ([prompts[0], f"--judge-prompt={tmp_path / 'again.json'}"], ["llava_wild"], "one prompt"),
        (["--judge-runs=2"], ["mmbench"], "--judge-runs is of llava_wild"),
    ):
        with pytest.raises(errors.SgqlmError, match=message):
            judge_flags.settings(parser.parse_args([by, *words]), tasks)
