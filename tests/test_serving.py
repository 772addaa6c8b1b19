"""An exported folder answers as the checkpoint does, for any batch size, without the code of the model; damage is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plum_jax import cli, inference, quantize, serving
from plum_jax.errors import UserError
from plum_jax.evaluation import calibration
from plum_jax.loading import LoadedModel
from plum_jax.serving import command
from tests import eval_fixtures

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (*hw, 3), np.uint8) for hw in ((20, 31), (50, 17), (32, 32))]
PROMPTS = ["What visible parts does the dog have?", "What is this?", "Name every part of the lamp that one can see here."]
CURVE = calibration.Calibration((0.0, 1.0), (0.1, 0.9), 50, "random")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A LoadedModel that lies in a run folder with a calibration curve."""
    run = tmp_path_factory.mktemp("run")
    calibration.save(CURVE, run)
    fields = vars(eval_fixtures.loaded())
    return LoadedModel(**{**fields, "path": str(run / "checkpoints" / "0"), "config": eval_fixtures.config()})


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """What `plum export` writes."""
    out = tmp_path_factory.mktemp("exported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plum_jax.loading.load_model", lambda path, **_: loaded)
        assert cli.main(["export", "--checkpoint", "some/run", "--out", str(out), "--max-new-tokens", "9"]) == 0
    return out


@pytest.fixture(scope="module")
def live(loaded):
    return inference.Model(loaded)


@pytest.fixture(scope="module")
def served(folder):
    return serving.load(folder)


def arrays(model, rows):
    """What the programs of a model give for the first `rows` images and prompts."""
    images = model.encode_images(IMAGES[:rows], rows)
    texts = [model.encode_prompt(prompt) for prompt in PROMPTS[:rows]]
    tokens, counts = inference.pad_rows([text.tokens for text in texts], rows, inference.PROMPT_BUCKET)
    position = np.array([text.image_position for text in texts])
    said = model.programs.generate(
        images.tokens, tokens, counts, position, max_new_tokens=9, end_token=model.end_token
    )  # fmt: skip
    return images, said


