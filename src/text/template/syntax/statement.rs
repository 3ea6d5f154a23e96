//! Statements: the tags `{% … %}`.

use super::{
    expression::{Condition, Parser},
    lexer::{Tag, Token},
};

/// Open macros, and patches for pieces that were already written.
#[derive(Default)]
pub(super) struct Macros {
    open: Vec<Macro>,
    patches: Vec<(usize, String)>,
    /// `elif` tags so far.
    pub(super) branches: usize,
}

/// A macro whose end was not read yet.
struct Macro {
    /// The piece that opens it.
    place: usize,
    name: String,
    parameters: Vec<Parameter>,
    open: String,
    close: String,
    lines: usize,
    takes_named: bool,
    takes_more: bool,
}

struct Parameter {
    name: String,
    default: Option<String>,
    /// The default uses earlier parameters, which are not in scope there in minijinja.
    is_late: bool,
}

impl Macros {
    /// Rewrites the content of an expression tag.
    pub(super) fn expression(&mut self, parser: &mut Parser<'_>) -> Option<String> {
        let written = parser.tuple(Condition::Inside)?;
        self.note(parser);
        parser.is_at_end().then_some(written)
    }

    /// Rewrites the content of a statement tag, which becomes the piece at `place`.
    pub(super) fn statement(
        &mut self,
        parser: &mut Parser<'_>,
        tag: &Tag<'_>,
        place: usize,
    ) -> Option<String> {
        let name = parser.any_name()?;
        self.branches += usize::from(name == "elif");
        let written = match name {
            "if" | "elif" => format!("{name} {}", parser.tuple(Condition::Outside)?),
            "for" => for_loop(parser)?,
            "set" => set(parser, &tag.tokens)?,
            "filter" => format!("filter {}", filters(parser)?),
            "with" => with(parser)?,
            "call" => call(parser)?,
            "autoescape" => format!("autoescape {}", parser.expression()?),
            "macro" => self.open_macro(parser, tag, place)?,
            "endmacro" => self.close_macro(tag, place)?,
            // Jinja2 treats them as a separate scope.
            "generation" => "with".into(),
            "endgeneration" => "endwith".into(),
            // minijinja's own, which Jinja2 has as an extension that transformers does not load.
            "do" => "do_is_not_loaded".into(),
            // A template cannot load others: `transformers` gives Jinja2 no loader either.
            "include" | "extends" | "import" | "from" => return Some(format!("{name}_has_no_template")),
            _ => return None,
        };
        self.note(parser);
        (parser.is_at_end() || name == "endmacro").then_some(written)
    }

    /// Remembers what an open macro reads.
    fn note(&mut self, parser: &Parser<'_>) {
        if let Some(inner) = self.open.last_mut() {
            inner.takes_named |= parser.names.iter().any(|name| name == "kwargs");
            inner.takes_more |= parser.names.iter().any(|name| name == "varargs");
        }
    }

    fn open_macro(&mut self, parser: &mut Parser<'_>, tag: &Tag<'_>, place: usize) -> Option<String> {
        let name = parser.any_name()?.to_owned();
        let parameters = parameters(parser)?;
        let is_doubled = |(place, one): (usize, &Parameter)| {
            parameters[..place].iter().any(|other| other.name == one.name)
        };
        if parameters.iter().enumerate().any(is_doubled) {
            return Some("macro_with_a_doubled_parameter".into());
        }
        let opened = Macro {
            place,
            name,
            parameters,
            open: tag.open.to_owned(),
            close: tag.close.to_owned(),
            lines: tag.source.matches('\n').count(),
            takes_named: false,
            takes_more: false,
        };
        let written = opened.head();
        if opened.parameters.iter().any(|parameter| parameter.is_late) {
            self.patches.push((place, opened.piece()));
        }
        self.open.push(opened);
        Some(written)
    }

    fn close_macro(&mut self, tag: &Tag<'_>, place: usize) -> Option<String> {
        let closed = self.open.pop()?;
        if closed.takes_named || closed.takes_more {
            self.patches.push((closed.place, closed.piece()));
            let names: Vec<String> =
                closed.parameters.iter().map(|parameter| format!("'{}'", parameter.name)).collect();
            let (open, close, name) = (tag.open, tag.close, &closed.name);
            let (more, named) = (closed.takes_more, closed.takes_named);
            let collect = format!(
                "{{% set {name} = eka_collect({name}, [{}], {more}, {named}) {close}",
                names.join(", ")
            );
            self.patches.push((place, format!("{open} endmacro %}}{collect}")));
        }
        Some("endmacro".into())
    }

