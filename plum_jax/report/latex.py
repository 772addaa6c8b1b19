r"""Tables of the report as LaTeX: a file for `\input` that needs only the package booktabs."""

import itertools
import re
import unicodedata

from plum_jax.report.tables import mark, show

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "\u2013": "--", "\u2014": "---", "\u2212": "$-$", "\u2265": r"$\geq$",
    "\u2264": r"$\leq$", "\u00d7": r"$\times$", "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''",
    "\u2026": r"\ldots{}", "\u00a0": "~", "\u00b7": r"$\cdot$", "\n": " ", "\r": " ", "\t": " ",
}  # fmt: skip
HEADER = r"""%% Written by plum report. In the preamble: \usepackage{booktabs}. In the text: \input{%s}
"""


def escape(text):
    """Any text -> LaTeX that prints it. What plain LaTeX cannot print becomes the nearest sign, or "?"."""
    return "".join(_character(c) for c in str(text))


def _character(c):
    if c in SPECIAL:
        return SPECIAL[c]
    if " " <= c <= "~" or "\u00c0" <= c <= "\u017f":  # ASCII; letters of Latin-1 and Latin Extended-A
        return c
    near = [x for x in unicodedata.normalize("NFKD", c) if not unicodedata.combining(x)]
    return "".join(SPECIAL.get(x, x if " " <= x <= "~" else "?") for x in near) or "?"


def document(tables, name="report"):
    """[Table] -> text of the file `name`.tex."""
    return HEADER % name + "".join(render(table) for table in tables)


def render(table):
    """Table -> a table* with booktabs rules, the notes below it."""
    heads = len(table.heads)
    out = ["", r"\begin{table*}[t]", r"  \centering\scriptsize\setlength{\tabcolsep}{3pt}",
           rf"  \caption{{{escape(table.title)}. {escape(table.intro)}}}", rf"  \label{{tab:{label(table.id)}}}",
           rf"  \begin{{tabular}}{{{'l' * heads}{'r' * len(table.columns)}}}", r"    \toprule"]  # fmt: skip
    if any(column.group for column in table.columns):
        out += _group_lines(table)
    out += [_line([*map(escape, table.heads), *(escape(c.name) for c in table.columns)]), r"    \midrule"]
    for number, (_, rows) in enumerate(itertools.groupby(table.rows, key=lambda r: r.kind in ("ours", "difference"))):
        if number:
            out.append(r"    \midrule")
        out += [_row(table, row) for row in rows]
    out += [r"    \bottomrule", r"  \end{tabular}"]
    notes = [f"{mark(i)}: {note}" for i, note in enumerate(table.notes)] + [table.source] * bool(table.source)
    if notes:
        out += [r"  \par\smallskip", r"  \begin{minipage}{\linewidth}\scriptsize"]
        out += [f"    {escape(note)}" + r"\par" for note in notes] + [r"  \end{minipage}"]
    return "\n".join([*out, r"\end{table*}", ""])


def label(text):
    """What may stand in a label: letters, digits, hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)


def _group_lines(table):
    cells, rules, at = [""] * len(table.heads), [], len(table.heads) + 1
    for name, width in table.groups:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}" if name else rf"\multicolumn{{{width}}}{{c}}{{}}")
        rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] * bool(name)
        at += width
    return [_line(cells), "    " + "".join(rules)]


def _row(table, row):
    heads = [escape(head) for head in row.heads]
    if row.notes:
        heads[0] += rf"\textsuperscript{{{','.join(mark(i) for i in row.notes)}}}"
    if row.kind == "ours":
        heads[0] = rf"\textbf{{{heads[0]}}}"
    cells = [escape(show(v, c.digits, row.kind)) for v, c in zip(row.cells, table.columns, strict=True)]
    return _line([*heads, *cells])


def _line(cells):
    return "    " + " & ".join(cells) + r" \\"
