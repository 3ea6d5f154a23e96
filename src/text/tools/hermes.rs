//! Hermes, and Qwen 2.5 and 3: text, then calls, each within tags.
//!
//! ```text
//! Let me look.
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Pune"}}
//! </tool_call>
//! ```

use super::{Calls, ToolFormat};

pub(super) const FORMAT: ToolFormat = ToolFormat {
    // Qwen3-Coder and GLM have the tag as well, but write parameters in other tags.
    is_of: |template| {
        template.contains("<tool_call>")
            && !template.contains("<function=")
            && !template.contains("<arg_key>")
    },
    marker: "<tool_call>",
    bare: false,
    open: "",
    between: &[],
    close: "</tool_call>",
    answer_prefix: "<tool_call>\n",
    arguments: "arguments",
    id: ("call_", 24),
    start,
};

const fn start(calls: Calls) -> &'static str {
    match calls {
        Calls { required: true, single: true } => "start: call \"\\n</tool_call>\"",
        Calls { required: true, single: false } => {
            "start: call \"\\n</tool_call>\" (\"\\n<tool_call>\\n\" call \"\\n</tool_call>\")*"
        }
        Calls { required: false, single: true } => {
            "start: TEXT? | lead \"\\n\" call \"\\n</tool_call>\"\n\
             lead[lazy]: /(?s:.*)<tool_call>/\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/"
        }
        Calls { required: false, single: false } => {
            "start: (lead \"\\n\" call \"\\n</tool_call>\")* TEXT?\n\
             lead[lazy]: /(?s:.*)<tool_call>/\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/"
        }
    }
}
