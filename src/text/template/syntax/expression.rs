//! Expressions, parsed by Jinja2's grammar and written in minijinja's.
//!
//! Operands are written without extra parentheses where the grammars agree: minijinja limits the nesting, and templates
//! build prompts by long chains of `+`.

use super::{super::methods, lexer::Token};

/// Levels of parentheses, brackets and conditions: about as many as Python's recursion limit leaves to Jinja2. minijinja's
/// parser and compiler recurse over signs and chains of operators without a limit.
const MAX_DEPTH: usize = 100;

/// Maximum operators, attributes, calls and filters in one tag.
const MAX_LINKS: usize = 1_000;

/// Whether `if` ends an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// `a if b else c` is part of it.
    Inside,
    /// `if` belongs to the loop.
    Outside,
}

/// Parses tokens and writes minijinja's syntax.
pub(super) struct Parser<'a> {
    tokens: &'a [Token],
    place: usize,
    depth: usize,
    links: usize,
    /// Names that were read; a macro collects arguments if it reads `kwargs` or `varargs`.
    pub(super) names: Vec<String>,
}

impl<'a> Parser<'a> {
    pub(super) const fn new(tokens: &'a [Token]) -> Self {
        Self { tokens, place: 0, depth: 0, links: 0, names: Vec::new() }
    }

    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.place)
    }

    pub(super) fn next(&mut self) -> Option<&'a Token> {
        let token = self.peek();
        self.place += 1;
        token
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(other)) if *other == sign)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(other)) if other == name)
    }

    pub(super) fn take_sign(&mut self, sign: &str) -> bool {
        let is_there = self.is_sign(sign);
        self.place += usize::from(is_there);
        is_there
    }

    pub(super) fn take_name(&mut self, name: &str) -> bool {
        let is_there = self.is_name(name);
        self.place += usize::from(is_there);
        is_there
    }

    /// Takes the sign, or fails.
    pub(super) fn expect(&mut self, sign: &str) -> Option<()> {
        self.take_sign(sign).then_some(())
    }

    /// Any name.
    pub(super) fn any_name(&mut self) -> Option<&'a str> {
        match self.next() {
            Some(Token::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether the expression is nested too deeply.
    pub(super) const fn is_too_deep(&self) -> bool {
        self.depth > MAX_DEPTH || self.links > MAX_LINKS
    }

    /// Counts one more operator.
    fn link(&mut self) -> Option<()> {
        self.links += 1;
        (self.links <= MAX_LINKS).then_some(())
    }

    /// Whether all tokens were read.
    pub(super) const fn is_at_end(&self) -> bool {
        self.place >= self.tokens.len()
    }

    /// An expression, or several with commas between: a tuple.
    pub(super) fn tuple(&mut self, condition: Condition) -> Option<String> {
        let first = self.one(condition)?;
        if !self.is_sign(",") {
            return Some(first);
        }
        let mut items = vec![first];
        while self.take_sign(",") {
            if self.is_at_end() || self.is_sign("=") || self.is_name("recursive") || self.is_name("if") {
                break;
            }
            items.push(self.one(condition)?);
        }
        Some(format!("({},)", items.join(", ")))
    }

    fn one(&mut self, condition: Condition) -> Option<String> {
        match condition {
            Condition::Inside => self.expression(),
            Condition::Outside => self.or(),
        }
    }

    /// An expression, conditions included.
    pub(super) fn expression(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut written = self.or()?;
        while self.take_name("if") {
            self.link()?;
            let condition = self.or()?;
            let otherwise = if self.take_name("else") { Some(self.expression()?) } else { None };
            let otherwise = otherwise.map_or_else(String::new, |otherwise| format!(" else {otherwise}"));
            written = format!("{written} if {condition}{otherwise}");
        }
        self.depth -= 1;
        Some(written)
    }

    fn or(&mut self) -> Option<String> {
        self.chain("or", |parser| parser.chain("and", Self::not))
    }

    /// Operands that are joined by `operator`.
    fn chain(
        &mut self,
        operator: &str,
        mut operand: impl FnMut(&mut Self) -> Option<String>,
    ) -> Option<String> {
        let mut written = operand(self)?;
        while self.take_name(operator) {
            self.link()?;
            written = format!("{written} {operator} {}", operand(self)?);
        }
        Some(written)
    }

    fn not(&mut self) -> Option<String> {
        let mut written = String::new();
        while self.take_name("not") {
            self.link()?;
            written.push_str("not ");
        }
        written.push_str(&self.comparison()?);
        Some(written)
    }

    fn comparison(&mut self) -> Option<String> {
        let first = self.sum()?;
        let mut compared = Vec::new();
        let mut left = first.clone();
        let mut is_native = true;
        let mut native = first;
        while let Some(operator) = self.comparison_operator() {
            self.link()?;
            let right = self.sum()?;
            native = format!("{native} {operator} {right}");
            is_native &= matches!(operator, "==" | "!=");
            compared.push(compare(&left, operator, &right));
            left = right;
        }
        match compared.as_slice() {
            [] => Some(native),
            _ if is_native => Some(native),
            [one] => Some(one.clone()),
            several => Some(format!("({})", several.join(" and "))),
        }
    }

    fn comparison_operator(&mut self) -> Option<&'static str> {
        if self.take_name("in") {
            return Some("in");
        }
        if self.is_name("not")
            && matches!(self.tokens.get(self.place + 1), Some(Token::Name(name)) if name == "in")
        {
            self.place += 2;
            return Some("not in");
        }
        ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| self.take_sign(operator))
    }

    fn sum(&mut self) -> Option<String> {
        let mut written = self.concatenation()?;
        while let Some(operator) = ["+", "-"].into_iter().find(|operator| self.take_sign(operator)) {
            self.link()?;
            written = format!("{written} {operator} {}", self.concatenation()?);
        }
        Some(written)
    }

    fn concatenation(&mut self) -> Option<String> {
        let first = self.product()?;
        if !self.is_sign("~") {
            return Some(first);
        }
        let mut operands = vec![first];
        while self.take_sign("~") {
            operands.push(self.product()?);
        }
        Some(format!("eka_concat({})", operands.join(", ")))
    }

    fn product(&mut self) -> Option<String> {
        let mut written = self.power()?;
        while let Some(operator) = ["*", "//", "/", "%"].into_iter().find(|operator| self.take_sign(operator))
        {
            self.link()?;
            let right = self.power()?;
            written = if operator == "%" {
                format!("eka_mod({written}, {right})")
            } else {
                format!("{written} {operator} {right}")
            };
        }
        Some(written)
    }

    fn power(&mut self) -> Option<String> {
        let mut written = self.unary(Filters::Inside)?;
        while self.take_sign("**") {
            self.link()?;
            written = format!("{written} ** {}", self.unary(Filters::Inside)?);
        }
        Some(written)
    }

    fn unary(&mut self, filters: Filters) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let written = if self.take_sign("-") {
            let operand = self.unary(Filters::Outside)?;
            let is_number = operand.chars().all(|c| c.is_ascii_digit() || c == '.');
            if is_number { format!("(-{operand})") } else { format!("eka_minus({operand})") }
        } else if self.take_sign("+") {
            format!("eka_plus({})", self.unary(Filters::Outside)?)
        } else {
            self.primary()?
        };
        let written = self.postfix(written)?;
        self.depth -= 1;
        match filters {
            Filters::Inside => self.filters(written),
            Filters::Outside => Some(written),
        }
    }

    fn primary(&mut self) -> Option<String> {
        match self.next()? {
            Token::Name(name) => {
                self.names.push(name.clone());
                Some(name.clone())
            }
            Token::Text(text) => {
                let mut written = text.clone();
                while let Some(Token::Text(more)) = self.peek() {
                    self.place += 1;
                    written.push(' ');
                    written.push_str(more);
                }
                Some(written)
            }
            Token::Integer(number) | Token::Float(number) => Some(number.clone()),
            Token::Sign("(") => self.parentheses(),
            Token::Sign("[") => Some(format!("[{}]", self.items("]", Self::expression)?)),
            Token::Sign("{") => Some(format!("{{{}}}", self.items("}", Self::pair)?)),
            Token::Sign(_) => None,
        }
    }

    fn pair(&mut self) -> Option<String> {
        let key = self.expression()?;
        self.expect(":")?;
        Some(format!("{key}: {}", self.expression()?))
    }

    fn parentheses(&mut self) -> Option<String> {
        if self.take_sign(")") {
            return Some("()".into());
        }
        let first = self.expression()?;
        if self.take_sign(")") {
            return Some(format!("({first})"));
        }
        self.expect(",")?;
        Some(format!("({first}, {})", self.items(")", Self::expression)?))
    }

    /// Items with commas between, up to the closing bracket.
    fn items(&mut self, close: &str, item: fn(&mut Self) -> Option<String>) -> Option<String> {
        let mut items = Vec::new();
        while !self.take_sign(close) {
            if !items.is_empty() {
                self.expect(",")?;
                if self.take_sign(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Some(items.join(", "))
    }

    fn postfix(&mut self, mut written: String) -> Option<String> {
        loop {
            if self.take_sign(".") {
                written = self.attribute(written)?;
            } else if self.take_sign("[") {
                written = self.subscript(&written)?;
            } else if self.is_sign("(") {
                written.push_str(&self.call()?);
            } else {
                return Some(written);
            }
            self.link()?;
        }
    }

    fn attribute(&mut self, written: String) -> Option<String> {
        match self.next()? {
            Token::Name(name) if self.is_sign("(") || !methods::is_a_name(name) && name != "arguments" => {
                Some(format!("{written}.{name}"))
            }
            Token::Name(name) => Some(format!("eka_attribute({written}, '{name}')")),
            Token::Integer(place) => Some(format!("eka_item({written}, {place})")),
            _ => None,
        }
    }

    fn subscript(&mut self, written: &str) -> Option<String> {
        let is_text = matches!(self.peek(), Some(Token::Text(_)))
            && matches!(self.tokens.get(self.place + 1), Some(Token::Sign("]")));
        let mut parts = vec![self.bound()?];
        while parts.len() < 3 && self.take_sign(":") {
            parts.push(self.bound()?);
        }
        match parts.as_slice() {
            [Some(first)] if self.is_sign(",") => {
                let mut items = vec![first.clone()];
                while self.take_sign(",") && !self.is_sign("]") {
                    items.push(self.expression()?);
                }
                self.expect("]")?;
                Some(format!("eka_item({written}, ({},))", items.join(", ")))
            }
            [Some(key)] => {
                self.expect("]")?;
                Some(if is_text {
                    format!("{written}[{key}]")
                } else {
                    format!("eka_item({written}, {key})")
                })
            }
            [None] => None,
            bounds => {
                self.expect("]")?;
                let bounds: Vec<&str> =
                    bounds.iter().map(|bound| bound.as_deref().unwrap_or("none")).collect();
                Some(format!("eka_slice({written}, {})", bounds.join(", ")))
            }
        }
    }

    /// A bound of a slice, which may be left out.
    fn bound(&mut self) -> Option<Option<String>> {
        if self.is_sign(":") || self.is_sign("]") {
            return Some(None);
        }
        self.expression().map(Some)
    }

    /// Arguments with their parentheses.
    pub(super) fn call(&mut self) -> Option<String> {
        self.expect("(")?;
        Some(format!("({})", self.items(")", Self::argument)?))
    }

    fn argument(&mut self) -> Option<String> {
        if self.take_sign("**") {
            return Some(format!("**{}", self.expression()?));
        }
        if self.take_sign("*") {
            return Some(format!("*{}", self.expression()?));
        }
        let is_named = matches!(self.tokens.get(self.place + 1), Some(Token::Sign("=")));
        if let (true, Some(Token::Name(name))) = (is_named, self.peek()) {
            self.place += 2;
            return Some(format!("{name}={}", self.expression()?));
        }
        self.expression()
    }

    fn filters(&mut self, mut written: String) -> Option<String> {
        loop {
            if self.take_sign("|") {
                written = format!("{written}|{}", self.filter()?);
            } else if self.take_name("is") {
                written = self.test(&written)?;
            } else if self.is_sign("(") {
                written = format!("({written}){}", self.call()?);
            } else {
                return Some(written);
            }
            self.link()?;
        }
    }

    /// A filter's name and arguments.
    pub(super) fn filter(&mut self) -> Option<String> {
        let mut written = self.dotted_name()?;
        if self.is_sign("(") {
            written.push_str(&self.call()?);
        }
        Some(written)
    }

    fn dotted_name(&mut self) -> Option<String> {
        let mut name = self.any_name()?.to_owned();
        while self.take_sign(".") {
            name.push('.');
            name.push_str(self.any_name()?);
        }
        Some(name)
    }

    fn test(&mut self, written: &str) -> Option<String> {
        let not = if self.take_name("not") { "not " } else { "" };
        let name = self.dotted_name()?;
        let argument = match self.peek() {
            Some(Token::Sign("(")) => self.call()?,
            Some(Token::Name(name))
                if matches!(name.as_str(), "else" | "or" | "and" | "if" | "recursive") =>
            {
                String::new()
            }
            Some(Token::Name(name)) if matches!(name.as_str(), "is" | "in" | "not") => String::new(),
            Some(
                Token::Name(_)
                | Token::Text(_)
                | Token::Integer(_)
                | Token::Float(_)
                | Token::Sign("[" | "{"),
            ) => {
                let argument = self.primary()?;
                format!("({})", self.postfix(argument)?)
            }
            _ => String::new(),
        };
        Some(format!("{written} is {not}{name}{argument}"))
    }
}

/// Whether filters belong to an operand, or to the whole with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filters {
    Inside,
    Outside,
}

fn compare(left: &str, operator: &str, right: &str) -> String {
    match operator {
        "<" => format!("eka_lt({left}, {right})"),
        "<=" => format!("eka_le({left}, {right})"),
        ">" => format!("eka_gt({left}, {right})"),
        ">=" => format!("eka_ge({left}, {right})"),
        "in" => format!("eka_in({left}, {right})"),
        "not in" => format!("(not eka_in({left}, {right}))"),
        _ => format!("({left} {operator} {right})"),
    }
}
