//! Renders conversations to prompts in the sandbox: a chat template is an untrusted program from the model's folder.

use std::sync::Arc;

use crate::{
    http::{error::ApiError, offload::Cost, state::AppState},
    text::{Conversation, Text},
};

/// The prompt of a conversation, up to the assistant's next message.
pub(crate) async fn render(
    state: &AppState,
    text: &Arc<Text>,
    conversation: Conversation,
) -> Result<String, ApiError> {
    let (model, cost) = (Arc::clone(text), Cost::of_json(conversation.text_bytes()));
    let request = state.offload.run(cost, move || model.render_request(&conversation)).await?;
    Ok(state.sandbox()?.render(text, request).await??)
}