@pytest.mark.parametrize("rows", [1, 3])
def test_one_artefact_gives_the_arrays_of_the_model_at_any_batch_size(live, served, rows):
    (images, (tokens, count, read)), (images_2, (tokens_2, count_2, read_2)) = arrays(live, rows), arrays(served, rows)
    np.testing.assert_allclose(images_2.tokens, images.tokens, atol=1e-5)
    np.testing.assert_allclose(images_2.embeddings, images.embeddings, atol=1e-5)
    np.testing.assert_array_equal(tokens_2, tokens)
    np.testing.assert_array_equal(count_2, count)
    for row, n in enumerate(np.asarray(count)):  # behind the end there is padding
        np.testing.assert_array_equal(read_2.labels[row, :n], read.labels[row, :n])
        np.testing.assert_allclose(read_2.confidence[row, :n], read.confidence[row, :n], atol=1e-5)
        np.testing.assert_allclose(read_2.features[row, :n], read.features[row, :n], atol=1e-5)
    embeds = [np.asarray(features[:5]) for features in read.features]
    masks, masks_2 = live.decode(images, range(rows), embeds, rows), served.decode(images_2, range(rows), embeds, rows)
    assert len(masks) == rows and masks[0].std() > 0.05
    np.testing.assert_allclose(masks_2, masks, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_answers_are_those_of_the_model(live, served, rows):
    assert served.calibration == live.calibration == CURVE
    images, prompts = IMAGES[:rows], PROMPTS[:rows]
    for got, want in zip(
        served.answer(images, prompts, batch_size=rows),
        live.answer(images, prompts, batch_size=rows, max_new_tokens=9),
        strict=True,
    ):
        assert got.text == want.text and len(want.spans) > 1
        for a, b in zip(got.spans, want.spans, strict=True):
            assert (a.phrase, a.char_span, a.status) == (b.phrase, b.char_span, b.status)
            assert a.score == pytest.approx(b.score, abs=1e-5)
            assert (a.mask != b.mask).mean() < 1e-3  # a logit within rounding of zero may fall on either side


def test_runs_without_the_code_of_the_model(folder):
    code = (
        "import sys, numpy as np; from plum_jax import serving\n"
        f"answer = serving.load({str(folder)!r})(np.full((20, 31, 3), 90, np.uint8), {PROMPTS[0]!r})\n"
        "print(len(answer.text), [n for n in sys.modules if n.startswith(('plum_jax.models', 'plum_jax.generate', 'flax'))])"
    )
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    length, modules = done.stdout.split(maxsplit=1)
    assert int(length) > 0 and modules.strip() == "[]"


def test_the_manifest_tells_what_the_programs_take(folder, loaded):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["programs"]) == {
        "encode_clip", "encode_sam", "prefill", "decode_step", "read_sequence", "decode_masks"
    }  # fmt: skip
    for name, program in manifest["programs"].items():
        exported = jax.export.deserialize(bytearray((folder / program["file"]).read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
        names = [*program["parameters"], *(f"{name}/{key}" for key in program["inputs"])]
        assert len(names) == len(exported.in_avals)
        shapes = [manifest["parameters"]["arrays"][path]["shape"] for path in program["parameters"]]
        assert shapes == [list(aval.shape) for aval in exported.in_avals[: len(shapes)]]
        assert any("b" in array["shape"] for array in program["inputs"].values()), name
    assert manifest["programs"]["prefill"]["inputs"]["tokens"] == {"shape": ["b", "t"], "dtype": "int32"}
    assert manifest["programs"]["decode_masks"]["outputs"]["low_res"]["shape"][:2] == ["b", "n"]
    assert manifest["template"] == "USER: <im_start><image><im_end>\n{prompt} ASSISTANT:"
    assert manifest["special_ids"]["</s>"] == loaded.tokenizer.eos_token_id
    assert manifest["max_new_tokens"] == 9 and manifest["int8"] is False


def test_parameters_are_not_constants_of_the_programs(folder, loaded):
    sizes = sum(path.stat().st_size for path in folder.glob("*.stablehlo"))
    vocabulary = loaded.params["llama"]["embed"].nbytes + loaded.params["llama"]["lm_head"]["kernel"].nbytes
    text = jax.export.deserialize(bytearray((folder / "decode_step.stablehlo").read_bytes())).mlir_module()
    assert sizes > vocabulary  # else the line below says nothing
    assert (folder / "decode_step.stablehlo").stat().st_size < vocabulary and "dense_resource" not in text


def test_int8_and_bfloat16_are_exported_as_such(loaded, tmp_path):
    config = eval_fixtures.config()
    config.model.dtype = "bfloat16"  # of activations, hence of the cache
    small = quantize.quantize_model(loaded._replace(config=config))
    manifest = command.export(small, tmp_path, ["cpu"])
    assert manifest["int8"] and manifest["parameters"]["arrays"]["llama/lm_head/kernel"]["dtype"] == "int8"
    served, live = serving.load(tmp_path), inference.Model(small)
    assert served.params["llama"]["layers"]["q_proj"]["kernel"].dtype == jnp.int8
    assert manifest["programs"]["prefill"]["inputs"]["keys"]["dtype"] == "bfloat16"
    np.testing.assert_array_equal(arrays(served, 1)[1][0], arrays(live, 1)[1][0])


def edit_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: no such file"),
    "cut manifest": (lambda f: (f / "manifest.json").write_text('{"format"'), r"manifest\.json: is damaged"),
    "short manifest": (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "parts of it are missing"),
    "other format": (lambda f: edit_manifest(f, format=3), "has format 3, this plum_jax reads 2"),
    "damaged program": (lambda f: flip_a_byte(f / "prefill.stablehlo"), r"prefill\.stablehlo: is damaged"),
    "missing program": (lambda f: (f / "encode_sam.stablehlo").unlink(), r"encode_sam\.stablehlo: is missing"),
    "missing tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer.*: is missing"),
    "damaged parameters": (
        lambda f: flip_a_byte(max((f / "parameters").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())),
        "parameters/.*: is damaged",
    ),
    "newer jax": (lambda f: edit_manifest(f, calling_convention=99), "calling convention 99, jax .* reads 9 to"),
    "other platform": (lambda f: edit_manifest(f, platforms=["tpu"]), "exported for tpu, jax runs on cpu here"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence(folder, tmp_path, name):
    damage, said = DAMAGE[name]
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=said) as error:
        serving.load(copy)
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_without_hashes_what_cannot_be_read_is_named_as_well(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "decode_step.stablehlo").write_bytes(b"not a program")
    with pytest.raises(UserError, match=r"decode_step\.stablehlo: jax .* cannot read this program"):
        serving.load(copy, verify=False)
    copy = shutil.copytree(folder, tmp_path / "second")
    for path in (copy / "parameters").rglob("*"):
        path.write_bytes(b"") if path.is_file() else None
    with pytest.raises(UserError, match="parameters: .*cannot be read"):
        serving.load(copy, verify=False)


@pytest.mark.parametrize(
    "args, said",
    [
        (["--platforms", "cpu,npu"], "--platforms 'npu': is not known"),
        (["--platforms", ","], "--platforms ',': is not known"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: is too small"),
    ],
)
def test_bad_arguments_write_nothing(args, said, tmp_path, capsys):
    assert cli.main(["export", "--out", str(tmp_path / "o"), *args]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_an_exported_folder_or_foreign_files_are_not_written_over(folder, tmp_path, capsys):
    assert cli.main(["export", "--out", str(folder)]) == 2
    assert "holds manifest.json already" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("x")
    assert cli.main(["export", "--out", str(tmp_path)]) == 2
    assert "holds thesis.tex already" in capsys.readouterr().err
    mine = tmp_path / "mine" / "tokenizer" / "tokenizer.json"  # the name of ours, but no export began there
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    assert cli.main(["export", "--out", str(tmp_path / "mine")]) == 2
    assert "holds tokenizer already" in capsys.readouterr().err and mine.read_text() == "{}"


def test_an_export_that_stopped_while_it_wrote_parameters_is_begun_again(folder, loaded, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "manifest.json").unlink()
    (out / "parameters").rename(out / "parameters.orbax-checkpoint-tmp")  # as Orbax leaves it
    monkeypatch.setattr("plum_jax.loading.load_model", lambda path, **_: loaded)
    assert cli.main(["export", "--checkpoint", "some/run", "--out", str(out), "--max-new-tokens", "9"]) == 0
    names = lambda path: {x.name for x in path.iterdir()}  # noqa: E731
    assert names(out) == names(folder) and serving.load(out)
