//! Reads and rewrites the locations of a graph's external data without decoding the rest.
//!
//! A graph that others built has fields that eka does not know, and may hold gigabytes of weights itself. So the few
//! messages that lead to tensors are walked in their encoded form: other fields are neither decoded nor copied, and a change
//! keeps them.

use std::path::{Component, Path};

use prost::Message as _;

use super::StringEntry;

/// Graphs within graphs that are walked; Protocol Buffers' own limit is of this size.
const MAX_DEPTH: usize = 100;

/// The bytes are not an ONNX model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not an ONNX model, or only the beginning of one")]
pub struct Malformed;

/// New bytes of a message, or `None` where it stays as it is.
type Replaced = Result<Option<Vec<u8>>, Malformed>;

/// A piece of a file with the data of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External {
    /// The file's path from the directory of the graph.
    pub(crate) location: String,
    /// End of the piece, if the graph gives it; the file is at least as long.
    pub(crate) end: Option<u64>,
}

/// The messages of `onnx.proto` that lead to tensors.
#[derive(Clone, Copy)]
enum MessageKind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

impl MessageKind {
    /// The kind of message in field `number`, if it can contain tensors.
    const fn of_field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Graph, 1) => Some(Self::Node),
            (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) => Some(Self::Tensor),
            _ => None,
        }
    }
}

/// The part of `TensorProto` that locates its data.
#[derive(Clone, PartialEq, prost::Message)]
struct TensorLocation {
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringEntry>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

/// The number of [`TensorLocation::external_data`].
const EXTERNAL_DATA: u64 = 13;

/// `TensorProto.DataLocation.EXTERNAL`.
const IS_EXTERNAL: i32 = 1;

/// Every piece of external data of the encoded `model`.
///
/// # Errors
/// [`Malformed`] when it is not an ONNX model.
pub(crate) fn externals(model: &[u8]) -> Result<Vec<External>, Malformed> {
    let mut found = Vec::new();
    map_tensors(MessageKind::Model, model, 0, &mut |tensor| {
        let TensorLocation { external_data, data_location } =
            TensorLocation::decode(tensor).map_err(|_| Malformed)?;
        let entry =
            |key: &str| external_data.iter().find(|entry| entry.key == key).map(|entry| &*entry.value);
        if data_location == IS_EXTERNAL
            && let Some(location) = entry("location")
        {
            let number = |key: &str| entry(key).and_then(|value| value.parse::<u64>().ok());
            let end = number("length").and_then(|length| number("offset").unwrap_or(0).checked_add(length));
            found.push(External { location: location.into(), end });
        }
        Ok(None)
    })?;
    Ok(found)
}

/// The encoded `model` with each location of external data replaced by what `rename` gives for it.
///
/// # Errors
/// [`Malformed`] when it is not an ONNX model.
pub(crate) fn relocate(model: &[u8], rename: impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, Malformed> {
    let renamed = map_tensors(MessageKind::Model, model, 0, &mut |tensor| relocate_tensor(tensor, &rename))?;
    Ok(renamed.unwrap_or_else(|| model.to_vec()))
}

/// Whether `location` stays within the directory of its graph: no absolute path, and no `..`.
pub(crate) fn is_within(location: &str) -> bool {
    let mut parts = Path::new(location).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn relocate_tensor(tensor: &[u8], rename: &impl Fn(&str) -> Option<String>) -> Replaced {
    map_fields(tensor, |number, payload| {
        if number != EXTERNAL_DATA {
            return Ok(None);
        }
        let entry = StringEntry::decode(payload).map_err(|_| Malformed)?;
        let renamed = (entry.key == "location").then(|| rename(&entry.value)).flatten();
        Ok(renamed.map(|value| StringEntry { value, ..entry }.encode_to_vec()))
    })
}

/// Calls `map` with every encoded tensor of a message and replaces it by the result; `None` if nothing changes.
fn map_tensors(
    kind: MessageKind,
    message: &[u8],
    depth: usize,
    map: &mut dyn FnMut(&[u8]) -> Replaced,
) -> Replaced {
    if depth > MAX_DEPTH {
        return Err(Malformed);
    }
    map_fields(message, |number, payload| match kind.of_field(number) {
        None => Ok(None),
        Some(MessageKind::Tensor) => map(payload),
        Some(kind) => map_tensors(kind, payload, depth + 1, map),
    })
}

/// Calls `map` with the number and content of every length-delimited field and replaces the content by the result.
fn map_fields(message: &[u8], mut map: impl FnMut(u64, &[u8]) -> Replaced) -> Replaced {
    let (mut rest, mut copied, mut changed) = (message, 0, None::<Vec<u8>>);
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (key, payload) = take_field(&mut rest)?;
        let Some(payload) = payload else { continue };
        if let Some(replaced) = map(key >> 3, payload)? {
            let all = changed.get_or_insert_default();
            all.extend_from_slice(&message[copied..start]);
            push_varint(all, key);
            push_varint(all, replaced.len() as u64);
            all.extend_from_slice(&replaced);
            copied = message.len() - rest.len();
        }
    }
    if let Some(all) = &mut changed {
        all.extend_from_slice(&message[copied..]);
    }
    Ok(changed)
}

/// Takes one field: its key, and its content if it has a length.
fn take_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Option<&'a [u8]>), Malformed> {
    let key = take_varint(rest)?;
    let length = match key & 7 {
        0 => {
            take_varint(rest)?;
            return Ok((key, None));
        }
        1 => 8,
        2 => take_varint(rest)?,
        5 => 4,
        _ => return Err(Malformed),
    };
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    let (content, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok((key, (key & 7 == 2).then_some(content)))
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    prost::encoding::decode_varint(rest).map_err(|_| Malformed)
}

fn push_varint(bytes: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, bytes);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{DataLocation, Graph, Model, Node, Tensor},
        *,
    };

