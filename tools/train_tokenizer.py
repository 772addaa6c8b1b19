"""Trains plum_jax/assets/tokenizer_tiny: a Llama-style tokenizer of 1024 entries for the embedded data.

    python tools/train_tokenizer.py [--out FOLDER]

Byte-pair encoding with byte fallback and ▁, laid out as a Llama tokenizer folder, so that the tiny model takes the same
path as a real one. The text is generated here: question and answer templates (D 3.1), part and object names, the system
prompt, and a little plain English. The same text gives the same files.
"""

import argparse
import json
import os
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipelines.conversation import SYSTEM  # noqa: E402
from data_pipelines.synthetic.objects import OBJECTS, PARTS  # noqa: E402
from data_pipelines.tokenizer import ASSETS, IMAGE_TOKENS  # noqa: E402

SIZE = 1024
CONTROL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
ALPHABET = ["▁", *string.ascii_letters, *string.digits, *".,:;!?'\"()-/_&+%"]  # anything else falls back to bytes
NAME_WEIGHT, TEMPLATE_WEIGHT = 60, 60  # how often a word of the data counts against one of the English text

TEMPLATES = f"""{SYSTEM}
USER: What visible parts does the object in the image have? ASSISTANT: The object in the image has the following visible parts:
What visible parts does the image have in common with a but not with an , and
which does not have? The parts which an image does not have in common with
What is the object in the image? It is a It is an"""

# Other everyday parts and things, so that a phrase outside the embedded data does not fall into letters at once.
NAMES = """handle lid spout base leg seat back arm wheel wing tail engine door window roof mirror bumper headlight blade stem
neck body foot head ear eye nose mouth hand hull sail deck mast rotor cockpit propeller trigger barrel button screen cable plug
cord cup bowl plate bottle knife fork spoon lamp chair table bed sofa truck bus boat ship plane drone bird dog cat horse fish
tree flower hammer saw drill clock phone bag hat shoe box basket pot pan kettle"""

ENGLISH = """Look at the picture and say what you can see in it. There is a small red house with a green door near the water.
The man on the left holds a black bag in his right hand, and the woman behind him is wearing a long white coat.
Please describe this photo. Which part of it would you use to open the box? You can pull the handle with one hand.
Where is the cat? It is sitting under the table, next to two blue chairs. How many people are there? I see three of them.
This one looks like a tool that someone would use for cutting wood or metal. The other one is made of glass and has no lid.
Yes, I think so. No, it does not have any. Sorry, I am not sure which one you mean. Point out the largest part of this animal.
Show me the top, the bottom, the front and the rear side. The first thing is round, the second is square, the last is flat.
If the light is on, the bulb is warm. When it rains, people stay inside. She reads a book about the sea while he drinks coffee.
They walk along the street in the morning and come home late at night. Each room has a window, a bed, and a wooden floor.
Segment the object, highlight the region, outline its shape, and explain why. It was taken from above, with a bright sky.
Because the wheel is missing, the car cannot move. Could you tell me more about that? Of course: it belongs to the old boat."""


def corpus():
    """{word: count} over everything the tiny model will read and write."""
    names = sorted({kind.name for kind in OBJECTS} | set(PARTS))
    weighted = [(TEMPLATES, TEMPLATE_WEIGHT), (" ".join(names), NAME_WEIGHT)]
    weighted += [(NAMES, 2), (ENGLISH, 1)]
    counts = {}
    for text, weight in weighted:
        for word in text.split():
            counts[word] = counts.get(word, 0) + weight
    return counts


def train(counts):
    """-> (vocabulary {piece: id}, merges): control tokens, bytes, alphabet, then merges in the order they were learned."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Punctuation and digits stand alone, so that a part name is never one token with the comma or full stop after it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(IMAGE_TOKENS),
        min_frequency=1,
        special_tokens=[*CONTROL, *BYTES],
        initial_alphabet=ALPHABET,
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for word, count in counts.items() for _ in range(count)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def build(vocab, merges):
    """The whole tokenizer, with the normaliser, decoder and template of Llama's tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokenizer = Tokenizer(
        models.BPE(vocab, [tuple(merge) for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*CONTROL, *IMAGE_TOKENS)])
    return tokenizer


def write(folder, tokenizer):
    """tokenizer.json and the two configuration files that a Llama folder has."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    settings = dict(
        special,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        legacy=True,
        model_max_length=4096,
        padding_side="right",
    )
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True),
        "special_tokens_map.json": json.dumps(special, indent=2, sort_keys=True),
    }
    for name, text in files.items():
        temporary = folder / f".{name}.part"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / name)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ASSETS / "tokenizer_tiny"), help="folder to write")
    arguments = parser.parse_args(argv)
    tokenizer = build(*train(corpus()))
    write(arguments.out, tokenizer)
    print(f"{tokenizer.get_vocab_size()} entries -> {arguments.out}")


if __name__ == "__main__":
    main()
