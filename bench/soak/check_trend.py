"""Checks that scripts/soak finds what grows, and nothing where nothing does.

  python3 -B bench/soak/check_trend.py
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak.traffic import Seen  # noqa: E402
from soak.trend import buckets, percentile, slope  # noqa: E402
from soak.verdict import judge  # noqa: E402


def noisy(per_second, seed, length=2000, start=50_000):
    """Memory that grows so fast below a saw and some noise, with a spike now and then, as a worker's does."""
    pick = random.Random(seed)
    return [(at, start + per_second * at + (at % 40) * 25 + pick.gauss(0, 300) + (9000 if pick.random() < 0.02 else 0)) for at in range(length)]


def asked(at, first, wrong=None):
    one = Seen("ask", at)
    one.first, one.wrong = first, wrong
    return one


def samples(parent):
    return [(at, {"parent_kib": kib, "worker_kib": None, "files": 20, "threads": 9}) for at, kib in parent]


def main():
    found = [slope(buckets(noisy(0.0, seed))) for seed in range(200)]
    outside = sum(not low <= 0 <= high for low, _, high in found)
    assert outside <= 22, f"an interval of 95 % misses the truth {outside} times of 200"
    for seed in range(50):
        low, middle, high = slope(buckets(noisy(2.0, seed)))
        assert 0 < low <= middle <= high and abs(middle - 2) < 0.3, (low, middle, high)
    assert slope([(0, 1), (1, 2)]) is None and slope([(at, 7) for at in range(20)]) == (0, 0, 0)
    assert percentile(range(100), 99) == 99 and percentile([], 50) is None

    seen = [asked(at, 0.1) for at in range(2000)]
    assert judge(seen, samples(noisy(0.0, 1)), 2000)["wrong"] == []
    assert "parent_kib" in judge(seen, samples(noisy(2.0, 1)), 2000)["wrong"][0]
    # Five minutes: a heap with two levels, the higher one at the end; and a leak.
    levels = [(at, 21_200 + (6_800 if at % 70 > 40 or at > 180 else 0)) for at in range(300)]
    assert judge(seen, samples(levels), 300)["wrong"] == []
    assert "parent_kib" in judge(seen, samples(noisy(100.0, 1, length=300)), 300)["wrong"][0]
    slower = [asked(at, 0.1 if at < 1500 else 0.12) for at in range(2000)]
    assert "99th percentile" in judge(slower, samples(noisy(0.0, 1)), 2000)["wrong"][0]
    # Crowds that come now and then, more of them in the last quarter by chance; and a server that does get slower.
    crowd = lambda at, quarters: 0.4 if any(start <= at % 500 < start + 12 for start in quarters[at // 500]) else 0.05
    chance = [asked(at, crowd(at, {0: [50, 300], 1: [100], 2: [100], 3: [60, 160, 310]})) for at in range(2000)]
    assert judge(chance, samples(noisy(0.0, 1)), 2000)["wrong"] == []
    pick = random.Random(3)
    worse = [asked(at, pick.uniform(0.05, 0.1) * (1 + at / 4000)) for at in range(2000)]
    assert "99th percentile" in judge(worse, samples(noisy(0.0, 1)), 2000)["wrong"][0]
    lost = judge(seen + [asked(5, None, "the stream breaks off")], samples(noisy(0.0, 1)), 2000)
    assert lost["wrong"] == ["ask at 5.0 s: the stream breaks off"]
    print("soak: trends are found, and only those")


if __name__ == "__main__":
    main()
