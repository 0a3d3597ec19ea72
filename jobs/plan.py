"""What a run will take, before it is submitted: work, hours, GPU-hours, storage and cost, from what was measured.

python -m jobs.plan jobs/recipes/phantom.yaml --store runs/demo --nodes '{groups: {pc: {cpus: 2, price_per_hour: 0}}}'
python -m jobs.plan my.yaml --store s3://bucket/mine --nodes jobs/nodes.yaml              # your groups and prices
python -m jobs.plan my.yaml --store s3://bucket/mine --nodes jobs/nodes.yaml --teach.n-images 1000000
python -m jobs.plan my.yaml --store s3://bucket/mine --nodes jobs/nodes.yaml --measured speeds.yaml
"""

import shlex
import sys

from jobs.command import fail, options, taken
from pipeline import nodes
from pipeline.config import ConfigError


def main() -> int:
    """Print the forecast; 0, or 2 for a mistake."""
    arguments = sys.argv[1:]
    try:
        chosen = options(arguments, "jobs.plan", ("--nodes", "--measured"))
        wanted = nodes.nodes(chosen.more.get("--nodes", ""))
        given = nodes.throughputs(chosen.more["--measured"]) if "--measured" in chosen.more else {}
    except ConfigError as error:
        fail(str(error))
    from jobs.run import forecast

    for name in ("--nodes", "--measured"):
        _, arguments = taken(name, arguments)
    return forecast(chosen.recipe, chosen.store, wanted, given, shlex.join(["python", "-m", "jobs.all", *arguments]))


if __name__ == "__main__":
    raise SystemExit(main())
