"""`plum convert --checkpoint C --to plum|peft|hf`: a run or base weights -> the files that PyTorch programs read."""

import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np

from plum_jax import console, loading
from plum_jax.base import PARTS
from plum_jax.convert import metadata
from plum_jax.convert.adapter import PREFIX
from plum_jax.convert.hf_sam import to_hf
from plum_jax.convert.keys import POOLER_COPIES, SAM, rules
from plum_jax.convert.shards import ShardWriter
from plum_jax.errors import UserError
from plum_jax.models.plum import PlumConfig
from plum_jax.partial_folder import partial_folder

LLAMA = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")


def export(path, to, out, *, form="safetensors"):
    """Writes OUT in the given format. Returns the exit status.

    Args:
      path: run folder, base weights or the word tiny. to: "plum", "peft" or "hf". form: "safetensors" or "bin".

    Raises:
      UserError: the checkpoint cannot be read, or has not what the format needs; nothing is left behind then.
    """
    began = time.monotonic()
    console.header("convert", out)
    opened = loading.open_parameters(path)
    opened = opened._replace(config=PlumConfig.from_dict(opened.config.model))
    if opened.config.llama.int8 and not opened.base:
        raise UserError(f"{path}: its language model is int8, which these formats do not have; export a run of float weights")
    if opened.config.grounding != "span":
        raise UserError(f"{path}: has a <seg> token and no span tagger, which these formats do not have; export a span model")
    if to == "plum" and opened.missing:
        parts = ", ".join(PARTS[part] for part in opened.missing)
        raise UserError(f"{path}: {parts} never trained; train first, or export with --to hf")
    if to == "plum":
        metadata.check_plum(opened.config)
    out = Path(out).absolute()
    with partial_folder(out) as folder:
        {"plum": _plum, "peft": _peft, "hf": _hf}[to](opened, folder, form)
    print(f"Wrote {out} in {console.duration(time.monotonic() - began)}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    if to == "plum":
        print(f"Next: plum convert --plum {out} --clip CLIP-FOLDER --out BASE reads it back")
    return 0


def _plum(opened, folder, form):
    """A merged folder (M 9.1): adapters folded in, the pooler's second names and the rotary buffers included."""
    dtype = _write(
        opened, folder, form, lambda name: [] if name.startswith("vision_model.") else [name, *_copies(name)], rotary=True
    )
    metadata.write_plum(folder, opened.config, dtype=dtype)
    _save_tokenizer(opened, folder)


def _peft(opened, folder, form):
    metadata.write_adapter(folder, opened.config, base=opened.base)
    with ShardWriter(folder, form=form, stem="adapter_model") as writer:
        for rule in rules(opened.config):
            for layer, name in rule.items() if "/lora_" in rule.path else ():
                writer.add(PREFIX + name, rule.to_torch(opened.take(rule.path, layer)))
        writer.finish()


def _hf(opened, folder, form):
    """LlamaForCausalLM and SamModel folders, and the rest of PLUM in one file by the names of M 9.1."""
    dtype = _write(opened, folder / "llama", form, lambda name: [name] if name.startswith(LLAMA) else [])
    metadata.write_llama(folder / "llama", opened.config, dtype=dtype)
    _save_tokenizer(opened, folder / "llama")
    dtype = _write(opened, folder / "sam", form, lambda name: to_hf(name.removeprefix(SAM)) if name.startswith(SAM) else [])
    metadata.write_sam(folder / "sam", opened.config, dtype=dtype)
    _write(
        opened, folder, form, lambda name: [] if name.startswith((*LLAMA, SAM, "vision_model.")) else [name], stem="plum_heads"
    )


def _write(opened, folder, form, names_of, *, rotary=False, stem=None):
    """Streams tensors into shards.

    Args:
      names_of: PyTorch name of the table -> the names under which the tensor is written, [] for none.

    Returns:
      The type of the language model's weights, "float32" or "bfloat16".
    """
    config = opened.config
    plain = dataclasses.replace(config, llama=dataclasses.replace(config.llama, lora_rank=0))
    pieces = {}
    for rule in rules(plain):
        if rule.path.partition("/")[0] not in opened.missing:
            for layer, name in rule.items():
                pieces.setdefault(name, []).append((rule, layer))
    wanted = {name: names_of(name) for name in pieces}
    dtype = "float32"
    with ShardWriter(folder, form=form, stem=stem) as writer:
        label = f"write {folder.name.strip('.').removesuffix('.partial')}"
        with console.Progress(total=sum(map(bool, wanted.values())), label=label, unit="tensor") as bar:
            for name, targets in pieces.items():
                if wanted[name]:
                    array = _tensor(opened, targets)
                    dtype = array.dtype.name if name == "model.norm.weight" else dtype
                    for new in wanted[name]:
                        writer.add(new, array)
                    bar.update()
        for i in range(config.llama.depth if rotary else 0):
            half = config.llama.width // config.llama.heads // 2
            frequency = (config.llama.rope_theta ** (-np.arange(half, dtype=np.float32) / half)).astype(np.float32)
            writer.add(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", frequency)
        writer.finish()
    return dtype


def _tensor(opened, targets):
    """The PyTorch tensor that these pieces of ours make, adapters folded in (in float32: M D54), without padding."""
    parts = []
    for rule, layer in sorted(targets, key=lambda target: target[0].piece):
        array = opened.take(rule.path, layer)
        llama = opened.config.llama
        if llama.lora_rank and rule.path in ("llama/layers/q_proj/kernel", "llama/layers/v_proj/kernel"):
            a, b = (opened.take(rule.path.replace("kernel", f"lora_{x}"), layer).astype(np.float32) for x in "ab")
            array = (array.astype(np.float32) + llama.lora_alpha / llama.lora_rank * (a @ b)).astype(array.dtype)
        tensor = rule.to_torch(array)
        parts.append(tensor[: llama.vocab_size] if rule.vocabulary else tensor)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _copies(name):
    """The second names of a tensor in a merged folder."""
    return [copy + name.removeprefix(original) for copy, original in POOLER_COPIES.items() if name.startswith(original)]


def _save_tokenizer(opened, folder):
    """With <im_start> and <im_end> among its tokens, whether or not the source had them; the sentencepiece model too."""
    opened.tokenizer.save_pretrained(folder)
    model = Path(opened.base, "tokenizer", "tokenizer.model")
    if opened.base and model.is_file():
        shutil.copy2(model, folder / model.name)
