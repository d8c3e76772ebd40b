"""Algorithm 1 on a small real model, without GPU, account or Hub: `trl-rlp quickstart`."""
