//! Frames for jobs and events on a pipe.
//!
//! A frame is its payload's length (u32, little-endian) and the payload: one [`Down`] or [`Up`] in postcard's encoding.
//! The worker writes one [`Up`] per prefill chunk and per decode step; these are the heartbeat that supervision watches.
//! Both ends are the same binary, so there is no negotiation, but [`Up::Hello`] carries [`PROTOCOL`] all the same: a
//! binary that was replaced on disk under a running server starts workers of another version.
//!
//! The reading side trusts nothing: a length above [`MAX_FRAME`] or a payload that does not decode is a [`WireError`],
//! never an allocation of that length.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    device_spec::{CacheChoice, DeviceChoice},
    job::{CacheSalt, Failure, Finish, Job, JobId, Memory, ModelId, ModelReport, RuntimeReport, Score},
    trim_policy::TrimPolicy,
    units::Bytes,
};

/// Version of the frames below; both ends must have the same.
pub const PROTOCOL: u32 = 12;

/// Longest payload that is sent or read: room for a prompt of some three million tokens.
pub const MAX_FRAME: Bytes = Bytes::mib(16);

/// From the parent to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Down {
    /// How to run; answered by [`Up::Started`] or [`Up::StartFailed`]. The first frame, once.
    Start(WorkerSpec),
    /// Load a model and run it once; answered by [`Up::Loaded`] and [`Up::Ready`], or by [`Up::LoadFailed`].
    Load {
        /// What jobs call it.
        model: ModelId,
        /// Its directory.
        dir: PathBuf,
        /// What guesses for it.
        draft: Option<DraftModel>,
    },
    /// Give a model's memory back; answered by [`Up::Unloaded`], also when it is not loaded.
    Unload(ModelId),
    /// Run a job; answered by frames that carry its id, the last one [`Up::Done`] or [`Up::Failed`].
    Generate(Box<Job>),
    /// Stop this job after the current step. For a job that is over or not known, nothing.
    Cancel(JobId),
    /// Give back memory that no job needs, saved prompts that were restored among it; answered by [`Up::Trimmed`].
    Trim,
    /// Keep a saved prompt for jobs that begin like it; answered by [`Up::Restored`] or [`Up::NotRestored`].
    Restore {
        /// A model that is loaded.
        model: ModelId,
        /// What the prompt is called.
        name: String,
        /// Its file.
        file: PathBuf,
        /// Which jobs may begin with it; `None` is all of them.
        salt: Option<CacheSalt>,
    },
    /// Let go of a saved prompt that was restored, for whichever models; answered by [`Up::Forgotten`], also where it was not.
    Forget(String),
    /// Show that the thread that computes is alive; answered by [`Up::Pong`]. Sent while nothing else is to be done.
    Ping,
    /// End with exit code 0, after the current step.
    Shutdown,
}

/// A smaller model that guesses for another, with the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftModel {
    /// Its name, for people.
    pub id: ModelId,
    /// Its directory.
    pub dir: PathBuf,
}

/// How a worker runs whatever it loads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Where ONNX Runtime's library is looked for first.
    pub onnxruntime_dir: Option<PathBuf>,
    /// Threads that compute; `None` is one for each physical core.
    pub threads: Option<usize>,
    /// Logical processors that it is kept to; none leaves that to the system.
    pub processors: Vec<usize>,
    /// Whether operators of our own compute on the CPU where they can.
    pub own_operators: bool,
    /// What the key-value cache is stored in where they do.
    pub kv_cache: CacheChoice,
    /// Most prompt tokens in one pass.
    pub prefill_chunk: usize,
    /// Most positions to make room for; `None` is the model's context length.
    pub context_length: Option<usize>,
    /// What computes.
    pub device: DeviceChoice,
    /// Most memory of the device that is taken; `None` is all that there is.
    pub device_memory: Option<Bytes>,
    /// When unused memory of the device goes back.
    pub trim: TrimPolicy,
    /// Most of it that the key-value cache keeps between two jobs.
    pub kv_keep: Bytes,
    /// Most memory of earlier prompts and answers that are kept for later ones to begin with.
    pub prefix_cache: Bytes,
    /// Most tokens that are guessed and verified in one pass; 0 is none.
    pub draft_tokens: usize,
    /// Whether decode steps are captured as CUDA graphs on a GPU.
    pub cuda_graphs: bool,
    /// Treat the CPU's memory as a GPU's is treated.
    pub host_pool: bool,
}

