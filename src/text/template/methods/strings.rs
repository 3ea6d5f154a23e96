//! Methods of strings.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Tuple, ValueKind},
};

use super::{
    super::{
        arguments::Arguments,
        braces::Formatter,
        call_arguments::{CallArguments, refuse, split},
        case::{self, capitalize, swap_case},
        repr::type_name,
        spec,
    },
    kinds,
};

/// Maximum length of a padded string, in characters.
const MAX_WIDTH: i64 = spec::MAX_WIDTH as i64;

/// All methods except those of [`kinds`].
pub(super) const METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Calls a method of a string.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    given: &[Value],
) -> Result<Value, Error> {
    let text = value.as_str().unwrap_or_default();
    if let Some(answer) = kinds::ask(text, name) {
        Arguments::bind("method", &[], 0, given)?;
        return Ok(Value::from(answer));
    }
    match name {
        "upper" | "lower" | "title" | "capitalize" | "swapcase" | "casefold" => {
            changed_case(text, name, given)
        }
        "strip" | "lstrip" | "rstrip" => strip(text, name, given),
        "split" | "rsplit" => split_text(text, name, given),
        "partition" | "rpartition" => partition(text, name, given),
        "splitlines" => {
            let arguments = Arguments::bind("splitlines", &["keepends"], 0, given)?;
            Ok(lines(text, arguments.flag(0)).map(Value::from).collect())
        }
        "startswith" | "endswith" => starts_or_ends(text, name, given),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, given),
        "removeprefix" | "removesuffix" => {
            let arguments = Arguments::bind("removeprefix", &[""], 1, given)?;
            let part = arguments.required_text(0)?;
            let rest = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        "replace" => replace(state, text, given),
        "ljust" | "rjust" | "center" | "zfill" => pad(state, text, name, given),
        "expandtabs" => expand_tabs(state, text, given),
        "join" => join(state, text, given),
        "format" => {
            let CallArguments { positional, named } = split(given)?;
            Formatter { state, positional, named }.format(text).map(Value::from)
        }
        "format_map" => format_map(state, text, given),
        "translate" => translate(state, text, given),
        "encode" => Ok(Value::from_bytes(text.as_bytes().to_vec())),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn changed_case(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    Arguments::bind("method", &[], 0, given)?;
    Ok(Value::from(match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "title" => case::title(text),
        "capitalize" => capitalize(text),
        "swapcase" => swap_case(text),
        _ => case::fold(text),
    }))
}

fn strip(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("strip", &[""], 0, given)?;
    let characters: Option<Vec<char>> = arguments.text(0)?.map(|text| text.chars().collect());
    let goes = |c: char| characters.as_ref().map_or(kinds::is_space(c), |characters| characters.contains(&c));
    Ok(Value::from(match name {
        "strip" => text.trim_matches(goes),
        "lstrip" => text.trim_start_matches(goes),
        _ => text.trim_end_matches(goes),
    }))
}

fn split_text(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("split", &["sep", "maxsplit"], 0, given)?;
    let max = arguments.integer(1)?.and_then(|max| usize::try_from(max).ok());
    let from_right = name == "rsplit";
    let parts: Vec<&str> = match arguments.text(0)? {
        Some("") => return Err(refuse("empty separator")),
        Some(separator) => match (max, from_right) {
            (None, _) => text.split(separator).collect(),
            (Some(max), false) => text.splitn(max.saturating_add(1), separator).collect(),
            (Some(max), true) => reversed(text.rsplitn(max.saturating_add(1), separator)),
        },
        None if from_right => split_space_from_right(text, max.unwrap_or(usize::MAX)),
        None => split_space(text, max.unwrap_or(usize::MAX)),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn reversed<'a>(parts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut parts: Vec<_> = parts.collect();
    parts.reverse();
    parts
}

fn split_space(text: &str, max: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(kinds::is_space);
    while !rest.is_empty() {
        if parts.len() == max {
            parts.push(rest);
            break;
        }
        let (part, after) = rest.split_at(rest.find(kinds::is_space).unwrap_or(rest.len()));
        parts.push(part);
        rest = after.trim_start_matches(kinds::is_space);
    }
    parts
}

fn split_space_from_right(text: &str, max: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(kinds::is_space);
    while !rest.is_empty() {
        if parts.len() == max {
            parts.push(rest);
            break;
        }
        let space = rest.char_indices().rev().find(|(_, c)| kinds::is_space(*c));
        let start = space.map_or(0, |(place, c)| place + c.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(kinds::is_space);
    }
    reversed(parts.into_iter())
}

fn partition(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("partition", &[""], 1, given)?;
    let separator = arguments.required_text(0)?;
    if separator.is_empty() {
        return Err(refuse("empty separator"));
    }
    let parts = if name == "partition" {
        text.split_once(separator).map_or([text, "", ""], |(before, after)| [before, separator, after])
    } else {
        text.rsplit_once(separator).map_or(["", "", text], |(before, after)| [before, separator, after])
    };
    Ok(Tuple::from(parts.map(Value::from)).into())
}

/// Lines as `splitlines` returns them, split at every line end of Unicode.
pub(in super::super) fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(is_end).unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let length =
            if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        let whole = &rest[..end + length];
        rest = &after[length..];
        Some(if keep_ends { whole } else { line })
    })
}

