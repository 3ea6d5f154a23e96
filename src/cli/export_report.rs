//! `eka export --report`: compares an export with a float32 export of the same sources on a text.
//!
//! Both process the text in independent windows. Windows are short because the logits of a whole context of a large
//! vocabulary would not fit in memory.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    calibration_text::windows,
    engine_args::EngineArgs,
    logits::{Difference, divergence, log_softmax},
};
use crate::{
    device::Device,
    engine::{Forward, Timeline},
    text::Text,
};

/// Tokens per window.
const WINDOW: usize = 256;

/// Inputs of a comparison, opened before the export starts.
pub(super) struct Reporter<'a> {
    path: &'a Path,
    text: String,
    engine: &'a EngineArgs,
    device: &'a Device,
}

impl<'a> Reporter<'a> {
    /// Reads the text at `path`.
    ///
    /// # Errors
    /// When it cannot be read or is empty.
    pub(super) fn new(path: &'a Path, engine: &'a EngineArgs, device: &'a Device) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {} as UTF-8 text for --report", path.display()))?;
        ensure!(!text.trim().is_empty(), "{} is empty; --report needs a text", path.display());
        Ok(Self { path, text, engine, device })
    }

    /// Compares the export in `found` with the float32 export in `expected`.
    ///
    /// # Errors
    /// When a model does not run.
    pub(super) fn compare(&self, found: &Path, expected: &Path) -> anyhow::Result<Comparison> {
        let text = Arc::new(Text::open(found, "report")?);
        let mut models = [self.open(found)?, self.open(expected)?];
        let window = WINDOW.min(models[0].capacity());
        let mut comparison = Comparison::new(self.path);
        for window in windows(&text, &self.text, window)? {
            let [found, expected] = &mut models;
            comparison.add(&window, [&logits(found, &window)?, &logits(expected, &window)?]);
        }
        ensure!(
            comparison.predicted > 0,
            "{} has a single token; --report needs at least two",
            self.path.display()
        );
        comparison.name_worst(&text);
        Ok(comparison)
    }

    fn open(&self, dir: &Path) -> anyhow::Result<Timeline> {
        self.engine.open_on(self.device, dir)
    }
}

fn logits(model: &mut Timeline, window: &[u32]) -> anyhow::Result<Vec<f32>> {
    model.rewind(0);
    Ok(model.forward_all(window)?)
}

/// Number of positions with the largest divergence that a report names.
const WORST: usize = 5;

/// Tokens before a position that a report shows.
const CONTEXT: usize = 8;

/// What is compared at one position.
#[derive(Clone, Copy, Debug)]
struct PositionFigures {
    difference: Difference,
    divergence: f64,
    /// Log probabilities of the next token, if there is one: found, expected.
    next: Option<[f64; 2]>,
}

impl PositionFigures {
    fn new(found: &[f32], expected: &[f32], next: Option<u32>) -> Self {
        let mut difference = Difference::default();
        difference.add(found, expected);
        let [found, expected] = [found, expected].map(log_softmax);
        let next = next.map(|token| [found[token as usize], expected[token as usize]]);
        Self { difference, divergence: divergence(&found, &expected), next }
    }
}

/// A position where the two models differ most.
#[derive(Clone, Debug, Serialize)]
struct WorstToken {
    /// In nats.
    kl_divergence: f64,
    /// The text before it.
    context: String,
    /// The token that follows in the text.
    next: String,
    /// Its probabilities in both models.
    probability: f64,
    float32_probability: f64,
    #[serde(skip)]
    tokens: Vec<u32>,
}

/// The differences between two models on a text.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    worst: Vec<WorstToken>,
    path: PathBuf,
    difference: Difference,
    divergence: f64,
    /// Negative logarithms of the probabilities of the tokens that did come: found, expected.
    surprise: [f64; 2],
    predicted: usize,
}

impl Comparison {
    fn new(path: &Path) -> Self {
        let difference = Difference::default();
        Self {
            worst: Vec::new(),
            path: path.into(),
            difference,
            divergence: 0.0,
            surprise: [0.0; 2],
            predicted: 0,
        }
    }

    /// Adds a window's tokens, and the logits of every one: found, expected.
    fn add(&mut self, window: &[u32], logits: [&[f32]; 2]) {
        let vocabulary = logits[1].len() / window.len();
        let [found, expected] = logits.map(|logits| logits.par_chunks_exact(vocabulary));
        let next = |position: usize| window.get(position + 1).copied();
        let figures: Vec<PositionFigures> = found
            .zip(expected)
            .enumerate()
            .map(|(position, (found, expected))| PositionFigures::new(found, expected, next(position)))
            .collect();
        for (position, PositionFigures { difference, divergence, next }) in figures.into_iter().enumerate() {
            self.difference.merge(&difference);
            self.divergence += divergence;
            if let Some([found, expected]) = next {
                self.predicted += 1;
                self.surprise[0] -= found;
                self.surprise[1] -= expected;
                let context = &window[(position + 1).saturating_sub(CONTEXT)..=position + 1];
                self.consider(divergence, context, [found.exp(), expected.exp()]);
            }
        }
    }

