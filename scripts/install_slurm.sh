#!/usr/bin/env bash
# Slurm, its accounting and Chromium for the tests, from Debian's own packages; says what it could not do.
set -u
packages="slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core chromium"
missing=()
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "tests: ${missing[*]} not installed and this is not root on Debian or Ubuntu: tests that need them are skipped"
  exit 0
fi
echo "tests: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null \
  || echo "tests: apt-get failed: tests that need ${missing[*]} are skipped"
