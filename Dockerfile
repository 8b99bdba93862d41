# The server in a container: see compose.yaml. Without it:
#   docker build -t mrflow . && docker run --rm -p 127.0.0.1:8000:8000 -e MRFLOW_API_KEYS=KEY mrflow
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/models MRFLOW_CACHE=/models/mrflow NO_COLOR=1

WORKDIR /mrflow
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m pip install ".[server,mcp,lora]" \
    && rm -rf src \
    && useradd --create-home --uid 10001 mrflow \
    && mkdir /models \
    && chown mrflow /models

USER mrflow
WORKDIR /home/mrflow
VOLUME /models
EXPOSE 8000
# a model is loaded first, which may have to be fetched
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["mrflow"]
CMD ["serve", "--host", "0.0.0.0"]
