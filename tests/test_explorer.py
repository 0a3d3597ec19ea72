"""What the explorer of a threshold study says, and what its public edition must never hold."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from test_report import contrast, text_of

from pipeline import config, explorer, explorer_plots, report_plots
from pipeline.cohorts import phantom
from pipeline.estimate import Estimate
from pipeline.page import inlined
from pipeline.privacy import rules
from pipeline.privacy.risk import wilson

RUNGS = ("classifier on the kept set", "short student", "full student")
SETTINGS = {"guidance 2": "2.0", "guidance 4": "4.0"}
N_CONTROL, N_SAME, N_SAMPLES = 1300, 900, 4500
COPIES = np.arange(N_SAMPLES) % 1500 == 9


@functools.cache
def scores() -> dict[str, np.ndarray]:
    """Made-up scores: memorised images pile up near 1."""
    rng = np.random.default_rng(7)
    return {
        "control": rng.beta(0.5, 3.0, N_CONTROL),
        "same": rng.beta(20, 0.7, N_SAME),
        "guidance 2": np.concatenate([rng.beta(0.5, 3.2, 3300), rng.beta(12, 0.6, N_SAMPLES - 3300)]),
        "guidance 4": np.concatenate([rng.beta(0.5, 3.0, 2800), rng.beta(15, 0.5, N_SAMPLES - 2800)]),
    }


@functools.cache
def labels() -> np.ndarray:
    shares = (0.3, 0.28, 0.2, 0.12, 0.17, 0.1)
    return np.random.default_rng(8).random((N_SAMPLES, len(phantom.FINDINGS))) < shares


def rule(name: explorer.Rule, value: float | None = None) -> config.Filter:
    """A filter section with one rule set to a value."""
    field = {"fixed": "threshold", "percentile": "percentile", "recall": "recall", "fdr": "q"}.get(name)
    return config.Filter.model_validate({"rule": name} | ({name: {field: value}} if field else {}))


def threshold(section: config.Filter, samples: str) -> float | None:
    made = scores()
    return rules.threshold(section, made[samples], control=made["control"], same_patient=made["same"]).threshold


AS_SET = (("none", None), ("fixed", 0.5), ("percentile", 70.0), ("recall", 0.95), ("fdr", 0.05))
PLAN: tuple[tuple[explorer.Rule, float | None, str, int], ...] = (
    ("percentile", 70, "guidance 4", 2),
    ("percentile", 80, "guidance 4", 2),
    ("percentile", 95, "guidance 4", 1),
    ("percentile", 50, "guidance 4", 0),
    ("percentile", 70, "guidance 2", 2),
    ("fixed", 0.5, "guidance 4", 0),
    ("fixed", 0.2, "guidance 2", 1),
    ("fixed", 0.05, "guidance 2", 0),
    ("recall", 0.95, "guidance 4", 1),
    ("recall", 0.99, "guidance 2", 1),
    ("fdr", 0.05, "guidance 4", 2),
    ("fdr", 0.2, "guidance 2", 0),
    ("none", None, "guidance 4", 2),
    ("percentile", 70, "guidance 4", 2),
)
ABLATIONS = {13: "no filter", 14: "no student"}
ANSWER = (
    "Drop what scores over the 70th percentile of unseen patients’ images: the auditor then flags 2.2% [1.6, 3.2] of "
    "the student’s images, and of unseen patients’ 5.5% [4.4, 6.8], at a macro AUROC of 0.910 [0.899, 0.919]."
)


def example(*, custodian: bool = True, recommended: int | None = 1) -> explorer.Explorer:
    """A study of sixteen trials on two sets of samples, two of which failed."""
    made = scores()
    trials = _measured_again([_trial(number, *row) for number, row in enumerate(PLAN, 1)])
    failed = [
        _failed(15, "recall", 0.999, "want at least 2,995 same-patient scores, got 900"),
        _failed(16, "fixed", 0.001, "no image is kept for finding pneumothorax"),
    ]
    as_set = {key: [_as_set(name, value, key) for name, value in AS_SET] for key in SETTINGS}
    limits = [t.threshold for t in trials] + [r.threshold for found in as_set.values() for r in found]
    edges = explorer.score_edges(made.values(), limits)
    return explorer.Explorer(
        name="phantom",
        seed=0,
        date="2026-11-21 08:04",
        answer=ANSWER if recommended else "No setting meets the constraint: the best one is flagged too often.",
        constraint="The auditor flags the student’s images no more often than those of unseen patients, and the "
        "student keeps at least 95% of the teacher’s macro AUROC.",
        recommended=recommended,
        trials=trials + failed,
        rung_names=RUNGS,
        findings=phantom.FINDINGS,
        edges=edges,
        samples={
            key: explorer.samples(made[key], labels(), phantom.FINDINGS, edges, pixel_copy=COPIES, rules=as_set[key])
            for key in SETTINGS
        },
        control=explorer.binned(made["control"], edges).counts,
        same_patient=explorer.binned(made["same"], edges).counts,
        control_ratio={"validation": wilson(78, 1300), "test": wilson(71, 1300)},
        kept_images=_films()[:24],
        caveats=["The phantom is drawn, not filmed: real cohorts are harder in every respect."],
        private=_private() if custodian else None,
    )


def _trial(number: int, name: explorer.Rule, value: float | None, key: str, rung: int) -> explorer.Trial:
    limit = threshold(rule(name, value), key)
    kept = scores()[key] < (math.inf if limit is None else limit)
    kept &= ~COPIES | (name == "none")
    share, ablation = float(kept.mean()), ABLATIONS.get(number, "")
    ratio = 0.32 if limit is None else 0.016 + 0.13 * max(share - 0.3, 0) ** 2 + 0.3 * max(share - 0.6, 0)
    area = 0.945 - 0.4 * max(0.6 - share, 0) ** 1.5 + 0.006 * (number % 3) + 0.012 * (ablation == "no student")
    if key == "guidance 2":
        ratio, area = ratio + 0.006, area - 0.02
    return explorer.Trial(
        number=number,
        rule=name,
        parameter="no filter" if value is None else f"{name} {value:g}",
        settings={"sample.guidance_scale": SETTINGS[key]},
        samples=key,
        threshold=limit,
        n_sampled=N_SAMPLES,
        n_kept=int(kept.sum()),
        kept_by_class={
            finding: (int(has.sum()), int((has & kept).sum()))
            for finding, has in zip(phantom.FINDINGS, labels().T, strict=True)
        },
        rung=rung,
        validation=_metrics(ratio, area, share, 1500),
        ablation=ablation,
    )


def _measured_again(trials: list[explorer.Trial]) -> list[explorer.Trial]:
    """The same with the front marked, and front and ablations measured on test patients."""

    def goods(trial: explorer.Trial) -> np.ndarray:
        found = trial.validation
        return np.array([-found["judge_ratio"].value, found["macro_auroc"].value, found["kept_frac"].value])

    plain = [trial for trial in trials if not trial.ablation]
    front = [t for t in plain if not any((goods(o) >= goods(t)).all() and (goods(o) > goods(t)).any() for o in plain)]
    again = []
    for trial in trials:
        ratio, area, share = (trial.validation[key].value for key in ("judge_ratio", "macro_auroc", "kept_frac"))
        both = ("judge_ratio", "audit_ratio")
        test = _metrics(ratio + 0.004, area - 0.012, share, 1300, both) if trial in front or trial.ablation else {}
        again.append(dataclasses.replace(trial, on_front=trial in front, test=test))
    return again


def _metrics(
    ratio: float, area: float, share: float, n: int, counted: tuple[str, ...] = ("judge_ratio",)
) -> dict[str, Estimate]:
    found = {name: wilson(round(ratio * n), n) for name in counted} | {
        "reid_ratio": wilson(round(0.8 * ratio * n), n),
        "macro_auroc": Estimate(area, area - 0.011, area + 0.009, 480),
        "kept_frac": wilson(round(share * N_SAMPLES), N_SAMPLES),
    }
    for i, finding in enumerate(phantom.FINDINGS):
        own = min(area + 0.04 - 0.016 * i, 0.995)
        found[f"auroc_{finding}"] = Estimate(own, own - 0.024, min(own + 0.02, 1.0), 480)
    return found


def _failed(number: int, name: explorer.Rule, value: float, reason: str) -> explorer.Trial:
    return explorer.Trial(
        number=number, rule=name, parameter=f"{name} {value:g}", samples="guidance 4", failed=reason
    )


def _as_set(name: explorer.Rule, value: float | None, key: str) -> explorer.RuleAsSet:
    limit = threshold(rule(name, value), key)
    dropped = (scores()[key] >= (math.inf if limit is None else limit)) | COPIES & (name != "none")
    return explorer.RuleAsSet(name, "no filter" if value is None else f"{name} {value:g}", limit, int(dropped.sum()))


@functools.cache
def _films() -> np.ndarray:
    films = phantom.draw(phantom.listing(config.Phantom(n_patients=60), 0)["source"].to_pylist()[:72], 48)
    return gaussian_filter(films, (0, 0.9, 0.9, 0))


def _private() -> explorer.Private:
    films = _films()[24:]
    return explorer.Private(
        images={
            key: [
                explorer.Scored(films[i % len(films)], float(score))
                for i, score in enumerate(np.quantile(scores()[key], np.linspace(0, 1, 160)))
            ]
            for key in SETTINGS
        }
    )


def data_of(page: str) -> dict:
    """What the page's script works on."""
    found = re.search(r'<script type="application/json" id="live">(.*?)</script>', page, flags=re.S)
    assert found is not None
    return json.loads(found[1])


