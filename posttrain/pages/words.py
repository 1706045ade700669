"""Numbers as people read them."""

from collections.abc import Mapping


def share(value: float) -> str:
    """A share as a percentage. Only exactly 0 and 1 read 0% and 100%."""
    percent = 100 * value
    if round(percent) in (0, 100) and value not in (0, 1):
        return f"{min(max(percent, 0.1), 99.9):.1f}%"
    return f"{percent:.0f}%"


def interval(entry: Mapping) -> str:
    """The interval of a share, "88-95%"; empty if there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{share(entry['low']).rstrip('%')}–{share(entry['high'])}"


def number(value: float, digits: int | None = None) -> str:
    """So many digits after the point, or else three significant ones; with a real minus sign."""
    text = f"{value:,.{digits or 0}f}" if digits is not None or abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """A time as people say it: "41 s", "3 min 12 s", "1 h 4 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
