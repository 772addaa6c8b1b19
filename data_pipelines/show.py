"""`plum data show`: a gallery of samples of a data set, their masks drawn in, as one HTML file."""

import json
import warnings
from pathlib import Path

from data_pipelines.checks.options import add_flags, check_flags
from data_pipelines.checks.targets import find_target
from plum_jax import cli
from plum_jax.errors import UserError


def main(argv=None):
    parser = cli.Parser(prog="plum data show", description=__doc__)
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a folder of questions, a root of training data sets (docs/data), or COCO files",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="HTML file to write")
    add("--max", type=int, default=100, metavar="N", help="most samples, evenly spaced (default: 100)")
    add("--images", type=Path, metavar="DIR", help="for COCO files: folder of their images")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    check_flags(arguments)
    if arguments.out.is_dir() or not arguments.out.absolute().parent.is_dir():
        raise UserError(f"{arguments.out}: cannot be written; give --out a file in a folder that exists")
    target = find_target(arguments.paths)
    count = write_gallery(
        target, arguments.out, most=arguments.max, images=arguments.images, follow_links=arguments.follow_links
    )
    facts = {"out": str(arguments.out), "samples": count, "bytes": arguments.out.stat().st_size}
    if arguments.json:
        print(json.dumps(facts))
    else:
        from plum_jax.console import size

        print(f"Gallery: {arguments.out} ({count} samples, {size(facts['bytes'])}, open in a browser)")
    return 0


def write_gallery(target, out, *, most, images=None, follow_links=False, report=None):
    """Writes the page; returns the number of samples on it. With a `report` of a check there may be none."""
    from data_pipelines.samples import coco_items, family_items, question_items
    from plum_jax.report.gallery import write

    if target.kind == "questions":
        items = question_items(target.folder, target.files, most, follow_links=follow_links)
    elif target.kind == "coco" and images is None:
        if report is None:
            raise UserError(f"{target.files[0]}: is a COCO file; give the folder of its images with --images")
        items = []
    elif target.kind == "coco":
        items = _or_none(lambda: coco_items(target.files, images, most, follow_links=follow_links), report)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            items = family_items(target.folder, target.datasets, most)
    if not items and report is None:
        raise UserError(f"{target.folder}: has no sample that can be shown; plum data check says why")
    title = ", ".join(path.name for path in target.files) if target.kind == "coco" else target.folder.resolve().name
    write(out, f"Samples of {title}", [str(target.folder), f"{len(items)} samples"], items, report)
    return len(items)


def _or_none(read, report):
    try:
        return read()
    except UserError:
        if report is None:
            raise
        return []


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
