"""Signs in the figures of a stage that a part of the model does not do its work."""

from collections.abc import Mapping

MOST_DEAD = 0.9  # healthy runs lie near a half, fresh prototypes of a large model at 0.76
ONE_WINS = 0.05  # of `usage_entropy`; healthy runs lie above 0.45


def warning(figures: Mapping[str, float]) -> str:
    """Say what looks wrong in the figures of some steps.

    Args:
        figures: means of the metrics of `train.loss.lm_loss`; other names are ignored. A mean over
            nothing is NaN and warns of nothing.

    Returns:
        One sentence, or an empty string.
    """
    dead = figures.get("dead_share", 0.0)
    entropy = figures.get("usage_entropy", 1.0)
    if dead > MOST_DEAD or entropy < ONE_WINS:
        return (
            f"{dead:.0%} of the prototypes win no patch (evenness {entropy:.2f} of 1); with fewer"
            " model.prototypes.num_prototypes, or a lower learning rate, more would"
        )
    return ""