def words_of(page: str) -> str:
    """The words that a reader without scripts sees."""
    return text_of(re.sub(r"<script.*?</script>", "", page, flags=re.S))


def test_the_answer_stands_on_top_with_ablations_and_unseen_patients_beside_it() -> None:
    text = words_of(explorer.render(example()))
    assert ANSWER in text
    assert re.search(r"No filter 32\.0% \[29\.7, 34\.4\] n = 1,500 32\.4%", text)
    assert re.search(r"No student 1\.8% \[1\.2, 2\.6\]", text)
    assert re.search(r"Unseen patients 6\.0% \[4\.8, 7\.4\] n = 1,300 5\.5% \[4\.4, 6\.8\]", text)
    assert "The setting. Trial 1: percentile 70" in text


def test_without_a_recommendation_no_trial_is_called_recommended() -> None:
    page = explorer.render(example(recommended=None))
    assert "No setting meets the constraint" in words_of(page)
    assert ", recommended" not in page and ">recommended<" not in page


def test_the_judge_counts_where_the_setting_was_chosen_and_the_auditor_where_it_was_held_out() -> None:
    made = example()
    own = dataclasses.replace(
        made.trials[0],
        validation=made.trials[0].validation | {"audit_ratio": wilson(999, 1000)},
        test=made.trials[0].validation | {"judge_ratio": wilson(999, 1000), "audit_ratio": wilson(21, 1000)},
    )
    assert [mark.ratio for mark in explorer.marks([own], "validation", 1)] == [own.validation["judge_ratio"]]
    assert [mark.ratio for mark in explorer.marks([own], "test", 1)] == [own.test["audit_ratio"]]
    page = explorer.render(dataclasses.replace(made, trials=[own]))
    assert "2.1% flagged by the auditor [1.4, 3.2], n = 1,000" in page
    assert "of the student’s images are flagged by the auditor" in words_of(page)
    assert "The students are the same; their images were made anew." in words_of(page)


