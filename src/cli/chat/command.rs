//! What can be typed besides prompts.

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// A prompt.
    Say(&'a str),
    Help,
    /// Forget what was said.
    Clear,
    /// Show or change the system message.
    System(Option<&'a str>),
    /// Show all that can be set.
    Show,
    /// Change how answers are picked.
    Set(&'a str, &'a str),
    Stats,
    Bye,
    /// None of these; why.
    Unknown(String),
}

/// Each command, what follows it, and what it does.
pub(super) const COMMANDS: [(&str, &str, &str); 6] = [
    ("/help", "", "this list"),
    ("/clear", "", "forget what was said so far"),
    ("/system", "[TEXT]", "show or change the system message; none takes it away"),
    ("/set", "[NAME VALUE]", "change how answers are picked, as in /set temperature 0.7; alone, show it"),
    ("/stats", "", "tokens and times of the last answer, and how full the context is"),
    ("/bye", "", "leave"),
];

/// Reads a line.
pub(super) fn read(line: &str) -> Command<'_> {
    if !line.starts_with('/') {
        return Command::Say(line);
    }
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match name {
        "/help" | "/?" => Command::Help,
        "/clear" => Command::Clear,
        "/system" => Command::System(Some(rest).filter(|rest| !rest.is_empty())),
        "/set" if rest.is_empty() => Command::Show,
        "/set" => match rest.split_once(char::is_whitespace) {
            Some((name, value)) => Command::Set(name, value.trim()),
            None => {
                Command::Unknown(format!("/set {rest} what? As in /set {rest} VALUE; /set alone shows all"))
            }
        },
        "/stats" => Command::Stats,
        "/bye" | "/exit" | "/quit" => Command::Bye,
        _ => Command::Unknown(format!(
            "there is no {name}; /help lists what there is, and a space before it makes it a prompt"
        )),
    }
}

/// The list, for people.
pub(super) fn help() -> String {
    let command =
        |(name, rest, does): &(&str, &str, &str)| format!("  {:<20} {does}", format!("{name} {rest}"));
    let commands = COMMANDS.iter().map(command).collect::<Vec<_>>().join("\n");
    format!(
        "{commands}\n\n  \
         Several lines stand between \"\"\" and \"\"\", or end with a backslash, or are broken with Alt-Enter.\n  \
         Ctrl-C ends an answer, and at an empty prompt, twice, the program; so does Ctrl-D.\n  \
         Arrows and Ctrl-R find earlier prompts; a prompt that begins with a space is not kept among them."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prompts_unless_they_begin_with_a_slash() {
        for prompt in ["x", " /help", "a /set", "\"\"\"\n/bye\n\"\"\"", "नमस्ते"] {
            assert_eq!(read(prompt), Command::Say(prompt));
        }
        assert_eq!(read("/set  stop  a b "), Command::Set("stop", "a b"));
        assert_eq!(read("/set"), Command::Show);
        assert_eq!(read("/system\nBe brief."), Command::System(Some("Be brief.")));
        for unknown in ["/", "/helpme", "/set temperature"] {
            assert!(matches!(read(unknown), Command::Unknown(_)), "{unknown}");
        }
    }

    #[test]
    fn what_is_listed_is_understood() {
        for (name, _, _) in COMMANDS {
            assert!(!matches!(read(name), Command::Unknown(_) | Command::Say(_)), "{name}");
            assert!(help().contains(name));
        }
    }
}
