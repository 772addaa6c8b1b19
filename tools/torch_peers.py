"""The modules of `transformers` that do what parts of PLUM do, of the same sizes, as functions that run them once.

Eager PyTorch as `transformers` runs it by default, with its fused attention. Nothing here is imported without need: PyTorch is
no dependency of plum_jax.
"""

import contextlib
import functools
import gc


class NoPeer(Exception):
    """Why a part has nothing to be compared with."""


def missing():
    """What is missing for these peers, '' when nothing is."""
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except ImportError:
            return f"{name} is not installed"
    return ""


class Torch:
    """Builds peers in one dtype, on the accelerator where there is one, with as many threads as XLA has."""

    def __init__(self, config, dtype, cores):
        import torch

        self.torch, self.config = torch, config
        self.dtype = getattr(torch, dtype)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(cores)
        torch.manual_seed(0)

    def release(self):
        """Gives back what peers that are gone held."""
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def describe(self):
        return {"version": self.torch.__version__, "device": self.device, "threads": self.torch.get_num_threads()}

    def sam(self, images):
        """SamVisionEncoder on random pixels."""
        from transformers import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        c = self.config.sam
        encoder = self._make(SamVisionEncoder, SamVisionConfig(
            hidden_size=c.width, output_channels=c.out_width, num_hidden_layers=c.depth, num_attention_heads=c.heads,
            image_size=c.image_size, patch_size=c.patch, mlp_dim=c.mlp, window_size=c.window,
            global_attn_indexes=list(c.global_blocks), layer_norm_eps=c.epsilon,
        ))  # fmt: skip
        pixels = self._random(images, 3, c.image_size, c.image_size)
        return self._inference(lambda: encoder(pixels).last_hidden_state)

    def clip(self, images):
        """CLIPVisionModel with the layers that run."""
        from transformers import CLIPVisionConfig, CLIPVisionModel

        c = self.config.clip
        tower = self._make(CLIPVisionModel, CLIPVisionConfig(
            hidden_size=c.width, intermediate_size=c.mlp, num_hidden_layers=c.depth, num_attention_heads=c.heads,
            image_size=c.image_size, patch_size=c.patch, layer_norm_eps=c.epsilon,
        ))  # fmt: skip
        pixels = self._random(images, 3, c.image_size, c.image_size)
        return self._inference(lambda: tower(pixels).last_hidden_state)

    def prefill(self, rows, positions):
        """LlamaForCausalLM on embeddings, with a cache, logits of the last position alone."""
        model, embeds = self._llama(), self._random(rows, positions, self.config.llama.width)
        return self._inference(lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1).logits.argmax(-1))

    def decode(self, rows, positions, new_tokens):
        """LlamaForCausalLM, one token at a time behind the cache of a prompt."""
        from transformers import DynamicCache

        model, cache = self._llama(), DynamicCache()
        prompt = self.torch.ones(rows, positions, dtype=self.torch.int64, device=self.device)

        def run():
            token = prompt[:, :1]
            for _ in range(new_tokens):
                token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            cache.crop(-new_tokens)  # the next run starts where this one did
            return token

        with self.torch.inference_mode():
            model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return self._inference(run)

    def masks(self, rows, spans):
        """SamMaskDecoder, one prompt token for every mask."""
        from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
        from transformers.models.sam.modeling_sam import SamMaskDecoder

        c = self.config.decoder
        decoder = self._make(SamMaskDecoder, SamMaskDecoderConfig(
            hidden_size=c.width, mlp_dim=c.mlp, num_hidden_layers=c.depth, num_attention_heads=c.heads,
            attention_downsample_rate=c.attention_downsample, iou_head_hidden_dim=c.width,
        ))  # fmt: skip
        images, places, dense = (self._random(rows, c.width, c.grid, c.grid) for _ in range(3))
        prompts = self._random(rows, spans, 1, c.width)
        return self._inference(lambda: decoder(images, places, prompts, dense, False)[0])

    def step(self, rows, positions, recompute):
        """Loss of LlamaForCausalLM and its gradient with respect to every weight."""
        model = self._llama().train()
        if recompute:
            model.gradient_checkpointing_enable()
        tokens = self.torch.randint(3, self.config.llama.vocab_size, (rows, positions), device=self.device)

        def run():
            model.zero_grad(set_to_none=True)
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            return loss.detach()

        return self._finished(run)

    def _llama(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        c = self.config.llama
        return self._make(LlamaForCausalLM, LlamaConfig(
            vocab_size=c.padded_vocab, hidden_size=c.width, intermediate_size=c.mlp, num_hidden_layers=c.depth,
            num_attention_heads=c.heads, rms_norm_eps=c.epsilon, max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        ))  # fmt: skip

    def _make(self, cls, config):
        """A random module, created where and as it is used: no copy in float32, none on the host."""
        default = self.torch.get_default_dtype()
        self.torch.set_default_dtype(self.dtype)
        try:
            with self.torch.device(self.device):
                return cls(config).eval()
        finally:
            self.torch.set_default_dtype(default)

    def _random(self, *shape):
        return self.torch.randn(shape, dtype=self.dtype, device=self.device)

    def _inference(self, run):
        return self._finished(run, self.torch.inference_mode)

    def _finished(self, run, mode=contextlib.nullcontext):
        @functools.wraps(run)
        def finished():
            with mode():
                result = run()
            if self.device == "cuda":
                self.torch.cuda.synchronize()
            return result

        return finished
