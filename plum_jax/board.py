"""TensorBoard events of a run, drawn from metrics.csv.

When a run goes on they are written anew, so that none is missing and none is there twice, whatever killed the run before.
"""

import struct
import time
from pathlib import Path

PREFIX = "events.out.tfevents"  # of the files that TensorBoard reads


class Board:
    """Writes scalars into a folder.

    Args:
      folder: W/tensorboard.
      history: [(step, {tag: value})] so far. They replace what the event files of the folder hold; times are kept from those.
    """

    def __init__(self, folder, history=()):
        from tensorboardX.event_file_writer import EventsWriter

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(path for path in folder.iterdir() if path.name.startswith(PREFIX))
        times = {key: at for path in reversed(old) for key, at, _ in read_events(path)}
        # Not SummaryWriter: its thread writes some time later, and hides that a disk is full.
        self.writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        for step, scalars in history:
            self._put(step, scalars, times)
        self.writer.flush()
        for path in old:
            path.unlink()

    def write(self, step, scalars):
        """{tag: value} of a step, on disk when this returns."""
        self._put(step, scalars, {})
        self.writer.flush()

    def _put(self, step, scalars, times):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        now = time.time()
        for tag, value in scalars.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            self.writer.write_event(Event(wall_time=times.get((tag, step), now), step=step, summary=summary))

    def close(self):
        self.writer.close()


def history_of(folder, last):
    """What the event files of a folder hold up to a step: [(step, {tag: value})], as `Board` takes it."""
    found = {}
    for path in sorted(Path(folder).glob(f"{PREFIX}*")):
        for (tag, step), _, value in read_events(path):
            if step <= last:
                found.setdefault(step, {})[tag] = value
    return sorted(found.items())


def read_events(path):
    """Event file -> [((tag, step), wall time, value)]; a last record that a kill cut short is left out."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = Path(path).read_bytes(), 0, []
    while at + 12 <= len(content):
        size = struct.unpack_from("<Q", content, at)[0]  # then its checksum, the event, and the checksum of that
        if at + 16 + size > len(content):
            break
        try:
            event = Event.FromString(content[at + 12 : at + 12 + size])
        except DecodeError:
            break
        found += [((value.tag, event.step), event.wall_time, value.simple_value) for value in event.summary.value]
        at += 16 + size
    return found
