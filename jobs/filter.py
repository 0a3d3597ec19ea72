"""The step `filter` alone, on artifacts that earlier steps left in the store.

python -m jobs.filter jobs/recipes/phantom.yaml --store runs/demo
"""

from jobs.command import main

if __name__ == "__main__":
    main("filter")
