"""Texts as tokens: reading, rows, augmentation, corruptions, targets, and the report on them."""

from __future__ import annotations

import codecs
import json
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("tokenizers")

from harness.core.errors import UserError
from harness.data import (
    clear_caches,
    find_leaks,
    load_target,
    read_examples,
    shifted,
    split_indices,
)
from harness.data.media import Texts
from harness.data.splits import Examples
from harness.data.target import TextTarget
from harness.data.texts import decode_text
from harness.dataset_report.contact_sheet import draw
from harness.dataset_report.inspection import inspect_target
from harness.dataset_report.text import findings
from harness.inputs import TokenizerFile, Tokens, described
from harness.inputs.text import corrupted
from harness.inputs.tokenizer import byte_tokenizer
from harness.search.preflight import check_study
from tests.pictures import paint, write_classes
from tests.refusals import refused
from tests.texts import OWN, SHARED, SPECIAL, sentence, word_tokenizer, write_texts
from tests.trials import MakeSpec, study_of

WORDS = word_tokenizer()
FORM = Tokens(WORDS, 16, 32)
PAD, UNK, CLS, SEP, MASK = range(5)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "words")


def rows_of(*examples: str, form: Tokens = FORM) -> torch.Tensor:
    return torch.stack([form.row(example) for example in examples])


# --- rows ------------------------------------------------------------------------------------------


def test_a_row_has_the_ids_of_the_tokenizer_and_a_mask() -> None:
    ids, mask = FORM.row("the horse is a wombat.").tolist()
    vocabulary = [*SPECIAL, *SHARED, *(word for own in OWN.values() for word in own), "."]
    the, horse, is_, a, dot = (vocabulary.index(w) for w in ("the", "horse", "is", "a", "."))
    assert ids == [CLS, the, horse, is_, a, UNK, dot, SEP] + [PAD] * 8
    assert mask == [1] * 8 + [0] * 8


def test_a_longer_text_loses_its_end_but_not_its_last_special_token() -> None:
    ids, mask = FORM.row("the horse " * 20).tolist()
    assert mask == [1] * 16
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert FORM.texts(FORM.row("the horse " * 20)[None]) == [" ".join(["the horse"] * 7)]


def test_a_text_without_a_known_token_still_has_something_to_attend_to() -> None:
    form = Tokens(word_tokenizer(special=False), 8, 8)
    assert form.row(" ")[1].tolist() == [1] + [0] * 7


def test_the_network_gets_ids_and_mask_as_int64() -> None:
    rows = rows_of("the horse", "a drill.")
    given = FORM.preparation(torch.device("cpu"), torch.contiguous_format)(rows)
    assert given.dtype == torch.int64
    assert given.shape == (2, 2, 16)
    assert torch.equal(given, rows.long())


def test_blank_and_random_rows_are_valid_texts() -> None:
    blank = FORM.blank(3)
    assert blank.shape == (3, 2, 16)
    assert blank.dtype == FORM.dtype
    assert set(blank[:, 1].flatten().tolist()) == {1}
    assert min(blank[:, 0].flatten().tolist()) >= len(SPECIAL)
    found = FORM.random(16, torch.Generator().manual_seed(0))
    ids, mask = found[:, 0], found[:, 1]
    assert sorted(mask.sum(1).tolist()) == list(range(1, 17))
    assert bool((mask[:, :-1] >= mask[:, 1:]).all())  # padding is at the end
    assert int(ids[mask == 1].min()) >= len(SPECIAL)
    assert set(ids[mask == 0].tolist()) == {PAD}
    assert int(ids.max()) < WORDS.size
    assert not torch.equal(found, FORM.random(16, torch.Generator().manual_seed(1)))


