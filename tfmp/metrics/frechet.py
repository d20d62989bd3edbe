"""How far two sets of features are apart, as normal distributions."""

import numpy as np


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), of means m and covariances S (not corrected for
    the number of examples). It is 0 for equal sets, and above 0 for two finite draws from one
    distribution: compare only figures of equally many examples.

    Args:
        features: [examples, features].
        others: [examples, features]; the number of examples may differ.

    Returns:
        The distance, in squared units of the features.

    References:
        Dowson and Landau 1982, The Frechet distance between multivariate normal distributions.
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500, eq. 6.
    """
    (mean, covariance), (mean2, covariance2) = (
        (x.mean(0), np.atleast_2d(np.cov(x, rowvar=False, bias=True))) for x in (features, others)
    )
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ covariance2 @ root)
    trace = np.trace(covariance) + np.trace(covariance2) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return float(np.sum((mean - mean2) ** 2) + trace)
