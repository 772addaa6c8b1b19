"""`plum convert --checkpoint W --to base`: a run -> base weights, from which another run starts (stage 2 after stage 1)."""

import datetime
import shlex
import time
from pathlib import Path

from plum_jax import console, loading
from plum_jax.base import BaseWriter, is_base
from plum_jax.checkpoint import checkpoint_folder
from plum_jax.convert.keys import rules
from plum_jax.convert.metadata import TOKENIZER_FILES
from plum_jax.convert.pipeline import store_outputs
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from plum_jax.partial_folder import partial_folder
from plum_jax.run_record import sha256_of, versions


def base_from_run(path, out):
    """Writes base weights with all parameters of a run, adapters apart, each as it is stored. Returns the exit status.

    Nothing is rounded: what the run trained stays float32, and what it left as it was keeps the type of its own base. The
    optimizer's state stays behind.

    Args:
      path: run folder, one of its checkpoints/<step>, or the word tiny.

    Raises:
      UserError: it is base weights already, cannot be read, or is of another kind of model; nothing is left behind then.
    """
    began = time.monotonic()
    console.header("convert", out)
    if is_base(path):
        raise UserError(f"{path}: is base weights already; give it to --config.base as it is")
    source = checkpoint_folder(path)
    opened = loading.open_parameters(source)
    if opened.config.model.llama.get("int8", False):
        if not opened.base:
            raise UserError(f"{path}: its language model is int8, and base weights are float; give a run of float weights")
        opened.config.model.llama.int8 = False  # the weights are read from its own base, where they are exact
    model = PlumConfig.from_dict(opened.config.model)
    if model.grounding != "span":
        raise UserError(f"{path}: has a <seg> token and no span tagger, which base weights do not have; give a span model")
    out = Path(out).absolute()
    with partial_folder(out) as folder:
        writer = BaseWriter(folder)
        _write(opened, model, writer)
        stored = store_outputs(writer, model, list(opened.missing))
        _finish(opened, source, writer)
    size = console.size(sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))
    print(
        f"Wrote {out} ({size}) in {console.duration(time.monotonic() - began)}; {stored} outputs stored, which loading checks"
    )
    name = shlex.quote(str(out))
    print(f"Next: plum train --config=configs/partonomy.py --config.base={name} --config.data.root=DIR --workdir=W")
    return 0


def _write(opened, model, writer):
    found = [rule for rule in rules(model) if rule.path.partition("/")[0] not in opened.missing]
    with console.Progress(total=len(found), label="convert", unit="parameter") as bar:
        for rule in found:
            for layer, _ in rule.items():
                layers = None if layer is None else len(rule.layers)
                writer.add(rule.path, opened.take(rule.path, layer), layer, layers)
            bar.update()
    writer.commit()


def _finish(opened, source, writer):
    """The tokenizer, the config of the run as that of base weights, and base.json."""
    tokenizer = writer.folder / "tokenizer"
    opened.tokenizer.save_pretrained(tokenizer)
    model_file = Path(opened.base, "tokenizer", "tokenizer.model")
    if opened.base and model_file.is_file():
        (tokenizer / model_file.name).write_bytes(model_file.read_bytes())
    config = opened.config.copy_and_resolve_references()
    own_base = {"base": opened.base, "sha256_of_base": config.get("sha256_of_base")} if opened.base else {}
    config.update(name="base", base="", tokenizer="")
    if "sha256_of_base" in config:
        del config.sha256_of_base
    types = {about["dtype"] for about in writer.parameters.values()}
    about = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "dtype": "bf16" if "bfloat16" in types else "float32",
        "sources": {
            "--checkpoint": {"kind": "run", "path": str(source), "sha256": {str(source): sha256_of(source)}, **own_base}
        },
        "missing": list(opened.missing),
        "ignored": {},
        "new_token_rows": 0,
        "tokenizer": {name: sha256_of(tokenizer / name) for name in TOKENIZER_FILES if (tokenizer / name).is_file()},
        "verified": None,
    }
    writer.finish(config, about)
