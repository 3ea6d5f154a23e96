//! One line of the route table: its handler, who may call it, and its OpenAPI operation.

use actix_web::{FromRequest, Handler, Resource, Responder, guard, http::Method, middleware::from_fn, web};
use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{
        Content, ContentBuilder, HttpMethod, Ref, Required, Response, ResponseBuilder,
        example::ExampleBuilder,
        path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::{RequestBody, RequestBodyBuilder},
        schema::{ObjectBuilder, Type},
        security::SecurityRequirement,
    },
};

use super::{
    error::{ApiError, ErrorBody},
    error_shape::{AnthropicError, ErrorShape, OllamaError},
    middleware::auth,
    request::{ReadObject, Schemas},
    route_info::{Access, RouteInfo},
};

const JSON: &str = "application/json";

/// An example of a request: its name, a summary and the body.
pub(crate) type Example = (&'static str, &'static str, Value);

/// A route.
pub(crate) struct Route {
    pub(crate) info: RouteInfo,
    pub(crate) summary: &'static str,
    /// The path as actix-web matches it.
    pattern: &'static str,
    /// Other paths of the same route.
    pub(crate) aliases: &'static [&'static str],
    new_handler: Box<dyn Fn() -> actix_web::Route + Send + Sync>,
    pub(crate) operation: Operation,
    /// Schemas that the operation refers to.
    pub(crate) schemas: Schemas,
}

impl Route {
    /// A route that needs an API key.
    pub(crate) fn new<H, Args>(method: Method, path: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: Handler<Args> + Send + Sync,
        H::Output: Responder + 'static,
        Args: FromRequest + 'static,
    {
        let id = operation_id(&method, path);
        let operation = OperationBuilder::new().operation_id(Some(id)).summary(Some(summary)).build();
        Self {
            info: RouteInfo { method, path, access: Access::Key, errors: ErrorShape::OpenAi },
            summary,
            pattern: path,
            aliases: &[],
            new_handler: Box::new(move || web::route().to(handler.clone())),
            operation,
            schemas: Map::new(),
        }
    }

    /// Matches the path by another pattern of actix-web.
    pub(crate) fn matched_by(self, pattern: &'static str) -> Self {
        Self { pattern, ..self }
    }

    /// Also answers on these paths.
    pub(crate) fn also_on(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    pub(crate) fn access(mut self, access: Access) -> Self {
        if matches!(access, Access::Probe) {
            self.operation.security = Some(vec![SecurityRequirement::default()]);
        }
        self.info.access = access;
        self
    }

    /// Errors have the shape of another API.
    pub(crate) fn errors_as(mut self, shape: ErrorShape) -> Self {
        self.info.errors = shape;
        self
    }

    /// Files the route under a tag of the OpenAPI document.
    pub(crate) fn tag(mut self, tag: &'static str) -> Self {
        self.operation.tags = Some(vec![tag.to_owned()]);
        self
    }

    /// Adds a description to the summary.
    pub(crate) fn details(mut self, details: &'static str) -> Self {
        self.operation.description = Some(details.to_owned());
        self
    }

    /// Describes the placeholder of the path.
    pub(crate) fn parameter(mut self, name: &'static str, description: &'static str) -> Self {
        let parameter: Parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .build();
        self.operation.parameters = Some(vec![parameter.into()]);
        self
    }

    /// Requires a JSON body.
    pub(crate) fn body<T: ReadObject>(self, examples: impl IntoIterator<Item = Example>) -> Self {
        self.with_body::<T>(Required::True, examples)
    }

    /// Allows a JSON body.
    pub(crate) fn optional_body<T: ReadObject>(self, examples: impl IntoIterator<Item = Example>) -> Self {
        self.with_body::<T>(Required::False, examples)
    }

    fn with_body<T: ReadObject>(
        mut self,
        required: Required,
        examples: impl IntoIterator<Item = Example>,
    ) -> Self {
        let examples = examples.into_iter().map(|(name, summary, value)| {
            (name, ExampleBuilder::new().summary(summary).value(Some(value)).build())
        });
        let schema = T::schema(&mut self.schemas);
        self.schemas.insert(T::NAME.to_owned(), schema);
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(T::NAME)));
        let body = RequestBodyBuilder::new().required(Some(required));
        let body: RequestBody = body.content(JSON, content.examples_from_iter(examples)).build();
        self.operation.request_body = Some(body.into());
        self
    }

    /// Answers with 200 and JSON.
    pub(crate) fn answers<T: ToSchema>(self, description: &'static str) -> Self {
        self.answers_with::<T>(200, description)
    }

    /// Answers with this status and JSON.
    pub(crate) fn answers_with<T: ToSchema>(mut self, status: u16, description: &'static str) -> Self {
        let content = Content::new(Some(self.reference::<T>()));
        self.respond(status, ResponseBuilder::new().description(description).content(JSON, content))
    }

