//! How each module's weights are stored: a format for all, and another for some.
//!
//! Modules are called as the checkpoint calls them, without the prefixes that differ between checkpoints. A tied head and
//! the embedding's table are the same numbers and are stored once, so either name means both.
//!
//! That one matrix is read as input and as output, and in a small model it is a good part of all weights. With four bits
//! it does more harm than all others together (the figures are in [`export`](super)). So it has eight unless `keep`
//! overrides it, as in llama.cpp's four-bit files. Routers of experts are not quantized unless `keep` says so: they are small,
//! and rounding them changes which experts a token has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use crate::{
    device_spec::{BitBudget, BlockSize, WeightFormat},
    manifest::{Dtype, Override, Quantization},
};

use super::{
    blueprint::{Blueprint, Expert, Linear, LmHead, SparseMlp},
    param::{Param, module},
    quantize::{Bits, Quantizer, Rounding, ScaleType, ZeroPoints},
};

/// `MatMulNBits`' accuracy level that lets the CPU multiply in int8. Every other level is slower there, up to a hundred
/// times with 8-bit weights.
pub(super) const ACCURACY_LEVEL: u8 = 4;

/// How weights are stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    /// Format of matrices, unless `keep` overrides it. Other weights are stored in the type that they are computed with.
    pub format: WeightFormat,
    /// Block size of quantized matrices.
    pub block_size: BlockSize,
    /// Zero points of quantized matrices.
    pub zero_points: ZeroPoints,
    /// Rounding of quantized matrices.
    pub rounding: Rounding,
    /// Bits of the file for each weight. Matrices then have four or eight bits, whatever `format` says.
    pub bits: Option<BitBudget>,
    /// Formats of some modules. The last one that matches a module decides.
    pub keep: Vec<Keep>,
}

/// A format for some modules, written `PATTERN=FORMAT`.
///
/// The pattern is a module's name or its last dotted parts; `*` matches anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    pattern: String,
    format: WeightFormat,
}

/// A malformed [`Keep`].
#[derive(Debug, thiserror::Error)]
#[error("expected PATTERN=none, PATTERN=int8 or PATTERN=int4, such as lm_head=int8 or layers.0.*=none")]
pub struct KeepError;

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, KeepError> {
        match text.rsplit_once('=') {
            Some((pattern, format)) if !pattern.is_empty() => {
                Ok(Self { pattern: pattern.into(), format: format.parse().map_err(|_| KeepError)? })
            }
            _ => Err(KeepError),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.format)
    }
}

impl Keep {
    /// `format` for one module.
    pub(super) fn new(module: &str, format: WeightFormat) -> Self {
        Self { pattern: module.into(), format }
    }

    fn matches(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(dot, _)| &module[dot + 1..]);
        [module].into_iter().chain(ends).any(|end| is_like(end, &self.pattern))
    }
}

/// Whether `pattern` matches `name`; `*` matches anything.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).any(|i| name.is_char_boundary(i) && is_like(&name[i..], rest))
        }),
    }
}

/// A pattern that matches no module.
#[derive(Debug, thiserror::Error)]
#[error("no module of this model is called {pattern}; there are {}", modules.join(", "))]
pub struct NoSuchModule {
    /// The pattern.
    pattern: String,
    /// Patterns that match every module.
    modules: Vec<String>,
}

impl Storage {
    /// The manifest's entry for modules that no rule names.
    pub(super) fn quantization(&self) -> Option<Quantization> {
        self.quantizer(self.format).map(describe)
    }

    /// The manifest's entries for the other modules.
    pub(super) fn overrides(&self, blueprint: &Blueprint) -> Vec<Override> {
        let describe = |keep: Keep| Override {
            quantization: self.quantizer(keep.format).map(describe),
            modules: keep.pattern,
        };
        self.rules(blueprint).into_iter().map(describe).collect()
    }

    /// `keep`, and before it what goes without saying.
    pub(super) fn rules(&self, blueprint: &Blueprint) -> Vec<Keep> {
        let tied = self.format == WeightFormat::Int4 && matches!(blueprint.head, LmHead::Tied { .. });
        let table =
            || Keep { pattern: blueprint.embedding.table.module().into(), format: WeightFormat::Int8 };
        let gates =
            blueprint.sparse_mlps().flat_map(SparseMlp::gates).map(|gate| any_layer(gate.weight.module()));
        let gates: BTreeSet<String> = gates.collect();
        let gates = gates.into_iter().map(|pattern| Keep { pattern, format: WeightFormat::Full });
        tied.then(table).into_iter().chain(gates).chain(self.keep.iter().cloned()).collect()
    }

