# The example page in Next.js (examples/nextjs), built as its README says.
ARG NODE=node:20.19.5-bookworm-slim

FROM ${NODE} AS build
ENV NEXT_TELEMETRY_DISABLED=1 NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
WORKDIR /build/clients/typescript
COPY clients/typescript ./
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt --mount=type=cache,target=/root/.npm \
    npm ci --silent && npm run build --silent
WORKDIR /build/examples/nextjs
COPY examples/nextjs ./
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt --mount=type=cache,target=/root/.npm \
    npm ci --silent && npm run build --silent

FROM ${NODE}
LABEL org.opencontainers.image.title="Tapeline in Next.js" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /build/examples/nextjs/.next/standalone /opt/page
WORKDIR /opt/page
ENV NODE_ENV=production NEXT_TELEMETRY_DISABLED=1 HOSTNAME=0.0.0.0 PORT=3000
USER 10001:10001
EXPOSE 3000
CMD ["node", "server.js"]
