"""Small drawings for the page of features, as SVG: a histogram beside its reference, a line of what was."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 132, 34
"""Of a drawing, in pixels."""
_GAP = 2


def histogram(now: Sequence[float], reference: Sequence[float], said: str) -> str:
    """Bars of the shares now, and a line over each of what it was in the reference; the last bin is nulls.

    Args:
        said: the same for who cannot see it.
    """
    top = max([*now, *reference, 1e-9])
    width = (WIDTH - _GAP * (len(now) - 1)) / max(len(now), 1)
    parts = []
    for place, share in enumerate(now):
        left, high = place * (width + _GAP), share / top * (HEIGHT - 2)
        kind = "nulls" if place == len(now) - 1 else "bar"
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{HEIGHT - high:.1f}" width="{width:.1f}" height="{high:.1f}"/>'
        )
        if place < len(reference):
            at = HEIGHT - reference[place] / top * (HEIGHT - 2)
            parts.append(f'<line class="before" x1="{left:.1f}" x2="{left + width:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
    return _svg(parts, said)


def sparkline(values: Sequence[float | None], said: str, limit: float | None = None) -> str:
    """A line through what a number was at each check, its last point marked; gaps where it was not known.

    Args:
        limit: drawn across, if given.
    """
    known = [value for value in values if value is not None]
    if not known:
        return '<span class="dim">no history yet</span>'
    shown = known if limit is None else [*known, limit]
    low, high = min(shown), max(shown)
    room = (high - low) or 1.0
    step = (WIDTH - 8) / max(len(values) - 1, 1)

    def at(place: int, value: float) -> tuple[float, float]:
        return 4 + place * step, HEIGHT - 4 - (value - low) / room * (HEIGHT - 8)

    parts, line = [], ""
    if limit is not None:
        y = at(0, limit)[1]
        parts.append(f'<line class="limit" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for place, value in enumerate(values):
        if value is None:
            continue
        x, y = at(place, value)
        begun = place > 0 and values[place - 1] is not None
        line += f"{'L' if begun else 'M'}{x:.1f} {y:.1f}"
    last = max(place for place, value in enumerate(values) if value is not None)
    x, y = at(last, known[-1])
    parts += [f'<path class="line" d="{line}"/>', f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>']
    return _svg(parts, said)


def _svg(parts: Sequence[str], said: str) -> str:
    return (
        f'<svg role="img" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{escape(said)}</title>{''.join(parts)}</svg>"
    )
