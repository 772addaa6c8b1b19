"""The LaTeX file: balanced, as many cells in a line as its table has columns, nothing left that LaTeX would act on."""

import re

import pytest
from report_fixtures import make_evaluation

from plum_jax.report import write_report
from plum_jax.report.latex import document, escape, label
from plum_jax.report.tables import Column, Row, Table


def balanced(text):
    """Braces that are not escaped close in order."""
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def widths(text):
    """-> [(columns of a tabular, [cells of its lines])]."""
    found = []
    for spec, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.rstrip().endswith(r"\\")]
        cells = []
        for line in lines:
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            cells.append(len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans))
        found.append((len(spec), cells))
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = make_evaluation(tmp_path_factory.mktemp("e") / "a_b 100% {x}")
    write_report(folder, folder / "report.html", latex=folder / "tables.tex", against="PLUM-13B (zero-shot)")
    return (folder / "tables.tex").read_text()


def test_file_is_balanced(text):
    assert balanced(text)
    for name in ("table*", "tabular", "minipage"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}")
    assert r"\input{tables}" in text.splitlines()[0]


def test_lines_have_the_cells_of_their_table(text):
    tables = widths(text)
    assert len(tables) >= 8
    for columns, cells in tables:
        assert cells and set(cells) == {columns}


def test_rules_of_groups_lie_inside_the_table(text):
    for spec, rules in re.findall(r"\\begin\{tabular\}\{([lr]+)\}.*?\n.*?\n.*?\n    (\\cmidrule.*)", text):
        for first, last in re.findall(r"\{(\d+)-(\d+)\}", rules):
            assert 1 <= int(first) <= int(last) <= len(spec)


def test_nothing_that_latex_acts_on_is_left(text):
    body = re.sub(r"\\[a-zA-Z]+\*?|\\[%&#_${}\\]", "", "\n".join(text.splitlines()[1:]))
    assert not re.search(r"[%#_^~]", body)
    assert body.count("$") % 2 == 0
    assert r"a\_b 100\% \{x\}" in text
    assert all(c < "\u0180" for c in text)
    assert len(re.findall(r"\\label\{([A-Za-z0-9:-]+)\}", text)) == text.count(r"\label{")


def test_escape():
    assert escape(r"a\b{c}_%$&#~^") == r"a\textbackslash{}b\{c\}\_\%\$\&\#\textasciitilde{}\textasciicircum{}"
    assert escape("5–10 ≥ “x” −1 é ½ 零 😀") == "5--10 $\\geq$ ``x'' $-$1 é 1?2 ? ?"
    assert balanced(escape("}}{{\\"))
    assert label("core_masks: 1") == "core-masks-1"


def test_a_table_of_hostile_words():
    evil = "\\input{/etc/passwd} & \\\\ % $x$ {\n\\end{tabular}"
    table = Table(
        evil, evil, evil, (evil,), (Column(evil, evil), Column("n")), (Row((evil,), (1.0, None), "ours", (0,)),), (evil,)
    )
    text = document([table])
    assert balanced(text) and widths(text) == [(3, [3, 3, 3])]
    assert r"\input{/etc" not in text and text.count(r"\end{tabular}") == 1
