"""Time, operations and memory of the parts of PLUM with random weights, and of the modules of `transformers` beside them.

    python -m tools.bench_model                                   # configs/tiny.py
    python -m tools.bench_model --size=7b --only sam,prefill,decode --json out.json
    python -m tools.bench_model --size=13b --config.mesh.tensor=8 --config.mesh.fsdp=1 --no-torch

    sam       SAM's encoder, images                 SamVisionEncoder
    clip      CLIP's layers that run, images        CLIPVisionModel
    prefill   prompts through Llama into a cache    LlamaForCausalLM
    decode    tokens one by one behind a cache      LlamaForCausalLM
    masks     masks of spans, each decoded alone    SamMaskDecoder
    feedback  masks that see those before them      the PyTorch transcription in tests/reference, on a CPU in float32
    step      loss and gradient of all of Llama     LlamaForCausalLM (the step of the whole model: tools.bench_train)

Sizes: tiny is configs/tiny.py, 7b and 13b are configs/plum.py, quarter has a quarter of the widths and layers of 7b. Weights
are drawn on the devices, split as in training; rows are split over data and fsdp. Every part runs in turns with its peer and
with one large matrix product, whose rate is the yardstick where no data sheet gives one (a CPU). Operations are those of matrix
products and convolutions. Prints a table and one JSON object.
"""

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from plum_jax import cli
from plum_jax.cache import enable_compilation_cache
from plum_jax.errors import UserError
from plum_jax.models import clip, feedback, sam_decoder, sam_encoder
from plum_jax.models.llama import Llama
from plum_jax.models.plum import PlumConfig, bind
from plum_jax.params import count
from plum_jax.sharding import compiler_options, tree_sharding
from tools import reference_model, sizes, timing, torch_peers
from tools.random_weights import random_params

TARGET = 4.5  # of the time for 16 spans against that for 4


class Program(NamedTuple):
    """One part, ready to run."""

    run: object  # jitted function
    args: tuple
    work: dict  # what one run does: {"images": 8}
    parameters: int
    peer: object  # torch_peers.Torch -> function that does the same, or None


class Bench:
    """What the parts have in common: the config, the mesh, how many rows."""

    def __init__(self, args, size, config, mesh):
        self.config, self.mesh, self.seed = PlumConfig.from_dict(config.model), mesh, args.seed
        self.dtype = jnp.dtype(self.config.dtype)
        self.images = sizes.whole(args.images or size.images, mesh)
        self.rows = sizes.whole(args.rows or size.rows, mesh)
        self.positions = args.positions or size.positions
        self.new_tokens = args.new_tokens or size.new_tokens
        self.spans = tuple(args.spans)

    def modules(self, **makers):
        """{name in Plum: function of nnx.Rngs} -> ({name: graph definition}, {name: random parameters on the mesh})."""
        found = {name: nnx.split(nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))) for name, make in makers.items()}
        shapes = {name: nnx.to_pure_dict(state) for name, (_, state) in found.items()}
        params = random_params(shapes, tree_sharding(shapes, self.mesh), self.seed, lambda path: self.dtype)
        return {name: graphdef for name, (graphdef, _) in found.items()}, params

    def random(self, *shape):
        """Random rows in the dtype of activations, split over the devices."""
        draw = jax.jit(
            lambda key: jax.random.normal(key, shape, self.dtype), out_shardings=NamedSharding(self.mesh, P(("data", "fsdp")))
        )
        return draw(jax.random.key(self.seed + 1))

    def program(self, graphdefs, params, call, *inputs, work, peer):
        """`call(*modules, *inputs)` as a Program."""

        @functools.partial(jax.jit, compiler_options=compiler_options(self.mesh))
        def run(params, *inputs):
            return call(*(bind(graphdefs[name], params[name]) for name in graphdefs), *inputs)

        return Program(run, (params, *inputs), work, count(params), peer)


def sam(b):
    graphdefs, params = b.modules(sam_encoder=lambda r: sam_encoder.SamEncoder(b.config.sam, rngs=r))
    pixels = b.random(b.images, b.config.sam.image_size, b.config.sam.image_size, 3)
    peer = lambda torch: torch.sam(b.images)  # noqa: E731
    return {"sam": b.program(graphdefs, params, lambda m, x: m(x), pixels, work={"images": b.images}, peer=peer)}


def clip_tower(b):
    graphdefs, params = b.modules(clip=lambda r: clip.Clip(b.config.clip, rngs=r))
    pixels = b.random(b.images, b.config.clip.image_size, b.config.clip.image_size, 3)
    peer = lambda torch: torch.clip(b.images)  # noqa: E731
    return {"clip": b.program(graphdefs, params, lambda m, x: m(x), pixels, work={"images": b.images}, peer=peer)}


def llama(b):
    """Llama without adapters: its peer has none."""
    config = dataclasses.replace(b.config.llama, lora_rank=0)
    return b.modules(llama=lambda r: Llama(config, r))