    /// Keeps the position among the worst if it is one of them. The last of `tokens` is the next one.
    fn consider(&mut self, kl_divergence: f64, tokens: &[u32], [probability, float32_probability]: [f64; 2]) {
        let place = self.worst.partition_point(|worst| worst.kl_divergence >= kl_divergence);
        if place < WORST {
            let (context, next, tokens) = (String::new(), String::new(), tokens.to_vec());
            let worst = WorstToken { kl_divergence, context, next, probability, float32_probability, tokens };
            self.worst.insert(place, worst);
            self.worst.truncate(WORST);
        }
    }

    /// Decodes the tokens of the worst positions.
    fn name_worst(&mut self, text: &Arc<Text>) {
        for worst in &mut self.worst {
            if let Some((next, context)) = worst.tokens.split_last() {
                worst.context = text.decode_with_special(context);
                worst.next = text.decode_with_special(&[*next]);
            }
        }
    }

    /// Found, expected.
    fn perplexities(&self) -> [f64; 2] {
        self.surprise.map(|surprise| (surprise / self.predicted as f64).exp())
    }

    fn divergence(&self) -> f64 {
        self.divergence / self.difference.positions as f64
    }

    /// The figures of the comparison.
    pub(super) fn figures(&self) -> Figures {
        let Difference { positions, max, same_top, .. } = self.difference;
        let [perplexity, float32_perplexity] = self.perplexities();
        Figures {
            text: self.path.clone(),
            positions,
            max_difference: max,
            mean_difference: self.difference.mean(),
            rms_difference: self.difference.rms(),
            kl_divergence: self.divergence(),
            same_top,
            perplexity,
            float32_perplexity,
            worst_tokens: self.worst.clone(),
        }
    }

    /// Prints it below the figures of the export.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Figures { text, positions, same_top, perplexity, float32_perplexity, .. } = self.figures();
        writeln!(out, "  against float32, over {positions} tokens of {}", text.display())?;
        writeln!(out, "    max  |difference|  {:.3e}", self.difference.max)?;
        writeln!(out, "    mean |difference|  {:.3e}", self.difference.mean())?;
        writeln!(out, "    rms  |difference|  {:.3e}", self.difference.rms())?;
        writeln!(out, "    KL divergence      {:.3e} nats a token", self.divergence())?;
        let share = 100.0 * same_top as f64 / positions as f64;
        writeln!(out, "    same most probable token at {share:.2} % of positions")?;
        let ratio = perplexity / float32_perplexity;
        writeln!(
            out,
            "    perplexity {perplexity:.4}, of float32 {float32_perplexity:.4}: ratio {ratio:.4}"
        )?;
        if self.divergence > 0.0 {
            writeln!(
                out,
                "    largest divergences, with the probability of the next token here and in float32"
            )?;
            for WorstToken { kl_divergence, context, next, probability, float32_probability, .. } in
                &self.worst
            {
                writeln!(
                    out,
                    "      {kl_divergence:.2} nats  {probability:.4} {float32_probability:.4}  {context:?} {next:?}"
                )?;
            }
        }
        Ok(())
    }
}