/// The part between two positions, in characters, and its start.
fn part<'a>(text: &'a str, arguments: &Arguments) -> Result<(&'a str, usize), Error> {
    let (start, end) = (arguments.integer(1)?, arguments.integer(2)?);
    if start.is_none() && end.is_none() {
        return Ok((text, 0));
    }
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let place = |bound: Option<i64>, default: i64| {
        let bound = bound.unwrap_or(default);
        let bound = if bound < 0 { bound.saturating_add(length).max(0) } else { bound };
        usize::try_from(bound).unwrap_or_default()
    };
    let (start, end) = (place(start, 0), place(end, length).min(usize::try_from(length).unwrap_or_default()));
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(byte, _)| byte);
    if start > end {
        return Ok(("", usize::MAX));
    }
    Ok((&text[byte(start)..byte(end)], start))
}

fn starts_or_ends(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("startswith", &["", "", ""], 1, given)?;
    let (text, start) = part(text, &arguments)?;
    let fits = |affix: &Value| match affix.as_str() {
        _ if start == usize::MAX => Ok(false),
        Some(affix) if name == "startswith" => Ok(text.starts_with(affix)),
        Some(affix) => Ok(text.ends_with(affix)),
        None => Err(refuse(format!("{name} requires str or a tuple of str, not {}", type_name(affix)))),
    };
    let affix = arguments.value(0);
    if !affix.is_tuple() {
        return fits(&affix).map(Value::from);
    }
    for affix in affix.try_iter()? {
        if fits(&affix)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn search(text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("find", &["", "", ""], 1, given)?;
    let (text, start) = part(text, &arguments)?;
    let what = arguments.required_text(0)?;
    if name == "count" {
        return Ok(Value::from(if start == usize::MAX { 0 } else { text.matches(what).count() }));
    }
    let found = if name.starts_with('r') { text.rfind(what) } else { text.find(what) };
    match found.filter(|_| start != usize::MAX) {
        Some(byte) => Ok(Value::from(start + text[..byte].chars().count())),
        None if name.ends_with("index") => Err(refuse("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

/// Charges fuel for text before it is created.
pub(in super::super) fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / 64) as u64)
}

fn replace(state: &State<'_, '_>, text: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("replace", &["", "", ""], 2, given)?;
    let (old, new) = (arguments.required_text(0)?, arguments.required_text(1)?);
    let max = arguments.integer(2)?.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    let times = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    charge(state, times.min(max).saturating_mul(new.len()))?;
    Ok(Value::from(text.replacen(old, new, max)))
}

fn pad(state: &State<'_, '_>, text: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let parameters: &[&str] = if name == "zfill" { &[""] } else { &["", ""] };
    let arguments = Arguments::bind("ljust", parameters, 1, given)?;
    let width = arguments.integer(0)?.unwrap_or_default();
    if width > MAX_WIDTH {
        return Err(refuse(format!("{name}: a field can have at most {MAX_WIDTH} characters")));
    }
    let mut fill = if name == "zfill" { "0" } else { arguments.text(1)?.unwrap_or(" ") }.chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(refuse("the fill character must be exactly one character long"));
    };
    let width = usize::try_from(width).unwrap_or_default();
    charge(state, width)?;
    Ok(Value::from(padded(text, name, width, fill)))
}

fn padded(text: &str, name: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let filling = |count: usize| fill.to_string().repeat(count);
    match name {
        "ljust" => text.to_owned() + &filling(missing),
        "rjust" => filling(missing) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", filling(missing))
        }
        _ => {
            // If the sides cannot be equal, the left one is wider if the whole width is odd, as in CPython.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", filling(left), filling(missing - left))
        }
    }
}

fn expand_tabs(state: &State<'_, '_>, text: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("expandtabs", &["tabsize"], 0, given)?;
    let size = arguments.integer(0)?.unwrap_or(8).clamp(0, MAX_WIDTH);
    let size = usize::try_from(size).unwrap_or_default();
    charge(state, text.matches('\t').count().saturating_mul(size))?;
    let mut expanded = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                expanded.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            c => {
                expanded.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::from(expanded))
}

fn join(state: &State<'_, '_>, separator: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("join", &[""], 1, given)?;
    let mut joined = String::new();
    for (place, item) in arguments.value(0).try_iter()?.enumerate() {
        let Some(text) = item.as_str().filter(|_| item.kind() == ValueKind::String) else {
            return Err(refuse(format!("sequence item {place}: expected str, not {}", type_name(&item))));
        };
        charge(state, separator.len() + text.len())?;
        if place > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
    }
    Ok(Value::from(joined))
}

fn format_map(state: &State<'_, '_>, text: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("format_map", &[""], 1, given)?;
    let map = arguments.value(0);
    let pairs = map.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
    let named = pairs.filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value))).collect();
    Formatter { state, positional: &[], named }.format(text).map(Value::from)
}

fn translate(state: &State<'_, '_>, text: &str, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("translate", &[""], 1, given)?;
    let table = arguments.value(0);
    let mut translated = String::new();
    for c in text.chars() {
        let found = table.get_item(&Value::from(u32::from(c)))?;
        match (found.as_str(), found.as_i64()) {
            (Some(text), _) => {
                charge(state, text.len())?;
                translated.push_str(text);
            }
            (None, Some(code)) => translated.extend(u32::try_from(code).ok().and_then(char::from_u32)),
            (None, None) if found.is_none() => {}
            (None, None) => translated.push(c),
        }
    }
    Ok(Value::from(translated))
}
