"""The paper that model cards cite."""

PAPER = {
    "title": "Fine-Tuning Language Models with Reward Learning on Policy",
    "id": "2403.19279",
    "citation": "@inproceedings{lang2024fine, title={Fine-Tuning Language Models with Reward Learning on Policy}, "
    "author={Lang, Hao and Huang, Fei and Li, Yongbin}, booktitle={NAACL}, year={2024}}",
}
"""[Lang et al. 2024](https://arxiv.org/abs/2403.19279), in the format of the `_paper` attribute of TRL's trainers."""