def test_a_failed_trial_is_listed_with_its_reason_and_can_not_be_chosen() -> None:
    page = explorer.render(example())
    assert "Trial 15, recall 0.999: want at least 2,995 same-patient scores, got 900" in words_of(page)
    assert "15" not in data_of(page)["trials"] and 'id="trial-15"' not in page


def test_only_the_front_is_strong_and_only_what_was_measured_again_is_on_the_test_plot() -> None:
    made = example()
    page = explorer.render(made)
    drawn = {
        name: kind.split() for kind, name in re.findall(r'class="point ([^"]*)" role="option" id="([^"]*)"', page)
    }
    for trial in made.trials:
        if not trial.failed:
            assert ("front" in drawn[f"validation-{trial.number}"]) == trial.on_front
            assert (f"test-{trial.number}" in drawn) == bool(trial.test)


def test_the_public_edition_holds_counts_and_no_score_and_no_image_but_kept_ones() -> None:
    custodian = example()
    public = dataclasses.replace(custodian, private=None)
    page, private_page = explorer.render(public), explorer.render(custodian)
    assert custodian.private is not None and public.kept_images is not None
    raw = {report_plots.data_uri(s.image) for found in custodian.private.images.values() for s in found}
    assert all(uri in private_page for uri in raw) and not any(uri in page for uri in raw)
    assert set(re.findall(r"data:image/png;base64,[\w+/=]+", page)) <= {
        report_plots.data_uri(image) for image in public.kept_images
    }
    data = data_of(page)
    assert data["images"] == {}
    counts = [data["control"], data["same"], *(found["binned"][0] for found in data["samples"].values())]
    assert all(isinstance(n, int) for found in counts for n in found)
    assert "PRIVATE" in private_page and "PRIVATE" not in page


