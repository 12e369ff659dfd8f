"""What a method uses beside its tasks' images: in a run's results and in words, for whoever compares rows."""

from __future__ import annotations

from perdure.methods import Method
from perdure.run.results import Fairness, Results


def fairness_of(method: Method, exemplars: int) -> Fairness:
    """What a method uses and keeps beside the images of its tasks.

    Args:
        method: at the end of its run.
        exemplars: the images that it keeps.
    """
    tags = method.promises
    return Fairness(
        class_names=tags.class_names,
        exemplars=exemplars,
        features_kept=tags.keeps_data and not exemplars,
        extra_data=tags.extra_data or None,
        towers=1 + tags.class_names + len(method.fingerprints),
    )


def fairness_sentence(results: Results) -> str | None:
    """What the method uses beside its tasks' images; None for a method with one tower that keeps no features.

    Args:
        results: of a finished run.
    """
    f = results.fairness
    if f is None:
        return None
    told = {
        f"uses class names ({f.towers} towers)": f.class_names,
        "keeps features of its training images": f.features_kept,
        f"learns from other data too: {f.extra_data}": f.extra_data is not None,
    }
    parts = [text for text, holds in told.items() if holds]
    return f"Mind in comparisons: it {', '.join(parts)}." if parts else None
