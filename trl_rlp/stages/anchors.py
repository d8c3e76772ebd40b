"""Before step 5 of Algorithm 1: makes anchors from groups of samples of the SFT policy."""

from pathlib import Path

import numpy as np

from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.groups.equivalence import Equivalence, release_after
from trl_rlp.storage.artifacts import load_data


def make_anchors(folder: Path, groups: Path, equivalence: Equivalence, threshold: float) -> dict[str, float]:
    """
    Makes the anchors of step 5: the clear majority of each prompt. This is ours and not the paper's.

    Args:
        folder (`Path`):
            Folder for the anchors. [`SemanticAnchors.load`] loads them.
        groups (`Path`):
            Folder of [`group_samples`], with samples of π_SFT.
        equivalence ([`Equivalence`]):
            The equivalence that grouped the samples. Its model is released at the end.
        threshold (`float`):
            Threshold γ in [0, 1].

    Returns:
        `dict[str, float]`: `prompts`, the number of prompts, `anchors`, how many of them have an anchor, and
        `confidence`, the mean confidence of the anchors.

    Raises:
        ValueError: If no prompt has an anchor.
    """
    with release_after(equivalence):
        anchors = SemanticAnchors.from_samples(load_data(groups), equivalence, threshold=threshold)
    anchors.save(folder)
    columns = anchors.dataset["confidence"], anchors.dataset["anchor"]
    confidences = [confidence for confidence, anchor in zip(*columns, strict=True) if anchor is not None]
    return {"prompts": anchors.num_prompts, "anchors": len(anchors), "confidence": float(np.mean(confidences))}
