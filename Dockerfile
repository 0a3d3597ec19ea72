# The image of rayjob.yaml's pods, and of cluster nodes that come without set-up: Ray's own, with the project in it.
#     docker build --push -t registry.example.org/privacy-distillation:2.60.0 .
FROM rayproject/ray:2.60.0-py311-gpu

# torch first and alone, in a layer that only its pin renews. From the ordinary index it is the CUDA build.
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir $(grep '^torch==' /tmp/constraints.txt)

COPY --chown=ray . /tmp/project
RUN pip install --no-cache-dir -c /tmp/constraints.txt /tmp/project && python -m jobs.all --help
