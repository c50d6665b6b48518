"""Two models on the same pairs: how much more often one is right than the other, and what that is worth."""

from collections.abc import Iterator
from itertools import combinations

from musiccli.bench.stats import baselines
from musiccli.bench.stats import intervals as statistics
from musiccli.bench.stats.outcomes import Tally, metric


def every_two(
    benchmark: str, tally: Tally, subset: str, mask: object, resampling: dict
) -> Iterator[dict]:
    """`differences` of every two models that are no baselines."""
    own = [model for model in tally.models if not model.startswith(baselines.PREFIX)]
    for first, second in combinations(own, 2):
        yield from differences(benchmark, tally, subset, mask, first, second, resampling)


def differences(
    benchmark: str,
    tally: Tally,
    subset: str,
    mask: object,
    first: str,
    second: str,
    resampling: dict,
) -> Iterator[dict]:
    """How much more often `first` is right than `second` on the pairs both scored, and what that is worth.

    The interval is a paired bootstrap over prompts; McNemar's test takes the pairs one by one;
    `detectable_difference` is what a set like this one would have shown with 80% power.
    """
    other = tally.outcomes(second, mask)
    one = tally.outcomes(first, other.mask)
    other = tally.outcomes(second, one.mask)
    if not len(one):
        return
    gains = one.points - other.points
    rows = statistics.totals([gains, gains * 0 + 1], one.prompts)
    interval = statistics.bootstrap(rows, lambda sums: sums[:, 0] / sums[:, 1], **resampling)
    yield metric(
        benchmark,
        first,
        subset,
        "accuracy_difference",
        gains.mean(),
        interval,
        len(one),
        against=second,
        prompts=len(rows),
    )
    only_first, only_second = int((gains > 0).sum()), int((gains < 0).sum())
    yield metric(
        benchmark,
        first,
        subset,
        "mcnemar_p",
        statistics.mcnemar(only_first, only_second),
        None,
        len(one),
        against=second,
        only_first=only_first,
        only_second=only_second,
    )
    error = statistics.standard_error(gains, one.prompts)
    if error > 0:
        smallest = statistics.detectable(error, resampling["confidence"])
        yield metric(
            benchmark,
            first,
            subset,
            "detectable_difference",
            smallest,
            None,
            len(one),
            against=second,
        )
