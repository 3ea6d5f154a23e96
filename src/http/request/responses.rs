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
use crate::{http::field_error::FieldError, units::Tokens};

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
        /// The form of the answer.
        text: Option<TextOptions> = object().optional();
    }
    accepts compat::OPENAI, compat::RESPONSES, compat::SINGLE, compat::PEERS;
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
    fn resolve(self, context: &RequestContext) -> Result<GenerateParams, FieldError> {
        let Self { request, echoed } = self;
        let choice = request.tool_choice.unwrap_or(ToolChoice::Auto);
        let tools = ToolSet::new(request.tools, choice, request.parallel_tool_calls)?;
        let conversation = request.input.conversation(request.instructions);
        let (mut conversation, thinking) = request.thinking.apply(conversation)?;
        if let Some(tools) = &tools {
            conversation = tools.add_to(conversation, &context.tools);
        }
        let text_format = request.text.and_then(|text| text.format).map(|format| ("text.format", format));
        let route = RouteParams::new(Prompt::Conversation(conversation), request.max_output_tokens);
        let route = RouteParams { text_format, tools, ..route };
        Ok(GenerateParams { echoed, ..request.generation.resolve(route, context)? }.with_thinking(thinking))
    }
}