    /// Decides for every module of `blueprint`.
    pub(super) fn formats(&self, blueprint: &Blueprint) -> Result<Formats, NoSuchModule> {
        let mut formats = Formats { others: self.quantizer(self.format), modules: BTreeMap::new() };
        let modules = Module::all(blueprint);
        for rule in self.rules(blueprint) {
            let matched: Vec<_> = modules.iter().filter(|module| module.is_called(&rule)).collect();
            if matched.is_empty() {
                return Err(NoSuchModule { pattern: rule.pattern, modules: known(&modules) });
            }
            let quantizer = self.quantizer(rule.format);
            formats.modules.extend(matched.iter().map(|module| (module.name.into(), quantizer)));
        }
        Ok(formats)
    }

    fn quantizer(&self, format: WeightFormat) -> Option<Quantizer> {
        let bits = match format {
            WeightFormat::Full => return None,
            WeightFormat::Int8 => Bits::Eight,
            WeightFormat::Int4 => Bits::Four,
        };
        let Self { block_size, rounding, .. } = *self;
        let block_size = block_size.get();
        // Among four bits, the few modules with eight gain nothing that could be measured.
        let is_exception = bits == Bits::Eight && self.format == WeightFormat::Int4;
        let zero_points = if is_exception { ZeroPoints::Middle } else { self.zero_points };
        let scale_type = ScaleType::default();
        Some(Quantizer { bits, block_size, zero_points, scale_type, rounding, has_offsets: false })
    }
}

fn describe(quantizer: Quantizer) -> Quantization {
    Quantization {
        bits: quantizer.bits.count(),
        block_size: quantizer.block_size,
        zero_points: quantizer.zero_points == ZeroPoints::PerBlock,
        accuracy_level: ACCURACY_LEVEL,
    }
}

/// How each module is quantized, if at all.
#[derive(Clone, Debug)]
pub(super) struct Formats {
    others: Option<Quantizer>,
    modules: BTreeMap<String, Option<Quantizer>>,
}

impl Formats {
    /// The same, where linear layers that `repacks` says so for have offsets instead of zero points.
    pub(super) fn with_offsets(
        mut self,
        blueprint: &Blueprint,
        repacks: impl Fn(&Param, Quantizer) -> bool,
    ) -> Self {
        // Experts are in one tensor of their layer, which has no offsets.
        let experts: BTreeSet<&str> = blueprint
            .sparse_mlps()
            .flat_map(|sparse| &sparse.experts)
            .flat_map(|Expert { gate, up, down }| [gate, up, down])
            .map(|linear| linear.weight.module())
            .collect();
        let others = blueprint.linears().filter(|linear| !experts.contains(linear.weight.module()));
        for Linear { weight, .. } in others {
            let Some(quantizer) = self.of(weight).map(Quantizer::with_offsets) else { continue };
            if repacks(weight, quantizer) {
                self.modules.insert(weight.module().into(), Some(quantizer));
            }
        }
        self
    }

    /// The same, in a graph that computes in `dtype`.
    pub(super) fn for_graph(mut self, dtype: Dtype) -> Self {
        for quantizer in self.modules.values_mut().chain([&mut self.others]).flatten() {
            quantizer.scale_type = ScaleType::of_graph(dtype);
        }
        self
    }

    /// How `param` is quantized, if at all: in blocks that divide its rows where there are such blocks.
    pub(super) fn of(&self, param: &Param) -> Option<Quantizer> {
        let quantizer = self.modules.get(param.module()).copied().unwrap_or(self.others)?;
        Some(quantizer.fitting(param.shape.cols()))
    }
}

/// A matrix that may be quantized, by its names.
struct Module<'a> {
    name: &'a str,
    /// What the head is called that is tied to it.
    also: Option<&'a str>,
}

