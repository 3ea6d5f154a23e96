//! Prompts that ask for the text between two others.

use super::{generation::RequestContext, prompt::Prompt};
use crate::http::field_error::FieldError;

/// Makes each prompt one that asks for the text between it and `suffix`, which the request has as `field`. Returns further tokens that end an answer.
///
/// # Errors
/// When the model cannot fill in the middle, or a prompt is not a text.
pub(super) fn apply(
    prompts: &mut [Prompt],
    (field, suffix): (&str, &str),
    context: &RequestContext<'_>,
) -> Result<impl Iterator<Item = u32> + use<>, FieldError> {
    let Some(format) = context.fill_in_middle else {
        let message = "the model's tokenizer has no tokens for filling in the middle of a text; use a model that has \
                       them, or /v1/completions without a suffix";
        return Err(FieldError::value(field, message));
    };
    for prompt in prompts {
        let Prompt::Text(before) = prompt else {
            return Err(FieldError::value(field, "requires prompts that are texts, not token ids"));
        };
        *before = format.prompt(before, suffix);
    }
    Ok(format.end_tokens())
}
