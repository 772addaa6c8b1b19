"""`plum report W`: one self-contained HTML file about a quickstart folder, a training run or an evaluation."""

import json
from pathlib import Path

from plum_jax import cli
from plum_jax.errors import UserError


def main(argv=None):
    parser = cli.Parser(prog="plum report", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `plum quickstart`, `plum train` or `plum evaluate` wrote")
    parser.add_argument("--out", type=Path, help="file to write (default: FOLDER/report.html)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        what = "is not a folder" if args.folder.exists() else "does not exist"
        raise UserError(f"{args.folder}: {what}; give a folder that plum quickstart, train or evaluate wrote")
    out = args.out or args.folder / "report.html"
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"{out}: cannot be written; give --out a file in a folder that exists")
    facts = write_report(args.folder, out)
    if args.json:
        print(json.dumps(facts))
    else:
        from plum_jax.console import size

        print(f"Report: {facts['report']} ({size(facts['bytes'])}, open in a browser)")
    return 0


def write_report(folder, out):
    """Writes the report of a folder to the file `out`.

    Returns:
      {"report": path, "bytes", "cards", "worst", "questions", "skipped": {what: how many}}.

    Raises:
      UserError: the folder holds nothing to report.
    """
    from plum_jax.report.data import read_run
    from plum_jax.report.html import render
    from plum_jax.run_record import write_text

    text, facts = render(read_run(folder))
    write_text(out, text)
    return {"report": str(out), "bytes": Path(out).stat().st_size, **facts}
