//! The pickle of a dictionary of tensors, understood and not run.
//!
//! Python's unpickler calls whatever function the bytes name. Here a name stands for one of the few things in [`Global`], a
//! call of `torch._utils._rebuild_tensor_v2` becomes a [`View`], and any other name or instruction is an error that gives it.
//! <https://docs.python.org/3/library/pickletools.html> lists the instructions.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use safetensors::Dtype;

/// Most values that a pickle may make: their memory is bounded whatever it repeats.
const MAX_VALUES: usize = 1 << 22;

/// Most tensors.
const MAX_TENSORS: usize = 1 << 17;

/// Most tuples within tuples.
const MAX_DEPTH: usize = 8;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// Most bytes of a tensor's name.
const MAX_NAME: usize = 512;

/// A tensor: part of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// The file in the archive's folder `data`.
    pub storage: String,
    pub dtype: Dtype,
    /// Elements before the first.
    pub offset: u64,
    pub shape: Vec<usize>,
    /// Elements from one to the next of each dimension.
    pub strides: Vec<usize>,
}

/// Why a pickle cannot be read.
#[derive(Debug, PartialEq)]
pub(super) enum PickleError {
    /// It contradicts the format.
    Damaged {
        /// Byte of the pickle.
        position: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// It asks for something that is not a tensor.
    Refused(String),
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    /// Of the storage's own type.
    RebuildTensor,
    /// Of a type that is stated beside the storage.
    RebuildTensorAs,
    RebuildParameter,
    /// A class of storages, and the type of their numbers if they have one.
    Storage(Option<Dtype>),
    Type(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorAs,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Self::RebuildParameter
            }
            ("torch.storage" | "torch", "UntypedStorage") => Self::Storage(None),
            ("torch", storage) if storage.ends_with("Storage") => Self::Storage(Some(storage_type(storage)?)),
            ("torch", name) => Self::Type(type_named(name)?),
            _ => return None,
        })
    }
}

fn storage_type(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "BoolStorage" => Dtype::BOOL,
        "ByteStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        _ => return None,
    })
}

fn type_named(name: &str) -> Option<Dtype> {
    Some(match name {
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float64" => Dtype::F64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        "bool" => Dtype::BOOL,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "uint16" => Dtype::U16,
        "int16" => Dtype::I16,
        "uint32" => Dtype::U32,
        "int32" => Dtype::I32,
        "uint64" => Dtype::U64,
        "int64" => Dtype::I64,
        _ => return None,
    })
}

/// A value on the stack. Dictionaries are kept aside, so that none contains itself.
#[derive(Clone, Debug)]
enum Value {
    Mark,
    Int(i64),
    Text(Rc<str>),
    /// And how deep tuples are within it.
    Tuple(Rc<[Value]>, usize),
    /// Its place among the dictionaries.
    Dict(usize),
    Global(Global),
    Storage(Rc<str>, Option<Dtype>),
    Tensor(Rc<View>),
    /// None, true, false, a list or bytes: nothing about a tensor depends on it.
    Other,
}

impl Value {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) => "a number",
            Self::Text(_) => "a string",
            Self::Tuple(..) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Mark | Self::Global(_) | Self::Other => "another object",
        }
    }
}

/// The tensors of the dictionary that `pickle` describes, by their names.
pub(super) fn read(pickle: &[u8]) -> Result<BTreeMap<String, View>, PickleError> {
    let mut machine =
        Machine { pickle, position: 0, stack: Vec::new(), memo: HashMap::new(), dicts: Vec::new(), made: 0 };
    while machine.step()? {}
    machine.tensors()
}

struct Machine<'a> {
    pickle: &'a [u8],
    position: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    dicts: Vec<Vec<(Value, Value)>>,
    /// Values so far.
    made: usize,
}

