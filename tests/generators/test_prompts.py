"""Prompts: what a record's prompt says, what may cross into the released set, and how often each is sampled."""

from __future__ import annotations

from collections import Counter, defaultdict

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config, seeds, tables
from pipeline.generators.prompts import FALLBACK, NOTHING, UNCHANGED, WITHHELD, compose, plan, recompose

ALL = config.Prompt(parts=("age", "sex", "view", "labels", "text"))
FINDINGS = ("Effusion", "Pleural_Thickening")
NOBODY: dict = {"age": None, "sex": None, "view": None, "labels": [], "phrases": []}


def test_a_prompt_tells_decade_sex_view_findings_and_phrases_in_the_order_of_the_recipe():
    facts = {"age": 67.0, "sex": "F", "view": "PA", "labels": ["Effusion", "Pleural_Thickening"]}
    told = compose(ALL, **facts, phrases=["small left effusion", "effusion", "small left effusion"])
    assert told == "60s, woman, pa view, effusion, pleural thickening, small left effusion"
    assert compose(config.Prompt(parts=("text", "age")), **facts, phrases=["clear lungs"]) == "clear lungs, 60s"


@pytest.mark.parametrize(
    ("age", "told"),
    [(0.5, "under 10"), (10.0, "10s"), (59.9, "50s"), (89.0, "80s"), (90.0, "90 and over"), (103.0, "90 and over")],
)
def test_ages_are_told_by_decade(age, told):
    assert compose(ALL, **NOBODY | {"age": age}) == told


def test_a_record_of_which_nothing_is_known_has_a_prompt():
    assert compose(ALL, **NOBODY) == FALLBACK


def test_a_long_prompt_is_cut_at_a_phrase():
    phrases = ["small left effusion", "no acute process", "clear"]
    assert (
        compose(config.Prompt(parts=("text",), max_words=5), **NOBODY | {"phrases": phrases}) == "small left effusion"
    )
    assert compose(config.Prompt(parts=("text",), max_phrases=2), **NOBODY | {"phrases": phrases}).count(",") == 1
    assert compose(config.Prompt(parts=("text",), max_words=2), **NOBODY | {"phrases": phrases}) == "small left"


def records(*rows: dict, prompt: config.Prompt = ALL) -> pa.Table:
    """Records with composed prompts from `patient` and what `compose` reads; labels by position."""
    facts = [NOBODY | {"labels": [0, 0]} | row for row in rows]
    named = [[name for name, value in zip(FINDINGS, f["labels"], strict=True) if value == 1] for f in facts]
    prompts = [
        compose(prompt, labels=names, **{key: f[key] for key in ("age", "sex", "view", "phrases")})
        for names, f in zip(named, facts, strict=True)
    ]
    columns = {key: [f[key] for f in facts] for key in ("labels", "age", "sex", "view")}
    columns |= {"row_id": [f"row-{i:06d}" for i in range(len(facts))], "patient_id": [f["patient"] for f in facts]}
    schema = pa.schema([field for field in tables.RECORDS if field.name in (*columns, "prompt")])
    return pa.table(columns | {"prompt": prompts}, schema=schema)


def test_a_prompt_that_k_patients_share_stays_and_others_lose_detail_until_they_are_shared():
    crowd = [{"patient": str(i), "age": 60.0 + i, "sex": "F", "phrases": ["clear lungs"]} for i in range(3)]
    rest = [
        {"patient": "a", "age": 65.0, "sex": "F", "phrases": ["clear lungs", "old bullet"]},  # loses its bullet
        {"patient": "b", "age": 35.0, "sex": "F", "phrases": ["clear lungs"]},  # no other woman in her thirties
        {"patient": "c", "age": 45.0, "sex": "F"},
        {"patient": "d", "age": 55.0, "sex": "F"},
        {"patient": "f", "age": 75.0, "sex": "F"},
        {"patient": "g", "sex": "M"},
        {"patient": "e", "sex": "M", "labels": [0, 1]},  # nobody is like him
    ]
    told = recompose(records(*crowd, *rest), FINDINGS, ALL, k=3)
    assert told.prompts[:4] == ["60s, woman, clear lungs"] * 4
    assert told.prompts[5:8] == ["woman"] * 3
    assert [told.prompts[i] for i in (4, 8, 9)] == [FALLBACK] * 3
    assert told.labels.tolist() == [[0, 0]] * 10
    assert told.levels == {UNCHANGED: 3, "shared phrases only": 1, "no age": 3, NOTHING: 3}
    assert next(iter(told.levels)) == UNCHANGED
    several = recompose(records(*crowd, *[crowd[0]] * 4), FINDINGS, ALL, k=3)
    assert several.levels == {UNCHANGED: 7} and several.level_patients == {UNCHANGED: 3}


