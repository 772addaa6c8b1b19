"""What the commands that run a trained model share: its flags, its config with what they may change, the devices."""

import sys

from plum_jax import config_io
from plum_jax.errors import UserError


def add_checkpoint_flags(parser, default=None):
    """--checkpoint, --which, --base and --allow-random, of every command that runs a trained model."""
    shown = f" (default {default})" if default else ""
    text = f"a run folder (on disk or gs://BUCKET/FOLDER), base weights of plum convert, or the word tiny{shown}"
    parser.add_argument("--checkpoint", required=default is None, default=default, help=text)
    which = "of a run folder: the newest checkpoint (default), or the one that validation during training found best"
    parser.add_argument("--which", choices=("last", "best"), default="last", help=which)
    parser.add_argument("--base", metavar="DIR", help="where the base weights of the run are now, if they have moved")
    parser.add_argument("--allow-random", action="store_true", help="run a model some of whose parts were never trained")


def check_random(loaded, allowed):
    """UserError when a part of the model is random, unless that is wanted; then one line on stderr."""
    from plum_jax.base import PARTS

    if not loaded.missing:
        return
    parts = ", ".join(PARTS[part] for part in loaded.missing)
    if not allowed:
        raise UserError(f"{loaded.path}: {parts} never trained, random; train first, or pass --allow-random")
    print(f"warning: {parts} never trained, random", file=sys.stderr)


def eval_config(saved, spec, overrides):
    """The checkpoint's config with what may differ at evaluation: a config file must be the one that was trained.

    Raises:
      UserError: the file describes another model, or an override touches the model.
    """
    if spec is None:
        config = saved.copy_and_resolve_references()
        for override in overrides:
            config_io.apply_override(config, override)
    else:
        config = config_io.load_config(spec, overrides)
    wrong = [key for key in config_io.differences(saved, config, ignore=()) if key.startswith(("model.", "tokenizer"))]
    if wrong and spec is None:
        raise UserError(f"--config.{wrong[0]}: belongs to the checkpoint and cannot be changed; leave it out")
    if wrong:
        raise UserError(f"{spec}: describes another model than the checkpoint ({wrong[0]}); leave --config out")
    return config


def local_devices(count):
    """The first `count` devices of this host, None for all. UserError when there are not so many."""
    import jax

    devices = jax.local_devices()
    if count is not None and count > len(devices):
        raise UserError(f"--devices {count}: this host has {len(devices)}; give at most so many")
    return devices[:count]
