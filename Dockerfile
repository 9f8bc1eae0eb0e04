# sgqlm for one kind of machine: docker build --target cpu --tag sgqlm:cpu .   (or cuda, tpu)
# Weights and data are not part of an image; mount them, and run as the owner of what is mounted:
#   docker run --rm --gpus all --user "$(id -u)" --volume "$PWD/runs:/opt/sgqlm/runs" sgqlm:cuda \
#     launch/gpu_node.sh --workdir runs/mine -- --config=configs/base.py:tiny
FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 sgqlm && install --directory --owner=sgqlm /opt/sgqlm
WORKDIR /opt/sgqlm
# what the packages depend on comes first, so that a change of the code does not install them again
COPY setup.py pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY sgqlm/__init__.py sgqlm/__init__.py
RUN pip install --constraint constraints/cpu.txt setuptools wheel

FROM base AS cpu
RUN pip install --constraint constraints/cpu.txt --no-build-isolation --editable .
COPY --chown=sgqlm . .
USER sgqlm
CMD ["sgqlm", "--help"]

FROM base AS cuda
RUN pip install --constraint constraints/cuda.txt --no-build-isolation --editable ".[cuda]"
COPY --chown=sgqlm . .
USER sgqlm
CMD ["sgqlm", "--help"]

FROM base AS tpu
RUN pip install --constraint constraints/tpu.txt --no-build-isolation --editable ".[tpu]"
COPY --chown=sgqlm . .
USER sgqlm
CMD ["sgqlm", "--help"]
