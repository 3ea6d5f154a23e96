#!/usr/bin/env python3
"""Checks phrasebook.tsv and prints its size.

Header and column counts; no cell empty, padded, doubled within its column, or outside Unicode NFC;
every letter and mark in the script of its column; a final punctuation mark, and a question mark
exactly where the English has one.
"""

import argparse
import sys
import unicodedata
from pathlib import Path

from prompts import COLUMNS

HEADER = ["id", "topic", *COLUMNS]
SCRIPT_RANGES = {
    "en": [(0x41, 0x5A), (0x61, 0x7A)],
    "hi": [(0x900, 0x97F)],
    "bn": [(0x980, 0x9FF)],
    "ta": [(0xB80, 0xBFF)],
    "te": [(0xC00, 0xC7F)],
    "gu": [(0xA80, 0xAFF)],
    "mr": [(0x900, 0x97F)],
    "ur": [(0x600, 0x6FF), (0x750, 0x77F)],
    "pa": [(0xA00, 0xA7F)],
    "kn": [(0xC80, 0xCFF)],
    "ml": [(0xD00, 0xD7F)],
}
COMMON_SIGNS = set(" ,.?")
# The zero-width non-joiner (U+200C) keeps Telugu and Kannada consonants from joining in loan words.
OWN_SIGNS = {
    "hi": set("।"), "bn": set("।"), "pa": set("।"), "ur": set("۔،؟"),
    "te": {"\u200c"}, "kn": {"\u200c"},
}


class PhrasebookError(ValueError):
    """The file is not a phrasebook; the message names the line or the cell."""


def require(holds, complaint):
    if not holds:
        raise PhrasebookError(complaint)


def letters(text):
    """The letters and combining marks of `text`."""
    return [c for c in text if unicodedata.category(c)[0] in "LM"]


def in_script(character, language):
    return any(low <= ord(character) <= high for low, high in SCRIPT_RANGES[language])


def read_rows(path):
    """The lines as dictionaries keyed by HEADER; raises PhrasebookError on another layout."""
    raw = Path(path).read_bytes()
    require(b"\r" not in raw and not raw.startswith(b"\xef\xbb\xbf"), "carriage return or BOM")
    lines = [line.split("\t") for line in raw.decode("utf-8").rstrip("\n").split("\n")]
    require(lines[0] == HEADER, f"line 1: the header is not {HEADER}")
    for number, cells in enumerate(lines[1:], 2):
        require(len(cells) == len(HEADER), f"line {number}: {len(cells)} columns, not {len(HEADER)}")
    return [dict(zip(HEADER, cells)) for cells in lines[1:]]


def check_layout(cell, where):
    require(cell and cell == cell.strip(), f"{where} is empty or padded")
    require("  " not in cell, f"{where} has a double space")
    require(cell == unicodedata.normalize("NFC", cell), f"{where} is not in NFC")


def check_phrase(row, language, where):
    phrase = row[language]
    signs = COMMON_SIGNS | OWN_SIGNS.get(language, set())
    require(letters(phrase), f"{where} has no letters")
    for character in phrase:
        if letters(character):
            require(in_script(character, language), f"{where}: U+{ord(character):04X} is of another script")
        else:
            require(character in signs, f"{where}: U+{ord(character):04X} is not allowed")
    require(phrase[-1] in ".?।۔؟", f"{where} has no final punctuation")
    require((phrase[-1] in "?؟") == (row["en"][-1] == "?"), f"{where}: the question mark differs from the English")


def check(path):
    """The rows of the phrasebook at `path`; raises PhrasebookError at the first thing wrong with it."""
    rows = read_rows(path)
    seen = {}
    for number, row in enumerate(rows, 2):
        for column in HEADER:
            where = f"{row['id']}/{column} {row[column]!r}"
            check_layout(row[column], where)
            if column != "topic":
                first = seen.setdefault((column, row[column]), number)
                require(first == number, f"{where} stands on line {first} too")
            if column in COLUMNS:
                check_phrase(row, column, where)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).with_name("phrasebook.tsv"))
    try:
        rows = check(parser.parse_args().path)
    except (OSError, UnicodeError, PhrasebookError) as error:
        sys.exit(f"check_phrasebook: {error}")
    topics = {row["topic"] for row in rows}
    print(f"{len(rows)} phrases in {len(COLUMNS)} languages, {len(topics)} topics")


if __name__ == "__main__":
    main()
