"""The programs that a plan compiles, made by the code that runs them: the training step, and what an answer needs."""

import itertools
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines.sources import grounded_pair
from plum_jax.errors import UserError
from plum_jax.inference import BATCH_SIZE, MIN_SPAN_BUCKET, PROMPT_BUCKET
from plum_jax.models.plum import PlumConfig, bind, build
from plum_jax.planning import abstract
from plum_jax.planning.flops import count_flops, kept_bytes
from plum_jax.serving import programs as serving
from plum_jax.settings import check_settings, check_split
from plum_jax.sharding import compiler_options, make_mesh, path_name
from plum_jax.switches import switch
from plum_jax.training_plan import plan_training

SERVED = {"prefill": "prefill", "decode": "decode_step", "masks": "decode_masks"}  # our name -> that of plum_jax.serving
WORK = {"prefill": "prompts", "decode": "tokens", "masks": "answers"}  # what one row of a run is
ROWS = ("data", "fsdp")
PART_WORDS = [[1, 2, 3]] * 64  # of data that need not be there, for the patch loss: 64 parts with names of three tokens


class Program(NamedTuple):
    """A program for a mesh, not traced yet."""

    mesh: object
    memory: dict  # {"parameters", "optimizer", "inputs"}: bytes per device, exact
    work: tuple  # (how much one run does, of what), such as (128, "images")
    stacked: dict  # as `traffic.whole_parameters` takes them
    trace: object  # () -> Traced

    @property
    def least(self):
        """Bytes per device without an activation or a temporary: what no compiler can save."""
        return sum(self.memory.values())


class Traced(NamedTuple):
    lower: object  # () -> jax.stages.Lowered
    model_flops: int  # over all devices, without what is computed again to save memory
    flops: int  # over all devices, with it
    kept: int  # bytes per device of activations that the backward pass needs


def prepare(name, config, target, rows=None):
    """Name of a program, config, Target, rows of an inference batch -> Program.

    Raises:
      UserError: the config is wrong, or does not divide among the devices, as `plum train` says it.
    """
    config = complete(config)
    mesh = make_mesh(config.mesh, target.devices)
    return _train(config, mesh) if name == "train" else _served(name, config, mesh, rows)


def complete(config):
    """The config with a name in place of the folder of data that need not be there. UserError as of `plum train`."""
    config = config.copy_and_resolve_references()
    if not config.data.folder and not config.data.root:
        config.data["root" if config.data.get("sources") else "folder"] = "DIR"
    check_settings(config)
    config.data.grounded = grounded_pair(config.data)  # as `plum train` fills it in
    return config


def _train(config, mesh):
    check_split(config, mesh)
    plan = plan_training(config, mesh, PART_WORDS)  # computes a little: outside of the mesh, whose devices need not be there
    arguments = state, frozen, batches, _ = abstract.train_arguments(config, plan, mesh)
    memory = {
        "parameters": abstract.bytes_per_device((state.params, frozen)),
        "optimizer": abstract.bytes_per_device(state.opt_state),
        "inputs": abstract.bytes_per_device(batches),
    }

    def trace():
        with jax.set_mesh(mesh):
            traced = plan.step_fn.trace(*arguments)
        flops = model_flops = count_flops(traced.jaxpr)
        if config.model.remat != "none":
            once = config.copy_and_resolve_references()
            once.model.remat = "none"
            step_fn = plan_training(once, mesh, PART_WORDS).step_fn
            with jax.set_mesh(mesh):
                model_flops = count_flops(step_fn.trace(*arguments).jaxpr)
        kept = kept_bytes(traced.jaxpr) // (mesh.shape["data"] * mesh.shape["fsdp"])
        return Traced(traced.lower, model_flops, flops, kept)

    stacked = stacked_parameters(abstract.parameters(config, plan.abstract, mesh), mesh)
    return Program(mesh, memory, (config.data.global_batch, "images"), stacked, trace)


def _served(name, config, mesh, rows):
    model = PlumConfig.from_dict(config.model)
    graphdef, shapes = build(model)
    program = serving.programs(model, bool(switch(config.eval, "eval.feedback")))[SERVED[name]]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = BATCH_SIZE * shards if rows is None else rows
    if rows % shards:
        raise UserError(f"--rows {rows}: {shards} devices do not divide it (data x fsdp of config.mesh); give a multiple")
    placed = abstract.parameters(config, shapes, mesh)
    parts = {part: placed[part] for part in program.parts if part in placed}
    inputs = _inputs(program, config, model, mesh, rows)
    cache = {key: inputs.pop(key) for key in ("keys", "values") if key in inputs}

    def run(parts, cache, rest):
        return program.run(bind(graphdef, {**shapes, **parts}), **cache, **rest)

    def trace():
        with jax.set_mesh(mesh):
            outputs = dict.fromkeys(jax.eval_shape(run, parts, cache, inputs)) | {key: x.sharding for key, x in cache.items()}
            jitted = jax.jit(run, donate_argnums=1, out_shardings=outputs, compiler_options=compiler_options(mesh))
            traced = jitted.trace(parts, cache, inputs)
        flops = count_flops(traced.jaxpr)
        return Traced(traced.lower, flops, flops, 0)

    sizes = (abstract.bytes_per_device(parts), 0, abstract.bytes_per_device((cache, inputs)))
    memory = dict(zip(("parameters", "optimizer", "inputs"), sizes, strict=True))
    return Program(mesh, memory, (rows, WORK[name]), stacked_parameters(parts, mesh), trace)


def _inputs(program, config, model, mesh, rows):
    """Arguments of a served program: {name: shape with its place}, the sizes that vary as `plum predict` chooses them."""
    prompt = -(-config.data.max_tokens // PROMPT_BUCKET) * PROMPT_BUCKET
    answer, spans = config.eval.max_new_tokens, max(MIN_SPAN_BUCKET, config.data.max_spans)
    sizes = dict(b=rows, i=rows, t=prompt, m=answer, c=prompt - 1 + model.clip.grid**2 + answer, n=spans)
    inputs = {}
    for key, (text, dtype) in program.inputs.items():
        symbols = [part.strip() for part in text.split(",")]
        shape = tuple(sum(int(sizes.get(term, term)) for term in part.split(" + ")) for part in symbols)
        spec = [ROWS if symbol in ("b", "i") else None for symbol in symbols]
        if key in ("keys", "values") and model.llama.heads % mesh.shape["tensor"] == 0:
            spec[2] = "tensor"  # heads, as the kernels that make them
        inputs[key] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
    return inputs


def stacked_parameters(placed, mesh):
    """Nested dictionary of placed shapes -> {path: its shapes as of `traffic.whole_parameters`} of the parameters of stacked
    layers that are split over the mesh."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(placed):
        if x.ndim > 2 and x.shape[0] > 1 and x.sharding.shard_shape(x.shape) != x.shape:
            axes = itertools.zip_longest(x.shape, x.sharding.spec)
            by_tensor = tuple(size // mesh.shape["tensor"] if axis == "tensor" else size for size, axis in axes)
            found[path_name(path)] = {x.shape, by_tensor}
    return found
