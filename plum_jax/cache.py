"""The user's cache folder: compiled programs and the checkpoint word `tiny`."""

import hashlib
import os
import platform
from pathlib import Path


def cache_dir():
    """$XDG_CACHE_HOME/plum_jax, or ~/.cache/plum_jax; not created here."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "plum_jax"


def compilation_dir():
    """Where compiled programs are kept: one folder per kind of processor.

    A program compiled for a processor with more instructions must not be loaded on one with fewer (a shared home folder).
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return cache_dir() / "compiled" / hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def enable_compilation_cache():
    """Keeps every compiled program on disk, however short its compilation; a folder set through jax's own option wins."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(compilation_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