def test_a_tokenizer_is_compared_by_its_hash_and_can_be_pickled() -> None:
    again = TokenizerFile(WORDS.text)
    assert again == WORDS
    assert hash(again) == hash(WORDS)
    assert word_tokenizer(special=False) != WORDS
    copy = pickle.loads(pickle.dumps(FORM))
    assert copy == FORM
    assert torch.equal(copy.row("the horse"), FORM.row("the horse"))
    assert WORDS.text[:40] not in repr(FORM)
    assert WORDS.sha256 in FORM.key()["text"]


def test_bytes_are_tokens_without_a_vocabulary() -> None:
    form = Tokens(byte_tokenizer(), 64, 64)
    text = "Größe 5 €, 木."
    row = form.row(text)
    assert int(row[1].sum()) == len(text.encode())
    assert form.texts(row[None]) == [text]
    assert form.tokenizer.size == 256


def test_a_form_of_tokens_is_read_back_from_its_description() -> None:
    assert described(json.loads(json.dumps(FORM.describe())), FORM.files()) == FORM


def test_lines_in_the_model_card_give_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FORM.files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", FORM.in_words(), re.DOTALL)
    for text in ("the horse is a wombat.", "the horse " * 20):
        place: dict[str, Any] = {"text": text}
        exec(code, place)
        assert torch.equal(place["tokens"], FORM.row(text)[None].long())


def test_resolution_is_refused() -> None:
    with refused("resolution 64 is for networks that take images"):
        FORM.at(64)


# --- augmentation and corruptions ------------------------------------------------------------------


def test_token_dropout_removes_a_tenth_and_closes_the_gaps() -> None:
    form = Tokens(WORDS, 202, 202)
    rows = form.row("horse " * 100 + "drill " * 100).expand(64, 2, 202)
    policy = form.augmentation("token_dropout", 2)
    labels = torch.zeros(64).long()
    varied, _ = policy(rows.clone(), labels, torch.Generator().manual_seed(0))
    ids, mask = varied[:, 0], varied[:, 1]
    assert varied.dtype == form.dtype
    assert float(mask.sum(1).float().mean()) == pytest.approx(2 + 180, abs=2)
    assert bool((mask[:, :-1] >= mask[:, 1:]).all())
    assert set(ids[mask == 0].tolist()) == {PAD}
    assert set(ids[:, 0].tolist()) == {CLS}
    assert {int(i[n - 1]) for i, n in zip(ids, mask.sum(1), strict=True)} == {SEP}
    for row, count in zip(ids, mask.sum(1), strict=True):  # the order is kept
        words = row[1 : count - 1]
        assert bool((words[:-1] <= words[1:]).all()) or bool((words[:-1] >= words[1:]).all())
    again, _ = policy(rows.clone(), labels, torch.Generator().manual_seed(0))
    assert torch.equal(varied, again)
    same, _ = form.augmentation("none", 2)(rows.clone(), labels, torch.Generator())
    assert torch.equal(same, rows)


def test_token_dropout_never_leaves_an_empty_text() -> None:
    form = Tokens(word_tokenizer(special=False), 4, 4)
    rows = form.row("horse").expand(500, 2, 4)
    policy = form.augmentation("token_dropout", 2)
    varied, _ = policy(rows.clone(), torch.zeros(500).long(), torch.Generator().manual_seed(0))
    assert torch.equal(varied, rows)


def test_typos_swap_inner_letters_of_a_fifth_of_the_words() -> None:
    text = " ".join(f"abcdefgh{i}" for i in range(1000)) + " abc the"
    changed = corrupted(text, "typos").split(" ")
    words = text.split(" ")
    differ = [(a, b) for a, b in zip(words, changed, strict=True) if a != b]
    assert len(differ) == pytest.approx(200, abs=40)
    assert all((a[0], a[-1], Counter(a)) == (b[0], b[-1], Counter(b)) for a, b in differ)
    assert all(sum(x != y for x, y in zip(a, b, strict=True)) == 2 for a, b in differ)
    assert changed[-2:] == ["abc", "the"]
    assert corrupted(text, "typos") == corrupted(text, "typos")


