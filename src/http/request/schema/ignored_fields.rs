//! The unknown fields of a request that were ignored, for a header of its answer.
//!
//! The names come from the client, so they are encoded for the header, and limited to 1 KiB.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::{
    HttpResponse,
    http::header::{HeaderName, HeaderValue},
};

/// The header.
const NAME: HeaderName = HeaderName::from_static("x-eka-ignored-fields");

/// Longest list of names; proxies refuse heads of a few kilobytes.
const MAX_BYTES: usize = 1024;

/// Longest name; longer ones are cut.
const MAX_NAME: usize = 128;

/// The fields of one request that were ignored. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignored(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    names: String,
    /// How many further names there are.
    more: usize,
}

impl Ignored {
    /// Adds a field, by its path.
    pub(crate) fn note(&self, path: &str) {
        let mut list = self.list();
        let name = printable(path);
        let separator = if list.names.is_empty() { "" } else { ", " };
        if list.more > 0 || list.names.len() + separator.len() + name.len() > MAX_BYTES {
            list.more += 1;
        } else {
            list.names.push_str(separator);
            list.names.push_str(&name);
        }
    }

    /// The header's value: names separated by commas, then the number of further ones. `None` without names.
    pub(crate) fn to_header(&self) -> Option<HeaderValue> {
        let List { names, more } = &*self.list();
        let more = if *more == 0 { String::new() } else { format!(", and {more} more") };
        if names.is_empty() { None } else { HeaderValue::from_str(&format!("{names}{more}")).ok() }
    }

    /// Adds the header to an answer, if there are any.
    pub(crate) fn name_in(&self, mut response: HttpResponse) -> HttpResponse {
        if let Some(value) = self.to_header() {
            response.headers_mut().insert(NAME, value);
        }
        response
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Percent-encodes all characters that paths do not have.
fn printable(path: &str) -> String {
    let mut name = String::new();
    for byte in path.bytes() {
        if name.len() >= MAX_NAME {
            return name + "...";
        }
        if byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> String {
        let ignored = Ignored::default();
        names.iter().for_each(|name| ignored.note(name));
        ignored.to_header().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn names_that_a_header_cannot_hold_are_encoded() {
        assert_eq!(header(&["top_a", "messages[0].x"]), "top_a, messages[0].x");
        assert_eq!(header(&["a\r\nset-cookie: b", "é, "]), "a%0D%0Aset-cookie%3A%20b, %C3%A9%2C%20");
        assert!(Ignored::default().to_header().is_none());
    }

    #[test]
    fn the_header_is_bounded_however_many_and_long_the_names_are() {
        let long = "n".repeat(100_000);
        assert_eq!(header(&[&long]).len(), MAX_NAME + 3);
        let names: Vec<String> = (0..100_000).map(|n| format!("field_{n}")).collect();
        let header = header(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(header.len() < MAX_BYTES + 32 && header.ends_with(" more"), "{header}");
    }
}
