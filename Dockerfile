# A Cairn server in a container, of the Debian packages that `cargo xtask package` makes:
#
#   podman build --file Dockerfile --tag cairn-server target/packages
#   podman run --detach --name cairn --network host --volume cairn:/var/lib/cairn \
#       cairn-server serve --boot-interface eth0
#
# docs/OPERATIONS.md says more. The context is the folder with the packages.
ARG BASE=docker.io/library/debian:12-slim
FROM ${BASE}
COPY cairn-server_*.deb cairn-boot_*.deb /tmp/packages/
# The ports of DHCP and TFTP need one capability, and the user has none: the program brings it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libcap2-bin /tmp/packages/*.deb \
    && setcap cap_net_bind_service=+ep /usr/bin/cairn-server \
    && install --directory --owner=cairn-server --group=cairn-server --mode=0700 /var/lib/cairn \
    && rm -r /tmp/packages /var/lib/apt/lists/*
USER cairn-server
# Also for what is typed by `podman exec`.
ENV CAIRN_DATA_DIR=/var/lib/cairn
VOLUME /var/lib/cairn
ENTRYPOINT ["/usr/bin/cairn-server"]
CMD ["serve"]
