# aider answers one question about a repository, without a change.
set -euo pipefail
url=$1 model=$2
git init --quiet .
export OPENAI_API_BASE=$url/v1 OPENAI_API_KEY=none
aider --model "openai/$model" --no-show-model-warnings --yes-always --no-gitignore --no-check-update --analytics-disable \
  --no-auto-commits --chat-mode ask --map-tokens 0 --message 'What is the capital city of France?' | tee answer
grep -q 'Tokens:' answer
