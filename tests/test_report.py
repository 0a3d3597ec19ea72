"""What the report says, and what it must never say."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from pipeline import config, report, report_plots
from pipeline.cohorts import phantom
from pipeline.estimate import Estimate
from pipeline.privacy.gate import FAIL, PASS, UNSURE, Verdict
from pipeline.privacy.risk import difference, wilson

THRESHOLD = 0.93


def example(*, custodian: bool = True, n: int = 1500, cleared: bool = True) -> report.Report:
    """A report with the prototype's numbers, on `n` control and student images."""
    rng = np.random.default_rng(0)
    films = phantom.draw(phantom.listing(config.Phantom(n_patients=40), 0)["source"].to_pylist()[:48], 48)
    synthetic = gaussian_filter(films, (0, 0.9, 0.9, 0))
    dropped_all = [
        Verdict("student over control", PASS, "0.7% [-0.7%, 2.1%], n 1,500", "at most 5.0%", "as strangers are"),
        Verdict("recall on perturbed copies", PASS, "98.2% [96.4%, 99.1%], n 400", "at least 95.0%", "are caught"),
    ]
    blocked = [
        Verdict("coverage", FAIL, "21.0% [18.6%, 23.6%], n 1,000", "at least 30.0%", "a collapsed student only looks private"),
        Verdict("control size", UNSURE, "180 images", "at least 1,000 images", "thresholds rest on it"),
    ]
    return report.Report(
        name="phantom",
        seed=0,
        date="2026-11-21 08:04",
        recipe="name: phantom\nseed: 0\nfilter:\n  rule: percentile\n  percentile:\n    p: 80\n",
        cleared=cleared,
        verdicts=dropped_all if cleared else dropped_all + blocked,
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
        kept_by_class={name: (round(3500 * f), round(3500 * f * 0.4)) for name, f in zip(phantom.FINDINGS, (0.3, 0.28, 0.2, 0.12, 0.17, 0.1), strict=True)},
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
    rows = [report.LedgerRow(f"p{i:03d}", 1 + i % 40, f"s{7 * i:05d}", float(s)) for i, s in enumerate(THRESHOLD * rng.beta(2, 1, 260))]
    return report.Private(
        grids={"Training images": films[:16]},
        pairs={"Teacher’s highest scores": pairs, "Student over its nearest training image": pairs[6:]},
        ledger=rows,
    )


def _metrics(n: int) -> dict[str, Estimate]:
    ratios = {
        "control": (0.058, 0.042, n), "baseline": (0.05, 0.05, 3500), "teacher": (0.446, 0.443, 3500),
        "filtered": (0.0, 0.026, 1410), "student": (0.044, 0.043, n), "student_private_prompts": (0.058, 0.051, n),
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
    found["privacy/student/reid_ratio_images_30+"] = wilson(5, 40)
    for network, auc in (("filter_network", 0.9998), ("auditor", 0.9991)):
        found[f"privacy/{network}/verification_auc"] = Estimate(auc, auc - 0.0004, auc + 0.0002, 2000)
        found[f"privacy/{network}/recall"] = wilson(985, 1000)
        found[f"privacy/{network}/perturbed_recall"] = wilson(393, 400)
    found["privacy/filter_network/near_duplicate_recall"] = wilson(378, 400)
    for arm, macro in (("real", 0.968), ("teacher", 0.934), ("filtered", 0.934), ("student", 0.901), ("student_large", 0.907)):
        found[f"utility/{arm}/macro_auroc"] = Estimate(macro, macro - 0.012, macro + 0.01, 1000)
        found[f"utility/{arm}/micro_auroc"] = Estimate(macro + 0.01, macro - 0.001, macro + 0.02, 1000)
        for i, finding in enumerate(phantom.FINDINGS):
            area = macro + 0.03 - 0.02 * i
            found[f"utility/{arm}/auroc_{finding}"] = Estimate(min(area, 0.999), area - 0.03, min(area + 0.02, 1), 1000)
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
