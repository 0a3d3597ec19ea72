"""What the report says, and what it must never say."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline import config, report, report_plots
from pipeline.cohorts import phantom
from pipeline.estimate import Estimate
from pipeline.privacy.gate import FAIL, PASS, UNSURE, Verdict
from pipeline.privacy.risk import difference, wilson
from pipeline.steps.report import _for_the_public

THRESHOLD = 0.93


def example(*, custodian: bool = True, n: int = 1500, cleared: bool = True) -> report.Report:
    """A report with the prototype's numbers, on `n` control and student images."""
    rng = np.random.default_rng(0)
    films = phantom.draw(phantom.listing(config.Phantom(n_patients=40), 0)["source"].to_pylist()[:48], 48)
    synthetic = gaussian_filter(films, (0, 0.9, 0.9, 0))
    met = [
        Verdict("student over control", PASS, "0.7% [-0.7%, 2.1%], n 1,500", "at most 5.0%", "as strangers are"),
        Verdict(
            "changed copies found by the auditor",
            PASS,
            "95.2% [92.7%, 96.9%], n 400",
            "at least 90.0%",
            "worst of 2 kinds of change: zoom in",
        ),
    ]
    blocked = [
        Verdict(
            "coverage",
            FAIL,
            "21.0% [18.6%, 23.6%], n 1,000",
            "at least 30.0%",
            "a collapsed student only looks private",
        ),
        Verdict("control size", UNSURE, "180 images", "at least 1,000 images", "thresholds rest on it"),
    ]
    return report.Report(
        name="phantom",
        seed=0,
        date="2026-11-21 08:04",
        recipe="name: phantom\nseed: 0\nfilter:\n  rule: percentile\n  percentile:\n    p: 80\n",
        cleared=cleared,
        verdicts=met if cleared else met + blocked,
        metrics=_metrics(n),
        guarantee="An image is kept if its score is under the 80th percentile of 1,200 images of unseen patients, "
        "so one in five of those would be dropped too.",
        threshold=THRESHOLD,
        scores={
            "control": rng.beta(0.6, 0.9, n),
            "teacher": np.concatenate([rng.beta(0.6, 1.0, 1900), rng.beta(18, 0.4, 1600)]),
            "filtered": rng.beta(0.6, 1.4, 1410) * THRESHOLD,
            "student": rng.beta(0.6, 1.0, n),
        },
        grids={"Teacher": synthetic[:16], "Kept set": synthetic[16:32], "Student": synthetic[32:48]},
        n_train_images=1060,
        n_train_patients=260,
        n_sampled=3500,
        n_kept=1410,
        dropped=[
            report.Drop("Ingest, images", "unreadable image: UnidentifiedImageError", 3, 6140),
            report.Drop("Ingest, images", "more than 4 images of a patient in split identify", 412, 6140),
            report.Drop("Text hygiene, words", "seen in fewer than 5 patients", 231, 48211),
            report.Drop("Text hygiene, words", "looks like an identifier", 17, 48211),
            report.Drop("Filter, synthetic images", "score at or over the threshold", 2090, 3500),
            report.Drop("Shortfall, kept images wanted", "pacemaker: 12 short of 100", 12, 100),
            report.Drop("Prompts, recomposed", "from labels, age decade and sex", 204, 1410),
        ],
        kept_by_class={
            name: (round(3500 * f), round(3500 * f * 0.4))
            for name, f in zip(phantom.FINDINGS, (0.3, 0.28, 0.2, 0.12, 0.17, 0.1), strict=True)
        },
        steps=[
            report.StepRow("ingest", "", 6140, 11.2, True, "private/ingest/2f7c9b10aa31"),
            report.StepRow("teach", "teacher", 1060, 131.4, False, "private/teach/8e11f07bc1d2"),
            report.StepRow("identify", "filter’s network", 2180, 32.0, False, "private/identify/0b7754e1c3aa"),
            report.StepRow("sample", "teacher", 3500, 16.1, False, "private/sample/4c01d28e6f90"),
            report.StepRow("score", "teacher", 3500, 4.3, False, "private/score/77aa01bcfe21"),
            report.StepRow("distill", "student", 1410, 63.2, False, "releasable/distill/61b2d7a0993e"),
        ],
        caveats=["The phantom is drawn, not filmed: real cohorts are harder in every respect."],
        private=_private(films, synthetic, rng) if custodian else None,
    )


