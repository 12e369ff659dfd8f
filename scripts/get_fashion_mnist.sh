#!/bin/sh
# get_fashion_mnist.sh DIR: puts Debian's Fashion-MNIST into DIR/usr/share/datasets/fashion-mnist, or says why not.
#
# As root the package is installed instead, into /usr/share/datasets, where perdure looks too. Set PERDURE_NO_ROOT=1 to
# unpack into DIR even as root. Always exits with 0: without these files the demo takes other data.
set -u

package=dataset-fashion-mnist
folder=usr/share/datasets/fashion-mnist

say() { echo "fashion-mnist: $1; the demo will try torchvision's download, then digits."; }

complete() { # ROOT: all four files are there
    for part in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
        [ -s "${1%/}/$folder/$part-ubyte.gz" ] || return 1
    done
}

quietly() { # SECONDS COMMAND...: no output, and no longer than that
    seconds=$1
    shift
    if command -v timeout >/dev/null 2>&1; then
        timeout --foreground "$seconds" "$@" >/dev/null 2>&1 </dev/null
    else
        "$@" >/dev/null 2>&1 </dev/null
    fi
}

install_it() {
    [ -n "$(apt-cache show "$package" 2>/dev/null)" ] || quietly 60 apt-get update -qq
    quietly 120 env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"
}

unpack_it() { # works without root; lists of packages are fetched into the temporary directory if there are none
    command -v dpkg-deb >/dev/null 2>&1 || return 1
    temporary=$(mktemp -d) || return 1
    trap 'rm -rf "$temporary"' EXIT
    trap 'exit 0' HUP INT TERM
    (
        cd "$temporary" || exit 1
        if [ -z "$(apt-cache show "$package" 2>/dev/null)" ]; then
            mkdir -p lists/partial
            set -- -o "Dir::State::Lists=$temporary/lists" -o "Dir::Cache=$temporary"
            quietly 60 apt-get "$@" update -qq
        else
            set --
        fi
        quietly 120 apt-get "$@" download -qq "$package"
    )
    for deb in "$temporary/$package"_*.deb; do
        [ -f "$deb" ] && quietly 5 mkdir -p "$1" && quietly 60 dpkg-deb -x "$deb" "$1"
    done
}

if [ $# -ne 1 ] || [ -z "$1" ]; then
    say "usage: $0 DIR"
    exit 0
fi
if complete "$1" || complete /; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    say "this system has no apt-get"
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && [ -z "${PERDURE_NO_ROOT:-}" ]; then
    install_it
fi
if ! complete /; then
    unpack_it "$1"
fi
if ! complete "$1" && ! complete /; then
    say "$package could not be fetched by apt-get or unpacked into $1"
fi
exit 0
