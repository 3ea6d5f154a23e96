"""The results of a run and the verdict."""

import random

from .trend import buckets, percentile, slope

# A figure whose slope is above nothing for certain has to come to this over the run before it counts as growth: less is
# an allocator's last pages.
MIN_GROWTH = {"parent_kib": 1024, "worker_kib": 4096, "files": 4, "threads": 2}
# In minutes, a crowd that has just left is growth to any slope: the parent's heap then stays 6 to 9 MiB higher for as long as
# its last page is in use, falls, and rises with the next crowd. A leak of 4 KiB a request is still detected in five minutes.
MIN_GROWTH_SHORT = MIN_GROWTH | {"parent_kib": 24 << 10, "worker_kib": 24 << 10}
# Below this, the quarters have too few requests for a 99th percentile to mean anything.
LONG_S = 1800
# Crowds and lost workers come in bunches, and the 99th percentile is made of them: what is drawn again is not requests, but
# parts of a quarter.
PARTS, DRAWS = 15, 400


def figures(samples, name, skip):
    return [(at, held[name]) for at, held in samples if at >= skip and held[name] is not None]


def grows(samples, name, length):
    """The slope per hour with its interval, and whether it is growth: for certain above nothing, and the floor rises too."""
    # Caches and pools that fill once are full after the first tenth.
    points = figures(samples, name, length / 10)
    found = slope(buckets(points))
    if found is None:
        return None
    low, middle, high = (3600 * value for value in found)
    least = (MIN_GROWTH if length >= LONG_S else MIN_GROWTH_SHORT)[name]
    half = len(points) // 2
    # Memory that is returned from time to time is not a leak.
    rises = min(held for _, held in points[half:]) - min(held for _, held in points[:half])
    grows = low > 0 and middle * length / 3600 > least and rises > least / 2
    return {"low_per_hour": low, "per_hour": middle, "high_per_hour": high, "grows": grows}


def quarter(seen, length, number, part):
    inside = [one.first for one in seen if one.kind == "ask" and one.first and number * length / 4 <= one.at < (number + 1) * length / 4]
    return percentile(inside, part)


def ratio(seen, length):
    """The 99th percentile of the last quarter over that of the first, and the interval of 95 % by drawing parts of either."""
    parts = [[[] for _ in range(PARTS)] for _ in range(4)]
    for one in seen:
        if one.kind == "ask" and one.first and one.at < length:
            parts[int(4 * one.at / length)][int(4 * PARTS * one.at / length) % PARTS].append(one.first)
    def over(draw):
        first, last = (percentile([value for part in draw(parts[number]) for value in part], 99) for number in (0, 3))
        return last / first if first and last else None
    pick = random.Random(0)
    drawn = sorted(found for _ in range(DRAWS) if (found := over(lambda quarter: pick.choices(quarter, k=PARTS))))
    return over(lambda quarter: quarter), [drawn[int(0.025 * len(drawn))], drawn[int(0.975 * len(drawn))]] if drawn else None


def judge(seen, samples, length):
    """The document, whose `wrong` is empty if all is well."""
    wrong = [f"{one.kind} at {one.at:.1f} s: {one.wrong}" for one in seen if one.wrong]
    kinds = sorted({one.kind for one in seen})
    counts = {kind: {"sent": sum(one.kind == kind for one in seen), "refused": sum(one.kind == kind and one.refused for one in seen)} for kind in kinds}
    trends = {name: grows(samples, name, length) for name in MIN_GROWTH}
    wrong += [f"{name} grows by {trend['per_hour']:.1f} an hour" for name, trend in trends.items() if trend and trend["grows"]]
    quarters = {f"p{part}": [quarter(seen, length, number, part) for number in range(4)] for part in (50, 99)}
    grown, interval = ratio(seen, length) if length >= LONG_S else (None, None)
    if grown is not None and grown > 1.1 and interval[0] > 1:
        wrong.append(f"the 99th percentile of the time to the first token is {grown:.2f} of the first quarter's in the last ({interval[0]:.2f} to {interval[1]:.2f})")
    return {
        "seconds": length, "requests": counts, "resumed": sum(one.resumed > 0 for one in seen), "trends": trends,
        "ttft_s_by_quarter": quarters, "p99_last_over_first": grown, "p99_interval": interval, "wrong": wrong,
    }


def text(document):
    lines = [f"soak: {document['seconds']:.0f} s, {document['resumed']} answers went on on another worker"]
    for kind, count in document["requests"].items():
        lines.append(f"  {kind:<8} {count['sent']:>7} sent, {count['refused']} refused because the queue was full")
    for name, trend in document["trends"].items():
        if trend:
            lines.append(f"  {name:<11} {trend['per_hour']:+.1f} an hour (95 %: {trend['low_per_hour']:+.1f} to {trend['high_per_hour']:+.1f}){', GROWS' if trend['grows'] else ''}")
    for part, values in document["ttft_s_by_quarter"].items():
        shown = ", ".join("–" if value is None else f"{1000 * value:.0f}" for value in values)
        lines.append(f"  time to first token, {part}, by quarter: {shown} ms")
    if document["p99_interval"]:
        low, high = document["p99_interval"]
        lines.append(f"  the last of p99 over the first: {document['p99_last_over_first']:.2f} (95 %: {low:.2f} to {high:.2f})")
    lines += [f"WRONG: {line}" for line in document["wrong"][:20]]
    lines.append("soak: " + ("all is well" if not document["wrong"] else f"{len(document['wrong'])} things are wrong"))
    return "\n".join(lines)
