# opencode answers one question with a provider like OpenAI's.
set -euo pipefail
url=$1 model=$2
cat >opencode.json <<EOF
{"provider": {"eka": {"npm": "@ai-sdk/openai-compatible", "name": "eka", "options": {"baseURL": "$url/v1"},
  "models": {"$model": {"name": "small", "limit": {"context": 8192, "output": 400}}}}},
 "model": "eka/$model", "small_model": "eka/$model", "autoupdate": false, "share": "disabled"}
EOF
opencode run --model "eka/$model" 'What is the capital city of France?' </dev/null 2>&1 | tee answer
! grep -Eiq 'error' answer
