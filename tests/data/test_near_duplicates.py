"""Word runs, sketches and the index agree with sets of words, with datasketch, and with comparing every pair."""

from pathlib import Path

import numpy as np
import pytest

from llm_assets.data import word_runs as hashing
from llm_assets.data.minhash import band_shape, estimated_similarity, sketch
from llm_assets.data.near_duplicates import NearIndex, SketchStore
from llm_assets.data.word_runs import word_runs


def words_of(text: str, count: int) -> list[tuple[str, ...]]:
    listed = text.split()
    return [tuple(listed[i : i + count]) for i in range(max(1, len(listed) - count + 1))] if listed else []


def jaccard(one: str, other: str) -> float:
    a, b = set(words_of(one, 3)), set(words_of(other, 3))
    return len(a & b) / len(a | b)


def texts_alike(seed: int, count: int, length: int, vocabulary: int = 3000) -> list[str]:
    """Random texts, every second one a copy of the one before with some words changed."""
    rng = np.random.default_rng(seed)
    texts = []
    for n in range(count):
        words = [f"wört{k}" if k % 7 == 0 else f"word{k}" for k in rng.integers(0, vocabulary, length)]
        if n % 2:
            words = texts[-1].split()
            for place in rng.integers(0, length, rng.integers(0, 5)):
                words[place] = f"other{rng.integers(0, vocabulary)}"
        texts.append(" ".join(words))
    return texts


def test_runs_are_equal_exactly_where_their_words_are():
    texts = ["a b c", "", "d", "b c d\ne f b c", "ü  ß ü".replace("  ", " "), "c b"]
    for count in (1, 2, 3):
        hashes, offsets = word_runs(texts, count)
        expected = [run for text in texts for run in words_of(text, count)]
        assert len(hashes) == len(expected) == offsets[-1]
        assert np.diff(offsets).tolist() == [len(words_of(text, count)) for text in texts]
        assert [a == b for a in hashes.tolist() for b in hashes.tolist()] == [
            a == b for a in expected for b in expected
        ]


def test_runs_do_not_depend_on_what_stands_around_them(monkeypatch: pytest.MonkeyPatch):
    texts = texts_alike(1, 40, 50)
    together, _ = word_runs(texts, 3)
    alone = np.concatenate([word_runs([text], 3)[0] for text in texts])
    assert np.array_equal(together, alone) and len(np.unique(together)) == len(
        {r for t in texts for r in words_of(t, 3)}
    )
    monkeypatch.setattr(hashing, "WINDOW_BYTES", 100)  # many windows over one text
    hashing._powers.cache_clear()
    assert np.array_equal(word_runs(texts, 3)[0], together)
    hashing._powers.cache_clear()


def test_a_word_longer_than_a_window_is_one_run():
    hashes, offsets = word_runs(["x" * 500_000, "y" * 500_000 + " end", "x" * 500_000], 3)
    assert offsets.tolist() == [0, 1, 2, 3] and hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("length", [5, 12, 180])
def test_estimates_are_unbiased_and_as_close_as_datasketch(length: int):
    from datasketch import MinHash

    ours, theirs = [], []
    texts = texts_alike(2, 120, length)
    for one, other in zip(texts[::2], texts[1::2], strict=True):
        true = jaccard(one, other)
        made = sketch([one, other], 0.8).bins
        ours.append(estimated_similarity(made[0], made[1:])[0] - true)
        minhashes = [MinHash(num_perm=128, seed=1) for _ in range(2)]
        for minhash, text in zip(minhashes, (one, other), strict=True):
            minhash.update_batch([" ".join(run).encode() for run in words_of(text, 3)])
        theirs.append(minhashes[0].jaccard(minhashes[1]) - true)
    assert abs(np.mean(ours)) < 0.01
    assert np.std(ours) < max(1.15 * np.std(theirs), 0.03)


def test_equal_texts_are_wholly_alike_and_different_ones_not_at_all():
    made = sketch(["one two three four", "one two three four", "five six seven eight", ""], 0.8).bins
    assert estimated_similarity(made[0], made[1:]).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_nearly_all_pairs_at_the_threshold(similarity: float):
    bands, rows = band_shape(similarity)
    assert bands * rows <= 128 and 1 - (1 - similarity**rows) ** bands >= 0.99


@pytest.mark.parametrize("length", [8, 60])
def test_the_index_finds_the_pairs_that_comparing_all_finds(tmp_path: Path, length: int):
    unlike = [text.replace("w", "v") for text in texts_alike(4, 400, length)[::2]]
    texts = texts_alike(3, 400, length) + unlike
    with SketchStore(tmp_path, 0.7) as store:
        store.append(sketch(texts[:150], 0.7))
        store.append(sketch(texts[150:], 0.7))
        index = NearIndex(store, np.arange(600))
        found = []
        for row in range(600):
            found += [(other, row) for other in index.like(row)]
            index.add(row)
    sure = {(n - 1, n) for n in range(1, 400, 2) if jaccard(texts[n - 1], texts[n]) >= 0.8}
    possible = {(n - 1, n) for n in range(1, 400, 2) if jaccard(texts[n - 1], texts[n]) >= 0.5}
    assert len(sure) > 30 and sure <= set(found) <= possible
    assert index.compared < 450


def test_a_bucket_full_of_one_text_costs_no_more_than_its_newest_rows(tmp_path: Path):
    with SketchStore(tmp_path, 0.8) as store:
        store.append(sketch(["the same words in every single row of it"] * 3000, 0.8))
        index = NearIndex(store, np.arange(3000))
        for row in range(2000):
            index.add(row)
        assert 1 <= len(index.like(2500)) <= 4


def test_rows_left_out_are_not_found(tmp_path: Path):
    with SketchStore(tmp_path, 0.8) as store:
        store.append(sketch(["equal words here"] * 4, 0.8))
        index = NearIndex(store, np.array([0, 3]))
        index.add(1)
        assert index.like(3) == []
        index.add(0)
        assert index.like(3) == [0] and index.like(2) == []
