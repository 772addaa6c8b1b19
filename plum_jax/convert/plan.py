"""From the flags of `plum convert` to what will be read: sources, tensors by name, the model's sizes, the tokenizer."""

from pathlib import Path
from typing import NamedTuple

from data_pipelines.tokenizer import load_tokenizer
from plum_jax.convert.adapter import Adapter, merge_adapter, read_adapter
from plum_jax.convert.keys import SAM
from plum_jax.convert.metadata import TOKENIZER_FILES
from plum_jax.convert.sizes import model_config
from plum_jax.convert.sources import Source, open_clip, open_language, open_sam, read_config
from plum_jax.errors import UserError

LORA_DROPOUT = 0.05  # of the reference (M 7.2), where no adapter_config.json says another


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
    lora = _adapters(args, tensors, sources)
    copies = []
    towers = ("--sam", args.sam, SAM, open_sam), ("--clip", args.clip, "vision_model.", open_clip)
    for flag, path, prefix, opener in towers:
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        if path and own and flag == "--sam":
            raise UserError(f"{path}: {language.path} holds its own SAM, whose decoder was trained; leave --sam out")
        if path:
            sources[flag] = opener(path)
            replaced[flag] = len(own)
            copies += [(name, tensor, original) for name, (tensor, original) in sources[flag].copies.items()]
        elif own:
            facts = language.facts.get("vision_config", {}) if flag == "--clip" else {}
            sources[flag] = Source(language.kind, language.path, own, facts)
        else:
            raise UserError(
                f"{language.path}: holds no {'CLIP vision tower' if flag == '--clip' else 'SAM'}; give one to {flag}"
            )
        tensors.update(sources[flag].tensors)
    tokenizer = _tokenizer(args, language)
    vocab = len(load_tokenizer(tokenizer))
    whole = language._replace(tensors=tensors)
    model = model_config(whole, sources["--sam"], sources["--clip"], vocab=vocab, lora=lora, tagger_heads=args.tagger_heads)
    _check_vocabulary(tokenizer, language)
    if args.no_feedback:
        model["feedback"] = False
    return Plan(sources, tensors, copies, model, tokenizer, {flag: count for flag, count in replaced.items() if count})


def _language(args):
    language = open_language(args.plum or args.llava, "--plum" if args.plum else "--llava")
    if args.plum and language.kind not in ("plum", "zero2"):
        raise UserError(
            f"{args.plum}: has no span tagger (token_to_mask_fcs), it is not PLUM; give it to --llava, with --sam and --clip"
        )
    if args.hf_config:
        language = language._replace(facts=read_config(Path(args.hf_config)))
    return language


def _adapters(args, tensors, sources):
    """Adds or folds LoRA factors in `tensors`. -> entries of config.model.llama."""
    own = {name: tensors[name] for name in tensors if ".lora_A." in name or ".lora_B." in name}
    if args.adapter and own:
        raise UserError(
            f"{args.adapter}: the language model has adapters of its own; fold those in first, with --merge-adapter"
        )
    if args.adapter:
        adapter = read_adapter(args.adapter)
        sources["--adapter"] = Source("adapter", Path(args.adapter), adapter.tensors, {})
    elif own:
        rank = next(tensor.shape[0] for name, tensor in own.items() if ".lora_A." in name)
        adapter = Adapter(own, rank, args.lora_alpha, LORA_DROPOUT)
    elif args.merge_adapter:
        raise UserError("--merge-adapter: there is no adapter to fold in; give one to --adapter, or leave the flag out")
    else:
        return {"lora_rank": 0, "lora_alpha": args.lora_alpha, "lora_dropout": LORA_DROPOUT}
    if args.merge_adapter:
        for name in own:
            del tensors[name]
        tensors.update(merge_adapter(tensors, adapter))
    else:
        tensors.update(adapter.tensors)
    rank = 0 if args.merge_adapter else adapter.rank
    return {"lora_rank": rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout}


def _check_vocabulary(folder, language):
    """UserError for a tokenizer of another model: some of its words would have no rows in the token table."""
    tokenizer = load_tokenizer(folder)
    rows = language.tensors["model.embed_tokens.weight"].shape[0]
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} words, the token table of {language.path} {rows} rows; give "
            "the tokenizer of that model to --tokenizer"
        )


def _tokenizer(args, language):
    folder = Path(args.tokenizer) if args.tokenizer else language.path if language.path.is_dir() else language.path.parent
    if not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        raise UserError(
            f"{folder}: holds no tokenizer.json or tokenizer.model; give the tokenizer of the language model to --tokenizer"
        )
    return folder
