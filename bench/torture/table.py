"""What became of each case, as a table."""

import dataclasses


@dataclasses.dataclass
class Bars:
    """What no case may exceed."""

    livez_s: float
    gap_factor: float
    parent_bytes: int


@dataclasses.dataclass
class Row:
    """One case. Values that were not measured are `None`: a server that is killed on purpose answers no probe."""

    item: str
    title: str
    seen: str = ""
    livez_s: float | None = None
    gap_factor: float | None = None
    parent_bytes: int | None = None
    took_s: float = 0.0
    # The case itself ends the worker that computes the stream.
    is_stream_disturbed: bool = False
    wrong: list[str] = dataclasses.field(default_factory=list)

    def judge(self, bars):
        """Adds a problem for each value over its limit."""
        if self.livez_s is not None and self.livez_s > bars.livez_s:
            self.wrong.append(f"/livez took {self.livez_s * 1000:.0f} ms, at most {bars.livez_s * 1000:.0f}")
        if self.gap_factor is not None and not self.is_stream_disturbed and self.gap_factor > bars.gap_factor:
            self.wrong.append(f"the stream paused {self.gap_factor:.1f} times as long as undisturbed, at most {bars.gap_factor:g}")
        if self.parent_bytes is not None and self.parent_bytes > bars.parent_bytes:
            self.wrong.append(f"the parent grew by {self.parent_bytes >> 20} MiB, at most {bars.parent_bytes >> 20}")


def text(rows):
    """The rows as a table for a terminal, with the problems below it."""
    head = ("item", "case", "answers", "/livez ms", "gap", "MiB", "s", "")
    cells = [head]
    for row in rows:
        livez = "" if row.livez_s is None else f"{row.livez_s * 1000:.0f}"
        gap = "" if row.gap_factor is None else f"{row.gap_factor:.1f}"
        grown = "" if row.parent_bytes is None else str(row.parent_bytes >> 20)
        cells.append((row.item, row.title, row.seen[:60], livez, gap, grown, f"{row.took_s:.1f}", "WRONG" if row.wrong else "ok"))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"{row.item} {row.title}: {wrong}" for row in rows for wrong in row.wrong]
    return "\n".join(lines)