def run_prompts(model, embeds, room):
    """[R, T, D] -> (most likely next token int32[R], cache with `room` more places)."""
    rows, length, _ = embeds.shape
    cache = model.empty_cache(rows, length + room, embeds.dtype)
    hidden, cache = model.extend(embeds, cache, jnp.full(rows, length), empty=True)
    return model.logits(hidden[:, -1]).argmax(-1).astype(jnp.int32), cache


def prefill(b):
    graphdefs, params = llama(b)
    embeds, work = b.random(b.rows, b.positions, b.config.llama.width), {"rows": b.rows, "tokens": b.rows * b.positions}
    peer = lambda torch: torch.prefill(b.rows, b.positions)  # noqa: E731
    call = lambda m, x: run_prompts(m, x, 0)  # noqa: E731
    return {"prefill": b.program(graphdefs, params, call, embeds, work=work, peer=peer)}


def decode(b):
    graphdefs, params = llama(b)
    embeds = b.random(b.rows, b.positions, b.config.llama.width)
    start = jax.jit(lambda params, x: run_prompts(bind(graphdefs["llama"], params), x, b.new_tokens))
    token, cache = start(params["llama"], embeds)

    def steps(model, token, cache):
        def step(carry, _):
            token, cache = carry
            embed = model.token_embeddings(token[:, None]).astype(b.dtype)
            hidden, cache = model.extend(embed, cache, jnp.ones_like(token))
            return (model.logits(hidden[:, 0]).argmax(-1).astype(jnp.int32), cache), None

        return jax.lax.scan(step, (token, cache), length=b.new_tokens)[0][0]

    work = {"rows": b.rows, "tokens": b.rows * b.new_tokens, "steps": b.new_tokens}
    peer = lambda torch: torch.decode(b.rows, b.positions, b.new_tokens)  # noqa: E731
    return {"decode": b.program(graphdefs, params, steps, token, cache, work=work, peer=peer)}


def _mask_inputs(b, spans, **more):
    c = b.config.decoder
    graphdefs, params = b.modules(
        prompt_encoder=lambda r: sam_decoder.PromptEncoder(c, rngs=r),
        mask_decoder=lambda r: sam_decoder.MaskDecoder(c, rngs=r),
        **more,
    )
    valid = jax.device_put(jnp.ones((b.rows, spans), bool), NamedSharding(b.mesh, P(("data", "fsdp"))))
    inputs = b.random(b.rows, c.grid, c.grid, c.width), b.random(b.rows, spans, c.width), valid
    return graphdefs, params, inputs, {"rows": b.rows, "masks": b.rows * spans}


def masks(b):
    spans = max(b.spans)
    graphdefs, params, inputs, work = _mask_inputs(b, spans)

    def alone(prompt, decoder, *inputs):
        return feedback.decode_spans(prompt, decoder, None, *inputs)

    peer = lambda torch: torch.masks(b.rows, spans)  # noqa: E731
    return {f"masks_{spans}": b.program(graphdefs, params, alone, *inputs, work=work, peer=peer)}


def with_feedback(b):
    found, c = {}, b.config
    pooler = functools.partial(feedback.Feedback, c.decoder.width, c.decoder.grid, c.feedback_heads, c.decoder.mask_channels)
    for spans in b.spans:
        graphdefs, params, inputs, work = _mask_inputs(b, spans, feedback=lambda r: pooler(rngs=r))
        peer = functools.partial(reference_model.masks, c, params, *inputs[:2])
        found[f"feedback_{spans}"] = b.program(graphdefs, params, feedback.decode_spans, *inputs, work=work, peer=peer)
    return found


def step(b):
    graphdefs, params = llama(b)
    recompute, tokens = b.config.remat != "none", jnp.ones((b.rows, b.positions), jnp.int32)
    tokens = jax.device_put(tokens, NamedSharding(b.mesh, P(("data", "fsdp"))))

    def loss(params, tokens):
        model = bind(graphdefs["llama"], params["llama"])
        embeds = model.token_embeddings(tokens).astype(b.dtype)
        hidden = model(embeds, jnp.full(tokens.shape[0], tokens.shape[1]), remat=recompute)
        logits = model.logits(hidden[:, :-1])
        chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        return (jax.nn.logsumexp(logits, -1) - chosen).mean()

    peer = lambda torch: torch.step(b.rows, b.positions, recompute)  # noqa: E731
    work = {"rows": b.rows, "tokens": b.rows * b.positions}
    run = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options(b.mesh))
    return {"step": Program(run, (params, tokens), work, count(params), peer)}


PARTS = {
    "sam": sam, "clip": clip_tower, "prefill": prefill, "decode": decode, "masks": masks, "feedback": with_feedback,
    "step": step,
}  # fmt: skip