def _private(films: np.ndarray, synthetic: np.ndarray, rng: np.random.Generator) -> report.Private:
    pairs = [report.Pair(synthetic[i], films[i], 0.9991 - i / 100) for i in range(12)]
    rows = [
        report.LedgerRow(f"p{i:03d}", 1 + i % 40, f"s{7 * i:05d}", float(s))
        for i, s in enumerate(THRESHOLD * rng.beta(2, 1, 260))
    ]
    return report.Private(
        grids={"Training images": films[:16]},
        pairs={"Teacher’s highest scores": pairs, "Student over its nearest training image": pairs[6:]},
        ledger=rows,
    )


def _metrics(n: int) -> dict[str, Estimate]:
    ratios = {
        "control": (0.058, 0.042, n),
        "baseline": (0.05, 0.05, 3500),
        "teacher": (0.446, 0.443, 3500),
        "filtered": (0.0, 0.026, 1410),
        "student": (0.044, 0.043, n),
        "student_private_prompts": (0.058, 0.051, n),
    }
    found: dict[str, Estimate] = {}
    for subject, (by_filter, by_auditor, size) in ratios.items():
        found[f"privacy/{subject}/reid_ratio"] = wilson(round(by_filter * size), size)
        found[f"privacy/{subject}/audit_ratio"] = wilson(round(by_auditor * size), size)
        found[f"privacy/{subject}/learned_rate"] = wilson(round(0.31 * 1060), 1060)
        found[f"privacy/{subject}/most_frequent_neighbour"] = wilson(round(0.021 * size), size)
    for subject in ("teacher", "filtered", "student", "student_private_prompts"):
        for excess, ratio in (("excess", "reid_ratio"), ("audit_excess", "audit_ratio")):
            found[f"privacy/{subject}/{excess}"] = difference(
                found[f"privacy/{subject}/{ratio}"], found[f"privacy/control/{ratio}"]
            )
    for band, share, size in (("1-3", 0.121, 1420), ("4-12", 0.18, 498), ("30+", 0.835, 1582)):
        found[f"privacy/teacher/reid_ratio_images_{band}"] = wilson(round(share * size), size)
    found["privacy/student_private_prompts/reid_ratio_images_30+"] = wilson(5, 40)
    for finding, share, size in (("pleural_effusion", 0.31, 640), ("none", 0.36, 1100)):
        found[f"privacy/teacher/reid_ratio_finding_{finding}"] = wilson(round(share * size), size)
    for network, auc in (("filter_network", 0.9998), ("auditor", 0.9991)):
        found[f"privacy/{network}/verification_auc"] = Estimate(auc, auc - 0.0004, auc + 0.0002, 2000)
        found[f"privacy/{network}/recall"] = wilson(985, 1000)
        for kind, n_found in (("blur", 393), ("zoom_in", 381)):
            for factor, n_less in (("0.5", -5), ("1", 0), ("1.5", 140)):
                found[f"privacy/{network}/recall_{kind}_x{factor}"] = wilson(n_found - n_less, 400)
        found[f"privacy/{network}/planted_exact"] = wilson(100, 100)
        found[f"privacy/{network}/planted_near"] = wilson(97, 100)
    for attack, auc in (
        ("student/membership", 0.56),
        ("teacher/membership", 0.83),
        ("filtered/gap", 0.58),
        ("student/nearness", 0.54),
    ):
        found[f"privacy/{attack}_auc"] = Estimate(auc, auc - 0.03, auc + 0.03, 760)
    found["privacy/student/membership_null_auc"] = Estimate(0.51, 0.5, 0.54, 600)
    found["privacy/filtered/gap_among_control_auc"] = Estimate(0.523, 0.5, 0.56, 700)
    for arm, macro in (
        ("real", 0.968),
        ("teacher", 0.934),
        ("filtered", 0.934),
        ("student", 0.901),
        ("student_large", 0.907),
    ):
        found[f"utility/{arm}/macro_auroc"] = Estimate(macro, macro - 0.012, macro + 0.01, 1000)
        found[f"utility/{arm}/micro_auroc"] = Estimate(macro + 0.01, macro - 0.001, macro + 0.02, 1000)
        for i, finding in enumerate(phantom.FINDINGS):
            area = macro + 0.03 - 0.02 * i
            found[f"utility/{arm}/auroc_{finding}"] = Estimate(
                min(area, 0.999), area - 0.03, min(area + 0.02, 1.0), 1000
            )
        found[f"adherence/{arm}/macro_auroc"] = Estimate(macro, macro - 0.012, macro + 0.01, 3500)
    found["utility/student/retention_teacher"] = Estimate(0.965, 0.95, 0.978, 1000)
    found["utility/student/retention_real"] = Estimate(0.931, 0.912, 0.947, 1000)
    for arm, fid in (("control", 3.1), ("teacher", 14.2), ("filtered", 15.0), ("student", 21.7)):
        found[f"fidelity/{arm}/fid"] = Estimate(fid, fid * 0.9, fid * 1.1, 1500)
        found[f"fidelity/{arm}/kid"] = Estimate(fid / 900, fid / 1100, fid / 800, 1500)
        for name in ("ms_ssim_within", "ms_ssim_between", "precision", "recall", "density", "coverage"):
            found[f"fidelity/{arm}/{name}"] = Estimate(0.62, 0.58, 0.66, 1500)
    return found


