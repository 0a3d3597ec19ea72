"""The study: how strict must the filter be, and what does that cost? Makes what it rests on, if that is missing.

python -m jobs.tune jobs/recipes/phantom_tiny.yaml --store runs/tiny --tune.trials 6   # minutes: shrunk, same program
python -m jobs.tune jobs/recipes/phantom.yaml --store runs/demo
python -m jobs.tune jobs/recipes/phantom.yaml --store runs/demo --tune.trials 24       # goes on from the 16 before
"""

from jobs.command import main

if __name__ == "__main__":
    main("tune")
