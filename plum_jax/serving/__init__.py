"""A model as a folder of programs and parameters: `plum export` writes it, `plum_jax.serving.load` runs it."""


def __getattr__(name):
    """`plum_jax.serving.load` is imported on first use, so that the help of `plum export` starts no backend."""
    if name == "load":
        from plum_jax.serving.runtime import load

        return load
    raise AttributeError(f"module 'plum_jax.serving' has no attribute {name!r}")
