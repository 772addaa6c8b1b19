"""What a command shows while it runs: header, progress bar (plain lines where there is no terminal), sizes and times."""

import os
import sys
import time

from plum_jax.errors import UserError
from plum_jax.paths import check_bucket, check_local, is_remote
from plum_jax.run_record import versions

LINE_SECONDS = 5.0  # between two progress lines where there is no terminal
LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def header(command, out=None, *, device=True, stream=None):
    """Prints the command, device, versions and output folder: the first thing that every long command says.

    `device=False` is for commands that never import jax; `stream` is stdout unless the command prints JSON there.
    """
    stream = stream or sys.stdout
    print(f"plum {command}", file=stream)
    if device:
        print(f"  device    {device_line()}", file=stream)
    found = versions()
    shown = ("plum_jax", "python", "jax", "flax", "orbax-checkpoint") if device else ("plum_jax", "python", "numpy")
    print("  versions  " + ", ".join(f"{name} {found[name]}" for name in shown if name in found), file=stream)
    if out is not None:
        print(f"  output    {out}", file=stream)
    stream.flush()


def check_out(path, *, remote=False):
    """UserError when `path` cannot become, or is not, an output folder that takes files. Creates nothing.

    `remote`: whether the command can write to a bucket.
    """
    if not str(path):
        raise UserError("the output folder is an empty text; name a folder")
    if remote and is_remote(path):
        check_bucket(path)
        return
    check_local(path, f"write to one and copy it with gcloud storage cp -r FOLDER {path}")
    place = os.path.abspath(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        where = "" if os.path.abspath(path) == place else f"{place} "
        raise UserError(f"{path}: {where}is not a folder; give another output folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {place} cannot be written to; give another output folder or change its permissions")


def device_line():
    """'cpu, 2 cores; no accelerator: ...' or '8 x NVIDIA H200'. Starts the jax backend."""
    import jax

    devices = jax.devices()
    kind = devices[0].device_kind
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if devices[0].platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        virtual = f", {len(devices)} virtual devices" if len(devices) > 1 else ""
        return f"cpu, {cores} cores{virtual}{processes}; no accelerator: fine for the tiny model"
    return f"{len(devices)} x {kind}{processes}"


class Progress:
    """A bar with rate and time left on a terminal, plain lines every few seconds otherwise. Written to stderr.

        for item in Progress(items, label="scoring"): ...

        with Progress(total=950, label="train", unit="step", start=300) as bar:
            bar.update(loss=1.42)

    The rate counts from `start`, so a resumed run does not look faster than it is.
    """

    def __init__(self, items=None, *, total=None, label="", unit="it", start=0, stream=None):
        from tqdm import tqdm

        self.items, self.label, self.unit, self.start = items, label, unit, start
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.stream = stream or sys.stderr
        self.done, self.values, self.began, self.printed = start, {}, time.monotonic(), time.monotonic()
        self.bar = self.shown = None  # `shown`: the count of the last plain line
        if self.stream.isatty():
            self.bar = tqdm(total=self.total, desc=label, unit=unit, initial=start, file=self.stream, dynamic_ncols=True)

    def __iter__(self):
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
        elif self.done != self.shown and (error[0] is None or self.done > self.start):
            self._line()

    def update(self, n=1, **values):
        """Counts n more; `values` (numbers or text) are shown after the rate until they are replaced."""
        self.done += n
        self.values.update({k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items()})
        if self.bar is not None:
            if values:
                self.bar.set_postfix(self.values, refresh=False)
            self.bar.update(n)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self._line()

    def _line(self):
        from tqdm import tqdm

        self.printed, self.shown = time.monotonic(), self.done
        postfix = "".join(f", {k}={v}" for k, v in self.values.items())
        elapsed = time.monotonic() - self.began
        form = LINE_FORMAT if self.total else None
        line = tqdm.format_meter(
            self.done, self.total, elapsed, prefix=self.label, unit=self.unit, initial=self.start, postfix=postfix[2:] or None,
            bar_format=form,
        )  # fmt: skip
        print(line.strip(), file=self.stream, flush=True)


def progress(items=None, total=None, label="", unit="it"):
    """`Progress` in the shape of tqdm: iterate over what it returns, or call `.update(n, **values)`."""
    return Progress(items, total=total, label=label, unit=unit)


def only_first(max_images):
    """A line below a table that is not about all images of its split; "" where it is."""
    if max_images is None:
        return ""
    first = "first image" if max_images == 1 else f"first {max_images:,} images"
    return f"\nOnly the {first} of the split (--max-images)"


def counted(number, noun):
    """'1 image', '2,000 images'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(number):
    """1536 -> '1.5 KB'; decimal units, as disks are sold and model sizes are quoted."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds):
    """75.2 -> '1:15'; 0.84 -> '0.8 s'; 4000 -> '1:06:40'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
