# Tapeline's image with Prefect in an environment of its own beside it: Prefect's packages do not fit beside Tapeline's.
ARG TAPELINE=tapeline:0.1.0

FROM ${TAPELINE} AS build
ARG UV=0.13.9
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy
# hadolint ignore=DL3002
USER 0:0
COPY integrations/prefect/requirements.txt /tmp/
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,target=/root/.cache \
    python3 -m venv /tmp/tools && \
    /tmp/tools/bin/pip install --no-cache-dir --quiet --disable-pip-version-check "uv==${UV}" && \
    python3 -m venv --without-pip /opt/prefect && \
    /tmp/tools/bin/uv pip sync --quiet --cache-dir /root/.cache/uv --require-hashes --python /opt/prefect/bin/python /tmp/requirements.txt

FROM ${TAPELINE}
USER 0:0
RUN install --directory --owner tapeline --group tapeline --mode 0700 /var/lib/prefect
COPY --from=build /opt/prefect /opt/prefect
COPY integrations/prefect/tapeline_prefect /opt/integrations/tapeline_prefect
ENV PYTHONPATH=/opt/integrations DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["/opt/prefect/bin/python", "-m", "tapeline_prefect"]
