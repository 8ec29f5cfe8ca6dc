# Offramp's server with the embedded model.
#
#   docker build -t offramp .                                    CPU
#   docker build -t offramp --build-arg TORCH_VARIANT=cu130 .    CUDA 13.0 (run it with --gpus all)
#   docker run --rm -p 8000:8000 offramp
#
# Every option is an environment variable too: docker run -e OFFRAMP_LOG_LEVEL=debug ...
# Another bundle: docker run -v "$PWD/runs/mine:/bundle:ro" offramp serve --host 0.0.0.0 --model /bundle
#
# Without a network: run `make wheels` first, with the Python version of BASE, and the build takes every package
# from wheels/ instead. HEALTHCHECK is a Docker extension of the image format: buildah and podman keep it with
# `--format docker`.

ARG BASE=python:3.12-slim

FROM ${BASE} AS build
# PyTorch's own index holds one build of each version for CPU (cpu) and for each CUDA release (cu126, cu130, ...).
# They carry their CUDA libraries with them, so BASE needs none. Only a mirror needs to set TORCH_INDEX itself.
ARG TORCH_VARIANT=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH_VARIANT}
WORKDIR /src
RUN python -m venv --without-pip /opt/offramp

# Dependencies come before the code, so that a change of code does not fetch them again.
COPY pyproject.toml constraints.txt wheel[s] ./wheels/
RUN python -c "import tomllib; print(*tomllib.load(open('wheels/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && if ls wheels/*.whl >/dev/null 2>&1; then from="--no-index --find-links wheels"; \
       else from="--extra-index-url ${TORCH_INDEX}"; fi \
    && python -m pip --python /opt/offramp/bin/python install --no-cache-dir $from \
        -c wheels/constraints.txt -r requirements.txt setuptools

COPY . .
RUN python -m pip --python /opt/offramp/bin/python install --no-cache-dir --no-index --no-deps --no-build-isolation . \
    # torch's headers and test programs serve only those who compile against it.
    && cd /opt/offramp/lib/python3*/site-packages/torch \
    && rm -rf include share test \
    && find bin -type f ! -name torch_shm_manager -delete

FROM ${BASE}
LABEL org.opencontainers.image.title="offramp" \
      org.opencontainers.image.description="Early-exit image classification over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 offramp \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin offramp
COPY --from=build /opt/offramp /opt/offramp
ENV PATH=/opt/offramp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('OFFRAMP_PORT', '8000')), timeout=3); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["offramp"]
CMD ["serve", "--host", "0.0.0.0"]
