"""Lower bounds on the information that two views share, each a function of a score matrix and of nothing else."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import softplus


def jsd_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Gives the Jensen-Shannon estimate of the information between two views, the one that RLP maximizes.

    $$I_{JSD} = E_{joint}[-softplus(-T)] - E_{product}[softplus(T)]$$

    It is steady and never large, but it does not count nats of mutual information: its optimum is
    `2 JSD(joint || product) - 2 ln 2`, which grows with the mutual information. To read nats off the critic that it
    trains, give `scores + 1` to [`nwj_lower_bound`].

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different instructions. By default all that is off
            the diagonal.

    Returns:
        `torch.Tensor`: a scalar in nats, higher is better. -2 ln 2 = -1.386 is what the best critic reaches when the
        views share nothing, 0 when no joint pair could be a product pair; a bad critic falls below -1.386.

    Raises:
        TypeError: if `product` is not boolean.
        ValueError: if a shape is wrong, or `product` has no pair or holds a joint one.

    Relations:
        With one joint pair a row it is minus the sum of two binary cross-entropies, joint against product, each
        averaged over its own pairs, so the many product pairs weigh no more than the few joint ones.

    Reference:
        The Jensen-Shannon estimator of [Hjelm et al. 2019](https://arxiv.org/abs/1808.06670), as in [the code of
        Federici et al.
        2020](https://github.com/mfederici/Multi-View-Information-Bottleneck/blob/72ce0aa291054d4070f316213594563d838c4c89/utils/modules.py),
        which takes one product pair a row where we take all.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import jsd_lower_bound
    >>> round(jsd_lower_bound(torch.zeros(4, 4)).item(), 4)
    -1.3863

    ```
    """
    product = _checked_product(scores, product)
    joint_term = -softplus(-scores.diagonal()).mean()
    return joint_term - softplus(scores[product]).mean()


def nce_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Gives the symmetric InfoNCE bound: how well each view picks its partner out of the batch, and the reverse.

    $$I_{NCE} = \frac{1}{2} \sum_{axes} E_i\left[T_{ii} - \ln \frac{1}{n_i} \sum_{j \in C_i} e^{T_{ij}}\right]$$

    `C_i` holds the partner and the product pairs of row `i` (then of column `i`), `n_i` of them. Pairs that are
    neither joint nor product leave the sum, and `n_i` shrinks with it; a row whose only candidate is its partner
    counts as 0.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different instructions. By default all that is off
            the diagonal.

    Returns:
        `torch.Tensor`: a scalar in nats of mutual information, higher is better, at most `ln(batch)`: small batches
        cannot show much. 0 is the value of a critic that knows nothing.

    Raises:
        TypeError: if `product` is not boolean.
        ValueError: if a shape is wrong, or `product` has no pair or holds a joint one.

    Relations:
        Adding a constant to all scores changes nothing, so an offset in the critic is not learnt.
        [`contrastive_loss`] is minus this bound on cosines over a temperature.

    Reference:
        InfoNCE of [van den Oord et al. 2018](https://arxiv.org/abs/1807.03748), as the bound of [Poole et al.
        2019](https://arxiv.org/abs/1905.06922) in [their
        notebook](https://github.com/google-research/google-research/blob/10bf941a5a0625bf27bb8443aa849e9b48fdd5f9/vbmi/vbmi_demo.ipynb),
        which takes one axis where we take the mean of both.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import nce_lower_bound
    >>> round(nce_lower_bound(100 * torch.eye(4)).item(), 4)  # ln 4
    1.3863

    ```
    """
    candidates = _checked_product(scores, product) | _joint_pairs(scores)  # (batch, batch)
    scores = scores.masked_fill(~candidates, -torch.inf)
    rows = scores.diagonal() - scores.logsumexp(dim=1) + candidates.sum(dim=1).to(scores.dtype).log()  # (batch,)
    columns = scores.diagonal() - scores.logsumexp(dim=0) + candidates.sum(dim=0).to(scores.dtype).log()  # (batch,)
    return (rows + columns).mean() / 2


def nwj_lower_bound(scores: torch.Tensor, product: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Gives the bound of Nguyen, Wainwright and Jordan, unbiased but of high variance.

    $$I_{NWJ} = E_{joint}[T] - E_{product}[e^{T - 1}]$$

    It has no ceiling at `ln(batch)`, and pays with a variance that grows exponentially with the information: trust
    single batches up to about 2 nats. The exponential is taken of a log-mean-exp, so it overflows (to `-inf`) only
    where the bound itself leaves the range of floats, near scores of 89 in fp32.

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask of the product pairs, whose views come from different instructions. By default all that is off
            the diagonal.

    Returns:
        `torch.Tensor`: a scalar in nats of mutual information, higher is better, without bounds. 0 is what the best
        critic reaches when the views share nothing (`T = 1`); `T = 0` gives -1/e = -0.368.

    Raises:
        TypeError: if `product` is not boolean.
        ValueError: if a shape is wrong, or `product` has no pair or holds a joint one.

    Relations:
        The best critic is 1 + that of [`jsd_lower_bound`], so `nwj_lower_bound(scores + 1)` reads nats off a critic
        that was trained with the Jensen-Shannon bound.

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
    negatives = scores[_checked_product(scores, product)]  # (product pairs,)
    log_mean_exp = negatives.logsumexp(dim=0) - math.log(len(negatives))
    return scores.diagonal().mean() - (log_mean_exp - 1).exp()


LOWER_BOUNDS: dict[str, Callable[..., torch.Tensor]] = {
    "jsd": jsd_lower_bound,
    "nce": nce_lower_bound,
    "nwj": nwj_lower_bound,
}
"""The estimators of mutual information by the name that configurations use."""

ZERO_INFORMATION: dict[str, float] = {"jsd": -2 * math.log(2), "nce": 0.0, "nwj": 0.0}
"""The value, in nats, of each bound under the best critic when the views share nothing; log it beside the estimate."""


def _joint_pairs(scores: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)  # (batch, batch)


def _checked_product(scores: torch.Tensor, product: torch.Tensor | None) -> torch.Tensor:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"`scores` must be a square matrix, got shape {tuple(scores.shape)}. Score every first view against every "
            "second one."
        )
    joint = _joint_pairs(scores)
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
        raise ValueError(
            f"`product` has no product pair in a batch of {len(scores)}. Bring at least two different instructions."
        )
    return product
