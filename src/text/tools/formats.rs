//! All formats, recognised by the text of the chat template.

use super::format::{IdStyle, NamedSyntax, Syntax, TagSyntax, ToolFormat, Written};

/// Calls as JSON objects with `name` and `arguments`.
const OBJECT: Syntax = Syntax::Object { name: "name", arguments: "arguments" };

/// What most formats have.
const BASE: ToolFormat = ToolFormat {
    name: "",
    is_of: |_| false,
    marker: "",
    bare: None,
    open: "",
    syntax: OBJECT,
    after_call: &[],
    between: &[],
    close: "",
    id: IdStyle::Call,
    written: Written { first: "", prompt: "", next: "", last: "", named: "" },
};

/// A format whose calls are a list of objects after a marker.
const fn list(marker: &'static str, close: &'static str) -> ToolFormat {
    ToolFormat { marker, open: "[", between: &[","], close, ..BASE }
}

/// Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4, and templates without tools, whose conversations get [generic](super::generic)
/// instructions.
///
/// ```text
/// Let me look.
/// <tool_call>
/// {"name": "weather", "arguments": {"city": "Pune"}}
/// </tool_call>
/// ```
pub(super) const HERMES: ToolFormat = ToolFormat {
    name: "hermes",
    is_of: |template| template.contains("<tool_call>"),
    marker: "<tool_call>",
    close: "</tool_call>",
    written: Written {
        first: "<tool_call>\n",
        prompt: "<tool_call>\n",
        next: "\n</tool_call>\n<tool_call>\n",
        last: "\n</tool_call>",
        named: "",
    },
    ..BASE
};

/// Tags of Qwen3-Coder.
const FUNCTION_TAGS: TagSyntax = TagSyntax {
    name: ("<function=", ">"),
    key: ("<parameter=", ">"),
    value: ("", "</parameter>"),
    end: "</function>",
    value_in_lines: true,
};

/// Qwen3-Coder, Nemotron 3 and Step 3.5: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
const QWEN_CODER: ToolFormat = ToolFormat {
    name: "qwen3_coder",
    is_of: |template| template.contains("<tool_call>") && template.contains("<function="),
    syntax: Syntax::Tagged(FUNCTION_TAGS),
    ..HERMES
};

/// Seed-OSS: Qwen3-Coder's tags within a tag with another name.
const SEED_OSS: ToolFormat = ToolFormat {
    name: "seed_oss",
    is_of: |template| template.contains("<seed:tool_call>"),
    marker: "<seed:tool_call>",
    close: "</seed:tool_call>",
    written: Written {
        first: "<seed:tool_call>\n",
        prompt: "<seed:tool_call>\n",
        next: "\n</seed:tool_call>\n<seed:tool_call>\n",
        last: "\n</seed:tool_call>",
        named: "",
    },
    ..QWEN_CODER
};

/// GLM 4.5 to 4.7: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`.
const GLM: ToolFormat = ToolFormat {
    name: "glm",
    is_of: |template| template.contains("<arg_key>"),
    syntax: Syntax::Tagged(TagSyntax {
        name: ("", ""),
        key: ("<arg_key>", "</arg_key>"),
        value: ("<arg_value>", "</arg_value>"),
        end: "</tool_call>",
        value_in_lines: false,
    }),
    close: "",
    written: Written {
        first: "<tool_call>",
        prompt: "<tool_call>",
        next: "\n<tool_call>",
        last: "",
        named: "",
    },
    ..HERMES
};

/// MiniMax M2: `<minimax:tool_call><invoke name="name"><parameter name="key">value</parameter></invoke></minimax:tool_call>`.
const MINIMAX_M2: ToolFormat = ToolFormat {
    name: "minimax_m2",
    is_of: |template| template.contains("<minimax:tool_call>") || template.contains("<invoke name="),
    marker: "<minimax:tool_call>",
    syntax: Syntax::Tagged(TagSyntax {
        name: ("<invoke name=\"", "\">"),
        key: ("<parameter name=\"", "\">"),
        value: ("", "</parameter>"),
        end: "</invoke>",
        value_in_lines: false,
    }),
    between: &["<invoke"],
    close: "</minimax:tool_call>",
    written: Written {
        first: "<minimax:tool_call>\n",
        prompt: "<minimax:tool_call>\n",
        next: "\n",
        last: "\n</minimax:tool_call>",
        named: "",
    },
    ..BASE
};

/// MiniMax M1: objects, one a line, within `<tool_calls>`.
const MINIMAX_M1: ToolFormat = ToolFormat {
    name: "minimax_m1",
    is_of: |template| template.contains("<tool_calls>"),
    marker: "<tool_calls>",
    between: &["{"],
    close: "</tool_calls>",
    written: Written {
        first: "<tool_calls>\n",
        prompt: "<tool_calls>\n",
        next: "\n",
        last: "\n</tool_calls>",
        named: "",
    },
    ..BASE
};

