# Sourced by the scripts beside it: named steps with the time that each took.
PENSTOCK_STARTED=$SECONDS
bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$1"; else printf '%s\n' "$1"; fi; }

# step "what it does, how long it may take" command [arguments]
step() {
  local what=$1 began=$SECONDS status=0
  shift
  printf '\n'
  bold "==> $what"
  "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    bold "==> FAILED after $((SECONDS - began)) s: $what" >&2
    return "$status"
  fi
  echo "    done in $((SECONDS - began)) s ($((SECONDS - PENSTOCK_STARTED)) s since the start)"
}

platform() { target/release/platform "$@"; }

# Always the whole workspace: another selection of packages unifies other features, and builds the dependencies anew.
build() { cargo build --release --locked --workspace --bins; }

# What must be there before anything can be built; all of it is named at once.
need() {
  local missing=()
  for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  [ "${#missing[@]}" -eq 0 ] && return
  echo "This machine lacks: ${missing[*]}. Rust comes from rustup, the others from your distribution's packages." >&2
  return 1
}
