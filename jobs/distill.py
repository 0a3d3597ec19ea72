"""The step `distill` alone, on artifacts that earlier steps left in the store.

python -m jobs.distill jobs/recipes/phantom.yaml --store runs/demo
"""

from jobs.command import main

if __name__ == "__main__":
    main("distill")
