//! Answers of the demonstration model in ten languages, from the real server.

use serde_json::{Value, json};

use crate::support::program::{Expected, Program, argument, cache, expected, run};

fn request(prompt: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": prompt }] })
}

#[tokio::test]
async fn answers_in_ten_languages_match_transformers() {
    let program = Program::start(&[]).await;
    for Expected { prompt, text, tokens } in expected() {
        let (answer, pieces) = program.both_ways(&request(&prompt)).await;
        assert_eq!(answer["text"], text, "{prompt}");
        assert_eq!(pieces.concat(), text, "{prompt}");
        assert_eq!(answer["finish_reason"], "stop");
        assert_eq!(answer["usage"]["completion_tokens"], tokens, "{prompt}");
    }
}

#[tokio::test]
async fn an_answer_cut_at_any_token_has_only_whole_characters() {
    let program = Program::start(&[]).await;
    for Expected { prompt, text, tokens } in expected() {
        let mut before = String::new();
        for max in 1..=tokens {
            let mut request = request(&prompt);
            request["max_new_tokens"] = json!(max);
            let (answer, pieces) = program.both_ways(&request).await;
            let cut = answer["text"].as_str().unwrap();
            assert_eq!(pieces.concat(), cut, "{prompt} after {max} tokens");
            assert!(
                text.starts_with(cut) && cut.starts_with(&before),
                "{cut:?} after {max} tokens of {text:?}"
            );
            assert_eq!(answer["finish_reason"], if max == tokens { "stop" } else { "length" });
            before = cut.into();
        }
        assert_eq!(before, text);
    }
}

#[tokio::test]
async fn a_stop_string_anywhere_in_any_script_ends_the_answer_before_it() {
    let program = Program::start(&[]).await;
    for Expected { prompt, text, .. } in expected() {
        let length = text.chars().count();
        // Every start; one character (a single mark of a cluster, often half a token) and three.
        for start in 0..length {
            for width in [1, 3] {
                let stop: String = text.chars().skip(start).take(width).collect();
                let mut request = request(&prompt);
                request["stop"] = json!([stop]);
                let (answer, pieces) = program.both_ways(&request).await;
                let wanted = text.split_once(&stop).unwrap().0;
                assert_eq!(answer["text"], wanted, "{prompt} stopped at {stop:?}");
                assert_eq!(pieces.concat(), wanted, "{prompt} stopped at {stop:?}");
                assert_eq!(answer["finish_reason"], "stop");
            }
        }
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer_and_others_differ() {
    let program = Program::start(&[]).await;
    let mut request = request("Write a short sentence in Hindi about rain.");
    request["temperature"] = json!(1.5);
    let mut texts = Vec::new();
    for seed in [1, 1, 2, 3, 4, 5] {
        request["seed"] = json!(seed);
        let (_, answer) = program.ask("/generate-lite", &request).await;
        assert_eq!(answer["seed"], seed);
        texts.push(answer["text"].as_str().unwrap().to_owned());
    }
    assert_eq!(texts[0], texts[1]);
    assert!(texts[2..].iter().any(|text| *text != texts[0]), "{texts:?}");
}

#[tokio::test]
async fn a_chunked_prompt_gives_the_same_answer() {
    let program = Program::start(&["--set", "engine.prefill_chunk=5"]).await;
    for Expected { prompt, text, .. } in expected() {
        let (_, answer) = program.ask("/generate-lite", &request(&prompt)).await;
        assert_eq!(answer["text"], text, "{prompt}");
    }
}

#[tokio::test]
async fn quantized_weights_answer_in_the_right_language() {
    for weights in ["int8", "int4"] {
        let program = Program::start(&["--quantize", weights]).await;
        let mut exact = 0;
        for Expected { prompt, text, .. } in expected() {
            let (status, answer) = program.ask("/generate-lite", &request(&prompt)).await;
            assert_eq!(status, 200, "{answer}");
            exact += usize::from(answer["text"] == text);
        }
        // Rounding may move a word; a kernel or layout gone wrong moves all of them.
        assert!(exact >= 8, "{weights}: only {exact} of 10 as in float32");
    }
}

#[tokio::test]
async fn a_directory_built_by_onnxruntime_genai_is_served_like_an_export() {
    // Ids, as these models have fewer of them than the tokenizer that lies beside them.
    let request =
        json!({ "prompt": [5, 9, 140, 33, 7], "max_tokens": 24, "temperature": 0, "ignore_eos": true });
    for name in ["llama3-rope", "qwen3-biases"] {
        let built = Program::start(&["--model", &format!("tests/fixtures/genai/{name}")]).await;
        let base = format!("tests/fixtures/models/{name}/base");
        let export = cache().join(format!("{name}-{}", std::process::id()));
        assert!(run(&["export", "--base", &base, "--out", argument(&export), "--force"]).status.success());
        let exported = Program::start(&["--model", argument(&export)]).await;
        let route = "/v1/completions";
        let (ours, theirs) = (exported.ask(route, &request).await, built.ask(route, &request).await);
        assert_eq!((ours.0, theirs.0), (200, 200), "{}", theirs.1);
        assert_eq!(ours.1["choices"][0]["text"], theirs.1["choices"][0]["text"], "{name}");
        assert_eq!(theirs.1["usage"]["completion_tokens"], 24);
    }
}
