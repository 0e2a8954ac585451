# Sets a site up and has a client join it, in namespaces of its own: a machine with both packages, but for systemd, which
# `systemctl` here stands in for. T is a folder, SERVER and AGENT are the programs, EXAMPLE the configuration file.
set -eu

# The users of the packages, and folders of nobody else's.
cp -a /etc "$T/etc"
mount --bind "$T/etc" /etc
echo 'cairn-server:x:6789:6790::/nonexistent:/usr/sbin/nologin' >> /etc/passwd
echo 'cairn-agent:x:6791:6792::/nonexistent:/usr/sbin/nologin' >> /etc/passwd
mount -t tmpfs none /run
mkdir -p /run/systemd/system
# Nothing of it is used until it is written to.
mount -t tmpfs -o size=64g none /var/lib
mount -t tmpfs none /var/cache
mkdir -p /var/cache/apt/archives "$T/bin"
for program in "$SERVER" "$AGENT"; do
    at="$T/bin/$(basename "$program")"
    touch "$at"
    mount --bind "$program" "$at"
done
export PATH="$T/bin:$PATH"

# One interface with the default route, and one without.
ip link set lo up
ip link add eth7 type veth peer name eth8
ip address add 10.99.0.2/24 dev eth7
ip address add 10.98.0.2/24 dev eth8
ip link set eth7 up
ip link set eth8 up
ip route add default via 10.99.0.1
# In place of the unit's capability.
echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start

cat > "$T/bin/systemctl" <<'STAND_IN'
#!/bin/sh
echo "$*" >> "$T/calls"
for unit; do :; done
start() {
    case $unit in
        cairn-server.service) set -- 6789 6790 cairn-server serve ;;
        cairn-agent.service) set -- 6791 6792 cairn-agent run ;;
    esac
    user=$1 group=$2; shift 2
    setpriv --reuid "$user" --regid "$group" --clear-groups "$@" > "$T/$unit.journal" 2>&1 &
    echo $! > "$T/$unit.active"
}
case $1 in
    cat) ;;
    is-active) test -e "$T/$unit.active" ;;
    is-enabled) test -e "$T/$unit.enabled" ;;
    is-failed) exit 1 ;;
    enable) touch "$T/$unit.enabled"; start ;;
    restart)
        pid=$(cat "$T/$unit.active")
        kill "$pid"
        while kill -0 "$pid" 2> /dev/null; do sleep 0.05; done
        start ;;
    *) exit 9 ;;
esac
STAND_IN
cat > "$T/bin/apt-get" <<'STAND_IN'
#!/bin/sh
test "$1 $2" = "install -y" && cp "$3" "$T/installed.deb"
STAND_IN
chmod 755 "$T/bin/systemctl" "$T/bin/apt-get"
export T

mkdir -p /etc/cairn
cp "$EXAMPLE" /etc/cairn/server.toml
printf 'agent_package = "%s/agent.deb" # of the test\n' "$T" >> /etc/cairn/server.toml
cd "$T"

state() { cat /etc/cairn/server.toml; ls -lai /etc/cairn /var/lib/cairn/secrets; sha256sum /var/lib/cairn/secrets/*; }

cairn-server setup --interface eth9 > /dev/null 2> unknown && exit 11
cmp /etc/cairn/server.toml "$T/etc/cairn/server.toml"
test ! -e /var/lib/cairn
cairn-server setup --dhcp off > first
cp /etc/cairn/server.toml first.toml
cairn-server image list > images
state > before
: > calls
cairn-server setup --dhcp off > second
cairn-server setup > third
cp calls quiet-calls
state > after
stat -c '%a %u' /var/lib/cairn > folder
find /var/lib/cairn ! -user 6789 > of-others

# The join command as it was printed, in another folder than the server's.
cd /
sed -n 's/^join:  *//p' "$T/first" > "$T/join"
sh -e "$T/join" > "$T/joined"
cd "$T"
find /var/lib/cairn-agent ! -user 6791 > agent-of-others
tries=0
until cairn-agent status > status 2> status.error; do
    tries=$((tries + 1))
    test $tries -lt 300
    sleep 0.1
done
cairn-agent lend 1GiB > lend
cairn-agent limit --upload 50Mbit/s > limit
find /var/lib/cairn-agent ! -user 6791 >> agent-of-others
cairn-server agent list > agents

# Something changed: the server is started again.
: > calls
cairn-server setup --listen 0.0.0.0:9440 > fourth
cairn-server token create > token 2> token.full
# Somewhere without systemd it is said what to run.
umount /run
rm -rf /run/systemd 2> /dev/null || true
mount -t tmpfs none /run
printf 'data_dir = "%s/own-data"\nlisten = "127.0.0.1:0"\n' "$T" > own.toml
cairn-server setup --interface eth8 --config own.toml > own
