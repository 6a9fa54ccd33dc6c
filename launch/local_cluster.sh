#!/usr/bin/env bash
# A Ray cluster of three nodes on this machine: to try what `--address` and `ray job submit` do, before there is a real one.
#
#   launch/local_cluster.sh start     a head and two more nodes; prints how to train on them and how to stop them
#   launch/local_cluster.sh status    0 where the cluster is whole, 1 where it is not
#   launch/local_cluster.sh stop      ends what `start` started, and nothing else
#
#   DISTRL_CLUSTER_DIR             holds Ray's files and the log; one cluster a folder (/tmp/distrl-cluster-<uid>)
#   DISTRL_CLUSTER_CPUS            CPUs of each node (1, so that 2 workers and the learner take a node each)
#   DISTRL_CLUSTER_PORT            of the cluster (6379, or a free one where that is taken)
#   DISTRL_CLUSTER_DASHBOARD_PORT  of the dashboard and the job server (8265, or a free one)
#   DISTRL_CLUSTER_STORE_BYTES     object store of each node (512 MiB)
#   RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH   the token, or its file (~/.ray/auth_token; made where there is none)
#
# The nodes talk over the loopback interface. Ray keeps all its ports there for nodes that are exactly 127.0.0.1, but
# `ray start` and `ray.init(address=...)` turn that into the machine's outward address, so such nodes cannot be joined.
# Here they are 127.0.0.2, which is loopback as well: the dashboard with its job server, the client server and the
# agents' HTTP listen on loopback alone. The ports of the head, the raylets and their agents are open on every
# interface, and each call must carry the token; those of the Prometheus exporters are as well, and give numbers
# about the machine to anyone who asks. On a network that is not trusted, put a firewall before them.
set -euo pipefail

dir=${DISTRL_CLUSTER_DIR:-/tmp/distrl-cluster-$(id -u)}
ip=127.0.0.2
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin
mark=DISTRL_LOCAL_CLUSTER=$dir # in the environment of everything that the nodes start: how `stop` finds it
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token

fail() {
  echo "local_cluster: $*" >&2
  exit 1
}

processes() { # ids of the cluster's live processes: what carries the mark, and all below it (titles overwrite marks)
  {
    grep -lzxF "$mark" /proc/[0-9]*/environ | tr -dc '0-9\n'
    sed -n 's/^\([0-9]*\) (.*) \([A-Z]\) \([0-9]*\) .*/\1 \2 \3/p' /proc/[0-9]*/stat # id, state, parent
    true # a process that ended amid this is no failure
  } 2>/dev/null | awk '
    NF == 1 { ours[$1] = 1; next }
    $2 != "Z" { parent[$1] = $3 }
    END {
      do {
        grew = 0
        for (one in parent) if (!(one in ours) && (parent[one] in ours)) grew = ours[one] = 1
      } while (grew)
      for (one in ours) if (one in parent) print one
    }'
}

count() { # of the cluster's processes that run the program $1
  local number=0 pid
  for pid in $(processes); do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]; then number=$((number + 1)); fi
  done
  echo "$number"
}

is_whole() { [ "$(count gcs_server)" = 1 ] && [ "$(count raylet)" = 3 ]; }

living() { # which of these processes live; a zombie does not
  local pid
  for pid in "$@"; do
    if grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$pid/status"; then echo "$pid"; fi
  done
}

signal_all() { # $1 to the processes $3..., then up to $2 seconds for them to go
  local signal=$1 deadline=$((SECONDS + $2))
  shift 2
  if [ $# -gt 0 ]; then kill "-$signal" "$@" 2>/dev/null || true; fi
  while [ -n "$(living "$@")" ] && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
}

end_all() {
  local all raylets="" pid
  all=$(processes)
  for pid in $all; do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = raylet ]; then raylets+=" $pid"; fi
  done
  signal_all TERM 6 $raylets # first, while there is a head to take leave of
  signal_all TERM 4 $(living $all)
  all="$(living $all) $(processes)" # with what was started meanwhile
  signal_all KILL 5 $all
  all=$(living $all)
  [ -z "$all" ] || fail "these do not end:" $all
  rm -rf "$dir/ray" "$dir/address" "$dir/dashboard"
}

free_port() { # $1 where nobody has it, else any free one, outside the range of Ray's own defaults
  "$bin/python" - "$1" <<'PYTHON'
import socket, sys
for port in (int(sys.argv[1]), 0):
    with socket.socket(socket.AF_INET6) as one:  # all interfaces, IPv4 as well: what Ray binds
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("::", port))
        except OSError:
            continue
        print(one.getsockname()[1])
        break
PYTHON
}

