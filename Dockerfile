# Two images: `docker build --target operator .` and `docker build --target pipeline .`
#
# BUILD_IMAGE compiles, BASE_IMAGE is what runs: glibc, libgcc, CA certificates, no shell. Where the binaries exist
# already (the local platform), BUILD_IMAGE is an image whose cargo has nothing to do and the context holds target/release.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
# librdkafka is compiled from source.
RUN apt-get update && apt-get install -y --no-install-recommends cmake
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p penstock-operator -p penstock-capture -p penstock-consumer -p penstock-transformation -p penstock-export

FROM ${BASE_IMAGE} AS operator
COPY --from=build /src/target/release/penstock-operator /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/penstock-operator"]

FROM ${BASE_IMAGE} AS pipeline
COPY --from=build /src/target/release/capture /src/target/release/consumer /src/target/release/transformation /src/target/release/export /usr/local/bin/
USER 65532:65532