def test_word_dropout_removes_a_fifth_of_the_words_but_never_all() -> None:
    text = " ".join(f"w{i}" for i in range(1000))
    left = corrupted(text, "word_dropout").split()
    assert len(left) == pytest.approx(800, abs=40)
    assert left == [word for word in text.split() if word in set(left)]
    assert all(corrupted(f"w{i}", "word_dropout") == f"w{i}" for i in range(30))


def test_shifts_of_a_target_are_those_of_its_texts(texts: Path) -> None:
    name = f"folder:{texts}"
    target = load_target(name)
    examples = read_examples(name, (0, 20), FORM)
    moved = shifted(examples, "word_dropout", target)
    wanted = [corrupted(decode_text(target.files()[i], "a"), "word_dropout") for i in (0, 20)]
    assert torch.equal(moved.tensor, rows_of(*wanted))
    assert not torch.equal(moved.tensor, examples.tensor)


# --- near duplicates and pictures -------------------------------------------------------------------


def leaks_of(*examples: str, form: Tokens) -> set[tuple[int, int, bool]]:
    rows = rows_of(*examples, form=form)
    made = Examples(rows, torch.zeros(len(rows)).long(), np.arange(len(rows)), form)
    return {
        (*x.positions, x.exact)
        for x in find_leaks({"a": made, "b": made})
        if x.positions[0] < x.positions[1]
    }


def test_the_pairs_of_identical_texts_are_as_few_as_texts() -> None:
    """Of 600 equal texts each is in a pair, and a nearly equal one is paired with all of them."""
    form, words = Tokens(WORDS, 64, 64), sentence("animals", 40, seed=1)
    found = leaks_of(*[words] * 600, words.replace("horse", "drill", 1), form=form)
    assert {(a, b) for a, b, exact in found if exact} == {(0, i) for i in range(1, 600)}
    assert {(a, b) for a, b, exact in found if not exact} == {(i, 600) for i in range(600)}


@pytest.mark.parametrize("form", [Tokens(WORDS, 64, 64), Tokens(byte_tokenizer(), 512, 512)])
def test_texts_that_differ_in_one_word_of_forty_are_near_duplicates(form: Tokens) -> None:
    words = sentence("animals", 40, seed=1).split()
    changed = " ".join([*words[:20], "drill", *words[21:]])
    other = sentence("animals", 40, seed=2)
    found = leaks_of(" ".join(words), changed, other, " ".join(words), form=form)
    assert found == {(0, 1, False), (0, 3, True), (1, 3, False)}


def test_thumbnails_correlate_as_counts_of_words_do() -> None:
    examples = [sentence(name, 30, seed) for name in OWN for seed in range(10)]
    vocabulary = sorted({word for text in examples for word in text.lower().split()})
    counts = np.array([[t.lower().split().count(w) for w in vocabulary] for t in examples])
    form = Tokens(byte_tokenizer(), 512, 512)
    small = form.thumbnails(rows_of(*examples, form=form)).numpy()
    cosine = (
        counts @ counts.T / np.linalg.norm(counts, axis=1) / np.linalg.norm(counts, axis=1)[:, None]
    )
    assert np.abs(np.corrcoef(small) - cosine).max() < 0.25
    assert np.abs(np.corrcoef(small) - cosine).mean() < 0.06


def test_a_picture_shows_the_beginning_of_a_text() -> None:
    rows = rows_of("the horse", "the horse is a drill", "the horse")
    pictures = FORM.pictures(rows)
    assert pictures.shape == (3, 3, 96, 96)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures[0], pictures[2])
    dark = (pictures < 128).sum((1, 2, 3))
    assert 0 < int(dark[0]) < int(dark[1])


# --- targets ---------------------------------------------------------------------------------------


