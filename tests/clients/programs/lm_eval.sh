# lm-evaluation-harness with tasks of its three kinds (multiple choice, generation, rolling log-likelihood), four requests at a time.
set -euo pipefail
url=$1 model=$2
cat >samples.jsonl <<'EOF'
{"question": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
{"question": "The capital of Italy is", "choices": [" Paris", " Rome"], "answer": 1}
{"question": "Two plus two is", "choices": [" four", " seven"], "answer": 0}
{"question": "Snow is", "choices": [" white", " black"], "answer": 0}
EOF
task() { # NAME OUTPUT_TYPE LINES
  printf 'task: %s\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: %s/samples.jsonl\ntest_split: test\noutput_type: %s\n%s\n' \
    "$1" "$PWD" "$2" "$3" >"tasks/$1.yaml"
}
mkdir -p tasks
task choose multiple_choice $'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ""'
task generate generate_until $'doc_to_text: "{{question}}"\ndoc_to_target: "{{choices[answer]}}"\ngeneration_kwargs:\n  until: ["."]\n  max_gen_toks: 8'
task rolling loglikelihood_rolling $'doc_to_text: ""\ndoc_to_target: "{{question}}{{choices[answer]}}"'
# No tokenizer is downloaded: eka takes token ids or text, so that the harness asks its /tokenize.
arguments="model=$model,base_url=$url/v1/completions,tokenizer_backend=remote,num_concurrent=1,max_length=2048,max_retries=1"
lm_eval --model local-completions --model_args "$arguments" --batch_size 4 --include_path tasks --tasks choose,generate,rolling \
  --output_path results
python - <<'EOF'
import glob, json
results = json.load(open(glob.glob("results/**/results_*.json", recursive=True)[0]))["results"]
assert results["choose"]["acc,none"] >= 0.75, results
assert 1 < results["rolling"]["word_perplexity,none"] < 1000, results
EOF
chat="model=$model,base_url=$url/v1/chat/completions,num_concurrent=4,tokenizer_backend=None,max_retries=1"
lm_eval --model local-chat-completions --model_args "$chat" --apply_chat_template --include_path tasks --tasks generate
