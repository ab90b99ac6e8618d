# iconet-sr in a container: `make docker` builds it, docs/install.md says how to run it. The build needs a package index,
# the container needs no network.
#
#   docker build --tag iconet-sr .
#   docker run --rm --network none --volume "$PWD:/data" iconet-sr IN OUT
#
# For another build of PyTorch (CUDA, or the small one for the CPU) name its version and its package index:
#
#   docker build --build-arg TORCH=... --build-arg PIP_EXTRA_INDEX_URL=... --tag iconet-sr .

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY docs/data_license.txt docs/
COPY bundle bundle
COPY configs configs
COPY models models
ARG PIP_EXTRA_INDEX_URL=
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM ${BASE}
# the compiler stays: another processor than that of the build has its kernels compiled at the first run
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL=
ARG TORCH=torch==2.13.0
RUN pip install --no-cache-dir "${TORCH}"
COPY constraints.txt /opt/iconet/
COPY --from=build /wheels /opt/iconet/wheels
RUN wheel="$(echo /opt/iconet/wheels/*.whl)" \
    && pip install --no-cache-dir --constraint /opt/iconet/constraints.txt "${wheel}[dicom]"
# the container runs as any user (--user): compiled kernels are kept for all, other caches go to /tmp
ENV ICONET_CACHE_DIR=/opt/iconet/cache HOME=/tmp PYTHONDONTWRITEBYTECODE=1
RUN mkdir --mode=1777 /opt/iconet/cache \
    && python -c "from bundle.ops import backend_report; print(backend_report()['native'])" \
    && chmod --recursive a+rX /opt/iconet/cache
RUN useradd --uid 1000 --no-create-home iconet
USER iconet
WORKDIR /data
ENTRYPOINT ["iconet-sr"]
CMD ["--help"]
