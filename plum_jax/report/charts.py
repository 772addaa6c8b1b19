"""Line charts as inline SVG: no library, no script, colours from the page, the numbers again in words for a screen reader."""

import math

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24


def line_chart(title, steps, values, *, log=False):
    """Finite points of a curve -> SVG as Markup; "" with fewer than two of them. Noisy curves get a smoothed line on top.

    With `log` the axis is logarithmic where the curve is positive and spans more than a factor of thirty.
    """
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log = log and min(ys) > 0 and max(ys) > 30 * min(ys)
    ticks = _log_ticks(min(ys), max(ys)) if log else _linear_ticks(min(ys), max(ys))
    scale = math.log10 if log else float
    low, high = min(scale(ticks[0]), scale(min(ys))), max(scale(ticks[-1]), scale(max(ys)))
    place_x = mapping(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    place_y = mapping(low, high, HEIGHT - BOTTOM, TOP)

    def path(series):
        return "M" + "L".join(f"{place_x(x):.1f} {place_y(scale(y)):.1f}" for x, y in zip(xs, series, strict=True))

    grid = "".join(
        f'<path class="grid" d="M{LEFT} {place_y(scale(t)):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{place_y(scale(t)) + 4:.1f}" text-anchor="end">{short(t)}</text>'
        for t in ticks
    )
    labels = "".join(
        f'<text x="{place_x(t):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{short(t)}</text>'
        for t, anchor in ((xs[0], "start"), ((xs[0] + xs[-1]) / 2, "middle"), (xs[-1], "end"))
    )
    noisy = len(ys) >= 20
    line = _smooth(ys) if noisy else ys
    lines = (f'<path class="raw" d="{path(ys)}"/>' if noisy else "") + f'<path class="line" d="{path(line)}"/>'
    end = f'<circle class="end" cx="{place_x(xs[-1]):.1f}" cy="{place_y(scale(line[-1])):.1f}" r="3"/>'
    words = f"{title}: {short(ys[0])} at step {short(xs[0])}, {short(ys[-1])} at step {short(xs[-1])}, lowest {short(min(ys))}"
    words += f", highest {short(max(ys))}" + (", logarithmic axis" if log else "")
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">'
    return Markup(f"{head}{grid}{labels}{lines}{end}</svg>")


def mapping(low, high, start, end):
    spread = (high - low) or 1.0
    return lambda value: start + (value - low) / spread * (end - start)


def _linear_ticks(low, high):
    """Three to six round numbers from below `low` to above `high`."""
    low = 0.0 if 0 <= low < 0.6 * high else low  # a curve that starts near zero shows the zero
    raw = ((high - low) or abs(high) or 1.0) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low, high):
    """Powers of ten inside the range, and 2 and 5 times them where it is short."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
    return [f * 10.0**e for e in exponents for f in factors if 0.95 * low <= f * 10.0**e <= 1.05 * high] or [low, high]


def _smooth(values):
    """Centred running mean over a twentieth of the curve; shorter at the ends."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def short(value):
    """A tick label: at most four significant digits, no exponent where a plain number is readable."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