/// From the worker to the parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Up {
    /// The first frame: which protocol follows.
    Hello {
        /// [`PROTOCOL`] of the worker's binary.
        protocol: u32,
    },
    /// ONNX Runtime is there; models can be loaded.
    Started(RuntimeReport),
    /// ONNX Runtime cannot be used; the worker ends after this.
    StartFailed {
        /// Why, and the way out.
        message: String,
    },
    /// A model is loaded; it is run for the first time next.
    Loaded(ModelId),
    /// A model is loaded and warm.
    Ready {
        /// Which.
        model: ModelId,
        /// What it came to.
        report: ModelReport,
    },
    /// A model cannot be loaded; the worker goes on.
    LoadFailed {
        /// Which.
        model: ModelId,
        /// Why, and the way out.
        message: String,
    },
    /// A prefill chunk is done.
    Progress {
        /// Whose.
        job: JobId,
        /// Prompt tokens read so far.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
        /// Of those read, how many are kept from an earlier job.
        cached: usize,
    },
    /// What the model thought of a token; sent only where it was asked for.
    Score {
        /// Whose.
        job: JobId,
        /// The token's log-probability and others.
        score: Score,
    },
    /// A token was picked.
    Token {
        /// Whose.
        job: JobId,
        /// The token.
        id: u32,
    },
    /// A job's prompt is read, and so much of it is in its file.
    Saving {
        /// Whose.
        job: JobId,
        /// Bytes so far.
        written: Bytes,
    },
    /// The job is over.
    Done {
        /// Whose.
        job: JobId,
        /// How it ended.
        finish: Finish,
    },
    /// The job could not be finished.
    Failed {
        /// Whose.
        job: JobId,
        /// Why.
        failure: Failure,
        /// Whether the device can no longer be used; the worker ends after this.
        poisoned: bool,
    },
    /// The answer to [`Down::Ping`].
    Pong,
    /// A model is gone.
    Unloaded {
        /// Which.
        model: ModelId,
        /// What is held now.
        memory: Memory,
    },
    /// Memory of the device was given back as the trim policy says, between two jobs; nobody asked, and nothing answers it.
    Held {
        /// What is held now.
        memory: Memory,
        /// How long that took.
        took: Duration,
    },
    /// A saved prompt is kept for jobs that begin like it.
    Restored {
        /// What is held now.
        memory: Memory,
    },
    /// A saved prompt cannot be; the worker goes on.
    NotRestored {
        /// Why not, and the way out.
        failure: Failure,
    },
    /// A saved prompt is kept no longer.
    Forgotten {
        /// What is held now.
        memory: Memory,
    },
    /// Memory was given back.
    Trimmed {
        /// What is held now.
        memory: Memory,
    },
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The pipe failed, or ended within a frame.
    #[error("the pipe failed: {0}")]
    Io(#[from] io::Error),
    /// A length that no frame has.
    #[error("a frame claims {found}, the longest is {MAX_FRAME}")]
    TooLong {
        /// The length found.
        found: Bytes,
    },
    /// A payload that is not one of these messages.
    #[error("a frame of {length} does not decode: {source}")]
    Decode {
        /// Its length.
        length: Bytes,
        /// Where and why.
        source: postcard::Error,
    },
    /// A message that cannot be encoded.
    #[error("a message cannot be encoded: {0}")]
    Encode(postcard::Error),
}

/// Encodes a message as one frame, appended to `frame`.
///
/// # Errors
/// [`WireError::TooLong`] when the message exceeds [`MAX_FRAME`]; `frame` then is as it was.
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
/// [`WireError::Decode`] when it is not a `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    postcard::from_bytes(payload)
        .map_err(|source| WireError::Decode { length: Bytes::from(payload.len()), source })
}

/// The payload's length that a frame's first four bytes announce.
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

/// Writes one frame and flushes, so that the other end sees it at once.
///
/// # Errors
/// [`WireError::TooLong`], or [`WireError::Io`] when the other end is gone.
pub fn write<T: Serialize>(message: &T, pipe: &mut impl Write) -> Result<(), WireError> {
    let mut frame = Vec::with_capacity(64);
    encode(message, &mut frame)?;
    pipe.write_all(&frame)?;
    Ok(pipe.flush()?)
}

/// Reads one frame; `None` when the pipe ended between two frames.
///
/// # Errors
/// [`WireError`] when it ended within one, or the frame is not one of these.
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
    fn frames_come_out_as_they_went_in_and_the_end_between_them_is_none() {
        let sent = [Down::Generate(Box::new(job())), Down::Cancel(JobId(3)), Down::Shutdown];
        let mut pipe = Vec::new();
        for message in &sent {
            write(message, &mut pipe).unwrap();
        }
        let mut pipe = pipe.as_slice();
        for message in sent {
            assert_eq!(read::<Down>(&mut pipe).unwrap(), Some(message));
        }
        assert!(read::<Down>(&mut pipe).unwrap().is_none());
    }

    #[test]
    fn a_pipe_that_ends_within_a_frame_is_an_error_at_every_cut() {
        let mut frame = Vec::new();
        encode(&Down::Generate(Box::new(job())), &mut frame).unwrap();
        for cut in 1..frame.len() {
            let ended = read::<Down>(&mut &frame[..cut]);
            assert!(matches!(ended, Err(WireError::Io(_))), "cut at {cut}: {ended:?}");
        }
    }

    #[test]
    fn a_frame_of_four_gibibytes_is_refused_without_allocating_it() {
        let refused = read::<Up>(&mut [0xff; 4].as_slice());
        assert!(matches!(refused, Err(WireError::TooLong { found }) if found == Bytes(u64::from(u32::MAX))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<Up>(&mut bytes.as_slice());
            let _ = decode::<Down>(&bytes);
        }
    }
}
