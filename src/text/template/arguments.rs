//! Arguments of filters, methods and functions, by position or by name.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{
    call_arguments::{CallArguments, refuse, split},
    repr::type_name,
};

/// The arguments of one call, in the order of the parameters' names.
pub(super) struct Arguments {
    callee: &'static str,
    values: Vec<Option<Value>>,
}

impl Arguments {
    /// Binds `given` to parameters, of which the first `required` are mandatory. A parameter without a name is positional only.
    ///
    /// # Errors
    /// When there are too many arguments, or missing, duplicate or unknown ones.
    pub(super) fn bind(
        callee: &'static str,
        parameters: &[&str],
        required: usize,
        given: &[Value],
    ) -> Result<Self, Error> {
        let CallArguments { positional, named } = split(given)?;
        if positional.len() > parameters.len() {
            let max = parameters.len();
            let message = format!("{callee} takes at most {max} arguments ({} given)", positional.len());
            return Err(Error::new(ErrorKind::TooManyArguments, message));
        }
        let mut values: Vec<Option<Value>> = positional.iter().cloned().map(Some).collect();
        values.resize(parameters.len(), None);
        for (name, value) in named {
            let place = parameters.iter().position(|parameter| !name.is_empty() && *parameter == name);
            match place {
                Some(place) if values[place].is_none() => values[place] = Some(value),
                Some(_) => return Err(refuse(format!("{callee} got two values for {name:?}"))),
                None => return Err(refuse(format!("{callee} has no argument {name:?}"))),
            }
        }
        if values.iter().take(required).any(Option::is_none) {
            let message = format!("{callee} takes at least {required} arguments");
            return Err(Error::new(ErrorKind::MissingArgument, message));
        }
        Ok(Self { callee, values })
    }

    /// The argument, if one was given.
    pub(super) fn get(&self, place: usize) -> Option<&Value> {
        self.values.get(place)?.as_ref()
    }

    /// The argument, or an undefined value.
    pub(super) fn value(&self, place: usize) -> Value {
        self.get(place).cloned().unwrap_or_default()
    }

    /// The argument as a string; `None` counts as absent.
    pub(super) fn text(&self, place: usize) -> Result<Option<&str>, Error> {
        match self.get(place) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) if value.kind() == ValueKind::String => Ok(value.as_str()),
            Some(value) => Err(self.wrong(value, "str")),
        }
    }

    /// The argument as a string, which is mandatory.
    pub(super) fn required_text(&self, place: usize) -> Result<&str, Error> {
        self.text(place)?.ok_or_else(|| self.wrong(&self.value(place), "str"))
    }

    /// The argument as an integer; `None` counts as absent.
    pub(super) fn integer(&self, place: usize) -> Result<Option<i64>, Error> {
        match self.get(place) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) => integer(value).map(Some).ok_or_else(|| self.wrong(value, "int")),
        }
    }

    /// Whether the argument is given and true.
    pub(super) fn flag(&self, place: usize) -> bool {
        self.get(place).is_some_and(Value::is_true)
    }

    fn wrong(&self, value: &Value, expected: &str) -> Error {
        refuse(format!("{}: expected {expected}, not {}", self.callee, type_name(value)))
    }
}

/// An integer as Python's `__index__` gives it; a bool is one too.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value.kind() {
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.as_i64(),
        _ => None,
    }
}
