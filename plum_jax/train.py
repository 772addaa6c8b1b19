"""Training: flags -> mesh -> data -> state -> loop. Running the same command again goes on where it stopped."""

import argparse
import contextlib
import functools
import io
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from plum_jax import cli, console
from plum_jax.announce import describe, memory
from plum_jax.config_io import add_config_flag, parse_args
from plum_jax.paths import is_remote
from plum_jax.preemption import Preemption, leave_run, nothing_to_save, saved_so_far
from plum_jax.processes import first_says, meet, say, start_processes, sum_over_hosts
from plum_jax.run_record import RunRecord, remove_leftovers


class TrainResult(NamedTuple):
    step: int  # updates made since the beginning, by all runs of this folder
    seconds: float  # of this run's loop, without compilation
    images_per_second: float
    metrics: dict  # the last row of metrics.csv
    preempted: bool


def main(argv):
    parser = argparse.ArgumentParser("plum train", description=__doc__)
    add_config_flag(parser)
    parser.add_argument(
        "--workdir",
        required=True,
        help="run folder, or gs://BUCKET/FOLDER; one that holds checkpoints of the same config is resumed",
    )
    args, overrides = parse_args(parser, argv)

    with Preemption(functools.partial(leave_run, args.workdir)) as preemption:
        from plum_jax.cache import enable_compilation_cache
        from plum_jax.checkpoint import latest_step
        from plum_jax.initial import resolve_config

        start_processes()
        enable_compilation_cache()
        config = resolve_config(args.config, overrides)
        try:
            result = train(config, args.workdir, preemption)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(saved_so_far(latest_step(args.workdir))) from None
    if result.preempted:
        return 0
    _say_next(args.workdir, config, result)
    return 0


def _say_next(workdir, config, result):
    from data_pipelines.partonomy.opened import has_questions

    say(f"Wrote {workdir}: checkpoints/{result.step}, metrics.csv, tensorboard/, config.json, run.json")
    folder = config.data.folder if config.data.folder and has_questions(config.data.folder) else "DIR"
    split = next_split(folder)
    out = "eval" if is_remote(workdir) else f"{workdir}/eval"
    run, folder, out = (shlex.quote(str(path)) for path in (workdir, folder, out))
    say(f"Next: plum evaluate partonomy --checkpoint={run} --data={folder}{split} --out={out}")


def next_split(folder):
    """`--split` for a folder without a test split, which is the default of `plum evaluate`; else nothing."""
    found = {split for split in ("test", "val") if (Path(folder) / f"partonomy_qa_pairs_{split}.json").exists()}
    return " --split=val" if found == {"val"} else ""


def train(config, workdir, preemption=None):
    """Trains until `config.train.steps` updates are made, from the newest checkpoint of `workdir` if there is one.

    Args:
      preemption: Preemption that is entered already; without it SIGTERM is waited for here, and Ctrl-C is Python's.

    Returns:
      TrainResult; with preempted=True after SIGTERM, which saves first.

    Raises:
      UserError: data, config or checkpoints are not what they should be; nothing is written then.
      FloatingPointError: a loss or a gradient is not finite, and config.train.nonfinite does not say to skip such steps.
    """
    import jax

    from data_pipelines.pipeline import open_data
    from plum_jax import agreement, checkpoint
    from plum_jax.training_plan import open_state, plan_training
    from plum_jax.validation import pending

    config, mesh, tokenizer = _checked(config, workdir)
    source = open_data(config, tokenizer)
    agreement.check_data(source)
    mixed = bool(config.data.get("sources"))
    words = ["background", *([] if mixed else source.parts)]  # of the patch loss
    first = jax.process_index() == 0
    with jax.set_mesh(mesh):
        plan = plan_training(config, mesh, [tokenizer(word, add_special_tokens=False).input_ids for word in words])
        data = _Data.open(config, tokenizer, source, checkpoint.latest_step(workdir))
        if first:
            console.header("train", workdir)
        meet("opened")
        with checkpoint.open_checkpoints(workdir, config) as checkpointer:
            state, frozen, start = open_state(plan, config, mesh, checkpointer)
            if first:
                remove_leftovers(workdir)
                checkpoint.write_config(workdir, config)
            agreement.check_shared(f"{workdir}/config.json")
            if start:
                say(f"Resumed step {start:,} (data position, random keys and optimizer restored)")
            unscored = first_says("unscored", pending(config, workdir, start))
            if start >= config.train.steps and not unscored:
                say(f"Nothing to do: step {start} of {config.train.steps} is saved; raise --config.train.steps to go on")
                return TrainResult(start, 0.0, 0.0, {}, False)
            with RunRecord(workdir, "train", config, write=first) as record:
                record.note(parameters=plan.parameters, trainable=plan.trainable, mesh=dict(mesh.shape))
                if mixed:
                    record.note(sources=source.describe())
                elif first:
                    record.input("data", source.path)
                leave = preemption and preemption.leave
                run = _Run.open(
                    config, workdir, mesh, tokenizer, source, plan, frozen, checkpointer, record, start=start, leave=leave
                )
                run.validation.choose_best()
                if unscored:
                    _validate(run, start, state)
                if start >= config.train.steps:
                    return TrainResult(start, 0.0, 0.0, {}, False)
                data = data if data.start == start else data.open(config, tokenizer, source, start)
                with contextlib.nullcontext(preemption) if preemption else Preemption() as stopping:
                    return _loop(run, state, start, data, stopping)


