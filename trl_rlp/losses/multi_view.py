"""The representation losses of RLP's Table 4, on tensors that someone else encoded and scored."""

import torch
from torch.nn.functional import normalize

from trl_rlp.losses.mutual_information import LOWER_BOUNDS, nce_lower_bound


def product_pairs(instruction_ids: torch.Tensor) -> torch.Tensor:
    """
    Says which pairs of a batch are product pairs: those whose views come from different instructions.

    Two rows of one instruction are no product pair of each other, whichever of their outputs are paired: they do share
    something.

    Args:
        instruction_ids (`torch.Tensor` of shape `(batch,)`):
            Whole numbers, equal exactly where the instruction is the same.

    Returns:
        `torch.Tensor` of shape `(batch, batch)`: boolean, symmetric, `False` on the diagonal.

    Raises:
        ValueError: if the shape is wrong or there are fewer than two distinct instructions.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import product_pairs
    >>> product_pairs(torch.tensor([7, 7, 3])).tolist()
    [[False, False, True], [False, False, True], [True, True, False]]

    ```
    """
    if instruction_ids.ndim != 1:
        raise ValueError(f"`instruction_ids` must have shape (batch,), got {tuple(instruction_ids.shape)}.")
    different = instruction_ids[:, None] != instruction_ids[None, :]  # (batch, batch)
    if not different.any():
        raise ValueError(
            f"`instruction_ids` holds fewer than two distinct instructions in a batch of {len(instruction_ids)}, so "
            "there is no product pair. Raise the number of instructions a batch to at least 2."
        )
    return different