def test_folder_of_texts_is_a_target(texts: Path) -> None:
    target = load_target(f"folder:{texts}")
    assert target.classes == ("animals", "tools")
    assert target.labels.tolist() == [0] * 12 + [1] * 12
    sizes = np.array([path.stat().st_size for path in target.files()])
    longest = 8 * int(np.ceil((np.sort(np.ceil(sizes / 4) + 2)[int(0.95 * 23)]) / 8))
    assert target.medium == Texts(longest)
    form = target.medium.form(Tokens(WORDS, 32, 512))
    assert form == Tokens(WORDS, longest, 512)
    wanted = rows_of(
        *(path.read_text() for path in target.files()), form=Tokens(WORDS, longest, 512)
    )
    assert torch.equal(target.read(np.arange(24), form), wanted)
    (note,) = target.notes
    assert f"are cut to at most {longest} tokens" in note
    assert f"about {(np.ceil(sizes / 4) + 2 > longest).sum()} of 24 are truncated" in note


def test_length_is_given_or_that_of_the_network_if_it_takes_less(texts: Path) -> None:
    target = load_target(f"folder:{texts}[tokens=10]")
    assert target.notes == ()
    assert target.medium.form(FORM).shape == (2, 10)
    assert target.medium.form(Tokens(WORDS, 4, 8)).shape == (2, 8)


@pytest.mark.parametrize("kind", ["csv", "parquet", "paths", "hf"])
def test_other_containers_give_the_same_rows(kind: str, texts: Path, tmp_path: Path) -> None:
    folder = load_target(f"folder:{texts}[tokens=16]")
    labels = [folder.classes[i] for i in folder.labels]
    frame = pd.DataFrame({"review": [p.read_text() for p in folder.files()], "sentiment": labels})
    if kind == "hf":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "set")
        name = f"hf:{tmp_path / 'set'}[tokens=16]"
    elif kind == "paths":
        frame = pd.DataFrame({"file": list(map(str, folder.files())), "label": labels})
        frame.to_csv(tmp_path / "t.csv", index=False)
        name = f"csv:{tmp_path / 't.csv'}[tokens=16]"
    else:
        file = tmp_path / f"t.{kind}"
        frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
        name = f"csv:{file}[tokens=16]"
    target = load_target(name)
    form = folder.medium.form(FORM)
    assert target.medium == folder.medium
    assert target.classes == folder.classes
    every = np.arange(len(labels))
    assert torch.equal(target.read(every, form), folder.read(every, form))


def test_the_text_column_of_a_table_is_named(tmp_path: Path) -> None:
    rows = {"title": ["a horse", "a drill"], "body": ["the", "of"], "label": ["x", "y"]}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with refused("no column for the images, sounds or texts is recognised"):
        load_target(f"csv:{tmp_path / 't.csv'}")
    target = load_target(f"csv:{tmp_path / 't.csv'}[text=title]")
    assert torch.equal(target.read(np.arange(2), FORM), rows_of("a horse", "a drill"))
    assert target.describe(1) == "csv:t.csv: row 2"


def test_identity_of_a_table_of_texts_follows_its_texts(tmp_path: Path) -> None:
    def made(*texts: str) -> str:
        clear_caches()
        rows = {"text": texts, "label": ["x", "y"]}
        pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
        return load_target(f"csv:{tmp_path / 't.csv'}").identity

    assert made("a", "b") == made("a", "b")
    assert made("a", "b") != made("a", "c")