    /// Applies the patches.
    pub(super) fn patch(&mut self, pieces: &mut [String]) {
        for (place, piece) in self.patches.drain(..) {
            if let Some(old) = pieces.get_mut(place) {
                *old = piece;
            }
        }
    }
}

impl Macro {
    /// `macro name(parameters)`.
    fn head(&self) -> String {
        let mut parameters: Vec<String> = self.parameters.iter().map(Parameter::written).collect();
        parameters.extend(self.takes_more.then(|| "varargs=()".to_owned()));
        parameters.extend(self.takes_named.then(|| "kwargs={}".to_owned()));
        format!("macro {}({})", self.name, parameters.join(", "))
    }

    /// The whole tag, followed by assignments of late defaults.
    fn piece(&self) -> String {
        let late: Vec<String> = self.parameters.iter().filter_map(Parameter::late).collect();
        let tags: Vec<String> = std::iter::once(self.head()).chain(late).collect();
        let middle = tags.join(" %}{% ");
        format!("{} {middle}{} {}", self.open, "\n".repeat(self.lines), self.close)
    }
}

impl Parameter {
    fn written(&self) -> String {
        match &self.default {
            Some(default) if !self.is_late => format!("{}={default}", self.name),
            // Another default lets the parameters behind it have theirs.
            Some(_) => format!("{}=eka_unset", self.name),
            None => self.name.clone(),
        }
    }

    fn late(&self) -> Option<String> {
        let default = self.default.as_ref().filter(|_| self.is_late)?;
        let name = &self.name;
        Some(format!("set {name} = {name} if {name} is defined else ({default})"))
    }
}

fn parameters(parser: &mut Parser<'_>) -> Option<Vec<Parameter>> {
    let mut parameters: Vec<Parameter> = Vec::new();
    parser.expect("(")?;
    while !parser.take_sign(")") {
        if !parameters.is_empty() {
            parser.expect(",")?;
        }
        let name = parser.any_name()?.to_owned();
        let before = parser.names.len();
        let default = if parser.take_sign("=") { Some(parser.expression()?) } else { None };
        let reads = &parser.names[before..];
        let is_late = parameters.iter().any(|parameter| reads.contains(&parameter.name));
        parameters.push(Parameter { name, default, is_late });
    }
    Some(parameters)
}

fn for_loop(parser: &mut Parser<'_>) -> Option<String> {
    let mut target = String::new();
    while !parser.take_name("in") {
        target.push_str(parser.next()?.written());
        target.push(' ');
    }
    let items = parser.tuple(Condition::Outside)?;
    let mut written = format!("for {target}in eka_iter({items})");
    if parser.take_name("if") {
        written = format!("{written} if {}", parser.expression()?);
    }
    if parser.take_name("recursive") {
        written.push_str(" recursive");
    }
    Some(written)
}

fn set(parser: &mut Parser<'_>, tokens: &[Token]) -> Option<String> {
    let mut depth = 0;
    let mut target = String::new();
    // The name of the statement was read.
    for token in &tokens[1..] {
        match token {
            Token::Sign("(") => depth += 1,
            Token::Sign(")") => depth -= 1,
            Token::Sign("=") if depth == 0 => {
                parser.next();
                return Some(format!("set {target}= {}", parser.tuple(Condition::Inside)?));
            }
            Token::Sign("|") if depth == 0 => {
                parser.next();
                return Some(format!("set {target}| {}", filters(parser)?));
            }
            _ => {}
        }
        let is_joined = matches!(token, Token::Sign("."));
        if is_joined {
            target.truncate(target.trim_end().len());
        }
        target.push_str(parser.next()?.written());
        if !is_joined {
            target.push(' ');
        }
    }
    Some(format!("set {target}"))
}

fn filters(parser: &mut Parser<'_>) -> Option<String> {
    let mut written = parser.filter()?;
    while parser.take_sign("|") {
        written = format!("{written}|{}", parser.filter()?);
    }
    Some(written)
}

fn with(parser: &mut Parser<'_>) -> Option<String> {
    let mut parts = Vec::new();
    while !parser.is_at_end() {
        if !parts.is_empty() {
            parser.expect(",")?;
        }
        let name = parser.any_name()?;
        parser.expect("=")?;
        parts.push(format!("{name}={}", parser.expression()?));
    }
    Some(format!("with {}", parts.join(", ")))
}

fn call(parser: &mut Parser<'_>) -> Option<String> {
    let mut written = String::from("call");
    if parser.is_sign("(") {
        let parameters: Vec<String> = parameters(parser)?.iter().map(Parameter::written).collect();
        written = format!("{written}({})", parameters.join(", "));
    }
    Some(format!("{written} {}", parser.expression()?))
}
