//! Everything that is served.

use actix_web::{HttpRequest, Resource, Route, web};

use super::{
    error::ApiError,
    formats::{
        chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
        responses::Responses,
    },
    handlers::{admin, generate::generate, health, prompt_cache, slot, tokenize, ui},
    openapi,
};

/// One line of the list of what is served.
pub(crate) struct RouteLine {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) about: &'static str,
}

pub(crate) const fn line(method: &'static str, path: &'static str, about: &'static str) -> RouteLine {
    RouteLine { method, path, about }
}

/// Everything that is served.
pub(crate) const ROUTES: &[RouteLine] = &[
    line("POST", GenerateLite::ROUTE, "one answer, whole or streamed, with timings and memory"),
    line("POST", Completions::ROUTE, "OpenAI's completions"),
    line("POST", Chat::ROUTE, "OpenAI's chat completions"),
    line("POST", Responses::ROUTE, "OpenAI's responses, of which none is kept"),
    line("POST", "/tokenize", "the tokens of a text or of messages"),
    line("POST", "/detokenize", "the text of tokens"),
    line("POST", "/apply-template", "the prompt that the chat template makes of messages"),
    line("GET", "/v1/models", "the models that are served"),
    line("GET", "/v1/models/{id}", "one of them, by its id"),
    line("GET", "/v1/slot", "what runs, who waits, and what the last requests took"),
    line("POST", "/admin/models/{id}/load", "loads a model; for whoever runs the server"),
    line("POST", "/admin/models/{id}/unload", "gives a model's memory back; likewise"),
    line("POST", "/admin/trim", "gives back what no job needs; likewise"),
    line("POST", "/admin/cache", "saves a prompt to a file, restores or deletes one; likewise"),
    line("GET", "/admin/cache", "the prompts that are saved; likewise"),
    line("POST", "/admin/log", "sets log.level; likewise"),
    line("POST", "/admin/drain", "ends the server when its work is done; likewise"),
    line("GET", "/livez", "200 while this process answers"),
    line("GET", "/readyz", "200 while a worker has the model loaded"),
    line("GET", "/startupz", "200 once a worker has had the model loaded"),
    line("GET", "/metrics", "figures in the OpenMetrics text format"),
    line("GET", "/openapi.json", "all of this as an OpenAPI document"),
    line("GET", "/docs", "the same for people"),
    line("GET", "/", "this list; a page where HTML is asked for"),
    line("GET", "/page/{file}", "what that page is made of"),
];

pub(crate) fn routes(app: &mut web::ServiceConfig) {
    app.service(post(GenerateLite::ROUTE, web::post().to(generate::<GenerateLite>)))
        .service(post(Completions::ROUTE, web::post().to(generate::<Completions>)))
        .service(post(Chat::ROUTE, web::post().to(generate::<Chat>)))
        .service(post(Responses::ROUTE, web::post().to(generate::<Responses>)))
        .service(post("/tokenize", web::post().to(tokenize::tokenize)))
        .service(post("/detokenize", web::post().to(tokenize::detokenize)))
        .service(post("/apply-template", web::post().to(tokenize::apply_template)))
        .service(get("/v1/models", || web::route().to(health::models)))
        .service(get("/v1/models/{id:.+}", || web::route().to(health::model)))
        .service(post("/admin/models/{id}/load", web::post().to(admin::load)))
        .service(post("/admin/models/{id}/unload", web::post().to(admin::unload)))
        .service(post("/admin/trim", web::post().to(admin::trim)))
        .service(admin_cache())
        .service(post("/admin/log", web::post().to(admin::log)))
        .service(post("/admin/drain", web::post().to(admin::drain)))
        .service(get("/livez", || web::route().to(health::livez)))
        .service(get("/readyz", || web::route().to(health::readyz)))
        .service(get("/startupz", || web::route().to(health::startupz)))
        .service(get("/metrics", || web::route().to(health::metrics)))
        .service(get("/v1/slot", || web::route().to(slot::slot)))
        .service(get("/openapi.json", || web::route().to(openapi::json)))
        .service(get("/docs", || web::route().to(ui::docs)))
        .service(get("/", || web::route().to(health::index)))
        .service(get("/page/{file}", || web::route().to(ui::file)))
        .default_service(web::to(not_found));
}

fn post(path: &str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(|| refuse_method("POST")))
}

/// A resource that is read; HEAD is GET without the body.
fn get(path: &str, route: fn() -> Route) -> Resource {
    use actix_web::guard::{Get, Head};
    web::resource(path)
        .route(route().guard(Get()))
        .route(route().guard(Head()))
        .default_service(web::to(|| refuse_method("GET, HEAD")))
}

fn admin_cache() -> Resource {
    use actix_web::guard::{Get, Head};
    web::resource("/admin/cache")
        .route(web::post().to(prompt_cache::cache))
        .route(web::route().guard(Get()).to(prompt_cache::list))
        .route(web::route().guard(Head()).to(prompt_cache::list))
        .default_service(web::to(|| refuse_method("GET, HEAD, POST")))
}

async fn refuse_method(allow: &'static str) -> Result<(), ApiError> {
    Err(ApiError::MethodNotAllowed { allow })
}

async fn not_found(request: HttpRequest) -> Result<(), ApiError> {
    Err(ApiError::NotFound { path: request.path().to_owned() })
}
