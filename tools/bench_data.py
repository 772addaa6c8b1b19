"""How fast rows are made, by stage, how that grows with worker processes, and what it means for one host of eight H200.

    python -m tools.bench_data --json out.json                    # drawn pictures of the size of COCO's
    python -m tools.bench_data --photos DIR                       # your own
    python -m tools.bench_data --workers 0 1 2 --json out.json    # also with worker processes

Views must equal those of Pillow to the bit (M 1.3, 1.4), which decides what may be used: `equal` in the JSON says so for each
way that was timed. The times before and after an optimisation are taken in turns in one run.

A worker is one process on one core. `with_workers` says how many milliseconds of processor time an image costs the workers and
the process that takes the batches, after all of them have started; that hardly depends on what else the machine does. `law` is
what follows for enough cores: 1000 x min(workers / worker, 1 / parent) images a second. The rate by the clock beside it means
something in a quiet moment only: `cores` then comes close to the number of workers.
"""

import argparse
import collections
import json
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_pipelines.blocks import Blocks
from data_pipelines.conversation import IMAGE, Span, encode
from data_pipelines.images import clip_view, load_image, open_image, sam_view
from data_pipelines.masks import decode_segmentation, encode_rle
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import batches, collate
from data_pipelines.record import Dialogue, Sample
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.config_io import load_config
from tools.data_pairs import pairs, touch

# One image of a 13B step, in 1e12 operations: 2 x 13.0e9 parameters x 512 positions for each pass of the language model, of
# which there are four (forward, again for rematerialisation, backward to the activations, the teacher's forward; frozen kernels
# have no gradient); SAM's encoder at 1024 pixels for three of four images.
PASS, PASSES, SAM, SAM_SHARE = 2 * 13.0e9 * 512 / 1e12, 4, 5.9, 0.75
PEAK, USE, DEVICES, MARGIN = 790.0, 0.45, 8, 4  # design: 45 % of an H200's 790e12 a second; a host must feed four times that


