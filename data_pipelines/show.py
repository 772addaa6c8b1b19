"""`plum data show PATH`: a page of samples with their images, masks and answers, to look at a data set."""

import difflib
import random
from pathlib import Path

from data_pipelines.checks.options import PATHS
from data_pipelines.checks.targets import find_target
from data_pipelines.gallery import Entry, render
from data_pipelines.question_files import question_files, readable_questions, split_of
from data_pipelines.samples import sample_page
from plum_jax import cli
from plum_jax.errors import UserError

FILTERS = {  # option -> values that a question has
    "split": lambda entry: {entry.split},
    "type": lambda entry: {entry.question.question_type},
    "part": lambda entry: {part for part, masks in entry.question.segmentations.items() if masks},
    "object": lambda entry: {entry.question.image_label},
}


def main(argv=None):
    from plum_jax.console import size
    from plum_jax.run_record import write_text

    arguments = _parser().parse_args(argv)
    out = Path(arguments.out)
    if arguments.max < 1:
        raise UserError(f"--max {arguments.max}: give the number of questions to show, at least 1")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"{out}: cannot be written; give --out a file in a folder that exists")
    target = find_target(arguments.paths)
    wanted = {name: getattr(arguments, name) for name in FILTERS if getattr(arguments, name) is not None}
    if target.kind != "questions":
        if wanted:
            raise UserError(f"--{next(iter(wanted))} chooses questions; {arguments.paths[0]} holds none, leave it out")
        text, count = sample_page(target, arguments.max, images=arguments.images, follow_links=arguments.follow_links)
        write_text(out, text)
        print(f"{count} samples: {out} ({size(out.stat().st_size)}, open in a browser)")
        return 0
    entries = matching(read_entries(target.folder, target.files), wanted)
    chosen = choose(entries, arguments.max, arguments.seed)
    heading = ", ".join([f"Questions of {target.folder.resolve().name}", *wanted.values()])
    write_text(out, render(target.folder, chosen, heading, follow_links=arguments.follow_links))
    print(f"{len(chosen)} of {len(entries)} questions: {out} ({size(out.stat().st_size)}, open in a browser)")
    return 0


def _parser():
    parser = cli.Parser(prog="plum data show", description="Write one HTML file that shows samples of a data set.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help=PATHS)
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--max", type=int, default=60, help="most samples to show (default 60)")
    parser.add_argument("--images", help="for COCO files: folder of their images")
    parser.add_argument("--follow-links", action="store_true", help="show images behind links that lead out of the folder")
    parser.add_argument("--split", help="only questions of this split")
    parser.add_argument("--type", help="only questions of this type")
    parser.add_argument("--part", help="only questions about objects with a mask of this part")
    parser.add_argument("--object", help="only questions about this object")
    parser.add_argument("--seed", type=int, default=0, help="another seed chooses other questions (default 0)")
    return parser


def read_entries(folder, files=None):
    """-> [Entry] of every question that can be read, in the order of the files. UserError when there is none."""
    entries = [
        Entry(path.name, split_of(path), index, question)
        for path in files or question_files(folder)
        for index, question in readable_questions(path)[0]
    ]
    if not entries:
        raise UserError(f"{folder}: its files hold no question that can be read; plum data check says why")
    return entries


def matching(entries, wanted):
    """Entries that have every value of `wanted` {option: value}. UserError for a value that no entry has, or no match."""
    for name, value in wanted.items():
        known = set().union(*map(FILTERS[name], entries))
        if value not in known:
            near = difflib.get_close_matches(value, known, n=3) or sorted(known)[:5]
            raise UserError(f"--{name} {value}: no question has it; try {', '.join(near)}")
    found = [entry for entry in entries if all(value in FILTERS[name](entry) for name, value in wanted.items())]
    if not found:
        raise UserError(f"no question has {' and '.join(f'--{n} {v}' for n, v in wanted.items())}; leave one of them out")
    return found


def choose(entries, most, seed):
    """At most `most` entries, drawn in turn from every question type, in their order in the files."""
    groups = {}
    for place, entry in enumerate(entries):
        groups.setdefault(entry.question.question_type, []).append(place)
    rng = random.Random(seed)
    drawn = [rng.sample(places, len(places)) for _, places in sorted(groups.items())]
    turns = sorted((turn, group, place) for group, places in enumerate(drawn) for turn, place in enumerate(places))
    return [entries[place] for place in sorted(place for _, _, place in turns[:most])]


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
