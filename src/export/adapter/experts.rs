//! Low-rank matrices for tensors that hold all experts of a layer, as PEFT's `target_parameters` trains them.
//!
//! In transformers, experts are two parameters of one module: gate and up as `[experts, 2 · width, hidden]` or transposed, and
//! down. PEFT has one pair of matrices for each, in which experts take turns:
//!
//! ```text
//! A [experts · rank, in]   rows e · rank + r belong to expert e
//! B [out, rank · experts]  columns r · experts + e belong to expert e
//! ```
//!
//! Releases of PEFT before 0.18 have A and B the other way round for parameters that are stored as `[experts, out, in]`: then `A` is as
//! wide as the output. Two parameters of one module are `module` and `module.base_layer`; which is which follows from the shapes.

use std::collections::BTreeMap;

use super::{
    Adapter, AdapterError,
    expert_product::ExpertProduct,
    merge::Change,
    tensors::{Module, Part},
};
use crate::export::{
    blueprint::{Blueprint, Expert, SparseMlp},
    param::{Lines, Param},
};

/// The experts of the layer whose module is called `name`, without prefixes: `layers.N.….experts`.
fn experts_of<'a>(blueprint: &'a Blueprint, name: &str) -> Option<&'a SparseMlp> {
    let name = name.strip_suffix(".base_layer").unwrap_or(name);
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let is_module = rest.ends_with(".experts") && rest.split('.').count() == 2;
    let layer = blueprint.layers.get(layer.parse::<usize>().ok()?)?;
    layer.mlp.sparse().filter(|_| is_module)
}

/// Modules of routers by the names that transformers has for them, where those differ from the checkpoint's.
pub(super) fn routers(blueprint: &Blueprint) -> BTreeMap<String, String> {
    let layers = blueprint.layers.iter().enumerate();
    let named = layers.filter_map(|(number, layer)| {
        let sparse = layer.mlp.sparse()?;
        let name = sparse.router_in_memory?;
        Some((format!("layers.{number}.{name}"), sparse.router.weight.module().to_owned()))
    });
    named.collect()
}

/// Whether `module` is that of all experts of a layer.
pub(super) fn is_of_all(blueprint: &Blueprint, module: &str) -> bool {
    experts_of(blueprint, module).is_some()
}

/// Whether a module of all experts can have `part`.
pub(super) fn has(part: Part) -> bool {
    matches!(part, Part::LoraA | Part::LoraB)
}

impl Adapter {
    /// The changes of `module`, called `name` without prefixes, to the experts of its layer, each with the name of a tensor.
    pub(super) fn expert_deltas(
        &self,
        blueprint: &Blueprint,
        (name, module): (&str, &Module),
    ) -> Result<Vec<(String, Change)>, AdapterError> {
        let Some(sparse) = experts_of(blueprint, name) else { return Ok(Vec::new()) };
        let (a, b) = match (module.parts.get(&Part::LoraA), module.parts.get(&Part::LoraB)) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => return Err(self.incomplete(module, Part::LoraA, Part::LoraB)),
            (None, Some(_)) => return Err(self.incomplete(module, Part::LoraB, Part::LoraA)),
            (None, None) => return Ok(Vec::new()),
        };
        let around = module.name.strip_suffix(".base_layer").unwrap_or(&module.name);
        let shapes = (self.file.shape(a), self.file.shape(b));
        let rank = |parameter: &str| self.settings.rank(&format!("{around}.{parameter}"));
        let Some(parameter) = Parameter::of(sparse, shapes, [rank(GATE_UP)?, rank(DOWN)?]) else {
            return Err(self.no_parameter(a, sparse, [rank(GATE_UP)?, rank(DOWN)?]));
        };
        let name = format!("{around}.{}", parameter.name);
        if !self.settings.names_parameter(&name) {
            return Err(self.contradiction(a, "target_parameters does not name it"));
        }
        let experts = sparse.experts.len();
        let product = ExpertProduct {
            a: a.clone(),
            b: b.clone(),
            rank: parameter.rank,
            scale: self.weight * self.settings.scale(&name)?,
            expert: 0,
            experts,
            first: 0,
            step: 1,
            outputs: parameter.outputs,
            is_reversed: parameter.is_reversed,
        };
        let mut deltas = Vec::new();
        for (expert, tensors) in sparse.experts.iter().enumerate() {
            for (param, first, step) in parameter.parts(tensors) {
                let product = ExpertProduct { expert, first, step, ..product.clone() };
                deltas.push((param.name.clone(), Change::Expert(product)));
            }
        }
        Ok(deltas)
    }

    fn no_parameter(&self, tensor: &str, sparse: &SparseMlp, ranks: [usize; 2]) -> AdapterError {
        let experts = sparse.experts.len();
        let down = sparse.experts.first().map(|expert| expert.down.weight.shape);
        let [hidden, width] = down.map_or([0, 0], |shape| [shape.rows(), shape.cols()]);
        let [gate_up, down] = ranks.map(|rank| experts.saturating_mul(rank));
        let expected = format!(
            "[{gate_up}, {hidden}] for gate and up, or [{down}, {width}] for down, of {experts} experts"
        );
        self.file.shape_error(tensor, expected).into()
    }
}

/// A parameter of all experts.
struct Parameter {
    name: &'static str,
    rank: usize,
    outputs: usize,
    is_reversed: bool,
}

const GATE_UP: &str = "gate_up_proj";
const DOWN: &str = "down_proj";

impl Parameter {
    /// The one that matrices of these shapes are for.
    fn of(sparse: &SparseMlp, (a, b): (&[usize], &[usize]), [gate_up, down]: [usize; 2]) -> Option<Self> {
        let expert = sparse.experts.first()?;
        let (hidden, width) = (expert.down.weight.shape.rows(), expert.down.weight.shape.cols());
        let parameters = [(GATE_UP, gate_up, [hidden, 2 * width]), (DOWN, down, [width, hidden])];
        for is_reversed in [false, true] {
            for (name, rank, [input, outputs]) in parameters {
                let all = rank.checked_mul(sparse.experts.len())?;
                let [first, second] = if is_reversed { [outputs, input] } else { [input, outputs] };
                if a == [all, first] && b == [second, all] {
                    return Some(Self { name, rank, outputs, is_reversed });
                }
            }
        }
        None
    }

    /// The tensors of an expert that are in the parameter, each with its first output there and the distance of neighbours.
    fn parts<'a>(&self, expert: &'a Expert) -> Vec<(&'a Param, usize, usize)> {
        let Expert { gate, up, down } = expert;
        if self.name == DOWN {
            return vec![(&down.weight, 0, 1)];
        }
        let width = gate.weight.shape.rows();
        match up.weight.lines {
            Lines::Turns { start, of, .. } => vec![(&gate.weight, 0, of), (&up.weight, start, of)],
            _ => vec![(&gate.weight, 0, 1), (&up.weight, width, 1)],
        }
    }
}