/// Mistral up to its eleventh tokenizer: text, then a mark, then a list of calls.
///
/// ```text
/// [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Pune"}}, {"name": "now", "arguments": {}}]
/// ```
///
/// Its templates reject ids of calls that are not nine letters and digits.
const MISTRAL: ToolFormat = ToolFormat {
    name: "mistral",
    is_of: |template| template.contains("[TOOL_CALLS]"),
    id: IdStyle::Nine,
    written: Written { first: "[TOOL_CALLS] [", prompt: "[TOOL_CALLS]", next: ", ", last: "]", named: "" },
    ..list("[TOOL_CALLS]", "]")
};

/// Mistral from its eleventh tokenizer: `[TOOL_CALLS]name[ARGS]{…}`, from the thirteenth with `[CALL_ID]` between them.
const MISTRAL_ARGS: ToolFormat = ToolFormat {
    name: "mistral_args",
    is_of: |template| template.contains("[TOOL_CALLS]") && template.contains("[ARGS]"),
    marker: "[TOOL_CALLS]",
    syntax: Syntax::Named(NamedSyntax { before: "", ends: &['['], between: "[ARGS]" }),
    between: &["[TOOL_CALLS]"],
    id: IdStyle::Nine,
    written: Written {
        first: "[TOOL_CALLS]",
        prompt: "[TOOL_CALLS]",
        next: "[TOOL_CALLS]",
        last: "",
        named: "[ARGS]",
    },
    ..BASE
};

/// Llama 3.1 to 3.3: an answer that is nothing but an object, sometimes after a mark.
///
/// ```text
/// {"name": "weather", "parameters": {"city": "Pune"}}
/// <|python_tag|>{"name": "weather", "parameters": {"city": "Pune"}}; {"name": "now", "parameters": {}}
/// ```
///
/// Calls of Llama's built-in tools follow the same mark, `brave_search.call(query="…")`. A request cannot define these
/// tools, so they are text.
const LLAMA: ToolFormat = ToolFormat {
    name: "llama",
    is_of: |template| {
        template.contains("<|python_tag|>")
            || (template.contains("{\"name\": ") && template.contains("\"parameters\": "))
    },
    marker: "<|python_tag|>",
    bare: Some('{'),
    syntax: Syntax::Object { name: "name", arguments: "parameters" },
    between: &[";", ",", "{"],
    written: Written { first: "", prompt: "", next: "; ", last: "", named: "" },
    ..BASE
};

/// Llama 4, and Llama 3.2 with Python's syntax: `[weather(city="Pune"), now()]`.
const LLAMA_PYTHON: ToolFormat = ToolFormat {
    name: "llama_python",
    is_of: |template| {
        template.contains("<|python_start|>")
            || template.contains("[func_name1(params_name1=")
            || template.contains("[func1(params")
    },
    marker: "<|python_start|>[",
    bare: Some('['),
    open: "[",
    syntax: Syntax::Python,
    between: &[","],
    after_call: &["<|python_end|>"],
    written: Written { first: "[", prompt: "", next: ", ", last: "]", named: "" },
    ..BASE
};

/// LFM2: `<|tool_call_start|>[weather(city="Pune")]<|tool_call_end|>`.
const LFM2: ToolFormat = ToolFormat {
    name: "lfm2",
    is_of: |template| {
        template.contains("<|tool_call_start|>")
            || (template.contains("<|tool_list_start|>") && template.contains("<|tool_list_end|>"))
    },
    syntax: Syntax::Python,
    written: Written {
        first: "<|tool_call_start|>[",
        prompt: "<|tool_call_start|>",
        next: ", ",
        last: "]",
        named: "",
    },
    ..list("<|tool_call_start|>", "<|tool_call_end|>")
};

/// DeepSeek V3.1 and later: `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`.
const DEEPSEEK: ToolFormat = ToolFormat {
    name: "deepseek_v31",
    is_of: |template| template.contains("<｜tool▁calls▁begin｜>"),
    marker: "<｜tool▁calls▁begin｜>",
    open: "<｜tool▁call▁begin｜>",
    syntax: Syntax::Named(NamedSyntax { before: "", ends: &['<'], between: "<｜tool▁sep｜>" }),
    after_call: &["<｜tool▁call▁end｜>"],
    between: &["<｜tool▁call▁begin｜>"],
    close: "<｜tool▁calls▁end｜>",
    written: Written {
        first: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
        prompt: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
        next: "<｜tool▁call▁end｜><｜tool▁call▁begin｜>",
        last: "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        named: "<｜tool▁sep｜>",
    },
    ..BASE
};

