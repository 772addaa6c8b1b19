"""`plum report W`: what a run or an evaluation says, as one HTML page, as JSON and as LaTeX tables; several side by side."""

import json
from pathlib import Path

from plum_jax import cli
from plum_jax.errors import UserError


def main(argv=None):
    parser = cli.Parser(prog="plum report", description=__doc__)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER",
        help="what plum quickstart, train, evaluate or score wrote; several evaluations are shown side by side")  # fmt: skip
    add("--out", type=Path, help="page to write (default: FOLDER/report.html; needed for several folders)")
    add("--latex", type=Path, metavar="FILE", help="also write the tables for LaTeX (booktabs)")
    add("--names", metavar="A,B", help="what to call the folders (default: the ends of their paths)")
    add("--against", metavar="METHOD", help="add the difference from a published method, such as 'PLUM-13B (fine-tuned)'")
    add("--json", action="store_true", help="print one JSON object, with all cells of all tables, and nothing else")
    args = parser.parse_args(argv)
    names = _names(args.names, args.folders)
    if args.out is None and len(args.folders) > 1:
        raise UserError("--out is missing; say where the page about several folders goes, such as --out compare.html")
    out = args.out or args.folders[0] / "report.html"
    for path, option in ((out, "--out"), (args.latex, "--latex")):
        if path is not None and args.folders[0].is_dir() and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UserError(f"{path}: cannot be written; give {option} a file in a folder that exists")
    facts = write_report(args.folders, out, latex=args.latex, names=names, against=args.against)
    if args.json:
        print(json.dumps(facts, allow_nan=False))
        return 0
    from plum_jax.console import size

    print(f"Report: {facts['report']} ({size(facts['bytes'])}, open in a browser)")
    if args.latex:
        print(f"Tables: {args.latex} (\\input it; needs \\usepackage{{booktabs}})")
    return 0


def _names(text, folders):
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != len(folders) or not all(names) or len(set(names)) != len(names):
        raise UserError(f"--names {text}: does not name {len(folders)} folders; give one different name for each, with commas")
    return names


def write_report(folders, out, *, latex=None, names=None, against=None):
    """Writes the page about a folder, or about several evaluations, to the file `out`, and the tables to the file `latex`.

    Args:
      folders: a path or a list of paths. names: what to call them. against: published method to take differences from.

    Returns:
      {"report": path, "bytes", "cards", "worst", "questions", "skipped": {what: how many}, "evaluations": [{"label",
      "benchmark", "split", "checkpoint", "data", "counts", "command", "version"}], "tables": [tables.as_json]}.

    Raises:
      UserError: a folder holds nothing to report.
    """
    from plum_jax.report import latex as tex
    from plum_jax.report.data import read_subject
    from plum_jax.report.html import render
    from plum_jax.report.own import own_tables
    from plum_jax.report.paper import paper_tables
    from plum_jax.report.tables import as_json
    from plum_jax.run_record import write_text

    subject = read_subject(folders if isinstance(folders, list | tuple) else [folders], names)
    paper, own = paper_tables(subject.evaluations, against), own_tables(subject.evaluations)
    text, facts = render(subject, paper, own)
    write_text(out, text)
    if latex:
        write_text(latex, tex.document([t for t in paper if t.has_ours] + own, Path(latex).stem))
    evaluations = [
        {"label": e.label, "folder": str(e.folder), "split": e.split,
         **{key: e.results.get(key) for key in ("benchmark", "checkpoint", "data", "counts", "settings", "command", "version")}}
        for e in subject.evaluations
    ]  # fmt: skip
    size = Path(out).stat().st_size
    return {"report": str(out), "bytes": size, **facts, "evaluations": evaluations, "tables": [as_json(t) for t in paper + own]}
