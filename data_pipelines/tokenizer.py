"""Llama-style tokenizers from a local folder, with the two image tokens that PLUM adds (M 1.5, M 1.6)."""

from pathlib import Path

from plum_jax.errors import UserError

IMAGE_TOKENS = ("<im_start>", "<im_end>")
ASSETS = Path(__file__).resolve().parent.parent / "plum_jax" / "assets"


def load_tokenizer(name_or_folder):
    """A folder with tokenizer.json or tokenizer.model, or "tiny" -> transformers fast tokenizer.

    Pads on the right with the unknown token and holds `<im_start>`, `<im_end>`. A tokenizer.json is used as it stands:
    it says itself that the text on either side of an added token gets its own ▁ (the fast flavour that PLUM was trained
    with, M 1.6), while transformers 5 would rebuild a Llama tokenizer from its vocabulary and may leave that ▁ out.
    Never looks on the network. Raises UserError when the folder holds no tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = ASSETS / "tokenizer_tiny" if str(name_or_folder) == "tiny" else Path(name_or_folder)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        elif (folder / "tokenizer.model").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, legacy=True)
        else:
            raise UserError(f"{folder}: no tokenizer.json or tokenizer.model there; give a tokenizer folder or the word tiny")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: tokenizer cannot be read ({error}); download the folder again") from error
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
    missing = [token for token in IMAGE_TOKENS if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer
