//! Whether there is a GPU, asked of the driver alone.
//!
//! The driver's library is probed before any other call: without it every function of `cudarc` panics. Nothing here
//! creates a context, so asking costs no device memory. **Has not run on a GPU yet**: only the answer "none" has been
//! seen.

use std::panic;

use cudarc::driver::{result, sys};

/// What the driver says about the GPUs of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// No driver library on this machine.
    NoDriver,
    /// There is a driver, but it cannot be used.
    Unusable {
        /// What it said.
        reason: String,
    },
    /// Its devices, by name, in the driver's order; may be empty.
    Found(Vec<String>),
}

/// Asks the driver for its devices.
#[must_use]
pub fn probe() -> Gpus {
    // SAFETY: it only tries to open the driver's library by its well-known names.
    if !unsafe { sys::is_culib_present() } {
        return Gpus::NoDriver;
    }
    // A library of that name without the functions expected makes cudarc panic on the first missing one.
    match panic::catch_unwind(devices) {
        Ok(Ok(names)) => Gpus::Found(names),
        Ok(Err(e)) => Gpus::Unusable { reason: e.to_string() },
        Err(_) => {
            Gpus::Unusable { reason: "its library lacks functions of CUDA 13: update the driver".into() }
        }
    }
}

fn devices() -> Result<Vec<String>, result::DriverError> {
    result::init()?;
    (0..result::device::get_count()?)
        .map(|ordinal| result::device::get_name(result::device::get(ordinal)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_never_panics_with_or_without_a_driver() {
        let answer = probe();
        assert_eq!(answer, probe(), "and it says the same twice");
    }
}
