"""Curves in a terminal: one in braille, or several with a mark for each. The axis says where it begins and ends."""

from collections.abc import Mapping, Sequence

from posttrain.pages.words import number

_MARKS = "ox+*#@%&=~"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, four rows of two
Points = Sequence[tuple[float, float]]


def braille(points: Points, width: int = 60, height: int = 5) -> str:
    """One curve, two by four dots to a character. Several points in one column become a stroke over all of them."""
    if not points:
        return "No step was logged."
    left, right = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    if len(points) == 1 or low == high:
        return f"{number(low):>9} in {'step' if left == right else 'all steps from'} {left:g}" + (
            f" to {right:g}" if right > left else ""
        )
    columns, rows = 2 * width, 4 * height
    grid = [[0x2800] * width for _ in range(height)]

    def row(y: float) -> int:
        return round((y - low) / (high - low) * (rows - 1))

    for column in range(columns):
        a, b = (left + (right - left) * (column + edge) / columns for edge in (0, 1))
        inside = [y for x, y in points if a <= x < b or x == right and column == columns - 1]
        found = [row(y) for y in inside or [at(points, (a + b) / 2)]]
        for r in range(min(found), max(found) + 1):
            grid[height - 1 - r // 4][column // 2] |= _DOTS[3 - r % 4][column % 2]
    labels = [""] * height
    labels[0], labels[-1] = number(high), number(low)
    drawn = ("".join(map(chr, line)).replace("\u2800", " ").rstrip() for line in grid)
    body = [f"{label:>9} ┤{line}" for label, line in zip(labels, drawn, strict=True)]
    axis = f"{'':9}  {left:<{width // 2}g}{right:>{width - width // 2}g}"
    return "\n".join([*body, axis])


def chart(curves: Mapping[str, Points], width: int = 76, height: int = 15, zero: bool = True) -> str:
    """Curves in characters, with a mark for each. zero: the axis reaches to 0."""
    points = [p for curve in curves.values() for p in curve]
    if not points:
        return "No run was measured."
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = min(0.0, low) if zero else low
    high = high if high > low else low + 1
    grid = [[" "] * width for _ in range(height)]
    for mark, curve in zip(_MARKS * len(curves), curves.values(), strict=False):
        for column in range(width):
            y = at(curve, left + (right - left) * column / (width - 1))
            if y is not None:
                row = round((y - low) / (high - low) * (height - 1))
                line = grid[height - 1 - row]
                line[column] = mark if line[column] == " " else line[column]
    labels = [high - (high - low) * i / (height - 1) for i in range(height)]
    plain = high - low >= 0.05 and max(abs(high), abs(low)) < 1000
    shown = [f"{x:.2f}" if plain else f"{x:.2g}" for x in labels]
    room = max(7, *map(len, shown))
    lines = [f"{label:>{room}} |{''.join(row).rstrip()}" for label, row in zip(shown, grid, strict=True)]
    axis = f"{'':{room}} +{'-' * width}\n{'':{room + 2}}{left:<6g}{'steps':^{max(width - 12, 5)}}{right:>6g}"
    key = "   ".join(f"{mark} {name}" for mark, name in zip(_MARKS * len(curves), curves, strict=False))
    return "\n".join([*lines, axis, key])


def at(curve: Points, x: float) -> float | None:
    """The curve at x, by straight lines; None outside of it."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1] if len(curve) == 1 else None
