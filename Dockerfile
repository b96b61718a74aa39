# The three programs in one image: `qctl-server` unless another is named.
FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
ENV SQLX_OFFLINE=true
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist --package qctl-cli --package qctl-server --package qctl-worker \
    && install -D --target-directory=/programs target/dist/qctl target/dist/qctl-server target/dist/qctl-worker

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /programs/ /usr/local/bin/
ENV QCTL_HOME=/var/lib/qctl
VOLUME /var/lib/qctl
# Jobs leave orphans behind, which the first process of a container has to reap.
ENTRYPOINT ["tini", "--"]
CMD ["qctl-server"]
