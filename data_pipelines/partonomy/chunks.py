"""Work that goes on where it was killed: cut into chunks, each of whose results is a JSON file in a work folder."""

import json
import os
from pathlib import Path


def run_chunks(function, items, arguments, folder, name, *, size, run, bar):
    """Yields function(items of a chunk, *arguments), a JSON value, in order. Chunks that have a file are not computed again.

    Args:
      function: at the top level of a module; may run in another process.
      folder: work folder; chunk k of the stage `name` is the file <name>-<k>.json there.
      run: ordered `map` of `processes`.
      bar: `Progress` over the items.
    """
    starts = range(0, len(items), size)
    jobs = [(function, items[i : i + size], arguments, str(Path(folder) / f"{name}-{i // size:06d}.json")) for i in starts]
    for job, result in zip(jobs, run(_chunk, jobs), strict=True):
        yield result
        bar.update(len(job[1]))


def _chunk(job):
    function, items, arguments, path = job
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    # Through JSON now as later, so that an interrupted run goes on with the same values.
    text = json.dumps(function(items, *arguments), ensure_ascii=False)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
    return json.loads(text)
