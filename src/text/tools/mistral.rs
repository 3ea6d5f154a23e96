//! Mistral up to its eleventh tokenizer: text, then a mark, then a list of calls.
//!
//! ```text
//! [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Pune"}}, {"name": "now", "arguments": {}}]
//! ```
//!
//! The mark is a special token, which no grammar over bytes can ask for. Where calls must come, the prompt ends with it.
//! Its templates reject ids of calls that are not nine letters and digits.

use super::{Calls, ToolFormat};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    // Later ones write [TOOL_CALLS]name[ARGS]{…}.
    is_of: |template| template.contains("[TOOL_CALLS]") && !template.contains("[ARGS]"),
    marker: "[TOOL_CALLS]",
    bare: false,
    open: "[",
    between: &[','],
    close: "]",
    answer_prefix: "[TOOL_CALLS]",
    arguments: "arguments",
    id: ("", 9),
    start,
};

const fn start(calls: Calls) -> &'static str {
    match calls {
        Calls { required: true, single: true } => "start: \" \"? \"[\" call \"]\"",
        Calls { required: true, single: false } => "start: \" \"? \"[\" call (\", \" call)* \"]\"",
        Calls { required: false, single: true } => {
            "start: TEXT? | lead \" \"? \"[\" call \"]\"\n\
             lead[lazy]: /(?s:.*)\\[TOOL_CALLS\\]/\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*)\\[TOOL_CALLS\\](?s:.*)/"
        }
        Calls { required: false, single: false } => {
            "start: TEXT? | lead \" \"? \"[\" call (\", \" call)* \"]\"\n\
             lead[lazy]: /(?s:.*)\\[TOOL_CALLS\\]/\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*)\\[TOOL_CALLS\\](?s:.*)/"
        }
    }
}
