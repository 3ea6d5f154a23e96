//! Prompts for the text between two others ("fill in the middle"), as models of code were trained with.
//!
//! A format is recognised by its tokens: a tokenizer that has them belongs to a model that was trained with them.

use crate::text::Text;

/// The tokens of a format, and the order of the two texts.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    prefix: &'static str,
    suffix: &'static str,
    /// Begins the answer; empty where the prompt ends with the text before the gap.
    middle: &'static str,
    is_suffix_first: bool,
}

const fn marks(prefix: &'static str, suffix: &'static str, middle: &'static str) -> Marks {
    Marks { prefix, suffix, middle, is_suffix_first: false }
}

/// Qwen Coder, CodeGemma and Granite; StarCoder; SantaCoder; DeepSeek Coder; CodeLlama; GLM; Codestral.
static FORMATS: [Marks; 7] = [
    marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    marks("▁<PRE>", "▁<SUF>", "▁<MID>"),
    marks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    Marks { prefix: "[PREFIX]", suffix: "[SUFFIX]", middle: "", is_suffix_first: true },
];

/// Tokens after the text of a file, which end an answer: the next file or repository, or padding.
const ENDS: [&str; 5] =
    ["<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"];

/// Tokens before the name of a file.
const SEPARATORS: [&str; 3] = ["<|file_sep|>", "<|file_separator|>", "<file_sep>"];

/// How a model fills in the middle of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FillInMiddle {
    marks: &'static Marks,
    ends: [Option<u32>; ENDS.len()],
    /// The token before the name of a file.
    separator: Option<&'static str>,
}

impl FillInMiddle {
    /// How the model of `text` fills in the middle of a text; `None` if its tokenizer has no tokens for that.
    pub(crate) fn of(text: &Text) -> Option<Self> {
        let has = |token: &str| token.is_empty() || text.added_token(token).is_some();
        let marks =
            FORMATS.iter().find(|marks| [marks.prefix, marks.suffix, marks.middle].into_iter().all(has))?;
        let separator = SEPARATORS.into_iter().find(|token| has(token));
        Some(Self { marks, ends: ENDS.map(|token| text.added_token(token)), separator })
    }

    /// The prompt for the text between `before` and `after`.
    pub(crate) fn prompt(&self, before: &str, after: &str) -> String {
        let Marks { prefix, suffix, middle, is_suffix_first } = self.marks;
        match is_suffix_first {
            true => format!("{suffix}{after}{prefix}{before}{middle}"),
            false => format!("{prefix}{before}{suffix}{after}{middle}"),
        }
    }

    /// Other files before a prompt, each with its name if it has one.
    pub(crate) fn files<'a>(&self, files: impl Iterator<Item = (Option<&'a str>, &'a str)>) -> String {
        let mark = self.separator.unwrap_or_default();
        let file =
            |(name, text): (Option<&str>, &str)| format!("{mark}{}\n{text}\n", name.unwrap_or_default());
        files.map(file).collect()
    }

    /// Tokens that end an answer besides the model's end tokens.
    pub(crate) fn end_tokens(&self) -> impl Iterator<Item = u32> + use<> {
        self.ends.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_in_the_order_that_each_format_has() {
        let prompt = |number: usize| {
            let format =
                FillInMiddle { marks: &FORMATS[number], ends: [None; ENDS.len()], separator: Some("<sep>") };
            format.files([(Some("f"), "x"), (None, "y")].into_iter()) + &format.prompt("a", "b")
        };
        assert_eq!(prompt(0), "<sep>f\nx\n<sep>\ny\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>");
        assert_eq!(prompt(6), "<sep>f\nx\n<sep>\ny\n[SUFFIX]b[PREFIX]a");
    }
}
