"""`plum convert`: PyTorch and Hugging Face checkpoints -> base weights, and back."""

import argparse
import os
import re

from plum_jax import cli, console
from plum_jax.errors import UserError

EXAMPLES = """examples:
  plum convert --plum PLUM-13B --clip clip-vit-large-patch14 --out base
  plum convert --llava llava-llama-2-13b --sam sam_vit_h_4b8939.pth --clip clip-vit-large-patch14 --out base --verify
  plum convert --checkpoint run --to plum --out PLUM-13B-mine
  plum convert --checkpoint run --to base --out base2

docs/convert.md has a command for each format, what is kept and what is refused."""


def main(argv):
    parser = cli.Parser(
        "plum convert", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must not exist")
    _add_sources(parser.add_argument_group("from PyTorch"))
    back = parser.add_argument_group("to PyTorch, or a run to base weights")
    back.add_argument("--checkpoint", metavar="C", help="run folder or base weights")
    back.add_argument(
        "--to",
        choices=("plum", "peft", "hf", "base"),
        help="merged PLUM folder, LoRA adapter, HF Llama and SAM folders; base: what another run starts from",
    )
    back.add_argument(
        "--format", choices=("safetensors", "bin"), default="safetensors", help="of the shards (default safetensors)"
    )
    args = parser.parse_args(argv)
    _check(args)
    if args.to == "base":
        from plum_jax.convert.from_run import base_from_run

        return base_from_run(args.checkpoint, args.out)
    if args.checkpoint:
        from plum_jax.convert.export import export

        return export(args.checkpoint, args.to, args.out, form=args.format)
    from plum_jax.convert.pipeline import convert

    return convert(args)


def _add_sources(group):
    add = group.add_argument
    add("--plum", metavar="PATH", help="merged PLUM folder, DeepSpeed ZeRO-2 folder or the output of zero_to_fp32.py")
    add("--llava", metavar="PATH", help="LLaVA, HF LLaVA-1.5 or HF Llama: a language model without PLUM's heads")
    add("--sam", metavar="PATH", help="sam_vit_{b,l,h}*.pth or a folder of HF SamModel; default: what --plum holds")
    add("--clip", metavar="DIR", help="folder of HF CLIP; default: what --plum or --llava holds")
    add("--adapter", metavar="DIR", help="PEFT LoRA adapter of the language model, kept apart from its weights")
    add("--merge-adapter", action="store_true", help="fold adapters into the weights, in float32")
    add("--dtype", choices=("bf16", "float32"), default="bf16", help="of the towers; heads are float32 (default bf16)")
    add("--verify", action="store_true", help="run source and result on the same inputs and compare")
    add("--tokenizer", metavar="DIR", help="default: the folder of --plum or --llava")
    add("--hf-config", metavar="FILE", help="config.json of the language model, where its folder has none")
    add("--tagger-heads", type=int, default=8, metavar="N", help="attention heads of the span tagger (default 8)")
    add("--lora-alpha", type=float, default=16.0, metavar="X", help="of adapters in a ZeRO-2 folder (default 16)")
    add("--no-feedback", action="store_true", help="leave mask feedback out, as the reference's evaluation did")
    add("--ignore", metavar="REGEX", help="tensors to leave out")


def _check(args):
    """UserError for flags that do not go together, and for an --out that exists."""
    given = [name for name in ("plum", "llava", "checkpoint") if getattr(args, name)]
    if len(given) != 1:
        raise UserError("give one of --plum, --llava (from PyTorch) or --checkpoint (to PyTorch); see plum convert --help")
    if bool(args.checkpoint) != bool(args.to):
        raise UserError("--checkpoint and --to go together: plum convert --checkpoint C --to plum|peft|hf|base --out DIR")
    of_the_other = ("sam", "clip", "adapter", "merge_adapter", "verify", "tokenizer", "hf_config", "no_feedback", "ignore")
    extra = [name for name in of_the_other if getattr(args, name)] if args.checkpoint else []
    if extra:
        raise UserError(f"--{extra[0].replace('_', '-')}: is of conversions from PyTorch; leave it out with --checkpoint")
    if args.format != "safetensors" and not args.checkpoint:
        raise UserError(f"--format {args.format}: is of exports with --checkpoint; leave it out")
    if args.ignore:
        try:
            re.compile(args.ignore)
        except re.error as error:
            raise UserError(f"--ignore {args.ignore!r}: is not a regular expression ({error}); escape it") from None
    if args.llava and not args.sam:
        raise UserError("--llava holds no mask decoder; give SAM to --sam, such as sam_vit_h_4b8939.pth")
    if args.tagger_heads < 1:
        raise UserError(f"--tagger-heads {args.tagger_heads}: is not a number of heads; give 1 or more")
    if os.path.lexists(args.out):
        raise UserError(f"{args.out}: exists already; choose another --out or remove it")
    console.check_out(args.out)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="convert"))
