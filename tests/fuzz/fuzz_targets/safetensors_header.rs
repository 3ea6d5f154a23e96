//! A safetensors file, as far as its header.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::safetensors_header(bytes);
});
