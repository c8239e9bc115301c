#!/usr/bin/env bash
# Makes .venv and installs this checkout into it, every package at the version that constraints.txt pins.
#   usage: tools/make_venv.sh PYTHON
set -euo pipefail
python=${1:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "expertile needs Python 3.11 or newer; $python is $("$python" --version 2>&1)" >&2; exit 1; }
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv

pip() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"; }
echo "installing pinned Python packages into .venv (a minute or two the first time)"
pip setuptools                              # pinned too, hence no build isolation below
pip --no-build-isolation --editable '.[test]'
