"""What files hold -> what the page can use: a report is also asked for when something has gone wrong."""

import json
import math


def loads(text):
    """JSON, with None for what is none (NaN, infinity) and for whole numbers that nothing here counts to.

    Raises:
      ValueError: it is no JSON.
    """
    whole = lambda digits: int(digits) if len(digits) < 19 else None  # noqa: E731
    return json.loads(text, parse_constant=lambda _: None, parse_int=whole, parse_float=lambda digits: finite(float(digits)))


def finite(value):
    return value if math.isfinite(value) else None


def dictionary(value):
    return value if isinstance(value, dict) else {}


def number(value):
    """A finite number, or None: true and false are none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def pair(value):
    """Two numbers as a tuple, or None."""
    good = isinstance(value, list | tuple) and len(value) == 2 and all(number(x) is not None for x in value)
    return tuple(value) if good else None


def with_dictionaries(content, names):
    """The dictionary without those of `names` that should hold a dictionary and do not."""
    return {key: value for key, value in content.items() if key not in names or isinstance(value, dict)}
