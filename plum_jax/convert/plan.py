"""From the flags of `plum convert` to what will be read: sources, tensors by name, the model's sizes, the tokenizer."""

import json
from pathlib import Path
from typing import NamedTuple

from data_pipelines.tokenizer import load_tokenizer
from plum_jax.convert.adapter import merge_adapter, read_adapter
from plum_jax.convert.keys import SAM
from plum_jax.convert.sizes import model_config
from plum_jax.convert.sources import Source, open_clip, open_language, open_sam
from plum_jax.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class Plan(NamedTuple):
    sources: dict  # {flag: Source}
    tensors: dict  # {name of the table: Tensor}
    copies: list  # [(name, Tensor, name that it must equal)]
    model: dict  # the model part of a config file
    tokenizer: Path
    replaced: dict  # {flag: tensors of the language checkpoint that it takes the place of}


def make_plan(args):
    """Opens every source; reads headers only. UserError when something is missing or cannot be converted."""
    language = _language(args)
    sources, replaced = {"--plum" if args.plum else "--llava": language}, {}
    tensors = dict(language.tensors)
    adapter = _adapters(args, tensors, sources)
    copies = []
    for flag, path, prefix, opener in (("--sam", args.sam, SAM, open_sam), ("--clip", args.clip, "vision_model.", open_clip)):
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        if path:
            sources[flag] = opener(path)
            replaced[flag] = len(own)
            copies += [(name, tensor, original) for name, (tensor, original) in sources[flag].copies.items()]
        elif own:
            facts = language.facts.get("vision_config", {}) if flag == "--clip" else {}
            sources[flag] = Source(language.kind, language.path, own, facts)
        else:
            raise UserError(f"{language.path}: holds no {'CLIP vision tower' if flag == '--clip' else 'SAM'}; give one to {flag}")
        tensors.update(sources[flag].tensors)
    tokenizer = _tokenizer(args, language)
    vocab = len(load_tokenizer(tokenizer))
    whole = language._replace(tensors=tensors)
    model = model_config(whole, sources["--sam"], sources["--clip"], vocab=vocab, tagger_heads=args.tagger_heads)
    model["llama"].update(adapter)
    if args.no_feedback:
        model["feedback"] = False
    return Plan(sources, tensors, copies, model, tokenizer, {flag: count for flag, count in replaced.items() if count})


def _language(args):
    language = open_language(args.plum or args.llava, "--plum" if args.plum else "--llava")
    if args.plum and language.kind not in ("plum", "zero2"):
        raise UserError(f"{args.plum}: has no span tagger (token_to_mask_fcs), it is not PLUM; give it to --llava, with --sam and --clip")
    if args.hf_config:
        try:
            language = language._replace(facts=json.loads(Path(args.hf_config).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{args.hf_config}: cannot be read as JSON ({error}); give a config.json") from error
    return language


def _adapters(args, tensors, sources):
    """Adds or folds LoRA factors in `tensors`. -> entries of config.model.llama."""
    settings = {"lora_alpha": args.lora_alpha}
    if args.adapter:
        if any(".lora_A." in name for name in tensors):
            raise UserError(f"{args.adapter}: the language model has adapters of its own; fold them in first with --merge-adapter")
        found, rank, alpha, dropout = read_adapter(args.adapter)
        sources["--adapter"] = Source("adapter", Path(args.adapter), found, {})
        tensors.update(found)
        settings = {"lora_alpha": float(alpha), "lora_rank": rank, "lora_dropout": float(dropout)}
    if not args.merge_adapter:
        return settings
    factors = {name: tensors.pop(name) for name in list(tensors) if ".lora_A." in name or ".lora_B." in name}
    if not factors:
        raise UserError("--merge-adapter: there is no adapter to fold in; give one to --adapter, or leave the flag out")
    tensors.update(merge_adapter(tensors, factors, settings["lora_alpha"]))
    return {"lora_rank": 0}


def _tokenizer(args, language):
    folder = Path(args.tokenizer) if args.tokenizer else language.path if language.path.is_dir() else language.path.parent
    if not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise UserError(f"{folder}: holds no tokenizer.json or tokenizer.model; give the tokenizer of the language model to --tokenizer")
    return folder
