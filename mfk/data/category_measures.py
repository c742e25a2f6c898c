"""How features correlate, and how well a division into categories fits that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mfk.core.types import describe

_MAD = 1.4826  # deviations of a normal distribution in one median absolute deviation
_LIMIT = 5.0  # deviations from the median beyond which a value counts as that far
DIGITS = 12  # of a correlation; less is rounding, which would break ties at random


def correlation_matrix(features: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """Pearson's r of features limited to 5 deviations (of the MAD) about the median, [D, D] float64.

    A feature whose MAD is zero, more than half of its values being one, is not limited. The rows are summed
    in an order of their own, so that theirs changes no bit.

    Raises:
        TypeError, ValueError: as `discover_categories`.
    """
    x = _checked(features, names)
    x = x - np.median(x, 0)
    scale = _MAD * np.median(np.abs(x), 0)
    x = x / np.where(scale > 0, scale, np.abs(x).max(0))
    x = np.where(scale > 0, np.clip(x, -_LIMIT, _LIMIT), x) + 0.0  # no negative zeros
    rows = np.ascontiguousarray(x).view(np.dtype((np.void, x.itemsize * x.shape[1])))[:, 0]
    x = x[np.argsort(rows)]
    x -= x.mean(0)
    x /= np.sqrt(np.square(x).sum(0))
    r = np.clip(np.round(x.T @ x, DIGITS), -1.0, 1.0)
    r = (r + r.T) / 2
    np.fill_diagonal(r, 1.0)
    return r


def silhouette(correlation: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette of a division at the distance 1 - |r|; features of label -1 are left out.

    0 where it says nothing: a single category, or each feature one.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    kept = labels >= 0
    r, labels = correlation[np.ix_(kept, kept)], labels[kept]
    if not 2 <= len(np.unique(labels)) < len(labels):
        return 0.0
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError(missing("scikit-learn", error)) from error
    return float(silhouette_score(distance(r), labels, metric="precomputed"))


def centroid_correlation(correlation: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|r| of each feature with each category's centroid, [D, G], and of the centroids, [G, G].

    A centroid is the mean of a category's standardised features, each with the sign of its entry in their
    first principal component. Features of label -1 belong to none.
    """
    signs = np.zeros((len(correlation), labels.max() + 1))
    for g in range(labels.max() + 1):
        members = np.flatnonzero(labels == g)
        first = np.linalg.eigh(correlation[np.ix_(members, members)])[1][:, -1]
        signs[members, g] = np.where(first < 0, -1.0, 1.0)
    with_centroids = correlation @ signs
    between = signs.T @ with_centroids
    deviation = np.sqrt(np.diag(between))
    return np.abs(with_centroids / deviation), np.abs(between / np.outer(deviation, deviation))


def distance(r: np.ndarray) -> np.ndarray:
    """Of features with the correlation r: 1 - |r|."""
    return 1.0 - np.abs(r)


def orthogonality(correlation: np.ndarray, labels: np.ndarray) -> float:
    """Largest |r| between two categories' centroids; 0 of a single category."""
    between = centroid_correlation(correlation, labels)[1]
    return float(between[np.triu_indices(len(between), 1)].max(initial=0.0))


def some(names: Sequence[str]) -> str:
    """The first of the names, for an error message."""
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def missing(package: str, error: ImportError) -> str:
    """What to say where a package cannot be imported."""
    return f"{package} is needed to find categories: pip install 'mfk[vqvae]' ({error})"


def _checked(features: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    if not isinstance(features, np.ndarray):
        raise TypeError(f"features: expected a NumPy array, got {describe(features)}")
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise ValueError(
            f"features: expected numbers [N, D], got an array of shape {features.shape}, {features.dtype}"
        )
    rows, count = features.shape
    if names is not None and len(names) != count:
        raise ValueError(f"names: expected {count}, one for each feature, got {len(names)}")
    if count < 2:
        raise ValueError(f"features: expected at least 2 features to divide, got {count}")
    if rows < 3:
        raise ValueError(f"features: expected at least 3 rows, without which nothing correlates, got {rows}")

    def said(columns: np.ndarray) -> str:
        found = np.flatnonzero(columns).tolist()
        return some([names[i] if names is not None else f"feature {i}" for i in found])

    x = features.astype(np.float64)
    strange = np.logical_not(np.isfinite(x).all(0))
    if strange.any():
        raise ValueError(f"features: expected finite numbers; not so in {said(strange)}")
    constant = np.equal(x.max(0), x.min(0))
    if constant.any():
        raise ValueError(f"features: expected none to be constant, got {said(constant)}; clean them first")
    return x
