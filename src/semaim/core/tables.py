"""Tables as text: aligned columns for the terminal, Markdown for files and pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from semaim.core.formatting import printable

MIN_MARKDOWN_WIDTH = 3  # of a column, for the line below the header


def text_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows in columns two spaces apart; the first row is the header.

    Args:
        rows: cells of each row.
        right: indices of the columns that are aligned to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_aligned(row, widths, right)).rstrip() for row in rows)


def markdown_table(rows: Sequence[Sequence[str]], padded: bool = False) -> str:
    """Rows as a Markdown table; the first row is the header.

    Args:
        rows: cells of each row.
        padded: align the columns, so that the table is also readable as plain text.
    """
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(MIN_MARKDOWN_WIDTH, *map(len, column)) if padded else 0 for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * max(MIN_MARKDOWN_WIDTH, width) for width in widths])
    return "\n".join(f"| {' | '.join(_aligned(row, widths))} |" for row in cells)


def _aligned(row: Sequence[str], widths: Sequence[int], right: Collection[int] = ()) -> list[str]:
    sides = ((cell, widths[column], column in right) for column, cell in enumerate(row))
    return [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in sides]


def limited_markdown_table(rows: Sequence[Sequence[str]], max_characters: float, padded: bool = False) -> str:
    """A Markdown table without the last rows if it would be too long, and a line that says how many are left out.

    Args:
        rows, padded: as of `markdown_table`.
        max_characters: of the table.
    """
    shown = rows
    while len(markdown_table(shown, padded)) > max_characters and len(shown) > 1:
        shown = shown[:-1]
    omitted = len(rows) - len(shown)
    table = markdown_table(shown, padded)
    return f"{table}\n\nand {omitted} more: see results.csv among the artifacts" if omitted else table
