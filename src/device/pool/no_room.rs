//! The error of a pool that is full.

use std::fmt;

use crate::units::Bytes;

/// Why a pool cannot allocate a block on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Size of the requested block.
    pub requested: Bytes,
    /// Device memory that the pool holds already.
    pub held: Bytes,
    /// Maximum device memory of the pool; `None` if only the device limits it.
    pub limit: Option<Bytes>,
    /// The device's error, if the device had no memory left.
    pub reason: Option<String>,
}

impl std::error::Error for NoRoom {}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requested, held, limit, reason } = self;
        write!(f, "no room for {requested}: {held}")?;
        match (limit, reason) {
            (Some(limit), None) => write!(f, " of {limit} in use; raise device.memory_limit_bytes,")?,
            (_, Some(reason)) => write!(f, " in use, and the device has no more ({reason});")?,
            (None, None) => write!(f, " in use, and no device has as much;")?,
        }
        write!(
            f,
            " use a shorter prompt or answer, a smaller engine.context_length or a smaller quantization"
        )
    }
}
