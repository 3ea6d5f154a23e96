//! Reads Rust source as words, which is all that the checks of the architecture need.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file of `src`, relative to it, with its text.
pub(super) fn source_files() -> Vec<(PathBuf, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&source, &mut paths);
    paths.sort();
    let file = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a readable source file");
        (path.strip_prefix(&source).expect("a path under src").to_owned(), text)
    };
    paths.into_iter().map(file).collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of this package") {
        let path = entry.expect("an entry of that folder").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Identifiers, `::` and single signs of `source`, without comments, strings and character literals.
pub(super) fn words(source: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), source);
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest).unwrap_or_else(|| {
            let identifier = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = if rest.starts_with("::") { 2 } else { identifier.max(first.len_utf8()) };
            words.push(rest[..length].to_owned());
            length
        });
        rest = &rest[length..];
    }
    words
}

/// How many bytes of comment, literal or white space `rest` starts with, if it does.
fn skipped(rest: &str) -> Option<usize> {
    let upto = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    let space = rest.len() - rest.trim_start().len();
    if space > 0 {
        Some(space)
    } else if rest.starts_with("//") {
        Some(upto("\n", 2))
    } else if rest.starts_with("/*") {
        Some(upto("*/", 2))
    } else if rest.starts_with("r\"") {
        Some(upto("\"", 2))
    } else if rest.starts_with("r#\"") {
        Some(upto("\"#", 3))
    } else if rest.starts_with('"') {
        Some(string_length(rest))
    } else {
        character_length(rest)
    }
}

/// Bytes of the string literal at the start of `rest`, both quotes included.
fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    let end = rest[1..].find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(rest.len(), |at| at + 2)
}

/// Bytes of the character literal at the start of `rest`; a lifetime has none.
fn character_length(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        return inside[2..].find('\'').map(|at| at + 4);
    }
    let character = inside.chars().next()?;
    inside[character.len_utf8()..].starts_with('\'').then(|| character.len_utf8() + 2)
}
