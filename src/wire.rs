//! Frames on the pipe between the server and a worker.
//!
//! A frame is the payload's length (u32, little-endian) and the payload: one [`ToWorker`] or [`FromWorker`] in postcard's
//! encoding. A worker sends a frame for each prompt chunk and each decode step, and the supervisor uses them as heartbeats. Both
//! ends are the same executable, so nothing is negotiated. [`FromWorker::Hello`] still carries [`PROTOCOL`]: on systems without
//! `/proc`, an executable that is replaced while the server runs starts workers of another version.
//!
//! The reader trusts nothing. A length above [`MAX_FRAME`] or a payload that does not decode is a [`WireError`], and nothing of
//! that length is allocated.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    device_spec::{CacheChoice, DeviceChoice, PackedFileChoice},
    job::{Failure, Finish, Job, JobId, Memory, ModelId, ModelReport, PromptToRestore, RuntimeReport, Step},
    trim_policy::TrimPolicy,
    units::Bytes,
};

/// Version of the frames. Both ends must have the same.
pub const PROTOCOL: u32 = 19;

/// Longest payload: room for a prompt of about three million tokens.
pub const MAX_FRAME: Bytes = Bytes::mib(16);

/// A frame from the server to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The worker's settings. The first frame, sent once. Answered by [`FromWorker::Started`] or [`FromWorker::StartFailed`].
    Start(WorkerSpec),
    /// Load a model and run it once. Answered by [`FromWorker::Loaded`] and [`FromWorker::Ready`], or by
    /// [`FromWorker::LoadFailed`].
    Load {
        /// The id that jobs use.
        model: ModelId,
        /// Its directory.
        dir: PathBuf,
        /// Its draft model.
        draft: Option<DraftModel>,
    },
    /// Unload a model. Answered by [`FromWorker::Unloaded`], even if the model is not loaded.
    Unload(ModelId),
    /// Run jobs of one model: together where that can compute several sequences in a pass, else one after another. Answered by
    /// frames with their ids; the last one of each is [`FromWorker::Done`] or [`FromWorker::Failed`].
    Generate(Vec<Job>),
    /// Stop this job after the current step. Ignored if the job is not running.
    Cancel(JobId),
    /// Free memory that no job needs, including restored prompts. Answered by [`FromWorker::Trimmed`].
    Trim,
    /// Restore a saved prompt. Answered by [`FromWorker::Restored`] or [`FromWorker::NotRestored`].
    Restore(PromptToRestore),
    /// Drop a restored prompt of all models. Answered by [`FromWorker::Forgotten`], even if there is none.
    Forget(String),
    /// Check that the compute thread is alive. Answered by [`FromWorker::Pong`]. Only sent to an idle worker.
    Ping,
    /// Exit with code 0 after the current step.
    Shutdown,
}

/// A smaller model with the same tokens, which proposes tokens for speculative decoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftModel {
    /// Its name in reports.
    pub id: ModelId,
    /// Its directory.
    pub dir: PathBuf,
}

/// A worker's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Directory in which ONNX Runtime's library is looked for first.
    pub onnxruntime_dir: Option<PathBuf>,
    /// Compute threads; `None` means one per physical core.
    pub threads: Option<usize>,
    /// Logical processors to run on; empty means all.
    pub processors: Vec<usize>,
    /// Whether to use eka's own CPU operators where possible.
    pub own_operators: bool,
    /// Number format of the key-value cache with those operators.
    pub kv_cache: CacheChoice,
    /// When packed weights are kept in a file.
    pub packed_file: PackedFileChoice,
    /// Maximum number of prompt tokens in one pass.
    pub prefill_chunk: usize,
    /// Maximum number of positions of a sequence; `None` means the model's context length.
    pub context_length: Option<usize>,
    /// The device to use.
    pub device: DeviceChoice,
    /// Maximum device memory to use; `None` means all.
    pub device_memory: Option<Bytes>,
    /// When unused device memory is freed.
    pub trim: TrimPolicy,
    /// Maximum device memory that the key-value cache keeps between two jobs.
    pub kv_keep: Bytes,
    /// Maximum memory for the prefix cache.
    pub prefix_cache: Bytes,
    /// Maximum memory for adapters.
    pub adapters: Bytes,
    /// Maximum number of tokens to draft per pass; 0 turns speculative decoding off.
    pub draft_tokens: usize,
    /// Whether the same request must give the same bits, even where that costs drafts and the prefix cache.
    pub exact: bool,
    /// Whether decode steps are captured as CUDA graphs on a GPU.
    pub cuda_graphs: bool,
    /// Allocate CPU memory from a pool, as on a GPU.
    pub host_pool: bool,
}

