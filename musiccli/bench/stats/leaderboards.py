"""How well the leaderboard that a reward model makes of LLMs agrees with people's.

A leaderboard has the Bradley-Terry strength of each LLM; a tie is half a win. Samples are
leaderboards of battles drawn with replacement. An LLM pair is separate where the two intervals of
its strengths, percentiles of the samples, do not overlap.

Source: Frick et al. 2024, arXiv 2410.14872, for the choice of figures, and Li et al. 2024, arXiv
2406.11939, section 3, for separability, agreement with confidence and the Brier score of pairs. The
number of samples and what a row of win rates leaves out are ours: we did not see the authors' code.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

DECIMALS = 9  # of strengths that are ranked; a fit is as good as that


def win_rates(wins: "Array") -> "Array":
    """The share of its battles with each other LLM that an LLM won; nan where there are none.

    Args:
        wins: (LLMs, LLMs), ties half a win for both.
    """
    import numpy as np

    games = wins + wins.T
    rates: Array = np.divide(wins, games, out=np.full(wins.shape, np.nan), where=games > 0)
    return rates


def row_wise_pearson(first: "Array", second: "Array") -> float | None:
    """The mean over LLMs of Pearson's correlation between their rows of win rates.

    A row needs two other LLMs in both matrices and rates that vary; None where no row has.
    """
    import numpy as np

    values = []
    for row, other_row in zip(first, second, strict=True):
        present = ~(np.isnan(row) | np.isnan(other_row))
        x, y = row[present], other_row[present]
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            values.append(np.corrcoef(x, y)[0, 1])
    return float(np.mean(values)) if values else None


def rank_correlations(first: "Array", second: "Array") -> tuple[float, float]:
    """Spearman's correlation and Kendall's tau-b of two leaderboards, (LLMs,) each.

    LLMs whose strengths differ by rounding alone are tied.
    """
    import numpy as np
    from scipy.stats import kendalltau, spearmanr

    first, second = np.round(first, DECIMALS), np.round(second, DECIMALS)
    return float(spearmanr(first, second)[0]), float(kendalltau(first, second)[0])


def separations(samples: "Array", confidence: float) -> "Array":
    """For each pair of LLMs 1 where the first is higher with confidence, -1 where lower, else 0.

    Args:
        samples: strengths, (samples, LLMs).
        confidence: of the percentile intervals.

    Returns:
        (pairs,), in the order of `numpy.triu_indices`.
    """
    import numpy as np

    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    first, second = np.triu_indices(samples.shape[1], 1)
    above = (low[first] > high[second]).astype(int)
    below = (high[first] < low[second]).astype(int)
    signs: Array = above - below
    return signs


def pair_brier(samples: "Array", people: "Array") -> float:
    """The mean squared error of the share of samples in which the higher LLM of each pair is.

    Args:
        samples: strengths by the reward model, (samples, LLMs).
        people: strengths by people's votes, (LLMs,).
    """
    import numpy as np

    first, second = np.triu_indices(len(people), 1)
    share = (samples[:, first] > samples[:, second]).mean(0)
    return float(((share - (people[first] > people[second])) ** 2).mean())