    /// Answers with JSON, or with a stream of events.
    pub(crate) fn answers_or_streams<T: ToSchema, Event: ToSchema>(
        mut self,
        description: &'static str,
    ) -> Self {
        // A stream is not one text: its events are described by schemas that the details name.
        self.reference::<Event>();
        self.answers_or("text/event-stream", description, Self::reference::<T>)
    }

    /// Answers with JSON, or with a stream of lines of the same shape.
    pub(crate) fn answers_or_streams_lines<T: ToSchema>(self, description: &'static str) -> Self {
        self.answers_or("application/x-ndjson", description, Self::reference::<T>)
    }

    fn answers_or(
        mut self,
        stream: &'static str,
        description: &'static str,
        reference: fn(&mut Self) -> Ref,
    ) -> Self {
        let content = Content::new(Some(reference(&mut self)));
        let answer = ResponseBuilder::new().description(description).content(JSON, content);
        self.respond(200, answer.content(stream, Content::default()))
    }

    /// Answers with 200 and another content than a described shape.
    pub(crate) fn answers_raw(
        self,
        content_type: &'static str,
        schema: Type,
        description: &'static str,
    ) -> Self {
        let content = Content::new(Some(ObjectBuilder::new().schema_type(schema)));
        self.respond(200, ResponseBuilder::new().description(description).content(content_type, content))
    }

    /// May answer with these errors, each a status and its reason; earlier reasons of a status are kept.
    pub(crate) fn errors(mut self, errors: &[(u16, &'static str)]) -> Self {
        for &(status, reason) in errors {
            if !self.operation.responses.responses.contains_key(&status.to_string()) {
                self = match self.info.errors {
                    ErrorShape::OpenAi => self.answers_with::<ErrorBody>(status, reason),
                    ErrorShape::Anthropic => self.answers_with::<AnthropicError>(status, reason),
                    ErrorShape::Ollama => self.answers_with::<OllamaError>(status, reason),
                };
            }
        }
        self
    }

    pub(crate) const fn has_body(&self) -> bool {
        self.operation.request_body.is_some()
    }

    fn respond(mut self, status: u16, response: ResponseBuilder) -> Self {
        let response: Response = response.build();
        self.operation.responses.responses.insert(status.to_string(), response.into());
        self
    }

    /// Refers to a schema by its name.
    fn reference<T: ToSchema>(&mut self) -> Ref {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        // Does not fail: every key is a string.
        let schemas = schemas.into_iter().map(|(name, schema)| (name, json!(schema)));
        self.schemas.extend(schemas);
        Ref::from_schema_name(T::name())
    }

    /// The method as OpenAPI names it.
    pub(crate) fn http_method(&self) -> HttpMethod {
        if self.info.method == Method::POST { HttpMethod::Post } else { HttpMethod::Get }
    }

    fn register(&self, resource: Resource) -> Resource {
        let route = (self.new_handler)();
        let route = if self.info.method == Method::GET {
            // HEAD is GET without the body.
            route.guard(guard::Any(guard::Get()).or(guard::Head()))
        } else {
            route.guard(guard::Post())
        };
        match self.info.access {
            Access::Admin => resource.route(route.wrap(from_fn(auth::admins_only))),
            _ => resource.route(route),
        }
    }
}

/// Registers routes, those of one path as one resource. Other methods get a 405 that lists the allowed ones. With
/// `only_operates`, requests for answers and models have no route.
pub(crate) fn register(routes: &[Route], only_operates: bool, app: &mut web::ServiceConfig) {
    let mut routes: Vec<&Route> =
        routes.iter().filter(|route| !only_operates || route.info.is_for_operators()).collect();
    routes.sort_by_key(|route| route.pattern);
    for of_path in routes.chunk_by(|one, other| one.pattern == other.pattern) {
        let methods: Vec<_> = of_path.iter().map(|route| &route.info.method).collect();
        let allow = allowed(&methods);
        let refuse = move || std::future::ready(Err::<(), _>(ApiError::MethodNotAllowed { allow }));
        let aliases = of_path.iter().flat_map(|route| route.aliases).copied();
        let mut patterns: Vec<String> =
            [of_path[0].pattern].into_iter().chain(aliases).map(str::to_owned).collect();
        // A slash at the end changes nothing.
        patterns
            .extend(patterns.clone().into_iter().filter(|path| !path.ends_with('/')).map(|path| path + "/"));
        let resource = web::resource(patterns);
        let resource = of_path.iter().fold(resource, |resource, route| route.register(resource));
        app.service(resource.default_service(web::to(refuse)));
    }
}

/// The value of `Allow`.
fn allowed(methods: &[&Method]) -> &'static str {
    match (methods.contains(&&Method::GET), methods.contains(&&Method::POST)) {
        (true, true) => "GET, HEAD, POST",
        (true, false) => "GET, HEAD",
        (false, _) => "POST",
    }
}

/// The method and the words of the path, such as `post_chat_completions`.
fn operation_id(method: &Method, path: &str) -> String {
    let words =
        path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "v1");
    let words = words.collect::<Vec<_>>().join("_");
    let words = if words.is_empty() { "index" } else { &words };
    format!("{}_{words}", method.as_str().to_ascii_lowercase())
}
