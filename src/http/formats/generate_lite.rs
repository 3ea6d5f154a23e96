//! `POST /generate-lite`: eka's own dialect. Greedy unless asked otherwise, and open about what an answer took.

use serde_json::{Value, json};

use super::{
    completion_stream::{Ending, Progress, Said},
    format::{ApiFormat, ResponseMeta, prompt_progress, timings, usage},
    response_id,
};
use crate::{
    http::{handlers::health::held, request::generate_lite::GenerateLiteRequest},
    job::{JobId, MemoryReport},
};

/// eka's own dialect.
pub(crate) struct GenerateLite(ResponseMeta);

impl From<ResponseMeta> for GenerateLite {
    fn from(head: ResponseMeta) -> Self {
        Self(head)
    }
}

impl GenerateLite {
    fn document(&self, ending: &Ending) -> Value {
        let ResponseMeta { id, model, seed, .. } = &self.0;
        let endings = std::slice::from_ref(ending);
        json!({
            "id": id,
            "model": model,
            "text": ending.text,
            "finish_reason": ending.reason.as_str(),
            "seed": seed,
            "usage": usage(endings),
            "timings": timings(endings),
            "memory": memory(&ending.memory),
        })
    }
}

impl ApiFormat for GenerateLite {
    type Request = GenerateLiteRequest;

    const ROUTE: &'static str = "/generate-lite";
    const ID_PREFIX: &'static str = "gen-";

    /// With the job's number, in which order the queue took them: for tests of the queue and of faults.
    fn id(job: JobId) -> String {
        format!("{}-{}", response_id::new(Self::ID_PREFIX), job.0)
    }

    fn whole(&self, endings: &[Ending]) -> Value {
        // It has no field that asks for more choices than one.
        endings.first().map_or(Value::Null, |ending| self.document(ending))
    }

    fn progress(&mut self, progress: &Progress) -> Value {
        json!({ "prompt_progress": prompt_progress(progress) })
    }

    fn opening(&mut self, _: usize) -> Vec<Value> {
        Vec::new()
    }

    fn delta(&mut self, _: usize, said: &Said) -> Vec<Value> {
        vec![json!({ "text": said.text })]
    }

    fn closing(&mut self, _: usize, ending: &Ending) -> Vec<Value> {
        vec![self.document(ending)]
    }

    fn summary(&mut self, _: &[Ending]) -> Vec<Value> {
        Vec::new()
    }
}

/// The worker's memory in bytes; null where the operating system does not say, and where there is no pool on a device.
fn memory(report: &MemoryReport) -> Value {
    json!({
        "before": held(report.before),
        "peak": { "resident": report.peak_resident, "device": report.device_peak },
        "after": held(report.after),
    })
}
