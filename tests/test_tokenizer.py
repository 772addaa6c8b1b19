import importlib.util
import json
from pathlib import Path

import pytest
import transformers

from data_pipelines.synthetic.objects import OBJECTS, PARTS
from data_pipelines.tokenizer import ASSETS, load_tokenizer
from plum_jax.errors import UserError

TEXTS = (
    "A chat. USER: <im_start>",
    "<im_end>\nWhat visible parts does the object have? ASSISTANT: The wings.</s>USER: Thanks? ASSISTANT: Yes.</s>",
    "Naïve café, 12.5 % of 漢字",
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def test_layout_is_llamas(tokenizer):
    assert len(tokenizer) == 1024
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<im_start>", "<im_end>"]) == [
        0,
        1,
        2,
        3,
        1022,
        1023,
    ]
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (0, "right")
    assert tokenizer("a").input_ids[0] == 1
    assert tokenizer("</s>").input_ids[-1] == 2


def test_text_beside_an_added_token_gets_its_own_prefix(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("USER: <im_start>").input_ids) == ["<s>", "▁USER", ":", "▁", "<im_start>"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<im_end>\nthe").input_ids)
    assert tokens[:4] == ["<s>", "<im_end>", "▁", "<0x0A>"]


@pytest.mark.parametrize("text", TEXTS)
def test_loads_like_a_llama_folder(tokenizer, text):
    for loader in (transformers.AutoTokenizer, transformers.LlamaTokenizerFast):
        other = loader.from_pretrained(ASSETS / "tokenizer_tiny")
        assert other(text).input_ids == tokenizer(text).input_ids
        assert len(other) == 1024
    decoded = tokenizer.decode(tokenizer(text).input_ids).removeprefix("<s>")
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_names_of_the_embedded_data_are_few_tokens(tokenizer):
    for name in (*PARTS, *(kind.name for kind in OBJECTS)):
        assert len(tokenizer.tokenize(name)) <= len(name.split()), name
    assert tokenizer.tokenize("parts: base, and wheel.") == ["▁parts", ":", "▁base", ",", "▁and", "▁wheel", "."]


def test_image_tokens_are_added_when_absent(tmp_path):
    content = json.loads((ASSETS / "tokenizer_tiny" / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = content["added_tokens"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((ASSETS / "tokenizer_tiny" / "tokenizer_config.json").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [1022, 1023]
    assert tokenizer("a <im_start>").input_ids[-1] == 1022


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_training_gives_the_shipped_files(tmp_path):
    path = Path(__file__).resolve().parent.parent / "tools" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--out", str(tmp_path)])
    for shipped in sorted((ASSETS / "tokenizer_tiny").iterdir()):
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes(), f"{shipped.name}: run tools/train_tokenizer.py"
