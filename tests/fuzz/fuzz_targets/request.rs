//! A request body, as every generating route reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::http::fuzzing::request(bytes);
});
