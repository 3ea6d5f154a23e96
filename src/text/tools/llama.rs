//! Llama 3.1 to 3.3: an answer that is nothing but an object, sometimes after a mark.
//!
//! ```text
//! {"name": "weather", "parameters": {"city": "Pune"}}
//! <|python_tag|>{"name": "weather", "parameters": {"city": "Pune"}}; {"name": "now", "parameters": {}}
//! ```
//!
//! Calls of Llama's built-in tools follow the same mark, `brave_search.call(query="…")`. A request cannot define these
//! tools, so they are text.

use super::{Calls, ToolFormat};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    is_of: |template| {
        template.contains("<|python_tag|>")
            || (template.contains("{\"name\": ") && template.contains("\"parameters\": "))
    },
    marker: "<|python_tag|>",
    bare: true,
    open: "",
    between: &[';', ','],
    close: "",
    answer_prefix: "",
    arguments: "parameters",
    id: ("call_", 24),
    start,
};

const fn start(calls: Calls) -> &'static str {
    match calls {
        Calls { required: true, single: true } => "start: call",
        Calls { required: true, single: false } => "start: call (\"; \" call)*",
        Calls { required: false, single: true } => {
            "start: call | TEXT?\n\
             TEXT: /\\s*[^{\\s](?s:.*)/ & ~/(?s:.*)<\\|python_tag\\|>(?s:.*)/"
        }
        Calls { required: false, single: false } => {
            "start: call (\"; \" call)* | TEXT?\n\
             TEXT: /\\s*[^{\\s](?s:.*)/ & ~/(?s:.*)<\\|python_tag\\|>(?s:.*)/"
        }
    }
}