def text_of(page: str) -> str:
    """The words of a page without tags and styles, in one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace(" .", ".")


def test_the_first_screen_says_that_the_student_is_safer_and_at_control() -> None:
    text = text_of(report.render(example()))
    assert "The student is safer than the teacher. Its images match training patients no more often" in text
    assert "44.3 → 4.3 %" in text
    assert "✓ CLEARED for release" in text


def test_a_blocked_release_is_named_with_its_reasons() -> None:
    text = text_of(report.render(example(cleared=False)))
    assert "✕ NOT CLEARED for release" in text
    assert "fail coverage: 21.0% [18.6%, 23.6%], n 1,000, wanted at least 30.0%; a collapsed student" in text
    assert "not enough evidence control size: 180 images" in text


def test_the_first_screen_tells_the_best_attack_on_members() -> None:
    text = text_of(report.render(example()))
    assert re.search(r"Can members be told\? 0\.58 AUC of the best of 3 attackers", text)
    assert "By the student’s loss 0.56 [0.53, 0.59]" in text
    unmeasured = dataclasses.replace(example(), metrics={})
    assert "Can members be told? 0" not in text_of(report.render(unmeasured))


def test_decoys_are_explained_where_there_were_some_and_not_where_there_were_none() -> None:
    without, having = (report.render(dataclasses.replace(example(), decoys=decoys)) for decoys in (False, True))
    assert "decoys" not in text_of(without)
    assert "members against decoys, by the filter’s network: 0.52 [0.50, 0.56]" in text_of(having)


def test_recall_is_told_by_kind_and_strength_by_both_networks() -> None:
    metrics = _metrics(1500)
    rows = report.recall_rows(metrics, {"blur": 0.015})
    assert list(rows) == ["blur", "zoom in"]
    assert list(rows["blur"]) == [0.5, 1.0, 1.5]
    networks = ("filter_network", "auditor")
    assert rows["blur"][1.0] == ("0.015", *(metrics[f"privacy/{name}/recall_blur_x1"] for name in networks))
    assert rows["blur"][1.5][0] == "0.0225"
    assert rows["zoom in"][0.5][0] == "–"  # no strength is known
    one_network = {key: value for key, value in metrics.items() if "/auditor/" not in key}
    assert report.recall_rows(one_network, {})["blur"][1.0][2] is None
    page = text_of(report.render(dataclasses.replace(example(), strengths={"blur": 0.015})))
    assert "Planted exact copies found" in page and "zoom in" in page and "0.0225" in page


def test_the_public_edition_rounds_what_it_tells_of_the_private_table_and_hides_small_counts() -> None:
    drops = [report.Drop("ingest: images", "over the cap", 5_462, 20_958), report.Drop("ingest: images", "broken", 2)]
    drops.append(report.Drop("filter", "over the threshold", 2_701, 4_500))
    steps = [report.StepRow(word, "", 15_496, 1.0, False, "") for word in ("ingest", "sample")]
    drops.append(report.Drop("filter", "copy of a real image", 2, 4_500))
    told = _for_the_public(dataclasses.replace(example(), dropped=drops, steps=steps), k=5)
    assert [(drop.n, drop.of) for drop in told.dropped] == [(5_500, 21_000), (2_701, 4_500), (2, 4_500), (1, None)]
    assert "(rounded)" in told.dropped[0].stage and "fewer than 5" in told.dropped[3].reason
    assert [step.rows for step in told.steps] == [15_000, 15_496]


def test_a_small_control_is_called_not_enough_evidence_next_to_its_figure() -> None:
    text = text_of(report.render(example(n=180)))
    assert "There is not enough evidence that its images are as safe" in text
    assert re.search(r"5\.6% \[3\.0, 9\.9\] not enough evidence", text)
    assert not re.search(r"5\.8% \[4\.7, 7\.1\] not enough evidence", text_of(report.render(example(n=1500))))


def test_the_public_edition_has_no_real_image_no_score_of_a_record_and_no_artifact() -> None:
    custodian = example()
    public = dataclasses.replace(custodian, private=None)
    page, private_page = report.render(public), report.render(custodian)
    assert custodian.private is not None
    real = [image for grid in custodian.private.grids.values() for image in grid]
    real += [pair.real for pairs in custodian.private.pairs.values() for pair in pairs]
    assert not any(report_plots.data_uri(image) in page for image in real)
    assert all(report_plots.data_uri(image) in private_page for image in real)
    for secret in ("PRIVATE", "Ledger", "p128", "private/teach"):
        assert secret in private_page and secret not in page


def test_the_custodians_edition_is_marked_private_in_title_and_banner() -> None:
    page = report.render(example())
    assert "<title>PRIVATE – " in page
    assert "PRIVATE – contains real patient images." in text_of(page)


def test_any_text_that_looks_like_html_is_shown_as_text() -> None:
    attack = "<script>alert(1)</script>"
    made = example()
    assert made.private is not None
    made = dataclasses.replace(
        made,
        name=attack,
        recipe=attack,
        guarantee=attack,
        caveats=[attack],
        dropped=[report.Drop(attack, attack, 1)],
        kept_by_class={attack: (1, 1)},
        grids={f'" onerror="{attack}': made.grids["Student"][:1]},
        steps=[report.StepRow(attack, attack, 1, 1.0, False, attack)],
        verdicts=[Verdict(attack, FAIL, attack, attack, attack)],
        metrics={f"utility/real/auroc_{attack}": Estimate(0.9, 0.88, 0.92, 10)},
        scores={attack: np.array([0.5])},
        private=dataclasses.replace(made.private, ledger=[report.LedgerRow(attack, 1, attack, 0.5)]),
    )
    page = report.render(made)
    assert "<script" not in page and 'onerror="' not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 15


@pytest.mark.parametrize("custodian", [True, False])
def test_a_report_of_nothing_says_not_measured_instead_of_failing(custodian: bool) -> None:
    empty = report.Report(
        name="empty", seed=0, date="", recipe="", cleared=False, verdicts=(), metrics={}, guarantee="none",
        threshold=None, n_train_images=0, n_train_patients=0, n_sampled=0, n_kept=0,
        private=report.Private() if custodian else None,
    )  # fmt: skip
    text = text_of(report.render(empty))
    assert "Teacher and student were not both measured." in text
    assert text.count("not measured") > 50


@settings(max_examples=10, deadline=None)
@given(st.sets(st.sampled_from(sorted(_metrics(1500)))), st.sets(st.sampled_from(sorted(_metrics(1500)))))
def test_any_metric_may_be_missing_or_nan(missing: set[str], nan: set[str]) -> None:
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    metrics = {key: nothing if key in nan else e for key, e in _metrics(1500).items() if key not in missing}
    page = report.render(dataclasses.replace(BARE, metrics=metrics))
    assert "nan" not in re.findall(r"[a-z]+", text_of(page))
    assert "nan%" not in page


BARE = dataclasses.replace(example(custodian=False), scores={}, grids={})


@pytest.mark.parametrize(
    ("student", "control", "n", "verdict"),
    [
        (0.043, 0.042, 1500, "yes"),  # z = 0.14
        (0.065, 0.042, 1500, "no"),  # z = 2.8
        (0.065, 0.042, 100, "unsure"),  # z = 0.7, and too few
        (0.0, 0.0, 1500, "yes"),  # nobody is flagged
    ],
)
def test_the_student_is_compared_with_control_by_a_test_and_its_n(student, control, n, verdict) -> None:
    metrics = {
        "privacy/teacher/audit_ratio": wilson(1500, 3500),
        "privacy/student/audit_ratio": wilson(round(student * n), n),
        "privacy/control/audit_ratio": wilson(round(control * n), n),
    }
    contrast = report.contrast(metrics, "audit_ratio")
    assert contrast is not None
    assert report.above_control([contrast], 1000).verdict == verdict


@pytest.mark.parametrize(("flagged", "verdict"), [(60, "yes"), (680, "unsure"), (720, "no")])
def test_safer_than_the_teacher_means_beyond_the_intervals(flagged: int, verdict: str) -> None:
    metrics = {
        "privacy/teacher/audit_ratio": wilson(700, 1500),
        "privacy/student/audit_ratio": wilson(flagged, 1500),
    }
    contrast = report.contrast(metrics, "audit_ratio")
    assert contrast is not None
    assert report.safer_than_teacher([contrast]).verdict == verdict


def test_one_network_that_sees_no_gain_is_enough_to_deny_it() -> None:
    metrics = _metrics(1500) | {"privacy/student/audit_ratio": wilson(1000, 1500)}
    contrasts = [c for ratio in report.RATIOS if (c := report.contrast(metrics, ratio)) is not None]
    assert report.safer_than_teacher(contrasts).verdict == "no"
    assert report.above_control(contrasts, 1000).verdict == "no"


def test_the_reductions_interval_is_that_of_the_log_ratio_where_both_are_large() -> None:
    teacher, student = wilson(1500, 3500), wilson(300, 3500)
    reduction = report.relative_reduction(teacher, student)
    assert reduction is not None
    # Katz et al., Biometrics 34:469 (1978): sd of log(a / b) is sqrt(1/300 - 1/3500 + 1/1500 - 1/3500).
    sd = math.sqrt(1 / 300 - 1 / 3500 + 1 / 1500 - 1 / 3500)
    assert reduction.value == pytest.approx(0.8)
    assert reduction.low == pytest.approx(1 - 0.2 * math.exp(1.96 * sd), abs=2e-3)
    assert reduction.high == pytest.approx(1 - 0.2 * math.exp(-1.96 * sd), abs=2e-3)


@given(st.integers(0, 400), st.integers(1, 400), st.integers(400, 2000))
def test_a_reduction_lies_in_its_interval_and_is_never_over_one(student: int, teacher: int, n: int) -> None:
    reduction = report.relative_reduction(wilson(teacher, n), wilson(student, n))
    assert reduction is not None
    assert reduction.low - 1e-9 <= reduction.value <= reduction.high + 1e-9 <= 1 + 2e-9


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_histograms_flagged_bars_hold_exactly_the_flagged_scores(scores: list[float], threshold: float) -> None:
    values = np.array(scores)
    axis = report_plots.score_axis([values], threshold)
    bars = report_plots.histogram(values, axis, threshold)
    assert any(bar.flagged for bar in bars) == bool((values >= threshold).any())
    assert any(not bar.flagged for bar in bars) == bool((values < threshold).any())
    assert all(bar.at >= 0 and bar.at + bar.width <= 100.02 for bar in bars)


@given(st.floats(0, 0.99), st.floats(0.001, 1))
def test_an_axis_holds_its_range_with_few_ticks(low: float, span: float) -> None:
    axis = report_plots.linear_axis(low, low + span)
    assert axis.start <= low + 1e-9 and low + span <= axis.stop + 1e-6
    assert 2 <= len(axis.ticks) <= 13
    assert axis.place(axis.start) == 0 and axis.place(axis.stop) == 100


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (48, 96), (64, 128), (256, 112)])
def test_small_images_grow_by_a_whole_number_and_large_ones_shrink(side: int, shown: int) -> None:
    assert report_plots.css_px(np.zeros((side, side, 1), np.uint8)) == shown


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_has_the_contrast_of_wcag_aa(theme: str) -> None:
    css = (Path(report.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.S)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[0]))
    if theme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#\w+)", blocks[1]))
    texts = ("ink", "muted", "link", "control", "teacher", "filtered", "student", "real", "yes", "no", "unsure")
    grounds = [(text, "paper") for text in texts]
    grounds += [(text, f"{tone}-tint") for tone in ("yes", "no") for text in ("ink", "link", "yes", "no", "unsure")]
    grounds += [("unsure", "unsure-tint"), ("ink", "tint"), ("muted", "faint"), ("on-alarm", "alarm")]
    for text, ground in grounds:
        assert contrast(colours[text], colours[ground]) >= 4.5, (theme, text, ground)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2, definition of relative luminance)."""
    lights = sorted(_luminance(colour) for colour in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))
