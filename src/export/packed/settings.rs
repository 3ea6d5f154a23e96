//! How a checkpoint says that its weights are packed.

use crate::export::json_config::{JsonConfig, JsonConfigError};

/// What a checkpoint's `quantization_config` says about weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::export) struct Packing {
    pub(super) method: Method,
    /// Bits of a packed number.
    pub(super) bits: u32,
    /// Rows and columns that share a scale, where scales are a grid.
    pub(super) block: [usize; 2],
    /// Numbers of 4 bits are floats.
    pub(super) is_float: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Words of numbers along the input; `is_second` without the one that the first version adds to zero points.
    Gptq { is_second: bool },
    /// Words of numbers along the output, in an order of their own.
    Awq,
    /// Words of numbers along the input of each output, or one number and its scales.
    CompressedTensors,
    /// Numbers in 8 bits, and scales.
    Fp8,
    /// Blocks of codes in a table, or numbers in 8 bits with a scale for each output.
    Bitsandbytes,
    /// OpenAI's: floats in 4 bits of all experts, in blocks with an exponent each.
    Mxfp4,
    /// NVIDIA's Model Optimizer: numbers in 8 bits, or floats in 4 bits with two scales.
    ModelOpt,
}

const FIELD: &str = "quant_method";

impl Packing {
    /// Reads the section of `config`; none if weights are not packed.
    pub(in crate::export) fn read(config: &JsonConfig) -> Result<Option<Self>, JsonConfigError> {
        let Some(section) = config.section("quantization_config")? else { return Ok(None) };
        let packing = |method, bits| Self { method, bits, block: [128, 128], is_float: false };
        Ok(Some(match section.text(FIELD)? {
            Some("gptq") => packing(read_gptq(&section)?, read_bits(&section, &[2, 4, 8])?),
            Some("awq") => {
                only(&section, "version", &["gemm"])?;
                packing(Method::Awq, read_bits(&section, &[4])?)
            }
            Some("bitsandbytes") => packing(Method::Bitsandbytes, 4),
            Some("mxfp4") => packing(Method::Mxfp4, 4),
            Some("fbgemm_fp8") => packing(Method::Fp8, 8),
            Some("fp8") => {
                Self { block: read_block(&section, "weight_block_size")?, ..packing(Method::Fp8, 8) }
            }
            Some("compressed-tensors") => read_compressed(&section)?,
            Some("modelopt") => match section.text("quant_algo")? {
                Some("NVFP4") => Self { is_float: true, ..packing(Method::ModelOpt, 4) },
                Some("FP8") => packing(Method::ModelOpt, 8),
                _ => return Err(section.unsupported("quant_algo", "NVFP4, FP8")),
            },
            _ => {
                let known = "gptq, awq, bitsandbytes, fp8, fbgemm_fp8, mxfp4, compressed-tensors, modelopt; take the model that these \
                             weights were quantized from, and quantize it here with --quantize";
                return Err(section.unsupported(FIELD, known));
            }
        }))
    }

    /// Its name, for notes.
    pub(in crate::export) const fn name(self) -> &'static str {
        match self.method {
            Method::Gptq { .. } => "GPTQ",
            Method::Awq => "AWQ",
            Method::CompressedTensors => "compressed-tensors",
            Method::Fp8 => "FP8",
            Method::Bitsandbytes => "bitsandbytes",
            Method::Mxfp4 => "MXFP4",
            Method::ModelOpt => "ModelOpt",
        }
    }
}

fn read_gptq(section: &JsonConfig) -> Result<Method, JsonConfigError> {
    const FORMAT: &str = "checkpoint_format";
    only(section, FORMAT, &["gptq", "gptq_v2"])?;
    Ok(Method::Gptq { is_second: section.text(FORMAT)? == Some("gptq_v2") })
}

fn read_compressed(section: &JsonConfig) -> Result<Packing, JsonConfigError> {
    const FORMATS: [&str; 6] = [
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
    ];
    only(section, "format", &FORMATS)?;
    let groups =
        section.section("config_groups")?.ok_or_else(|| section.missing("config_groups", "an object"))?;
    let mut found = None;
    for (name, _) in groups.fields() {
        let group = groups.section(name)?.ok_or_else(|| groups.missing(name, "an object"))?;
        let weights = group.section("weights")?.ok_or_else(|| group.missing("weights", "an object"))?;
        let bits = read_bits_in(&weights, "num_bits", &[4, 8])?;
        let packing = Packing {
            method: Method::CompressedTensors,
            bits,
            block: read_block(&weights, "block_structure")?,
            is_float: bits == 4 && weights.text("type")? == Some("float"),
        };
        if found.is_some_and(|other| other != packing) {
            return Err(section.unsupported("config_groups", "groups with the same number of bits"));
        }
        found = Some(packing);
    }
    found.ok_or_else(|| section.missing("config_groups", "at least one group"))
}

fn read_block(section: &JsonConfig, field: &str) -> Result<[usize; 2], JsonConfigError> {
    match section.ids(field)?[..] {
        [] => Ok([128, 128]),
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows as usize, columns as usize]),
        _ => Err(section.wrong(field, "two positive numbers")),
    }
}

fn read_bits(section: &JsonConfig, supported: &[usize]) -> Result<u32, JsonConfigError> {
    read_bits_in(section, "bits", supported)
}

fn read_bits_in(section: &JsonConfig, field: &str, supported: &[usize]) -> Result<u32, JsonConfigError> {
    let bits = section.size(field)?;
    match u32::try_from(bits) {
        Ok(narrow) if supported.contains(&bits) => Ok(narrow),
        _ => Err(section.unsupported(field, format!("{supported:?}"))),
    }
}

/// Refuses another text in `field` than `supported`; it may be absent.
fn only(section: &JsonConfig, field: &str, supported: &[&str]) -> Result<(), JsonConfigError> {
    match section.text(field)? {
        Some(text) if !supported.contains(&text) => Err(section.unsupported(field, supported.join(", "))),
        _ => Ok(()),
    }
}
