//! Filters that change text.

use minijinja::{Environment, Error, State, Value, value::ValueKind};

use super::{
    super::{
        arguments::Arguments,
        call_arguments::{CallArguments, refuse, split},
        case::capitalize,
        methods,
        objects::Generator,
        percent,
        register::add_filter,
        repr::{charge_text, repr, to_text},
        spec::Spec,
    },
    values::{items_of, length, text_of},
};

/// Adds the filters of this module.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "capitalize", |_, a| Ok(Value::from(capitalize(&text_of(&a[0])))));
    add_filter(environment, "lower", |_, a| Ok(Value::from(text_of(&a[0]).to_lowercase())));
    add_filter(environment, "upper", |_, a| Ok(Value::from(text_of(&a[0]).to_uppercase())));
    add_filter(environment, "title", |_, a| Ok(Value::from(title(&text_of(&a[0])))));
    add_filter(environment, "string", |state, a| string(state, &a[0]));
    add_filter(environment, "pprint", |_, a| Ok(Value::from(sorted_repr(&a[0]))));
    add_filter(environment, "trim", trim);
    add_filter(environment, "replace", replace);
    add_filter(environment, "center", center);
    add_filter(environment, "indent", indent);
    add_filter(environment, "truncate", truncate);
    add_filter(environment, "wordwrap", word_wrap);
    add_filter(environment, "wordcount", word_count);
    add_filter(environment, "format", format);
    add_filter(environment, "reverse", reverse);
    add_filter(environment, "length", length);
    add_filter(environment, "count", length);
}

fn string(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    let text = to_text(value);
    charge_text(state, value, &text)?;
    Ok(Value::from(text))
}

/// Unlike the method: a word begins only after white space, a hyphen or an opening bracket.
fn title(text: &str) -> String {
    let mut titled = String::new();
    let mut word = String::new();
    for c in text.chars() {
        if c.is_whitespace() || "-({[<".contains(c) {
            titled.push_str(&capitalize(&word));
            word.clear();
            titled.push(c);
        } else {
            word.push(c);
        }
    }
    titled + &capitalize(&word)
}

/// `pprint` sorts the keys of dictionaries. Unlike Python's, it does not wrap long values.
fn sorted_repr(value: &Value) -> String {
    if value.kind() != ValueKind::Map {
        return repr(value);
    }
    let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
    let mut pairs: Vec<_> = pairs.into_iter().flatten().collect();
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    repr(&Value::from_pairs(pairs))
}

fn trim(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("trim", &["value", "chars"], 1, given)?;
    let text = Value::from(text_of(&arguments.value(0)));
    let characters: Vec<Value> = arguments.get(1).cloned().into_iter().collect();
    methods::call(state, &text, "strip", &characters)
}

fn replace(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("replace", &["s", "old", "new", "count"], 3, given)?;
    let text = Value::from(text_of(&arguments.value(0)));
    let mut rest = vec![Value::from(text_of(&arguments.value(1))), Value::from(text_of(&arguments.value(2)))];
    rest.extend(arguments.get(3).filter(|count| !count.is_none()).cloned());
    methods::call(state, &text, "replace", &rest)
}

fn center(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("center", &["value", "width"], 1, given)?;
    let text = Value::from(text_of(&arguments.value(0)));
    methods::call(state, &text, "center", &[Value::from(arguments.integer(1)?.unwrap_or(80))])
}

fn indent(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("indent", &["s", "width", "first", "blank"], 1, given)?;
    let text = arguments.required_text(0)?.to_owned();
    let by = match arguments.get(1) {
        Some(width) if width.kind() == ValueKind::String => text_of(width),
        _ => {
            let width = usize::try_from(arguments.integer(1)?.unwrap_or(4)).unwrap_or_default();
            Spec { width, ..Spec::default() }.charge(state)?;
            " ".repeat(width)
        }
    };
    methods::charge(state, by.len().saturating_mul(text.matches('\n').count() + 1))?;
    let blank_too = arguments.flag(3);
    let mut indented = String::new();
    for (place, line) in text.split('\n').enumerate() {
        if place > 0 {
            indented.push('\n');
        }
        let is_wanted = if place == 0 { arguments.flag(2) } else { blank_too || !line.is_empty() };
        if is_wanted {
            indented.push_str(&by);
        }
        indented.push_str(line);
    }
    Ok(Value::from(indented))
}

fn truncate(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["s", "length", "killwords", "end", "leeway"];
    let arguments = Arguments::bind("truncate", &parameters, 1, given)?;
    let text = text_of(&arguments.value(0));
    let max = arguments.integer(1)?.unwrap_or(255);
    let leeway = arguments.integer(4)?.unwrap_or(5);
    let end = arguments.text(3)?.unwrap_or("...");
    let end_length = i64::try_from(end.chars().count()).unwrap_or(i64::MAX);
    if max < end_length || leeway < 0 {
        return Err(refuse(format!("truncate: expected length >= {end_length}, got {max}")));
    }
    if i64::try_from(text.chars().count()).unwrap_or(i64::MAX) <= max.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let kept: String = text.chars().take(usize::try_from(max - end_length).unwrap_or_default()).collect();
    if arguments.flag(2) {
        return Ok(Value::from(kept + end));
    }
    let words = kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words);
    Ok(Value::from(words.to_owned() + end))
}