def test_any_text_that_looks_like_html_is_shown_as_text() -> None:
    attack = "</script><script>alert(1)</script>"
    made = hostile(attack)
    page = explorer.render(made)
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;") > 15
    assert attack in data_of(page)["samples"]


def hostile(attack: str) -> explorer.Explorer:
    """A study in which every text is an attack."""
    made = example()
    edges, found = made.edges, made.samples["guidance 4"]
    rule_set = [explorer.RuleAsSet("fixed", attack, 0.5, 1)]
    trial = dataclasses.replace(
        made.trials[0],
        parameter=attack,
        settings={attack: attack},
        samples=attack,
        kept_by_class={attack: (10, 5)},
        ablation=attack,
        validation=made.trials[0].validation | {f"auroc_{attack}": Estimate(0.9, 0.88, 0.92, 10)},
    )
    return dataclasses.replace(
        made,
        name=attack,
        date=attack,
        answer=attack,
        constraint=attack,
        trials=[trial, dataclasses.replace(trial, number=2, failed=attack)],
        rung_names=[attack] * 3,
        findings=[attack],
        edges=edges,
        samples={
            attack: explorer.Samples(binned=found.binned, by_class={attack: found.binned}, rules=rule_set),
            "other": explorer.Samples(binned=found.binned, by_class={attack: found.binned}),
        },
        caveats=[attack],
        private=None,
    )


@pytest.mark.parametrize("custodian", [True, False])
def test_a_study_of_nothing_says_not_measured_instead_of_failing(custodian: bool) -> None:
    edges = explorer.score_edges([])
    nothing = explorer.binned(np.zeros(0), edges)
    empty = explorer.Explorer(
        name="empty", seed=0, date="", answer="Nothing was tried.", constraint="", recommended=None, trials=(),
        rung_names=(), findings=(), edges=edges, control=nothing.counts, same_patient=nothing.counts,
        samples={"all": explorer.Samples(binned=nothing, by_class={})},
        private=explorer.Private() if custodian else None,
    )  # fmt: skip
    assert "not measured" in words_of(explorer.render(empty))


def test_a_metric_that_is_missing_or_nan_is_not_measured_and_not_drawn() -> None:
    made = example()
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    bare = dataclasses.replace(made.trials[0], validation={"judge_ratio": nothing, "macro_auroc": nothing}, test={})
    page = explorer.render(dataclasses.replace(made, trials=[bare]))
    assert "nan" not in re.findall(r"[a-z]+", words_of(page))
    assert 'role="option"' not in page and "not measured" in words_of(page)


SCORES = st.lists(st.one_of(st.floats(0, 1, width=32), st.just(math.nan)), max_size=40)


