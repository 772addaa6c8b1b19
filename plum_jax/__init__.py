"""PLUM in JAX: a multimodal model that answers in words and grounds object parts with masks."""

__version__ = "0.1.0"


def __getattr__(name):
    """`plum_jax.load` is imported on first use, so that importing the package starts no backend."""
    if name == "load":
        from plum_jax.inference import load

        return load
    raise AttributeError(f"module 'plum_jax' has no attribute {name!r}")
