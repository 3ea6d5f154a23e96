"""Whether a figure grows: the slope of Theil and Sen, with the interval of Sen's ranks."""

import math
import statistics

# Of a normal distribution, for 95 % in the middle.
Z = 1.96


def buckets(points, most=120):
    """At most `count` points: each is the median of its neighbours."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[at:at + size] for at in range(0, len(points), size)]
    return [(statistics.median(x for x, _ in group), statistics.median(y for _, y in group)) for group in groups]


def slope(points):
    """The median slope over all pairs of points, and the interval in which it is with 95 %: (low, slope, high).

    Neither outliers nor the distribution of the noise matter (Sen 1968). None of fewer than eight points.
    """
    points = [(x, y) for x, y in points if y is not None]
    if len(points) < 8:
        return None
    slopes = sorted((y2 - y1) / (x2 - x1) for at, (x1, y1) in enumerate(points) for x2, y2 in points[at + 1:] if x2 > x1)
    n, pairs = len(points), len(slopes)
    # Kendall's S has this variance when nothing grows; values that are equal take their part away.
    equal = {}
    for _, y in points:
        equal[y] = equal.get(y, 0) + 1
    ties = sum(t * (t - 1) * (2 * t + 5) for t in equal.values())
    width = Z * math.sqrt(max(0, n * (n - 1) * (2 * n + 5) - ties) / 18)
    low, high = int((pairs - width) / 2), math.ceil((pairs + width) / 2)
    return slopes[max(0, low)], statistics.median(slopes), slopes[min(pairs - 1, high)]


def percentile(values, part):
    """The given percentile; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))] if ordered else None
