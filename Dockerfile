# syntax=docker/dockerfile:1
# One image for every part: `weir run`, `weir proxy`, `weir flush` and the tools.

# --- build: the compiler stays here ---
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/weir
# Dependencies first: they change seldom, and their layer is kept while the product changes.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && /opt/weir/bin/pip install --no-cache-dir --disable-pip-version-check --requirement requirements.txt
COPY setup.py README.md LICENSE ./
COPY proxy proxy
RUN /opt/weir/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

# --- run: no compiler, no sources, no root ---
FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 weir \
 && useradd --system --uid 10001 --gid weir --home-dir /var/lib/weir --shell /usr/sbin/nologin weir \
 && install --directory --owner weir --group weir --mode 0700 /var/lib/weir
COPY --from=build /opt/weir /opt/weir
COPY config /etc/weir
COPY deploy/container/weir.yaml /etc/weir/weir.yaml
ENV PATH=/opt/weir/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
# Journal, limits and the default database: a local volume. Everything else can be read-only.
VOLUME ["/var/lib/weir"]
EXPOSE 8080 9091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["weir", "health", "--config", "/etc/weir"]
ENTRYPOINT ["weir"]
CMD ["run", "--config", "/etc/weir"]
