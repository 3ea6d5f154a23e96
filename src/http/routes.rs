//! The route table. Routing, access rules, metrics labels, the index page and OpenAPI come from it.

use std::sync::LazyLock;

use actix_web::http::Method;
use serde_json::{Value, json};
use utoipa::openapi::schema::Type;

use super::{
    error_shape::ErrorShape,
    formats::{
        AnthropicMessage, ApiFormat, Chat, ChatCompletion, ChatCompletionChunk, Completion, CompletionRoute,
        Completions, CountedTokens, GenerateLite, Generated, GeneratedDelta, InfillRoute, LlamaCompletions,
        LlamaFormat, MessageEvent, Messages, OllamaChat, OllamaChatAnswer, OllamaGenerate, OllamaGenerated,
        ReducedCompletion, Response, ResponseEvent, Responses,
    },
    handlers::{
        adapters::{self, ScannedAdapters},
        admin::{self, CommandAnswer, Draining, DrainingNode, LogLevel},
        embeddings::{self, EmbeddingList, OllamaEmbedding, OllamaEmbeddings, RerankAnswer},
        generate::{count_tokens, generate},
        health::{self, Load, Status, Version},
        llama_cpp::{self, LlamaProps, LlamaSlot},
        models::{self, Model, ModelList},
        ollama::{self, OllamaModels, OllamaRunning, OllamaShown, OllamaVersion},
        pages,
        prompt_cache::{self, CacheAnswer, SavedPromptList},
        resume::{self, DeletedStream},
        slot::{self, Slot},
        stored_responses::{self, DeletedResponse},
        tokenize::{self, Detokenized, RenderedPrompt, Tokenized, TokenizerInfo},
    },
    request::{
        ApplyTemplateRequest, CacheRequest, ChatRequest, DetokenizeRequest, EmbeddingRequest, LoadRequest,
        LogRequest, MessagesRequest, OllamaChatRequest, OllamaEmbedRequest, OllamaEmbeddingsRequest,
        OllamaGenerateRequest, RerankRequest, ResponseCall, ShowRequest, TokenizeRequest,
    },
    route::{Example, Route},
    route_errors::{
        BODY_ERRORS, CACHE_ERRORS, EMBEDDING_ERRORS, KEY_ERRORS, NO_MODEL, NO_RESPONSE, NO_STREAM,
        WORKER_ERRORS,
    },
    route_info::{Access, NO_ROUTE, RouteInfo},
};

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;

/// Every route.
pub(crate) static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let tags = [
        ("openai", openai()),
        ("anthropic", anthropic()),
        ("ollama", ollama()),
        ("llama.cpp", llama_server()),
        ("eka", eka()),
        ("texts", texts()),
        ("admin", admin()),
        ("operation", operation()),
    ];
    let complete = |route: Route| {
        let route = if route.has_body() { route.errors(BODY_ERRORS) } else { route };
        if matches!(route.info.access, Access::Probe) { route } else { route.errors(KEY_ERRORS) }
    };
    tags.into_iter()
        .flat_map(|(tag, routes)| routes.into_iter().map(move |route| complete(route.tag(tag))))
        .collect()
});

