"""What a run came to, and whether that is well."""

from .trend import buckets, percentile, slope

# A figure whose slope is above nothing for certain has to come to this over the run before it counts as growth: less is
# an allocator's last pages.
LEAST_GROWTH = {"parent_kib": 1024, "worker_kib": 4096, "files": 4, "threads": 2}
# In minutes, a crowd that has just left is growth to any slope: the parent's heap then stays 6 to 9 MiB higher for as long as
# its last page is in use, falls, and rises with the next crowd. A leak of 4 KiB a request is seen in five minutes all the same.
LEAST_GROWTH_SHORT = LEAST_GROWTH | {"parent_kib": 24 << 10, "worker_kib": 24 << 10}
# Below this, the quarters have too few requests for a 99th percentile to mean anything.
LONG_S = 1800


def figures(samples, name, skip):
    return [(at, held[name]) for at, held in samples if at >= skip and held[name] is not None]


def grows(samples, name, length):
    """The slope per hour with its interval, and whether it is growth: for certain above nothing, and the floor rises too."""
    # What is filled once, such as caches and pools, is filled in the first tenth.
    points = figures(samples, name, length / 10)
    found = slope(buckets(points))
    if found is None:
        return None
    low, middle, high = (3600 * value for value in found)
    least = (LEAST_GROWTH if length >= LONG_S else LEAST_GROWTH_SHORT)[name]
    half = len(points) // 2
    # What is given back now and then is no leak.
    rises = min(held for _, held in points[half:]) - min(held for _, held in points[:half])
    grows = low > 0 and middle * length / 3600 > least and rises > least / 2
    return {"low_per_hour": low, "per_hour": middle, "high_per_hour": high, "grows": grows}


def quarter(seen, length, number, part):
    inside = [one.first for one in seen if one.kind == "ask" and one.first and number * length / 4 <= one.at < (number + 1) * length / 4]
    return percentile(inside, part)


def judge(seen, samples, length):
    """The document, whose `wrong` is empty if all is well."""
    wrong = [f"{one.kind} at {one.at:.1f} s: {one.wrong}" for one in seen if one.wrong]
    kinds = sorted({one.kind for one in seen})
    counts = {kind: {"sent": sum(one.kind == kind for one in seen), "refused": sum(one.kind == kind and one.refused for one in seen)} for kind in kinds}
    trends = {name: grows(samples, name, length) for name in LEAST_GROWTH}
    wrong += [f"{name} grows by {trend['per_hour']:.1f} an hour" for name, trend in trends.items() if trend and trend["grows"]]
    quarters = {f"p{part}": [quarter(seen, length, number, part) for number in range(4)] for part in (50, 99)}
    first, last = quarters["p99"][0], quarters["p99"][3]
    ratio = last / first if first and last else None
    if length >= LONG_S and ratio is not None and ratio > 1.1:
        wrong.append(f"the 99th percentile of the time to the first token is {ratio:.2f} of the first quarter's in the last")
    return {
        "seconds": length, "requests": counts, "resumed": sum(one.resumed > 0 for one in seen), "trends": trends,
        "ttft_s_by_quarter": quarters, "p99_last_over_first": ratio, "wrong": wrong,
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
    lines += [f"WRONG: {line}" for line in document["wrong"][:20]]
    lines.append("soak: " + ("all is well" if not document["wrong"] else f"{len(document['wrong'])} things are wrong"))
    return "\n".join(lines)
