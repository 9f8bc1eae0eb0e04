"""Compile train steps for eight devices and print what they send and are given, as JSON.

Run as a script: the number of devices is fixed before jax starts. Arguments: `small`, or a preset.
"""

import dataclasses
import json
import resource
import sys
import time

from sgqlm import config
from sgqlm.models import presets
from sgqlm.parallel import chips
from sgqlm.train import planning, stages

MESH = {"data": 1, "fsdp": 8, "tensor": 1}


def small() -> config.ModelConfig:
    """Return a model whose weights outweigh a batch, with its layers in a loop."""
    return config.ModelConfig(
        vision=config.VisionConfig(
            image_size=28, patch_size=14, width=128, num_layers=3, num_heads=2, mlp_dim=512
        ),
        llm=config.LlmConfig(
            vocab_size=512, width=256, num_layers=6, num_heads=2, num_kv_heads=2, head_dim=128,
            mlp_dim=1024,
        ),
        graph=config.GraphConfig(enabled=False),
        llm_lora=config.LoraConfig(rank=8, alpha=16.0),
        vision_lora=config.LoraConfig(rank=8, alpha=16.0),
    )  # fmt: skip


def settings(name: str) -> config.Config:
    if name != "small":
        row = dataclasses.replace(stages.preset("sgqlm", "instruct"), batch_size=16)
        train = config.TrainConfig(stages=(row,), remat="full", mesh=MESH)
        data = config.DataConfig(buckets=(1024,))
        return config.Config(model=presets.get(name), train=train, data=data)
    rates = dict.fromkeys(("projector", "llm_lora"), 1e-3)
    row = config.StageConfig(name="lora", batch_size=16, accumulation=2, learning_rates=rates)
    train = config.TrainConfig(stages=(row,), remat="full", mesh=MESH)
    return config.Config(model=small(), train=train, data=config.DataConfig(buckets=(32,)))


def main():
    whole = settings(sys.argv[1])
    prices, found = chips.read_prices(), []
    for job in planning.jobs(whole):
        planned = planning.make(job, whole, MESH, None, prices, mfu=0.4, samples=1000)
        planned = planned._replace(compiled=planning.compiled(planned, None))
        found.append(planning.to_dict(planned))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"plans": found, "cpu_seconds": time.process_time(), "memory": memory}))


if __name__ == "__main__":
    main()
