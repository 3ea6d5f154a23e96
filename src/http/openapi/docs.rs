//! `GET /docs`: the document for people, without a script and without anything from elsewhere.
//!
//! Viewers of OpenAPI documents are megabytes of JavaScript that want to write styles inline, which the policy of our pages
//! does not let them. A template makes the same of it once, when the first reader asks.

use std::sync::LazyLock;

use minijinja::{Environment, context, value::Serde};

use super::DOCUMENT;

/// The page.
pub(crate) static PAGE: LazyLock<Result<String, String>> = LazyLock::new(|| {
    let mut templates = Environment::new();
    minijinja_contrib::add_to_environment(&mut templates);
    templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // By its name, what is written into it is escaped as HTML.
    let rendered = templates.add_template("docs.html", include_str!("../page/docs.html")).and_then(|()| {
        templates.get_template("docs.html")?.render(context! { document => Serde(&*DOCUMENT) })
    });
    rendered.map_err(|error| format!("{error:#}"))
});
