//! The fields of a request that a response of `/v1/responses` repeats.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::schema::Fields;

/// Fields of the request as they were sent, with OpenAI's values for those that were not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct EchoedFields {
    #[schema(required, value_type = Option<String>)]
    instructions: Value,
    #[schema(required, value_type = Option<u32>)]
    max_output_tokens: Value,
    #[schema(value_type = Object)]
    metadata: Value,
    #[schema(value_type = bool)]
    parallel_tool_calls: Value,
    #[schema(value_type = f32)]
    temperature: Value,
    #[schema(value_type = Object)]
    text: Value,
    tool_choice: Value,
    #[schema(value_type = Vec<Object>)]
    tools: Value,
    #[schema(value_type = f32)]
    top_p: Value,
    #[schema(value_type = Object)]
    reasoning: Value,
    #[schema(required, value_type = Option<String>)]
    user: Value,
}

impl EchoedFields {
    /// Copies the fields of a request before they are taken.
    pub(crate) fn of(fields: &Fields) -> Self {
        let sent = |name: &str, default: Value| fields.get(name).cloned().unwrap_or(default);
        Self {
            instructions: sent("instructions", Value::Null),
            // -1 is other servers' value for a missing limit; OpenAI's is null.
            max_output_tokens: Some(sent("max_output_tokens", Value::Null))
                .filter(|tokens| tokens.as_f64() != Some(-1.0))
                .into(),
            metadata: sent("metadata", json!({})),
            parallel_tool_calls: sent("parallel_tool_calls", true.into()),
            temperature: sent("temperature", 1.0.into()),
            text: sent("text", json!({ "format": { "type": "text" } })),
            tool_choice: sent("tool_choice", "auto".into()),
            tools: sent("tools", json!([])),
            top_p: sent("top_p", 1.0.into()),
            reasoning: sent("reasoning", json!({ "effort": null, "summary": null })),
            user: sent("user", Value::Null),
        }
    }
}
