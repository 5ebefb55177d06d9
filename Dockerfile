# The command capsdesc: see docs/install.md. PyTorch's CPU builds are at a place of their own, which pip finds in
# PIP_EXTRA_INDEX_URL; without it, PyTorch comes with the libraries of NVIDIA's GPUs.
FROM python:3.12-slim

WORKDIR /src
COPY constraints.txt pyproject.toml setup.cfg MANIFEST.in README.md CHANGELOG.md LICENSE ./
COPY capsdesc capsdesc
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt '.[colmap,hloc,poselib,viz]'

RUN useradd --create-home caps
USER caps
WORKDIR /data
ENTRYPOINT ["capsdesc"]
CMD ["--help"]
