//! Commands of the chat, which begin with a slash.

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// Not a command but a prompt.
    Prompt(&'a str),
    Help,
    /// Remove all turns.
    Clear,
    /// Show or change the system message.
    System(Option<&'a str>),
    /// Show all sampling parameters.
    Show,
    /// Change a sampling parameter.
    Set(&'a str, &'a str),
    Stats,
    Bye,
    /// Not a valid command; the text is an error message.
    Invalid(String),
}

/// Each command, its arguments, and what it does.
pub(super) const COMMANDS: [(&str, &str, &str); 6] = [
    ("/help", "", "this list"),
    ("/clear", "", "start a new conversation"),
    ("/system", "[TEXT]", "show or change the system message; none removes it"),
    (
        "/set",
        "[NAME VALUE]",
        "change a sampling parameter, as in /set temperature 0.7; without arguments, show all",
    ),
    ("/stats", "", "tokens and times of the last answer, and use of the context"),
    ("/bye", "", "leave"),
];

/// Parses a line.
pub(super) fn read(line: &str) -> Command<'_> {
    if !line.starts_with('/') {
        return Command::Prompt(line);
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
            None => Command::Invalid(format!(
                "/set {rest} needs a value: /set {rest} VALUE; /set shows all parameters"
            )),
        },
        "/stats" => Command::Stats,
        "/bye" | "/exit" | "/quit" => Command::Bye,
        _ => Command::Invalid(format!(
            "unknown command {name}; /help lists commands, and a leading space makes the line a prompt"
        )),
    }
}

/// The text of /help.
pub(super) fn help() -> String {
    let command =
        |(name, rest, does): &(&str, &str, &str)| format!("  {:<20} {does}", format!("{name} {rest}"));
    let commands = COMMANDS.iter().map(command).collect::<Vec<_>>().join("\n");
    format!(
        "{commands}\n\n  \
         For several lines, use \"\"\" before and after, a backslash at the end of a line, or Alt-Enter.\n  \
         Ctrl-C stops an answer; twice at an empty prompt, or Ctrl-D, it leaves.\n  \
         Arrows and Ctrl-R find earlier prompts; a prompt with a leading space is not saved."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prompts_unless_they_begin_with_a_slash() {
        for prompt in ["x", " /help", "a /set", "\"\"\"\n/bye\n\"\"\"", "नमस्ते"] {
            assert_eq!(read(prompt), Command::Prompt(prompt));
        }
        assert_eq!(read("/set  stop  a b "), Command::Set("stop", "a b"));
        assert_eq!(read("/set"), Command::Show);
        assert_eq!(read("/system\nBe brief."), Command::System(Some("Be brief.")));
        for unknown in ["/", "/helpme", "/set temperature"] {
            assert!(matches!(read(unknown), Command::Invalid(_)), "{unknown}");
        }
    }

    #[test]
    fn every_listed_command_is_known() {
        for (name, _, _) in COMMANDS {
            assert!(!matches!(read(name), Command::Invalid(_) | Command::Prompt(_)), "{name}");
            assert!(help().contains(name));
        }
    }
}
