# shellcheck shell=sh
# Sourced, after say.sh, by the set-up scripts that install packages of the system.

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

can_be_root() {
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && as_root true 2>/dev/null; }
}

install_with_apt() {
    say "Installing $* with apt-get."
    env="DEBIAN_FRONTEND=noninteractive"
    wait="-o DPkg::Lock::Timeout=300"
    # shellcheck disable=SC2086  # $wait is two words
    logged as_root env $env apt-get $wait update ||
        fail "apt-get update failed; see $log, or install $* yourself and run make setup again."
    # shellcheck disable=SC2086
    logged as_root env $env setup/without-services apt-get $wait install --yes --no-install-recommends "$@" ||
        fail "apt-get could not install $*; see $log, or install them yourself and run make setup again."
}