def _checked(config, workdir):
    """-> (config with what a run fills in, mesh, tokenizer). UserError when they do not fit, among each other or the hosts."""
    from data_pipelines.sources import grounded_pair
    from plum_jax import agreement, checkpoint
    from plum_jax.initial import tokenizer_of
    from plum_jax.settings import check_settings, check_split, check_vocabulary
    from plum_jax.sharding import make_mesh
    from plum_jax.validation import check_validation

    console.check_out(workdir, remote=True)
    check_settings(config)
    check_validation(config)
    config = config.copy_and_resolve_references()
    config.data.grounded = grounded_pair(config.data)  # what the run does, whatever becomes of the weights, is in config.json
    agreement.check_start(config, workdir, checkpoint.latest_step(workdir))
    mesh = make_mesh(config.mesh)
    check_split(config, mesh)
    tokenizer = tokenizer_of(config)
    check_vocabulary(config, tokenizer)
    return config, mesh, tokenizer


class _Data(NamedTuple):
    """The batches from a step on, the first of them built already: what does not fit is found before anything is written."""

    start: int
    first: object  # Batch
    rest: object  # iterator

    @classmethod
    def open(cls, config, tokenizer, source, start):
        import jax

        from data_pipelines.pipeline import batches

        hosts = dict(host=jax.process_index(), hosts=jax.process_count())
        stream = batches(config, tokenizer, start=start, source=source, **hosts)
        return cls(start, next(stream), stream)


class _Run(NamedTuple):
    """What stays the same during the loop."""

    config: object
    workdir: str
    mesh: object
    tokenizer: object
    source: object
    plan: object  # TrainingPlan
    frozen: dict
    checkpointer: object
    record: RunRecord
    logger: object  # MetricLogger
    validation: object  # Validation

    @classmethod
    def open(cls, *given, start, leave):
        import jax

        from plum_jax.logger import MetricLogger
        from plum_jax.validation import Validation, settings_of

        config, workdir, mesh, tokenizer, _, _, frozen, *_ = given
        logger = MetricLogger(workdir, start, sparse=settings_of(config).columns, write=jax.process_index() == 0)
        return cls(*given, logger, Validation(config, workdir, tokenizer, mesh, frozen, logger, leave))


