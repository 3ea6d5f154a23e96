//! Shapes and addresses of tensors.

use std::{ffi::c_void, ptr};

/// The dimensions of a shape; zero for one that is negative.
pub(super) fn sizes(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect()
}

/// Where a tensor's numbers are.
pub(super) fn address(value: *const ort::sys::OrtValue) -> ort::Result<*mut u8> {
    let mut address: *mut c_void = ptr::null_mut();
    // SAFETY: the value belongs to the run that is under way; the out-parameter is valid for the call.
    let status = unsafe { (ort::api().GetTensorMutableData)(value.cast_mut(), &raw mut address) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    Ok(address.cast())
}
