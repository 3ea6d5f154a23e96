"""The rounds as an SVG: a panel for each measure, a row for each peer, a dot for each round, a line at the median."""

from xml.sax.saxutils import escape

from .report import rounded, value

WIDTH, ROW, HEAD, GAP, COLUMNS = 400, 24, 46, 20, 2
LEFT, RIGHT = 126, 60
COLOURS = ("#0b6e4f", "#b5651d", "#4361a8", "#8a3b78", "#666666")


def text(x, y, content, **attributes):
    more = "".join(f' {name.replace("_", "-")}="{of}"' for name, of in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(content)}</text>'


def row(y, peer, values, median, scale, colour):
    """One peer's dots, from zero to the right."""
    parts = [text(LEFT - 8, y + 4, peer, text_anchor="end"), f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>']
    if median is None:
        return parts + [text(LEFT + 4, y + 4, "–")]
    at = LEFT + median * scale
    parts += [f'<circle cx="{LEFT + number * scale:.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.45"/>' for number in values]
    parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{colour}" stroke-width="3"/>')
    return parts + [text(WIDTH - RIGHT + 8, y + 4, rounded(median), font_weight="bold")]


def panel(measure, summary, rounds, peers):
    by_peer = {peer: [number for cells in rounds if (number := value(cells, peer, measure.name)) is not None] for peer in peers}
    most = max((number for values in by_peer.values() for number in values), default=0)
    scale = (WIDTH - LEFT - RIGHT) / most if most else 0
    better = "more is better" if measure.more_is_better else "less is better"
    parts = [text(0, 14, measure.title, font_weight="bold"), text(0, 30, f"{measure.unit}, {better}", fill="#666")]
    for place, peer in enumerate(peers):
        median = (summary[measure.name]["peers"][peer] or {}).get("median")
        parts += row(HEAD + place * ROW, peer, by_peer[peer], median, scale, COLOURS[place % len(COLOURS)])
    return "".join(parts)


def svg(document, measures):
    """The whole picture of a document that scripts/compare wrote."""
    summary, rounds, peers = document["summary"], document["rounds"], list(document["peers"])
    height = HEAD + len(peers) * ROW + GAP
    rows = -(-len(measures) // COLUMNS)
    panels = "".join(
        f'<g transform="translate({place % COLUMNS * (WIDTH + GAP)} {60 + place // COLUMNS * height})">{panel(measure, summary, rounds, peers)}</g>'
        for place, measure in enumerate(measures))
    title = f"eka {document['commit']}, {document['date'][:10]}: {len(rounds)} rounds in turns, {document['settings']['threads']} threads"
    width, whole = COLUMNS * (WIDTH + GAP) + GAP, 60 + rows * height + GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{GAP} 0 {width} {whole}" width="{width}" height="{whole}" '
            f'font-family="sans-serif" font-size="12"><rect x="-{GAP}" width="{width}" height="{whole}" fill="white"/>'
            f'{text(0, 24, title, font_size=16)}{text(0, 42, document["machine"]["processor"] + "; a dot is a round, a line the median", fill="#666")}'
            f'{panels}</svg>\n')