def _loop(run, state, start, data, preemption):
    """Makes the updates that are left. The host runs at most `metrics.AHEAD` steps ahead of the device."""
    import jax

    from plum_jax.checkpoint import read_window
    from plum_jax.metrics import StepMetrics
    from plum_jax.nonfinite import Guard
    from plum_jax.sharding import put_batch

    config, steps, first = run.config, run.config.train.steps, jax.process_index() == 0
    if first:
        describe(run, data.first, steps - start)
    batch, key = data.first, jax.random.key(config.seed)
    arrays = put_batch(batch, run.mesh, config.data.micro_batches)
    with nothing_to_save(preemption.leave):
        programs = {_shapes(arrays): _compile(run, state, arrays, key)}
        meet("compiled")
    first_says("steps", "begin")

    def write(step, means):
        run.logger.write(step, {"lr": float(run.plan.rates[guard.updates(step)]), **means})
        bar.update(0, loss=means["loss"], **{"images/s": round(means["images_per_second"], 1)})

    guard = Guard(config, run.workdir, run.source, state, start)
    meter = StepMetrics(
        write, log_every=config.train.log_every, images=config.data.global_batch, left_out=guard.left_out, start=start
    )
    if start:
        meter.go_on(read_window(run.workdir, start))
    bar = console.Progress(total=steps, label="train", unit="step", start=start, stream=None if first else io.StringIO())
    began, waited, paused = time.monotonic(), 0.0, 0.0
    with contextlib.closing(run.logger), bar, preemption.steps():
        for step in range(start + 1, steps + 1):
            if _shapes(arrays) not in programs:
                programs[_shapes(arrays)] = _compile(run, state, arrays, key, again=True)
            state, sums = programs[_shapes(arrays)](state, run.frozen, arrays, key)
            guard.remember(step, batch, sums)
            meter.add(step, sums, waited)
            bar.update(1)
            stop = preemption.requested(step)
            _save(run, step, state, meter, stop)
            if run.validation.due(step) and not stop:
                run.checkpointer.wait()
                with preemption.steps(False):  # it is saved: a validation that is stopped here is made up for at the next start
                    seconds = _validate(run, step, state)
                meter.skip(seconds)
                paused += seconds
            if stop or step == steps:
                break
            asked = time.monotonic()
            batch = next(data.rest)
            waited = time.monotonic() - asked
            arrays = put_batch(batch, run.mesh, config.data.micro_batches)
        run.checkpointer.wait()
    _account(run, data.rest)
    guard.account(run.record)
    run.record.note(step_programs=len(programs))  # more than one: batches of new shapes
    return _finish(run, TrainResult(step, time.monotonic() - began - paused, 0.0, meter.latest, step < steps), start)


def _save(run, step, state, meter, stop):
    """Saves where the config, a validation, the end or SIGTERM ask for it, never a state that is not finite."""
    from plum_jax import checkpoint
    from plum_jax.nonfinite import check_state
    from plum_jax.sharding import replicated

    last, due = step == run.config.train.steps, run.validation.due(step)
    if stop or last or due or step % run.config.train.save_every == 0:
        meter.flush(last=last)
        check_state(state, step, replicated(run.mesh))
        run.logger.flush()
        force = stop or last or due
        checkpoint.save(run.checkpointer, step, state, run.config, window=meter.window_json(), force=force)


def _validate(run, step, state):
    """Scores a saved step and prints the line that says how well it does -> seconds."""
    with run.record.timing("validate"):
        line, seconds = run.validation(step, state.params)
    say(line)
    return seconds


def _finish(run, result, start):
    rate = (result.step - start) * run.config.data.global_batch / max(result.seconds, 1e-9)
    run.record.seconds["loop"] = round(result.seconds, 3)
    run.record.note(step=result.step, images_per_second=round(rate, 2))
    if result.preempted:
        run.record.note(status="preempted")
        say(f"Preempted: saved step {result.step:,}; run the same command to go on")
    return result._replace(images_per_second=rate)


def _account(run, stream):
    """Writes and prints what became of the records that this run drew, on all hosts. All of them must call it."""
    account = sum_over_hosts(stream.account)
    run.record.note(data=account.summary())
    say("Data of this run:")
    for line in account.lines():
        say(f"  {line}")


def _shapes(arrays):
    return tuple(x.shape for x in arrays if x is not None)


def _compile(run, state, arrays, key, *, again=False):
    """Compiles the step before its first run, and says how long that took and how much memory the step needs."""
    if again:
        say("warning: a batch of new shapes; compiling the training step again")
    else:
        say("Compiling the training step (tens of seconds the first time, cached afterwards)...")
    began = time.monotonic()
    with run.record.timing("compile"):
        program = run.plan.step_fn.lower(state, run.frozen, arrays, key).compile()
    say(f"Compiled in {console.duration(time.monotonic() - began)}; {memory(program)}")
    return program


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="train"))
