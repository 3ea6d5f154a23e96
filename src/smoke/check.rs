//! Compares an answer with what a suite expects.
//!
//! The script of an answer is determined by Unicode's tables. Characters that scripts share, such as digits, commas and the
//! danda, do not count.

use std::collections::BTreeMap;

use unicode_normalization::is_nfc;
use unicode_script::{Script, UnicodeScript};

use super::{answer::ObservedAnswer, suite::Expected};

/// Number of letters by script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letters(BTreeMap<&'static str, usize>);

impl Letters {
    /// Counts the letters and vowel signs of `text`.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut scripts = BTreeMap::new();
        for letter in text.chars().filter(|c| c.is_alphabetic()) {
            match letter.script() {
                // Scripts share these, for example the Arabic tatweel.
                Script::Common | Script::Inherited => {}
                script => *scripts.entry(script.full_name()).or_default() += 1,
            }
        }
        Self(scripts)
    }

    /// Share of the letters in `script`; `None` without letters.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "letters of an answer")]
    pub fn share(&self, script: Script) -> Option<f64> {
        let all: usize = self.0.values().sum();
        let inside = self.0.get(script.full_name()).copied().unwrap_or(0);
        (all > 0).then(|| inside as f64 / all as f64)
    }

    /// The scripts, most frequent first.
    fn shown(&self) -> String {
        let mut scripts: Vec<_> = self.0.iter().collect();
        scripts.sort_by_key(|(name, letters)| (std::cmp::Reverse(**letters), **name));
        let shown: Vec<_> = scripts.iter().map(|(name, letters)| format!("{letters} {name}")).collect();
        if shown.is_empty() { "none".into() } else { shown.join(", ") }
    }
}

/// All differences between an answer and what is expected.
#[must_use]
pub fn problems(expected: &Expected, seen: &ObservedAnswer) -> Vec<String> {
    let mut wrong = Vec::new();
    if seen.text.is_empty() && expected.text.as_deref() != Some("") {
        wrong.push("no text".to_owned());
    }
    if seen.text.contains('\u{fffd}') {
        wrong.push("contains U+FFFD, the mark of invalid UTF-8".into());
    }
    if expected.is_nfc && !is_nfc(&seen.text) {
        wrong.push("not in Unicode normal form C".into());
    }
    wrong.extend(script(expected, &seen.text));
    wrong.extend(words(expected, &seen.text));
    wrong.extend(limits(expected, seen));
    if seen.pieces != seen.text {
        wrong.push(format!("the pieces of the stream differ from the whole text: {:?}", seen.pieces));
    }
    wrong
}

fn script(expected: &Expected, text: &str) -> Option<String> {
    let (script, min) = expected.script?;
    let letters = Letters::of(text);
    let share = letters.share(script).unwrap_or(0.0);
    (share < min).then(|| {
        format!(
            "{:.0} % of the letters are {}, expected at least {:.0} %; letters: {}",
            (share * 100.0).floor(),
            script.full_name(),
            min * 100.0,
            letters.shown()
        )
    })
}

fn words(expected: &Expected, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(wanted) = expected.text.as_ref().filter(|wanted| *wanted != text) {
        wrong.push(format!("expected {wanted:?}"));
    }
    if let Some(regex) = &expected.regex {
        match regex.is_match(text) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("no match for /{}/", regex.as_str())),
            Err(error) => wrong.push(format!("cannot search for /{}/: {error}", regex.as_str())),
        }
    }
    wrong
}

fn limits(expected: &Expected, seen: &ObservedAnswer) -> Vec<String> {
    let mut wrong = Vec::new();
    let tokens = seen.completion_tokens;
    if let Some(max) = expected.max_ms.filter(|max| seen.response_ms > *max) {
        wrong.push(format!("took {:.0} ms, expected at most {max:.0}", seen.response_ms));
    }
    if let Some(min) = expected.min_tokens.filter(|min| tokens < *min) {
        wrong.push(format!("{tokens} tokens, expected at least {min}"));
    }
    if let Some(max) = expected.max_tokens.filter(|max| tokens > *max) {
        wrong.push(format!("{tokens} tokens, expected at most {max}"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            script: None,
            text: None,
            regex: None,
            max_ms: None,
            min_tokens: None,
            max_tokens: None,
            is_nfc: true,
        }
    }

    fn seen(text: &str) -> ObservedAnswer {
        let (text, pieces) = (text.to_owned(), text.to_owned());
        ObservedAnswer { text, pieces, completion_tokens: 5, response_ms: 20.0, ..ObservedAnswer::default() }
    }

    #[test]
    fn characters_that_scripts_share_do_not_count() {
        let letters = Letters::of("सुप्रभात, दोस्त। 123 ٣ …");
        assert_eq!(letters.share(Script::Devanagari), Some(1.0));
        assert_eq!(Letters::of("123, ।").share(Script::Devanagari), None);
        // Half of the letters, and a tatweel that does not count.
        assert_eq!(Letters::of("abـبت").share(Script::Arabic), Some(0.5));
    }

    #[test]
    fn an_answer_in_another_script_is_wrong() {
        let hindi = Expected { script: Some((Script::Devanagari, 0.9)), ..expected() };
        assert!(problems(&hindi, &seen("सुप्रभात, दोस्त।")).is_empty());
        let wrong = problems(&hindi, &seen("The sea is beautiful. समुद्र"));
        assert!(wrong[0].contains("Devanagari") && wrong[0].contains("17 Latin"), "{wrong:?}");
        assert_eq!(problems(&hindi, &seen("42.")).len(), 1, "an answer without letters is not Hindi");
        // Urdu is written in the Arabic script.
        assert_eq!(problems(&hindi, &seen("میں ایک کتاب پڑھ رہا ہوں۔")).len(), 1);
    }

    #[test]
    fn each_problem_has_its_own_message() {
        let regex = Some(fancy_regex::Regex::new("^b").unwrap());
        for (expected, text, phrase) in [
            (expected(), "", "no text"),
            (expected(), "a\u{fffd}", "U+FFFD"),
            (expected(), "e\u{301}", "normal form C"),
            (Expected { text: Some("b".into()), ..expected() }, "a", "expected \"b\""),
            (Expected { regex, ..expected() }, "a", "/^b/"),
            (Expected { max_ms: Some(10.0), ..expected() }, "a", "20 ms"),
            (Expected { min_tokens: Some(6), ..expected() }, "a", "at least 6"),
            (Expected { max_tokens: Some(4), ..expected() }, "a", "at most 4"),
        ] {
            let wrong = problems(&expected, &seen(text));
            assert!(wrong.len() == 1 && wrong[0].contains(phrase), "{phrase}: {wrong:?}");
        }
        assert!(problems(&Expected { is_nfc: false, ..expected() }, &seen("e\u{301}")).is_empty());
        let cut = ObservedAnswer { pieces: "a".into(), ..seen("ab") };
        assert!(problems(&expected(), &cut)[0].contains("pieces"));
    }
}
