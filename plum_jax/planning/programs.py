"""The programs that a plan compiles, traced from the code that runs them: the training step, and what an answer needs."""

from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plum_jax import train
from plum_jax.errors import UserError
from plum_jax.inference import BATCH_SIZE, MIN_SPAN_BUCKET, PROMPT_BUCKET
from plum_jax.models.plum import PlumConfig, bind, build
from plum_jax.planning import abstract
from plum_jax.planning.flops import count_flops, kept_bytes
from plum_jax.serving import programs as serving
from plum_jax.settings import check_settings, check_split
from plum_jax.sharding import make_mesh
from plum_jax.switches import switch

SERVED = {"prefill": "prefill", "decode": "decode_step", "masks": "decode_masks"}  # our name -> that of plum_jax.serving
PROGRAMS = ("train", *SERVED)
ROWS = ("data", "fsdp")
PART_WORDS = [[1, 2, 3]] * 64  # parts of a data set that need not be there, for the patch loss: 64 names of three tokens


class Traced(NamedTuple):
    """A program for a mesh, not compiled yet."""

    name: str
    traced: object  # jax.stages.Traced
    mesh: object
    memory: dict  # {"parameters", "optimizer", "inputs": bytes per device, "activations": about, per device}
    model_flops: int  # over all devices, without what is computed again to save memory
    flops: int  # over all devices, with it
    work: tuple  # (how much one run does, of what), such as (128, "images")
    stacked: dict  # as `traffic.whole_parameters` takes them

    @property
    def least(self):
        """Bytes per device without any activation or temporary: what no compiler can save."""
        return sum(self.memory[name] for name in ("parameters", "optimizer", "inputs"))

    def compile(self):
        with jax.set_mesh(self.mesh):
            lowered = self.traced.lower()
        return lowered.compile()


def trace(name, config, target, rows=None):
    """Name of PROGRAMS, config, Target, rows of an inference batch -> Traced. UserError where the config does not fit the mesh."""
    config = complete(config)
    mesh = make_mesh(config.mesh, target.devices)
    return _train(config, mesh) if name == "train" else _served(name, config, mesh, rows)


def complete(config):
    """The config with names in place of data that need not be there. UserError as of `plum train`."""
    config = config.copy_and_resolve_references()
    if not config.data.folder and not config.data.root:
        config.data["root" if config.data.get("sources") else "folder"] = "DIR"
    check_settings(config)
    return config


def _train(config, mesh):
    check_split(config, mesh)
    plan, arguments, traced = _trace_step(config, mesh)
    state, frozen, batches, _ = arguments
    images = mesh.shape["data"] * mesh.shape["fsdp"]
    memory = {
        "parameters": abstract.bytes_per_device((state.params, frozen)),
        "optimizer": abstract.bytes_per_device(state.opt_state),
        "inputs": abstract.bytes_per_device(batches),
        "activations": kept_bytes(traced.jaxpr) // images,
    }
    flops = count_flops(traced.jaxpr)
    model_flops = flops
    if config.model.remat != "none":
        once = config.copy_and_resolve_references()
        once.model.remat = "none"
        model_flops = count_flops(_trace_step(once, mesh)[2].jaxpr)
    stacked = stacked_parameters(abstract.parameters(config, plan.abstract, mesh), mesh)
    return Traced("train", traced, mesh, memory, model_flops, flops, (config.data.global_batch, "images"), stacked)


def _trace_step(config, mesh):
    """-> (plan of the run, arguments of its step, jax.stages.Traced)."""
    plan = train._plan(config, mesh, PART_WORDS)  # computes a little: outside of the mesh, whose devices need not be there
    arguments = abstract.train_arguments(config, plan, mesh)
    with jax.set_mesh(mesh):
        return plan, arguments, plan.step_fn.trace(*arguments)


def _served(name, config, mesh, rows):
    model = PlumConfig.from_dict(config.model)
    graphdef, shapes = build(model)
    program = serving.programs(model, bool(switch(config.eval, "eval.feedback")))[SERVED[name]]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = BATCH_SIZE * shards if rows is None else rows
    if rows < 1 or rows % shards:
        raise UserError(f"--rows {rows}: {shards} devices do not divide it (data x fsdp of config.mesh); give a multiple")
    placed = abstract.parameters(config, shapes, mesh)
    parts = {part: placed[part] for part in program.parts if part in placed}
    inputs = _inputs(program, config, model, mesh, rows)
    cache = tuple(key for key in ("keys", "values") if key in inputs)

    def run(parts, cache, rest):
        return program.run(bind(graphdef, {**shapes, **parts}), **cache, **rest)

    arguments = parts, {key: inputs[key] for key in cache}, {key: x for key, x in inputs.items() if key not in cache}
    outputs = dict.fromkeys(jax.eval_shape(run, *arguments)) | {key: inputs[key].sharding for key in cache}
    with jax.set_mesh(mesh):
        traced = jax.jit(run, donate_argnums=1, out_shardings=outputs).trace(*arguments)
    memory = {
        "parameters": abstract.bytes_per_device(parts),
        "optimizer": 0,
        "inputs": abstract.bytes_per_device(arguments[1:]),
        "activations": 0,
    }
    flops, what = count_flops(traced.jaxpr), {"prefill": "prompts", "decode": "tokens", "masks": "answers"}[name]
    return Traced(name, traced, mesh, memory, flops, flops, (rows, what), stacked_parameters(parts, mesh))


def _inputs(program, config, model, mesh, rows):
    """Arguments of a served program: {name: shape with its place}, the sizes that vary as `plum predict` chooses them."""
    prompt = -(-config.data.max_tokens // PROMPT_BUCKET) * PROMPT_BUCKET
    positions = prompt - 1 + model.clip.grid**2 + config.eval.max_new_tokens
    sizes = dict(
        b=rows, i=rows, t=prompt, m=config.eval.max_new_tokens, c=positions, n=max(MIN_SPAN_BUCKET, config.data.max_spans)
    )
    inputs = {}
    for key, (text, dtype) in program.inputs.items():
        symbols = [part.strip() for part in text.split(",")]
        shape = tuple(sum(int(sizes.get(term, term)) for term in part.split(" + ")) for part in symbols)
        spec = [ROWS if symbol in ("b", "i") else None for symbol in symbols]
        if key in ("keys", "values") and model.llama.heads % mesh.shape["tensor"] == 0:
            spec[3] = "tensor"  # heads, as the kernels that make them
        inputs[key] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
    return inputs


def stacked_parameters(placed, mesh):
    """Nested dictionary of placed shapes -> {path: (shape, mesh size of `tensor` if it splits this one)} of the parameters of
    stacked layers that are split over the mesh."""
    from plum_jax.sharding import path_name

    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(placed):
        if x.ndim > 2 and x.sharding.shard_shape(x.shape) != x.shape and x.shape[0] > 1:
            found[path_name(path)] = (x.shape, mesh.shape["tensor"] if "tensor" in x.sharding.spec else 1)
    return found
