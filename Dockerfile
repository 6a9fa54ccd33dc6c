# distrl on the CPU, installed and run as on any machine: `make setup`, then `make train`.
#
#   docker build -t distrl .
#   docker run --rm --init --shm-size=2g -v distrl-runs:/distrl/runs distrl
#   docker run --rm --init --shm-size=2g -v distrl-runs:/distrl/runs distrl distrl train --env Acrobot-v1 --workers 2
#
# --shm-size: Ray's object store lies in /dev/shm, of which a container has 64 MiB by default. --init reaps Ray's processes.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home distrl \
    && install --directory --owner distrl /distrl /distrl/runs

USER distrl
WORKDIR /distrl
ENV PATH=/distrl/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0

# For torch without CUDA, a tenth of the size: --build-arg PIP_EXTRA_INDEX_URL= PyTorch's index of CPU builds
ARG PIP_EXTRA_INDEX_URL=
COPY --chown=distrl . .
RUN make setup

CMD ["make", "train"]
