# The image of Aura Serve, for one machine (compose.yaml) and for KubeRay. See docs/docker.md.
#   docker build -t aura-serve .                             PyTorch for the CPU
#   docker build -t aura-serve --build-arg TORCH=cu130 .     PyTorch for CUDA 13.0
# It uses nothing that only BuildKit has: podman, buildah and kaniko build it too.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS torch
# cpu, or a CUDA version that PyTorch publishes wheels for. They bring CUDA's libraries along, so the
# image needs no CUDA base: the driver comes from the host.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
WORKDIR /build
COPY constraints.txt ./
RUN python3 -m venv /opt/aura \
 && /opt/aura/bin/pip install --no-cache-dir --constraint constraints.txt \
      --extra-index-url "${TORCH_INDEX}" torch

FROM torch AS dependencies
COPY pyproject.toml ./
RUN /opt/aura/bin/python -c 'import tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
print(*project["dependencies"], *extras["mcp"], *extras["postgres"], sep="\n")' \
      > requirements.txt \
 && /opt/aura/bin/pip install --no-cache-dir --constraint constraints.txt \
      --prefix /dependencies --requirement requirements.txt

FROM torch AS package
COPY pyproject.toml README.md LICENSE ./
COPY serve_app serve_app
RUN /opt/aura/bin/pip install --no-cache-dir --no-deps --prefix /package .

FROM ${PYTHON_IMAGE}
# tini reaps the processes that Ray leaves to process 1; KubeRay's probes call wget.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && useradd --uid 1000 --create-home aura \
 && install --directory --owner aura /var/lib/aura
# Three layers, from the largest and most stable to the smallest: a new version pulls the last alone.
COPY --from=torch /opt/aura /opt/aura
COPY --from=dependencies /dependencies /opt/aura
COPY --from=package /package /opt/aura
COPY serve_config.yaml /home/aura/
COPY configs /home/aura/configs
ENV PATH=/opt/aura/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AURA_OWN_ENVIRONMENT=1 \
    HOST=0.0.0.0 \
    LEDGER_FILE=/var/lib/aura/ledger.sqlite \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/aura
EXPOSE 4000
# /livez says that the process answers; /health is 503 while the models load. The health check calls
# loopback where HOST is every address, and otherwise the address of HOST.
HEALTHCHECK --start-period=5m --interval=15s --timeout=5s \
  CMD ["sh", "-c", "host=${AURA_HOST:-$HOST}; case $host in \
      ''|0.0.0.0) host=127.0.0.1 ;; \
      ::|'[::]') host='[::1]' ;; \
      '['*) ;; \
      *:*) host=\"[$host]\" ;; \
    esac; port=${AURA_BACKEND_PORT:-${BACKEND_PORT:-4000}}; \
    wget -q -T 4 -t 1 -O /dev/null \"http://$host:$port/livez\""]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["aura", "up"]
