import json
import shutil

import checkpoint_fixtures as fixtures
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import numpy as safetensors_numpy

from plum_jax import base, cli, initial, loading
from plum_jax.convert import command
from plum_jax.convert.pipeline import convert
from plum_jax.errors import UserError

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """-> (PlumConfig, {path: array}, {flag: path})."""
    config = fixtures.plum_config()
    return config, *fixtures.write_sources(tmp_path_factory.mktemp("sources"), config)


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    """Base weights of the merged folder, float32."""
    out = tmp_path_factory.mktemp("converted") / "base"
    assert convert(fixtures.arguments(out, plum=sources[2]["plum"], clip=sources[2]["clip"])) == 0
    return out


def check(folder, want, *, missing=()):
    """The folder loads, passes its self-check, and holds exactly these parameters."""
    loaded = loading.load_model(folder)
    got = flatten_dict(loaded.params, sep="/")
    assert loaded.missing == tuple(missing)
    assert got.keys() == want.keys()
    for path, array in want.items():
        if path.partition("/")[0] not in missing:
            np.testing.assert_array_equal(np.asarray(got[path], np.float32), array, err_msg=path)
    return loaded


def test_merged_folder(sources, converted):
    config, want, _ = sources
    loaded = check(converted, want)
    assert loaded.config.model.dtype == "float32" and loaded.config.data.template == "llava_v1"
    assert len(loaded.tokenizer) == 1024
    sizes = {k: v for k, v in loaded.config.model.llama.items() if k not in ("lora_alpha", "lora_dropout")}
    assert sizes == {k: getattr(config.llama, k) for k in sizes}
    about = base.open_base(converted).about
    assert set(about["sources"]) == {"--plum", "--sam", "--clip"} and about["missing"] == []
    assert all(len(digest) == 64 for source in about["sources"].values() for digest in source["sha256"].values())
    assert not [p for p in converted.parent.iterdir() if p.name.startswith(".")]  # no partial folder


def test_shards_of_pickles_give_the_same(sources, tmp_path):
    config, want, paths = sources
    shutil.copytree(paths["plum"], tmp_path / "plum")
    (tmp_path / "plum" / "model.safetensors").unlink()
    plum, _, _ = fixtures.split(fixtures.tensors_of(config, want))
    fixtures.save_shards(fixtures.with_copies(plum), tmp_path / "plum", 3)
    convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "plum", clip=paths["clip"]))
    check(tmp_path / "base", want)


def test_parts_without_heads_start_random_and_are_refused_for_evaluation(sources, tmp_path, capsys):
    _, want, paths = sources
    given = {flag: paths[flag] for flag in ("llava", "sam", "clip")}
    convert(fixtures.arguments(tmp_path / "base", **given))
    assert "span tagger starts random: fine for training, refused for evaluation" in capsys.readouterr().out
    missing = ("span_tagger", "span_projector", "feedback")
    check(tmp_path / "base", want, missing=missing)
    argv = ["x.png", "--checkpoint", str(tmp_path / "base"), "--prompt=what?", "--out", str(tmp_path / "out")]
    (tmp_path / "x.png").touch()
    argv[0] = str(tmp_path / "x.png")
    assert cli.main(["predict", *argv]) == 2
    assert "span tagger, span projector, mask feedback never trained, random; train first" in capsys.readouterr().err


def test_bf16_rounds_towers_and_leaves_heads(sources, tmp_path):
    _, want, paths = sources
    convert(fixtures.arguments(tmp_path / "base", plum=paths["plum"], clip=paths["clip"], dtype="bf16"))
    import ml_dtypes

    loaded = flatten_dict(loading.load_model(tmp_path / "base").params, sep="/")
    for path, array in loaded.items():
        tower = path.startswith(("llama/", "clip/", "sam_encoder/", "projector/"))
        assert array.dtype == ("bfloat16" if tower else "float32"), path
        rounded = want[path].astype(ml_dtypes.bfloat16) if tower else want[path]
        np.testing.assert_array_equal(np.asarray(array), rounded, err_msg=path)


