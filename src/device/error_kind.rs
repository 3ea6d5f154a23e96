//! Classifies an error of the device by its text.
//!
//! ONNX Runtime reports CUDA's errors only as text within its own message, so the error number in it has to be parsed.
//! CUDA's documentation of `CUresult` lists the numbers that leave the device unusable: "this leaves the process in an
//! inconsistent state and any further CUDA work will return the same error".

/// What can be done after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceErrorKind {
    /// There was not enough memory. The device is usable; a smaller request may succeed, or the same one after a trim.
    OutOfMemory,
    /// The device is lost to this process: every further call fails, and the process must be replaced.
    Poisoned,
    /// An error of the request or the model. The device is usable.
    Other,
}

/// CUDA's errors after which its context cannot be used.
const POISONING: [u32; 18] = [
    4,   // the driver is shutting down
    214, // an ECC error that could not be corrected
    220, // an NVLink error that could not be corrected
    226, // an error that the GPU contained
    700, // an illegal address
    702, // a kernel that took too long for the watchdog
    709, // the context has been destroyed
    710, // an assertion in a kernel
    714, // a stack error of the hardware
    715, // an illegal instruction
    716, // a misaligned address
    717, // an address in the wrong space
    718, // an invalid program counter
    719, // an unspecified failure of a launch
    721, // tensor memory that was not released
    810, // the multi-process server ended this client
    911, // a device outside of CUDA that CUDA waited for failed
    999, // unknown to CUDA itself
];

/// Words that name such an error without a number, in the driver's spelling and in the runtime's.
const POISONING_WORDS: [&str; 13] = [
    "ILLEGAL_ADDRESS",
    "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS",
    "INVALID_ADDRESS_SPACE",
    "LAUNCH_FAILED",
    "LAUNCH_TIMEOUT",
    "HARDWARE_STACK_ERROR",
    "CONTEXT_IS_DESTROYED",
    "ECC_UNCORRECTABLE",
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "device-side assert triggered",
];

/// Messages of a memory shortage.
const MEMORY_WORDS: [&str; 10] = [
    "Failed to allocate memory",
    "std::bad_alloc",
    "bad allocation",
    "Memory allocation failed",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "Available memory of",
];

impl DeviceErrorKind {
    /// Classifies a message of ONNX Runtime or the driver.
    #[must_use]
    pub fn of(message: &str) -> Self {
        let named = |words: &[&str]| words.iter().any(|word| message.contains(word));
        // Checked first, because a lost device also fails to allocate.
        if numbers_after(message, "CUDA failure ").any(|n| POISONING.contains(&n))
            || numbers_after(message, "CUDA error ").any(|n| POISONING.contains(&n))
            || numbers_after(message, "CUBLAS failure ").any(is_cublas_fault)
            || numbers_after(message, "CUDNN failure ").any(is_cudnn_fault)
            || named(&POISONING_WORDS)
        {
            return Self::Poisoned;
        }
        if numbers_after(message, "CUDA failure ").any(|n| n == 2)
            || numbers_after(message, "CUDA error ").any(|n| n == 2)
            || named(&MEMORY_WORDS)
        {
            return Self::OutOfMemory;
        }
        Self::Other
    }
}

/// Whether cuBLAS reports a kernel's fault: 11, a mapping error, or 13, a failed execution.
fn is_cublas_fault(status: u32) -> bool {
    matches!(status, 11 | 13)
}

/// Whether cuDNN reports a kernel's fault: 8, a failed execution, or since version 9 a status in the 5000s.
fn is_cudnn_fault(status: u32) -> bool {
    matches!(status, 8 | 5000..=5999)
}

