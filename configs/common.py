"""Pieces that several experiment families share. A config is data: nothing here imports plum_jax."""


def parse_arg(arg, **defaults):
    """'size=13b,fast=1' -> a namespace of the defaults with these values, each of its default's type.

    Raises:
      ValueError: a key that has no default, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise ValueError(f"config argument {key!r} is not one of {sorted(defaults)}")
        kind = type(defaults[key])
        values[key] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
    return type("Options", (), values)
