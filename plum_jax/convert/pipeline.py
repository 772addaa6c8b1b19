"""The conversion itself: plan -> assignment -> streamed folder -> self-check and verification -> its name."""

import datetime
import functools
import shlex
import sys
import time

import numpy as np
from flax.traverse_util import unflatten_dict

from plum_jax import console, selfcheck
from plum_jax.base import PARTS, BaseWriter, read_slices
from plum_jax.config_io import load_config
from plum_jax.convert import build, files, verify
from plum_jax.convert.metadata import TOKENIZER_FILES, copy_tokenizer
from plum_jax.convert.plan import make_plan
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from plum_jax.partial_folder import partial_folder
from plum_jax.run_record import sha256_of, versions

MB = 1 << 20


def convert(args):
    """Writes base weights from the sources that the flags name. Returns the exit status.

    Raises:
      UserError: the sources cannot be converted, or --verify found a difference; nothing is left behind then.
    """
    began = time.monotonic()
    console.header("convert", args.out)
    plan = make_plan(args)
    model = PlumConfig.from_dict(plan.model)
    assignment = build.assign(model, plan.tensors, plan.copies, args.ignore)
    _describe(plan, assignment)
    try:
        with partial_folder(args.out) as folder:
            stored, new_rows = _write(args, plan, model, assignment, BaseWriter(folder))
    finally:
        files.close()
    count = len(assignment.jobs) + len(assignment.copies)
    print(f"{count:,} tensors read, {count:,} used, 0 left over; {stored} outputs stored, which loading checks")
    if new_rows:
        print(f"{new_rows} rows of tokens that the source does not have were drawn at random")
    print(f"Wrote {args.out} in {console.duration(time.monotonic() - began)}")
    out = shlex.quote(str(args.out))
    if assignment.missing:
        print(f"Next: plum train --config=configs/plum.py --config.base={out} --config.data.root=DIR --workdir=W")
    else:
        print(f"Next: plum predict IMAGES --checkpoint={out} --prompt='What visible parts does ... have?' --out=preds")
    return 0


def _write(args, plan, model, assignment, writer):
    """-> (number of outputs that are stored for the check after loading, number of token rows that were drawn)."""
    build.check_copies(assignment.copies)
    new_rows = _stream(model, assignment.jobs, writer, args.dtype)
    writer.commit()
    copy_tokenizer(plan.tokenizer, writer.folder / "tokenizer")
    stored = store_outputs(writer, model, assignment.missing)
    rows = _verify(plan, model, writer) if args.verify else None
    print("Hashing the sources...", flush=True)
    writer.finish(_config(args, plan), _about(args, plan, assignment, new_rows, rows))
    return stored, new_rows


def _describe(plan, assignment):
    """Prints what each source is, what stays out and why, and what starts random."""
    for flag, source in plan.sources.items():
        print(f"  {flag:<9} {source.kind:<9} {len(source.tensors):,} tensors, {source.path}")
    for flag, count in plan.replaced.items():
        print(f"  {flag} replaces {count:,} tensors of the language checkpoint")
    for reason, count in assignment.ignored.items():
        print(f"  {count:,} tensors left out: {reason}")
    for part in assignment.missing:
        print(f"  {PARTS[part]} starts random: fine for training, refused for evaluation")
    sys.stdout.flush()


def _stream(model, jobs, writer, dtype):
    total = sum(int(np.prod(job.tensor.shape)) * np.dtype(job.tensor.dtype).itemsize for job in jobs)
    done = 0
    with console.Progress(total=max(total // MB, 1), label="convert", unit="MB") as bar:

        def advance(size):
            nonlocal done
            before, done = done // MB, done + size
            bar.update(done // MB - before)

        return build.stream(model, jobs, writer, dtype, advance)


def _reader(writer):
    """(path, layers or None for all) -> array, of these layers, from the folder that is being written."""

    def take(path, layers=None):
        shape, stacked = writer.parameters[path]["shape"], writer.parameters[path]["stacked"]
        wanted = [None] if not stacked else range(shape[0]) if layers is None else layers
        found = read_slices(writer.folder / "params", writer.parameters, [(path, layer) for layer in dict.fromkeys(wanted)])
        return np.stack([found[path, layer] for layer in wanted]) if stacked else found[path, None]

    return take


def store_outputs(writer, model, missing):
    """Writes check.npz, the outputs that loading compares, from the parameters that are written -> how many there are."""
    take = _reader(writer)
    params = {path: take(path, selfcheck.layers_of(model, path)) for path in selfcheck.parameters(model, missing)}
    outputs = selfcheck.outputs(model, missing, params, chosen=True)
    np.savez(writer.folder / "check.npz", **outputs)
    return len(outputs)


def _verify(plan, model, writer):
    """Compares with PyTorch and prints the table. UserError beyond tolerance."""

    take = _reader(writer)

    def read_params(prefix, layer=None):
        if prefix in writer.parameters:
            return take(prefix, None)
        paths = [path for path in writer.parameters if path.startswith(f"{prefix}/")]
        found = {path.removeprefix(f"{prefix}/"): take(path, None if layer is None else (layer,)) for path in paths}
        return unflatten_dict(found if layer is None else {path: array[0] for path, array in found.items()}, sep="/")

    rows = verify.verify(plan.tensors, model, read_params, log=sys.stderr)
    print(verify.table(rows))
    failed = [row.group for row in rows if not row.passed]
    if failed:
        raise UserError(f"--verify: {', '.join(failed)} differ from the source; the conversion is wrong, please report it")
    return rows


def _config(args, plan):
    """The whole config of the folder: that of configs/partonomy.py around the model that was found."""
    config = load_config("partonomy.py")
    config.name = "base"
    config.model = plan.model
    config.model.dtype = "bfloat16" if args.dtype == "bf16" else "float32"
    config.tokenizer, config.base = "", ""
    return config


def _about(args, plan, assignment, new_rows, rows):
    """What base.json says beside the parameters."""
    hashed, sources = functools.cache(sha256_of), {}
    for flag, source in plan.sources.items():
        names = sorted({str(tensor.file) for tensor in source.tensors.values()})
        sources[flag] = {"kind": source.kind, "path": str(source.path), "sha256": {name: hashed(name) for name in names}}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "dtype": args.dtype,
        "sources": sources,
        "missing": assignment.missing,
        "ignored": assignment.ignored,
        "new_token_rows": new_rows,
        "tokenizer": {name: sha256_of(plan.tokenizer / name) for name in TOKENIZER_FILES if (plan.tokenizer / name).is_file()},
        "verified": None if rows is None else [row._asdict() for row in rows],
    }