/// The comparison of an export with float32, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    text: PathBuf,
    positions: usize,
    /// Of logits, like the next two; null if one of them is NaN.
    max_difference: f32,
    mean_difference: f64,
    rms_difference: f64,
    /// In nats a token.
    kl_divergence: f64,
    /// Positions with the same most probable token.
    same_top: usize,
    perplexity: f64,
    float32_perplexity: f64,
    /// The positions with the largest divergence.
    worst_tokens: Vec<WorstToken>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::export::{
        self, AdapterSource, Existing, Options, Rounding, Source, Storage, WeightFormat, ZeroPoints,
    };

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        engine: EngineArgs,
    }

    /// Every `step`-th translation of the demonstration's phrasebook, as its adapter was trained on them.
    fn chats(step: usize) -> String {
        let languages = ["Hindi", "Bengali", "Tamil", "Telugu", "Gujarati"];
        let rows = include_str!("../../scripts/demo/phrasebook.tsv").lines().skip(1).step_by(step);
        let chat = |row: &str| {
            let columns: Vec<&str> = row.split('\t').collect();
            let english = columns[2];
            let pairs = languages.iter().zip(&columns[3..]).map(|(language, answer)| {
                format!("<s><|user|>Translate to {language}: {english}<|end|><|assistant|>{answer}<|end|>")
            });
            pairs.collect::<String>()
        };
        rows.map(chat).collect()
    }

    struct Bench {
        dir: tempfile::TempDir,
        engine: EngineArgs,
        device: Device,
        text: PathBuf,
        float32: PathBuf,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (path, float32) = (dir.path().join("text.txt"), dir.path().join("float32"));
            fs::write(&path, text).unwrap();
            let engine = engine("");
            let device = engine.device().unwrap();
            let bench = Self { engine, device, text: path, float32, dir };
            bench.export(&bench.float32, Storage::default());
            bench
        }

        fn export(&self, output: &Path, weights: Storage) {
            let [base, adapter] = ["base", "adapter"].map(|part| Path::new("models/demo").join(part));
            let adapters = vec![AdapterSource { dir: adapter, weight: 1.0 }];
            let source = Source::Checkpoint { base, adapters };
            let (output, existing) = (output.to_owned(), Existing::Replace);
            let options = Options { weights, existing, ..Options::new(source, output) };
            export::export(&options, &()).unwrap();
        }

        /// One serves every comparison.
        fn reporter(&self) -> Reporter<'_> {
            Reporter::new(&self.text, &self.engine, &self.device).unwrap()
        }

        fn compare(&self, reporter: &Reporter, weights: Storage) -> Comparison {
            let output = self.dir.path().join("quantized");
            self.export(&output, weights);
            reporter.compare(&output, &self.float32).unwrap()
        }
    }

    fn int4(block_size: usize, zero_points: ZeroPoints, rounding: Rounding) -> Storage {
        let block_size = block_size.try_into().unwrap();
        Storage { format: WeightFormat::Int4, block_size, zero_points, rounding, ..Storage::default() }
    }

    fn engine(arguments: &str) -> EngineArgs {
        Command::parse_from(["test"].into_iter().chain(arguments.split_whitespace())).engine
    }

    /// One test, because a process opens its device once.
    #[test]
    fn reports_find_what_formats_operators_and_caches_change_and_no_more() {
        let bench = Bench::new(&chats(10));
        let reporter = bench.reporter();
        figures_are_what_formats_and_roundings_promise(&bench, &reporter);
        neither_our_operators_nor_a_smaller_cache_cost_perplexity(&bench, reporter);
    }

    /// Checks figures on the demonstration's text: equal logits, close logits, and the better of two roundings.
    fn figures_are_what_formats_and_roundings_promise(bench: &Bench, reporter: &Reporter) {
        let same = bench.compare(reporter, Storage::default());
        assert_eq!((same.difference.max, same.divergence()), (0.0, 0.0));
        let [found, expected] = same.perplexities();
        assert!(found == expected && (1.0..20.0).contains(&found), "{found} {expected}");

        let mut better = 0;
        for zero_points in [ZeroPoints::Middle, ZeroPoints::PerBlock] {
            for block_size in [32, 64, 128] {
                let [plain, fitted] = [Rounding::Plain, Rounding::LeastError]
                    .map(|rounding| bench.compare(reporter, int4(block_size, zero_points, rounding)));
                for (name, figures) in [("plain", &plain), ("least error", &fitted)] {
                    let [found, expected] = figures.perplexities();
                    let (divergence, rms) = (figures.divergence(), figures.difference.rms());
                    println!(
                        "{block_size} {zero_points:?}, {name}: KL {divergence:.5}, rms {rms:.4}, perplexity times {:.4}",
                        found / expected
                    );
                }
                let [found, expected] = fitted.perplexities();
                assert!(
                    (0.9..1.1).contains(&(found / expected)),
                    "{block_size} {zero_points:?}: {found}, {expected}"
                );
                better += usize::from(fitted.difference.rms() < plain.difference.rms());
            }
        }
        assert!(better >= 5, "least error gives the smaller differences in {better} of 6 formats");
    }

    /// Computes the same weights with eka's operators and every cache type, and with ONNX Runtime's: the perplexity is the same.
    fn neither_our_operators_nor_a_smaller_cache_cost_perplexity(bench: &Bench, reporter: Reporter) {
        let weights = int4(32, ZeroPoints::Middle, Rounding::LeastError);
        let ways = ["--own-operators false", "--kv-cache float32", "--kv-cache float16", "--kv-cache int8"];
        let engines = ways.map(engine);
        let mut reporter = reporter;
        let found = engines.each_ref().map(|engine| {
            reporter.engine = engine;
            bench.compare(&reporter, weights.clone()).perplexities()[0]
        });
        for (way, perplexity) in ways.iter().zip(found) {
            let ratio = perplexity / found[0];
            println!("{way}: {perplexity:.4}, {ratio:.5} of ONNX Runtime's");
            assert!((ratio - 1.0).abs() < 0.005, "{way}: {ratio}");
        }
        assert!(
            found[1..].iter().any(|perplexity| *perplexity != found[0]),
            "nothing but ONNX Runtime computed"
        );
    }
}
