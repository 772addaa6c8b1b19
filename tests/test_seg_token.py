"""The <seg> baseline: its rows, its loss, where a model puts <seg> by itself, and its evaluation."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_fixtures import PARTS as PARTS_TOKENS
from model_fixtures import micro, random_batch, random_params, small_config

from data_pipelines.conversation import IMAGE, SEG, Span, answer_spans, encode, join_parts, keep_spans, seg_id, truncate
from plum_jax import generate, initial, objective, seg_token
from plum_jax.config_io import load_config
from plum_jax.convert.export import export
from plum_jax.errors import UserError
from plum_jax.evaluation import answers, spelling
from plum_jax.evaluation.folder import evaluate_folder
from plum_jax.evaluation.rows import make_groups
from plum_jax.evaluation.runner import Sizes
from plum_jax.greedy import Readout
from plum_jax.inference import Model
from plum_jax.loading import LoadedModel
from plum_jax.models.plum import PlumConfig, bind, build, take_positions
from plum_jax.settings import check_vocabulary
from tests import eval_fixtures

pytestmark = pytest.mark.usefixtures("quick_compilation")
PARTS = ("wheel", "cargo box", "cab")
ANSWER = f"The truck has the following visible parts: {join_parts(PARTS)}."
SPANS = [Span(0, *characters) for characters in answer_spans(ANSWER, PARTS)]
LAST = 59  # <seg> in the vocabulary of `small_config`


def config():
    """That of the evaluation tests, with <seg> as word 1025."""
    found = eval_fixtures.config()
    found.model.llama.vocab_size, found.model.grounding = 1025, "seg_token"
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return initial.tokenizer_of(config())


@functools.cache
def loaded(boost=0.05):
    """A random model that says <seg> at some places: its column of the head is made a little more likely everywhere."""
    c = config()
    _, shapes = build(PlumConfig.from_dict(c.model))
    params = random_params(shapes)
    params["llama"]["lm_head"]["kernel"] *= 0.02
    params["llama"]["lm_head"]["kernel"][:, 1024] = boost * np.random.default_rng(3).standard_normal(16)
    return LoadedModel(c, params, initial.tokenizer_of(c), "", "random", 0)


def text_of(tokens, tokenizer):
    return tokenizer.decode(tokens[tokens > 0])


def test_seg_stands_behind_every_span(tokenizer):
    turns = [(f"{IMAGE}\nWhat parts?", ANSWER), ("And what is it?", "A truck.")]
    plain = encode(turns, eval_fixtures.load_tokenizer("tiny"), "brief", SPANS)
    encoded = encode(turns, tokenizer, "brief", SPANS)
    seg = seg_id(tokenizer)
    is_seg = encoded.tokens == seg
    assert seg == 1024 and is_seg.sum() == 3 and (seg_id(eval_fixtures.load_tokenizer("tiny")) is None)
    assert "wheel<seg>, cargo box<seg>, and cab<seg>." in text_of(encoded.tokens, tokenizer)
    for name in ("tokens", "loss_weight", "bio", "span_of_token", "offsets"):  # nothing else is different
        np.testing.assert_array_equal(getattr(encoded, name)[~is_seg], getattr(plain, name))
    assert encoded.loss_weight[is_seg].all() and (encoded.bio[is_seg] == 2).all()
    assert encoded.span_of_token[is_seg].tolist() == [1, 2, 3] and (np.diff(encoded.offsets[is_seg]) == 0).all()
    assert encoded.answer_range == tuple(x + 3 for x in plain.answer_range) and encoded.image_position == plain.image_position
    assert text_of(encoded.tokens[slice(*encoded.answer_range)], tokenizer) == "A truck.</s>"


def test_a_span_and_its_seg_are_cut_and_kept_together(tokenizer):
    encoded = encode([(f"{IMAGE}\nWhat parts?", ANSWER)], tokenizer, "brief", SPANS)
    second = int(np.flatnonzero(encoded.tokens == 1024)[1])
    for length, kept in ((second, [0]), (second + 1, [0, 1])):
        assert truncate(encoded, length)[1] == kept
    fewer = keep_spans(encoded, [2])
    assert fewer.span_of_token[fewer.tokens == 1024].tolist() == [0, 0, 1] and (fewer.tokens == encoded.tokens).all()


def test_seg_is_reserved_and_the_vocabulary_has_to_end_with_it(tokenizer):
    with pytest.raises(UserError, match="reserved"):
        encode([("Where?", f"Here{SEG}.")], tokenizer, "brief")
    check_vocabulary(config(), tokenizer)
    wrong = load_config("tiny", ["model.grounding=seg_token"])
    with pytest.raises(UserError, match="vocab_size: 1024 does not end with <seg>.*set it to 1025"):
        check_vocabulary(wrong, tokenizer)
    wrong.model.grounding = "both"
    with pytest.raises(UserError, match="use span or seg_token"):
        PlumConfig.from_dict(wrong.model)


def test_the_projector_is_that_of_the_spans_and_the_tagger_is_gone():
    span, seg = (
        flatten_dict(build(PlumConfig.from_dict(small_config(grounding=x).model))[1], sep="/") for x in ("span", "seg_token")
    )
    assert {path: x.shape for path, x in seg.items()} == {
        path: x.shape for path, x in span.items() if not path.startswith("span_tagger/")
    }


@pytest.fixture(scope="module")
def trained():
    """(config, graph definition, parameters, batch whose spans end in <seg>)."""
    c = small_config(grounding="seg_token")
    c.loss.reference = 0.5
    graphdef, shapes = build(PlumConfig.from_dict(c.model))
    batch = random_batch(c)
    tokens, owner = batch.tokens.copy(), batch.span_of_token
    following = np.concatenate([owner[..., 1:], np.zeros_like(owner[..., :1])], -1)
    tokens[tokens == LAST] = 1
    tokens[(owner > 0) & (owner != following)] = LAST
    return c, graphdef, random_params(shapes, adapters=True), batch._replace(tokens=tokens)


def test_losses_are_on_seg_for_masks_and_on_the_words_for_the_reference(trained):
    c, graphdef, params, batch = trained
    model = bind(graphdef, params)
    terms, metrics = jax.jit(lambda p: objective.forward(bind(graphdef, p), batch, c, PARTS_TOKENS, None))(params)
    assert "tag" not in terms and "tag_accuracy" not in metrics
    assert float(metrics["seg_accuracy"][1]) == (batch.tokens == LAST).sum() > 2
    slots = batch.span_of_token.reshape(4, -1)[:, None] == np.arange(1, 4)[:, None]
    prompt, words = model.prompt_slots(jnp.asarray(slots), jnp.asarray(batch.tokens.reshape(4, -1)))
    used = batch.span_valid.reshape(4, -1)
    assert (prompt.sum(-1) == used).all() and ((prompt | words) == slots).all() and not (prompt & words).any()

    tokens = batch.tokens.reshape(4, -1)
    embeds, position = model.embed(
        tokens, batch.image_position.reshape(4), jnp.repeat(model.image_tokens(batch.clip_pixels), 2, 0)
    )
    lengths = model.spliced_lengths(batch.token_valid.reshape(4, -1), batch.image_position.reshape(4))
    with_, without = (np.asarray(take_positions(model.hidden(embeds, lengths, adapter=x), position)) for x in (True, False))
    distance = 0.5 * np.square(with_ - without).mean(-1)
    want = sum(distance[r, np.asarray(words[r, s])].mean() for r, s in zip(*np.nonzero(used), strict=True) if words[r, s].any())
    np.testing.assert_allclose(terms["reference"][0], want, rtol=1e-4)
    count = objective.make_loss(graphdef, c)[1]
    assert float(count(micro(batch))["shape"]) == used.sum()


def test_phrases_are_read_from_the_text():
    text = "Parts: left front wheel, and cargo box of it."
    words = [(0, 5), (5, 6), (7, 11), (12, 17), (18, 23), (23, 24), (25, 28), (29, 34), (35, 38), (39, 41), (42, 44), (44, 45)]

    def phrases(*behind, twice=False):
        offsets, is_seg = [], []
        for i, word in enumerate(words):
            offsets.append(word)
            is_seg.append(False)
            for _ in range((i in behind) * (1 + twice)):
                offsets.append((word[1], word[1]))
                is_seg.append(True)
        labels = seg_token.label_phrases(np.array(is_seg), offsets, text)
        starts = np.flatnonzero(labels == 1)
        ends = [int(next(t for t in range(s, len(labels)) if is_seg[t])) for s in starts]
        assert all((labels[s + 1 : e + 1] == 2).all() for s, e in zip(starts, ends, strict=True))
        return [text[offsets[s][0] : offsets[e][1]] for s, e in zip(starts, ends, strict=True)]

    assert phrases(4, 8) == ["left front wheel", "cargo box"]
    assert phrases(5, 9) == ["left front wheel,", "cargo box of"]  # behind the comma it is about the words before it
    assert phrases(3, 4) == ["left front", "wheel"]
    assert phrases(4, twice=True) == ["left front wheel"]  # the second is about nothing


def spell(model, row, images):
    """Device program -> (tokens with the model's <seg>, Readout of them), of one row."""
    encoded = row.encoded
    start, end = encoded.answer_range
    answer = encoded.tokens[start:end]
    said, count, readout = generate.generate(
        model.graphdef, model.params, images.tokens, encoded.tokens[None, :start], np.array([start]),
        np.array([encoded.image_position]), answer[answer != model.seg][None], max_new_tokens=2 * len(answer),
        end_token=model.end_token,
    )  # fmt: skip
    n = int(count[0])
    return np.asarray(said)[0, :n], Readout(*(np.asarray(x)[:, :n] for x in readout))


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """(Model, rows.Row, encoded image) of a part question."""
    from data_pipelines.partonomy.records import read_questions

    folder = tmp_path_factory.mktemp("questions")
    eval_fixtures.write_folder(folder)
    question = next(q for q in read_questions(folder / "partonomy_qa_pairs_test.json") if len(q.correct_parts) == 4)
    model = Model(loaded())
    group = make_groups(0, question, model.tokenizer, model.config.data, "file")["part"]
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    return model, group.rows[group.correct], model.encode_images([pixels], 1)


def test_a_given_answer_is_spelled_with_the_seg_tokens_of_the_model(row):
    """Each <seg> is the most likely token where it stands, and nowhere else is it; the words are those that were given."""
    model, row, images = row
    tokens, readout = spell(model, row, images)
    start, end = row.encoded.answer_range
    words = row.encoded.tokens[start:end]
    np.testing.assert_array_equal(tokens[tokens != model.seg], words[words != model.seg])
    assert 0 < (tokens == model.seg).sum() < len(words)
    whole = np.concatenate([row.encoded.tokens[:start], tokens])[None]
    live = bind(model.graphdef, model.params)
    embeds, position = live.embed(whole, np.array([row.encoded.image_position]), images.tokens)
    logits = live.logits(live.hidden(embeds, np.array([embeds.shape[1]])))
    likely = np.asarray(take_positions(logits, position - 1))[0, start:]
    for t in range(1, len(tokens)):
        assert (tokens[t] == model.seg) == (likely[t].argmax() == model.seg and tokens[t - 1] != model.seg)
    p = np.exp(likely - likely.max(-1, keepdims=True))
    np.testing.assert_allclose(readout.confidence[0, 1:], (p[:, model.seg] / p.sum(-1))[1:], atol=1e-5)


def test_own_spans_are_matched_with_the_constructed_ones(row):
    model, row, images = row
    start, end = row.encoded.answer_range
    as_trained = row.encoded.tokens[start:end]
    values = np.random.default_rng(1).random((1, len(as_trained), 5)).astype(np.float32)

    def said(tokens):
        n = len(tokens)
        return spelling.spelled(row, tokens, Readout(np.zeros((1, n), np.int8), values[:, :n, 0], values[:, :n]), model.seg)

    perfect = said(as_trained)
    assert perfect.ranges == row.targets and perfect.parts == list(row.choice.parts)
    assert perfect.counts == {"matched": 4, "predicted": 4, "target": 4} and (perfect.bio[:, 0] == perfect.bio[:, 1]).all()
    at = np.flatnonzero(as_trained == model.seg)
    np.testing.assert_array_equal(perfect.masks.embeds, values[0, at])
    np.testing.assert_allclose(perfect.confidence, values[0, at, 0])
    given = answers.constructed(
        row, Readout(None, None, np.concatenate([np.zeros((start, 5), np.float32), values[0]])), 0, seg=model.seg
    )
    np.testing.assert_array_equal(given.masks.embeds, values[0, at])

    silent = said(as_trained[as_trained != model.seg])
    assert silent.ranges == [] and silent.counts == {"matched": 0, "predicted": 0, "target": 4}
    fewer = said(np.delete(as_trained, at[1:3]))
    assert fewer.parts == [row.choice.parts[0], row.choice.parts[3]] and fewer.ranges == [row.targets[0], row.targets[3]]
    late = said(np.insert(np.delete(as_trained, at[0]), at[0] + 1, model.seg))  # behind the comma
    assert late.counts["matched"] == 3 and [row.answer[a:b] for a, b in late.chars][0].startswith(row.choice.parts[0])


@pytest.mark.slow
def test_evaluation_under_every_protocol(tmp_path):
    """Whatever the batches; the correct answer with given spans has a mask for each part."""
    eval_fixtures.write_folder(tmp_path)
    model, found = Model(loaded()), []
    for number, sizes in enumerate((Sizes(), Sizes(images=2, questions=3, masks=2))):
        protocols = ("published", "middle", "end_to_end", "generation")
        found.append(evaluate_folder(
            model, tmp_path, "test", tmp_path / str(number), log=None, sizes=sizes, protocols=protocols
        ))  # fmt: skip
    for protocol in ("published", "middle", "end_to_end", "generation"):
        for kind in ("identification_with_label", "part_to_whole", "whole_to_part"):
            one, other = (r["protocols"][protocol][kind] for r in found)
            for group in ("mask_macro", "mask_micro", "span", "bio_accuracy"):
                assert one.get(group) == pytest.approx(other.get(group), abs=1e-6), (protocol, kind, group)
    assert found[0]["counts"]["scored"] == 9
    records = [json.loads(line) for line in (tmp_path / "0" / "instances.jsonl").read_text().splitlines()]
    assert all(len(record["published"]["spans"]) == len(record["gt_parts"]) for record in records)
    assert any(record["end_to_end"]["spans"] for record in records)


def test_an_answer_of_its_own(row):
    model = row[0]
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    answer = model(pixels, "What visible parts does it have?")
    assert SEG not in answer.text
    for span in answer.spans:
        np.testing.assert_array_equal(answer.mask_for(span.char_span).mask, span.mask)
    quiet = Model(loaded(boost=0.0))(pixels, "What visible parts does it have?")
    assert quiet.spans == [] and quiet.status == "no_span_tagged"
    if quiet.text.strip():
        with pytest.raises(UserError, match="put no <seg> behind it"):
            quiet.mask_for(quiet.text.split()[0])


def test_other_formats_refuse_it(tmp_path, monkeypatch):
    from plum_jax import loading
    from plum_jax.serving import command

    opened = loading.Parameters(config(), None, None, (), "")
    monkeypatch.setattr(loading, "open_parameters", lambda path: opened)
    with pytest.raises(UserError, match="<seg> token and no span tagger"):
        export("run", "hf", tmp_path / "out")
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: loaded())
    with pytest.raises(UserError, match="<seg> token and no span tagger"):
        command.main(["--checkpoint=run", f"--out={tmp_path / 'served'}"])
