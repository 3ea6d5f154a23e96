//! A way into the parsers of request bodies, for `tests/fuzz`.

use std::time::Duration;

use super::{
    formats::{
        chat::Chat, completions::Completions, format::ApiFormat, generate_lite::GenerateLite,
        responses::Responses,
    },
    request::{fields::Fields, generation::Rules, tools::ToolRules},
};
use crate::{executor::Deadlines, text::ToolSupport};

/// Parses `body` as a request of every generating route, for a model with tools and for one without. Says whether any took it.
pub fn request(body: &[u8]) -> bool {
    let template = "{% if tools %}<tool_call>{% endif %}";
    [ToolSupport::None, ToolSupport::Unread, ToolSupport::of(template)].into_iter().any(|support| {
        let rules = Rules {
            vocabulary: 4096,
            deadlines: Deadlines { queue: Duration::from_secs(60), total: Duration::from_secs(600) },
            temperature: 1.0,
            tools: ToolRules { support, is_marker_special: false },
        };
        let taken = [
            parse::<GenerateLite>(body, &rules),
            parse::<Completions>(body, &rules),
            parse::<Chat>(body, &rules),
            parse::<Responses>(body, &rules),
        ];
        taken.contains(&true)
    })
}

fn parse<D: ApiFormat>(body: &[u8], rules: &Rules) -> bool {
    let Ok(mut fields) = Fields::parse(body) else { return false };
    fields.take::<String>("model").is_ok()
        && D::ask(&mut fields, rules).is_ok()
        && fields.finish(D::OTHERS).is_ok()
}