def test_a_prompt_that_k_patients_share_with_other_labels_is_not_shared():
    rows = [{"patient": str(i), "phrases": ["old bullet"], "labels": [0, -(i > 1)]} for i in range(4)]
    told = recompose(records(*rows), FINDINGS, ALL, k=3)
    assert told.prompts == [FALLBACK] * 4
    assert told.labels.tolist() == [[0, 0]] * 4
    assert told.levels == {"unknown findings told as absent": 4}


def test_a_finding_that_too_few_share_is_given_up_in_prompt_and_labels_the_rarest_first():
    rows = [{"patient": str(i), "labels": [1, int(i == 0)]} for i in range(3)]
    told = recompose(records(*rows), FINDINGS, ALL, k=3)
    assert told.prompts == ["effusion"] * 3
    assert told.labels.tolist() == [[1, 0]] * 3
    assert told.levels == {"fewer findings": 3}


def test_an_unknown_finding_stays_unknown_where_k_patients_share_that_and_is_told_as_absent_where_not():
    rows = [{"patient": str(i), "labels": [-1, 1]} for i in range(3)]
    assert recompose(records(*rows), FINDINGS, ALL, k=3).labels.tolist() == [[-1, 1]] * 3
    told = recompose(records(*rows[:2], {"patient": "9", "labels": [0, 1]}), FINDINGS, ALL, k=3)
    assert told.prompts == ["pleural thickening"] * 3
    assert told.labels.tolist() == [[0, 1]] * 3


def test_who_shares_already_lets_a_single_record_join():
    crowd = [{"patient": str(i), "sex": "F"} for i in range(3)]
    told = recompose(records(*crowd, {"patient": "z", "sex": "F", "age": 91.0}), FINDINGS, ALL, k=3)
    assert told.prompts == ["woman"] * 4
    assert told.levels == {UNCHANGED: 3, "no age": 1}


def test_sharing_is_counted_by_patient_and_not_by_image_and_what_too_few_share_is_withheld():
    told = recompose(
        records(*[{"patient": "1", "phrases": ["old bullet"], "labels": [1, 0]}] * 9), FINDINGS, ALL, k=2
    )
    assert told.prompts == [None] * 9
    assert told.labels.tolist() == [[0, 0]] * 9
    assert told.levels == {WITHHELD: 9}


def test_what_the_recipe_leaves_out_of_prompts_is_not_put_in():
    told_in = config.Prompt(parts=("sex", "text"))
    rows = [{"patient": str(i), "age": 60.0, "sex": "M", "view": "PA", "phrases": [f"word {i}"]} for i in range(4)]
    assert recompose(records(*rows, prompt=told_in), FINDINGS, told_in, k=4).prompts == ["man"] * 4


ROWS = st.fixed_dictionaries(
    {
        "patient": st.sampled_from("123456"),
        "age": st.sampled_from([None, 5.0, 34.0, 61.0]),
        "sex": st.sampled_from([None, "M", "F"]),
        "view": st.sampled_from([None, "PA"]),
        "labels": st.sampled_from([[0, 0], [1, 0], [-1, 1]]),
        "phrases": st.lists(st.sampled_from(["effusion", "clear", "old bullet", "60s"]), max_size=3),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS, max_size=25), st.integers(1, 4))
