# One image per service: --target producer, processor or projector. An image contains
# one static binary, certificate authorities and time zones. It has no shell, and nothing
# runs as root.

FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src
# Use the toolchain of this image and fail if it does not fit, instead of downloading one.
ENV CGO_ENABLED=0 GOTOOLCHAIN=local

# Modules change rarely, so their layer survives most changes of the source.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download

COPY . .
ARG VERSION=devel
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false -pgo=cmd/processor/processor.pgo \
      -ldflags "-s -w -X millrace/pipeline/cli.version=$VERSION" \
      -o /out/ ./cmd/producer ./cmd/processor ./cmd/projector \
 && mkdir /out/data

FROM scratch AS base
ARG VERSION=devel
LABEL org.opencontainers.image.title="Millrace" \
      org.opencontainers.image.description="An event-driven backbone on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /usr/local/go/lib/time/zoneinfo.zip /usr/share/zoneinfo.zip
ENV ZONEINFO=/usr/share/zoneinfo.zip
# A number, because Kubernetes cannot check whether a name is root.
USER 65532:65532

# The images open only the port for probes and metrics. --listen stays on the loopback
# interface until MILLRACE_LISTEN is set, together with MILLRACE_AUTH_FILE.
FROM base AS producer
COPY --from=build /out/producer /producer
ENV MILLRACE_PROBE_LISTEN=0.0.0.0:9113
EXPOSE 9113
ENTRYPOINT ["/producer"]
CMD ["--help"]

FROM base AS processor
COPY --from=build /out/processor /processor
ENV MILLRACE_PROBE_LISTEN=0.0.0.0:9111
EXPOSE 9111
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/processor", "healthcheck"]
ENTRYPOINT ["/processor"]
CMD ["run"]

FROM base AS projector
COPY --from=build /out/projector /projector
# A new volume gets the owner of the directory that it is mounted over.
COPY --from=build --chown=65532:65532 /out/data /data
ENV MILLRACE_PROBE_LISTEN=0.0.0.0:9112 MILLRACE_DATA_DIR=/data
VOLUME /data
EXPOSE 9112
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/projector", "healthcheck"]
ENTRYPOINT ["/projector"]
CMD ["run"]