fn word_wrap(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["s", "width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let arguments = Arguments::bind("wordwrap", &parameters, 1, given)?;
    let text = text_of(&arguments.value(0));
    let width = usize::try_from(arguments.integer(1)?.unwrap_or(79)).unwrap_or_default();
    if width == 0 {
        return Err(refuse("wordwrap: width must be greater than 0"));
    }
    let wrap = Wrap {
        width,
        breaks_words: arguments.get(2).is_none_or(Value::is_true),
        breaks_hyphens: arguments.get(4).is_none_or(Value::is_true),
    };
    let end = arguments.text(3)?.unwrap_or("\n");
    let lines: Vec<String> = methods::lines(&text, false).map(|line| wrap.wrap(line).join(end)).collect();
    Ok(Value::from(lines.join(end)))
}

/// Python's `textwrap.wrap`, keeping white space inside lines.
struct Wrap {
    width: usize,
    breaks_words: bool,
    breaks_hyphens: bool,
}

impl Wrap {
    fn wrap(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        for chunk in self.chunks(text) {
            if length_of(&line) + length_of(&chunk) <= self.width {
                line.push_str(&chunk);
                continue;
            }
            let mut rest = chunk;
            if length_of(&rest) > self.width {
                rest = self.take_long_word(&mut line, rest, &mut lines);
            } else {
                close(&mut line, &mut lines);
            }
            if !(line.is_empty() && rest.trim().is_empty() && !lines.is_empty()) {
                line.push_str(&rest);
            }
        }
        close(&mut line, &mut lines);
        lines
    }

    /// A word that is wider than a line fills as many lines as it needs; its rest begins the next.
    fn take_long_word(&self, line: &mut String, mut word: String, lines: &mut Vec<String>) -> String {
        if !self.breaks_words {
            if !line.is_empty() {
                close(line, lines);
            }
            return word;
        }
        while length_of(line) + length_of(&word) > self.width {
            let room = self.width - length_of(line);
            let cut = word.char_indices().nth(room).map_or(word.len(), |(byte, _)| byte);
            line.push_str(&word[..cut]);
            word.drain(..cut);
            close(line, lines);
        }
        word
    }

    /// Words, the white space between them, and the parts of hyphenated words.
    fn chunks(&self, text: &str) -> Vec<String> {
        let mut chunks: Vec<String> = Vec::new();
        let mut before = None;
        for c in text.chars() {
            let joins = match before {
                None => false,
                Some('-') if self.breaks_hyphens && c.is_alphabetic() => !breaks_behind_hyphen(chunks.last()),
                Some(before) => char::is_whitespace(before) == c.is_whitespace(),
            };
            match chunks.last_mut() {
                Some(last) if joins => last.push(c),
                _ => chunks.push(c.to_string()),
            }
            before = Some(c);
        }
        chunks
    }
}

/// A hyphen breaks a word that has two letters before it.
fn breaks_behind_hyphen(chunk: Option<&String>) -> bool {
    let mut before = chunk.map(String::as_str).unwrap_or_default().chars().rev().skip(1);
    before.next().is_some_and(char::is_alphabetic) && before.next().is_some_and(char::is_alphabetic)
}

fn length_of(text: &str) -> usize {
    text.chars().count()
}

/// Ends a line, without the white space at its end.
fn close(line: &mut String, lines: &mut Vec<String>) {
    let text = line.trim_end();
    if !text.is_empty() {
        lines.push(text.to_owned());
    }
    line.clear();
}

fn word_count(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let text = text_of(&given[0]);
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    Ok(Value::from(words.count()))
}

/// `'%s' | format(value)`.
fn format(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let CallArguments { positional, named } = split(given)?;
    let [format, operands @ ..] = positional else { return Err(refuse("format requires a format string")) };
    let operand = match (operands.is_empty(), named.is_empty()) {
        (_, true) => minijinja::value::Tuple::from(operands).into(),
        (true, false) => Value::from_pairs(named),
        (false, false) => return Err(refuse("format cannot take positional and named arguments at once")),
    };
    percent::format(state, &text_of(format), &operand).map(Value::from)
}

fn reverse(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = &given[0];
    if value.kind() == ValueKind::String {
        return Ok(Value::from(text_of(value).chars().rev().collect::<String>()));
    }
    let mut items = items_of(value).map_err(|_| refuse("reverse: argument must be iterable"))?;
    items.reverse();
    Ok(Generator::value(items))
}
