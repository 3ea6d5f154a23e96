//! The vector instructions of a processor, and tasks that are compiled for each instruction set.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{portable::Portable, simd_i8::SimdI8};

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuIsa {
    /// No special instructions.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which all of these processors have.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl CpuIsa {
    /// Of this machine's.
    #[must_use]
    pub fn detect() -> Self {
        Self::all().into_iter().next_back().unwrap_or(Self::Portable)
    }

    /// All that this machine's processor can do, the slowest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut kinds = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                kinds.push(Self::Avx2);
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
                if wide && has!("avx512vnni") {
                    kinds.push(Self::Avx512);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            kinds.push(Self::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                kinds.push(Self::NeonDot);
            }
        }
        kinds
    }

    /// Rows of activations that one pass over the weights serves.
    pub(super) const fn rows(self) -> usize {
        match self {
            Self::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::<false>::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => Neon::<true>::ROWS,
        }
    }

    /// Runs `task` with these instructions.
    ///
    /// # Safety
    /// The processor must have this instruction set; and the conditions of the task.
    #[expect(clippy::undocumented_unsafe_blocks, reason = "one comment for all of them")]
    pub(super) unsafe fn run(self, task: impl Task) {
        // SAFETY, of every arm: as the caller promises.
        match self {
            Self::Portable => unsafe { task.run::<Portable>() },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(task) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(task) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { task.run::<Neon<false>>() },
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => unsafe { neon_dot(task) },
        }
    }
}

/// Something that is written once for every kind of processor.
pub(super) trait Task {
    /// Runs the task. Always inlined, so that it is compiled once for each instruction set.
    ///
    /// # Safety
    /// The processor must have the instructions of `P`; and the conditions of the task.
    unsafe fn run<P: SimdI8>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(task: impl Task) {
    // SAFETY: as the caller promises.
    unsafe { task.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512(task: impl Task) {
    // SAFETY: as the caller promises.
    unsafe { task.run::<Avx512>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon_dot(task: impl Task) {
    // SAFETY: as the caller promises.
    unsafe { task.run::<Neon<true>>() }
}
