//! The web page, the list of routes and the API reference: `GET /`, `/page/{file}`, `/docs` and `/openapi.json`.
//!
//! The files of the page are compiled into the binary. They contain no secrets and need no key; the page itself asks for one. The content security policy allows these files and
//! requests to this server only, and no inline scripts or styles.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{
        Accept, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ContentType, ETAG, EntityTag, Header,
        HeaderValue, IfNoneMatch, Quality, REFERRER_POLICY, VARY,
    },
    web,
};
use sha2::{Digest, Sha256};

use super::models::allowed;
use crate::http::{documents::SharedDocuments, error::ApiError, model_registry, state::AppState};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A static file.
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

static DOCUMENT: File =
    File { name: "", kind: "text/html; charset=utf-8", text: include_str!("../page/index.html") };

static FILES: [File; 4] = [
    File { name: "style.css", kind: "text/css; charset=utf-8", text: include_str!("../page/style.css") },
    File {
        name: "script.js",
        kind: "text/javascript; charset=utf-8",
        text: include_str!("../page/script.js"),
    },
    File { name: "docs.css", kind: "text/css; charset=utf-8", text: include_str!("../page/docs.css") },
    File { name: "icon.svg", kind: "image/svg+xml", text: include_str!("../page/icon.svg") },
];

/// The `ETag` of all pages, which belong together; `docs` is the page that is made at run time.
pub(crate) fn etag(docs: &str) -> String {
    let mut hash = Sha256::new();
    std::iter::once(&DOCUMENT).chain(&FILES).for_each(|file| hash.update(file.text));
    hash.update(docs);
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the client prefers HTML to text. Programs that accept anything get text.
pub(crate) fn is_wanted(request: &HttpRequest) -> bool {
    let Ok(Accept(kinds)) = Accept::parse(request) else { return false };
    let quality = |wanted| {
        let named = kinds.iter().filter(|kind| kind.item.essence_str() == wanted);
        named.map(|kind| kind.quality).max().unwrap_or(Quality::ZERO)
    };
    quality("text/html") > quality("text/plain")
}

/// Whether the path, exactly as it was sent, is a file of the page.
pub(crate) fn is_file(request: &HttpRequest) -> bool {
    request.path().strip_prefix("/page/").is_some_and(|name| FILES.iter().any(|file| file.name == name))
}

/// `GET /`: the web page for browsers, the list of routes for programs.
pub(crate) async fn index(
    request: HttpRequest,
    state: web::Data<AppState>,
    documents: SharedDocuments,
) -> HttpResponse {
    if is_wanted(&request) {
        let mut answer = send(&request, &documents.etag, &DOCUMENT);
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        return answer;
    }
    let models = allowed(&request, &state).filter(|entry| entry.is_ok()).map(model_registry::id);
    let models = models.collect::<Vec<_>>().join(", ");
    let list = format!("eka serves {models}, one answer at a time.\n\n{}", documents.index);
    HttpResponse::Ok().insert_header(ContentType::plaintext()).insert_header((VARY, "accept")).body(list)
}

/// `GET /openapi.json`.
pub(crate) async fn openapi(documents: SharedDocuments) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(documents.openapi.as_str())
}

/// `GET /docs`, which is rendered at run time.
pub(crate) async fn docs(request: HttpRequest, documents: SharedDocuments) -> Result<HttpResponse, ApiError> {
    match &documents.docs {
        Ok(text) => Ok(send(&request, &documents.etag, &File { name: "", kind: DOCUMENT.kind, text })),
        Err(message) => Err(ApiError::Internal { message: message.clone() }),
    }
}

/// `GET /page/{file}`.
pub(crate) async fn file(
    request: HttpRequest,
    path: web::Path<String>,
    documents: SharedDocuments,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner();
    let file = FILES.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| ApiError::NotFound { path: request.path().to_owned() })?;
    Ok(send(&request, &documents.etag, file))
}

fn send(request: &HttpRequest, etag: &str, file: &File) -> HttpResponse {
    let tag = EntityTag::new_strong(etag.to_owned());
    let is_known = match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(known)) => known.iter().any(|known| known.weak_eq(&tag)),
        Err(_) => false,
    };
    let mut answer = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer
        .insert_header((ETAG, tag.to_string()))
        // Cached, but revalidated each time: a new binary has a new page.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((REFERRER_POLICY, "no-referrer"));
    if is_known {
        return answer.finish();
    }
    answer.insert_header((CONTENT_TYPE, file.kind)).body(file.text)
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header::ACCEPT, test::TestRequest};

    use super::*;

    #[test]
    fn html_is_sent_if_it_is_accepted_and_not_less_than_text() {
        let wanted =
            |accept: &str| is_wanted(&TestRequest::get().insert_header((ACCEPT, accept)).to_http_request());
        let chromium = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        assert!(wanted(chromium) && wanted("text/html") && wanted("text/plain;q=0.5, text/html;q=0.6"));
        for other in
            ["*/*", "text/plain", "application/json", "text/html;q=0", "text/plain, text/html;q=0.9", "?"]
        {
            assert!(!wanted(other), "{other}");
        }
        assert!(!is_wanted(&TestRequest::get().to_http_request()));
    }

    #[test]
    fn the_page_is_small_and_has_no_inline_code() {
        let all = || std::iter::once(&DOCUMENT).chain(&FILES);
        assert!(all().map(|file| file.text.len()).sum::<usize>() <= 150 << 10);
        for forbidden in ["<style", " style=", " onclick=", " onload=", "javascript:", "http://", "https://"]
        {
            assert!(!DOCUMENT.text.contains(forbidden), "{forbidden} in the document");
        }
        for file in &FILES[..2] {
            assert!(!file.text.contains("https://"), "{} names another host", file.name);
            assert!(DOCUMENT.text.contains(&format!("page/{}", file.name)));
        }
    }
}
