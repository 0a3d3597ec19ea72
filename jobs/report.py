"""The step `report` alone, on artifacts that earlier steps left in the store.

python -m jobs.report jobs/recipes/phantom.yaml --store runs/demo
"""

from jobs.command import main

if __name__ == "__main__":
    main("report")
