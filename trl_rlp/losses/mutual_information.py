"""Lower bounds on the mutual information of two views. Each bound is a function of a score matrix only."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import softplus


def jsd_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Computes the Jensen-Shannon estimate of the information between two views. RLP maximizes this estimate.

    $$I_{JSD} = E_{joint}[-softplus(-T)] - E_{product}[softplus(T)]$$

    It has low variance and an upper limit, but its value is not the mutual information in nats. Its optimum is
    `2 JSD(joint || product) - 2 ln 2`, which grows with the mutual information. To estimate nats with a critic that
    was trained on this bound, pass `scores + 1` to [`nwj_lower_bound`].

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are on the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different prompts. Defaults to all pairs off the
            diagonal.

    Returns:
        `torch.Tensor`: A scalar in nats, at most 0, higher is better. The best critic reaches -2 ln 2 = -1.386 if the
        views share nothing, and 0 if no joint pair could be a product pair. A bad critic falls below -1.386.

    Raises:
        TypeError: If `product` is not boolean.
        ValueError: If a shape is wrong, or `product` marks no pair or marks a joint pair.

    Relations:
        With one joint pair per row, the bound is minus the sum of two binary cross-entropies of joint against product.
        Each is averaged over its own pairs, so the joint and the product pairs have equal weight, although there are
        many more product pairs.

    Reference:
        The Jensen-Shannon estimator of [Hjelm et al. 2019](https://arxiv.org/abs/1808.06670), as in [the code of
        Federici et al.
        2020](https://github.com/mfederici/Multi-View-Information-Bottleneck/blob/72ce0aa291054d4070f316213594563d838c4c89/utils/modules.py).
        That code uses one product pair per row. This function uses all.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import jsd_lower_bound
    >>> round(jsd_lower_bound(torch.zeros(4, 4)).item(), 4)
    -1.3863

    ```
    """
    product = _build_product_mask(scores, product)
    joint_term = -softplus(-scores.diagonal()).mean()
    return joint_term - softplus(scores[product]).mean()


def nce_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Computes the symmetric InfoNCE bound. It measures how well each view identifies its partner in the batch.

    $$I_{NCE} = \frac{1}{2} \sum_{axes} E_i\left[T_{ii} - \ln \frac{1}{n_i} \sum_{j \in C_i} e^{T_{ij}}\right]$$

    `C_i` holds the partner and the product pairs of row `i` (for the second axis, of column `i`), and `n_i` is their
    number. Pairs that are neither joint nor product count neither in the sum nor in `n_i`. A row without product pairs
    contributes 0.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are on the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different prompts. Defaults to all pairs off the
            diagonal.

    Returns:
        `torch.Tensor`: A scalar in nats of mutual information, higher is better. It is at most `ln(batch)`, so small
        batches cannot show much information. A critic that knows nothing gives 0.

    Raises:
        TypeError: If `product` is not boolean.
        ValueError: If a shape is wrong, or `product` marks no pair or marks a joint pair.

    Relations:
        A constant added to all scores changes nothing, so the critic does not learn its offset. [`contrastive_loss`]
        is minus this bound on cosines divided by a temperature.

    Reference:
        InfoNCE of [van den Oord et al. 2018](https://arxiv.org/abs/1807.03748), as the bound of [Poole et al.
        2019](https://arxiv.org/abs/1905.06922) in [their
        notebook](https://github.com/google-research/google-research/blob/10bf941a5a0625bf27bb8443aa849e9b48fdd5f9/vbmi/vbmi_demo.ipynb).
        The notebook uses one axis. This function uses the mean of both.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import nce_lower_bound
    >>> round(nce_lower_bound(100 * torch.eye(4)).item(), 4)  # ln 4
    1.3863

    ```
    """
    candidates = _build_product_mask(scores, product) | _build_joint_mask(scores)  # (batch, batch)
    scores = scores.masked_fill(~candidates, -torch.inf)
    rows = scores.diagonal() - scores.logsumexp(dim=1) + candidates.sum(dim=1).to(scores.dtype).log()  # (batch,)
    columns = scores.diagonal() - scores.logsumexp(dim=0) + candidates.sum(dim=0).to(scores.dtype).log()  # (batch,)
    return (rows + columns).mean() / 2


def nwj_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Computes the bound of Nguyen, Wainwright and Jordan, which is unbiased but has high variance.

    $$I_{NWJ} = E_{joint}[T] - E_{product}[e^{T - 1}]$$

    It has no upper limit of `ln(batch)`, but its variance grows exponentially with the information. Trust single
    batches up to about 2 nats. The exponential is computed from a log-mean-exp. It overflows (to `-inf`) only where
    the bound itself exceeds the range of floats, near scores of 89 in fp32.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are on the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different prompts. Defaults to all pairs off the
            diagonal.

    Returns:
        `torch.Tensor`: A scalar in nats of mutual information, unlimited, higher is better. The best critic reaches 0
        if the views share nothing (`T = 1`). `T = 0` gives -1/e = -0.368.

    Raises:
        TypeError: If `product` is not boolean.
        ValueError: If a shape is wrong, or `product` marks no pair or marks a joint pair.

    Relations:
        The best critic is 1 + that of [`jsd_lower_bound`]. `nwj_lower_bound(scores + 1)` therefore estimates nats with
        a critic that was trained on the Jensen-Shannon bound.

    Reference:
        `I_NWJ` of [Poole et al. 2019](https://arxiv.org/abs/1905.06922), as in [their
        notebook](https://github.com/google-research/google-research/blob/10bf941a5a0625bf27bb8443aa849e9b48fdd5f9/vbmi/vbmi_demo.ipynb).

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import nwj_lower_bound
    >>> round(nwj_lower_bound(torch.ones(4, 4)).item(), 4)
    0.0

    ```
    """
    negatives = scores[_build_product_mask(scores, product)]  # (product pairs,)
    log_mean_exp = negatives.logsumexp(dim=0) - math.log(len(negatives))
    return scores.diagonal().mean() - (log_mean_exp - 1).exp()


LOWER_BOUNDS: dict[str, Callable[..., torch.Tensor]] = {
    "jsd": jsd_lower_bound,
    "nce": nce_lower_bound,
    "nwj": nwj_lower_bound,
}
"""Estimators of mutual information, by the name used in configurations."""

ZERO_INFORMATION: dict[str, float] = {"jsd": -2 * math.log(2), "nce": 0.0, "nwj": 0.0}
"""Value of each bound, in nats, with the best critic if the views share nothing. Log it with the estimate."""


def _build_joint_mask(scores: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)  # (batch, batch)


def _build_product_mask(scores: torch.Tensor, product: torch.Tensor | None) -> torch.Tensor:
    """Checks the given mask, or builds the default one."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"`scores` must be a square matrix, got shape {tuple(scores.shape)}. Score every first view against every "
            "second one."
        )
    joint = _build_joint_mask(scores)
    product = ~joint if product is None else product
    if product.dtype != torch.bool:
        raise TypeError(f"`product` must be a boolean mask, got `{product.dtype}`. Compare, or call `.bool()`.")
    if product.shape != scores.shape:
        raise ValueError(
            f"`product` must have the shape of `scores`, {tuple(scores.shape)}, got {tuple(product.shape)}."
        )
    if (product & joint).any():
        raise ValueError("`product` marks joint pairs (its diagonal) as product pairs. Clear its diagonal.")
    if not product.any():
        raise ValueError(f"`product` has no product pair in a batch of {len(scores)}. Pass at least two prompts.")
    return product
