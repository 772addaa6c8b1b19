"""`plum data check`: reads every record, mask and image of a data set and reports every fault."""

import contextlib
import json
import time
from pathlib import Path

from data_pipelines.checks.coco import check_coco
from data_pipelines.checks.families import check_families
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.options import PATHS, Options, add_flags, check_flags
from data_pipelines.checks.partonomy import check_partonomy
from data_pipelines.checks.targets import find_target
from data_pipelines.checks.text import as_text
from data_pipelines.kinds import KINDS
from plum_jax import cli
from plum_jax.errors import UserError

SAMPLES, FAULTY = 20, 10  # samples on the page of --html, and how many questions of these at most for their faults


def main(argv=None):
    """Exit status 0: no error, though perhaps warnings; 1: errors; 2 (UserError): nothing to check."""
    parser = cli.Parser(prog="plum data check", description=f"{__doc__} Errors end with exit status 1, warnings with 0.")
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help=PATHS)
    add("--images", type=Path, metavar="DIR", help="for COCO files: folder of their images")
    add("--hierarchy", type=Path, metavar="FILE", help="for COCO files: YAML {object: [part categories]}")
    add("--dataset", choices=list(KINDS), help="of a root: only this data set (default: all that are there)")
    add("--split", help="of a root: only this split (default: train, and val where there is one)")
    add("--samples", type=int, default=50, metavar="N", help="of a root: records that are drawn as in training (default: 50)")
    add("--expect", choices=["partonomy-core"], help="what differs from this release is an error")
    add("--max-images", type=int, metavar="N", help="read at most N images of each data set, evenly spaced (default: all)")
    add("--html", type=Path, metavar="FILE", help=f"also write a page of {SAMPLES} samples, masks drawn in; faulty ones first")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    check_flags(arguments)
    if arguments.html is not None and (arguments.html.is_dir() or not arguments.html.absolute().parent.is_dir()):
        raise UserError(f"{arguments.html}: cannot be written; give --html a file in a folder that exists")
    target = find_target(arguments.paths, arguments.dataset)
    began = time.monotonic()
    options = Options(
        arguments.workers, arguments.max_images, arguments.follow_links, arguments.expect, arguments.split, arguments.samples
    )
    report = check_target(target, options, images=arguments.images, hierarchy=arguments.hierarchy)
    report["seconds"] = round(time.monotonic() - began, 2)
    if arguments.html is not None:
        report["shown"] = _write_page(arguments.html, target, report, arguments.images, arguments.follow_links)
        report["html"] = str(arguments.html)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(as_text(report))
    return 1 if report["problems"] else 0


def _write_page(out, target, report, images, follow_links):
    """Writes the page of --html: of questions some with a finding first, then others of every type. -> how many it shows."""
    from plum_jax.run_record import write_text

    try:
        if target.kind == "questions":
            text, count = _questions_page(target, report, follow_links)
        else:
            from data_pipelines.samples import sample_page

            text, count = sample_page(target, SAMPLES, images=images, follow_links=follow_links)
    except UserError as error:
        report["warnings"].append({"file": None, "entry": None, "problem": f"no page was written: {error}"})
        return 0
    write_text(out, text)
    return count


def _questions_page(target, report, follow_links):
    from data_pipelines.gallery import Entry, render
    from data_pipelines.question_files import readable_questions, split_of
    from data_pipelines.show import choose

    entries = []
    for path in target.files:
        with contextlib.suppress(UserError):  # a file that cannot be read is among the problems
            entries += [Entry(path.name, split_of(path), index, question) for index, question in readable_questions(path)[0]]
    found = {(finding["file"], finding["entry"]) for finding in report["problems"] + report["warnings"]}
    faulty = [entry for entry in entries if (entry.file, entry.index) in found][:FAULTY]
    others = [entry for entry in entries if (entry.file, entry.index) not in found]
    shown = faulty + choose(others, SAMPLES - len(faulty), seed=0)
    heading = f"Check of {target.folder.resolve().name}"
    return render(target.folder, shown, heading, follow_links=follow_links), len(shown)


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
