"""How fast a stage trains: tokens, operations and the share of the peak, from counts."""

from collections.abc import Callable, Mapping, Sequence

from sgqlm import config
from sgqlm.parallel import chips
from sgqlm.train import flops


def meter(
    stage: config.StageConfig,
    model: config.ModelConfig,
    *,
    device_kind: str,
    num_devices: int,
    is_cached: bool = False,
) -> Callable[[Sequence[Mapping[str, float]], float], dict[str, float]]:
    """Return what turns the figures of some steps and their seconds into rates.

    Args:
        stage: the stage.
        model: as the stage runs it, see `stages.program_model`.
        device_kind: as jax calls it; says what the peak is.
        num_devices: of the mesh.
        is_cached: the tower's features are read.

    Returns:
        A function of the metrics of `train.loss.lm_loss` of every step, and the seconds they took
        together. It gives `tokens_per_second` (valid tokens), `tflops_per_second` (model FLOPs of
        all devices, see `train.flops`) and, on chips whose peak is known, `mfu`. Samples count as
        if all of a step had its mean length. Without tokens among the metrics it gives nothing.
    """
    chip = chips.of_device(device_kind)
    peak = chip.peak * num_devices if chip else 0.0

    def operations(values: Mapping[str, float]) -> float:
        samples = values["samples"]
        if not samples:
            return 0.0
        shape = flops.Shape(
            length=round(values["tokens"] / samples),
            labelled=round(values["labelled"] / samples),
            is_cached=is_cached,
        )
        work = flops.sample(model, stage.learning_rates, shape)
        return samples * flops.total(work).model

    def rates(window: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
        if not window or "labelled" not in window[0] or seconds <= 0:
            return {}
        speed = sum(map(operations, window)) / seconds
        tokens = sum(values["tokens"] for values in window) / seconds
        found = {"tokens_per_second": tokens, "tflops_per_second": speed / 1e12}
        return {**found, "mfu": speed / peak} if peak else found

    return rates


def note(rates: Mapping[str, float]) -> str:
    """Return the rates for a line of progress."""
    if "mfu" in rates:
        return f" {rates['tokens_per_second']:.0f} tokens/s MFU {rates['mfu']:.0%}"
    return f" {rates['tokens_per_second']:.0f} tokens/s" if rates else ""
