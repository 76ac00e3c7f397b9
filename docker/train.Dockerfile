# docker build --file docker/train.Dockerfile --tag embedrag-train .
# docker run --rm --gpus all --ipc host --volume "$PWD/work:/work" embedrag-train train --train_dataset train.jsonl …
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
# Left empty: PyPI, whose torch has CUDA. https://download.pytorch.org/whl/cpu gives the small one.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/embedrag
ENV PATH=/opt/embedrag/bin:$PATH
WORKDIR /src
COPY requirements.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY embedrag embedrag
RUN pip install .

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 embedrag && install --directory --owner embedrag /work /cache
COPY --from=build /opt/embedrag /opt/embedrag
ENV PATH=/opt/embedrag/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface EMBEDRAG_CACHE=/cache/embedrag
USER 1000
WORKDIR /work
# The command gets the signals itself, so that a stopped container saves its state.
ENTRYPOINT ["embedrag"]
CMD ["--help"]
