//! A base with adapters beside it, each of which gives other answers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use super::program::{argument, root, run, text};

/// Sizes of `tests/fixtures/adapters/bases/llama`.
const HIDDEN: usize = 32;

/// A model directory in a folder that is removed with it.
pub(crate) struct BaseWithAdapters {
    dir: TempDir,
}

impl BaseWithAdapters {
    /// A tiny Llama with `count` adapters, called `a0`, `a1` and so on.
    pub(crate) fn new(count: u64) -> Self {
        let base = Self { dir: tempfile::tempdir().unwrap() };
        let sources = root().join("tests/fixtures/adapters/bases/llama");
        let exported = run(&["export", "--base", argument(&sources), "--out", argument(&base.model())]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
        for number in 0..count {
            base.add(&format!("a{number}"), number);
        }
        base
    }

    /// The model directory, whose name is `base`.
    pub(crate) fn model(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    /// Exports an adapter with random matrices, in place of one of this name.
    pub(crate) fn add(&self, name: &str, seed: u64) {
        let source = self.dir.path().join(format!("peft-{name}"));
        write_peft(&source, seed);
        let model = self.model();
        let flags = ["--base", argument(&model), "--adapter", argument(&source), "--name", name, "--force"];
        let exported = run(&[&["export-adapter"], &flags[..]].concat());
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    }

    /// Removes an adapter.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_dir_all(self.model().join("adapters").join(name)).unwrap();
    }
}

/// Writes a PEFT adapter of rank 4 on the output and down projections, large enough to change every answer.
fn write_peft(dir: &Path, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["down_proj", "o_proj"]}"#;
    fs::write(dir.join("adapter_config.json"), config).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tensors = Vec::new();
    let config = fs::read(root().join("tests/fixtures/adapters/bases/llama/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let size = |field: &str| usize::try_from(config[field].as_u64().unwrap()).unwrap();
    assert_eq!(size("hidden_size"), HIDDEN);
    for layer in 0..size("num_hidden_layers") {
        for (module, inputs) in [
            ("self_attn.o_proj", size("num_attention_heads") * size("head_dim")),
            ("mlp.down_proj", size("intermediate_size")),
        ] {
            for (matrix, shape) in [("lora_A", [4, inputs]), ("lora_B", [HIDDEN, 4])] {
                let name = format!("base_model.model.model.layers.{layer}.{module}.{matrix}.weight");
                let numbers =
                    (0..shape[0] * shape[1]).flat_map(|_| rng.random_range(-1f32..1.0).to_le_bytes());
                tensors.push((name, shape.to_vec(), numbers.collect::<Vec<u8>>()));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
}
