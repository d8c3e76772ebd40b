"""The paper that model cards name."""

PAPER = {
    "title": "Fine-Tuning Language Models with Reward Learning on Policy",
    "id": "2403.19279",
    "citation": "@inproceedings{lang2024fine, title={Fine-Tuning Language Models with Reward Learning on Policy}, "
    "author={Lang, Hao and Huang, Fei and Li, Yongbin}, booktitle={NAACL}, year={2024}}",
}
"""As TRL's trainers hold theirs: https://arxiv.org/abs/2403.19279."""
