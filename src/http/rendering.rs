//! Conversations to prompts, by the sandbox: a chat template is a program from the model's folder.

use std::sync::Arc;

use actix_web::web;

use super::{AppState, error::ApiError};
use crate::text::{Conversation, Message, Text};

/// Bytes of messages that are made ready sooner than another thread has taken them up.
const FEW: usize = 16 << 10;

/// The text of a conversation whose next message is the model's.
pub(super) async fn render(
    state: &AppState,
    text: &Arc<Text>,
    conversation: Conversation,
) -> Result<String, ApiError> {
    let request = if is_short(&conversation) {
        text.render_request(&conversation)?
    } else {
        let text = Arc::clone(text);
        let request = web::block(move || text.render_request(&conversation)).await;
        request.map_err(|error| ApiError::Internal { message: error.to_string() })??
    };
    Ok(state.sandbox()?.render(text, request).await??)
}

fn is_short(conversation: &Conversation) -> bool {
    let length = |message: &Message| message.content.as_ref().map_or(0, String::len);
    let is_text = conversation.messages.iter().all(|message| message.tool_calls.is_empty());
    is_text
        && conversation.tools.is_empty()
        && conversation.messages.iter().map(|message| 64 + length(message)).sum::<usize>() <= FEW
}
