//! `model.safetensors.index.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::safetensors_index(bytes);
});
