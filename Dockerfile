# The image of every node of a cluster: `docker build -t REGISTRY/nightmill:0.1.0 .`, or with
# `--build-arg DEVICE=cpu` for a cluster without GPUs.
FROM python:3.11.9-slim-bookworm

# rsync: Ray copies files through it. gcc: Triton compiles its kernels when an engine starts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ openssh-client procps rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

ARG DEVICE=gpu
WORKDIR /opt/nightmill
COPY requirements/${DEVICE}.txt requirements/
# Torch first and with what it depends on; all else is pinned whole.
RUN pip install --no-cache-dir "$(grep '^torch==' requirements/${DEVICE}.txt)" \
    && pip install --no-cache-dir --no-deps -r requirements/${DEVICE}.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# No model hub is asked for anything unless the run pins it.
ENV PYTHONUNBUFFERED=1
USER ray
WORKDIR /home/ray