@settings(deadline=None)
@given(SCORES, st.lists(st.floats(0, 1), max_size=4))
def test_counts_at_every_threshold_of_the_study_are_exact(values: list[float], limits: list[float]) -> None:
    scores = np.array(values, np.float32)
    edges = explorer.score_edges([scores], limits, n_bins=16)
    found = explorer.binned(scores, edges)
    assert found.counts.sum() + found.always == len(scores)
    for limit in limits:
        over = found.counts[explorer.index_of(limit, edges) :].sum()
        assert over == (scores.astype(np.float64) >= limit).sum()


def test_images_without_a_score_and_copies_are_dropped_at_any_threshold() -> None:
    edges = explorer.score_edges([np.array([0.1, 0.9])], [0.5])
    copies = np.array([True, False, False, False])
    found = explorer.binned(np.array([0.1, 0.2, 0.9, math.nan]), edges, copies)
    assert (found.counts.sum(), found.always) == (2, 2)
    at_half = explorer.index_of(0.5, edges)
    assert found.counts[at_half:].sum() == 1
    assert explorer.index_of(None, edges) == len(edges)


def test_counts_by_finding_are_those_of_the_labels() -> None:
    made = scores()["guidance 4"]
    edges = explorer.score_edges([made], [0.5])
    found = explorer.samples(made, labels(), phantom.FINDINGS, edges)
    at_half = explorer.index_of(0.5, edges)
    for finding, has in zip(phantom.FINDINGS, labels().T, strict=True):
        assert found.by_class[finding].counts[at_half:].sum() == (made[has] >= 0.5).sum()


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (None, "none"),
        (0.5, "0.5000"),
        (0.17294, "0.1729"),
        (0.00042, "0.000420"),
        (0.99987, "0.999870"),
        (0.9999987, "0.99999870"),
        (0.0, "0.0000"),
        (1.0, "1.0000"),
    ],
)
def test_a_score_has_the_decimals_that_tell_it_from_zero_and_one(score: float | None, text: str) -> None:
    assert explorer.score_text(score) == text


@given(st.floats(1e-4, 1), st.floats(0, 0.99), st.floats(0.001, 1))
def test_the_axes_hold_their_range_with_few_ticks(high: float, low: float, span: float) -> None:
    for axis, start, stop in (
        (report_plots.root_axis(high, "%"), 0.0, high),
        (report_plots.snug_axis(low, low + span), low, low + span),
    ):
        assert axis.start <= start and stop <= axis.stop * 1.001 + 1e-9
        assert 3 <= len(axis.ticks) <= 12
        places = [tick.at for tick in axis.ticks]
        assert places == sorted(places) and places[0] >= 0 and places[-1] <= 100


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_colour_of_its_own_has_the_contrast_of_text(theme: int) -> None:
    own = re.findall(r"--fdr: (#\w+)", inlined("explorer.css"))[theme]
    paper = re.findall(r"--paper: (#\w+)", inlined("report.css"))[theme]
    assert contrast(own, paper) >= 4.5


def test_labels_keep_clear_of_marks_where_there_is_room() -> None:
    shares = [wilson(n, 1000) for n in (20, 21, 300)]
    areas = [Estimate(a, a - 0.01, a + 0.01, 100) for a in (0.90, 0.902, 0.8)]
    made = [
        explorer_plots.Mark(i, ratio, area, 0.5, True, f"{i}, recommended")
        for i, (ratio, area) in enumerate(zip(shares, areas, strict=True))
    ]
    axes = explorer_plots.axes(made, [])
    labels = explorer_plots.labels(made, *axes)
    assert labels[0] != labels[1]
    assert labels[2].anchor == "end", "a label at the right edge goes left"


def test_the_line_through_the_front_rises_from_private_to_useful() -> None:
    def mark(number: int, ratio: float, area: float) -> explorer_plots.Mark:
        return explorer_plots.Mark(
            number, Estimate(ratio, ratio, ratio, 1), Estimate(area, area, area, 1), 1, True, ""
        )

    made = [mark(1, 0.1, 0.9), mark(2, 0.02, 0.8), mark(3, 0.05, 0.7), mark(4, 0.2, 0.95)]
    assert [(a.number, b.number) for a, b in explorer_plots.front_line(made)] == [(2, 1), (1, 4)]
