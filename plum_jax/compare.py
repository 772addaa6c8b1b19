"""`plum evaluate --compare A B`: two evaluations of the same questions, side by side. No model, no accelerator."""

import json
import shlex
import sys
from pathlib import Path

from data_pipelines.checks.findings import printable
from plum_jax import __version__, cli, console
from plum_jax.errors import UserError
from plum_jax.evaluation import benchmarks
from plum_jax.run_record import write_json, write_text

FIELDS = ("instance_id", "image_path", "image_label", "question_type")
OF_BENCHMARKS = ("id", "image_path", "dataset", "kind", "groups")  # of a record of the other benchmarks
SCORED = ("questions", "choices", "choice_parts", "correct", "gt_parts", "gt_masks", "predicted", "predicted_published")
WIDTH = 34
SHOWN = 10  # cases that are printed


def main(argv=None):
    """Entry point of `plum evaluate --compare`."""
    parser = cli.Parser(
        prog="plum evaluate --compare",
        description="Differences of two evaluations, with intervals over images, and the questions that changed most.",
    )
    add = parser.add_argument
    add("benchmark", nargs="?", choices=("partonomy", *benchmarks.MODULES), help="may be left out")
    add("--compare", nargs=2, required=True, metavar=("A", "B"), help="evaluation folders, or their instances.jsonl")
    add("--common", action="store_true", help="compare the questions that both have, where the data differ")
    add("--cases", type=int, default=20, metavar="N", help="how many of the questions that changed most (default 20)")
    add("--out", metavar="FILE", help="write the comparison as JSON there")
    add("--html", metavar="FILE", help="write one page with the numbers and these questions as cards")
    add("--images", metavar="DIR", help="for --html: folder of the data (default: where the evaluation says)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(["--help"] if {"-h", "--help"} & set(argv) else argv)  # else --compare asks for A and B first
    if args.cases < 0:
        raise UserError(f"--cases {args.cases}: is too small; give 0 or more")
    for path in filter(None, (args.out, args.html)):
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; give a file to write")
        console.check_out(Path(path).absolute().parent)
    console.header("evaluate --compare", device=False, stream=sys.stderr if args.json else None)
    report = compare_folders(*args.compare, common=args.common, most=args.cases)
    if args.benchmark not in (None, report["benchmark"]):
        raise UserError(f"{args.compare[0]}: is an evaluation of {report['benchmark']}, not of {args.benchmark}; leave it out")
    if args.html is not None and report["benchmark"] != "partonomy":
        what = f"has a page for partonomy only, not for {report['benchmark']}"
        raise UserError(f"--html {args.html}: {what}; use --json or --out")
    if args.out is not None:
        write_json(args.out, report)
    if args.html is not None:
        from plum_jax.report.comparison_page import page

        write_text(args.html, page(report, args.images))
    if args.json:
        print(json.dumps(report, indent=2, allow_nan=False))
        return
    print("\n".join(map(printable, lines(report))))
    for path in filter(None, (args.out, args.html)):
        print(f"Wrote {path}")
    if args.html is None and report["benchmark"] != "partonomy":
        print(f"Next: plum report {shlex.join(args.compare)} --out compare.html")
    elif args.html is None:
        print(f"Next: {shlex.join(['plum', 'evaluate', '--compare', *args.compare, '--html', 'compare.html'])}")
    else:
        print(f"Next: open {args.html} in a browser")


def compare_folders(a, b, *, common=False, most=20):
    """Two evaluations -> the comparison as a dictionary (docs/predictions.md).

    Raises:
      UserError: one is no evaluation, they are of different data and `common` is not set, or share no question.
    """
    from plum_jax.evaluation import benchmark_comparison, comparison

    sides = [read(path) for path in (a, b)]
    kinds = [about["benchmark"] for _, about in sides]
    if kinds[0] != kinds[1]:
        raise UserError(f"{a} is an evaluation of {kinds[0]}, {b} of {kinds[1]}; give two of the same benchmark")
    by = comparison if kinds[0] == "partonomy" else benchmark_comparison
    paired = by.pair(*(records for records, _ in sides))
    n = len(paired.a)
    if not paired.same_data and not common:
        other = f", {paired.other_targets} have other target masks" if paired.other_targets else ""
        alone = f"{paired.only_a} questions are only in the first, {paired.only_b} only in the second{other}"
        fix = f"pass --common to compare the {n} that both have" if n else "evaluate both on the same question file"
        raise UserError(f"{a} and {b} are of different data: {alone}; {fix}")
    if not n:
        raise UserError(f"{a} and {b} share no scored question; evaluate both on the same question file")
    return {
        "benchmark": kinds[0],
        "a": sides[0][1],
        "b": sides[1][1],
        "n_instances": n,
        "n_images": len({record["image_path"] for record in paired.a}),
        "counts": {
            "only_a": paired.only_a,
            "only_b": paired.only_b,
            "other_targets": paired.other_targets,
            "skipped": paired.skipped,
        },
        "question_types": by.compare(paired),
        "cases": by.cases(paired, most),
        "version": __version__,
        "command": " ".join(sys.argv),
    }


def read(path):
    """An evaluation folder or its instances.jsonl -> ([record], {"path", "data", "checkpoint"}). UserError if neither."""
    path = Path(path)
    file = path / "instances.jsonl" if path.is_dir() else path
    found = _results(file.with_name("results.json"))
    benchmark = found.get("benchmark") or "partonomy"
    records = []
    try:
        with open(file, "rb") as source:
            for number, line in enumerate(source, 1):
                if line.strip():
                    records.append(_record(line, f"{file}: line {number}", benchmark))
    except OSError as error:
        fix = "give a folder that plum evaluate or plum score wrote, or its instances.jsonl"
        raise UserError(f"{file}: cannot be read ({error.strerror}); {fix}") from error
    if not records:
        raise UserError(f"{file}: holds no question; give a folder that plum evaluate or plum score wrote")
    return records, {"path": str(path), "benchmark": benchmark, **{key: found.get(key) for key in ("checkpoint", "data")}}


def _results(path):
    """results.json as a dictionary; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); evaluate again") from error
    return found if isinstance(found, dict) else {}


def _record(line, where, benchmark):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON; evaluate or score again") from error
    skipped = isinstance(record, dict) and "skipped" in record
    wanted = (FIELDS if skipped else FIELDS + SCORED) if benchmark == "partonomy" else OF_BENCHMARKS
    missing = next((key for key in wanted if not isinstance(record, dict) or key not in record), None)
    if missing is not None:
        raise UserError(
            f"{where}: is no scored question of {benchmark}, it has no {missing}; give an instances.jsonl of plum evaluate"
        )
    return record


def lines(report):
    """The comparison as text."""
    counts = report["counts"]
    n_questions, n_images = console.counted(report["n_instances"], "question"), console.counted(report["n_images"], "image")
    out = [f"A  {report['a']['path']}", f"B  {report['b']['path']}"]
    out.append(f"{n_questions} about {n_images}, in percent; * interval without 0")
    for name, what in (("only_a", "only in A"), ("only_b", "only in B"), ("other_targets", "with other target masks")):
        if counts[name]:
            out.append(f"left out: {console.counted(counts[name], 'question')} {what}")
    out += [
        f"left out: {console.counted(n, 'question')}, {reason.replace('_', ' ')}" for reason, n in counts["skipped"].items()
    ]
    for kind, protocols in report["question_types"].items():
        for protocol, metrics in protocols.items():
            heads = f"{'A':>8}{'B':>8}{'B - A':>9}  {'95 % interval':>16} {'better':>7} {'worse':>7} {'equal':>7}"
            out += ["", f"{kind}, {protocol.replace('_', ' ')}", f"  {'':<{WIDTH}}{heads}"]
            out += [_line(name, numbers) for name, numbers in metrics.items()]
    if report["cases"]:
        shown = report["cases"][:SHOWN]
        out += ["", f"Changed most ({len(shown)} of {len(report['cases'])} listed):"]
        out += [text for case in shown for text in _case(case)]
    return out


def _line(name, numbers):
    show = lambda value, sign="": "-" if value is None else f"{100 * value:{sign}.1f}"  # noqa: E731
    low, high = numbers["interval_95"] or (None, None)
    star = "*" if low is not None and (low > 0 or high < 0) else " "
    interval = "-" if low is None else f"{show(low, '+')} to {show(high, '+')}"
    return (
        f"  {name:<{WIDTH}}{show(numbers['a']):>8}{show(numbers['b']):>8}{show(numbers['difference'], '+'):>8}{star}"
        f"  {interval:>16} {numbers['better']:>7} {numbers['worse']:>7} {numbers['equal']:>7}"
    )


def _case(case):
    out = [
        f"  {case['instance_id']}  {case['image_path']}  {case['question_type'].replace('_', ' ')}",
        f"    {case['question']}",
    ]
    for name in ("a", "b"):
        side = case[name]
        verdict = {True: "right", False: "wrong", None: ""}[side["right"]]
        iou = "" if side["iou"] is None else f"IoU {side['iou']:.2f}"
        out.append(f"    {name.upper()} {iou:<9}{verdict:<6} {side['answer']}".rstrip())
    return out


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
