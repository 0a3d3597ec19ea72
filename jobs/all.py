"""The whole method: a cohort to a releasable package and a report.

python -m jobs.all jobs/recipes/phantom_tiny.yaml --store runs/tiny      # a minute or two: shrunk, same program
python -m jobs.all jobs/recipes/phantom.yaml --store runs/demo           # the demo
python -m jobs.all jobs/recipes/phantom.yaml --store runs/demo --dry-run # what would be reused, what would run
"""

from jobs.command import main

if __name__ == "__main__":
    main(None)
