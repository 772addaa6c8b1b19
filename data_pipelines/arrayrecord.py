"""`ArrayRecordSource`: random access to what `plum data build` or a TFDS builder wrote; `plum data verify` compares hashes."""

import argparse
import bisect
import collections
import json
from pathlib import Path

from data_pipelines.build_sources import options_of, source_class
from data_pipelines.example import decode_record
from data_pipelines.images import StoredImage
from data_pipelines.manifest import read_build
from data_pipelines.sources import KINDS
from data_pipelines.storing import drawn_sample
from plum_jax.errors import UserError
from plum_jax.run_record import sha256_of


class ArrayRecordSource:
    """A `Source` over one split of a build. Samples equal those of the raw data for the same generator.

    Args:
      root: folder of the build (with build.json), or one above it with a single build below.
      verify: compare the shards with their checksums now; `verify()` does it at any time.
      options: of the source's `drawing`, such as per_image.

    Attributes: family, dataset, grounded, skipped as of every source; parts: the part vocabulary, where the family has one.
    Raises UserError for a build that is missing, unfinished or, once noticed, damaged.
    """

    def __init__(self, root, *, split="train", verify=False, **options):
        self.folder, self.split = find_build(root), split
        splits = read_build(self.folder)["splits"]
        if split not in splits:
            raise UserError(f"{self.folder}: has no split {split!r}, only {', '.join(splits)}; build it with --split {split}")
        self.facts = splits[split]
        if self.facts["status"] != "complete":
            raise UserError(f"{self.folder}: the build of {split} is unfinished; repeat plum data build with --resume")
        self.family, self.dataset, self.grounded = (self.facts[name] for name in ("family", "dataset", "grounded"))
        self.skipped, self.parts = collections.Counter(self.facts["skipped"]), tuple(self.facts["parts"])
        self._draw = _drawing(self.facts, options)
        self._names = list(self.facts["files"])
        self._ends = []
        for file in self.facts["files"].values():
            self._ends.append(file["records"] + (self._ends[-1] if self._ends else 0))
        for name in self._names:
            if not (self.folder / name).is_file():
                raise UserError(f"{self.folder / name}: is missing; repeat plum data build with --resume, or copy it again")
        self._readers = {}
        if verify:
            self.verify()

    def __len__(self):
        return self._ends[-1]

    def sample(self, index, rng):
        return self._draw(self.record(index), rng)

    def record(self, index):
        """The stored record, with the image file itself (`StoredImage`) as "image"."""
        key, image, record = self.stored(index)
        return {**record, "image": None if record["image"] is None else StoredImage(f"{self.folder}: {record['image']}", image)}

    def stored(self, index):
        """-> (key, image bytes, record) as they are in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        path, first = self.folder / self._names[number], self._ends[number - 1] if number else 0
        try:
            (data,) = self._reader(number).read([index - first])
            return decode_record(data)
        except (RuntimeError, ValueError, LookupError) as error:
            advice = "repeat plum data build with --resume, or copy it again"
            raise UserError(f"{path}: record {index - first} is not readable ({_line(error)}); {advice}") from error

    def verify(self):
        """Reads every shard. Raises UserError with the name of the first that is not what was written."""
        for name, file in self.facts["files"].items():
            if sha256_of(self.folder / name) != file["sha256"]:
                raise UserError(
                    f"{self.folder / name}: is damaged, its SHA-256 is not that of build.json; "
                    f"repeat plum data build with --resume, or copy it again"
                )

    def _reader(self, number):
        if number not in self._readers:
            from array_record.python.array_record_module import ArrayRecordReader

            self._readers[number] = ArrayRecordReader(str(self.folder / self._names[number]))
        return self._readers[number]

    def __getstate__(self):
        return {**self.__dict__, "_readers": {}}  # open files stay in their process


class TfdsSource:
    """A `Source` over `tfds.data_source(...)` of what one of our TFDS builders wrote.

    Args:
      records: sequence of {"key", "image", "record"} as bytes, with the metadata of the builder as `dataset_info.metadata`.
      options: of the source's `drawing`, such as per_image.
    """

    def __init__(self, records, **options):
        facts = dict(records.dataset_info.metadata)
        self.family, self.dataset, self.grounded = (facts[name] for name in ("family", "dataset", "grounded"))
        self.records, self.skipped = records, collections.Counter()
        self._draw = _drawing(facts, options)

    def __len__(self):
        return len(self.records)

    def sample(self, index, rng):
        fields = self.records[index]
        record = json.loads(fields["record"])
        image = None if record["image"] is None else StoredImage(record["image"], fields["image"])
        return self._draw({**record, "image": image}, rng)


def _drawing(facts, options):
    """What makes samples of the records. Options that say what was built must say what the build says."""
    name, built = facts["source"], facts["options"]
    drawing = source_class(name).drawing if facts["whole_records"] else None
    chosen = {}
    for option, value in options.items():
        if drawing and option in options_of(drawing):
            chosen[option] = value
        elif json.loads(json.dumps(value)) != built.get(option):
            known = ", ".join(options_of(drawing)) if drawing else "none"
            raise UserError(
                f"{facts['dataset']}: {option} is {value!r}, but the build has {option} {built.get(option)!r}; "
                f"only {known} can be chosen when reading, so build with --option {option}=..."
            )
    return drawing(**chosen) if drawing else drawn_sample


def find_built(root, name, split):
    """Folder below `root` where `plum data build` put a source of this name, or None; UserError where there are several."""
    found = []
    for path in sorted(Path(root).glob(f"plum_{KINDS[name].family}/*/*/build.json")):
        facts = read_build(path.parent)["splits"].get(split)
        if facts and facts["source"] == name:
            found.append(path.parent)
    if len(found) > 1:
        raise UserError(f"{root}: has {name} {len(found)} times ({', '.join(map(str, found))}); make one of them the root")
    return found[0] if found else None


def _line(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def find_build(root):
    """The one folder with a build.json at or below `root`."""
    root = Path(root)
    if (root / "build.json").is_file():
        return root
    found = sorted(path.parent for path in root.glob("*/**/build.json"))
    if len(found) != 1:
        names = ", ".join(str(path) for path in found[:5])
        what = f"{len(found)} builds ({names})" if found else "no build"
        raise UserError(f"{root}: holds {what}; give the folder with the build.json that you mean")
    return found[0]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="plum data verify", description="Compare the shards of builds with their checksums.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder of a build, or one above several")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    report = {}
    for root in arguments.folders:
        found = sorted(path.parent for path in Path(root).glob("**/build.json")) or [find_build(root)]
        for folder in found:
            report.update(
                {f"{folder} {split}": _faults(folder, facts) for split, facts in read_build(folder)["splits"].items()}
            )
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for name, faults in report.items():
            print(f"{name}: {'; '.join(faults) if faults else 'as written'}")
    return int(any(report.values()))


def _faults(folder, facts):
    if facts["status"] != "complete":
        return ["unfinished"]
    faults = []
    for name, file in facts["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(path) != file["sha256"]:
            faults.append(f"{name} is damaged")
    return faults


if __name__ == "__main__":
    from plum_jax import cli

    raise SystemExit(cli.run(main))
