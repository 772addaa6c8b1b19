import re
from html.parser import HTMLParser

import pytest
from fixtures_partonomy import question, write_entries, write_folder

from data_pipelines.gallery import make_card
from data_pipelines.show import choose, main, matching, read_entries
from plum_jax import cli
from plum_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, images=4)
    write_folder(tmp_path, images=2, split="val", seed=1)
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, cls=None):
        return [a for t, a in self.tags if t == tag and (cls is None or cls in (a.get("class") or "").split())]


def page(folder, *options):
    out = folder / "gallery.html"
    assert main([str(folder), "--out", str(out), *options]) == 0
    return Page(out.read_text(encoding="utf-8"))


def test_one_file_without_scripts_or_requests(folder):
    shown = page(folder)
    assert not shown.all("script") and len(shown.all("style")) == 1
    for _, attributes in shown.tags:
        for name in ("src", "href"):
            assert name not in attributes or attributes[name].startswith(("data:", "#"))
    raw = (folder / "gallery.html").read_text(encoding="utf-8")
    assert "http:" not in raw and "https:" not in raw and "@import" not in raw
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []


def test_cards_masks_and_index(folder):
    shown = page(folder)
    assert len(shown.all("article")) == 18
    ids = {a["id"] for a in shown.all("article")}
    links = {a["href"] for a in shown.all("a") if a["href"].startswith("#c")}
    assert links == {f"#{name}" for name in ids}
    assert all(a["alt"] for a in shown.all("img"))
    assert [a["alt"] for a in shown.all("img")].count("Mask of the part “pole”") == 18  # also where the answer leaves it out
    assert len(shown.all("span", "phrase")) == 18 * 3
    assert all(a["tabindex"] == "0" for a in shown.all("span", "phrase"))
    assert len(shown.all("li", "correct")) == 18 + 6  # two-turn questions have two


def test_every_phrase_hides_the_masks_of_the_others(folder):
    page(folder)
    raw = (folder / "gallery.html").read_text(encoding="utf-8")
    assert ".card:has(.phrase:focus) .mask" in raw and ".card .phrase:is(:hover, :focus, :target) .mask { opacity: 1; }" in raw


def test_part_names_are_marked_in_the_answer(folder):
    entry = read_entries(folder)[1]  # positive_with_label: base and pole of three parts
    card = make_card(folder, entry)
    assert [piece.part for piece in card.turns[0].answer if piece.part] == ["base", "pole"]
    assert "".join(piece.text for piece in card.turns[0].answer) == entry.question.answer_choices[2]
    assert [piece.part for piece in card.others] == ["lamp shade"]
    assert [correct for _, correct in card.turns[0].choices] == [False, False, True, False, False]


def test_the_turns_of_both_orders(folder):
    hw = (40, 72)
    write_entries(folder, [question("images/train_0.png", hw, kind) for kind in ("whole_to_part", "part_to_whole")])
    first, second = (make_card(folder, entry) for entry in read_entries(folder)[:2])
    assert first.turns[0].question == second.turns[1].question == "What is the object in the image?"
    assert [piece.part for piece in second.turns[0].answer if piece.part] == ["base", "lamp shade", "pole"]
    assert [piece.text for piece in first.turns[0].answer] == ["It is a desk lamp."]


def test_filters(folder):
    entries = read_entries(folder)
    assert len(matching(entries, {"split": "val"})) == 6
    assert len(matching(entries, {"split": "val", "type": "part_to_whole"})) == 2
    assert matching(entries, {"part": "pole", "object": "desk lamp"}) == entries
    assert len(page(folder, "--split", "val", "--type", "part_to_whole").all("article")) == 2
    with pytest.raises(UserError, match="--object desk lmp: no question has it; try desk lamp"):
        matching(entries, {"object": "desk lmp"})
    write_entries(folder, [question("images/val_0.png", (40, 72), "negative")], "val")
    with pytest.raises(UserError, match="--split train and --type negative; leave"):
        matching(read_entries(folder), {"split": "train", "type": "negative"})


def test_the_choice_is_deterministic_and_covers_the_types(folder):
    entries = read_entries(folder)
    chosen = choose(entries, 6, 0)
    assert chosen == choose(entries, 6, 0)
    assert sorted(entry.question.question_type for entry in chosen) == sorted(
        ["identification_with_label", "part_to_whole", "positive_with_label"] * 2
    )
    assert any(choose(entries, 6, seed) != chosen for seed in range(1, 5))
    assert choose(entries, 100, 0) == entries
    page(folder, "--max", "5", "--seed", "2")
    first = (folder / "gallery.html").read_bytes()
    page(folder, "--max", "5", "--seed", "2")
    assert (folder / "gallery.html").read_bytes() == first


def test_text_is_escaped_and_faults_are_shown(folder):
    entry = question("images/train_0.png", (40, 72))
    entry["question"] = "<script>alert('x')</script>"
    entry["image_label"] = '"><img src=x>'
    entry["segmentations"]["base"] = [{"size": [4, 4], "counts": [0, 16]}]
    entry["highlight_box"] = [0, 0, 36, 40]
    missing = question("images/none.png", (40, 72))
    missing["answer_choices"][0] = "No list."
    write_entries(folder, [entry, missing])
    shown = page(folder, "--split", "train")
    assert not shown.all("script") and "<script>alert('x')</script>" in shown.text
    assert all(a["src"].startswith("data:") for a in shown.all("img"))
    assert "mask of 'base' is 4 x 4, image is 40 x 72" in shown.text
    assert "none.png: no such image" in shown.text and "'No list.' does not end in the list" in shown.text
    (box,) = shown.all("span", "box")
    assert re.fullmatch(r"left:0.0%;top:22.22%;width:50.0%;height:55.56%", box["style"])


def test_wrong_use(folder, capsys):
    out = str(folder / "x.html")
    for arguments, words in (
        ([str(folder / "none"), "--out", out], "no such folder"),
        ([str(folder), "--out", str(folder)], "cannot be written"),
        ([str(folder), "--out", str(folder / "none" / "x.html")], "folder that exists"),
        ([str(folder), "--out", out, "--max", "0"], "at least 1"),
        ([str(folder)], "--out"),
    ):
        assert cli.main(["data", "show", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    write_entries(folder, [3], "train")
    write_entries(folder, [], "val")
    with pytest.raises(UserError, match="hold no question"):
        main([str(folder), "--out", out])
    assert not (folder / "x.html").exists()
