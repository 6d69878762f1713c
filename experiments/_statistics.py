"""The studies' statistics: over images by the bootstrap, over seeds by Student's t, between groups by pairs.

A summary is a dictionary: `mean`, `std` of the values, `interval`, which is half of the mean's 95 % interval, and
`count`. One of several runs speaks of images by `interval` and of seeds by `runs_interval`. Many tests at once go
through `holm`.
"""

from functools import lru_cache

import numpy as np
from scipy import optimize, stats

RESAMPLES = 1000


def over_images(values) -> dict:
    """Mean, standard deviation and half the 95 % percentile interval of the bootstrap; NaN is left out."""
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        return {"mean": float(values[0]) if count else np.nan, "std": np.nan, "interval": np.nan, "count": count}
    low, high = np.percentile(_draws(count) @ values / count, (2.5, 97.5))
    deviation = float(values.std(ddof=1))
    return {"mean": float(values.mean()), "std": deviation, "interval": float(high - low) / 2, "count": count}


@lru_cache(maxsize=4)
def _draws(count: int) -> np.ndarray:
    """How often each of the values is drawn in each resample, `[resamples, count]`."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float32)


def over_seeds(summaries: list[dict]) -> dict:
    """One summary of the `over_images` of several runs on the same images, each run counting the same.

    `std` and `interval` speak of images: their spread, and what another sample of images would change in one run.
    `runs_interval` speaks of seeds: half the 95 % interval of the mean over runs, by Student's t, and `next_run` half
    of that of one more run; `None` for one run.
    """
    means, deviations, intervals, counts = (
        np.array([each[key] for each in summaries]) for key in ("mean", "std", "interval", "count")
    )
    runs = len(summaries)
    spread = stats.t.ppf(0.975, runs - 1) * means.std(ddof=1) if runs > 1 else None
    return {
        "mean": float(means.mean()),
        "std": float(np.sqrt(np.mean(deviations**2))),
        "interval": float(np.sqrt(np.mean(intervals**2))),
        "runs_interval": None if spread is None else float(spread / np.sqrt(runs)),
        "next_run": None if spread is None else float(spread * np.sqrt(1 + 1 / runs)),
        "count": float(counts.mean()),
        "runs": runs,
    }


def effect(ones, others) -> dict:
    """How far `ones` lie above `others`: Cohen's d, and the chance that one of them is larger (AUC).

    With half of each 95 % interval; that of the AUC is DeLong's (1988, https://doi.org/10.2307/2531595).
    """
    x, y = np.asarray(ones, np.float64), np.asarray(others, np.float64)
    m, n = len(x), len(y)
    pooled = np.sqrt(((m - 1) * x.var(ddof=1) + (n - 1) * y.var(ddof=1)) / (m + n - 2))
    d = (x.mean() - y.mean()) / pooled
    ranks = stats.rankdata(np.concatenate([x, y]))
    below = (ranks[:m] - stats.rankdata(x)) / n  # the share of the others that each one exceeds; a tie is half
    above = 1 - (ranks[m:] - stats.rankdata(y)) / m  # and the share of the ones that exceed each other
    errors = {
        "cohen_d": np.sqrt(1 / m + 1 / n + d**2 / (2 * (m + n))),
        "auc": np.sqrt(below.var(ddof=1) / m + above.var(ddof=1) / n),
    }
    means = {"cohen_d": d, "auc": below.mean()}
    return {name: {"mean": float(means[name]), "interval": float(1.96 * errors[name])} for name in means}


def matched(ones, others, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of like values, as indices into `ones` and `others`: as many as there are within `tolerance`, and of all
    such sets the one with the least differences; none is in two pairs."""
    apart = np.abs(np.asarray(ones)[:, None] - np.asarray(others))
    first, second = optimize.linear_sum_assignment(np.where(apart <= tolerance, apart, 1e3))
    close = apart[first, second] <= tolerance
    return first[close], second[close]


def paired(ones, others) -> dict:
    """Of pairs: how often the first is larger (a tie is half), the mean difference, and Wilcoxon's signed-rank p."""
    ones, others = np.asarray(ones, np.float64), np.asarray(others, np.float64)
    differences = ones - others
    p = stats.wilcoxon(differences, zero_method="pratt").pvalue if differences.any() else 1.0
    larger = over_images((differences > 0) + 0.5 * (differences == 0))
    return {"larger": larger, "difference": over_images(differences), "p": float(p)}


def holm(p_values) -> np.ndarray:
    """The p-values, corrected for their number (Holm 1979): 5 % is the chance that any of those below 0.05 is there
    by lot."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def plus_minus(value: dict, digits: int = 3) -> str:
    """A summary as text: the mean and half of its interval over images."""
    return f"{value['mean']:.{digits}f} ± {value['interval']:.{digits}f}"


def with_seeds(value: dict, digits: int = 3) -> str:
    """The same, and in parentheses half of the interval over seeds, where there are several."""
    runs = value["runs_interval"]
    return plus_minus(value, digits) + ("" if runs is None else f" (± {runs:.{digits}f})")