def test_every_released_pair_of_prompt_and_labels_is_given_to_records_of_k_patients(rows, k):
    table = records(*rows)
    told = recompose(table, FINDINGS, ALL, k)
    sharing, withheld = defaultdict(set), set()
    for prompt, labels, row in zip(told.prompts, told.labels.tolist(), table.to_pylist(), strict=True):
        if prompt is None:
            withheld.add(row["patient_id"])
            assert labels == [0, 0]
        else:
            sharing[prompt, tuple(labels)].add(row["patient_id"])
        assert all(crossing in (own, 0) for own, crossing in zip(row["labels"], labels, strict=True))
    assert all(len(patients) >= k for patients in sharing.values())
    assert len(withheld) < k
    assert sum(told.levels.values()) == len(rows)
    assert told.levels.get(WITHHELD, 0) == told.prompts.count(None)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, max_size=25), st.integers(1, 4))
def test_every_phrase_that_crosses_is_used_by_k_patients(rows, k):
    table = records(*rows)
    speakers = defaultdict(set)
    for row in table.to_pylist():
        for phrase in row["prompt"].split(", "):
            speakers[phrase].add(row["patient_id"])
    told = {
        phrase for prompt in recompose(table, FINDINGS, ALL, k).prompts if prompt for phrase in prompt.split(", ")
    }
    assert all(len(speakers[phrase]) >= k for phrase in told - {FALLBACK})


@settings(max_examples=50, deadline=None)
@given(st.lists(ROWS, max_size=15), st.integers(1, 4), st.randoms())
def test_what_crosses_does_not_depend_on_the_order_of_records(rows, k, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    told, shuffled = (recompose(records(*some), FINDINGS, ALL, k) for some in (rows, [rows[i] for i in order]))
    assert [told.prompts[i] for i in order] == shuffled.prompts
    assert told.labels[order].tolist() == shuffled.labels.tolist()


def test_where_an_image_comes_from_cannot_be_told_from_its_noise_without_the_secret():
    table, secret = records(*[{"patient": str(i)} for i in range(20)]), b"s" * 32
    planned = plan(table, 10, 0, secret)
    assert planned == plan(table, 10, 0, secret)
    assert planned["seed"].to_pylist() == [seeds.row_seed(secret, "sample", f"s0-{i:07d}") for i in range(10)]
    for other in (0, b"t" * 32):
        guessed = plan(table, 10, 0, other)
        assert not set(guessed["seed"].to_pylist()) & set(planned["seed"].to_pylist())
        assert guessed["prompt_row_id"] != planned["prompt_row_id"]


def test_every_record_is_sampled_equally_often_and_the_order_of_records_does_not_matter():
    table = records(*[{"patient": str(i), "sex": "F", "labels": [i % 2, 0]} for i in range(7)])
    planned = plan(table, n_images=17, round_index=1, origin=5)
    assert planned.schema == tables.PROMPT_PLAN
    assert sorted(Counter(planned["prompt_row_id"].to_pylist()).values()) == [2, 2, 2, 2, 3, 3, 3]
    assert planned["row_id"].to_pylist() == [f"s1-{i:07d}" for i in range(17)]
    assert planned["seed"][3].as_py() == seeds.row_seed(5, "sample", "s1-0000003")
    assert plan(table.take([6, 2, 4, 0, 1, 5, 3]), n_images=17, round_index=1, origin=5) == planned


def test_who_is_sampled_once_more_differs_between_rounds():
    table = records(*[{"patient": str(i)} for i in range(20)])
    chosen = [set(plan(table, 10, round_index, origin=0)["prompt_row_id"].to_pylist()) for round_index in (0, 1)]
    assert len(chosen[0]) == len(chosen[1]) == 10
    assert chosen[0] != chosen[1]


def test_half_of_a_round_goes_to_findings_that_fell_short():
    table = records(*[{"patient": str(i), "labels": [int(i < 10), int(i == 99)]} for i in range(100)])
    labels = plan(table, 1000, 1, origin=0, short={0: 30, 1: 10})["labels"].to_pylist()
    assert sum(own[0] for own in labels) == 1000 * (0.5 * 0.1 + 0.5 * 0.75)
    assert sum(own[1] for own in labels) == 1000 * (0.5 * 0.01 + 0.5 * 0.25)


def test_a_missing_finding_that_no_record_has_leaves_equal_shares():
    table = records(*[{"patient": str(i)} for i in range(10)])
    assert plan(table, 25, 1, origin=0, short={0: 30}) == plan(table, 25, 1, origin=0)