/// A frame from a worker to the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first frame.
    Hello {
        /// [`PROTOCOL`] of the worker's executable.
        protocol: u32,
    },
    /// ONNX Runtime and the device can be used; models can be loaded.
    Started(RuntimeReport),
    /// ONNX Runtime or the device cannot be used. The worker exits after this.
    StartFailed {
        /// Why, and the way out.
        message: String,
    },
    /// A model is loaded. Its first run follows.
    Loaded(ModelId),
    /// A model is loaded and has run once.
    Ready {
        /// The model.
        model: ModelId,
        /// Its placement, memory and load time.
        report: ModelReport,
    },
    /// A model cannot be loaded. The worker keeps running.
    LoadFailed {
        /// The model.
        model: ModelId,
        /// Why, and the way out.
        message: String,
    },
    /// The jobs of a [`ToWorker::Generate`] were received, and their computation begins.
    Accepted {
        /// The first of them.
        job: JobId,
    },
    /// A job has made a step.
    Step {
        /// The job.
        job: JobId,
        /// The step.
        step: Step,
    },
    /// A part of a job's prompt was saved to its file.
    Saving {
        /// The job.
        job: JobId,
        /// Bytes so far.
        written: Bytes,
    },
    /// A job has ended.
    Done {
        /// The job.
        job: JobId,
        /// How it ended.
        finish: Finish,
    },
    /// A job has failed.
    Failed {
        /// The job.
        job: JobId,
        /// Why.
        failure: Failure,
        /// The device can no longer be used. The worker exits after this.
        poisoned: bool,
    },
    /// The answer to [`ToWorker::Ping`].
    Pong,
    /// A model is unloaded.
    Unloaded {
        /// The model.
        model: ModelId,
        /// Memory afterwards.
        memory: Memory,
    },
    /// Device memory was freed between two jobs, as the trim policy demands. Sent without a request.
    AutoTrimmed {
        /// Memory afterwards.
        memory: Memory,
        /// Time it took.
        took: Duration,
    },
    /// A saved prompt is restored.
    Restored {
        /// Memory afterwards.
        memory: Memory,
    },
    /// A saved prompt cannot be restored. The worker keeps running.
    NotRestored {
        /// Why not, and the way out.
        failure: Failure,
    },
    /// A restored prompt was dropped.
    Forgotten {
        /// Memory afterwards.
        memory: Memory,
    },
    /// Memory was freed on request.
    Trimmed {
        /// Memory afterwards.
        memory: Memory,
    },
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The pipe failed, or ended within a frame.
    #[error("the pipe failed: {0}")]
    Io(#[from] io::Error),
    /// The length exceeds the maximum.
    #[error("a frame claims {found}; the maximum is {MAX_FRAME}")]
    TooLong {
        /// The length found.
        found: Bytes,
    },
    /// The payload is not a valid message.
    #[error("a frame of {length} does not decode: {source}")]
    Decode {
        /// Length of the payload.
        length: Bytes,
        /// Where and why.
        source: postcard::Error,
    },
    /// The message cannot be encoded.
    #[error("a message cannot be encoded: {0}")]
    Encode(postcard::Error),
}

