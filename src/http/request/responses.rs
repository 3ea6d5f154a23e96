//! The request of `POST /v1/responses`.

use serde_json::Value;

use super::{
    compat,
    echoed_fields::EchoedFields,
    generation::{GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, max_tokens},
    input_items::{Input, input},
    prompt::Prompt,
    response_format::TextFormat,
    schema::{Fields, Modify, ReadObject, Schemas, boolean, object, shape, string},
    thinking::ThinkingFields,
    tool_definitions::{Tool, ToolChoice, response_tools, tool_choice},
    tools::ToolSet,
};
use crate::{
    http::{field_error::FieldError, stored_responses::StoredForClient},
    text::{Conversation, Message},
    units::Tokens,
};

shape! {
    /// A request of `/v1/responses`.
    pub(crate) struct ResponseRequest {
        ..generation: Generation;
        ..thinking: ThinkingFields;
        /// A text, or the conversation so far.
        input: Input = input();
        /// The system message before the input.
        instructions: Option<String> = string().optional();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for.
        max_output_tokens: Option<Tokens> = max_tokens();
        /// Functions that the model may call; their names differ.
        tools: Vec<Tool> = response_tools().or_empty();
        tool_choice: Option<ToolChoice> = tool_choice().optional();
        /// Whether one answer may have several calls.
        parallel_tool_calls: bool = boolean().or(true);
        /// A stored response: its conversation, without its instructions, comes before the input.
        previous_response_id: Option<String> = string().optional();
        /// Whether the response is stored; by default it is, where the server stores responses.
        store: Option<bool> = boolean().optional();
        /// The form of the answer.
        text: Option<TextOptions> = object().optional();
    }
    accepts compat::OPENAI, compat::WITHOUT_TOKENS, compat::RESPONSES, compat::SINGLE, compat::PEERS;
}

shape! {
    /// The form of the answer.
    pub(crate) struct TextOptions {
        format: Option<TextFormat> = object().optional();
    }
    accepts compat::TEXT_OPTIONS;
}

/// A request, and its fields that the answer repeats.
#[derive(Debug)]
pub(crate) struct ResponseCall {
    request: ResponseRequest,
    echoed: EchoedFields,
}

impl ReadObject for ResponseCall {
    const NAME: &'static str = <ResponseRequest as ReadObject>::NAME;

    fn read(fields: Fields) -> Result<Self, FieldError> {
        let echoed = EchoedFields::of(&fields);
        Ok(Self { request: ResponseRequest::read(fields)?, echoed })
    }

    fn schema(schemas: &mut Schemas) -> Value {
        ResponseRequest::schema(schemas)
    }
}

impl GenerateRequest for ResponseCall {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let Self { request, echoed } = self;
        let choice = request.tool_choice.unwrap_or(ToolChoice::Auto);
        let tools = ToolSet::new(request.tools, choice, request.parallel_tool_calls)?;
        let stores = stores(request.store, context)?;
        let before = previous(request.previous_response_id.as_deref(), context)?;
        let messages = request.input.messages(before);
        let stored = stores.map(|client| client.to_store(messages.clone(), request.previous_response_id));
        let instructions = request.instructions.map(|text| Message::new("system", text));
        let conversation: Conversation = instructions.into_iter().chain(messages).collect::<Vec<_>>().into();
        let (mut conversation, thinking) = request.thinking.apply(conversation)?;
        if let Some(tools) = &tools {
            conversation = tools.add_to(conversation, &context.tools);
        }
        let text_format = request.text.and_then(|text| text.format).map(|format| ("text.format", format));
        let route = RouteParams::new(Prompt::Conversation(conversation), request.max_output_tokens);
        let route = RouteParams { text_format, tools, ..route };
        Ok(GenerateParams { echoed, stored, ..request.generation.resolve(route, context)? }
            .with_thinking(thinking))
    }
}

/// Where the response is stored; `None` if it is not.
fn stores<'a>(
    asked: Option<bool>,
    context: &RequestContext<'a>,
) -> Result<Option<StoredForClient<'a>>, FieldError> {
    match (asked, context.stored) {
        (Some(true), None) => {
            let message =
                "this server stores no responses; leave store out, or set server.stored_responses_bytes";
            Err(FieldError::value("store", message))
        }
        (Some(false), _) => Ok(None),
        (_, stored) => Ok(stored),
    }
}

/// The conversation of the response with this id.
fn previous(id: Option<&str>, context: &RequestContext<'_>) -> Result<Vec<Message>, FieldError> {
    let Some(id) = id else { return Ok(Vec::new()) };
    let wrong = |message| Err(FieldError::value("previous_response_id", message));
    let Some(stored) = context.stored else {
        return wrong(
            "this server stores no responses; send the whole conversation as input, or set \
             server.stored_responses_bytes",
        );
    };
    stored.conversation(id).map_or_else(
        || wrong("no response with this id is stored, or no longer; send the whole conversation as input"),
        Ok,
    )
}