impl<'a> Module<'a> {
    fn all(blueprint: &'a Blueprint) -> Vec<Self> {
        let also = match &blueprint.head {
            LmHead::Tied { stored_as } => Some(module(stored_as)),
            LmHead::Separate(_) => None,
        };
        let table = Self { name: blueprint.embedding.table.module(), also };
        let linears = blueprint.linears().map(|linear| Self { name: linear.weight.module(), also: None });
        let tables =
            blueprint.per_layer.iter().map(|inputs| Self { name: inputs.table.module(), also: None });
        [table].into_iter().chain(tables).chain(linears).collect()
    }

    fn is_called(&self, keep: &Keep) -> bool {
        [self.name].into_iter().chain(self.also).any(|name| keep.matches(name))
    }
}

/// Every name, once for all layers.
fn known(modules: &[Module]) -> Vec<String> {
    let names = modules.iter().flat_map(|module| [module.name].into_iter().chain(module.also));
    names.map(any_layer).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A name with stars for numbers: of layers and of experts.
fn any_layer(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing;

    fn storage(keep: &[&str]) -> Storage {
        let keep = keep.iter().map(|keep| keep.parse().unwrap()).collect();
        Storage { format: WeightFormat::Int4, keep, ..Storage::default() }
    }

    fn bits(keep: &[&str], tied: bool, name: &str) -> Option<u8> {
        let formats = storage(keep).formats(&testing::blueprint(tied)).unwrap();
        formats.of(&Param::matrix(format!("{name}.weight"), 1, 1)).map(|quantizer| quantizer.bits.count())
    }

    #[test]
    fn a_pattern_is_a_name_or_its_end_or_has_stars() {
        let (first, second) = ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj");
        for (pattern, matched) in [
            ("layers.0.mlp.down_proj", [true, false]),
            ("down_proj", [true, true]),
            ("mlp.down_proj", [true, true]),
            ("layers.0.*", [true, false]),
            ("layers.*.down_proj", [true, true]),
            ("*", [true, true]),
            ("*1.*down*", [false, true]),
            ("own_proj", [false, false]),
            ("layers.1", [false, false]),
        ] {
            let keep: Keep = format!("{pattern}=int8").parse().unwrap();
            assert_eq!([first, second].map(|module| keep.matches(module)), matched, "{pattern}");
        }
    }

    #[test]
    fn modules_that_no_pattern_names_have_the_format_of_all_and_the_last_pattern_wins() {
        let keep = ["layers.0.*=none", "down_proj=int8"];
        assert_eq!(bits(&keep, false, "layers.0.mlp.up_proj"), None);
        assert_eq!(bits(&keep, false, "layers.0.mlp.down_proj"), Some(8));
        assert_eq!(bits(&keep, false, "layers.1.mlp.up_proj"), Some(4));
    }

    #[test]
    fn a_tied_head_and_the_embedding_are_one_matrix_with_two_names() {
        for name in ["lm_head", "embed_tokens"] {
            assert_eq!(bits(&[&format!("{name}=none")], true, "embed_tokens"), None, "{name}");
        }
        assert_eq!(bits(&["lm_head=int8"], false, "embed_tokens"), Some(4));
        assert_eq!(bits(&["lm_head=int8"], false, "lm_head"), Some(8));
    }

    #[test]
    fn a_tied_table_has_eight_bits_among_four_unless_another_is_asked_for() {
        assert_eq!(bits(&[], true, "embed_tokens"), Some(8));
        assert_eq!(bits(&["lm_head=int4"], true, "embed_tokens"), Some(4));
        assert_eq!(bits(&[], false, "embed_tokens"), Some(4));
        assert_eq!(bits(&[], true, "layers.0.mlp.up_proj"), Some(4));
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error_with_the_names_there_are() {
        let message = storage(&["q_prj=int8"]).formats(&testing::blueprint(true)).unwrap_err().to_string();
        for name in ["q_prj", "embed_tokens", "lm_head", "layers.*.self_attn.q_proj"] {
            assert!(message.contains(name), "{message}");
        }
        assert!(!message.contains("layers.1"), "{message}");
    }

    #[test]
    fn a_malformed_keep_rule_is_refused_with_examples() {
        for text in ["lm_head", "lm_head=int3", "=int8", "lm_head=", ""] {
            let message = text.parse::<Keep>().unwrap_err().to_string();
            assert!(message.contains("lm_head=int8"), "{text}: {message}");
        }
    }
}
