//! `'{0.name:>5}'.format(value)`.

use minijinja::{Error, State, Value, value::ValueKind};

use super::{
    call_arguments::refuse,
    percent::{digits, take_until_closed},
    repr::{as_float, escape_non_ascii, repr, to_text, type_name},
    spec::Spec,
};

/// Specifications in specifications: `{:{width}}`.
const MAX_DEPTH: usize = 2;

/// Fills the fields of a format.
pub(super) struct Formatter<'a> {
    /// Charges fuel for the formatted text.
    pub(super) state: &'a State<'a, 'a>,
    /// Values of fields with a number, or without a name.
    pub(super) positional: &'a [Value],
    /// Values of fields with a name.
    pub(super) named: Vec<(String, Value)>,
}

/// Whether fields are numbered automatically or by the template, and the next number.
#[derive(Default)]
struct Numbering {
    next: usize,
    is_manual: bool,
}

impl Formatter<'_> {
    /// # Errors
    /// When the format is invalid, a value is missing or has the wrong type, or a width exceeds the limit.
    pub(super) fn format(&self, format: &str) -> Result<String, Error> {
        self.fill(format, &mut Numbering::default(), MAX_DEPTH)
    }

    fn fill(&self, format: &str, numbering: &mut Numbering, depth: usize) -> Result<String, Error> {
        if depth == 0 {
            return Err(refuse("max string recursion exceeded"));
        }
        let mut text = String::new();
        let mut rest = format.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' if rest.next_if_eq(&'{').is_some() => text.push('{'),
                '}' if rest.next_if_eq(&'}').is_some() => text.push('}'),
                '{' => {
                    let field = take_until_closed(&mut rest, '{', '}')
                        .ok_or_else(|| refuse("expected '}' before end of string"))?;
                    text.push_str(&self.field(&field, numbering, depth)?);
                }
                '}' => return Err(refuse("single '}' encountered in format string")),
                c => text.push(c),
            }
        }
        Ok(text)
    }

    fn field(&self, field: &str, numbering: &mut Numbering, depth: usize) -> Result<String, Error> {
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (path, conversion) = head.split_once('!').unwrap_or((head, ""));
        let value = self.value(path, numbering)?;
        let spec = if spec.is_empty() { String::new() } else { self.fill(spec, numbering, depth - 1)? };
        let value = match conversion {
            "" => value,
            "s" => Value::from(to_text(&value)),
            "r" => Value::from(repr(&value)),
            "a" => Value::from(escape_non_ascii(&repr(&value))),
            other => return Err(refuse(format!("unknown conversion {other:?}"))),
        };
        self.formatted(&value, &spec)
    }

    /// `name` or `0`, with attributes and keys after it.
    fn value(&self, path: &str, numbering: &mut Numbering) -> Result<Value, Error> {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (first, mut rest) = path.split_at(end);
        let mut value = self.argument(first, numbering)?;
        while !rest.is_empty() {
            let (key, after) = if let Some(rest) = rest.strip_prefix('[') {
                rest.split_once(']').ok_or_else(|| refuse("missing ']' in format string"))?
            } else {
                let name = &rest[1..];
                name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
            };
            let is_item = rest.starts_with('[');
            let key = if is_item && let Ok(place) = key.parse::<usize>() {
                Value::from(place)
            } else {
                Value::from(key)
            };
            value = value.get_item(&key)?;
            rest = after;
        }
        Ok(value)
    }

    fn argument(&self, name: &str, numbering: &mut Numbering) -> Result<Value, Error> {
        let place = if name.is_empty() {
            if numbering.is_manual {
                return Err(refuse(
                    "cannot switch from manual field specification to automatic field numbering",
                ));
            }
            numbering.next += 1;
            numbering.next - 1
        } else if let Ok(place) = name.parse() {
            if numbering.next > 0 {
                return Err(refuse(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            numbering.is_manual = true;
            place
        } else {
            let found = self.named.iter().find(|(other, _)| other == name);
            return found
                .map(|(_, value)| value.clone())
                .ok_or_else(|| refuse(format!("no value for field {name:?}")));
        };
        self.positional.get(place).cloned().ok_or_else(|| refuse(format!("no value for field {place}")))
    }

    fn formatted(&self, value: &Value, spec: &str) -> Result<String, Error> {
        if spec.is_empty() {
            return Ok(to_text(value));
        }
        let mut spec = parse(spec)?;
        spec.charge(self.state)?;
        if value.kind() == ValueKind::String && spec.fill == '0' && spec.align == Some('=') {
            spec.align = Some('<');
        }
        match value.kind() {
            ValueKind::String if spec.is_for_text() => Ok(spec.string(&to_text(value))),
            ValueKind::Number | ValueKind::Bool if spec.kind == Some('s') => Err(wrong(&spec, value)),
            ValueKind::Number | ValueKind::Bool => number(spec, value),
            _ => Err(wrong(&spec, value)),
        }
    }
}

fn number(mut spec: Spec, value: &Value) -> Result<String, Error> {
    let is_whole = as_float(value).is_none();
    let is_fraction = matches!(spec.kind, Some('f' | 'F' | 'e' | 'E' | 'g' | 'G' | '%'));
    if is_whole && spec.precision.is_some() && !is_fraction {
        return Err(refuse("precision not allowed in integer format specifier"));
    }
    if !is_whole && spec.kind == Some('n') {
        spec.kind = Some('g');
    }
    spec.number(value)
}

fn wrong(spec: &Spec, value: &Value) -> Error {
    let code = spec.kind.map_or_else(String::new, String::from);
    refuse(format!("unsupported format code {code:?} for {}", type_name(value)))
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
fn parse(text: &str) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    let mut rest = text.chars().peekable();
    let is_align = |c: &char| matches!(c, '<' | '>' | '^' | '=');
    let mut ahead = text.chars();
    if let (Some(fill), Some(align)) = (ahead.next(), ahead.next().filter(is_align)) {
        (spec.fill, spec.align) = (fill, Some(align));
        rest.nth(1);
    } else {
        spec.align = rest.next_if(is_align);
    }
    spec.sign = rest.next_if(|c| matches!(c, '+' | '-' | ' ')).unwrap_or('-');
    spec.alternate = rest.next_if_eq(&'#').is_some();
    if rest.next_if_eq(&'0').is_some() {
        if spec.fill == ' ' {
            spec.fill = '0';
        }
        spec.align = spec.align.or(Some('='));
    }
    spec.width = digits(&mut rest)?.unwrap_or_default();
    spec.grouping = rest.next_if(|c| matches!(c, ',' | '_'));
    if rest.next_if_eq(&'.').is_some() {
        spec.precision =
            Some(digits(&mut rest)?.ok_or_else(|| refuse("format specifier missing precision"))?);
    }
    spec.kind = rest.next();
    match rest.next() {
        None => Ok(spec),
        Some(_) => Err(refuse(format!("invalid format specifier {text:?}"))),
    }
}
