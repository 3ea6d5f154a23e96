//! The web page, the list of routes and the API reference: `GET /`, `/page/{file}`, `/docs` and `/openapi.json`.
//!
//! The files of the page are compiled into the binary. They contain no secrets and need no key; the page itself asks for one. The content security policy allows these files and
//! requests to this server only, and no inline scripts or styles.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{
        Accept, AcceptEncoding, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
        ContentType, ETAG, Encoding, EntityTag, Header, HeaderValue, IfNoneMatch, Quality, REFERRER_POLICY,
        VARY,
    },
    web,
};
use sha2::{Digest, Sha256};

use super::models::allowed;
use crate::http::{
    documents::{Page, SharedDocuments},
    error::ApiError,
    model_registry,
    state::AppState,
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The content type of pages.
pub(crate) const HTML: &str = "text/html; charset=utf-8";

static DOCUMENT: Page = Page::new(HTML, include_str!("../page/index.html"));

/// Files of the page by name.
macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        [$(($name, Page::new(kind_of($name), include_str!(concat!("../page/", $name))))),+]
    };
}

static FILES: [(&str, Page); 19] = files![
    "style.css",
    "theme.js",
    "main.js",
    "api.js",
    "chat.js",
    "conversation.js",
    "dom.js",
    "format.js",
    "markdown.js",
    "settings.js",
    "sidebar.js",
    "slot.js",
    "store.js",
    "turn.js",
    "libraries.js",
    "models.js",
    "docs.js",
    "docs.css",
    "icon.svg",
];

/// The content type of a file by its extension.
const fn kind_of(name: &str) -> &'static str {
    match name.as_bytes() {
        [.., b'.', b'c', b's', b's'] => "text/css; charset=utf-8",
        [.., b'.', b'j', b's'] => "text/javascript; charset=utf-8",
        [.., b'.', b's', b'v', b'g'] => "image/svg+xml",
        _ => panic!("a file of the page has an unknown extension"),
    }
}

fn find(name: &str) -> Option<&'static Page> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, page)| page)
}

/// The `ETag` of all pages, which belong together; `docs` is the page that is made at run time.
pub(crate) fn etag(docs: &str) -> String {
    let mut hash = Sha256::new();
    all().for_each(|page| hash.update(page.text.as_bytes()));
    hash.update(docs);
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn all() -> impl Iterator<Item = &'static Page> {
    std::iter::once(&DOCUMENT).chain(FILES.iter().map(|(_, page)| page))
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
    request.path().strip_prefix("/page/").is_some_and(|name| find(name).is_some())
}

/// `GET /`: the web page for browsers, the list of routes for programs.
pub(crate) async fn index(
    request: HttpRequest,
    state: web::Data<AppState>,
    documents: SharedDocuments,
) -> HttpResponse {
    if is_wanted(&request) {
        let mut answer = send(&request, &documents.etag, &DOCUMENT);
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        return answer;
    }
    let models = allowed(&request, &state).filter(|entry| entry.is_ok()).map(model_registry::id);
    let models = models.collect::<Vec<_>>().join(", ");
    let list = format!("eka serves {models}, one answer at a time.\n\n{}", documents.index);
    HttpResponse::Ok().insert_header(ContentType::plaintext()).insert_header((VARY, "accept")).body(list)
}

/// `GET /openapi.json`.
pub(crate) async fn openapi(request: HttpRequest, documents: SharedDocuments) -> HttpResponse {
    send(&request, &documents.etag, &documents.openapi)
}

/// `GET /docs`, which is rendered at run time.
pub(crate) async fn docs(request: HttpRequest, documents: SharedDocuments) -> Result<HttpResponse, ApiError> {
    match &documents.docs {
        Ok(page) => Ok(send(&request, &documents.etag, page)),
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
    let page = find(&name).ok_or_else(|| ApiError::NotFound { path: request.path().to_owned() })?;
    Ok(send(&request, &documents.etag, page))
}

/// Sends a page, compressed if the client accepts gzip, or 304 if it has the page already.
fn send(request: &HttpRequest, etag: &str, page: &Page) -> HttpResponse {
    // Weak, because the compressed form has the same tag.
    let tag = EntityTag::new_weak(etag.to_owned());
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
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((VARY, "accept-encoding"));
    if is_known {
        return answer.finish();
    }
    answer.insert_header((CONTENT_TYPE, page.kind));
    let accepts_gzip = AcceptEncoding::parse(request).is_ok_and(|accepted| {
        accepted.negotiate([Encoding::gzip()].iter()).is_some_and(|chosen| chosen == Encoding::gzip())
    });
    match page.gzip().filter(|_| accepts_gzip) {
        Some(compressed) => answer.insert_header((CONTENT_ENCODING, "gzip")).body(compressed),
        None => answer.body(web::Bytes::from_static(page.text.as_bytes())),
    }
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
        let compressed: usize = all().map(|page| page.gzip().unwrap().len()).sum();
        assert!(compressed <= 400_000, "{compressed} bytes");
        for forbidden in ["<style", " style=", " onclick=", " onload=", "javascript:", "http://", "https://"]
        {
            assert!(!DOCUMENT.text.contains(forbidden), "{forbidden} in the document");
        }
        // The libraries name hosts in comments and messages; nothing asks them.
        for (name, page) in FILES.iter().filter(|(name, _)| *name != "libraries.js") {
            assert!(!page.text.contains("https://"), "{name} names another host");
        }
        for name in ["style.css", "main.js", "theme.js", "icon.svg"] {
            assert!(DOCUMENT.text.contains(&format!("page/{name}")));
        }
    }

    #[test]
    fn every_module_that_a_script_imports_is_served() {
        for (name, page) in FILES.iter().filter(|(name, _)| name.ends_with(".js")) {
            for import in page.text.split("from \"./").skip(1) {
                let (imported, _) = import.split_once('"').unwrap();
                assert!(find(imported).is_some(), "{name} imports {imported}");
            }
        }
    }
}