/// DeepSeek V3 and R1: as V3.1, but `function` before the name, and the arguments in a code block.
const DEEPSEEK_V3: ToolFormat = ToolFormat {
    name: "deepseek_v3",
    is_of: |template| template.contains("<｜tool▁calls▁begin｜>") && template.contains("```json"),
    syntax: Syntax::Named(NamedSyntax {
        before: "function<｜tool▁sep｜>",
        ends: &['\n'],
        between: "\n```json\n",
    }),
    after_call: &["```", "<｜tool▁call▁end｜>"],
    written: Written {
        first: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        prompt: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        next: "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        last: "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        named: "\n```json\n",
    },
    ..DEEPSEEK
};

/// Kimi K2: `<|tool_calls_section_begin|><|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>…`.
const KIMI: ToolFormat = ToolFormat {
    name: "kimi_k2",
    is_of: |template| template.contains("<|tool_calls_section_begin|>"),
    marker: "<|tool_calls_section_begin|>",
    open: "<|tool_call_begin|>",
    syntax: Syntax::Named(NamedSyntax {
        before: "functions.",
        ends: &[':', '<'],
        between: "<|tool_call_argument_begin|>",
    }),
    after_call: &["<|tool_call_end|>"],
    between: &["<|tool_call_begin|>"],
    close: "<|tool_calls_section_end|>",
    id: IdStyle::Function,
    written: Written {
        first: "<|tool_calls_section_begin|><|tool_call_begin|>functions.",
        prompt: "<|tool_calls_section_begin|><|tool_call_begin|>functions.",
        next: "<|tool_call_end|><|tool_call_begin|>functions.",
        last: "<|tool_call_end|><|tool_calls_section_end|>",
        named: ":0<|tool_call_argument_begin|>",
    },
    ..BASE
};

/// Calls of Cohere's models.
const COHERE_OBJECT: Syntax = Syntax::Object { name: "tool_name", arguments: "parameters" };

/// Command R7B and Command A: `<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}]<|END_ACTION|>`.
const COMMAND_A: ToolFormat = ToolFormat {
    name: "command_a",
    is_of: |template| template.contains("<|START_ACTION|>"),
    syntax: COHERE_OBJECT,
    written: Written {
        first: "<|START_ACTION|>[",
        prompt: "<|START_ACTION|>",
        next: ", ",
        last: "]",
        named: "",
    },
    ..list("<|START_ACTION|>", "<|END_ACTION|>")
};

/// Command R and R+: a list in a code block after `Action:`.
const COMMAND_R: ToolFormat = ToolFormat {
    name: "command_r",
    is_of: |template| {
        template.contains("Action:") && template.contains("```json") && template.contains("tool_name")
    },
    syntax: COHERE_OBJECT,
    written: Written {
        first: "Action: ```json\n[",
        prompt: "Action: ```json\n",
        next: ", ",
        last: "]\n```",
        named: "",
    },
    ..list("Action: ```json", "```")
};

/// Granite 3: `<|tool_call|>[{"name": …, "arguments": …}]`, in other versions after `<tool_call>`.
const GRANITE: ToolFormat = ToolFormat {
    name: "granite",
    is_of: |template| template.contains("<|tool_call|>"),
    written: Written { first: "<|tool_call|>[", prompt: "<|tool_call|>", next: ", ", last: "]", named: "" },
    ..list("<|tool_call|>", "]")
};

/// Phi-4-mini: `<|tool_call|>[{"name": …, "arguments": …}]<|/tool_call|>`.
const PHI4_MINI: ToolFormat = ToolFormat {
    name: "phi4_mini",
    is_of: |template| template.contains("<|/tool|>") || template.contains("<|/tool_call|>"),
    ..ToolFormat { close: "<|/tool_call|>", ..GRANITE }
};

/// Firefunction, and Phi-4-mini as it answers without its tokens: `functools[{"name": …, "arguments": …}]`.
const FUNCTOOLS: ToolFormat = ToolFormat {
    name: "functools",
    is_of: |template| template.contains("functools["),
    written: Written { first: "functools[", prompt: "functools", next: ", ", last: "]", named: "" },
    ..list("functools", "]")
};

/// Nemotron: `<TOOLCALL>[{"name": …, "arguments": …}]</TOOLCALL>`.
const NEMOTRON: ToolFormat = ToolFormat {
    name: "nemotron",
    is_of: |template| template.contains("<TOOLCALL>"),
    written: Written {
        first: "<TOOLCALL>[",
        prompt: "<TOOLCALL>",
        next: ", ",
        last: "]</TOOLCALL>",
        named: "",
    },
    ..list("<TOOLCALL>", "</TOOLCALL>")
};

