"""What a checkpoint is, and its tensors under the names of the table (keys.py): readers of M 9.1 to M 9.7."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from plum_jax.convert.hf_sam import from_hf
from plum_jax.convert.keys import SAM
from plum_jax.convert.tensors import read_file, read_folder
from plum_jax.convert.zero import read_zero, training_names
from plum_jax.errors import UserError

LLAVA_HF = (  # names of LlavaForConditionalGeneration, as files have them and as transformers 5 holds them in memory
    (r"^model\.language_model\.", "model."),
    (r"^language_model\.", ""),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?(?=embeddings|encoder|pre_layrnorm|post_layernorm)", "vision_model."),
)
TOWER = (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision_model.")  # of LLaVA and DeepSpeed files
HF_SAM_COPY = "prompt_encoder.shared_embedding.positional_embedding"  # tied to shared_image_embedding
CLIP_TEXT = r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)"


class Source(NamedTuple):
    kind: str  # "plum", "zero2", "llava", "llava_hf", "llama", "sam", "clip" or "adapter"
    path: Path
    tensors: dict  # {name of the table: Tensor}
    facts: dict  # of its config.json, {} without one
    copies: dict = {}  # {Tensor name: (Tensor, name that it must equal)}


def read(path):
    """A folder with shards, or one file -> {name: Tensor}."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    return read_folder(path) if Path(path).is_dir() else read_file(path)


def is_zero(path):
    """Whether a path is a run folder of DeepSpeed, or one of its global_step folders."""
    return any((path / name).is_file() for name in ("latest", "mp_rank_00_model_states.pt"))


def rename(tensors, patterns):
    """{name: Tensor} -> the same with names rewritten. UserError when two become one."""
    found = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new)
        if new in found:
            raise UserError(f"{tensor.file}: {name} and another tensor both mean {new}; remove one of them")
        found[new] = tensor
    return found


def read_facts(path):
    """config.json beside the weights -> dictionary, {} when there is none. UserError when it is not JSON."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "config.json"
    return read_config(file) if file.is_file() else {}


def read_config(file):
    """A config.json -> dictionary. UserError when it is not JSON, or no object."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{file}: holds a {type(facts).__name__}, not an object; download it again")
    return facts


def _complete(name, facts, path):
    """A config.json of transformers with what it leaves out because it is the default of that class."""
    import transformers

    try:
        return getattr(transformers, name).from_dict(facts).to_dict() if facts else {}
    except Exception as error:  # of the checks of transformers, which are of many types
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: config.json is not one of {name} ({detail}); download it again") from error


def open_language(path, flag):
    """PLUM, LLaVA, HF LLaVA-1.5 or Llama: a folder with shards, a ZeRO-2 folder, or one file -> Source.

    Raises:
      UserError: it is a LISA checkpoint, or nothing that holds a Llama decoder.
    """
    path = Path(path)
    zero = is_zero(path)
    tensors = rename(read_zero(path) if zero else training_names(read(path)), [TOWER])
    if any(re.match(r"(model\.)?(language_model|multi_modal_projector)\.", name) for name in tensors):
        return Source("llava_hf", path, rename(tensors, LLAVA_HF), _complete("LlavaConfig", read_facts(path), path))
    if "model.embed_tokens.weight" not in tensors:
        first = next(iter(tensors), "none")
        raise UserError(
            f"{path}: holds no Llama decoder (its first tensor is {first}); give {flag} a checkpoint of PLUM or LLaVA"
        )
    tagged = any(name.startswith("model.token_to_mask_fcs.") for name in tensors)
    if any(name.startswith("model.text_hidden_fcs.") for name in tensors) and not tagged:
        raise UserError(
            f"{path}: looks like a LISA checkpoint: it has text_hidden_fcs but not PLUM's span tagger (token_to_mask_fcs, "
            "bio_encoder); give its base to --llava and SAM to --sam, and train the heads"
        )
    projector = any(name.startswith("model.mm_projector.") for name in tensors)
    kind = "zero2" if zero else "plum" if tagged else "llava" if projector else "llama"
    return Source(kind, path, tensors, read_facts(path))


def open_sam(path):
    """Meta's .pth (ViT-B, -L, -H) or a folder of HF SamModel -> Source."""
    tensors, facts = read(path), read_facts(path)
    copies = {}
    if any(name.startswith("vision_encoder.") for name in tensors):
        copy = tensors.pop(HF_SAM_COPY, None)
        tensors = {from_hf(name): tensor for name, tensor in tensors.items()}
        if copy is not None:
            copies[HF_SAM_COPY] = copy, f"{SAM}prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    if not any(name.startswith("image_encoder.blocks.") for name in tensors):
        raise UserError(
            f"{path}: is no SAM checkpoint (no image_encoder.blocks); give --sam sam_vit_h_4b8939.pth or a SamModel folder"
        )
    return Source("sam", Path(path), {f"{SAM}{name}": t for name, t in tensors.items()}, facts, copies)


def open_clip(path):
    """A folder of HF CLIPModel or CLIPVisionModel -> Source with the vision tower alone."""
    tensors = {name: t for name, t in read(path).items() if not re.search(CLIP_TEXT, name)}
    tensors = rename(tensors, [(r"^(?=embeddings\.|encoder\.|pre_layrnorm|post_layernorm)", "vision_model.")])
    if "vision_model.embeddings.class_embedding" not in tensors:
        raise UserError(
            f"{path}: is no CLIP vision tower (no vision_model.embeddings); give --clip a folder of clip-vit-large-patch14"
        )
    facts = read_facts(path)
    return Source("clip", Path(path), tensors, _complete("CLIPVisionConfig", facts.get("vision_config", facts), path))
