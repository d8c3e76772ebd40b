"""RLP for TRL: reward learning on policy (Lang, Huang, Li, NAACL 2024, https://arxiv.org/abs/2403.19279)."""

__version__ = "0.1.0.dev0"
