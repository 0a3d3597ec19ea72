"""The step filter on samples made by hand: what is kept, why not, what crosses, and what falls short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from pipeline import config, images, plan, secret
from pipeline.artifact import Artifact, ArtifactError, Store
from pipeline.config import Recipe
from pipeline.progress import Bar, View
from pipeline.steps.filter import NothingKeptError, decoys_in_use
from pipeline.tables import AUDIT_SCORES, KEPT, PROMPT_PLAN, RECORDS, SCORES

PX = 16
GEOMETRY = {"autoencoder": {"patch_px": 4}, "denoiser": {"patch": 2}}
RECIPE = Recipe.model_validate(
    {
        "ingest": {"image_px": PX, "k_anonymity": 2},
        "teach": GEOMETRY,
        "distill": GEOMETRY,
        "sample": {"want_images": 2, "max_rounds": 1},
        "filter": {"rule": "fixed", "fixed": {"threshold": 0.5}},
    }
)
FINDINGS = ["effusion", "edema"]
# row_id, patient, prompt, labels of the training rows, and what two patients share: one's third phrase is his alone
TRAIN = [
    ("r0", "ann", "60s, woman, effusion", [1, 0], "60s, woman, effusion"),
    ("r1", "bob", "60s, woman, effusion", [1, 0], "60s, woman, effusion"),
    ("r2", "bob", "60s, woman, edema, ribbon shaped scar", [0, 1], "edema"),
]
LEVELS = {"unchanged": 2, "findings alone": 1}
# As many unseen patients as trained ones: they stand beside the gallery as decoys, unless the recipe says otherwise.
FACTS = {
    "findings": FINDINGS,
    "prompt_levels": LEVELS,
    "prompt_level_patients": {"unchanged": 2, "findings alone": 1},
    "patients_by_split": {"train": 2, "control": 4},
}


class Silent:
    """A view that shows nothing."""

    started_at = 0.0

    def note(self, *_: object, **__: object) -> None: ...

    def bar(self, task: str) -> Bar:
        return Bar(None, task)


class Samples:
    """A store with everything that the filter reads; each sample is `(reid_score, training row, is a copy)`, and may
    have a fourth value, its score over the decoys."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.store, self.recipe = Store(folder), recipe
        secret.of(recipe, self.store)
        train = [
            {"row_id": r, "patient_id": p, "split": "train", "prompt": t, "labels": b}
            | {"shared_prompt": shared, "shared_labels": b}
            for r, p, t, b, shared in TRAIN
        ]
        unseen = [{"row_id": f"u{i}", "patient_id": f"c{i}", "split": "control", "labels": [0, 0]} for i in range(4)]
        unseen += [{"row_id": f"t{i}", "patient_id": f"t{i}", "split": "test", "labels": [0, 0]} for i in range(4)]
        self._finish("ingest", {"records": pa.Table.from_pylist(train + unseen, RECORDS)}, FACTS)
        scores = {"row_id": ["t3", "u2", "u0", "t1", "u1", "u3"], "reid_score": [0.99, 0.3, 0.1, 0.98, 0.2, 0.4]}
        self._finish("score/unseen", {"rows": pa.table(scores)})
        same = pa.table({"row_id": ["r0", "r1"], "patient_id": ["ann", "bob"], "filter_network": [0.9, 0.8]})
        self._finish("score/gallery", {"same_patient": same})

    def add_round(self, *samples: tuple[float, str, bool] | tuple[float, str, bool, float]) -> None:
        number = sum(name.startswith("sample/") for name in self._lines()) - 1
        labels = {row_id: labels for row_id, _, _, labels, _ in TRAIN}
        prompts = {row_id: prompt for row_id, _, prompt, _, _ in TRAIN}
        names = [f"s{number}-{i:07d}" for i in range(len(samples))]
        rows = [
            {"row_id": name, "seed": i, "prompt": prompts[source], "labels": labels[source], "prompt_row_id": source}
            for i, (name, (_, source, *_)) in enumerate(zip(names, samples, strict=True))
        ]
        pixels = np.stack([np.full((PX, PX, 1), 100 * number + i, np.uint8) for i in range(len(samples))])
        made = pa.table({"row_id": names, "image": images.column(pixels)})
        backwards = made.take(list(range(len(names)))[::-1])
        self._finish(f"sample/{number}", {"plan": pa.Table.from_pylist(rows, PROMPT_PLAN), "rows": backwards})
        scored = [
            {"row_id": n, "reid_score": s, "nearest_row_id": "r0", "margin": 0.0, "pixel_copy": c, "audit_score": 1.0}
            | {"decoy_score": decoy[0] if decoy else 0.0, "lean": [0.0]}
            for n, (s, _, c, *decoy) in zip(names, samples, strict=True)
        ]
        schema = pa.schema([*SCORES, *list(AUDIT_SCORES)[1:]])
        self._finish(f"score/{number}", {"rows": pa.Table.from_pylist(scored, schema)})

    def filter(self) -> dict[str, Artifact]:
        """Run the word `filter`; its artifacts by name."""
        lines = plan.run(self.recipe, self.store, ("filter",), cast(View, Silent()))
        return {line.task.name: line.artifact for line in lines if line.artifact is not None}

    def _lines(self) -> dict[str, plan.Line]:
        return {line.task.name: line for line in plan.plan(self.recipe, self.store)}

    def _finish(self, name: str, tables: Mapping[str, pa.Table], facts: Mapping[str, Any] | None = None) -> None:
        draft = self.store.draft(self._lines()[name].key)
        for table_name, table in tables.items():
            draft.write_table(table, table_name)
        self.store.commit(draft, facts or {})


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return Samples(tmp_path, RECIPE)


