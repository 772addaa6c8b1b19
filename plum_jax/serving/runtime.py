"""Runs a folder that `plum export` wrote, without the code of the model: only jax, its programs, and the tokenizer.

    model = plum_jax.serving.load("exported")
    answer = model("photo.jpg", "What visible parts does the object in the image have?")

`model` is the same object that `plum_jax.load` gives: texts, spans and masks are those of the checkpoint.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from data_pipelines.tokenizer import load_tokenizer
from plum_jax import greedy
from plum_jax.config_io import config_from_json
from plum_jax.errors import UserError
from plum_jax.evaluation import calibration
from plum_jax.inference import Model
from plum_jax.run_record import sha256_of
from plum_jax.serving.manifest import MANIFEST, PARAMETERS, TOKENIZER, check_files, read_manifest


class Served(NamedTuple):
    """What `inference.Model` wants to know of a model besides its programs."""

    config: Any
    tokenizer: Any
    path: str
    sha256: str  # of the manifest, which holds those of all files


def load(folder, *, verify=True):
    """An exported folder -> inference.Model that runs its programs.

    Args:
      verify: False skips the hashes, which read every file once more; files are checked to be there.

    Raises:
      UserError: a file is missing or damaged; this jax cannot read the programs, or runs on another platform.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_jax(folder, manifest)
    check_files(folder, manifest, hashes=verify)
    programs = ExportedPrograms(read_programs(folder, manifest), read_parameters(folder, manifest["parameters"]["arrays"]))
    config = config_from_json(manifest["config"])
    served = Served(config, load_tokenizer(folder / TOKENIZER), str(folder), sha256_of(folder / MANIFEST))
    model = Model(served, calibrate=False, programs=programs)
    model.calibration = calibration.load(folder, manifest["checkpoint"]["sha256"])
    return model


def check_jax(folder, manifest):
    """UserError when this jax reads another version of exported programs, or runs on a platform that they are not for."""
    first = jax.export.minimum_supported_calling_convention_version
    last = jax.export.maximum_supported_calling_convention_version
    found, made = manifest["calling_convention"], manifest["versions"].get("jax", "unknown")
    if not first <= found <= last:
        raise UserError(
            f"{folder}: was exported by jax {made} with calling convention {found}, jax {jax.__version__} reads {first} to "
            f"{last}; export again with this jax, or install jax {made}"
        )
    platform = jax.export.default_export_platform()
    if platform not in manifest["platforms"]:
        raise UserError(
            f"{folder}: was exported for {', '.join(manifest['platforms'])}, jax runs on {platform} here; export again with "
            f"--platforms={platform}"
        )


def read_programs(folder, manifest):
    """-> {name: jax.export.Exported}. UserError when this jax cannot read one of the files."""
    programs = {}
    for name, described in manifest["programs"].items():
        path = folder / described["file"]
        try:
            programs[name] = jax.export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:  # flatbuffers, struct and jax raise what they like
            made = manifest["versions"].get("jax", "unknown")
            raise UserError(
                f"{path}: jax {jax.__version__} cannot read this program of jax {made}; export again with this jax"
            ) from error
    return programs


def read_parameters(folder, arrays):
    """{path: {"shape", "dtype"}} -> nested dictionary of arrays on the default device, in the dtypes of the export."""
    from orbax.checkpoint import v1 as ocp

    device, shapes = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), {}
    for path, array in arrays.items():
        *parents, last = path.split("/")
        inner = functools.reduce(lambda tree, name: tree.setdefault(name, {}), parents, shapes)
        inner[last] = jax.ShapeDtypeStruct(tuple(array["shape"]), array["dtype"], sharding=device)
    try:
        return ocp.load_checkpointables((folder / PARAMETERS).absolute(), dict(params=shapes))["params"]
    except Exception as error:  # whatever Orbax and TensorStore raise for damaged files
        raise UserError(
            f"{folder / PARAMETERS}: the parameters cannot be read; copy the folder again or export again"
        ) from error


class ExportedPrograms:
    """The methods of `generate.LivePrograms` by exported programs. Each is compiled once per shape, as any jitted function."""

    def __init__(self, programs, params):
        """programs: {name: jax.export.Exported}. params: nested dictionary of all parameters."""
        self.exported, self.params = programs, params
        self._encode, self._decode = jax.jit(self._encode_images), jax.jit(functools.partial(self._run, "decode_masks"))
        self._generate = jax.jit(self._answer, static_argnames=("max_new_tokens", "end_token", "whole_rows"))

    def encode_images(self, clip_pixels, sam_pixels, resized_hw):
        return self._encode(self.params, clip_pixels, sam_pixels, resized_hw)

    def generate(self, image_tokens, tokens, token_count, image_position, **options):
        return self._generate(self.params, image_tokens, tokens, token_count, image_position, **options)

    def decode_masks(self, image_embeddings, image, span_embeds, span_valid):
        return self._decode(
            self.params, image_embeddings=image_embeddings, image=image, span_embeds=span_embeds, span_valid=span_valid
        )["low_res"]

    def _run(self, name, params, **inputs):
        """One program -> {name: array}; it takes its part of the parameters."""
        exported = self.exported[name]
        parts = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0][0]
        return exported.call({part: params[part] for part in parts}, inputs)

    def _encode_images(self, params, clip_pixels, sam_pixels, resized_hw):
        tokens = self._run("encode_clip", params, clip_pixels=clip_pixels)["image_tokens"]
        embeddings = self._run("encode_sam", params, sam_pixels=sam_pixels, resized_hw=resized_hw)["image_embeddings"]
        return tokens, embeddings

    def _answer(
        self, params, image_tokens, tokens, token_count, image_position, *, max_new_tokens, end_token, whole_rows=False
    ):
        """`generate.generate` with the prefill, the step and the reading replaced by their programs."""
        prefill = jax.tree.unflatten(self.exported["prefill"].in_tree, self.exported["prefill"].in_avals)[0][1]
        layers, _, heads, _, head = prefill["keys"].shape
        rows, size = tokens.shape[0], tokens.shape[1] - 1 + image_tokens.shape[1] + max_new_tokens
        empty = jnp.zeros((layers, rows, heads, size, head), prefill["keys"].dtype)
        start = self._run(
            "prefill", params, image_tokens=image_tokens, tokens=tokens, token_count=token_count,
            image_position=image_position, keys=empty, values=empty,
        )  # fmt: skip

        def step(token, active, cache):
            keys, values, length = cache
            new = self._run("decode_step", params, token=token, active=active, keys=keys, values=values, length=length)
            return new["token"], new["state"], (new["keys"], new["values"], new["length"])

        cache, length = (start["keys"], start["values"], start["length"]), start["length"]
        said = greedy.decode(step, start["token"], cache, start["hidden"], max_new_tokens=max_new_tokens, end_token=end_token)
        read = self._run("read_sequence", params, hidden=start["hidden"], states=said.states, length=length, count=said.count)
        readout = greedy.Readout(**read)
        return said.generated, said.count, readout if whole_rows else greedy.take_generated(readout, length, max_new_tokens)
