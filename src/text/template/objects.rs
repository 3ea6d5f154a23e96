//! Python's values that minijinja lacks: ranges, views of dictionaries, generators, `cycler` and `joiner`, and bound methods.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple},
};

use super::call_arguments::{CallArguments, refuse, split};

/// Maximum length of a range: `MAX_RANGE` of Jinja2's sandbox.
const MAX_RANGE: i64 = 100_000;

/// `range(start, stop, step)`.
#[derive(Debug)]
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
    length: i64,
}

impl Range {
    /// # Errors
    /// When the step is 0, or the range has more numbers than Jinja2's sandbox allows.
    pub(super) fn new(start: i64, stop: i64, step: i64) -> Result<Self, Error> {
        if step == 0 {
            return Err(refuse("range() arg 3 must not be zero"));
        }
        let (start_wide, stop_wide, step_wide) = (i128::from(start), i128::from(stop), i128::from(step));
        let distance = if step > 0 { stop_wide - start_wide } else { start_wide - stop_wide };
        let size = step_wide.abs();
        let length = if distance <= 0 { 0 } else { (distance + size - 1) / size };
        match i64::try_from(length) {
            Ok(length) if length <= MAX_RANGE => Ok(Self { start, stop, step, length }),
            _ => Err(refuse(format!("range too big: a template may loop over {MAX_RANGE} numbers"))),
        }
    }

    /// A slice, which is a range too.
    pub(super) fn slice(&self, first: i64, last: i64, step: i64) -> Result<Self, Error> {
        let at = |place: i64| self.start.saturating_add(place.saturating_mul(self.step));
        Self::new(at(first), at(last), self.step.saturating_mul(step))
    }

    /// Number of elements.
    pub(super) const fn length(&self) -> i64 {
        self.length
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, stop, step, .. } = self;
        if *step == 1 {
            write!(f, "range({start}, {stop})")
        } else {
            write!(f, "range({start}, {stop}, {step})")
        }
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let (start, step) = (self.start, self.step);
        Enumerator::RevIter(Box::new(
            (0..usize::try_from(self.length).unwrap_or_default())
                .map(move |place| Value::from(start + i64::try_from(place).unwrap_or_default() * step)),
        ))
    }
}

/// The part of a dictionary that a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// `dict.keys()`, `.values()` or `.items()`.
#[derive(Debug)]
pub(super) struct DictView {
    map: Value,
    view: View,
}

impl DictView {
    pub(super) const fn new(map: Value, view: View) -> Self {
        Self { map, view }
    }

    /// Its name in Python.
    pub(super) const fn name(&self) -> &'static str {
        match self.view {
            View::Keys => "dict_keys",
            View::Values => "dict_values",
            View::Items => "dict_items",
        }
    }

    /// The items of the view, in the dictionary's order.
    pub(super) fn items(&self) -> impl Iterator<Item = Value> + Send + Sync + use<> {
        let view = self.view;
        let pairs = self.map.as_object().and_then(|object| object.try_iter_pairs());
        pairs.into_iter().flatten().map(move |(key, value)| match view {
            View::Keys => key,
            View::Values => value,
            View::Items => Tuple::from([key, value]).into(),
        })
    }
}

impl Object for DictView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        // A list, because a loop finds its last item by the length.
        Enumerator::Values(self.items().collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.map.len()
    }
}

/// The result of `map`, `select` and similar filters: it is always true, has no length, and can be iterated once.
#[derive(Debug)]
pub(super) struct Generator(Mutex<std::vec::IntoIter<Value>>);

impl Generator {
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items.into_iter())))
    }

    /// The next item.
    pub(super) fn take_next(&self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Rest(Arc::clone(self))))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// The remaining items of a generator. After a loop that ends early, the rest can still be read.
struct Rest(Arc<Generator>);

