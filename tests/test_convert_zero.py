"""DeepSpeed checkpoints: masters cut out of the flat parts of the ranks, frozen tensors, aliases, and every fault."""

import os
import shutil
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from plum_jax.convert import files, zero
from plum_jax.convert.tensors import Tensor, close, read_file
from plum_jax.errors import UserError
from tests.convert_fixtures import deepspeed_classes, write_zero

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
P = "base_model.model."
CONV = "model.visual_model.prompt_encoder.mask_downscaling.0."


def values(**shapes):
    return {P + name.replace("__", "."): RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


TRAINED = values(  # 3 * 7 + 8 + 12 + 12 + 16 + 4 + 1 + 21 + 5 = 100 values: 34 for each of three ranks, and 2 of padding
    model__embed_tokens__weight=(7, 3), model__layers__0__self_attn__q_proj__lora_A__default__weight=(2, 4),
    model__layers__0__self_attn__q_proj__lora_B__default__weight=(6, 2), model__layers__0__x=(3, 4),
    model__visual_model__prompt_encoder__mask_downscaling__0__weight=(4, 1, 2, 2),
    model__visual_model__prompt_encoder__mask_downscaling__0__bias=(4,), scalar=(), lm_head__weight=(7, 3),
    mask_pooler__queries=(5, 1, 1),
)  # fmt: skip
FROZEN = values(
    model__layers__0__self_attn__q_proj__weight=(6, 4), model__layers__0__self_attn__rotary_emb__inv_freq=(2,),
    model__visual_model__prompt_encoder__no_mask_embed__weight=(1, 3), teacher_llm__norm__weight=(4,), seg_h_ref=(2, 2),
)  # fmt: skip
ALIASES = {P + "mask_pooler.block1.0.0." + end: P + CONV + end for end in ("weight", "bias")} | {
    P + "mask_pooler.prompt_encoder.no_mask_embed.weight": P + "model.visual_model.prompt_encoder.no_mask_embed.weight"
}


def wanted(dtype):
    """{clean name: array} of what `write_zero(run, TRAINED, FROZEN, aliases=ALIASES)` holds."""
    full = {**TRAINED, **{name: array.astype(dtype) for name, array in FROZEN.items()}}
    full |= {second: full[name] for second, name in ALIASES.items()}
    kept = {name: array for name, array in full.items() if "teacher" not in name and "seg_h_ref" not in name}
    return {name.removeprefix(P).replace(".default", ""): array for name, array in kept.items()}


def check(found, want):
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (want[name].shape, want[name].dtype.name), name
        array = tensor.read()
        assert array.dtype == want[name].dtype
        np.testing.assert_array_equal(array, want[name])


def refuses(match, read, *args):
    with pytest.raises(UserError, match=match) as caught:
        read(*args)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def closed():
    yield
    close()


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("world", [1, 3])
def test_masters_frozen_tensors_and_aliases(tmp_path, world, bf16):
    step = write_zero(tmp_path / "run", TRAINED, FROZEN, aliases=ALIASES, world=world, bf16=bf16)
    assert sum(x.size for x in TRAINED.values()) == 100
    before = set(torch.serialization.get_safe_globals())
    want = wanted(ml_dtypes.bfloat16 if bf16 else np.float16)
    for folder in (tmp_path / "run", step):
        found = zero.read_zero(folder)
        check(found, want)
    assert set(torch.serialization.get_safe_globals()) == before
    assert "model.layers.0.self_attn.q_proj.lora_A.weight" in found
    if world == 3:  # the values 21..33 are in the first part, 34..67 in the second, the rest in the third
        rank = {name: tensor.file.name.split("_rank_")[1][0] for name, tensor in found.items() if "optim" in tensor.file.name}
        assert rank["model.embed_tokens.weight"] == "0" and rank["model.layers.0.x"] == "1" and rank["lm_head.weight"] == "2"


def test_a_tensor_over_three_ranks_and_two_parameter_groups(tmp_path):
    trained = values(first=(2,), wide=(3, 15), last=(1,), other=(5, 5))
    write_zero(tmp_path, trained, {}, world=4, groups=[[P + "first", P + "wide", P + "last"], [P + "other"]])
    check(zero.read_zero(tmp_path), {name.removeprefix(P): array for name, array in trained.items()})


def test_names_without_lora(tmp_path):
    trained, frozen = ({name.removeprefix(P): x for name, x in values(**{name: (3, 2)}).items()} for name in "ab")
    write_zero(tmp_path, trained, frozen)
    check(zero.read_zero(tmp_path), {**trained, "b": frozen["b"].astype(ml_dtypes.bfloat16)})


def test_only_slices_are_read_and_one_file_is_open(tmp_path, monkeypatch):
    write_zero(tmp_path, TRAINED, FROZEN, aliases=ALIASES, world=3)
    found = zero.read_zero(tmp_path)
    close()
    opened = []
    for name in ("_open_optim", "_open_module"):
        original = getattr(zero, name)
        monkeypatch.setattr(zero, name, lambda path, original=original: opened.append(path.name) or original(path))
    for name, tensor in found.items():
        if not name.startswith("mask_pooler.b"):  # aliases come last
            array = tensor.read()
            assert array.base is None or array.base.nbytes == array.nbytes  # no view of the whole vector
            assert len(files._held) == 1
    assert [name.split("_rank_")[1][0] for name in opened] == list("0120")  # the three ranks, then mp_rank_00


def test_the_file_of_zero_to_fp32(tmp_path):
    content = OrderedDict((name, torch.from_numpy(x)) for name, x in {**TRAINED, **FROZEN}.items())
    torch.save(content, tmp_path / "pytorch_model.bin")
    found = zero.training_names(read_file(tmp_path / "pytorch_model.bin"))
    want = {name: x.astype(np.float32) for name, x in wanted(np.float32).items() if not name.startswith("mask_pooler.")}
    check(found, want | {"mask_pooler.queries": TRAINED[P + "mask_pooler.queries"]})


def test_names_of_newer_peft_and_names_that_meet():
    tensor = Tensor((1,), "float32", "x.bin", lambda: np.zeros(1))
    names = [P + "model.layers.0.self_attn.q_proj.base_layer.weight", P + "model.norm.weight"]
    found = zero.training_names(dict.fromkeys(names, tensor))
    assert list(found) == ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    twice = dict.fromkeys([P + "model.norm.weight", "model.norm.weight"], tensor)
    refuses("x.bin: model.norm.weight is there twice", zero.training_names, twice)


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_only_classes_of_deepspeed_have_stand_ins(tmp_path, kind):
    step = write_zero(tmp_path / "run", TRAINED, FROZEN, extra={"client": Call(os.system, f"touch {tmp_path / 'proof'}")})
    if kind == "optim":
        step = write_zero(tmp_path / "other", TRAINED, FROZEN)
        file = next(step.glob("*optim*"))
        with deepspeed_classes() as (scaler, _, _):
            torch.save({"s": scaler(1), "c": Call(os.system, f"touch {tmp_path / 'proof'}")}, file)
    refuses(f"{kind}_states.pt: its pickle calls posix.system, .*nothing was run", zero.read_zero, step)
    assert not (tmp_path / "proof").exists()


@pytest.fixture
def run(tmp_path):
    """(run folder, step folder, model file, files of the three ranks)"""
    step = write_zero(tmp_path / "run", TRAINED, FROZEN, aliases=ALIASES, world=3)
    ranks = [step / f"bf16_zero_pp_rank_{r}_mp_rank_00_optim_states.pt" for r in range(3)]
    return tmp_path / "run", step, step / "mp_rank_00_model_states.pt", ranks


def test_faults_of_the_folder(run):
    folder, step, model, ranks = run
    shutil.copytree(folder, folder.parent / "other")
    (folder / "latest").write_text("global_step600\n")
    refuses("latest: names global_step600, which is not there", zero.read_zero, folder)
    for name in ("../run/global_step500", "", "..", "a\nb"):
        (folder / "latest").write_text(name)
        refuses("latest: .* is not the name of a step folder", zero.read_zero, folder)
    (folder / "latest").unlink()
    refuses("run: has no file `latest`; give one of its folders, such as global_step500", zero.read_zero, folder)
    refuses("no such folder", zero.read_zero, folder / "nowhere")
    check(zero.read_zero(step), wanted(ml_dtypes.bfloat16))
    shutil.copy(ranks[1], step / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    refuses("zero_pp_rank_1_mp_rank_00_optim_states.pt: is rank 1, and so is bf16_zero", zero.read_zero, step)
    os.rename(step / "zero_pp_rank_1_mp_rank_00_optim_states.pt", step / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt")
    refuses("rank_3_mp_rank_00_optim_states.pt: is of rank 3, the checkpoint is of 3 ranks", zero.read_zero, step)
    shutil.copy(model, step / "mp_rank_01_model_states.pt")
    refuses("mp_rank_01_model_states.pt: is of a model-parallel run", zero.read_zero, step)
    shutil.copy(model, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    refuses("global_step500: is of ZeRO stage 3", zero.read_zero, step)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_missing_and_damaged_ranks(run, rank):
    _, step, model, ranks = run
    content = ranks[rank].read_bytes()
    ranks[rank].write_bytes(content[: len(content) // 2])
    refuses(f"{ranks[rank].name}: is cut off or damaged", zero.read_zero, step)
    ranks[rank].write_bytes(b"")
    refuses(f"{ranks[rank].name}: is empty", zero.read_zero, step)
    ranks[rank].unlink()
    refuses(f"{ranks[rank].name}: is missing, the checkpoint is of 3 ranks", zero.read_zero, step)
    model.unlink()
    refuses("model_states.pt: no such file|global_step500: has no file `latest`", zero.read_zero, step)


def rewrite(path, change):
    """Loads a file of the checkpoint as it is, applies `change`, and saves it."""
    with deepspeed_classes():
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)


def optim(**entries):
    return lambda content: content["optimizer_state_dict"].update(entries)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            optim(single_partition_of_fp32_groups=[torch.zeros(33)]),
            "rank_1.*holds 33 values of the masters, not 34: it is not of the same save",
        ),
        (optim(single_partition_of_fp32_groups=[torch.zeros(32)]), "rank_1.*holds 32 values of the masters, not 34"),
        (optim(single_partition_of_fp32_groups=[torch.zeros(34), torch.zeros(1)]), "rank_1.*holds 2 parameter groups"),
        (optim(single_partition_of_fp32_groups=[]), "rank_1.*holds 0 parameter groups"),
        (
            optim(single_partition_of_fp32_groups=[torch.zeros(34).half()]),
            "rank_1.*masters is float16.34., not a float32 vector",
        ),
        (optim(single_partition_of_fp32_groups=[3]), r"rank_1.*fp32_groups\[0\] is of type int, not a tensor"),
        (optim(single_partition_of_fp32_groups=None), "rank_1.*holds no float32 masters of ZeRO stage 2"),
        (optim(zero_stage=3), "rank_1.*is of ZeRO stage 3; give a checkpoint of stage 2"),
        (lambda content: content.clear(), "rank_1.*holds no float32 masters"),
    ],
)
def test_faults_of_a_rank(run, change, match):
    _, step, _, ranks = run
    rewrite(ranks[1], change)
    refuses(match, zero.read_zero, step)


def test_the_last_rank_may_keep_its_padding(run):
    _, step, _, ranks = run
    rewrite(ranks[2], optim(single_partition_of_fp32_groups=[torch.zeros(34)]))
    assert not zero.read_zero(step)["mask_pooler.queries"].read().any()
    rewrite(ranks[2], optim(single_partition_of_fp32_groups=[torch.zeros(36)]))
    refuses("rank_2.*holds 36 values of the masters, not 34", zero.read_zero, step)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (dict(param_shapes=[{P + "lm_head.weight": torch.Size([100])}]), r"lm_head.weight is \[100\] in .* and \[7, 3\] in"),
        (dict(param_shapes=[OrderedDict(x=torch.Size([100]))]), r"x is \[100\] in `param_shapes` and not in `module`"),
        (dict(param_shapes=None), "has no `param_shapes`"),
        (dict(param_shapes=[]), "has no `param_shapes`"),
        (dict(param_shapes=[{"x": 3}]), "has no `param_shapes`"),
        (dict(module=None), "has no `module`"),
        (dict(dp_world_size=0), "has dp_world_size 0"),
        (dict(dp_world_size=2), "is of rank 2, the checkpoint is of 2 ranks"),
        (dict(module={"a": 1}), "a is of type int, not a tensor"),
    ],
)  # fmt: skip
def test_faults_of_the_model_file(run, entries, match):
    _, step, model, _ = run
    rewrite(model, lambda content: content.update(entries))
    refuses(match, zero.read_zero, step)


def test_a_checkpoint_of_stage_3(tmp_path):
    refuses("is of ZeRO stage 3", zero.read_zero, write_zero(tmp_path, TRAINED, FROZEN, stage=3))
