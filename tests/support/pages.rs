//! The Markdown pages of the documentation and their parts.

use std::{fs, path::PathBuf};

use super::program::root;

/// A page of the documentation.
pub(crate) struct Page {
    /// Relative to the repository.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A fenced block of code.
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) code: String,
}

/// All pages, the README first.
pub(crate) fn pages() -> Vec<Page> {
    let mut docs: Vec<String> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|path| path.ends_with(".md"))
        .collect();
    docs.sort();
    let first = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "models/README.md"].map(str::to_owned);
    first.into_iter().chain(docs).map(Page::read).collect()
}

impl Page {
    pub(crate) fn read(path: String) -> Self {
        let text = fs::read_to_string(root().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path, text }
    }

    /// The folder that links are relative to.
    pub(crate) fn folder(&self) -> PathBuf {
        root().join(&self.path).parent().unwrap().into()
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let fenced = self.text.split("```").skip(1).step_by(2);
        let block = |fenced: &str| {
            let (language, code) = fenced.split_once('\n').unwrap();
            Block { language: language.into(), code: code.into() }
        };
        fenced.map(block).collect()
    }

    /// The text without fenced blocks.
    pub(crate) fn prose(&self) -> String {
        self.text.split("```").step_by(2).collect()
    }

    /// The code spans (between backticks) of the prose.
    pub(crate) fn code_spans(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The headings as GitHub names them in links.
    pub(crate) fn anchors(&self) -> Vec<String> {
        self.prose().lines().filter(|line| line.starts_with('#')).map(anchor).collect()
    }
}

fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
