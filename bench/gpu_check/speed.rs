//! Tokens per second with random weights in published shapes, and the share of memory bandwidth.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{Setup, run as run_program, soak::BenchResult, table::Table};

/// What peers were seen to reach with the smallest shape in int4 on such a card.
const GOAL_SMALLEST: f64 = 600.0;
/// Of the memory's speed, what the largest shape is to reach.
const GOAL_SHARE: f64 = 0.25;

/// The shape of a model: the fields of `config.json` in which they differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    name: &'static str,
    family: &'static str,
    architecture: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    is_tied: bool,
}

impl Shape {
    /// The smallest first.
    pub(crate) const fn all() -> [Self; 3] {
        let qwen = Self {
            name: "Qwen2.5-0.5B",
            family: "qwen2",
            architecture: "Qwen2ForCausalLM",
            hidden: 896,
            intermediate: 4864,
            layers: 24,
            heads: 14,
            kv_heads: 2,
            vocabulary: 151_936,
            is_tied: true,
        };
        let llama = Self {
            name: "TinyLlama-1.1B",
            family: "llama",
            architecture: "LlamaForCausalLM",
            hidden: 2048,
            intermediate: 5632,
            layers: 22,
            heads: 32,
            kv_heads: 4,
            vocabulary: 32_000,
            is_tied: false,
        };
        let large = Self {
            name: "Qwen2.5-7B",
            hidden: 3584,
            intermediate: 18_944,
            layers: 28,
            heads: 28,
            kv_heads: 4,
            vocabulary: 152_064,
            is_tied: false,
            ..qwen
        };
        [qwen, llama, large]
    }

    /// One that a CPU runs in no time.
    pub(crate) const fn small() -> Self {
        let [_, llama, _] = Self::all();
        Self {
            name: "a small one",
            hidden: 128,
            intermediate: 256,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            vocabulary: 1024,
            ..llama
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) const fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Exports it with random weights, once.
    pub(crate) fn export(&self, setup: &Setup, quantize: &str) -> BenchResult<PathBuf> {
        let out = setup.path(&format!("{}-{quantize}", self.name.replace(' ', "-")));
        if out.is_dir() {
            return Ok(out);
        }
        let config = out.with_extension("json");
        fs::write(&config, self.config().to_string())?;
        let mut command =
            setup.command(&["export", "--dtype", &setup.dtype().to_string(), "--quantize", quantize]);
        run_program(command.arg("--random-weights").arg(&config).arg("--out").arg(&out))?;
        Ok(out)
    }

    fn config(&self) -> Value {
        json!({
            "architectures": [self.architecture], "model_type": self.family, "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
            "tie_word_embeddings": self.is_tied, "bos_token_id": 1, "eos_token_id": 2,
        })
    }
}

pub(crate) fn run(setup: &Setup, table: &mut Table) -> BenchResult<()> {
    let shapes = if setup.is_quick { vec![Shape::small()] } else { Shape::all().to_vec() };
    for (number, shape) in shapes.iter().enumerate() {
        for quantize in ["int4", "none"] {
            let dir = shape.export(setup, quantize)?;
            for captures in [true, false] {
                let figures = Figures::measure(setup, &dir, captures)?;
                let weights = if quantize == "none" { setup.dtype().to_string() } else { quantize.into() };
                let how = if captures { "captured" } else { "not captured" };
                let name = format!("{}, {weights}, steps {how}", shape.name);
                let best = captures && setup.is_gpu();
                match (best, quantize, number) {
                    (true, "int4", 0) => {
                        let met = figures.decode >= GOAL_SMALLEST;
                        table.check(&name, &format!("{GOAL_SMALLEST} tokens/s"), &figures.to_string(), met);
                    }
                    (true, "int4", 2) => {
                        let met = figures.share.is_some_and(|share| share >= GOAL_SHARE);
                        table.check(&name, "25 % of bandwidth", &figures.to_string(), met);
                    }
                    _ => table.info(&name, &figures.to_string()),
                }
            }
            // The largest takes fifteen gigabytes.
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(())
}

/// Of `eka bench`.
struct Figures {
    prefill: f64,
    decode: f64,
    share: Option<f64>,
    bandwidth: Option<f64>,
    load: f64,
}

impl Figures {
    fn measure(setup: &Setup, dir: &std::path::Path, captures: bool) -> BenchResult<Self> {
        let generate = if setup.is_quick { "16" } else { "128" };
        let mut command = setup.on_device(&["bench", "--json", "--prompt", "512", "--generate", generate]);
        command.args(["--rounds", if setup.is_quick { "1" } else { "3" }]);
        command.args(["--cuda-graphs", if captures { "true" } else { "false" }]).arg(dir);
        let report: Value = serde_json::from_str(&run_program(&mut command)?)?;
        let number = |value: &Value| value.as_f64().ok_or_else(|| format!("a figure is missing in {report}"));
        let result = &report["results"][0];
        Ok(Self {
            prefill: number(&result["prefill_tokens_per_second"]["median"])?,
            decode: number(&result["decode_tokens_per_second"]["median"])?,
            share: result["decode_share_of_bandwidth"].as_f64(),
            bandwidth: report["memory_bytes_per_second"].as_f64(),
            load: number(&report["load_seconds"])?,
        })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prefill, decode, share, bandwidth, load } = self;
        write!(f, "decode {decode:.1} tokens/s, prefill {prefill:.0}, load {load:.1} s")?;
        if let (Some(share), Some(bandwidth)) = (share, bandwidth) {
            write!(f, "; {:.1} % of {:.0} GB/s", share * 100.0, bandwidth / 1e9)?;
        }
        Ok(())
    }
}
