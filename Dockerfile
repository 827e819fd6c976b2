# docker build -t mergefront .
# docker build -t mergefront-cuda --build-arg BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime .
# docker run --rm -v "$PWD:/work" mergefront run study.yaml        (with a GPU: --gpus all)
# Not built where it was written: there was no Docker daemon there.
ARG BASE=python:3.11-slim
FROM ${BASE}
# The task-vector kernel is built at installation.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=local,plots,dashboard,postgres,serve
WORKDIR /opt/mergefront
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mergefront mergefront
COPY optimizer optimizer
COPY adapters adapters
COPY storage storage
RUN python -m pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"
# Models and studies belong to whoever runs the container: docker run --user "$(id -u):$(id -g)".
RUN useradd --create-home merger
USER merger
ENV HF_HOME=/work/.cache/huggingface
WORKDIR /work
ENTRYPOINT ["mergefront"]
CMD ["--help"]