def test_rows_of_new_tokens_are_drawn(sources, tmp_path):
    """A base without <im_start> and <im_end>: two rows N(0, 0.02), the others as they were (M 1.5)."""
    config, want, paths = sources
    shutil.copytree(paths["llava"], tmp_path / "llava")
    plum, _, _ = fixtures.split(fixtures.tensors_of(config, want))
    short = {n: a[:1022] if n in ("model.embed_tokens.weight", "lm_head.weight") else a for n, a in plum.items()}
    heads = ("model.token_to_mask_fcs.", "model.text_hidden_fcs.", "bio_encoder.", "mask_pooler.", fixtures.SAM)
    fixtures.save({n: a for n, a in short.items() if not n.startswith(heads)}, tmp_path / "llava" / "model.safetensors")
    convert(fixtures.arguments(tmp_path / "base", llava=tmp_path / "llava", sam=paths["sam"], clip=paths["clip"]))
    opened = base.open_base(tmp_path / "base")
    keys = [("llama/embed", None), ("llama/lm_head/kernel", None)]
    found = base.read_slices(opened.folder / "params", opened.about["parameters"], keys)
    embed, head = found[keys[0]], found[keys[1]]
    assert opened.about["new_token_rows"] == 2
    np.testing.assert_array_equal(embed[:1022], want["llama/embed"][:1022])
    np.testing.assert_array_equal(head[:, :1022], want["llama/lm_head/kernel"][:, :1022])
    for new in (embed[1022:1024], head[:, 1022:1024]):
        assert 0.005 < new.std() < 0.04
    assert not embed[1024:].any() and not head[:, 1024:].any()


def broken(paths, tmp_path, change):
    """A copy of the merged folder whose tensors went through `change`."""
    from safetensors.numpy import load_file

    shutil.copytree(paths["plum"], tmp_path / "plum")
    tensors = load_file(tmp_path / "plum" / "model.safetensors")
    fixtures.save(change(tensors) or tensors, tmp_path / "plum" / "model.safetensors")
    return tmp_path / "plum"


CHANGES = {
    "lack 1 tensors .model.layers.0.mlp.up_proj.weight.": lambda t: {n: a for n, a in t.items() if "layers.0.mlp.up" not in n},
    "1 tensors have no place in PLUM .model.extra.; leave them out with --ignore": lambda t: t.update(
        {"model.extra": np.ones(2)}
    ),
    "differs from the tensor that it is a copy of": lambda t: t.update(
        {"mask_pooler.final_conv.bias": t["mask_pooler.final_conv.bias"] + 1}
    ),
    "o_proj.weight gives .*of shape .16, 17., not .16, 16.": lambda t: t.update(
        {"model.layers.1.self_attn.o_proj.weight": np.ones((17, 16), np.float32)}
    ),
    "is of type int8; quantised": lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}),
    "looks like a LISA checkpoint": lambda t: {n: a for n, a in t.items() if "token_to_mask" not in n and "bio_enc" not in n},
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_broken_checkpoint_is_named_and_nothing_is_left(sources, tmp_path, sentence):
    _, _, paths = sources
    folder = broken(paths, tmp_path, CHANGES[sentence])
    with pytest.raises(UserError, match=sentence):
        convert(fixtures.arguments(tmp_path / "base", plum=folder, clip=paths["clip"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plum"]


def test_ignored_tensors_are_left_out(sources, tmp_path):
    _, want, paths = sources
    folder = broken(paths, tmp_path, CHANGES["1 tensors have no place in PLUM .model.extra.; leave them out with --ignore"])
    convert(fixtures.arguments(tmp_path / "base", plum=folder, clip=paths["clip"], ignore=r"^model\.extra$"))
    check(tmp_path / "base", want)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ([], "give one of --plum, --llava"),
        (["--plum", "a", "--llava", "b"], "give one of --plum, --llava"),
        (["--llava", "a"], "--llava holds no mask decoder; give SAM to --sam"),
        (["--plum", "nowhere"], "no such file"),
        (["--checkpoint", "a"], "--checkpoint and --to go together"),
        (["--plum", "a", "--tagger-heads", "0"], "is not a number of heads"),
        (["--checkpoint", "a", "--to", "hf", "--sam", "b"], "--sam: is of conversions from PyTorch"),
        (["--plum", "a", "--format", "bin"], "--format bin: is of exports with --checkpoint"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, sentence):
    assert cli.run(command.main, [*flags, "--out", str(tmp_path / "base")], name="convert") == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    assert cli.run(command.main, ["--plum", "a", "--out", str(tmp_path)], name="convert") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "facts, sentence",
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads 1"),
        ({"pretraining_tp": 2}, "pretraining_tp 2"),
        ({"num_attention_heads": None}, "does not say num_attention_heads"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"mm_vision_select_feature": "cls_patch"}, "cls_patch"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads 7, which does not divide"),
        ({"num_attention_heads": "2", "num_key_value_heads": "2"}, "num_attention_heads '2', which does not divide"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps 'small', not a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan, not a positive number"),
        ({"rope_theta": 10**400}, "rope_theta 1000.*, not a positive number"),
        ({"rope_parameters": [1]}, "rope_parameters .1., not an object"),
        ({"num_hidden_layers": 40}, "num_hidden_layers 40, the tensors show 2"),
        ({"mm_vision_select_layer": 9}, "takes layer 9 of CLIP"),
    ],
)
def test_another_architecture_is_refused(sources, tmp_path, facts, sentence):
    _, _, paths = sources
    shutil.copytree(paths["plum"], tmp_path / "plum")
    file = tmp_path / "plum" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))
    with pytest.raises(UserError, match=sentence):
        convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "plum", clip=paths["clip"]))