class Drawn:
    """`Source` of the pictures of a folder: one dialogue of a single name with its mask, as in semantic segmentation."""

    family, dataset, grounded, skipped = "semantic", "drawn", True, collections.Counter()

    def __init__(self, paths):
        self.paths, self.masks = paths, []
        for path in paths:
            height, width = load_image(path).shape[:2]
            y, x = np.mgrid[:height, :width]
            self.masks.append(encode_rle(((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < 0.1))

    def __len__(self):
        return len(self.paths)

    def sample(self, index, rng):
        turns = ((f"{IMAGE}\nPlease show where the tennis racket is in this picture.", "The tennis racket is marked."),)
        dialogue = Dialogue(turns, (Span(0, 4, 17),), (0,))
        return Sample(self.family, self.dataset, str(index), str(self.paths[index]), (dialogue,), (self.masks[index],))


def draw_pictures(folder, count, hw=(480, 640)):
    """JPEG files with the detail of photographs: coarse and fine noise."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (hw[0] // 16, hw[1] // 16, 3), np.uint8))
        pixels = np.asarray(coarse.resize(hw[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = np.clip(pixels + rng.integers(-8, 9, (*hw, 1)), 0, 255).astype(np.uint8)
        paths.append(Path(folder) / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def in_turns(functions, repeats):
    """{name: function} -> {name: least seconds of processor time}; the functions take turns, so that all see the same noise."""
    least = dict.fromkeys(functions, np.inf)
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function()
            least[name] = min(least[name], time.process_time() - start)
    return least


def stages(mixture, config, tokenizer, repeats):
    """Seconds for one image of each stage."""
    source, clip, sam = mixture.sources[0], config.model.clip.image_size, config.model.sam.image_size
    samples = [source.sample(index, None) for index in range(len(source))]
    images = [open_image(sample.image) for sample in samples]
    rows, blocks = [mixture.row(index) for index in range(len(samples))], Blocks()

    def each(function, items):
        return lambda: [function(item) for item in items]

    def tokens(sample):
        (dialogue,) = sample.dialogues
        return encode(dialogue.turns, tokenizer, config.data.template, dialogue.spans)

    total = in_turns(
        {
            "decode": each(open_image, [sample.image for sample in samples]),
            "sam_resize": each(lambda image: sam_view(image, sam), images),
            "clip_resize": each(lambda image: clip_view(image, clip, config.data.clip_view), images),
            "masks": each(lambda sample: decode_segmentation(sample.masks[0]), samples),
            "tokens": each(tokens, samples),
            "batch": lambda: collate(rows, blocks),
            "whole_row_and_batch": lambda: collate([mixture.row(index) for index in range(len(samples))], blocks),
        },
        repeats,
    )
    return {name: seconds / len(samples) for name, seconds in total.items()}


def optimisations(mixture, config, repeats):
    """{name: seconds before and after for one image, their ratio, and whether the results are equal to the bit}."""
    found, count = {}, len(mixture.sources[0])
    for name, (before, after) in pairs(mixture, config).items():
        after()  # memory that is used again must be there first
        least = in_turns({"before": before, "after": after}, repeats)
        equal = all(np.array_equal(one, two) for one, two in zip(before(), after(), strict=True))
        found[name] = {k: v / count for k, v in least.items()} | {"ratio": least["before"] / least["after"], "equal": equal}
    return found


def resizers(paths, clip, sam, repeats):
    """Other ways to resize, against Pillow's plain one: {name: relative speed, equal to the bit}; OpenCV if here."""
    images = [open_image(path) for path in paths]
    sizes = [[round(side * sam / max(i.size)) for side in i.size] for i in images]
    shorts = [[int(side * clip / min(i.size)) for side in i.size] for i in images]
    bilinear, bicubic = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC

    def drafted(path, size):
        with Image.open(path) as image:
            image.draft("RGB", size)
            return np.asarray(image.resize(size, bicubic))

    def whole(path, size):
        return np.asarray(open_image(path).resize(size, bicubic))

    def gap(image, size):
        return np.asarray(image.resize(size, bicubic, reducing_gap=2.0))

    def plain(image, size):
        return np.asarray(image.resize(size, bicubic))

    ways = {
        "clip, JPEG draft mode (with decoding)": (whole, drafted, paths, shorts),
        "clip, reducing_gap=2": (plain, gap, images, shorts),
    }
    try:
        import cv2
    except ImportError:
        pass
    else:
        cv2.setNumThreads(1)
        arrays = {id(image): np.asarray(image) for image in images}
        ways["sam, OpenCV bilinear"] = (
            lambda image, size: np.asarray(image.resize(size, bilinear)),
            lambda image, size: cv2.resize(arrays[id(image)], tuple(size), interpolation=cv2.INTER_LINEAR),
            images,
            sizes,
        )
    found = {}
    for name, (ours, theirs, items, wanted) in ways.items():
        timed = {
            key: lambda f=f, items=items, wanted=wanted: [f(*pair) for pair in zip(items, wanted, strict=True)]
            for key, f in (("ours", ours), ("theirs", theirs))
        }
        least = in_turns(timed, repeats)
        equal = all(np.array_equal(a, b) for a, b in zip(timed["ours"](), timed["theirs"](), strict=True))
        found[name] = {"speed": least["ours"] / least["theirs"], "equal": equal}
    return found


def with_workers(config, tokenizer, source, workers, steps):
    """Milliseconds of processor time for an image in the workers and here, and images a second by the clock.

    With no workers everything happens here, in two threads. Counting starts when every worker has delivered, so that the start
    of processes is no part of it. Workers are bound to one core each, where there are several.
    """
    config.data.workers = workers
    stream = batches(config, tokenizer, source=Mixture(config, tokenizer, [source], [1.0]))
    for _ in range(2 + 4 * workers):
        touch(next(stream))
    processes = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    for number, process in enumerate(processes):
        _bind(process, number)
    before, here, start = _seconds(processes), time.process_time(), time.monotonic()
    for _ in range(steps):
        touch(next(stream))
    wall, here, there = time.monotonic() - start, time.process_time() - here, _seconds(processes) - before
    images = steps * config.data.global_batch
    parent, worker = 1e3 * here / images, 1e3 * there / images
    law = 1e3 * min(workers / worker, 1 / parent) if workers else None
    return {
        "parent": parent,
        "worker": worker,
        "parent_share": parent / worker if workers else None,
        "law": law,
        "images_per_second": images / wall,
        "cores": (here + there) / wall,
    }


def _bind(process, number):
    """All threads of a process to one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {cores[number % len(cores)]})


def _seconds(processes):
    """Processor time that they have used so far, in the system too."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def configured(tokenizer):
    """-> (the config of the 13B mixture, where SAM sees every image, in batches of eight; its tokenizer)."""
    config = load_config("plum:size=13b")
    config.data.update(grounded=(1, 1), global_batch=8, micro_batches=1)
    return config, load_tokenizer(tokenizer)


def arithmetic(rate, parent=None):
    """What a host needs: `rate` is images a second of one worker, `parent` milliseconds for each image it takes over."""
    work = PASS * PASSES + SAM * SAM_SHARE
    step = DEVICES * PEAK * USE / work
    found = {
        "assumptions": f"13B, 512 positions, {PASSES} passes of {PASS:.1f} TFLOP, SAM {SAM} TFLOP for {SAM_SHARE:.0%} of "
        f"images; {DEVICES} H200 at {USE:.0%} of {PEAK:.0f} TFLOP/s; one conversation for each image; a worker is one core",
        "tflop_per_image": work,
        "images_per_second_of_the_step": step,
        "images_per_second_wanted": MARGIN * step,
        "images_per_second_of_a_worker": rate,
        "workers_for_the_step": step / rate,
        "workers_wanted": MARGIN * step / rate,
    }
    if parent is not None:
        found["images_per_second_of_16_workers"] = min(16 * rate, 1e3 / parent)
        found["images_per_second_that_can_be_taken"] = 1e3 / parent
    return found


def processor():
    """Name of the processor, as Linux gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder of JPEG files to use instead of drawn pictures")
    parser.add_argument("--tokenizer", default="tiny", help="tokenizer folder (default: the tiny one that ships)")
    parser.add_argument("--images", type=int, default=16, help="pictures to draw (default 16)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="processes to time batches with (default 0)")
    parser.add_argument("--steps", type=int, default=24, help="batches of 8 images to time with each (default 24)")
    parser.add_argument("--note", default="", help="about the machine, for the JSON object")
    parser.add_argument("--json", help="also write the JSON object to this file")
    options = parser.parse_args(argv)
    config, tokenizer = configured(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(Path(options.photos).glob("*.jpg")) if options.photos else draw_pictures(folder, options.images)
        source = Drawn(paths)
        mixture = Mixture(config, tokenizer, [source], [1.0])
        seconds = stages(mixture, config, tokenizer, options.repeats)
        results = {
            "images": len(paths),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "note": options.note},
            "milliseconds_by_stage": {name: 1e3 * value for name, value in seconds.items()},
            "images_per_second_by_stage": {name: 1 / value for name, value in seconds.items()},
            "optimisations": optimisations(mixture, config, options.repeats),
            "other_resizers": resizers(paths, config.model.clip.image_size, config.model.sam.image_size, options.repeats),
            "with_workers": {},
        }
        for workers in options.workers:
            found = with_workers(config, tokenizer, source, workers, options.steps)
            results["with_workers"][str(workers)] = found
    rate, parent = 1 / seconds["whole_row_and_batch"], None
    for found in results["with_workers"].values():
        if found["worker"]:  # measured where it happens
            rate, parent = 1e3 / found["worker"], found["parent"]
    results["thirteen_billion_on_eight_h200"] = arithmetic(rate, parent)
    print(json.dumps(results, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