def measure(program, torch, dtype, args):
    """Program -> its figures, and those of its peer where `torch` is a torch_peers.Torch."""
    compiled, compiling, memory = timing.compile_program(program.run, *program.args)
    _check_finite(compiled(*program.args))
    product, product_flops = timing.products(dtype)
    functions, why = {"ours": lambda: jax.block_until_ready(compiled(*program.args)), "product": product}, ""
    try:
        functions |= {"torch": program.peer(torch)} if torch else {}
    except torch_peers.NoPeer as reason:
        why = str(reason)
    times = timing.in_turns(functions, repeats=args.repeats, warmup=args.warmup)
    flops = timing.operations(program.run, *program.args)
    return {
        **program.work, "parameters": program.parameters, "seconds": times["ours"]._asdict(),
        **timing.rates(flops, times["ours"], times["product"], product_flops),
        "memory_bytes": memory, "compile_seconds": compiling,
        "torch": times["torch"]._asdict() if "torch" in times else None, "no_peer": why,
        **(timing.ratios(times, "torch", "ours") if "torch" in times else {}),
    }  # fmt: skip


def _check_finite(outputs):
    for x in jax.tree.leaves(outputs):
        if jnp.issubdtype(x.dtype, jnp.floating) and not bool(jnp.isfinite(x).all()):
            raise FloatingPointError("an output is not finite: these times would mean nothing")


def table(results):
    lines = [
        f"{'part':<12}{'work':>22}{'ours ms':>10}{'spread':>8}{'torch ms':>10}{'ratio':>7}{'GFLOP':>10}{'MFU':>7}"
        f"{'memory MB':>11}{'compile s':>11}"
    ]
    for name, r in results["parts"].items():
        unit = next(u for u in ("images", "masks", "tokens") if u in r)
        torch = f"{r['torch']['median'] * 1e3:10.1f}{r['ratio']:7.2f}" if r["torch"] else f"{'-':>10}{'-':>7}"
        memory = "-" if r["memory_bytes"] is None else f"{r['memory_bytes'] / 1e6:.0f}"
        lines.append(
            f"{name:<12}{f'{r[unit]:,} {unit}':>22}{r['seconds']['median'] * 1e3:10.1f}{r['seconds']['spread']:8.0%}{torch}"
            f"{r['flops'] / 1e9:10.2f}{r['mfu']:7.1%}{memory:>11}{r['compile_seconds']:11.1f}"
        )
    return "\n".join(lines)


def growth(parts, spans):
    """Time of the most spans against that of the fewest; None where feedback was not measured."""
    names = [f"feedback_{n}" for n in (min(spans), max(spans))]
    if names[0] == names[1] or names[0] not in parts:
        return None
    low, high = (parts[name]["seconds"]["median"] for name in names)
    return {"spans": [min(spans), max(spans)], "ratio": high / low, "target": TARGET, "reached": high / low <= TARGET}


def main(argv=None):
    parser = sizes.parser_of(__doc__)
    parser.add_argument("--only", metavar="PART,...", help=f"some of {','.join(PARTS)}")
    for name, what in dict(
        images="that the encoders see at a time", rows="conversations at a time", positions="of a prompt, with the image's",
        new_tokens="to decode",
    ).items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{what}; default: that of the size")
    parser.add_argument("--spans", type=int, nargs="+", default=[4, 16], help="masks of a row (default 4 16)")
    args, size, config, mesh = sizes.parse(parser, argv)
    chosen = args.only.split(",") if args.only else list(PARTS)
    for name in chosen:
        if name not in PARTS:
            raise UserError(f"--only: {name!r} is no part; give some of {','.join(PARTS)}")
    enable_compilation_cache()
    bench, about, others = Bench(args, size, config, mesh), timing.machine(mesh, args.note), timing.Others()
    why = "left out" if args.no_torch else torch_peers.missing()
    torch = None if why else torch_peers.Torch(bench.config, bench.config.dtype, about["cores"])
    results = {
        "size": args.config or args.size, "dtype": bench.config.dtype, "repeats": args.repeats, "machine": about,
        "torch": why or torch.describe(), "parts": {},
    }  # fmt: skip
    if why:
        print(f"No column of PyTorch: {why}.")
    with jax.set_mesh(mesh):
        for name in chosen:
            for part, program in PARTS[name](bench).items():
                results["parts"][part] = measure(program, torch, bench.dtype, args)
            if torch:
                torch.release()
    results["feedback"] = growth(results["parts"], bench.spans)
    results["peak_memory"], about["others"] = timing.peak_memory(), others.share()
    print(table(results))
    if line := timing.disturbed(about):
        print(line)
    for part, found in results["parts"].items():
        if found["no_peer"]:
            print(f"{part}: no column of PyTorch: {found['no_peer']}")
    if results["feedback"]:
        low, high = results["feedback"]["spans"]
        print(f"feedback: time({high} spans) / time({low} spans) = {results['feedback']['ratio']:.2f}, at most {TARGET} wanted")
    print(json.dumps(results))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="bench_model"))