impl Iterator for Rest {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.take_next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

/// `cycler('a', 'b')`.
#[derive(Debug)]
pub(super) struct Cycler {
    items: Vec<Value>,
    place: AtomicUsize,
}

impl Cycler {
    /// # Errors
    /// When there are no items.
    pub(super) fn value(items: &[Value]) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(refuse("cycler: at least one item has to be provided"));
        }
        Ok(Value::from_object(Self { items: items.to_vec(), place: AtomicUsize::new(0) }))
    }

    fn current(&self) -> Value {
        let place = self.place.load(Ordering::Relaxed);
        self.items[place % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "next" => {
                let current = self.current();
                self.place.fetch_add(1, Ordering::Relaxed);
                Ok(current)
            }
            "reset" => {
                self.place.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// `joiner(', ')`: empty when it is called first, the separator afterwards.
#[derive(Debug)]
pub(super) struct Joiner {
    separator: Value,
    was_called: AtomicBool,
}

impl Joiner {
    pub(super) fn value(separator: Value) -> Value {
        Value::from_object(Self { separator, was_called: AtomicBool::new(false) })
    }
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        let first = !self.was_called.swap(true, Ordering::Relaxed);
        Ok(if first { Value::from("") } else { self.separator.clone() })
    }
}

/// A bound method that is not called: `d.items` is a method even if `d` has a key of that name.
#[derive(Debug)]
pub(super) struct Method {
    object: Value,
    name: String,
}

impl Method {
    pub(super) fn value(object: Value, name: &str) -> Value {
        Value::from_object(Self { object, name: name.to_owned() })
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, arguments: &[Value]) -> Result<Value, Error> {
        self.object.call_method(state, &self.name, arguments)
    }
}

/// `dict`: a call creates a dictionary, and `dict.fromkeys` creates one from keys.
#[derive(Debug)]
pub(super) struct Dict;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
        let CallArguments { positional, named } = split(given)?;
        let mut pairs = match positional {
            [] => Vec::new(),
            [one] => pairs_of(one)?,
            _ => return Err(refuse("dict expected at most 1 argument")),
        };
        pairs.extend(named.into_iter().map(|(name, value)| (Value::from(name), value)));
        Ok(Value::from_pairs(pairs))
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        given: &[Value],
    ) -> Result<Value, Error> {
        let (keys, value) = match (method, given) {
            ("fromkeys", [keys]) => (keys, Value::from(())),
            ("fromkeys", [keys, value]) => (keys, value.clone()),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        Ok(Value::from_pairs(keys.try_iter()?.map(|key| (key, value.clone()))))
    }
}

fn pairs_of(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    if let Some(object) = value.as_object().filter(|object| object.repr() == ObjectRepr::Map) {
        return Ok(object.try_iter_pairs().into_iter().flatten().collect());
    }
    let pair = |item: Value| match item.try_iter()?.collect::<Vec<_>>().as_slice() {
        [key, value] => Ok((key.clone(), value.clone())),
        other => Err(refuse(format!("dict: an item has {} parts, and not 2", other.len()))),
    };
    value.try_iter()?.map(pair).collect()
}

/// The result of `groupby`: a pair whose parts have names.
#[derive(Debug)]
pub(super) struct Group {
    grouper: Value,
    list: Value,
}

impl Group {
    pub(super) fn value(grouper: Value, list: Vec<Value>) -> Value {
        Value::from_object(Self { grouper, list: Value::from(list) })
    }

    /// The pair.
    pub(super) fn parts(&self) -> [Value; 2] {
        [self.grouper.clone(), self.list.clone()]
    }
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_str(), key.as_i64()) {
            (Some("grouper"), _) | (None, Some(0)) => Some(self.grouper.clone()),
            (Some("list"), _) | (None, Some(1)) => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

/// A macro that reads `kwargs` or `varargs`: it gets the arguments that no parameter takes.
#[derive(Debug)]
pub(super) struct Collector {
    callee: Value,
    parameters: Vec<String>,
    takes_more: bool,
    takes_named: bool,
}

impl Collector {
    /// From the macro, its parameters' names, and which of the two it reads.
    pub(super) fn value(given: &[Value]) -> Result<Value, Error> {
        let [callee, parameters, more, named] = given else {
            return Err(refuse("a macro cannot be made"));
        };
        let parameters = parameters.try_iter()?.map(|name| name.to_string()).collect();
        let (takes_more, takes_named) = (more.is_true(), named.is_true());
        Ok(Value::from_object(Self { callee: callee.clone(), parameters, takes_more, takes_named }))
    }
}

impl Object for Collector {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
        let CallArguments { positional, named } = split(given)?;
        let (taken, more) = positional.split_at(positional.len().min(self.parameters.len()));
        if !more.is_empty() && !self.takes_more {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let is_known = |name: &String| name == "caller" || self.parameters.contains(name);
        let (mut known, unknown): (Vec<_>, Vec<_>) = named.into_iter().partition(|(name, _)| is_known(name));
        if let Some((name, _)) = unknown.first().filter(|_| !self.takes_named) {
            return Err(refuse(format!("macro takes no keyword argument {name:?}")));
        }
        if self.takes_more {
            known.push(("varargs".into(), Tuple::from(more).into()));
        }
        if self.takes_named {
            known.push(("kwargs".into(), Value::from_pairs(unknown)));
        }
        let mut arguments = taken.to_vec();
        arguments.push(Value::from(known.into_iter().collect::<Kwargs>()));
        self.callee.call(state, &arguments)
    }
}
