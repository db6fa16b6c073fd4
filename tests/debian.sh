#!/usr/bin/env bash
# Install from Debian what is missing of some programs, when run as root: debian.sh PROGRAM=PACKAGE...
set -euo pipefail

missing=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
((${#missing[@]})) || exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "not here, and not installed for want of root and apt-get: ${missing[*]}" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # the services that come with them are not started
apt-get -qq update
apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
