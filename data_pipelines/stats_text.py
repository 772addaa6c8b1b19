"""The numbers of `plum data stats` as tables for people."""

from data_pipelines.checks.findings import printable

MOST_ROWS = 12  # of a table; --json has all
BAR = 32  # characters


def as_text(report):
    lines = [report["folder"]]
    for name, summary in report.get("files", {}).items():
        lines += ["", name, *_file(summary)]
    for name, splits in report.get("datasets", {}).items():
        for split, found in splits.items():
            lines += ["", f"{name} {split}", *_family(found)]
    return "\n".join(map(printable, lines))


def _file(s):
    rows = [
        ("images", s["images"]), ("kinds of object", s["objects"]), ("objects in images", s["objects_in_images"]),
        ("names of parts", s["parts"]), ("object-part pairs", s["object_part_pairs"]), ("masks", s["masks"]),
        ("unreadable masks", s["unreadable_masks"] or None),
    ]  # fmt: skip
    lines = [f"  {number:>10,}  {name}" for name, number in rows if number is not None]
    lines += _spread("masks per image", s["masks_per_image"])
    lines += _areas(s["mask_area"])
    lines += _bars("objects by number of visible parts", s["parts_per_object"])
    lines += _bars("most frequent objects", s["by_object"], MOST_ROWS)
    lines += _bars("most frequent parts", s["by_part"], MOST_ROWS)
    lines += _bars(
        "parts most often together", {f"{one} + {other}": n for one, other, n in s["together"]}, MOST_ROWS, shares=False
    )
    lines += [f"  left out: {count:,} x {reason}" for reason, count in s["left_out"].items()]
    return lines


def _family(found):
    if "problem" in found:
        return [f"  {found['problem']}"]
    lines = [f"  {found['records']:>10,}  records"]
    lines += [f"  {count:>10,}  left out: {reason}" for reason, count in found["left_out"].items()]
    lines.append("  drawn: " + ", ".join(f"{count:,} {name}" for name, count in found["drawn"].items()))
    if not found["masks"]:
        return lines
    lines += _spread("masks per sample", found["masks_per_image"]) + _areas(found["mask_area"])
    return lines + _bars("most frequent names", found["by_part"], MOST_ROWS)


def _spread(name, numbers):
    if numbers["mean"] is None:
        return []
    return [f"  {numbers['mean']:>10.2f}  {name} (median {numbers['median']:g}, {numbers['least']:g} to {numbers['most']:g})"]


def _areas(areas):
    return _bars("masks by share of the image", {f"{low:.1%} to {high:.1%}": count for low, high, count in areas["histogram"]})


def _bars(title, counts, most=None, *, shares=True):
    """A table with a bar for each row, and where the rows add up to something its share."""
    if not any(counts.values()):
        return []
    rows, total, largest = list(counts.items()), sum(counts.values()), max(counts.values())
    more = [f"    and {len(rows) - most:,} more"] if most and len(rows) > most else []
    rows = rows[:most]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {title}"]
    for name, count in rows:
        share = f"{count / total:.1%}" if shares else ""
        lines.append(f"    {name:<{width}} {count:>9,} {share:>6}  {'#' * round(BAR * count / largest)}".rstrip())
    return lines + more