/// The numbers after each `prefix` in `message`.
fn numbers_after<'a>(message: &'a str, prefix: &'a str) -> impl Iterator<Item = u32> + 'a {
    message.split(prefix).skip(1).filter_map(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ONNX Runtime's message around CUDA's.
    fn call(library: &str, message: &str, expression: &str) -> String {
        format!(
            "Non-zero status code returned while running MatMulNBits node. Name:'/model/layers.0/attn/qkv' Status \
             Message: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 onnxruntime::CudaCall \
             /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:114 onnxruntime::CudaCall {library} failure \
             {message} ; GPU=0 ; hostname=gpu-700 ; file=cuda_execution_provider.cc ; line=446 ; expr={expression}; "
        )
    }

    #[test]
    fn errors_that_leave_the_context_unusable_poison_the_device() {
        for message in [
            "700: an illegal memory access was encountered",
            "702: the launch timed out and was terminated",
            "710: device-side assert triggered",
            "214: uncorrectable ECC error encountered",
            "719: unspecified launch failure",
            "226: an error was contained",
            "999: unknown error",
        ] {
            assert_eq!(
                DeviceErrorKind::of(&call("CUDA", message, "cudaStreamSynchronize(s)")),
                DeviceErrorKind::Poisoned,
                "{message}"
            );
        }
        let gemm = call("CUBLAS", "13: CUBLAS_STATUS_EXECUTION_FAILED", "cublasGemmEx(h)");
        assert_eq!(DeviceErrorKind::of(&gemm), DeviceErrorKind::Poisoned);
        let cudnn = call("CUDNN", "5000: CUDNN_STATUS_EXECUTION_FAILED", "cudnnExecute(h)");
        assert_eq!(DeviceErrorKind::of(&cudnn), DeviceErrorKind::Poisoned);
    }

    #[test]
    fn errors_that_the_driver_names_without_a_number_are_classified() {
        let driver = r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")"#;
        assert_eq!(DeviceErrorKind::of(driver), DeviceErrorKind::Poisoned);
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert_eq!(DeviceErrorKind::of(driver), DeviceErrorKind::OutOfMemory);
        let older =
            "CUDA failure 77: an illegal memory access was encountered ; GPU=0 ; expr=cudaEventDestroy(e);";
        assert_eq!(DeviceErrorKind::of(older), DeviceErrorKind::Poisoned);
    }

    #[test]
    fn a_memory_shortage_is_distinguished_from_a_lost_device() {
        for message in [
            call("CUDA", "2: out of memory", "cudaMalloc((void**)&p, size)"),
            call("CUBLAS", "3: CUBLAS_STATUS_ALLOC_FAILED", "cublasCreate(&cublas_handle_)"),
            "Non-zero status code returned while running Mul node. Name:'Mul_8702' Status Message: bfc_arena.cc:376 \
             onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 700"
                .into(),
            "bfc_arena.cc:359 Available memory of 1024 is smaller than requested bytes of 4096".into(),
            "std::bad_alloc".into(),
            "Memory allocation failed. Size=4096".into(),
        ] {
            assert_eq!(DeviceErrorKind::of(&message), DeviceErrorKind::OutOfMemory, "{message}");
        }
    }

    #[test]
    fn a_lost_device_that_also_cannot_allocate_is_lost() {
        let both = format!(
            "{}\nFailed to allocate memory for requested buffer of size 4096",
            call("CUDA", "700: an illegal memory access was encountered", "cudaFreeAsync(p, s)")
        );
        assert_eq!(DeviceErrorKind::of(&both), DeviceErrorKind::Poisoned);
    }

    #[test]
    fn numbers_that_are_no_errors_and_errors_of_the_request_are_neither() {
        for message in [
            "Got invalid dimensions for input: input_ids index: 1 Got: 700 Expected: 719",
            &call("CUDA", "1: invalid argument", "cudaMemcpyAsync(dst, src, 700)"),
            &call(
                "CUDA",
                "901: operation failed due to a previous error during capture",
                "cudaStreamEndCapture(s)",
            ),
            &call(
                "CUDA",
                "209: no kernel image is available for execution on the device",
                "cudaGetLastError()",
            ),
            &call("CUBLAS", "15: CUBLAS_STATUS_NOT_SUPPORTED", "cublasGemmEx(h)"),
            "CUDA failure ",
            "",
        ] {
            assert_eq!(DeviceErrorKind::of(message), DeviceErrorKind::Other, "{message}");
        }
    }

    #[test]
    fn an_error_of_this_module_has_a_kind() {
        use crate::device::DeviceError;
        let lost =
            DeviceError::Runtime { what: "a run failed", message: "CUDA failure 719: unspecified".into() };
        assert_eq!(lost.kind(), DeviceErrorKind::Poisoned);
        let shape = DeviceError::Shape { shape: vec![1], needed: 2, room: 1 };
        assert_eq!(shape.kind(), DeviceErrorKind::Other);
    }
}