    fn entry(key: &str, value: &str) -> StringEntry {
        StringEntry { key: key.into(), value: value.into() }
    }

    fn external(location: &str, more: &[(&str, &str)]) -> Tensor {
        let mut external_data = vec![entry("location", location)];
        external_data.extend(more.iter().map(|(key, value)| entry(key, value)));
        Tensor { data_location: DataLocation::External.into(), external_data, ..Tensor::default() }
    }

    /// A model with two external tensors, one that holds its numbers, a field that eka does not know, and a graph within
    /// the graph.
    fn model() -> Vec<u8> {
        let inner = Graph { initializer: vec![external("inner", &[])], ..Graph::default() };
        let mut attribute = Vec::new();
        prost::encoding::message::encode(6, &inner, &mut attribute);
        let mut node = Node { op_type: "If".into(), ..Node::default() }.encode_to_vec();
        push_varint(&mut node, 5 << 3 | 2);
        push_varint(&mut node, attribute.len() as u64);
        node.extend(attribute);
        let initializer = vec![
            external("data", &[("offset", "64"), ("length", "36")]),
            Tensor { raw_data: vec![7; 9], ..Tensor::default() },
        ];
        let mut graph = Graph { initializer, ..Graph::default() }.encode_to_vec();
        push_varint(&mut graph, 1 << 3 | 2);
        push_varint(&mut graph, node.len() as u64);
        graph.extend(node);
        let mut model = Model { ir_version: 10, ..Model::default() }.encode_to_vec();
        push_varint(&mut model, 7 << 3 | 2);
        push_varint(&mut model, graph.len() as u64);
        model.extend(graph);
        model.extend([0xd2, 0x09, 2, b'h', b'i']);
        model
    }

    #[test]
    fn external_data_is_found_in_graphs_within_graphs() {
        let found = externals(&model()).unwrap();
        let expected = [("data", Some(100)), ("inner", None)];
        assert_eq!(found, expected.map(|(location, end)| External { location: location.into(), end }));
    }

    #[test]
    fn relocating_changes_only_the_location() {
        let renamed = relocate(&model(), |name| Some(format!("a/longer/path/to/{name}"))).unwrap();
        assert_eq!(externals(&renamed).unwrap()[1].location, "a/longer/path/to/inner");
        let back = relocate(&renamed, |name| name.rsplit('/').next().map(str::to_owned)).unwrap();
        assert_eq!(back, model());
        assert_eq!(relocate(&model(), |_| None).unwrap(), model());
    }

    #[test]
    fn truncated_and_deeply_nested_messages_are_refused() {
        let model = model();
        for length in 1..model.len() - 5 {
            // Some beginnings are whole messages; none may panic.
            let _ = externals(&model[..length]);
        }
        assert_eq!(externals(b"this is no graph"), Err(Malformed));
        let mut nested = Vec::new();
        for _ in 0..200 {
            for number in [6, 5, 1] {
                let mut outer = Vec::new();
                push_varint(&mut outer, number << 3 | 2);
                push_varint(&mut outer, nested.len() as u64);
                outer.append(&mut nested);
                nested = outer;
            }
        }
        let mut model = Vec::new();
        push_varint(&mut model, 7 << 3 | 2);
        push_varint(&mut model, nested.len() as u64);
        model.extend(nested);
        assert_eq!(externals(&model), Err(Malformed));
    }

    #[test]
    fn a_location_stays_within_the_directory_of_its_graph() {
        for within in ["model.onnx.data", "./data", "weights/part.bin"] {
            assert!(is_within(within), "{within}");
        }
        for outside in ["/etc/passwd", "../data", "a/../../b", "", "a/.."] {
            assert!(!is_within(outside), "{outside}");
        }
    }
}