/// A conversation of one message, for examples.
fn conversation(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// A generating route in the format `F`.
fn generating<F: ApiFormat>(summary: &'static str, examples: impl IntoIterator<Item = Example>) -> Route {
    let route = Route::new(POST, F::ROUTE, summary, generate::<F>).also_on(F::ALIASES);
    route.body::<F::Request>(examples).errors(WORKER_ERRORS)
}

fn openai() -> Vec<Route> {
    vec![
        completions(),
        chat(),
        responses(),
        Route::new(
            POST,
            "/v1/responses/input_tokens",
            "The number of tokens of a request of /v1/responses",
            count_tokens::<ResponseCall>,
        )
        .body::<ResponseCall>([("text", "A text", json!({ "input": "Good morning" }))])
        .answers::<CountedTokens>("The number of tokens."),
        chat_tokens(),
        Route::new(POST, "/v1/embeddings", "OpenAI's embeddings", embeddings::embeddings)
            .also_on(&["/embeddings"])
            .body::<EmbeddingRequest>([("texts", "Two texts", json!({ "input": ["rain", "sun"] }))])
            .errors(EMBEDDING_ERRORS)
            .errors(WORKER_ERRORS)
            .answers::<EmbeddingList<'_>>("The embeddings."),
        Route::new(
            POST,
            "/v1/rerank",
            "Documents in the order of their similarity to a query",
            embeddings::rerank,
        )
        .also_on(&["/rerank", "/v2/rerank"])
        .body::<RerankRequest>([(
            "documents",
            "Two documents",
            json!({ "query": "rain", "documents": ["An umbrella", "A hat"] }),
        )])
        .errors(EMBEDDING_ERRORS)
        .errors(WORKER_ERRORS)
        .answers::<RerankAnswer<'_>>("The documents."),
        Route::new(GET, "/v1/responses/{id}", "A stored response", stored_responses::read)
            .parameter("id", "The id of the response.")
            .answers::<Response<'_>>("The response.")
            .errors(&[NO_RESPONSE]),
        Route::new(DELETE, "/v1/responses/{id}", "Delete a stored response", stored_responses::delete)
            .parameter("id", "The id of the response.")
            .answers::<DeletedResponse>("The response was deleted.")
            .errors(&[NO_RESPONSE]),
        Route::new(
            POST,
            "/v1/responses/{id}/cancel",
            "Not supported: cancelling a response in the background",
            stored_responses::cancel,
        )
        .parameter("id", "The id of the response.")
        .errors(&[(501, "Responses are not generated in the background.")]),
        Route::new(GET, "/v1/models", "The served models", models::models)
            .also_on(&["/models"])
            .answers::<ModelList<'_>>("The models."),
        Route::new(GET, "/v1/models/{id}", "One model", models::model)
            .matched_by("/v1/models/{id:.+}")
            .parameter("id", "The id of the model.")
            .answers::<Model<'_>>("The model.")
            .errors(&[NO_MODEL]),
    ]
}

fn chat_tokens() -> Route {
    Route::new(
        POST,
        "/v1/chat/completions/input_tokens",
        "The number of tokens of a request of /v1/chat/completions",
        count_tokens::<ChatRequest>,
    )
    .also_on(&["/chat/completions/input_tokens"])
    .body::<ChatRequest>([(
        "text",
        "A text",
        json!({ "messages": [{ "role": "user", "content": "Good morning" }] }),
    )])
    .answers::<CountedTokens>("The number of tokens.")
}

fn anthropic() -> Vec<Route> {
    let whole = json!({ "messages": conversation("Translate to Hindi: Good morning."), "max_tokens": 24 });
    let blocks = json!([{ "role": "user", "content": [{ "type": "text", "text": "Translate to Urdu: Good night." }] }]);
    let system =
        json!([{ "type": "text", "text": "Answer briefly.", "cache_control": { "type": "ephemeral" } }]);
    let streamed = json!({ "system": system, "messages": blocks, "max_tokens": 24, "stream": true });
    let count = json!({ "messages": conversation("Good morning") });
    let messages = Route::new(POST, Messages::ROUTE, "Anthropic's messages", generate::<Messages>);
    let tokens = Route::new(
        POST,
        "/v1/messages/count_tokens",
        "The number of tokens of a request of /v1/messages",
        count_tokens::<MessagesRequest>,
    );
    vec![
        messages
            .errors_as(ErrorShape::Anthropic)
            .body::<MessagesRequest>([
                ("text", "A conversation", whole),
                ("blocks", "Blocks, streamed", streamed),
            ])
            .errors(WORKER_ERRORS)
            .details("A stream has `AnthropicEvent` events and ends with `message_stop`.")
            .answers_or_streams::<AnthropicMessage<'_>, MessageEvent<'_>>("The answer."),
        tokens
            .errors_as(ErrorShape::Anthropic)
            .body::<MessagesRequest>([("text", "A conversation", count)])
            .answers::<CountedTokens>("The number of tokens."),
    ]
}

fn ollama() -> Vec<Route> {
    let messages = conversation("Translate to Hindi: Good morning.");
    let chat = json!({ "messages": messages, "stream": false, "options": { "num_predict": 24 } });
    let text = json!({ "prompt": "Translate to Urdu: Good night.", "stream": false, "options": { "num_predict": 24 } });
    let refused: [(&str, &str, &str); 4] = [
        ("/api/pull", "Not supported: Ollama's download of a model", "Models are not changed by HTTP."),
        ("/api/push", "Not supported: Ollama's upload of a model", "Models are not changed by HTTP."),
        ("/api/create", "Not supported: Ollama's creation of a model", "Models are not changed by HTTP."),
        ("/api/copy", "Not supported: Ollama's copy of a model", "Models are not changed by HTTP."),
    ];
    let refused = refused.into_iter().map(|(path, summary, reason)| {
        Route::new(POST, path, summary, ollama::refuse_changes)
            .errors_as(ErrorShape::Ollama)
            .errors(&[(501, reason)])
    });
    let routes = vec![
        Route::new(POST, OllamaChat::ROUTE, "Ollama's chat", generate::<OllamaChat>)
            .errors_as(ErrorShape::Ollama)
            .body::<OllamaChatRequest>([("chat", "A conversation", chat)])
            .errors(WORKER_ERRORS)
            .details("A stream, the default, has one `OllamaChatAnswer` a line.")
            .answers_or_streams_lines::<OllamaChatAnswer<'_>>("The answer."),
        Route::new(POST, OllamaGenerate::ROUTE, "Ollama's completions", generate::<OllamaGenerate>)
            .errors_as(ErrorShape::Ollama)
            .body::<OllamaGenerateRequest>([("prompt", "A prompt", text)])
            .errors(WORKER_ERRORS)
            .details("A stream, the default, has one `OllamaGenerated` a line.")
            .answers_or_streams_lines::<OllamaGenerated<'_>>("The answer."),
        Route::new(GET, "/api/tags", "Ollama's list of models", ollama::tags)
            .errors_as(ErrorShape::Ollama)
            .answers::<OllamaModels<'_>>("The models."),
        Route::new(GET, "/api/ps", "Ollama's list of loaded models", ollama::ps)
            .errors_as(ErrorShape::Ollama)
            .answers::<OllamaRunning<'_>>("The models."),
        Route::new(POST, "/api/show", "Ollama's description of a model", ollama::show)
            .errors_as(ErrorShape::Ollama)
            .body::<ShowRequest>([("first", "The default model", json!({}))])
            .answers::<OllamaShown<'_>>("The model."),
        Route::new(POST, "/api/embed", "Ollama's embeddings", embeddings::ollama_embed)
            .errors_as(ErrorShape::Ollama)
            .body::<OllamaEmbedRequest>([("texts", "Two texts", json!({ "input": ["rain", "sun"] }))])
            .errors(EMBEDDING_ERRORS)
            .errors(WORKER_ERRORS)
            .answers::<OllamaEmbeddings<'_>>("The embeddings."),
        Route::new(POST, "/api/embeddings", "Ollama's older embeddings", embeddings::ollama_embeddings)
            .errors_as(ErrorShape::Ollama)
            .body::<OllamaEmbeddingsRequest>([("text", "A text", json!({ "prompt": "rain" }))])
            .errors(EMBEDDING_ERRORS)
            .errors(WORKER_ERRORS)
            .answers::<OllamaEmbedding>("The embedding."),
        Route::new(GET, "/api/version", "The version of Ollama's API", ollama::version)
            .errors_as(ErrorShape::Ollama)
            .answers::<OllamaVersion>("The version."),
    ];
    routes.into_iter().chain(refused).collect()
}

/// Routes of llama-server that no other server has.
fn llama_server() -> Vec<Route> {
    let prompt = json!({ "prompt": "Good morning", "n_predict": 8 });
    let probs = json!({ "prompt": ["Good morning", "Good night"], "n_predict": 4, "n_probs": 2, "seed": 7 });
    let stream = "A stream has `LlamaCompletion` events; the last one of each answer has `\"stop\": true`.";
    vec![
        generating::<LlamaFormat<CompletionRoute>>(
            "llama-server's completions",
            [("prompt", "A prompt", prompt), ("probabilities", "Two prompts, with probabilities", probs)],
        )
        .details(stream)
        .answers_or_streams::<LlamaCompletions<'_>, ReducedCompletion<'_>>("The answer."),
        generating::<LlamaFormat<InfillRoute>>("The text between two others, as in llama-server", [])
            .details(stream)
            .answers_or_streams::<LlamaCompletions<'_>, ReducedCompletion<'_>>("The answer."),
        Route::new(GET, "/props", "llama-server's properties of the default model", llama_cpp::props)
            .access(Access::Unmetered)
            .answers::<LlamaProps<'_>>("The properties."),
        Route::new(GET, "/slots", "llama-server's list of slots", llama_cpp::slots)
            .access(Access::Unmetered)
            .answers::<Vec<LlamaSlot>>("The slots."),
    ]
}

fn eka() -> Vec<Route> {
    vec![
        generate_lite(),
        Route::new(GET, "/v1/slot", "Running, queued and recent requests, and memory", slot::slot)
            .access(Access::Unmetered)
            .details(
                "Request ids and key names are shown to admin keys, and to the key of the request itself.",
            )
            .answers::<Slot>("The state."),
        Route::new(GET, "/v1/streams/{id}", "Resume a stream whose connection was lost", resume::read)
            .details(
                "With the header `Last-Event-ID`, or `?resume=` and its value, the stream goes on after that event; the route that \
                 started the stream takes them too. Needs `server.resume_ms`.",
            )
            .parameter("id", "The id of the stream, from the header `x-eka-stream-id` of its answer.")
            .answers_raw("text/event-stream", Type::String, "The rest of the stream.")
            .errors(&[
                (400, "The stream has not had such an event."),
                NO_STREAM,
                (410, "Events after the last one that the client has were dropped."),
            ]),
        Route::new(DELETE, "/v1/streams/{id}", "End a stream and its generation", resume::delete)
            .parameter("id", "The id of the stream.")
            .answers::<DeletedStream>("The stream has ended.")
            .errors(&[NO_STREAM]),
    ]
}

fn generate_lite() -> Route {
    let text = json!({ "prompt": "Translate to Hindi: Good morning, friend.", "max_new_tokens": 24 });
    let messages = json!({ "messages": conversation("Translate to Urdu: Good night."), "stream": true });
    let examples = [("prompt", "A prompt", text), ("messages", "A conversation, streamed", messages)];
    generating::<GenerateLite>("One answer, complete or streamed, with timings and memory", examples)
        .details(
            "Greedy unless a temperature is sent. A stream has `GeneratedDelta` events, then one `Generated`, \
             and ends with `data: [DONE]`.",
        )
        .answers_or_streams::<Generated<'_>, GeneratedDelta<'_>>("The answer.")
}

fn completions() -> Route {
    let logprobs = json!({ "prompt": "Good morning", "max_tokens": 8, "logprobs": 2, "seed": 7 });
    let regex = json!({ "prompt": "Yes or no?", "regex": "yes|no", "n": 2, "temperature": 0.8 });
    let examples = [
        ("prompt", "A prompt, with log-probabilities", logprobs),
        ("choices", "Two choices that match a regular expression", regex),
    ];
    generating::<Completions>("OpenAI's completions", examples)
        .details("A stream has `Completion` events and ends with `data: [DONE]`.")
        .answers_or_streams::<Completion<'_>, Completion<'_>>("The answer.")
}

fn chat() -> Route {
    let messages = conversation("Translate to Tamil: Thank you.");
    let whole = json!({ "messages": messages, "max_completion_tokens": 24, "temperature": 0 });
    let parts = json!([{ "type": "text", "text": "Translate to Bengali: Welcome." }]);
    let streamed = json!({
        "messages": [{ "role": "user", "content": parts }], "stream": true,
        "stream_options": { "include_usage": true }, "logprobs": true, "top_logprobs": 2,
    });
    let word = json!({
        "type": "object", "properties": { "word": { "enum": ["a", "b"] } }, "required": ["word"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "word", "schema": word } });
    let schema = json!({ "messages": conversation("Good morning"), "response_format": format });
    let examples = [
        ("chat", "A conversation", whole),
        ("stream", "Streamed, with usage", streamed),
        ("schema", "Matching a JSON schema", schema),
    ];
    generating::<Chat>("OpenAI's chat completions", examples)
        .details("A stream has `ChatCompletionChunk` events and ends with `data: [DONE]`.")
        .answers_or_streams::<ChatCompletion<'_>, ChatCompletionChunk<'_>>("The answer.")
}

fn responses() -> Route {
    let text = json!({ "input": "Translate to Hindi: Good morning.", "max_output_tokens": 24 });
    let parts = json!([{ "type": "input_text", "text": "Translate to Marathi: Good evening." }]);
    let items = json!([{ "role": "user", "content": parts }]);
    let streamed = json!({ "instructions": "Answer briefly.", "input": items, "stream": true });
    let examples = [("text", "A text", text), ("conversation", "A conversation, streamed", streamed)];
    generating::<Responses>("OpenAI's responses", examples)
        .details(
            "A stream has `ResponseEvent` events and ends with `response.completed` or `response.incomplete`.",
        )
        .answers_or_streams::<Response<'_>, ResponseEvent<'_>>("The answer.")
}

fn texts() -> Vec<Route> {
    vec![
        Route::new(POST, "/tokenize", "The tokens of a text or of messages", tokenize::tokenize)
            .also_on(&["/v1/tokenize"])
            .body::<TokenizeRequest>([(
                "content",
                "A text",
                json!({ "content": "Good morning", "with_pieces": true }),
            )])
            .answers::<Tokenized>("The tokens."),
        Route::new(
            GET,
            "/tokenizer_info",
            "The special tokens and the chat template of the default model",
            tokenize::tokenizer_info,
        )
        .answers::<TokenizerInfo<'_>>("The tokenizer."),
        Route::new(POST, "/detokenize", "The text of tokens", tokenize::detokenize)
            .also_on(&["/v1/detokenize"])
            .body::<DetokenizeRequest>([("tokens", "Tokens", json!({ "tokens": [40, 41, 42] }))])
            .answers::<Detokenized<'_>>("The text."),
        Route::new(
            POST,
            "/apply-template",
            "The prompt that the chat template renders from messages",
            tokenize::apply_template,
        )
        .body::<ApplyTemplateRequest>([(
            "messages",
            "A conversation",
            json!({ "messages": [{ "role": "user", "content": "Good morning" }] }),
        )])
        .answers::<RenderedPrompt>("The prompt."),
    ]
}

fn admin() -> Vec<Route> {
    let system = "You translate what travellers say into the language they ask for.";
    let messages = json!([{ "role": "system", "content": system }]);
    let save = json!({ "action": "save", "name": "support", "messages": messages });
    let routes = vec![
        Route::new(POST, "/admin/models/{id}/load", "Load a model (admin)", admin::load)
            .details("Runs after the current request and before all that are queued.")
            .parameter("id", "The id of the model.")
            .optional_body::<LoadRequest>([(
                "keep_alive",
                "Stay loaded for ten minutes",
                json!({ "keep_alive": "10m" }),
            )])
            .answers::<CommandAnswer>("The model is loaded.")
            .errors(WORKER_ERRORS),
        Route::new(
            POST,
            "/admin/models/{id}/unload",
            "Unload a model and free its memory (admin)",
            admin::unload,
        )
        .parameter("id", "The id of the model.")
        .answers::<CommandAnswer>("The model is unloaded.")
        .errors(WORKER_ERRORS)
        .errors(&[NO_MODEL]),
        Route::new(POST, "/admin/trim", "Free memory that no request needs (admin)", admin::trim)
            .answers::<CommandAnswer>("The memory is freed.")
            .errors(WORKER_ERRORS),
        Route::new(
            POST,
            "/admin/cache",
            "Save a prompt to a file, restore it or delete it (admin)",
            prompt_cache::cache,
        )
        .details(
            "Requests that begin with a restored prompt do not compute it again; see `cached_tokens`. A \
                 save is queued like a request. A restore runs after the current request, on every device.",
        )
        .body::<CacheRequest>([
            ("save", "Save a system prompt", save),
            ("restore", "Restore it after a restart", json!({ "action": "restore", "name": "support" })),
            ("delete", "Delete it", json!({ "action": "delete", "name": "support" })),
        ])
        .answers::<CacheAnswer<'_>>("The action is done.")
        .errors(WORKER_ERRORS)
        .errors(CACHE_ERRORS),
        Route::new(GET, "/admin/cache", "The saved prompts (admin)", prompt_cache::list)
            .answers::<SavedPromptList>("The saved prompts.")
            .errors(&[(500, "The directory of saved prompts cannot be read.")]),
        scan_adapters(),
        Route::new(POST, "/admin/log", "Set log.level (admin)", admin::log)
            .body::<LogRequest>([("level", "Warnings and errors only", json!({ "level": "warn" }))])
            .answers::<LogLevel>("The level is set."),
        Route::new(POST, "/admin/drain", "Shut down after the accepted requests (admin)", admin::drain)
            .answers_with::<Draining>(202, "The server is shutting down."),
        Route::new(
            POST,
            "/admin/nodes/{node}/drain",
            "Shut down a node of a cluster after its requests (admin)",
            admin::drain_node,
        )
        .details("Of a gateway. What happens to running requests is the node's setting `cluster.drain`.")
        .parameter("node", "The name of the node, `cluster.node_id`.")
        .answers_with::<DrainingNode>(202, "The node is shutting down.")
        .errors(&[(404, "No such node reports to this gateway.")]),
    ];
    routes.into_iter().map(|route| route.access(Access::Admin)).collect()
}

fn scan_adapters() -> Route {
    Route::new(
        POST,
        "/admin/adapters",
        "Read the directories of adapters again (admin)",
        adapters::scan,
    )
    .details(
        "Adapters that were copied to `adapters/` of a model, or removed from there, are served or refused from then on. \
             The server does the same every `models.adapters_scan_ms`. Running requests keep their adapters.",
    )
    .answers::<ScannedAdapters>("The directories are read.")
}

fn operation() -> Vec<Route> {
    let page: fn(&actix_web::HttpRequest) -> bool = |_| true;
    vec![
        Route::new(GET, "/livez", "200 while this process answers", health::livez)
            .access(Access::Probe)
            .answers::<Status>("The process is alive."),
        Route::new(GET, "/readyz", "200 while a worker is ready and requests are accepted", health::readyz)
            .access(Access::Probe)
            .answers::<Status>("A worker is ready.")
            .errors(&[(503, "No worker is ready; see `Retry-After`.")]),
        Route::new(GET, "/startupz", "200 once a worker was ready", health::startupz)
            .access(Access::Probe)
            .answers::<Status>("Startup is complete.")
            .errors(&[(503, "Startup is not complete.")]),
        Route::new(GET, "/health", "200 while a worker is ready, as in llama.cpp and vLLM", health::health)
            .also_on(&["/v1/health"])
            .access(Access::Probe)
            .answers::<Status>("A worker is ready.")
            .errors(&[(503, "No worker is ready; see `Retry-After`.")]),
        Route::new(GET, "/ping", "200 while a worker is ready, as in vLLM", health::health)
            .access(Access::Probe)
            .answers::<Status>("A worker is ready.")
            .errors(&[(503, "No worker is ready; see `Retry-After`.")]),
        Route::new(POST, "/ping", "200 while a worker is ready, as in vLLM", health::health)
            .access(Access::Probe)
            .answers::<Status>("A worker is ready.")
            .errors(&[(503, "No worker is ready; see `Retry-After`.")]),
        Route::new(GET, "/load", "The number of requests that run or wait, as in vLLM", health::load)
            .access(Access::Unmetered)
            .answers::<Load>("The number."),
        Route::new(GET, "/version", "The version of the server", health::version)
            .answers::<Version>("The version."),
        Route::new(
            GET,
            "/metrics",
            "Metrics in Prometheus' text format, or in OpenMetrics' on request",
            health::metrics,
        )
        .access(Access::Metrics)
        .answers_raw("text/plain", Type::String, "The metrics."),
        Route::new(GET, "/openapi.json", "All routes as an OpenAPI document", pages::openapi)
            .access(Access::Page(page))
            .answers_raw("application/json", Type::Object, "The document."),
        Route::new(GET, "/docs", "The OpenAPI document as a page", pages::docs)
            .access(Access::Page(page))
            .answers_raw("text/html", Type::String, "The page."),
        Route::new(GET, "/", "All routes as text, or the web page if the client accepts HTML", pages::index)
            .access(Access::Page(pages::is_wanted))
            .answers_raw("text/plain", Type::String, "The list."),
        Route::new(GET, "/page/{file}", "The files of the web page", pages::file)
            .access(Access::Page(pages::is_file))
            .parameter("file", "The name of the file.")
            .answers_raw("text/plain", Type::String, "The file.")
            .errors(&[(404, "The file was not found.")]),
    ]
}

/// The route for this method and path, or [`NO_ROUTE`]. A method that the path does not allow gets its first route, whose access
/// rule is checked before the 405. `path` is compared byte for byte and is not normalized, so an encoded or doubled spelling of
/// an open path does not inherit its access rule.
pub(crate) fn find(method: &Method, path: &str) -> &'static RouteInfo {
    // HEAD is GET without the body.
    let method = if *method == Method::HEAD { &GET } else { method };
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    let matches = |route: &&Route| match route.info.path.split_once('{') {
        Some((prefix, rest)) => {
            let suffix = rest.split_once('}').map_or("", |(_, suffix)| suffix);
            path.starts_with(prefix) && path.ends_with(suffix)
        }
        None => path == route.info.path || route.aliases.contains(&path),
    };
    let found = ROUTES.iter().filter(matches).min_by_key(|route| route.info.method != *method);
    found.map_or(&NO_ROUTE, |route| &route.info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_path_finds_its_route_and_any_other_path_has_the_label_other() {
        let find = |path| super::find(&POST, path).path;
        assert_eq!(find("/v1/completions"), "/v1/completions");
        assert_eq!(find("/v1/models"), "/v1/models");
        assert_eq!(find("/v1/models/demo"), "/v1/models/{id}");
        assert_eq!(find("/admin/models/demo/unload"), "/admin/models/{id}/unload");
        assert_eq!(find("/v1/completions/../secret"), "other");
        assert_eq!(find("/wp-login.php"), "other");
    }

    #[test]
    fn a_path_with_two_methods_has_a_route_for_each() {
        let method = |method| find(&method, "/admin/cache").method.clone();
        assert_eq!([GET, Method::HEAD, POST].map(method), [GET, GET, POST]);
        let other = find(&Method::DELETE, "/admin/cache");
        assert!(other.path == "/admin/cache" && matches!(other.access, Access::Admin));
    }
}
