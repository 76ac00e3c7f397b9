# docker build --file docker/serve.Dockerfile --tag embedrag-serve .
# docker run --rm --publish 8000:8000 --env EMBEDRAG_API_KEY --volume "$PWD/outputs/merged:/model:ro" embedrag-serve
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
# The CPU build of torch, a tenth of the other's size; --build-arg TORCH_INDEX= (empty) takes PyPI's with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/embedrag
ENV PATH=/opt/embedrag/bin:$PATH
WORKDIR /src
COPY requirements.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY embedrag embedrag
# The version of a folder is its own.
# hadolint ignore=DL3013
RUN pip install ".[serve]" "onnxruntime>=1.20"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 embedrag
COPY --from=build /opt/embedrag /opt/embedrag
ENV PATH=/opt/embedrag/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 1000
WORKDIR /home/embedrag
EXPOSE 8000
# A large model takes minutes to load: failures count after five.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["embedrag", "serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
