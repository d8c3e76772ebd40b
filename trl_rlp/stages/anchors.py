"""Before step 5 of Algorithm 1: makes anchors from samples of the SFT policy."""

from pathlib import Path

from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors, prompt_key
from trl_rlp.data.argument_names import rename_arguments
from trl_rlp.data.groups.equivalence import Equivalence, release_after
from trl_rlp.stages.preferences import SETTING_NAMES
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.run_folder import SHARDS


def make_anchors(
    folder: Path, samples: Path, equivalence: Equivalence, threshold: float, groups: Path | None = None
) -> dict[str, float]:
    """
    Makes the anchors of step 5: the clear majority of each prompt. This is ours and not the paper's.

    An interrupted call resumes from the shards in the folder.

    Args:
        folder (`Path`):
            Folder for the shards of the groups, and for the anchors. [`SemanticAnchors.load`] loads them.
        samples (`Path`):
            Folder of [`sample_policy`], with samples of π_SFT.
        equivalence ([`Equivalence`]):
            Decides which completions mean the same. Its model is released at the end.
        threshold (`float`):
            Threshold γ in [0, 1].
        groups (`Path`, *optional*):
            Folder of [`group_samples`], with groups of these samples for the same threshold. They are used unless a
            prompt has several rows. Their completions are then grouped together.

    Returns:
        `dict[str, float]`: `prompts`, the number of prompts, `anchors`, how many of them have an anchor, and
        `confidence`, the mean confidence of the anchors.

    Raises:
        ValueError: If no prompt has an anchor. The message names settings of the run.
    """
    rows = load_data(samples)
    if groups is not None and len({prompt_key(prompt) for prompt in rows["prompt"]}) == len(rows):
        rows = load_data(groups)
    with release_after(equivalence), rename_arguments(SETTING_NAMES):
        anchors = SemanticAnchors.from_samples(rows, equivalence, threshold=threshold, output_dir=folder / SHARDS)
    anchors.save(folder)
    return {"prompts": anchors.num_prompts, "anchors": len(anchors), "confidence": anchors.mean_confidence}