/// Encodes a message as one frame, appended to `frame`.
///
/// # Errors
/// [`WireError::TooLong`] when the message exceeds [`MAX_FRAME`]; `frame` is unchanged then.
pub fn encode<T: Serialize>(message: &T, frame: &mut Vec<u8>) -> Result<(), WireError> {
    let payload = postcard::to_stdvec(message).map_err(WireError::Encode)?;
    let length = checked_length(payload.len() as u64)?;
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(())
}

/// Decodes the payload of one frame.
///
/// # Errors
/// [`WireError::Decode`] when the payload is not a `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(payload)
        .map_err(|source| WireError::Decode { length: Bytes::from(payload.len()), source })
}

/// Length of the payload, from a frame's first four bytes.
///
/// # Errors
/// [`WireError::TooLong`] above [`MAX_FRAME`].
pub fn payload_length(head: [u8; 4]) -> Result<usize, WireError> {
    Ok(checked_length(u64::from(u32::from_le_bytes(head)))? as usize)
}

fn checked_length(length: u64) -> Result<u32, WireError> {
    match u32::try_from(length) {
        Ok(length) if u64::from(length) <= MAX_FRAME.0 => Ok(length),
        _ => Err(WireError::TooLong { found: Bytes(length) }),
    }
}

/// Writes one frame and flushes.
///
/// # Errors
/// [`WireError::TooLong`], or [`WireError::Io`] when the other end has closed the pipe.
pub fn write<T: Serialize>(message: &T, pipe: &mut impl Write) -> Result<(), WireError> {
    let mut frame = Vec::with_capacity(64);
    encode(message, &mut frame)?;
    pipe.write_all(&frame)?;
    Ok(pipe.flush()?)
}

/// Reads one frame; `None` when the pipe ended between two frames.
///
/// # Errors
/// [`WireError`] when the pipe ended within a frame, or the frame is not a `T`.
pub fn read<T: DeserializeOwned>(pipe: &mut impl Read) -> Result<Option<T>, WireError> {
    let mut head = [0; 4];
    let first = loop {
        match pipe.read(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    pipe.read_exact(&mut head[first..])?;
    let mut payload = vec![0; payload_length(head)?];
    pipe.read_exact(&mut payload)?;
    decode(&payload).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::Sampling;

    fn job() -> Job {
        let sampling = Sampling { logit_bias: vec![(7, -1.5)], seed: u64::MAX, ..Sampling::greedy() };
        Job {
            model: "demo".into(),
            lost: 1,
            answer: vec![9],
            sampling,
            end_tokens: vec![2, 6],
            ..Job::new(JobId(3), vec![1, 2, u32::MAX], 48)
        }
    }

    #[test]
    fn frames_survive_the_pipe_and_its_end_between_two_frames_is_none() {
        let sent = [ToWorker::Generate(vec![job()]), ToWorker::Cancel(JobId(3)), ToWorker::Shutdown];
        let mut pipe = Vec::new();
        for message in &sent {
            write(message, &mut pipe).unwrap();
        }
        let mut pipe = pipe.as_slice();
        for message in sent {
            assert_eq!(read::<ToWorker>(&mut pipe).unwrap(), Some(message));
        }
        assert!(read::<ToWorker>(&mut pipe).unwrap().is_none());
    }

    #[test]
    fn a_pipe_that_ends_within_a_frame_is_an_error_at_every_cut() {
        let mut frame = Vec::new();
        encode(&ToWorker::Generate(vec![job()]), &mut frame).unwrap();
        for cut in 1..frame.len() {
            let ended = read::<ToWorker>(&mut &frame[..cut]);
            assert!(matches!(ended, Err(WireError::Io(_))), "cut at {cut}: {ended:?}");
        }
    }

    #[test]
    fn a_frame_of_four_gibibytes_is_refused_without_allocating_it() {
        let refused = read::<FromWorker>(&mut [0xff; 4].as_slice());
        assert!(matches!(refused, Err(WireError::TooLong { found }) if found == Bytes(u64::from(u32::MAX))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<FromWorker>(&mut bytes.as_slice());
            let _ = decode::<ToWorker>(&bytes);
        }
    }
}
