"""`plum data check`: reads every record, mask and image of a data set and reports every fault."""

import json
import time
from pathlib import Path

from data_pipelines.checks.coco import check_coco
from data_pipelines.checks.families import check_families
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.options import Options, add_flags, check_flags
from data_pipelines.checks.partonomy import check_partonomy
from data_pipelines.checks.targets import find_target
from data_pipelines.checks.text import as_text
from plum_jax import cli
from plum_jax.errors import UserError

SAMPLES = 20  # on the page


def main(argv=None):
    """Exit status 0: no error, though perhaps warnings; 1: errors; 2 (UserError): nothing to check."""
    parser = cli.Parser(prog="plum data check", description=f"{__doc__} Errors end with exit status 1, warnings with 0.")
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a folder of questions, a root of training data sets (docs/data), or COCO files",
    )
    add("--images", type=Path, metavar="DIR", help="for COCO files: folder of their images")
    add("--hierarchy", type=Path, metavar="FILE", help="for COCO files: YAML {object: [part categories]}")
    add("--expect", choices=["partonomy-core"], help="what differs from this release is an error")
    add("--max-images", type=int, metavar="N", help="read at most N images of each data set, evenly spaced (default: all)")
    add("--html", type=Path, metavar="FILE", help=f"write a page with the faults and {SAMPLES} samples, masks drawn in")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    check_flags(arguments)
    if arguments.html is not None and (arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()):
        raise UserError(f"{arguments.html}: cannot be written; give --html a file in a folder that exists")
    target = find_target(arguments.paths)
    began = time.monotonic()
    options = Options(arguments.workers, arguments.max_images, arguments.follow_links, arguments.expect)
    report = check_target(target, options, images=arguments.images, hierarchy=arguments.hierarchy)
    report["seconds"] = round(time.monotonic() - began, 2)
    if arguments.html is not None:
        from data_pipelines.show import write_gallery

        write_gallery(
            target, arguments.html, most=SAMPLES, images=arguments.images, follow_links=arguments.follow_links, report=report,
        )  # fmt: skip
        report["html"] = str(arguments.html)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(as_text(report))
    return 1 if report["problems"] else 0


def check_folder(folder, options=None):
    """A folder -> the report of `check_target`. UserError where there is nothing to check."""
    return check_target(find_target([folder]), options or Options())


def check_target(target, options, *, images=None, hierarchy=None):
    """-> {"kind", "folder", "files" or "datasets", "images", "problems", "warnings", "counts"}.

    "problems" (the errors) and "warnings" are lists of {"file", "entry", "problem"}; "counts" {level: {kind: number}} counts
    those too that the lists leave out.
    """
    findings = Findings()
    report = {"kind": target.kind, "folder": str(target.folder)}
    if target.kind == "questions":
        report.update(check_partonomy(target.folder, target.files, findings, options))
    elif target.kind == "coco":
        if hierarchy is not None:
            from data_pipelines.partonomy.categories import read_hierarchy

            hierarchy = read_hierarchy(hierarchy)
        report.update(check_coco(target.files, images, findings, options, hierarchy=hierarchy))
    else:
        report["datasets"] = check_families(target.folder, target.datasets, findings, options)
    report["problems"], report["warnings"] = findings.sorted("error"), findings.sorted("warning")
    report["counts"] = {level: dict(counts) for level, counts in findings.counts.items()}
    return report


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