def gaussian_kl(
    mean_1: torch.Tensor,
    deviation_1: torch.Tensor,
    mean_2: torch.Tensor,
    deviation_2: torch.Tensor,
    reduction: str = "sum",
) -> torch.Tensor:
    r"""
    Gives the KL divergence of one diagonal Gaussian from another, in closed form.

    $$KL(N_1 \| N_2) = \sum_d \frac{1}{2}\left[\frac{\sigma_{1d}^2}{\sigma_{2d}^2} - 1
    - \ln \frac{\sigma_{1d}^2}{\sigma_{2d}^2} + \frac{(\mu_{1d} - \mu_{2d})^2}{\sigma_{2d}^2}\right]$$

    The first two terms are taken as one `expm1`, so equal Gaussians give exactly 0 and close ones nothing below it.

    Args:
        mean_1 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the first Gaussian.
        deviation_1 (`torch.Tensor` of shape `(batch, latent)`):
            σ of the first Gaussian (not its square or logarithm), greater than 0.
        mean_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the second Gaussian.
        deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            σ of the second Gaussian, greater than 0.
        reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` over the latent dimensions, the divergence itself, or their `"mean"`, which does not grow with the
            size of the latent.

    Returns:
        `torch.Tensor` of shape `(batch,)`: nats, at least 0.

    Raises:
        ValueError: if `reduction` is neither of the two.

    Reference:
        The KL term of [Federici et al. 2020](https://arxiv.org/abs/2002.07017). Their code takes one Monte Carlo
        sample; the closed form is exact and of lower variance (ours).
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f'`reduction` must be "sum" or "mean", got {reduction!r}.')
    log_ratio = 2 * (deviation_1.log() - deviation_2.log())  # (batch, latent)
    distance = ((mean_1 - mean_2) / deviation_2).square()  # (batch, latent)
    kl = (log_ratio.expm1() - log_ratio + distance) / 2  # (batch, latent)
    return kl.sum(dim=-1) if reduction == "sum" else kl.mean(dim=-1)


def symmetric_kl(
    mean_1: torch.Tensor,
    deviation_1: torch.Tensor,
    mean_2: torch.Tensor,
    deviation_2: torch.Tensor,
    reduction: str = "sum",
) -> torch.Tensor:
    r"""
    Gives the mean of the two KL divergences between two diagonal Gaussians.

    $$D_{SKL}(N_1 \| N_2) = \frac{1}{2} [KL(N_1 \| N_2) + KL(N_2 \| N_1)]$$

    Args:
        mean_1, deviation_1, mean_2, deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ and σ of both Gaussians, as [`gaussian_kl`] takes them.
        reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` over the latent dimensions.

    Returns:
        `torch.Tensor` of shape `(batch,)`: nats, at least 0. The same when the Gaussians change places.

    Raises:
        ValueError: if `reduction` is neither of the two.

    Reference:
        `D_SKL` of [Lang et al. 2024](https://arxiv.org/abs/2403.19279) and [Federici et al.
        2020](https://arxiv.org/abs/2002.07017).
    """
    forward = gaussian_kl(mean_1, deviation_1, mean_2, deviation_2, reduction)
    backward = gaussian_kl(mean_2, deviation_2, mean_1, deviation_1, reduction)
    return (forward + backward) / 2


def mib_loss(
    scores: torch.Tensor,
    mean_1: torch.Tensor,
    deviation_1: torch.Tensor,
    mean_2: torch.Tensor,
    deviation_2: torch.Tensor,
    product: torch.Tensor | None = None,
    estimator: str = "jsd",
    kl_weight: float = 1.0,
    kl_reduction: str = "sum",
) -> torch.Tensor:
    r"""
    Gives the multi-view information bottleneck: keep what two views share, drop what only one of them has.

    $$L_M = -I(z_1; z_2) + w D_{SKL}(p(z|v_1) \| p(z|v_2))$$

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are the diagonal.
        mean_1, deviation_1, mean_2, deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ and σ of both views, as [`gaussian_kl`] takes them.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. By default all that is off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].
        kl_weight (`float`, *optional*, defaults to `1.0`):
            `w`, at least 0. The paper writes no weight; Federici et al. call it β and raise it in training.
        kl_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` of the symmetric KL over the latent dimensions; always the mean over the batch.

    Returns:
        `torch.Tensor`: a scalar in nats, lower is better.

    Raises:
        KeyError: if `estimator` is no key of [`LOWER_BOUNDS`].
        ValueError: if `scores`, `product` or `kl_reduction` is not what the functions below take.

    Relations:
        At `kl_weight=0` it is [`mvi_loss`].

    Reference:
        `L_M` of [Lang et al. 2024](https://arxiv.org/abs/2403.19279), which is the MIB loss of [Federici et al.
        2020](https://arxiv.org/abs/2002.07017) with β = 1.
    """
    kl = symmetric_kl(mean_1, deviation_1, mean_2, deviation_2, kl_reduction)  # (batch,)
    return mvi_loss(scores, product, estimator) + kl_weight * kl.mean()


def mvi_loss(scores: torch.Tensor, product: torch.Tensor | None = None, estimator: str = "jsd") -> torch.Tensor:
    r"""
    Gives multi-view InfoMax: keep what two views share, and drop nothing.

    $$L_M = -I(z_1; z_2)$$

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. By default all that is off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].

    Returns:
        `torch.Tensor`: a scalar in nats, lower is better; minus the bound, so 0 to 2 ln 2 for `jsd` at its optimum.

    Raises:
        KeyError: if `estimator` is no key of [`LOWER_BOUNDS`].
        ValueError: if `scores` or `product` is not what the bounds take.

    Relations:
        [`mib_loss`] at `kl_weight=0`. With the estimator `nce` on cosines of μ over 0.1 it is [`contrastive_loss`].

    Reference:
        "MVI" in Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279).
    """
    return -LOWER_BOUNDS[estimator](scores, product)


def infomax_loss(
    scores_1: torch.Tensor,
    scores_2: torch.Tensor,
    product: torch.Tensor | None = None,
    estimator: str = "jsd",
) -> torch.Tensor:
    r"""
    Gives InfoMax: keep what each view says, whether the other view says it or not.

    $$L_M = -\frac{1}{2} [I(h_1; z_1) + I(h_2; z_2)]$$

    Args:
        scores_1 (`torch.Tensor` of shape `(batch, batch)`):
            `T(h1_i, z1_j)` of a critic on a hidden state and a latent of the first views.
        scores_2 (`torch.Tensor` of shape `(batch, batch)`):
            The same for the second views.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. By default all that is off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].

    Returns:
        `torch.Tensor`: a scalar in nats, lower is better.

    Raises:
        KeyError: if `estimator` is no key of [`LOWER_BOUNDS`].
        ValueError: if a score matrix or `product` is not what the bounds take.

    Relations:
        The mean of two [`mvi_loss`], each on one view's `(h, z)` in place of `(z1, z2)`; the views never meet.

    Reference:
        "InfoMax" in Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279), after [Hjelm et al.
        2019](https://arxiv.org/abs/1808.06670). RLP says "max I(v; z)"; that v enters as its hidden state is ours.
    """
    return (mvi_loss(scores_1, product, estimator) + mvi_loss(scores_2, product, estimator)) / 2


def contrastive_loss(
    mean_1: torch.Tensor,
    mean_2: torch.Tensor,
    product: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    r"""
    Gives the contrastive loss: find a view's partner in the batch by cosine, and the reverse.

    $$L_M = -I_{NCE}(T), \quad T_{ij} = \cos(\mu_{1i}, \mu_{2j}) / \tau$$

    Other outputs of the same instruction are no negatives, if `product` says so.

    Args:
        mean_1 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the first views, of any length: they are normalized here.
        mean_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the second views, row by row the partners of the first.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. By default all that is off the diagonal.
        temperature (`float`, *optional*, defaults to `0.1`):
            τ, greater than 0 (ours).

    Returns:
        `torch.Tensor`: a scalar in nats, lower is better: 0 by chance, at least `-ln(batch)`.

    Raises:
        ValueError: if `product` is not what the bound takes.

    Relations:
        The usual cross-entropy form is this plus `ln(batch)` (with a mask: plus the mean logarithm of the number of
        candidates); the gradient is the same. It is [`mvi_loss`] with the estimator `nce`, a noiseless latent and a
        cosine critic that learns nothing.

    Reference:
        "CL" in Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279), where two outputs of one instruction
        are the positive pair; the cosine, both directions and the temperature are ours.
    """
    scores = normalize(mean_1, dim=-1) @ normalize(mean_2, dim=-1).T / temperature  # (batch, batch)
    return -nce_lower_bound(scores, product)
