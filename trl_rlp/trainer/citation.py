"""What model cards cite: the paper and this package."""

from trl_rlp import __version__


PAPER = {
    "title": "Fine-Tuning Language Models with Reward Learning on Policy",
    "id": "2403.19279",
    "citation": "@inproceedings{lang2024fine, title={Fine-Tuning Language Models with Reward Learning on Policy}, "
    "author={Lang, Hao and Huang, Fei and Li, Yongbin}, booktitle={NAACL}, year={2024}}",
}
"""[Lang et al. 2024](https://arxiv.org/abs/2403.19279), in the format of the `_paper` attribute of TRL's trainers."""

HOMEPAGE = "https://huggingface.co/models?other=trl-rlp"
"""Link of this package in model cards: its homepage, or the models that were trained with it if it has none."""

PACKAGE = (
    r"@software{trl_rlp, title={trl\_rlp: Reward Learning on Policy for TRL}, author={{The trl\_rlp contributors}}, "
    f"version={{{__version__}}}, license={{Apache-2.0}}, year={{2026}}}}"
)
"""This package, as a BibTeX entry, in which LaTeX can set each underscore. CITATION.cff says the same."""
