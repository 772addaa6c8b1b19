"""`plum export`: a checkpoint -> a folder that answers without the code of the model (`plum_jax.serving` loads it).

The folder holds StableHLO programs whose batch, prompt and span sizes are symbols, the parameters beside them, the tokenizer
and a manifest. Parameters are arguments of the programs: a 13B model has one copy of them, on disk and in memory.
"""

import json
import shutil
import time
from pathlib import Path

from plum_jax import cli, console
from plum_jax.checkpoint_flags import add_checkpoint_flags, check_random
from plum_jax.errors import UserError
from plum_jax.run_record import RunRecord, sha256_of, versions, write_json
from plum_jax.serving.manifest import CALIBRATION, FORMAT, MANIFEST, PARAMETERS, TOKENIZER, files_of

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv=None):
    """Entry point of `plum export`."""
    parser = cli.Parser(prog="plum export", description="Write a checkpoint as programs and parameters for serving.")
    add_checkpoint_flags(parser, default="tiny")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--int8", action="store_true", help="language model in int8, see docs/serving.md")
    parser.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="of an answer, unless a call says other")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), help="comma-separated (default: %(default)s)")
    args = parser.parse_args(argv)
    console.check_out(args.out)
    check_new(args.out)
    platforms = parse_platforms(args.platforms)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: is too small; give 1 or more")

    from plum_jax.evaluation import calibration
    from plum_jax.loading import load_model
    from plum_jax.quantize import quantize_model

    console.header("export", args.out)
    loaded = load_model(args.checkpoint, base=args.base, which=args.which)
    if loaded.config.model.get("grounding", "span") != "span":
        raise UserError(
            f"{loaded.path}: has a <seg> token and no span tagger, which exports have no program for; export a span model"
        )
    check_random(loaded, args.allow_random)
    curve = calibration.load(calibration.place_of(loaded.path), loaded.sha256)
    loaded = quantize_model(loaded) if args.int8 else loaded
    if args.max_new_tokens is not None:
        loaded.config.eval.max_new_tokens = args.max_new_tokens
    with RunRecord(args.out, "export", loaded.config) as run:
        run.note(checkpoint={"path": loaded.path, "sha256": loaded.sha256}, platforms=platforms, int8=args.int8)
        began = time.monotonic()
        manifest = export(loaded, args.out, platforms, curve)
    size = console.size(sum(path.stat().st_size for path in map(Path(args.out).joinpath, manifest["files"])))
    took = console.duration(time.monotonic() - began)
    print(f"Wrote {args.out} in {took}: {len(manifest['programs'])} programs, {size} in all")
    print(f'Next: python -c \'import plum_jax.serving as s; print(s.load("{args.out}")("photo.jpg", "What is this?").text)\'')


def check_new(out):
    """UserError when the folder holds an exported model already, or files that are not of an export that stopped."""
    known = {MANIFEST, TOKENIZER, CALIBRATION, "run.json"}
    out = Path(out)
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = lambda name: name in known or name.startswith(PARAMETERS) or name.endswith(".stablehlo")  # noqa: E731
    other = [name for name in found if not ours(name)]
    if found and (MANIFEST in found or other or not _stopped(out)):
        shown = (other or [name for name in found if name == MANIFEST] or found)[0]
        raise UserError(f"{out}: holds {shown} already; give another --out or delete the folder")


def _stopped(out):
    """Whether run.json says that an export began here: only then are its parameters and tokenizer ours to replace."""
    try:
        return json.loads((out / "run.json").read_text(encoding="utf-8"))["command"] == "export"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def parse_platforms(text):
    """'cpu,cuda' -> list without repetition. UserError for another word."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    wrong = [word for word in words if word not in PLATFORMS]
    if wrong or not words:
        raise UserError(f"--platforms {(wrong or [text])[0]!r}: is not known; use {', '.join(PLATFORMS)} with commas")
    return words


def export(loaded, out, platforms=PLATFORMS, curve=None):
    """Writes the folder; the manifest comes last, so that a folder without one is an export that did not finish.

    Args:
      loaded: LoadedModel. out: folder. platforms: of jax. curve: Calibration of the scores, or None.

    Returns:
      The manifest, a dictionary.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    from plum_jax.evaluation import calibration
    from plum_jax.serving.programs import describe, export_programs

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out / TOKENIZER, *out.glob(f"{PARAMETERS}*")):  # of an export that was stopped; Orbax adds to the name
        shutil.rmtree(folder, ignore_errors=True)
    described = {}
    for name, program, exported in export_programs(loaded, platforms):
        (out / f"{name}.stablehlo").write_bytes(exported.serialize())
        described[name] = describe(f"{name}.stablehlo", program, exported)
    params = jax.tree.map(jax.numpy.asarray, loaded.params)
    ocp.save_checkpointables((out / PARAMETERS).absolute(), dict(params=params))
    loaded.tokenizer.save_pretrained(out / TOKENIZER)
    if curve is not None:
        calibration.save(curve, out)
    manifest = make_manifest(loaded, platforms, described)
    manifest["calling_convention"] = exported.calling_convention_version
    manifest["files"] = {name: sha256_of(out / name) for name in files_of(out)}
    write_json(out / MANIFEST, manifest)
    return manifest


def make_manifest(loaded, platforms, described):
    """All of the manifest that does not depend on the files."""
    from flax.traverse_util import flatten_dict

    from data_pipelines.conversation import END, IMAGE, render
    from data_pipelines.tokenizer import IMAGE_TOKENS

    config, tokenizer = loaded.config, loaded.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (END, *IMAGE_TOKENS)}
    arrays = {path: {"shape": list(x.shape), "dtype": x.dtype.name} for path, x in flatten_dict(loaded.params, sep="/").items()}
    return {
        "format": FORMAT,
        "programs": described,
        "symbols": "b rows, i images, t prompt tokens, m answer tokens, c cache positions, s spliced positions, n span slots",
        "platforms": list(platforms),
        "parameters": {"folder": PARAMETERS, "arrays": arrays},
        "tokenizer": TOKENIZER,
        "special_ids": {"begin": tokenizer.bos_token_id, "end": tokenizer.eos_token_id, IMAGE: 0, **ids},
        "template": render([(f"{IMAGE}\n{{prompt}}", None)], config.data.template).text,
        "max_new_tokens": int(config.eval.max_new_tokens),
        "int8": bool(config.model.llama.get("int8", False)),
        "config": json.loads(config.to_json_best_effort()),
        "checkpoint": {"sha256": loaded.sha256, "step": loaded.step},
        "versions": versions(),
    }


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