def test_the_layout_of_imdb_is_understood(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_texts(tmp_path / "imdb" / part, 3)
    (tmp_path / "imdb" / "train" / "unsup").mkdir()
    (tmp_path / "imdb" / "train" / "unsup" / "0_0.txt").write_text("the horse")
    (tmp_path / "imdb" / "train" / "urls_pos.txt").write_text("http://example.org")
    (tmp_path / "imdb" / "train" / "labeledBow.feat").write_text("9 0:9")
    (tmp_path / "imdb" / "README").write_text("the")
    target = load_target(f"folder:{tmp_path / 'imdb'}")
    assert target.classes == ("animals", "tools")
    assert target.official_test is not None
    assert target.official_test.tolist() == [False] * 6 + [True] * 6
    assert "Skipped, texts without labels: 1 (train/unsup)." in target.notes
    assert "Skipped, texts outside the class folders: 1 (train/urls_pos.txt)." in target.notes


def test_text_targets_are_selected_and_mixed_but_not_moved(texts: Path) -> None:
    chosen = load_target(f"folder:{texts}[tokens=16][classes=tools+animals]")
    assert chosen.classes == ("tools", "animals")
    for expression in ("shuffle(2,", "permute("):
        with refused("only the pixels of images can be moved"):
            load_target(f"{expression}folder:{texts})")
    with refused("texts and images cannot be mixed"):
        load_target(f"mix(folder:{texts},digits[classes=0-1],0.5)")


# --- bad input -------------------------------------------------------------------------------------

TEXT = "Für 5 € ein Café — naïve Prüfung"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (TEXT.encode(), TEXT),
        (TEXT.encode("utf-8-sig"), TEXT),
        (TEXT.encode("utf-16"), TEXT),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT),
        (("the horse " * 3).encode("utf-16-le"), "the horse " * 3),
        (TEXT.encode("utf-32"), TEXT),
        (TEXT.encode("cp1252"), TEXT),
        ("Café naïve".encode("latin-1"), "Café naïve"),
    ],
)
def test_text_files_of_usual_encodings_are_read(
    content: bytes, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert decode_text(tmp_path / "a.txt", "a") == wanted


def test_texts_in_another_encoding_than_unicode_are_counted(texts: Path) -> None:
    (texts / "tools" / "latin.txt").write_bytes("une clé à molette".encode("latin-1"))
    (texts / "tools" / "wide.txt").write_bytes("a drill".encode("utf-16"))
    notes = load_target(f"folder:{texts}").notes
    assert any("Texts that are not in UTF-8 (1) were read as cp1252" in note for note in notes)


def test_texts_that_cannot_be_read_are_named(texts: Path) -> None:
    (texts / "tools" / "blank.txt").write_text(" \n\t ")
    (texts / "tools" / "zero.txt").write_bytes(b"")
    (texts / "tools" / "binary.txt").write_bytes(bytes([0x81, 1, 2, 3]) * 20)
    target = load_target(f"folder:{texts}")
    with pytest.raises(UserError) as refused:
        target.read(np.arange(len(target.labels)), FORM)
    said = str(refused.value)
    for name, why in (("blank", "is empty"), ("zero", "is empty"), ("binary", "cannot be read: ")):
        assert f"text {texts / 'tools' / name}.txt {why}" in said
    assert len(inspect_target(f"folder:{texts}").broken) == 3


def test_an_empty_text_in_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\na horse,x\n"  ",y\n')
    with refused("row 2 has no text or no label"):
        load_target(f"csv:{tmp_path / 't.csv'}")
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["a horse", None, " "], "label": ["x", "y", "y"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    target = load_target(f"hf:{tmp_path / 'set'}")
    with refused(r"text hf:set: row 1 of train is empty; text hf:set: row 2"):
        target.read(np.arange(3), FORM)


def test_truncated_texts_are_counted_exactly(texts: Path) -> None:
    form = Tokens(WORDS, 12, 32)
    examples = read_examples(f"folder:{texts}", tuple(range(24)), form)
    # 6 to 17 words, a full stop and two special tokens: those of 9 words or more fill 12 tokens.
    assert form.remark(examples.batches(5)) == (
        "18 of 24 texts have 12 tokens or more; what exceeds them is not read"
    )
    assert Tokens(WORDS, 32, 32).remark([rows_of("the", form=Tokens(WORDS, 32, 32))]) == ""


def test_a_class_of_identical_texts_is_reported(texts: Path) -> None:
    for path in (texts / "tools").iterdir():
        path.write_text("A drill.")
    said = "\n".join(findings(inspect_target(f"folder:{texts}")))
    assert "Classes in which all texts are the same: 1 (tools)." in said
    assert "Identical files: 1 (" in said


def test_identical_texts_in_two_parts_are_a_leak(tmp_path: Path) -> None:
    rows = {
        "text": [*(sentence("tools", 9, i) for i in range(8)), *["A drill, a drill."] * 2],
        "label": ["x", "y"] * 5,
        "split": ["train"] * 9 + ["test"],
    }
    rows["split"][7] = "test"
    rows["label"][8:] = ["x", "x"]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    said = "\n".join(findings(inspect_target(f"csv:{tmp_path / 't.csv'}")))
    assert "LEAKAGE: identical texts or near duplicates in different official parts: 1 (" in said
    assert "correlation of counts of words at least 0.95" in said


def test_copies_in_several_parts_and_classes_are_all_named(tmp_path: Path) -> None:
    """Texts 0 and 3 are the first ones of their class and part."""
    rows = {
        "text": ["A drill."] * 6 + [sentence("tools", 9, i) for i in range(4)],
        "label": [*"xxxyyy", *"xyxy"],
        "split": ["test", "train", "test", "train", "test", "train", *["train"] * 4],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    report = inspect_target(f"csv:{tmp_path / 't.csv'}")
    assert {i for leak in report.leaks for i in leak.positions} == set(range(6))
    assert {i for leak in report.duplicates for i in leak.positions} == set(range(6))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ["a horse,x", "a drill,y", f'"{"word " * 30_000},x', "a goat,x"],
            "the row that begins in line 4 has a field of more than 131,072 characters; close its quotes, or "
            "put long texts into files of their own",
        ),
        (
            ["a horse,x", '"Oh, he said,y', "a drill,y", '"Ah" said I,x', "a goat,x"],
            "the row that begins in line 3 has quotes that are not closed, or not doubled inside of a quoted "
            "field",
        ),
    ],
    ids=["longer than a field may be", "joined with the next rows"],
)
def test_quotes_that_are_not_closed_are_named_by_their_line(
    rows: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    with refused(re.escape(f"t.csv cannot be read as a table: {said}")):
        load_target(f"csv:{tmp_path / 't.csv'}")


def test_tables_separated_by_tabs_may_be_written_without_quoting(tmp_path: Path) -> None:
    texts = ["a horse", '"Oh, he said', "a drill", '"Ah" said I']
    (tmp_path / "t.tsv").write_text("\n".join(["text\tlabel", *(f"{t}\t{len(t)}" for t in texts)]))
    target = load_target(f"csv:{tmp_path / 't.tsv'}")
    assert isinstance(target, TextTarget)
    assert list(target.texts) == texts
    both = pd.DataFrame({"text": ['says "no"', "two\nlines", "a\ttab"], "label": [*"xyx"]})
    both.to_csv(tmp_path / "quoted.tsv", sep="\t", index=False)
    target = load_target(f"csv:{tmp_path / 'quoted.tsv'}")
    assert isinstance(target, TextTarget)
    assert list(target.texts) == list(both["text"])


def test_texts_of_a_group_stay_together(make_spec: MakeSpec, tmp_path: Path) -> None:
    """Reviews by one author, from a table."""
    rows = [
        (sentence(name, 8, seed=i), name, f"author {i // 3}") for name in OWN for i in range(30)
    ]
    columns = ["review", "label", "group"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "t.csv", index=False)
    target = load_target(f"csv:{tmp_path / 't.csv'}")
    spec = make_spec(target=f"csv:{tmp_path / 't.csv'}", shots=None, val_shots=None)
    split = split_indices(target, spec)
    assert target.groups is not None
    parts = [set(target.groups[part].tolist()) for part in (split.train, split.val, split.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert "10 groups of 6 texts" in "\n".join(findings(inspect_target(spec.target)))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("tokens=2", "tokens must be a number from 8 to 100000, got '2'"),
        ("tokens=many", "tokens must be a number from 8 to 100000, got 'many'"),
        ("seconds=2", "option 'seconds' is for sounds, and these are texts"),
        ("kind=words", "kind must be images, sounds, texts, got 'words'"),
        ("kind=images", "needs at least 2 class folders with images|contains no images"),
    ],
)
def test_bad_options_are_refused(option: str, said: str, texts: Path) -> None:
    with refused(said):
        load_target(f"folder:{texts}[{option}]")


def test_options_for_texts_are_refused_for_images(tmp_path: Path) -> None:
    write_classes(tmp_path / "x", a=1, b=1)
    with refused("option 'tokens' is for texts, and these are images"):
        load_target(f"folder:{tmp_path / 'x'}[tokens=16]")


def test_a_folder_of_several_kinds_says_which_is_used(texts: Path) -> None:
    write_classes(texts, **dict.fromkeys(OWN, 12))
    target = load_target(f"folder:{texts}")
    assert target.medium.noun == "image"
    (said,) = [note for note in target.notes if "also contains" in note]
    assert said == (
        "The folder also contains texts (24): only the images are used; [kind=texts] changes that."
    )
    assert load_target(f"folder:{texts}[kind=texts]").medium.noun == "text"


def test_a_stray_image_among_texts_leads_to_a_hint(texts: Path) -> None:
    paint(texts / "animals" / "cover.png")
    with refused(r"'tools' contains no images, .* write \[kind=texts\]"):
        load_target(f"folder:{texts}")


def test_a_table_of_several_kinds_is_refused(texts: Path, tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    one = texts / "tools" / "tools00.txt"
    (tmp_path / "t.csv").write_text(f"file,label\na.png,x\n{one},y\n")
    with refused(r"images \(such as a.png\) and texts \(such as tools00"):
        load_target(f"csv:{tmp_path / 't.csv'}")


def test_without_the_extra_its_name_is_said(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.inputs import tokenizer

    tokenizer._fitted.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    target = load_target(f"folder:{texts}")
    with refused(r"need the extra: pip install -e '.\[text\]'"):
        target.read(np.arange(2), FORM)


def test_a_file_that_is_no_tokenizer_is_refused() -> None:
    with refused(r"this is not a tokenizer.json of the library tokenizers"):
        Tokens(TokenizerFile("{}"), 8, 8).row("a")


def test_a_study_of_texts_with_a_network_for_images_is_refused(
    make_spec: MakeSpec, texts: Path
) -> None:
    with refused("takes 32 x 32 pixels and cannot be used for texts"):
        check_study(study_of(make_spec(target=f"folder:{texts}")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"augment": "mixup"}, "augment 'mixup' is not for 16 tokens of text; use none, token_dropout"),
     ({"shifts": "blur"}, "shift 'blur' is not for 16 tokens of text; use typos, word_dropout or")],
)  # fmt: skip
def test_policies_of_another_medium_are_refused(
    changes: dict[str, Any], said: str, make_spec: MakeSpec
) -> None:
    spec = make_spec(**changes)
    with refused(said):
        FORM.check(spec.augment, spec.shift_names())


# --- report ----------------------------------------------------------------------------------------


def test_report_on_texts_has_counts_pictures_and_what_is_odd(texts: Path) -> None:
    (texts / "tools" / "same.txt").write_bytes((texts / "tools" / "tools00.txt").read_bytes())
    (texts / "tools" / "notes.md").write_text("x")
    report = inspect_target(f"folder:{texts}")
    said = "\n".join(findings(report))
    assert "2 classes, 25 texts: 12 (animals) to 13 (tools) per class." in said
    assert "Identical files: 1 (tools/same.txt = tools/tools00.txt)" in said
    assert "Skipped, not readable as texts: 1 .md (tools/notes.md)." in said
    sheet = np.asarray(draw(report).convert("L"))
    assert (sheet[:, 200:] < 128).sum() > 1000  # the texts are written on it
