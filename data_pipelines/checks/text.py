"""The report of a check as lines for people."""


def as_text(report):
    lines = [report["folder"]]
    for name, counts in report.get("files", {}).items():
        lines.append(f"  {name}: {_numbers(counts)}")
        lines += [f"    {count:>7} {kind}" for kind, count in counts.get("types", {}).items()]
    for name, found in report.get("datasets", {}).items():
        lines.append(f"  {name}: {'found' if found['splits'] else 'not usable'}")
        for split, counts in found["splits"].items():
            expected = f", the release has {counts['expected']:,}" if counts["expected"] else ""
            lines.append(f"    {split}: {counts['records']:,} records of {counts['listed']:,}{expected}")
    if report.get("images"):
        lines.append(f"  images: {_numbers(report['images'])}")
    number = 0
    for level, title in (("problems", "errors:"), ("warnings", "warnings:")):
        lines += [title] if report[level] else []
        for found in report[level]:
            number += 1
            lines.append(f"{number}. {_place(found)}{found['problem']}")
    errors, warnings = (sum(report["counts"][level].values()) for level in ("error", "warning"))
    lines.append(_plural(errors, "problem") + (f", {_plural(warnings, 'warning')}" if warnings else ""))
    if report.get("html"):
        lines.append(f"Samples: {report['html']} (open in a browser)")
    return "\n".join(lines)


def _numbers(counts):
    return ", ".join(
        f"{n} {key.replace('_', ' ')}" for key, n in counts.items() if isinstance(n, int) and (n or key != "crowds")
    )


def _place(found):
    if found["file"] is None:
        return ""
    entry = found["entry"]
    where = "" if entry is None else f" entry {entry}" if isinstance(entry, int) else f" {entry}"
    return f"{found['file']}{where}: "


def _plural(count, noun):
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
