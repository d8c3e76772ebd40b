"""The representation losses of Table 4 of the RLP paper, as functions of latents and critic scores."""

import torch
from torch.nn.functional import normalize

from trl_rlp.losses.mutual_information import LOWER_BOUNDS, nce_lower_bound


def product_pairs(prompt_indices: torch.Tensor) -> torch.Tensor:
    """
    Finds the product pairs of a batch, that is, the pairs whose views come from different prompts.

    Two rows of the same prompt are never a product pair, because their completions share information.

    Args:
        prompt_indices (`torch.Tensor` of shape `(batch,)`):
            Integers that are equal if and only if the prompt is the same.

    Returns:
        `torch.Tensor` of shape `(batch, batch)`: Boolean, symmetric, `False` on the diagonal.

    Raises:
        ValueError: If the shape is wrong or there are fewer than two distinct prompts.

    Example:

    ```python
    >>> import torch
    >>> from trl_rlp.losses import product_pairs
    >>> product_pairs(torch.tensor([7, 7, 3])).tolist()
    [[False, False, True], [False, False, True], [True, True, False]]

    ```
    """
    if prompt_indices.ndim != 1:
        raise ValueError(f"`prompt_indices` must have shape (batch,), got {tuple(prompt_indices.shape)}.")
    different = prompt_indices[:, None] != prompt_indices[None, :]  # (batch, batch)
    if not different.any():
        raise ValueError(
            f"`prompt_indices` has fewer than two distinct prompts in a batch of {len(prompt_indices)}, so there is "
            "no product pair. Put at least 2 prompts into a batch."
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
    Computes the KL divergence of one diagonal Gaussian from another, in closed form.

    $$KL(N_1 \| N_2) = \sum_d \frac{1}{2}\left[\frac{\sigma_{1d}^2}{\sigma_{2d}^2} - 1
    - \ln \frac{\sigma_{1d}^2}{\sigma_{2d}^2} + \frac{(\mu_{1d} - \mu_{2d})^2}{\sigma_{2d}^2}\right]$$

    The first two terms are computed as one `expm1`. Equal Gaussians therefore give exactly 0, and rounding never makes
    the result negative.

    Args:
        mean_1 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the first Gaussian.
        deviation_1 (`torch.Tensor` of shape `(batch, latent)`):
            Standard deviation σ of the first Gaussian (not its square or logarithm), greater than 0.
        mean_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the second Gaussian.
        deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            Standard deviation σ of the second Gaussian, greater than 0.
        reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` over the latent dimensions gives the divergence itself. `"mean"` over them does not grow with the
            size of the latent.

    Returns:
        `torch.Tensor` of shape `(batch,)`: Nats, at least 0.

    Raises:
        ValueError: If `reduction` is neither `"sum"` nor `"mean"`.

    Reference:
        The KL term of [Federici et al. 2020](https://arxiv.org/abs/2002.07017). Their code uses one Monte Carlo
        sample. The closed form is ours. It is exact and has lower variance.
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
    Computes the mean of the two KL divergences between two diagonal Gaussians.

    $$D_{SKL}(N_1 \| N_2) = \frac{1}{2} [KL(N_1 \| N_2) + KL(N_2 \| N_1)]$$

    Args:
        mean_1, deviation_1, mean_2, deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ and σ of both Gaussians, as in [`gaussian_kl`].
        reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` over the latent dimensions.

    Returns:
        `torch.Tensor` of shape `(batch,)`: Nats, at least 0. The order of the Gaussians does not matter.

    Raises:
        ValueError: If `reduction` is neither `"sum"` nor `"mean"`.

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
    Computes the loss of the multi-view information bottleneck. It keeps the information that two views share and drops
    the rest.

    $$L_M = -I(z_1; z_2) + w D_{SKL}(p(z|v_1) \| p(z|v_2))$$

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are on the diagonal.
        mean_1, deviation_1, mean_2, deviation_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ and σ of both views, as in [`gaussian_kl`].
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. Defaults to all pairs off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].
        kl_weight (`float`, *optional*, defaults to `1.0`):
            `w`, at least 0. The paper has no weight. Federici et al. call it β and increase it during training.
        kl_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"` of the symmetric KL over the latent dimensions. The batch is always averaged.

    Returns:
        `torch.Tensor`: A scalar in nats, lower is better.

    Raises:
        KeyError: If `estimator` is not a key of [`LOWER_BOUNDS`].
        ValueError: If `scores`, `product` or `kl_reduction` is invalid.

    Relations:
        With `kl_weight=0` it equals [`mvi_loss`].

    Reference:
        `L_M` of [Lang et al. 2024](https://arxiv.org/abs/2403.19279), which is the MIB loss of [Federici et al.
        2020](https://arxiv.org/abs/2002.07017) with β = 1.
    """
    kl = symmetric_kl(mean_1, deviation_1, mean_2, deviation_2, kl_reduction)  # (batch,)
    return mvi_loss(scores, product, estimator) + kl_weight * kl.mean()


def mvi_loss(scores: torch.Tensor, product: torch.Tensor | None = None, estimator: str = "jsd") -> torch.Tensor:
    r"""
    Computes the multi-view InfoMax loss. It keeps the information that two views share and drops nothing.

    $$L_M = -I(z_1; z_2)$$

    Args:
        scores (`torch.Tensor` of shape `(batch, batch)`):
            `T(z1_i, z2_j)` of a critic, any real number. Joint pairs are on the diagonal.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. Defaults to all pairs off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].

    Returns:
        `torch.Tensor`: A scalar in nats, lower is better. It is minus the bound, so it is between 0 and 2 ln 2 for
        `jsd` with the best critic.

    Raises:
        KeyError: If `estimator` is not a key of [`LOWER_BOUNDS`].
        ValueError: If `scores` or `product` is invalid.

    Relations:
        It equals [`mib_loss`] with `kl_weight=0`. With the estimator `nce` on cosines of μ divided by 0.1, it equals
        [`contrastive_loss`].

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
    Computes the InfoMax loss. It keeps the information of each view, shared with the other view or not.

    $$L_M = -\frac{1}{2} [I(h_1; z_1) + I(h_2; z_2)]$$

    Args:
        scores_1 (`torch.Tensor` of shape `(batch, batch)`):
            `T(h1_i, z1_j)` of a critic on the hidden states and the latents of the first views.
        scores_2 (`torch.Tensor` of shape `(batch, batch)`):
            `T(h2_i, z2_j)`, the same for the second views.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. Defaults to all pairs off the diagonal.
        estimator (`str`, *optional*, defaults to `"jsd"`):
            A key of [`LOWER_BOUNDS`].

    Returns:
        `torch.Tensor`: A scalar in nats, lower is better.

    Raises:
        KeyError: If `estimator` is not a key of [`LOWER_BOUNDS`].
        ValueError: If a score matrix or `product` is invalid.

    Relations:
        It is the mean of two [`mvi_loss`] values, one for each view, on `(h, z)` instead of `(z1, z2)`. The two views
        are never compared with each other.

    Reference:
        "InfoMax" in Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279), after [Hjelm et al.
        2019](https://arxiv.org/abs/1808.06670). RLP says "max I(v; z)". To use the hidden state for v is ours.
    """
    return (mvi_loss(scores_1, product, estimator) + mvi_loss(scores_2, product, estimator)) / 2


def contrastive_loss(
    mean_1: torch.Tensor,
    mean_2: torch.Tensor,
    product: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    r"""
    Computes the contrastive loss. Each view must identify its partner in the batch by their cosine, in both
    directions.

    $$L_M = -I_{NCE}(T), \quad T_{ij} = \cos(\mu_{1i}, \mu_{2j}) / \tau$$

    With a `product` mask, other completions of the same prompt do not count as negatives.

    Args:
        mean_1 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the first views. This function normalizes them.
        mean_2 (`torch.Tensor` of shape `(batch, latent)`):
            μ of the second views. Row `i` is the partner of row `i` of `mean_1`.
        product (`torch.Tensor` of shape `(batch, batch)`, *optional*):
            Boolean mask from [`product_pairs`]. Defaults to all pairs off the diagonal.
        temperature (`float`, *optional*, defaults to `0.1`):
            τ, greater than 0 (ours).

    Returns:
        `torch.Tensor`: A scalar in nats, at least `-ln(batch)`, lower is better. Chance gives 0.

    Raises:
        ValueError: If `product` is invalid.

    Relations:
        The usual cross-entropy form is this loss plus `ln(batch)`. With a mask, it is this loss plus the mean
        logarithm of the number of candidates. The gradient is the same. The loss equals [`mvi_loss`] with the
        estimator `nce`, a latent without noise and a cosine critic without learned parameters.

    Reference:
        "CL" in Table 4 of [Lang et al. 2024](https://arxiv.org/abs/2403.19279). There, two completions of one prompt
        are the positive pair. The cosine, the use of both directions and the temperature are ours.
    """
    scores = normalize(mean_1, dim=-1) @ normalize(mean_2, dim=-1).T / temperature  # (batch, batch)
    return -nce_lower_bound(scores, product)
