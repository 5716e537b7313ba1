"""A row's split follows from its group and from rows before it: appended rows move none, whatever they are like."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from curated_by_hand import curated, kept_ids, prompts, questions, row
from pydantic import ValidationError

from llm_assets.data import CurationConfig, SplitConfig
from llm_assets.data.deduplication import BETWEEN_SPLITS, KEPT, Decision, RowKeys, decide, first_of
from llm_assets.data.minhash import sketch
from llm_assets.data.near_duplicates import SketchStore
from llm_assets.data.splits import SPLITS, TEST, SplitEmpty, SplitTooSmall, SplitUnknown

HALVES = SplitConfig(validation=0.3, test=0.3)


def decided(directory: Path, texts: list[str], groups: list[int], config: SplitConfig, together: bool) -> Decision:
    """Decide rows that say `texts`; equal texts are equal rows, and equal groups stay together."""
    numbers = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    content = np.array([numbers[text] for text in texts], np.uint64)
    spread = np.array(groups, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = RowKeys(content, content, spread, np.full(len(texts), -1, np.int8))
    with SketchStore(directory, 0.6) as store:
        store.append(sketch(texts, 0.6))
        return decide(keys, config, store, together, log=lambda _: None)


def texts_of(seed: int, count: int) -> tuple[list[str], list[int]]:
    """Rows of which many are alike or equal, and their groups."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for n in range(count):
        words = [f"w{k}" for k in rng.integers(0, 5000, 30)]
        if n and rng.random() < 0.5:
            words = texts[rng.integers(0, n)].split()
            for place in rng.integers(0, 30, rng.integers(0, 4)):
                words[place] = f"w{rng.integers(0, 5000)}"
        texts.append(" ".join(words))
    return texts, rng.integers(0, count // 2, count).tolist()


@pytest.mark.parametrize("together", [False, True], ids=["drop", "keep_together"])
@pytest.mark.parametrize("config", [HALVES, HALVES.model_copy(update={"test_rows": 5})], ids=["shares", "counts"])
def test_what_is_decided_of_a_row_never_changes_when_rows_are_appended(
    tmp_path: Path, together: bool, config: SplitConfig
):
    for seed in range(4):
        texts, groups = texts_of(seed, 120)
        whole = decided(tmp_path, texts, groups, config, together)
        for count in (40, 119):
            part = decided(tmp_path, texts[:count], groups[:count], config, together)
            assert part.split == whole.split[:count] and part.reason == whole.reason[:count]


def test_near_duplicates_kept_together_share_a_split(tmp_path: Path):
    for seed in range(4):
        texts, groups = texts_of(seed, 120)
        decision = decided(tmp_path, texts, groups, HALVES, together=True)
        kept = [n for n in range(120) if decision.reason[n] == KEPT]
        runs = [{tuple(t.split()[i : i + 3]) for i in range(28)} for t in texts]
        for n in kept:
            for m in kept:
                if groups[n] == groups[m] or len(runs[n] & runs[m]) / len(runs[n] | runs[m]) > 0.75:
                    assert decision.split[n] == decision.split[m]


def test_a_row_that_joins_two_clusters_of_different_splits_leaves_and_they_stay(tmp_path: Path):
    left, right = [f"left{n}" for n in range(20)], [f"right{n}" for n in range(20)]
    texts = [" ".join(left), " ".join(right)]
    group = next(
        n for n in range(1, 99) if len(set(decided(tmp_path, texts, [0, n], HALVES, together=True).split)) == 2
    )
    bridge = " ".join([*left[:20], *right[:20]])
    with SketchStore(tmp_path, 0.4) as store:
        store.append(sketch([*texts, bridge], 0.4))
        keys = np.arange(3, dtype=np.uint64)
        groups = np.array([0, group, 500], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        decision = decide(RowKeys(keys, keys, groups, np.full(3, -1, np.int8)), HALVES, store, True, log=lambda _: None)
    assert list(decision.reason) == [KEPT, KEPT, BETWEEN_SPLITS]
    assert decision.split[0] != decision.split[1]


def test_adding_rows_anywhere_never_moves_a_row_when_splits_are_shares(tmp_path: Path):
    where = {
        count: {p: s for s in SPLITS for p in prompts(curated(tmp_path, questions(count)[::-1], split=HALVES)[0], s)}
        for count in (200, 300)
    }
    assert where[200].items() <= where[300].items()
    shares = Counter(where[300].values())
    assert 60 < shares["test"] < 120 and 60 < shares["validation"] < 120


def test_another_seed_holds_out_other_rows(tmp_path: Path):
    held = [set(kept_ids(curated(tmp_path, questions(200), split=SplitConfig(seed=s))[0], "test")) for s in (0, 1)]
    assert held[0] != held[1]


def test_a_fixed_count_is_met_and_appended_rows_train(tmp_path: Path):
    split = SplitConfig(validation=0.2, test=0.3, test_rows=25)
    tests = [kept_ids(curated(tmp_path, questions(count), split=split)[0], "test") for count in (200, 260)]
    assert len(tests[0]) == 25 and tests[0] == tests[1]
    with pytest.raises(SplitTooSmall, match=r"got .* of the 25 rows"):
        curated(tmp_path, questions(40), split=split)


def test_a_fixed_count_keeps_groups_whole(tmp_path: Path):
    rows = [{**q, "group": f"g{n % 50}"} for n, q in enumerate(questions(300))]
    split = SplitConfig(validation=0, test=0.5, test_rows=10, group_column="group")
    chat, _ = curated(tmp_path, rows, split=split)
    held = {int(row_id[1:]) % 50 for row_id in kept_ids(chat, "test")}
    assert len(held) == 10 and len(kept_ids(chat, "test")) == 60  # ten groups opened the split, six rows each


def test_one_prompt_in_two_groups_stays_in_the_split_of_the_first(tmp_path: Path):
    rows = [row(f"q{n // 2}", f"a{n}", group=f"g{n}") for n in range(200)]
    chat, report = curated(tmp_path, rows, split=SplitConfig(validation=0, test=0.5, group_column="group"))
    train, test = set(prompts(chat, "train")), set(prompts(chat, "test"))
    assert not train & test and report["dropped"]["contaminated"] > 20 and len(train | test) == 100


def test_the_first_of_equal_keys_follows_the_given_order():
    keys = np.array([7, 8, 7, 9, 7, 8], np.uint64)
    assert first_of(keys, np.arange(6)).tolist() == [0, 1, 0, 3, 0, 1]
    assert first_of(keys, np.array([4, 5, 0, 1, 2])).tolist() == [4, 5, 4, 3, 4, 5]


def test_a_split_that_got_no_row_is_refused(tmp_path: Path):
    with pytest.raises(SplitEmpty, match="Split 'validation' got none of 3 rows"):
        curated(tmp_path, questions(3), split=SplitConfig(validation=0.001, test=0))


def test_an_unknown_split_name_is_refused_with_the_row(tmp_path: Path):
    with pytest.raises(SplitUnknown, match="Row r0: column 'part' says 'holdout'"):
        curated(tmp_path, [row("a", part="holdout")], split=SplitConfig(split_column="part"))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"validation": 0.5, "test": 0.5}, "nothing to train on"),
        ({"group_column": "a", "split_column": "b"}, "give one of the two"),
        ({"test": 0, "test_rows": 5}, "set test to a share"),
    ],
)
def test_splits_that_contradict_themselves_are_refused(broken: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        SplitConfig(**broken)


def test_a_cluster_follows_its_first_row_into_the_held_out_split(tmp_path: Path):
    base = questions(60)
    twins = [{**q, "prompt": q["prompt"] + " please"} for q in base]
    curation = CurationConfig(near_duplicates={"similarity": 0.5, "action": "keep_together"})
    chat, report = curated(tmp_path, [*base, *twins], curation, HALVES)
    assert report["kept"] == 120
    for split in SPLITS:
        ids = {int(row_id[1:]) for row_id in kept_ids(chat, split)}
        assert ids and all((n + 60) % 120 in ids for n in ids)
    assert SPLITS.index("test") == TEST
