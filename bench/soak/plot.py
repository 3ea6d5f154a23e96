"""A run as an SVG: memory over time with its slope, and the time to the first token."""

from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, GAP = 760, 170, 70, 50


def panel(place, title, unit, points, trend=None):
    """One figure over time, from zero up."""
    top = 50 + place * (HEIGHT + GAP)
    most = max((y for _, y in points), default=1) or 1
    end = max((x for x, _ in points), default=1) or 1
    across, up = (lambda x: LEFT + x / end * (WIDTH - LEFT - 20)), (lambda y: top + HEIGHT - y / most * HEIGHT)
    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>']
    for step in range(5):
        value = most * step / 4
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{up(value):.1f}" y2="{up(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:,.4g} {unit}</text>')
        parts.append(f'<text x="{across(end * step / 4):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{end * step / 4:.0f} s</text>')
    # One picture does not need more dots than it has pixels across.
    drawn = points[::max(1, len(points) // (WIDTH - LEFT))]
    parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="1.5" fill="#0072b2" fill-opacity="0.5"/>' for x, y in drawn]
    if trend and points:
        # The line of the median slope goes through the middle of the points.
        ordered = sorted(y - trend["per_hour"] / 3600 * x for x, y in points)
        start, rise = ordered[len(ordered) // 2], trend["per_hour"] / 3600
        parts.append(f'<line x1="{across(0):.1f}" y1="{up(start):.1f}" x2="{across(end):.1f}" y2="{up(start + rise * end):.1f}" stroke="#d55e00" stroke-width="2"/>')
    return "".join(parts)


def svg(document, samples, seen):
    def of(name, divisor=1):
        return [(at, held[name] / divisor) for at, held in samples if held[name] is not None]

    def trend(name):
        found = document["trends"][name]
        return found and {"per_hour": found["per_hour"] / 1024}

    first = [(one.at, 1000 * one.first) for one in seen if one.first]
    panels = [
        panel(0, "Anonymous memory of the parent", "MiB", of("parent_kib", 1024), trend("parent_kib")),
        panel(1, "Anonymous memory of the worker", "MiB", of("worker_kib", 1024), trend("worker_kib")),
        panel(2, "Time to the first token, faults and bursts included", "ms", first),
    ]
    height = 60 + len(panels) * (HEIGHT + GAP)
    title = f"eka {document['commit']}: {document['seconds']:.0f} s of mixed traffic, faults {document['faults'] or 'none'}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" '
            f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/><text x="10" y="22" font-size="16">{escape(title)}</text>{"".join(panels)}</svg>\n')
