//! `config.json`, as far as a graph and the places of all weights.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::config(bytes);
});
