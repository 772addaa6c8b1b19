"""What a training run says before its first step: the model, the mesh, the batch, three prompts, and the memory."""

import sys

from plum_jax import console


def memory(program):
    """'the step needs 0.4 GB per device, 23.1 GB are free', with what to do when it does not fit."""
    import jax
    import psutil

    used = program.memory_analysis()
    if used is None:
        return "this backend does not tell the memory of the step"
    need = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    free = psutil.virtual_memory().available // len(jax.local_devices()) if limit is None else limit
    advice = ""
    if need > free:
        advice = "; it will not fit: raise --config.data.micro_batches or --config.mesh.fsdp, or --config.model.remat=full"
    return f"the step needs {console.size(need)} per device, {console.size(free)} are free{advice}"


def describe(run, batch, steps):
    """Prints the model, the mesh, the batch and three prompts."""
    config, plan, sizes = run.config, run.plan, run.mesh.shape
    share = 100 * plan.trainable / plan.parameters
    print(f"  model     {plan.parameters:,} parameters, {plan.trainable:,} trainable ({share:.1f} %)")
    print(f"  mesh      {', '.join(f'{name} {size}' for name, size in sizes.items())}: {run.mesh.size} devices")
    conversations, micro = config.data.conversations, config.data.micro_batches
    print(
        f"  batch     {config.data.global_batch} images x {conversations} conversations in {micro} micro-batches; {steps} steps"
    )
    print("  prompts, as the model sees them:")
    for text in prompts(batch, run.tokenizer, 3):
        print(f"    {text!r}")
    sys.stdout.flush()


def prompts(batch, tokenizer, count):
    """The first conversations of a batch as text, with <image> where the image features go."""
    texts = []
    for row in range(min(count, len(batch.tokens))):
        tokens = batch.tokens[row, 0][batch.token_valid[row, 0]].tolist()
        at = int(batch.image_position[row, 0])
        pieces = [tokens] if at < 0 else [tokens[:at], tokens[at + 1 :]]
        texts.append("<image>".join(tokenizer.decode(piece) for piece in pieces))
    return texts
