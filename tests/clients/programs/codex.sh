# Codex CLI answers one question by /v1/responses.
set -euo pipefail
url=$1 model=$2
export CODEX_HOME=$PWD/home
mkdir -p "$CODEX_HOME"
cat >"$CODEX_HOME/config.toml" <<EOF
model = "$model"
model_provider = "eka"
model_context_window = 8192
[model_providers.eka]
name = "eka"
base_url = "$url/v1"
wire_api = "responses"
EOF
codex exec --skip-git-repo-check --sandbox read-only 'What is the capital city of France?' </dev/null 2>&1 | tee answer
! grep -Eiq 'error|unexpected status' answer
