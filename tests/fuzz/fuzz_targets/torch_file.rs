//! A PyTorch `.bin` file, as far as the places of its tensors.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    eka::export::fuzzing::torch_file(bytes);
});
