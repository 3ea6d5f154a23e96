//! Breaks the lines of a streamed answer between words, because a terminal breaks them within a word.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text on its way to a terminal of `columns`.
pub(super) struct LineBreaks {
    columns: usize,
    /// Columns that are used in the current line.
    at: usize,
    /// The beginning of a word, held back until it is complete.
    word: String,
}

impl LineBreaks {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, at: 0, word: String::new() }
    }

    /// What can be shown after `text` has arrived.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut shown = String::new();
        for c in text.chars() {
            if c.is_whitespace() {
                self.end_word(&mut shown);
                self.space(c, &mut shown);
                continue;
            }
            self.word.push(c);
            // Scripts with wide characters do not separate words, and a word that fills a line cannot be kept whole.
            if c.width() == Some(2) || self.word.width() >= self.columns {
                self.end_word(&mut shown);
            }
        }
        shown
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> String {
        let mut shown = String::new();
        self.end_word(&mut shown);
        shown
    }

    fn end_word(&mut self, shown: &mut String) {
        let width = self.word.width();
        if self.at > 0 && self.at + width > self.columns {
            shown.push('\n');
            self.at = 0;
        }
        self.at += width;
        shown.push_str(&self.word);
        self.word.clear();
    }

    fn space(&mut self, c: char, shown: &mut String) {
        if c == '\n' {
            self.at = 0;
            shown.push(c);
        } else if self.at < self.columns {
            self.at += if c == '\t' { 8 - self.at % 8 } else { c.width().unwrap_or(0) };
            shown.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(columns: usize, chunks: &[&str]) -> String {
        let mut lines = LineBreaks::new(columns);
        let mut all: String = chunks.iter().map(|chunk| lines.push(chunk)).collect();
        all += &lines.finish();
        all
    }

    #[test]
    fn lines_break_between_words_wherever_the_chunks_end() {
        for chunks in [
            &["The river is long"][..],
            &["The ri", "ver", " is lo", "ng"],
            &["T", "he", " river is ", "long"],
        ] {
            assert_eq!(shown(10, chunks), "The river \nis long");
        }
        assert_eq!(
            shown(9, &["The river is long"]),
            "The river\nis long",
            "a space at the end of a line is dropped"
        );
        assert_eq!(shown(4, &["a\nbc de"]), "a\nbc \nde");
    }

    #[test]
    fn words_longer_than_a_line_and_scripts_without_spaces_are_shown_as_they_arrive() {
        let mut lines = LineBreaks::new(6);
        assert_eq!(lines.push("abcdefgh"), "abcdef");
        assert_eq!(lines.finish(), "\ngh");
        let mut lines = LineBreaks::new(6);
        assert_eq!(lines.push("日本"), "日本");
        assert_eq!(lines.push("語で"), "語\nで");
    }
}
