//! The error of a pool that is full.

use std::fmt;

use crate::units::Bytes;

/// Why a pool gave no memory of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// What was asked for, as the block that it takes.
    pub asked: Bytes,
    /// What was handed out already.
    pub held: Bytes,
    /// Most that the pool may hold; `None` when nothing limits it but the device.
    pub limit: Option<Bytes>,
    /// What the device said, when it was the device that had no more.
    pub said: Option<String>,
}

impl std::error::Error for NoRoom {}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, held, limit, said } = self;
        write!(f, "no room for {asked}: {held}")?;
        match (limit, said) {
            (Some(limit), None) => write!(f, " of {limit} in use; raise device.memory_limit_bytes,")?,
            (_, Some(said)) => write!(f, " in use, and the device has no more ({said});")?,
            (None, None) => write!(f, " in use, and no device has as much;")?,
        }
        write!(
            f,
            " use a shorter prompt or answer, a smaller engine.context_length or a smaller quantization"
        )
    }
}
