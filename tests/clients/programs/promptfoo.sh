# promptfoo with one question and one assertion.
set -euo pipefail
url=$1 model=$2
export PROMPTFOO_CONFIG_DIR=$PWD/config PROMPTFOO_DISABLE_TELEMETRY=1 PROMPTFOO_DISABLE_UPDATE=1 OPENAI_API_KEY=none
cat >promptfooconfig.yaml <<EOF
prompts: ['What is the capital of {{country}}?']
providers:
  - id: openai:chat:$model
    config: {apiBaseUrl: $url/v1, temperature: 0}
  - id: ollama:chat:$model
    config: {temperature: 0}
tests:
  - vars: {country: France}
    assert: [{type: contains, value: Paris}]
EOF
OLLAMA_BASE_URL=$url promptfoo eval --no-cache --no-progress-bar -c promptfooconfig.yaml