prepare_folder() {
  mkdir -m 700 "$dir" 2>/dev/null || true
  if [ -L "$dir" ] || [ ! -O "$dir" ]; then
    fail "$dir cannot be made, belongs to somebody else or is a link; name another in DISTRL_CLUSTER_DIR"
  fi
  if [ ! -e "$dir/lock" ] && [ -n "$(ls -A "$dir")" ]; then
    fail "$dir holds something else; name a new folder in DISTRL_CLUSTER_DIR"
  fi
  if [ ${#dir} -gt 40 ]; then
    fail "DISTRL_CLUSTER_DIR has ${#dir} characters, 40 are the most: Ray's sockets lie in it; name a shorter one"
  fi
}

prepare_token() {
  if [ -n "${RAY_AUTH_TOKEN:-}" ]; then return; fi
  export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
  if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
  fi
  chmod 600 "$RAY_AUTH_TOKEN_PATH" || fail "cannot make $RAY_AUTH_TOKEN_PATH yours alone; name another file in RAY_AUTH_TOKEN_PATH"
}

ray_start() { # a node; in a session of its own, so that Ctrl-C in this terminal never reaches it
  if ! env "$mark" PATH="$bin:$PATH" setsid --wait timeout 120 "$bin/ray" start --node-ip-address "$ip" \
    --num-cpus "${DISTRL_CLUSTER_CPUS:-1}" --object-store-memory "${DISTRL_CLUSTER_STORE_BYTES:-536870912}" \
    --min-worker-port 0 --max-worker-port 0 --disable-usage-stats "$@" </dev/null >>"$dir/start.log" 2>&1 9>&-; then
    tail -n 20 "$dir/start.log" >&2
    fail "a node did not start; the whole log is $dir/start.log"
  fi
}

start() {
  [ -x "$bin/ray" ] || fail "$bin/ray is not there; run: make setup"
  prepare_folder
  exec 9>"$dir/lock"
  flock -n 9 || fail "another start or stop is at work in $dir"
  prepare_token
  if is_whole; then
    echo "the cluster is running already"
    tell
    return
  fi
  end_all # what a killed cluster left
  : >"$dir/start.log"
  trap 'trap - EXIT; end_all' EXIT
  trap 'exit 130' INT TERM
  local port dashboard client
  port=$(free_port "${DISTRL_CLUSTER_PORT:-6379}")
  dashboard=$(free_port "${DISTRL_CLUSTER_DASHBOARD_PORT:-8265}")
  client=$(free_port 10001)
  export AUTOSCALER_METRIC_PORT DASHBOARD_METRIC_PORT
  AUTOSCALER_METRIC_PORT=$(free_port 44217)
  DASHBOARD_METRIC_PORT=$(free_port 44227)
  ray_start --head --port "$port" --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
    --ray-client-server-port "$client" --temp-dir "$dir/ray"
  ray_start --address "$ip:$port"
  ray_start --address "$ip:$port"
  is_whole || fail "the nodes started and died; the log is $dir/start.log, Ray's are in $dir/ray/session_latest/logs"
  echo "$ip:$port" >"$dir/address"
  echo "http://127.0.0.1:$dashboard" >"$dir/dashboard"
  trap - EXIT INT TERM
  tell
}

tell() {
  local cpus=${DISTRL_CLUSTER_CPUS:-1} token
  if [ -n "${RAY_AUTH_TOKEN:-}" ]; then
    token="RAY_AUTH_TOKEN=(as it is in this shell)"
  else
    token="RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
  fi
  cat <<TEXT
3 nodes of $cpus CPU each, at $(cat "$dir/address"), dashboard $(cat "$dir/dashboard")
train on it:
  export RAY_AUTH_MODE=token $token
  $bin/distrl train --address $(cat "$dir/address") --workers $((3 * cpus - 1))
or let the cluster run the driver as well:
  $bin/ray job submit --address $(cat "$dir/dashboard") -- distrl train --workers $((3 * cpus - 1))
stop it:
  ${DISTRL_CLUSTER_DIR:+DISTRL_CLUSTER_DIR=$dir }$0 stop
TEXT
}

status() {
  if is_whole; then
    tell
  elif [ -n "$(processes)" ]; then
    fail "not whole: $(count gcs_server) of 1 head and $(count raylet) of 3 nodes live; run: $0 start"
  else
    fail "no cluster runs in $dir; run: $0 start"
  fi
}

stop() {
  if [ ! -d "$dir" ]; then
    echo "no cluster runs in $dir"
    return
  fi
  prepare_folder
  exec 9>"$dir/lock"
  flock -n 9 || fail "another start or stop is at work in $dir"
  local number
  number=$(processes | wc -l)
  end_all
  rm -f "$dir/start.log" "$dir/lock"
  rmdir "$dir"
  if [ "$number" = 0 ]; then echo "no cluster runs in $dir"; else echo "stopped: $number processes"; fi
}

case "${1:-}" in
  start | stop | status) "$1" ;;
  *)
    echo "usage: $0 start | status | stop" >&2
    exit 2
    ;;
esac
