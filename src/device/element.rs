//! Element types and shapes of tensors.

use super::DeviceError;

mod sealed {
    pub trait Sealed {}
}

/// An element type of tensors: plain data for which any bit pattern is a value.
pub trait Element: sealed::Sealed + bytemuck::Pod {
    /// What ONNX calls it.
    const ONNX: ort::sys::ONNXTensorElementDataType;
}

macro_rules! elements {
    ($($rust:ty => $onnx:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const ONNX: ort::sys::ONNXTensorElementDataType = ort::sys::ONNXTensorElementDataType::$onnx;
        }
    )*};
}

elements! {
    f32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    half::f16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
    half::bf16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
    i8 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
    i32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    i64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
}

/// Number of elements of `shape`, if it is at most `room`.
pub(super) fn elements(shape: &[usize], room: usize) -> Result<usize, DeviceError> {
    let counted = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match counted {
        // ONNX Runtime's sizes are signed.
        Some(n) if n <= room && isize::try_from(n).is_ok_and(|n| n < isize::MAX / 8) => Ok(n),
        _ => Err(DeviceError::Shape { shape: shape.to_vec(), needed: counted.unwrap_or(usize::MAX), room }),
    }
}