/// Apertus: `<|tools_prefix|>[{"name": {…}}]<|tools_suffix|>`, where the name is the key of the arguments.
const APERTUS: ToolFormat = ToolFormat {
    name: "apertus",
    is_of: |template| template.contains("<|tools_prefix|>"),
    syntax: Syntax::Named(NamedSyntax { before: "{\"", ends: &['"'], between: "\":" }),
    written: Written {
        first: "<|tools_prefix|>[{\"",
        prompt: "<|tools_prefix|>",
        next: "}, {\"",
        last: "}]",
        named: "\": ",
    },
    ..list("<|tools_prefix|>", "<|tools_suffix|>")
};

/// Functionary 3.1: `<function=name>{…}</function>`.
const FUNCTIONARY: ToolFormat = ToolFormat {
    name: "functionary_v31",
    is_of: |template| template.contains("<function=") && !template.contains("<tool_call>"),
    marker: "<function=",
    syntax: Syntax::Named(NamedSyntax { before: "", ends: &['>'], between: ">" }),
    close: "</function>",
    written: Written {
        first: "<function=",
        prompt: "<function=",
        next: "</function>\n<function=",
        last: "</function>",
        named: ">",
    },
    ..BASE
};

/// Functionary 3.2: `>>>name`, a line break and the arguments.
const FUNCTIONARY_V32: ToolFormat = ToolFormat {
    name: "functionary_v32",
    is_of: |template| template.contains(">>>all"),
    marker: ">>>",
    syntax: Syntax::Named(NamedSyntax { before: "", ends: &['\n'], between: "\n" }),
    between: &[">>>"],
    written: Written { first: ">>>", prompt: ">>>", next: "\n>>>", last: "", named: "\n" },
    ..BASE
};

/// Gemma 4: `<|tool_call>call:name{key:<|"|>text<|"|>,other:1}<tool_call|>`.
const GEMMA4: ToolFormat = ToolFormat {
    name: "gemma4",
    is_of: |template| template.contains("<|tool_call>"),
    marker: "<|tool_call>",
    syntax: Syntax::Gemma { quote: "<|\"|>" },
    close: "<tool_call|>",
    written: Written {
        first: "<|tool_call>call:",
        prompt: "<|tool_call>call:",
        next: "<tool_call|><|tool_call>call:",
        last: "<tool_call|>",
        named: "",
    },
    ..BASE
};

/// FunctionGemma: as Gemma 4, with other tokens.
const FUNCTION_GEMMA: ToolFormat = ToolFormat {
    name: "function_gemma",
    is_of: |template| template.contains("<start_function_call>"),
    marker: "<start_function_call>",
    syntax: Syntax::Gemma { quote: "<escape>" },
    close: "<end_function_call>",
    written: Written {
        first: "<start_function_call>call:",
        prompt: "<start_function_call>call:",
        next: "<end_function_call><start_function_call>call:",
        last: "<end_function_call>",
        named: "",
    },
    ..BASE
};

/// gpt-oss: a message of the channel `commentary` to a function. The reader of channels removes the other parts of its
/// headers.
const HARMONY: ToolFormat = ToolFormat {
    name: "harmony",
    is_of: |template| template.contains("<|channel|>") && template.contains("<|message|>"),
    marker: "to=functions.",
    syntax: Syntax::Named(NamedSyntax { before: "", ends: &[' ', '<'], between: "<|message|>" }),
    after_call: &["<|call|>"],
    written: Written {
        first: "<|channel|>commentary to=functions.",
        prompt: "<|channel|>commentary to=functions.",
        next: "<|call|><|start|>assistant<|channel|>commentary to=functions.",
        last: "",
        named: " <|constrain|>json<|message|>",
    },
    ..BASE
};

/// All formats, the more particular first.
pub(in crate::text) const FORMATS: [&ToolFormat; 26] = [
    &HARMONY,
    &GEMMA4,
    &FUNCTION_GEMMA,
    &GLM,
    &SEED_OSS,
    &QWEN_CODER,
    &MINIMAX_M2,
    &MINIMAX_M1,
    &DEEPSEEK_V3,
    &DEEPSEEK,
    &KIMI,
    &APERTUS,
    &COMMAND_A,
    &LFM2,
    &NEMOTRON,
    &MISTRAL_ARGS,
    &MISTRAL,
    &FUNCTIONARY_V32,
    &FUNCTIONARY,
    &PHI4_MINI,
    &GRANITE,
    &FUNCTOOLS,
    &HERMES,
    &LLAMA_PYTHON,
    &LLAMA,
    &COMMAND_R,
];
