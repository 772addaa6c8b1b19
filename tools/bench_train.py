"""Time, operations and memory of a training step with random weights and a random batch, and of PyTorch beside it.

    python -m tools.bench_train                                   # configs/tiny.py
    python -m tools.bench_train --size=13b --json out.json        # weights in bfloat16, split over all devices
    python -m tools.bench_train --size=7b --config.data.global_batch=16 --config.model.remat=dots --config.mesh.tensor=2

The step is that of `plum train`: the same loss, optimizer, sharding and donation. The peer is the transcription of the
reference in tests/reference, with the same weights (converted by name) and the same batch; it runs from a checkout, on a CPU in
float32. What it does not have is switched off in ours for that comparison, and both must give the same loss: the patch loss
(ours), Muon (AdamW in both), tags of text positions alone (all positions in both), dropout. Both run in turns. The target is
three times as fast with configs/tiny.py.

Answers hold 1 to --spans spans, three on average as in the data of the quickstart. Operations are those of matrix products and
convolutions; `mfu` counts none that is only done again to save memory, `hfu` counts all. Prints a table and one JSON object.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from plum_jax import cli
from plum_jax.cache import enable_compilation_cache
from plum_jax.models.plum import PlumConfig
from plum_jax.params import merge, partition
from plum_jax.settings import check_split
from plum_jax.sharding import put_batch, tree_sharding
from plum_jax.training_plan import plan_training
from tools import reference_model, sizes, timing, torch_peers
from tools.random_batch import WORDS, random_batch
from tools.random_weights import random_params

TARGET = 3.0  # times as fast as the transcription, with configs/tiny.py
SAME_LOSS = 1e-4  # relative


def comparable(config):
    """The config with what the transcription has: the same losses, optimizer and float32 everywhere."""
    config = config.copy_and_resolve_references()
    config.model.llama.lora_dropout = config.model.tagger.dropout = 0.0
    config.model.decoder.pe_dtype = config.model.logits_dtype = "float32"
    config.loss.update(language=1.0, patch=0.0, tag_positions="all", average="step", tversky_clamp=False)
    config.optim.update(name="adamw", accumulate_dtype="float32")
    return config


def make_step(config, mesh):
    """What `plum train` makes of a config before it allocates anything: the jitted step, and where its arrays belong."""
    return plan_training(config, mesh, [[1, 2]] * WORDS)


def weights(config, plan, mesh, seed):
    """-> (trainable float32, frozen in the dtype of activations), on the mesh."""
    trained = flatten_dict(partition(plan.abstract, config.trainable)[0], sep="/")
    shardings = tree_sharding(plan.abstract, mesh)
    params = random_params(plan.abstract, shardings, seed, lambda path: "float32" if path in trained else config.model.dtype)
    return partition(params, config.trainable)


class Training:
    """A step with its state, run again and again."""

    def __init__(self, config, mesh, batch, seed):
        plan = make_step(config, mesh)
        self.parameters, self.trainable = plan.parameters, plan.trainable
        trainable, self.frozen = weights(config, plan, mesh, seed)
        self.state = jax.jit(plan.init, out_shardings=plan.sharding)(trainable)
        self.batches, self.key = put_batch(batch, mesh, config.data.micro_batches), jax.random.key(seed)
        args = self.state, self.frozen, self.batches, self.key
        self.shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        self.program, self.compile_seconds, self.memory = timing.compile_program(plan.step_fn, *args)

    def parameters_now(self):
        return jax.device_get(merge(self.state.params, self.frozen))

    def __call__(self):
        """One update -> the loss before it."""
        self.state, sums = self.program(self.state, self.frozen, self.batches, self.key)
        total, weight = jax.device_get(sums["loss"])
        return total / weight


def operations(config, mesh, shapes):
    """FLOPs of a step -> (without what is done again in the backward pass, with it)."""
    found = []
    for remat in ("none", config.model.remat):
        wide = config.copy_and_resolve_references()
        wide.model.update(dtype="float32", remat=remat)
        found.append(timing.operations(make_step(wide, mesh).step_fn, *shapes))
    return found


def compare(config, mesh, batch, torch, args):
    """Ours and the transcription on the same step. NoPeer where it cannot run."""
    config = comparable(config)
    reference_model.check(torch)
    if config.data.conversations != 1:
        raise torch_peers.NoPeer("the batch of the transcription has one conversation for each image here")
    batch = batch._replace(patch_part=None)
    ours = Training(config, mesh, batch, args.seed)
    plum = PlumConfig.from_dict(config.model)
    theirs = reference_model.train_step(config, plum, ours.parameters_now(), batch, torch)
    losses = float(ours()), theirs()
    if not np.isclose(*losses, rtol=SAME_LOSS):
        raise ArithmeticError(f"the losses differ, {losses[0]:.6f} and {losses[1]:.6f}: these are not the same step")
    times = timing.in_turns({"ours": ours, "torch": theirs}, repeats=args.repeats, warmup=args.warmup)
    return {
        "ours": times["ours"]._asdict(), "torch": times["torch"]._asdict(), **timing.ratios(times, "torch", "ours"),
        "losses": losses,
    }  # fmt: skip


def measure(config, mesh, batch, args):
    """The step of the config itself."""
    training = Training(config, mesh, batch, args.seed)
    loss = training()
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}: these times would mean nothing")
    product, product_flops = timing.products(jnp.dtype(config.model.dtype))
    times = timing.in_turns({"ours": training, "product": product}, repeats=args.repeats, warmup=args.warmup)
    flops, executed = operations(config, mesh, training.shapes)
    data = config.data
    rates = timing.rates(flops, times["ours"], times["product"], product_flops)
    positions = data.max_tokens - 1 + (config.model.clip.image_size // config.model.clip.patch) ** 2
    return {
        "images": data.global_batch, "images_with_masks": len(batch.masks), "micro_batches": data.micro_batches,
        "positions": positions, "spans": int(batch.span_valid.sum()), "parameters": training.parameters,
        "trainable": training.trainable, "remat": config.model.remat, "seconds": times["ours"]._asdict(),
        "images_per_second": data.global_batch / times["ours"].median, **rates,
        "executed_flops": executed, "hfu": rates["mfu"] * (executed / flops),
        "memory_bytes": training.memory, "compile_seconds": training.compile_seconds,
    }  # fmt: skip


def main(argv=None):
    parser = sizes.parser_of(__doc__)
    parser.add_argument("--spans", type=int, default=5, help="most spans of an answer (default 5: three on average)")
    args, _, config, mesh = sizes.parse(parser, argv, train=True)
    config = config.copy_and_resolve_references()
    config.data.grounded = tuple(config.data.grounded) or (1, 1)  # a mixture draws its images with masks; here all have some
    check_split(config, mesh)
    enable_compilation_cache()
    about, others, plum = timing.machine(mesh, args.note), timing.Others(), PlumConfig.from_dict(config.model)
    batch = random_batch(config, plum, most_spans=args.spans, seed=args.seed)
    results = {"size": args.config or args.size, "dtype": plum.dtype, "repeats": args.repeats, "machine": about}
    why = "left out" if args.no_torch else torch_peers.missing()
    with jax.set_mesh(mesh):
        results["step"] = measure(config, mesh, batch, args)
        if not why:
            torch = torch_peers.Torch(plum, plum.dtype, about["cores"])
            results["torch"] = torch.describe()
            try:
                results["compared"] = {**compare(config, mesh, batch, torch, args), "target": TARGET}
            except torch_peers.NoPeer as reason:
                why = str(reason)
    results["no_torch"] = why
    results["peak_memory"], about["others"] = timing.peak_memory(), others.share()
    report(results)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


def report(results):
    """Prints the table and the JSON object."""
    s = results["step"]
    seconds, flops, executed = s["seconds"], s["flops"] / 1e12, s["executed_flops"] / 1e12
    shares = f"MFU {s['mfu']:.1%}, HFU {s['hfu']:.1%} of "
    shares += f"the data sheet; {s['of_products']:.1%} of a large product" if s["peak"]["nominal"] else "a large product"
    lines = {
        "step": f"{seconds['median'] * 1e3:.1f} ms, spread {seconds['spread']:.0%}; compiled in {s['compile_seconds']:.0f} s",
        "batch": f"{s['images']} images ({s['images_with_masks']} with masks, {s['spans']} spans), {s['positions']} positions",
        "rate": f"{s['images_per_second']:.1f} images/s",
        "operations": f"{flops:.3f} TFLOP, with what is recomputed {executed:.3f}",
        "utilisation": shares,
        "memory": "not known" if s["memory_bytes"] is None else f"{s['memory_bytes'] / 1e9:.2f} GB per device",
        "PyTorch": f"no comparison: {results['no_torch']}",
    }
    if "compared" in results:
        c = results["compared"]
        lines["PyTorch"] = (
            f"{c['torch']['median'] * 1e3:.1f} ms, ours {c['ours']['median'] * 1e3:.1f} ms for the same losses and optimizer: "
            f"{c['ratio']:.1f} times as fast ({c['ratio_of_processor_time']:.1f} by processor time), {TARGET:.0f} wanted"
        )
    for name, line in lines.items():
        print(f"{name:<14}{line}")
    if line := timing.disturbed(results["machine"]):
        print(line)
    print(json.dumps(results))


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="bench_train"))
