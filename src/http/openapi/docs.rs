//! Renders the OpenAPI document as a page, without scripts and without anything from other hosts.
//!
//! Viewers of OpenAPI documents are megabytes of JavaScript that write inline styles, which the content security policy of the
//! pages forbids.

use minijinja::{Environment, context, value::Serde};
use serde_json::Value;

/// Renders the page, or says why the template fails.
pub(super) fn render(document: &Value) -> Result<String, String> {
    let mut templates = Environment::new();
    minijinja_contrib::add_to_environment(&mut templates);
    templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // The file name makes minijinja escape HTML.
    let rendered = templates
        .add_template("docs.html", include_str!("../page/docs.html"))
        .and_then(|()| templates.get_template("docs.html")?.render(context! { document => Serde(document) }));
    rendered.map_err(|error| format!("{error:#}"))
}
