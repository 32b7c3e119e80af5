#!/bin/sh
# Installs what `make demo` and `make test` need and this machine lacks: PostgreSQL, etcd, protoc with its
# includes, a C compiler; HAProxy for the tests. Debian 12+ and Ubuntu 24.04+, through apt. Nothing missing: no apt, no sudo, no output.
# Nothing that apt installs here is started or enabled, and no database cluster is created.
set -eu

# How long another apt or dpkg on this machine is waited for. Unattended upgrades take minutes, seldom more.
LOCK_SECONDS=300

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
exists() { [ -e "$1" ]; }

# --- Rust is the one thing we do not install: which toolchain is the user's choice.
check_rust() {
    PATH=$PATH:$HOME/.cargo/bin
    have cargo || die "cargo is not in PATH. Install Rust 1.95 or newer (https://rustup.rs), then run this again."
    [ "${1:-}" = test ] || return 0
    for tool in fmt clippy; do
        cargo "$tool" --version >/dev/null 2>&1 && continue
        have rustup || die "cargo $tool is missing; install your distribution's package for it."
        say "adding the Rust components rustfmt and clippy"
        rustup component add rustfmt clippy
        break
    done
}

# --- What is missing, as Debian packages. $1 = test: also what only tests need.
missing_packages() {
    have postgres || exists /usr/lib/postgresql/*/bin/postgres || echo postgresql
    have etcd || echo etcd-server
    have protoc || echo protobuf-compiler
    # Debian's compiler package leaves out the well-known types that etcd's API imports.
    exists /usr/include/google/protobuf/descriptor.proto || exists /usr/local/include/google/protobuf/descriptor.proto ||
        protoc_brings_includes || echo libprotobuf-dev
    have cc || echo gcc
    exists /usr/include/stdio.h || echo libc6-dev
    [ "${1:-}" = test ] || return 0
    have haproxy || exists /usr/sbin/haproxy || echo haproxy
    # promtool: the alert rules are tested with it.
    have promtool || echo prometheus
}

protoc_brings_includes() {
    have protoc && exists "$(dirname "$(readlink -f "$(command -v protoc)")")/../include/google/protobuf/descriptor.proto"
}

# --- The system and the rights.
check_system() {
    unsupported="this needs Debian 12+ or Ubuntu 24.04+ with apt; nothing was changed. Install by hand: $*"
    have apt-get && [ -r /etc/os-release ] || die "$unsupported"
    ID='' VERSION_ID=''
    # shellcheck source=/dev/null
    . /etc/os-release
    case "$ID:${VERSION_ID%%.*}" in
        debian:'') ;; # testing and unstable carry no number
        debian:*) [ "${VERSION_ID%%.*}" -ge 12 ] || die "$unsupported" ;;
        ubuntu:*) [ "${VERSION_ID%%.*}" -ge 24 ] || die "$unsupported" ;;
        *) die "$unsupported" ;;
    esac
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

check_rights() {
    [ "$(id -u)" -eq 0 ] && return 0
    have sudo || die "root or sudo is needed to install: $*; nothing was changed"
    # Without a terminal sudo cannot ask for a password: say so now and not half way.
    sudo -n true 2>/dev/null || [ -t 0 ] || die "sudo wants a password and there is no terminal; as root run: apt-get install $*"
}

# --- apt. The script below runs as root, so that the guards and their removal stay in one process.
# $1 = seconds to wait for a lock, then the packages.
INSTALL='
set -eu
lock_seconds=$1; shift
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
saved=$(mktemp -d)
no_cluster=/etc/postgresql-common/createcluster.d/pgherd-setup.conf

restore() {
    rm -f "$policy" "$no_cluster"
    if [ -e "$saved/policy-rc.d" ]; then mv "$saved/policy-rc.d" "$policy"; fi
    rm -rf "$saved"
}
trap restore EXIT
trap "exit 1" HUP INT TERM

# 101 = "may not be started": what invoke-rc.d asks before it starts a new service.
if [ -e "$policy" ]; then mv "$policy" "$saved/policy-rc.d"; fi
printf "#!/bin/sh\nexit 101\n" >"$policy"
chmod 755 "$policy"

# The lock of the package lists has no wait of its own, unlike that of dpkg.
update() {
    waited=0
    until out=$(apt-get -q update 2>&1); do
        case $out in *"Could not get lock"*) ;; *) printf "%s\n" "$out" >&2; return 1 ;; esac
        [ "$waited" -lt "$lock_seconds" ] || { printf "%s\n" "$out" >&2; return 1; }
        sleep 2
        waited=$((waited + 2))
    done
}
install() {
    apt-get -q -y -o DPkg::Lock::Timeout="$lock_seconds" -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

update
case " $* " in *" postgresql "*)
    # This package first: its configuration decides whether the server package creates a cluster.
    install postgresql-common
    mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = false" >"$no_cluster"
esac
install "$@"

# Not started now is not enough: an enabled service would take the ports at the next boot.
for service in etcd haproxy prometheus prometheus-node-exporter; do
    case " $* " in *" $service"*) deb-systemd-helper disable "$service.service" >/dev/null 2>&1 || true ;; esac
done
'

main() {
    check_rust "$@"
    packages=$(missing_packages "$@" | tr '\n' ' ')
    packages=${packages% }
    [ -n "$packages" ] || return 0
    check_system "$packages"
    check_rights "$packages"
    say "installing: $packages"
    # shellcheck disable=SC2086  # a list of words, on purpose
    as_root sh -c "$INSTALL" setup "$LOCK_SECONDS" $packages
    still=$(missing_packages "$@" | tr '\n' ' ')
    [ -z "$still" ] || die "apt ended well, but these are still missing: $still"
    say "done"
}

main "$@"
