"""Times in turns, operations, memory and peak rates: what benchmarks of the model report about a program."""

import os
import platform
import re
import resource
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plum_jax.planning.flops import count_flops
from plum_jax.run_record import versions

PEAKS = (  # jax's name of a device -> bf16 FLOP/s of dense products, from data sheets
    (r"H100|H200|GH200", 989e12),
    (r"A100", 312e12),
    (r"TPU v6", 918e12),
    (r"TPU v5 lite|TPU v5e", 197e12),
    (r"TPU v5", 459e12),
    (r"TPU v4", 275e12),
)


DISTURBS = 0.1  # share of the processors that others may have before times by the clock mislead
PAUSE = 0.01  # seconds between two runs: threads that wait for work spin for some milliseconds, on the cores of the next


class Times(NamedTuple):
    """Seconds of repeated runs."""

    median: float
    least: float
    spread: float  # distance between the quartiles, as a share of the median
    processor: float  # median of the processor time of all threads of this process, those that wait in a loop included

    @classmethod
    def of(cls, runs):
        """[(seconds by the clock, seconds of processor time)]"""
        seconds, processor = zip(*runs, strict=True)
        middle = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (middle,) * 3
        return cls(middle, min(seconds), (high - low) / middle, statistics.median(processor))


def in_turns(functions, *, repeats, warmup):
    """{name: function that ends when its work is done} -> {name: Times}.

    They take turns, forwards and backwards, so that all see the same noise of the machine.
    """
    for _ in range(warmup):
        for run in functions.values():
            run()
    runs = {name: [] for name in functions}
    for i in range(repeats):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
            time.sleep(PAUSE)
            begin, busy = time.perf_counter(), time.process_time()
            functions[name]()
            runs[name].append((time.perf_counter() - begin, time.process_time() - busy))
    return {name: Times.of(x) for name, x in runs.items()}


def ratios(times, other, ours):
    """Time of `other` for one of `ours`: of the medians, of the least times, and of the median processor times.

    The last says what a busy machine does not disturb, where both run on one core: `taskset -c 0 python -m tools.bench_model`.
    """
    a, b = times[other], times[ours]
    return {
        "ratio": a.median / b.median, "ratio_of_least": a.least / b.least,
        "ratio_of_processor_time": a.processor / b.processor,
    }  # fmt: skip


def operations(function, *args):
    """FLOPs of one run over all devices, from its jaxpr.

    The program is traced for float32 arrays, for which attention is written out in matrix products: a fused kernel shows none.
    """

    def wide(x):
        dtype = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return count_flops(jax.make_jaxpr(function)(*jax.tree.map(wide, args)))


def compile_program(function, *args):
    """Jitted function -> (compiled program, seconds, bytes that a device needs for it or None)."""
    begin = time.perf_counter()
    program = function.lower(*args).compile()
    seconds, used = time.perf_counter() - begin, program.memory_analysis()
    if used is None:
        return program, seconds, None
    need = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    return program, seconds, need


def products(dtype):
    """-> (function that multiplies two square matrices on one device, its FLOPs): what the device does at best."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((side, side), 0.01, dtype)
    multiply = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(multiply(a, a)), 2 * side**3


def nominal_peak(kind):
    """jax's name of a device -> bf16 FLOP/s, None where PEAKS does not have it."""
    return next((peak for name, peak in PEAKS if re.search(name, kind)), None)


class Peak(NamedTuple):
    """FLOP/s of all devices together."""

    nominal: float | None  # of the data sheet, for bf16; None where there is none
    products: float  # of large matrix products, measured in the same rounds

    @classmethod
    def of(cls, seconds, flops):
        """Seconds and FLOPs of `products`. Virtual devices of a CPU share its cores."""
        device = jax.devices()[0]
        count = 1 if device.platform == "cpu" else jax.device_count()
        nominal = nominal_peak(device.device_kind)
        return cls(nominal and nominal * count, flops / seconds * count)

    def shares(self, rate):
        """FLOP/s -> {"mfu", "of_products"}; mfu is of the nominal rate, of `products` where there is none."""
        return {"mfu": rate / (self.nominal or self.products), "of_products": rate / self.products}


def rates(flops, times, product, product_flops):
    """What a run of so many FLOPs reaches: per second, and as shares of the peak.

    `of_products_by_processor_time` compares FLOPs for a second of processor time: for a CPU that others use too.
    """
    rate, peak = flops / times.median, Peak.of(product.median, product_flops)
    busy = flops / times.processor / (product_flops / product.processor) if jax.default_backend() == "cpu" else None
    return {
        "flops": flops, "flops_per_second": rate, **peak.shares(rate), "of_products_by_processor_time": busy,
        "peak": peak._asdict(),
    }  # fmt: skip


def peak_memory():
    """Most bytes that this process has held: on each local device where it counts them, else in the memory of the host."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return {"device_bytes": max(x["peak_bytes_in_use"] for x in stats)}
    unit = 1 if platform.system() == "Darwin" else 1024
    return {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


class Others:
    """What other programs take of this machine's processors from now on, and what a host of virtual machines takes of them."""

    def __init__(self):
        self.start = self._now()

    @staticmethod
    def _now():
        """Seconds: (by the clock, processor time of all programs, of this one); None where the system does not count them."""
        path = Path("/proc/stat")
        if not path.is_file():
            return None
        total = path.read_text(encoding="ascii").partition("\n")[0].split()[1:]  # of all processors, in ticks
        user, nice, system, _, _, irq, softirq, steal = map(int, total[:8])
        used = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), used, time.process_time()

    def share(self):
        """Share of all processors since the start, 0 to 1; None where the system does not say."""
        if self.start is None:
            return None
        clock, used, ours = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return max(0.0, used - ours) / (clock * os.cpu_count())


def disturbed(machine):
    """A line about other programs that ran beside the benchmark of this `machine`; "" where they did little, and where the
    devices are not the processor."""
    others = machine["others"]
    if machine["device"] != "cpu" or others is None or others < DISTURBS:
        return ""
    return (
        f"Other programs had {others:.0%} of the processors: times by the clock, and what is made of them, mislead; see "
        "ratio_of_processor_time and of_products_by_processor_time of a run on one core."
    )


def machine(mesh, note):
    """What the figures depend on."""
    path, found = Path("/proc/cpuinfo"), versions()
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "mesh": dict(mesh.shape),
        "processor": processor, "cores": cores, "note": note,
        "versions": {name: found[name] for name in ("python", "jax", "jaxlib", "transformers") if name in found},
    }  # fmt: skip
