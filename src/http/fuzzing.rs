//! A way into the parsers of request bodies, for `tests/fuzz`.

use std::time::Duration;

use super::request::{
    ChatRequest, CompletionRequest, Fields, GenerateLiteRequest, GenerateRequest, RequestContext,
    ResponseCall, ToolContext,
};
use crate::{executor::Deadlines, job::SamplingDefaults, text::ToolSupport};

/// Parses `body` as a request of every generating route, for models with and without tools. Returns whether any accepts it.
pub fn request(body: &[u8]) -> bool {
    ["", "{{ tools }}[TOOL_CALLS]", "{{ tools }}<arg_key>"].into_iter().any(|template| {
        let context = RequestContext {
            vocabulary: 4096,
            end_tokens: &[2],
            deadlines: Deadlines { queue: Duration::from_secs(60), total: Duration::from_secs(600) },
            tools: ToolContext { format: ToolSupport::of(template).format(), is_marker_special: false },
            sampling: SamplingDefaults::default(),
            has_chat_template: true,
            fill_in_middle: None,
            stored: None,
        };
        let accepted = [
            parse::<GenerateLiteRequest>(body, &context),
            parse::<CompletionRequest>(body, &context),
            parse::<ChatRequest>(body, &context),
            parse::<ResponseCall>(body, &context),
        ];
        accepted.contains(&true)
    })
}

fn parse<R: GenerateRequest>(body: &[u8], context: &RequestContext<'_>) -> bool {
    let Ok(fields) = Fields::parse(body) else { return false };
    R::read(fields).and_then(|request| request.resolve(context)).is_ok()
}