ROUND = [(0.1, "r0", False), (0.6, "r1", False), (0.2, "r2", False), (0.0, "r0", True), (0.3, "r2", False)]


def grey(artifact: Artifact) -> list[int]:
    return images.array(artifact.table("kept")["image"])[:, 0, 0, 0].tolist()


def test_every_sample_has_a_decision_and_its_reason_is_counted(samples: Samples) -> None:
    samples.add_round(*ROUND)
    decided = samples.filter()["filter/0"]
    assert decided.table()["keep"].to_pylist() == [True, False, True, False, True]
    assert decided.facts["reasons"] == {"kept": 3, "over the threshold": 1, "copy of a real image": 1}
    assert decided.manifest["rows"] == 5 and decided.facts["n_kept"] == 3
    assert decided.facts["kept_by_class"] == {"effusion": [3, 1], "edema": [2, 2]}  # sampled, kept
    assert decided.facts["enough"] is True


@pytest.mark.parametrize(("percentile", "threshold"), [(50, 0.3), (100, 0.4)])
def test_the_threshold_comes_from_control_patients_alone(tmp_path: Path, percentile: float, threshold: float) -> None:
    changes = {"filter.rule": "percentile", "filter.percentile.percentile": percentile}
    samples = Samples(tmp_path, config.changed(RECIPE, changes))
    samples.add_round(*ROUND)
    assert samples.filter()["filter/0"].facts["threshold"] == pytest.approx(threshold)


def test_the_recall_rule_is_calibrated_on_pairs_of_the_same_patient(tmp_path: Path) -> None:
    recall = {"filter.rule": "recall", "filter.recall": {"recall": 0.5, "confidence": 0.7}}
    samples = Samples(tmp_path, config.changed(RECIPE, recall))
    samples.add_round(*ROUND)
    decided = samples.filter()["filter/0"].facts
    assert decided["threshold"] == pytest.approx(0.8) and decided["calibration_n"] == 2


def test_what_crosses_has_its_own_image_and_labels_and_nothing_private(samples: Samples) -> None:
    samples.add_round(*ROUND)
    kept = samples.filter()["filter"]
    table = kept.table("kept")
    assert table.column_names == [*KEPT.names, "image"]
    assert table["row_id"].to_pylist() == [f"synthetic-{i:06d}" for i in range(3)]
    pairs = sorted(zip(grey(kept), table["labels"].to_pylist(), strict=True))
    assert pairs == [(0, [1, 0]), (2, [0, 1]), (4, [0, 1])]
    assert kept.key.kind == "releasable"
    assert not {"score", "nearest", "row_id", "prompt_row_id"} & {*kept.facts}
    assert not any(f"'{row_id}'" in str(kept.facts) for row_id, *_ in TRAIN)


def test_a_prompt_that_k_patients_do_not_share_does_not_cross(samples: Samples) -> None:
    samples.add_round(*ROUND)
    kept = samples.filter()["filter"]
    prompts = dict(zip(grey(kept), kept.table("kept")["prompt"].to_pylist(), strict=True))
    assert prompts[0] == "60s, woman, effusion"
    assert prompts[2] == prompts[4] == "edema"
    # One patient's record was told in little detail, and the number of all would tell that from what is left.
    assert kept.facts["prompt_levels"] == {"one of: findings alone; unchanged": 100}