impl Machine<'_> {
    /// Follows the next instruction; false after the last.
    fn step(&mut self) -> Result<bool, PickleError> {
        match self.u8()? {
            // The protocol, and the length of a frame.
            0x80 => self.advance(1)?,
            0x95 => self.advance(8)?,
            b'.' => return Ok(false),
            b'(' => self.push(Value::Mark)?,
            b'N' | 0x88 | 0x89 | b']' => self.push(Value::Other)?,
            b'G' => self.skip(8)?,
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => self.int(4)?,
            0x8a => {
                let length = self.u8()?;
                self.int(length.into())?;
            }
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.blob(1)?,
            b'B' => self.blob(4)?,
            b'q' => {
                let place = self.u8()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = self.u32()?;
                self.remember(place)?;
            }
            0x94 => self.remember(u32::try_from(self.memo.len()).unwrap_or(u32::MAX))?,
            b'h' => {
                let place = self.u8()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = self.u32()?;
                self.recall(place)?;
            }
            other => self.step_on_values(other)?,
        }
        Ok(true)
    }

    /// Follows an instruction that takes values from the stack.
    fn step_on_values(&mut self, instruction: u8) -> Result<(), PickleError> {
        match instruction {
            b'0' | b'a' => self.pop().map(drop),
            b'1' | b'e' => self.pop_to_mark().map(drop),
            b')' => self.tuple(Vec::new()),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(instruction - 0x84));
                let start = start.ok_or_else(|| self.damaged("a tuple of too few values"))?;
                let items = self.stack.split_off(start);
                self.tuple(items)
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple(items)
            }
            b'}' => self.dict(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.global(&module, &name),
                _ => Err(self.damaged("a name that is not a string")),
            },
            b'Q' => self.storage(),
            b'R' => self.call(),
            b'b' => self.build(),
            other => Err(PickleError::Refused(format!("the pickle instruction {other:#04x}"))),
        }
    }

    fn damaged(&self, problem: &'static str) -> PickleError {
        PickleError::Damaged { position: self.position, problem }
    }

    fn bytes(&mut self, count: usize) -> Result<&[u8], PickleError> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.pickle.len());
        let end = end.ok_or_else(|| self.damaged("it ends here"))?;
        let bytes = &self.pickle[self.position..end];
        self.position = end;
        Ok(bytes)
    }

    fn advance(&mut self, count: usize) -> Result<(), PickleError> {
        self.bytes(count).map(|_| ())
    }

    /// An unsigned number of `width` bytes, at most eight.
    fn number(&mut self, width: usize) -> Result<u64, PickleError> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.bytes(width)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn u8(&mut self) -> Result<u8, PickleError> {
        Ok(self.bytes(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, PickleError> {
        self.number(4).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn length(&mut self, width: usize) -> Result<usize, PickleError> {
        self.number(width).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.pickle[self.position..];
        let length = rest.iter().take(MAX_NAME).position(|byte| *byte == b'\n');
        let length = length.ok_or_else(|| self.damaged("a name without an end"))?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.position += length + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn count(&mut self) -> Result<(), PickleError> {
        self.made += 1;
        if self.made > MAX_VALUES { Err(self.damaged("it has more values than any model")) } else { Ok(()) }
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err(self.damaged("an instruction without its values")),
            Some(value) => Ok(value),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let items =
            self.stack.split_off(mark.ok_or_else(|| self.damaged("an instruction without its mark"))?);
        Ok(items.into_iter().skip(1).collect())
    }

    /// A signed number of `width` bytes, but an unsigned one of less than four.
    fn int(&mut self, width: usize) -> Result<(), PickleError> {
        if width > 8 {
            return self.skip(width);
        }
        let number = self.number(width)?.cast_signed();
        let unused = 64 - 8 * u32::try_from(width).unwrap_or(0);
        let is_signed = width >= 4 && unused < 64;
        self.push(Value::Int(if is_signed { number << unused >> unused } else { number }))
    }

    fn skip(&mut self, count: usize) -> Result<(), PickleError> {
        self.advance(count)?;
        self.push(Value::Other)
    }

    fn blob(&mut self, width: usize) -> Result<(), PickleError> {
        let length = self.length(width)?;
        self.skip(length)
    }

    fn text(&mut self, width: usize) -> Result<(), PickleError> {
        let length = self.length(width)?;
        let text: Rc<str> = String::from_utf8_lossy(self.bytes(length)?).into();
        self.push(Value::Text(text))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let depths = items.iter().map(|item| if let Value::Tuple(_, depth) = item { *depth } else { 0 });
        let depth = 1 + depths.max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(self.damaged("tuples within tuples, too deep"));
        }
        self.push(Value::Tuple(items.into(), depth))
    }

    fn dict(&mut self) -> Result<(), PickleError> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    /// Puts keys and values, which take turns, into the dictionary on top of the stack.
    fn set(&mut self, items: Vec<Value>) -> Result<(), PickleError> {
        let Some(Value::Dict(place)) = self.stack.last() else {
            return Err(self.damaged("values for something that is not a dictionary"));
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dicts[*place].push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<(), PickleError> {
        self.count()?;
        let value = self.stack.last().cloned().ok_or_else(|| self.damaged("nothing to remember"))?;
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&place).cloned();
        self.push(value.ok_or_else(|| self.damaged("a value that was not remembered"))?)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        match Global::named(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(PickleError::Refused(format!("the Python object {module}.{name}"))),
        }
    }

    /// A storage by its description: `("storage", class, name, device, elements)`.
    fn storage(&mut self) -> Result<(), PickleError> {
        if let Value::Tuple(items, _) = self.pop()?
            && let [Value::Text(_), Value::Global(Global::Storage(dtype)), Value::Text(name), ..] = &*items
        {
            return self.push(Value::Storage(name.clone(), *dtype));
        }
        Err(self.damaged("a storage without a class and a name"))
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let (Value::Tuple(items, _), Value::Global(function)) = (self.pop()?, self.pop()?) else {
            return Err(self.damaged("a call of something that is not a function"));
        };
        match (function, &*items) {
            (Global::OrderedDict, []) => self.dict(),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => self.push(tensor.clone()),
            (Global::RebuildTensor, [Value::Storage(name, Some(dtype)), place @ ..]) => {
                self.view((name, *dtype), place)
            }
            (
                Global::RebuildTensorAs,
                [Value::Storage(name, _), place @ .., _, _, Value::Global(Global::Type(dtype))]
                | [Value::Storage(name, _), place @ .., _, _, Value::Global(Global::Type(dtype)), _],
            ) => self.view((name, *dtype), place),
            _ => Err(self.damaged("a call with other arguments than PyTorch writes")),
        }
    }

    /// A tensor by its storage, and its offset, shape and strides.
    fn view(&mut self, (storage, dtype): (&str, Dtype), place: &[Value]) -> Result<(), PickleError> {
        let [Value::Int(offset), Value::Tuple(shape, _), Value::Tuple(strides, _), ..] = place else {
            return Err(self.damaged("a tensor without offset, shape and strides"));
        };
        let sizes = |values: &[Value]| -> Option<Vec<usize>> {
            let size = |value: &Value| match value {
                Value::Int(size) => usize::try_from(*size).ok(),
                _ => None,
            };
            values.iter().map(size).collect()
        };
        let (Some(shape), Some(strides), Ok(offset)) = (sizes(shape), sizes(strides), u64::try_from(*offset))
        else {
            return Err(self.damaged("a tensor with a size that is not a positive number"));
        };
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return Err(self.damaged("a tensor with other strides than dimensions, or with too many"));
        }
        let view = View { storage: storage.to_owned(), dtype, offset, shape, strides };
        self.push(Value::Tensor(Rc::new(view)))
    }

    /// Attributes of a dictionary: versions of modules, which change nothing.
    fn build(&mut self) -> Result<(), PickleError> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err(self.damaged("attributes of something that is not a dictionary")),
        }
    }

    /// The dictionary that is left at the end.
    fn tensors(mut self) -> Result<BTreeMap<String, View>, PickleError> {
        let place = match self.pop()? {
            Value::Dict(place) => place,
            other => {
                return Err(PickleError::Refused(format!(
                    "{} instead of a dictionary of tensors",
                    other.kind()
                )));
            }
        };
        let mut tensors = BTreeMap::new();
        for (key, value) in std::mem::take(&mut self.dicts[place]) {
            match (key, value) {
                (Value::Text(_), Value::Tensor(_)) if tensors.len() >= MAX_TENSORS => {
                    return Err(self.damaged("it has more tensors than any model"));
                }
                (Value::Text(name), Value::Tensor(view)) if name.len() <= MAX_NAME => {
                    // As in Python, the last one with a name counts.
                    tensors.insert(name.to_string(), View::clone(&view));
                }
                (Value::Text(name), other) => {
                    let name: String = name.chars().take(MAX_NAME).collect();
                    return Err(PickleError::Refused(format!("an entry {name:?} that is {}", other.kind())));
                }
                (key, _) => {
                    return Err(PickleError::Refused(format!("an entry whose name is {}", key.kind())));
                }
            }
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pickle: &[u8]) -> String {
        match read(pickle) {
            Err(PickleError::Refused(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    fn damaged(pickle: &[u8]) -> &'static str {
        match read(pickle) {
            Err(PickleError::Damaged { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn functions_and_instructions_that_could_run_code_are_refused_by_name() {
        assert!(refused(b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.").contains("os.system"));
        assert!(refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").contains("builtins.eval"));
        assert!(refused(b"\x80\x02ctorch.jit\nload\n.").contains("torch.jit.load"));
        assert!(refused(b"\x80\x02ctorch\nload\n.").contains("torch.load"));
        // INST, OBJ and NEWOBJ call classes as well.
        for instruction in [b'i', b'o', 0x81, 0x92, 0x82, b'P'] {
            assert!(refused(&[0x80, 2, instruction]).contains("instruction"), "{instruction:#x}");
        }
    }

    #[test]
    fn what_is_not_a_dictionary_of_tensors_is_refused_by_its_kind() {
        assert!(refused(b"\x80\x02K\x01.").contains("a number instead"));
        assert!(refused(b"\x80\x02}X\x05\0\0\0epochK\x03s.").contains("\"epoch\" that is a number"));
        assert!(refused(b"\x80\x02}X\x0a\0\0\0state_dict}s.").contains("that is a dictionary"));
    }

    #[test]
    fn damaged_pickles_are_errors() {
        assert_eq!(damaged(b""), "it ends here");
        assert_eq!(damaged(b"\x80\x02t."), "an instruction without its mark");
        assert_eq!(damaged(b"\x80\x02h\x07."), "a value that was not remembered");
        assert_eq!(damaged(b"\x80\x02X\xff\xff\xff\xff"), "it ends here");
        let deep = [&b"\x80\x02)"[..], &[0x85; 100], b"."].concat();
        assert_eq!(damaged(&deep), "tuples within tuples, too deep");
        let many = [&b"\x80\x02"[..], &vec![b'('; MAX_VALUES + 1]].concat();
        assert_eq!(damaged(&many), "it has more values than any model");
    }

    #[test]
    fn a_dictionary_within_itself_ends() {
        assert!(refused(b"\x80\x02}q\0X\x01\0\0\0ah\0s.").contains("a dictionary"));
    }

    #[test]
    fn numbers_are_signed_as_python_writes_them() {
        let number = |pickle: &[u8]| {
            let mut machine = Machine {
                pickle,
                position: 0,
                stack: Vec::new(),
                memo: HashMap::new(),
                dicts: Vec::new(),
                made: 0,
            };
            machine.step().unwrap();
            match machine.pop().unwrap() {
                Value::Int(number) => number,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(number(b"K\xff"), 255);
        assert_eq!(number(b"M\xff\xff"), 65_535);
        assert_eq!(number(b"J\xff\xff\xff\xff"), -1);
        assert_eq!(number(b"\x8a\x05\0\0\0\0\x01"), 1 << 32);
    }
}
