//! `model.onnx`, as `eka inspect` reads it.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::graph(bytes);
});
