#!/usr/bin/env bash
# System packages that pip cannot bring: C++ for Verilator, Icarus, and what Debian splits off Python.
# As root it installs the missing ones through apt; otherwise it says which are missing and stops.
#   usage: tools/system_packages.sh PYTHON      (PYTHON may be empty: none new enough was found)
set -euo pipefail
python=${1:-}

if [ -z "$python" ] && command -v python3 >/dev/null; then
    echo "expertile needs Python 3.11 or newer; $(python3 --version) was found. Install one, or say: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi

missing=()
need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }  # package, then a command that works if it is there
need g++ command -v g++
need make command -v make
need perl perl -MPod::Usage -e 1             # the verilator and cocotb build scripts
need iverilog command -v iverilog
if [ -z "$python" ]; then
    missing+=(python3 python3-venv libpython3-dev)
else
    need python3-venv "$python" -c 'import ensurepip, venv'
    # cocotb embeds Python in the simulator, so it needs the shared library that Debian packs apart.
    version=$("$python" -c 'import sysconfig; print(sysconfig.get_python_version())')
    need "libpython$version" "$python" - <<'PY'
import ctypes.util, pathlib, sys, sysconfig
get = sysconfig.get_config_var
folders = [get("LIBDIR"), f"{get('LIBDIR')}/{get('MULTIARCH')}", f"{sys.base_prefix}/lib"]
found = any(list(pathlib.Path(f).glob(f"libpython{get('LDVERSION')}.so*")) for f in folders if f)
sys.exit(not (found or ctypes.util.find_library(f"python{get('LDVERSION')}")))
PY
fi

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing system packages; install them and run make again: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "installing system packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || true  # an old list may still do
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