def test_the_order_of_what_crosses_is_not_that_of_the_plan(samples: Samples) -> None:
    samples.add_round(*[(0.1, "r0", False)] * 40)
    greys = grey(samples.filter()["filter"])
    assert sorted(greys) == list(range(40)) != greys
    assert abs(np.corrcoef(greys, np.arange(40))[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("quota", "shortfall"),
    [
        ({}, {}),
        ({"edema": 2}, {}),
        ({"effusion": 3}, {"effusion": 2}),
        ({"effusion": 2, "edema": 4}, {"effusion": 1, "edema": 2}),
    ],
)
def test_a_class_that_is_short_of_its_quota_is_told(
    tmp_path: Path, quota: dict[str, int], shortfall: dict[str, int]
) -> None:
    samples = Samples(tmp_path, config.changed(RECIPE, {"sample.class_quota": quota}))
    samples.add_round(*ROUND)
    decided = samples.filter()["filter/0"].facts
    assert decided["shortfall"] == shortfall
    assert decided["enough"] is not bool(shortfall)


def test_if_the_rule_drops_all_there_is_nothing_to_distil_and_the_message_says_what_to_do(samples: Samples) -> None:
    samples.add_round((0.5, "r0", False), (0.9, "r1", False), (0.1, "r1", True))
    told = r"got 0 of 3 under rule 'fixed' \(2 over the threshold, 1 copy of a real image\) — loosen the rule, train"
    with pytest.raises(NothingKeptError, match=told):
        samples.filter()


def test_a_round_that_keeps_too_few_asks_for_the_next_and_both_are_filtered(tmp_path: Path) -> None:
    samples = Samples(tmp_path, config.changed(RECIPE, {"sample.max_rounds": 2, "sample.want_images": 4}))
    samples.add_round(*ROUND)
    with pytest.raises(ArtifactError, match=r"filter/1 input: .* run python -m jobs\.sample"):
        samples.filter()
    samples.add_round((0.4, "r1", False), (0.7, "r0", False))
    made = samples.filter()
    assert made["filter/1"].manifest["rows"] == 7 and made["filter/1"].facts["n_kept"] == 4
    assert sorted(grey(made["filter"])) == [0, 2, 4, 100]


def test_a_round_of_which_nothing_is_kept_does_no_harm_to_the_other(tmp_path: Path) -> None:
    samples = Samples(tmp_path, config.changed(RECIPE, {"sample.max_rounds": 2, "sample.want_images": 4}))
    samples.add_round(*ROUND)
    with pytest.raises(ArtifactError):
        samples.filter()
    samples.add_round((0.8, "r1", False))
    assert sorted(grey(samples.filter()["filter"])) == [0, 2, 4]


def reasons(samples: Samples, scores: Sequence[float]) -> dict[str, int]:
    samples.add_round(*[(score, "r0", False) for score in scores])
    return samples.filter()["filter/0"].facts["reasons"]


def test_a_sample_without_a_score_is_not_kept(samples: Samples) -> None:
    assert reasons(samples, [0.1, float("nan")]) == {"kept": 1, "no score": 1}


DECOYED = [(0.1, "r0", False, 0.1), (0.1, "r0", False, 0.6), (0.6, "r0", False, 0.1), (0.2, "r1", False, 0.5)]


def test_an_image_too_much_like_an_unseen_patient_is_dropped_so_that_a_gap_does_not_tell_who_was_used(
    samples: Samples,
) -> None:
    samples.add_round(*DECOYED)
    made = samples.filter()
    assert made["filter/0"].table()["keep"].to_pylist() == [True, False, False, False]
    assert made["filter/0"].facts["reasons"] == {
        "kept": 1,
        "over the threshold": 1,
        "like an unseen patient, a decoy": 2,
    }
    assert made["filter"].facts["decoys"] is True and made["filter"].facts["threshold"] == 0.5


@pytest.mark.parametrize(
    ("wanted", "n_control", "in_use"),
    [(None, 2, True), (None, 1, False), (True, 1, True), (False, 2, False)],
)
def test_unseen_patients_are_decoys_where_they_are_as_many_as_the_trained_or_the_recipe_says_so(
    wanted: bool | None, n_control: int, in_use: bool
) -> None:
    recipe = config.changed(RECIPE, {"filter.decoys": wanted})
    assert decoys_in_use(recipe, {"patients_by_split": {"train": 2, "control": n_control}}) is in_use


def test_without_decoys_likeness_to_an_unseen_patient_does_not_count(tmp_path: Path) -> None:
    samples = Samples(tmp_path, config.changed(RECIPE, {"filter.decoys": False}))
    samples.add_round(*DECOYED)
    made = samples.filter()
    assert made["filter/0"].table()["keep"].to_pylist() == [True, True, False, True]
    assert made["filter"].facts["decoys"] is False


def test_the_order_of_what_crosses_is_decided_by_the_stores_secret(tmp_path: Path) -> None:
    orders = []
    for name in ("a", "b"):
        samples = Samples(tmp_path / name, RECIPE)
        samples.add_round(*[(0.1, "r0", False)] * 40)
        orders.append(grey(samples.filter()["filter"]))
    assert orders[0] != orders[1]