@pytest.mark.parametrize(
    "name, shape, sentence",
    [
        ("model.embed_tokens.weight", (), r"model.embed_tokens.weight has shape \[\], PLUM's has 2 dimensions"),
        ("model.layers.99999999.x", (1,), "model.layers.2 is missing"),  # a model of that many layers would fill the memory
        ("model.visual_model.image_encoder.pos_embed", (1, 0, 0, 8), "pos_embed has shape"),
    ],
)
def test_an_odd_tensor_is_refused_before_anything_is_made_of_it(sources, tmp_path, name, shape, sentence):
    _, _, paths = sources
    shutil.copytree(paths["plum"], tmp_path / "plum")
    file = tmp_path / "plum" / "model.safetensors"
    fixtures.save({**safetensors_numpy.load_file(file), name: np.zeros(shape, np.float32)}, file)
    with pytest.raises(UserError, match=sentence):
        convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "plum", clip=paths["clip"]))


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_weights_that_are_no_numbers_are_refused(sources, tmp_path, value):
    _, _, paths = sources
    shutil.copytree(paths["plum"], tmp_path / "plum")
    file = tmp_path / "plum" / "model.safetensors"
    tensors = safetensors_numpy.load_file(file)
    tensors["model.norm.weight"] = np.full(tensors["model.norm.weight"].shape, value, np.float64)
    fixtures.save(tensors, file)
    with pytest.raises(UserError, match="model.norm.weight holds NaN, infinity or a number too large for float32"):
        convert(fixtures.arguments(tmp_path / "base", plum=tmp_path / "plum", clip=paths["clip"]))
    assert [path.name for path in tmp_path.iterdir()] == ["plum"]


@pytest.mark.parametrize("content", [None, b"", b"PK damaged"])
def test_stored_outputs_that_are_gone_or_damaged_are_named(converted, tmp_path, content):
    shutil.copytree(converted, tmp_path / "base")
    file = tmp_path / "base" / "check.npz"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match="check.npz: is missing or damaged"):
        loading.load_model(tmp_path / "base")


def test_a_changed_weight_is_noticed_when_the_folder_is_loaded(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "base")
    opened = base.open_base(tmp_path / "base")
    with np.load(tmp_path / "base" / "check.npz") as file:
        stored = dict(file)
    np.savez(tmp_path / "base" / "check.npz", **{**stored, "tags": stored["tags"] + 0.05 * np.abs(stored["tags"]).max()})
    with pytest.raises(UserError, match="do not give the outputs that were stored with them .tags."):
        loading.load_model(opened.folder)


def test_damaged_files_are_named(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "base")
    for file in (tmp_path / "base" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="files are missing or damaged"):
        loading.load_model(tmp_path / "base")
    tokenizer = tmp_path / "base" / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(UserError, match="tokenizer_config.json: is missing, or not the file that came with the weights"):
        base.open_base(tmp_path / "base")
    (tmp_path / "base" / "base.json").write_text("{")
    with pytest.raises(UserError, match="base.json or config.json is missing or damaged"):
        loading.load_model(tmp_path / "base")


def test_other_weights_in_the_same_place_are_refused(converted):
    config = initial.resolve_config("tiny", [f"base={converted}", "model.feedback=false"])
    assert config.model.llama.width == 16 and config.model.llama.lora_rank == 4 and not config.model.feedback
    config.sha256_of_base = "0" * 64
    with pytest.raises(UserError, match="holds other base weights than this run started from"):
        initial.open_base_of(config)
