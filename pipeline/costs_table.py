"""A forecast for the terminal: a table of the tasks that count, and what to know before believing it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from pipeline.config import Recipe
from pipeline.costs import Forecast, Item, duration
from pipeline.nodes import Nodes

SMALL_FRAC = 0.01
"""Tasks that take less than this share of the time of all share a line."""
PILOT = {
    "teach": {"teach.n_images": 6_400},
    "identify": {"identify.filter_network.steps": 50, "identify.auditor.steps": 50},
    "sample": {"sample.n_images": 1_500},
    "distill": {"distill.n_images": 6_400},
    "evaluate": {"evaluate.n_student": 250},
}
"""What makes a step short and leaves its program as it is."""
WITH_PILOT = {"identify": {"identify.below_floor": "warn"}, "sample": {"sample.max_rounds": 1}}
"""What a short step cannot do without: a weak network must not stop it, nor few kept images start another round."""


def table(found: Forecast, recipe: Recipe, nodes: Nodes) -> Table:
    """A line for each task that takes its share of the time, one for each step that nobody measured, and a total."""
    groups = ", ".join(f"{group.count} x {name}" for name, group in nodes.groups.items())
    made = Table(
        title=f"{recipe.name}, seed {recipe.seed}, on {groups}", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    has_gpus = any(group.gpus for group in nodes.groups.values())
    made.add_column("task", no_wrap=True)
    headings = ["work", "on", "per s", "time", *(["GPU-h"] if has_gpus else []), "GB", f"cost {nodes.currency}"]
    for heading in headings:
        made.add_column(heading.strip(), justify="right", no_wrap=True)
    made.add_column("from", overflow="fold")
    digits = 2 if sum(share.price for share in found.shares.values()) >= 1 else 4

    def add(task: str, work: str, on: str, rate: str, time: str, items: Sequence[Item], source: str) -> None:
        paid = [found.shares[item.name] for item in items]
        gpu_hours = f"{sum(share.gpu_hours for share in paid):,.2f}" if time != "?" else "?"
        price = f"{sum(share.price for share in paid):,.{digits}f}" if time != "?" else "?"
        size = _gigabytes(sum(item.bytes for item in items))
        made.add_row(task, work, on, rate, time, *([gpu_hours] if has_gpus else []), size, price, source)

    missing = _missing(found)
    least = SMALL_FRAC * sum(item.seconds for item in missing)
    small = [item for item in missing if item.timing and item.seconds < least]
    for (word, is_known), group in groupby(missing, lambda item: (item.line.task.word, item.timing is not None)):
        items = [item for item in group if item not in small]
        if not is_known:
            main = next((item for item in items if item.name in (word, f"{word}/0")), items[0])
            name = f"{word}, {len(items)} tasks" if len(items) > 1 else main.name
            add(name, _work(main), _on(main), "?", "?", items, "not measured")
        for item in items if is_known else []:
            rate = item.work.n / item.seconds
            add(item.name, _work(item), _on(item), _short(rate), duration(item.seconds), [item], _source(item))
    if small:
        taken = duration(sum(item.seconds for item in small))
        add(f"{len(small)} more", f"under {SMALL_FRAC:.0%} each", "", "", taken, small, "")
    if len(found.items) > len(missing):
        made.add_row(f"{len(found.items) - len(missing)} finished", "reused")
    made.add_section()
    add("all", "start to end", "", "", _wall(found), missing, "")
    return made


def remarks(found: Forecast, recipe: Recipe, nodes: Nodes, command: str) -> list[str]:
    """What the table does not say: how it adds up, what it rests on, what may come on top, what to do."""
    missing = _missing(found)
    if not missing:
        return ["All is finished: this run takes nothing."]
    return [
        *_trust(found, missing, recipe),
        *_on_top(found, missing, recipe, nodes),
        *_better(found, missing, nodes),
        *_pilot(missing, recipe, command),
    ]


def _trust(found: Forecast, missing: Sequence[Item], recipe: Recipe) -> Iterator[str]:
    known = [item for item in missing if item.timing]
    taken = sum(item.seconds for item in known)
    if not taken:
        return
    yield (
        f"Tasks of {duration(taken)}, up to {recipe.cluster.parallel_tasks} side by side, make "
        f"{duration(found.wall_s[0])}; bringing up nodes and Ray comes on top. The nodes are taken to be like those "
        "that the throughputs were measured on, and more of them to be as many times faster."
    )
    if found.wall_s[2] > 1.01 * found.wall_s[1]:
        low, high = (duration(seconds) for seconds in found.wall_s[1:])
        once = sum(item.timing.low == item.timing.high for item in known if item.timing)
        yield (
            f"By the fastest measurement of each program it is {low}, by the slowest {high}; {once} of {len(known)} "
            "tasks have one only, so how much they vary is not known."
        )
    far = max(known, key=lambda item: item.timing.growth if item.timing else 0)
    if far.timing and far.timing.growth > 1.1:
        yield f"Farthest from what was measured: {far.name}, {_times(far.timing.growth)} times the work."
    rough = sum(item.seconds for item in known if item.timing and item.timing.is_rough)
    if rough > SMALL_FRAC * taken:
        yield (
            f"{rough / taken:.0%} of the time (`at most`) stretches tasks of under a minute that do not say how much "
            "of it was starting, so all is counted as work. A pilot of some minutes gives a truer figure."
        )
    if any(item.timing and item.timing.measured.place is None for item in known):
        yield "Some measurements do not say how many workers made them: as many as this recipe has are assumed."


def _on_top(found: Forecast, missing: Sequence[Item], recipe: Recipe, nodes: Nodes) -> Iterator[str]:
    by_name = {item.name: item for item in found.items}
    n_rounds = sum(item.name.startswith("sample/") for item in found.items)
    further = recipe.sample.max_rounds - n_rounds
    if by_name["filter"] in missing:
        sampled, kept = recipe.sample.n_images * n_rounds, by_name["filter"].work.n
        if kept == sampled:
            yield f"Kept images are taken to be all {sampled:,}, as this rule was never used on this store: at most."
        else:
            yield f"Kept images are taken to be {kept:,.0f} of {sampled:,}, as by the last run with this rule."
    if further > 0 and by_name["sample/0"].timing and by_name["score/0"].timing:
        each = by_name["sample/0"].seconds + by_name["score/0"].seconds
        yield (
            f"Should fewer than {recipe.sample.want_images:,} be kept, further rounds of samples follow (at most "
            f"{further}), {duration(each)} each."
        )
    if space := max(item.checkpoint_bytes for item in missing):
        yield f"While a generator trains, its checkpoints take {_gigabytes(space)} GB more."
    if nodes.price_per_gb_month is not None:
        price = nodes.price_per_gb_month * sum(item.bytes for item in missing) / 1e9
        yield f"Storage of what is new: {price:,.4g} {nodes.currency} a month.".replace("  ", " ")


def _better(found: Forecast, missing: Sequence[Item], nodes: Nodes) -> Iterator[str]:
    """Where money is lost: GPUs that idle, GPUs that are asked for twice, spot nodes under what cannot resume."""
    dearest = max(missing, key=lambda item: found.shares[item.name].price)
    n_gpus, taken = sum(group.count * group.gpus for group in dearest.groups.values()), dearest.place.all_gpus
    if taken < n_gpus / 2:
        yield f"{dearest.name} pays for {n_gpus} GPUs and takes {taken:g}: more workers or fewer nodes cost less."
    in_all = sum(group.count * group.gpus for group in nodes.groups.values())
    for start, _ in found.spans.values():
        beside = [item for item in missing if item.place.gpus and found.spans[item.name].covers(start, start)]
        wanted = sum(item.place.all_gpus for item in beside if found.spans[item.name].end > start)
        if wanted > in_all:
            names = " and ".join(item.name for item in beside)
            yield f"{names} want {wanted:g} GPUs at once of {in_all}: one will wait, which is not counted here."
            break
    lost = [item for item in missing if item.timing and item.on_spot and not item.line.task.resumable]
    if lost:
        longest = max(lost, key=lambda item: item.seconds)
        yield (
            "If a spot node goes, generators, sampling and scoring go on from their last checkpoint or block. Other "
            f"tasks start over; the longest on spot nodes is {longest.name}, {duration(longest.seconds)}."
        )


def _pilot(missing: Sequence[Item], recipe: Recipe, command: str) -> Iterator[str]:
    unknown = [item for item in missing if item.timing is None]
    if not unknown:
        return
    overrides: dict[str, object] = {}
    for word in dict.fromkeys(item.line.task.word for item in unknown):
        shorter = {key: value for key, value in PILOT.get(word, {}).items() if _of(recipe, key) > value}
        overrides |= shorter | (WITH_PILOT.get(word, {}) if shorter else {})
    options = [f"--{key.replace('_', '-')} {value}" for key, value in overrides.items()]
    advice = (
        "Run a pilot first, on one node of the kind that this is for, with as many workers and actors as it holds"
    )
    if not options:
        advice = "The run itself is no longer than a pilot"
    yield (
        f"{len(unknown)} tasks are not measured, so all sums are `at least`. {advice}; what is finished is reused:\n"
        f"  {' '.join([command, *options])}"
    )


def _of(recipe: Recipe, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), recipe)


def _missing(found: Forecast) -> list[Item]:
    return [item for item in found.items if item.missing]


def _work(item: Item) -> str:
    return f"{_short(item.work.n)} {item.work.unit}"


def _on(item: Item) -> str:
    return f"{item.place.units:g} {'GPU' if item.place.gpus else 'CPU'}"


def _short(number: float) -> str:
    """To three digits or more: 2.96 M, 108,800, 0.53."""
    if number >= 1e6:
        return f"{number / 1e6:,.0f} M" if number >= 1e8 else f"{number / 1e6:.3g} M"
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _source(item: Item) -> str:
    assert item.timing is not None
    one, growth = item.timing.measured, item.timing.growth
    task = "" if one.task == item.name else f"{one.task} "
    taken = "" if one.is_given else f" ({duration(one.seconds)})"
    times = "" if 0.95 < growth < 1.05 else f" x {_times(growth)}"
    return f"{task}{one.source}{taken}{times}{', at most' if item.timing.is_rough else ''}"


def _times(growth: float) -> str:
    return f"{growth:,.0f}" if growth >= 10 else f"{growth:.2g}"


def _wall(found: Forecast) -> str:
    known = [item.timing is not None for item in _missing(found)]
    if known and not any(known):
        return "?"
    return ("" if all(known) else ">= ") + duration(found.wall_s[0])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e10 else f"{size / 1e9:.3f}"
