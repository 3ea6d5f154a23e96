# The command `llm` with a model of its extra-openai-models.yaml: whole, streamed and with a schema.
set -euo pipefail
url=$1 model=$2
export LLM_USER_PATH=$PWD
printf -- '- model_id: eka\n  model_name: %s\n  api_base: %s/v1\n  supports_schema: true\n' "$model" "$url" >extra-openai-models.yaml
llm -m eka --no-stream -o temperature 0 'What is the capital city of France?' | grep Paris
llm -m eka -o temperature 0 'What is the capital city of France?' | grep Paris
llm -m eka -o temperature 0 --schema 'city, country' 'What is the capital city of France?' | grep '"city"'
