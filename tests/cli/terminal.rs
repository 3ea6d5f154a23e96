//! `eka generate` on a pseudo-terminal, with the keys and signals that a terminal sends.

use std::{
    io::{Read, Write},
    path::Path,
    process::Child,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::support::program::{argument, cache_setting, eka, expected};

const UP: &str = "\u{1b}[A";
const BACKSPACE: &str = "\u{7f}";
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
const ALT_ENTER: &str = "\u{1b}\r";
const PROMPT: &str = ">>> ";

/// The program on a pseudo-terminal. Dropping it kills it.
struct Terminal {
    child: Child,
    pty: Arc<pty_process::blocking::Pty>,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Ends with the terminal.
    reader: Option<thread::JoinHandle<()>>,
    /// Bytes that a test has looked at.
    seen: usize,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    /// Starts the program with these environment variables added.
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(24, 200)).unwrap();
        let plain = eka(arguments);
        let mut command = pty_process::blocking::Command::new(plain.get_program())
            .args(plain.get_args())
            .current_dir(plain.get_current_dir().unwrap())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied());
        for (name, _) in plain.get_envs() {
            command = command.env_remove(name);
        }
        let child = command.spawn(pts).unwrap();
        let (pty, shown) = (Arc::new(pty), Arc::new(Mutex::new(Vec::new())));
        let (screen, keys) = (Arc::clone(&shown), Arc::clone(&pty));
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A terminal reports that its writer is gone as an error.
            while let Ok(count @ 1..) = (&*keys).read(&mut bytes) {
                screen.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, pty, shown, reader: Some(reader), seen: 0 }
    }

    /// `eka generate` on the demonstration, with its state in `state`, when it has asked for a prompt.
    fn talk(state: &Path, arguments: &[&str]) -> Self {
        let cache = cache_setting();
        let mut terminal = Self::start(
            &[&["generate", "--set", &cache], arguments].concat(),
            &[("XDG_STATE_HOME", argument(state))],
        );
        terminal.sees(PROMPT);
        terminal
    }

    fn types(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for this text after the text seen so far, and returns the output up to its end.
    fn sees(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap()[self.seen..].to_vec();
            let at = shown.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                let end = at + text.len();
                self.seen += end;
                return String::from_utf8_lossy(&shown[..end]).into_owned();
            }
            let shown = String::from_utf8_lossy(&shown);
            assert!(begun.elapsed() < Duration::from_secs(120), "{text:?} is not in {shown:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a line, and waits for this in what comes of it and then for the next prompt.
    fn asks(&mut self, line: &str, answer: &str) {
        self.types(&format!("{line}\r"));
        self.sees(answer);
        self.sees(PROMPT);
    }

    /// Waits for the end; its code and all that was shown.
    fn ends(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        // The last output may not have been read yet.
        self.reader.take().into_iter().for_each(|reader| reader.join().unwrap());
        let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        (code, shown)
    }
}

#[test]
fn a_session_with_edits_commands_and_exit() {
    let (state, answers) = (tempfile::tempdir().unwrap(), expected());
    let mut terminal = Terminal::talk(state.path(), &[]);
    terminal.asks(&answers[0].prompt, &answers[0].text);
    terminal.asks("/stats", "turns kept: 1");
    terminal.asks("/clear", "turns removed");
    terminal.asks("/frobnicate", "unknown command /frobnicate");
    terminal.asks("/set temperature hot", "temperature is \"hot\": expected a number, 0 or more");
    terminal.asks("/set max_new_tokens 3", "takes effect with the next prompt");
    terminal.asks("/set", "max_new_tokens      3");
    terminal.asks(&answers[1].prompt, "stopped after 3 tokens");
    terminal.asks("/set max_new_tokens none", "takes effect with the next prompt");
    terminal.asks("/clear", "turns removed");
    // Ctrl-C clears the typed text and does not quit.
    terminal.types(&format!("nonsense{CTRL_C}"));
    terminal.asks(&answers[1].prompt, &answers[1].text);
    terminal.types(CTRL_D);
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn backspace_deletes_a_whole_grapheme_of_an_indic_script() {
    let (state, answers) = (tempfile::tempdir().unwrap(), expected());
    let mut terminal = Terminal::talk(state.path(), &["--no-history"]);
    // Consonant, virama, consonant and vowel sign: four code points that form one letter.
    for letter in ["क्षि", "நி", "র্ম্য"] {
        terminal.asks(&format!("{}{letter}{BACKSPACE}", answers[2].prompt), &answers[2].text);
        terminal.asks("/clear", "turns removed");
    }
    terminal.types("/bye\r");
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn multiline_input_is_one_prompt() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::talk(state.path(), &["--no-history", "--max-new-tokens", "1"]);
    let ways = ["\"\"\"\r/set\r\"\"\"", "one\\\rtwo", &format!("one{ALT_ENTER}two")];
    for (kept, lines) in ways.into_iter().enumerate() {
        terminal.asks(lines, "stopped after 1 tokens");
        terminal.asks("/stats", &format!("turns kept: {}", kept + 1));
    }
    terminal.types(CTRL_D);
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn ctrl_c_stops_the_answer_and_twice_at_an_empty_prompt_quits() {
    let (state, answers) = (tempfile::tempdir().unwrap(), expected());
    let mut terminal = Terminal::talk(state.path(), &["--faults", "slow=200@decode:2,job=1"]);
    let (first, _) =
        answers[0].text.char_indices().nth(1).map(|(at, _)| answers[0].text.split_at(at)).unwrap();
    terminal.types(&format!("{}\r", answers[0].prompt));
    terminal.sees("\n");
    terminal.sees(first);
    terminal.types(CTRL_C);
    let rest = terminal.sees("cancelled");
    assert!(!format!("{first}{rest}").contains(&answers[0].text), "it was cut short: {rest}");
    terminal.sees(PROMPT);
    terminal.asks("/clear", "turns removed");
    terminal.asks(&answers[1].prompt, &answers[1].text);
    terminal.types(CTRL_C);
    terminal.sees("Ctrl-C again");
    terminal.sees(PROMPT);
    terminal.types(CTRL_C);
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn history_is_kept_unless_turned_off() {
    let (state, answers) = (tempfile::tempdir().unwrap(), expected());
    let mut first = Terminal::talk(state.path(), &[]);
    first.asks(&answers[3].prompt, &answers[3].text);
    first.types(CTRL_D);
    assert_eq!(first.ends().0, Some(0));

    let file = state.path().join("eka/history");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains(&answers[3].prompt), "{kept}");
    let mut second = Terminal::talk(state.path(), &[]);
    second.asks(UP, &answers[3].text);
    second.types(CTRL_D);
    assert_eq!(second.ends().0, Some(0));

    let mut third = Terminal::talk(state.path(), &["--no-history"]);
    third.asks("/stats", "no answer yet");
    third.types(CTRL_D);
    assert_eq!(third.ends().0, Some(0));
    assert!(!std::fs::read_to_string(&file).unwrap().contains("/stats"));
}

#[test]
fn turns_dropped_from_the_context_are_reported() {
    let (state, answers) = (tempfile::tempdir().unwrap(), expected());
    let mut terminal = Terminal::talk(state.path(), &["--context-length", "60"]);
    terminal.asks(&answers[0].prompt, &answers[0].text);
    terminal.asks(&answers[0].prompt, "turns removed");
    terminal.asks(&"a long prompt ".repeat(40), "fills the context length of 60");
    terminal.types(CTRL_D);
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn without_a_chat_template_the_prompt_is_continued() {
    let state = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::talk(state.path(), &["--raw", "--max-new-tokens", "4"]);
    terminal.asks("/system x", "needs a chat template");
    terminal.asks("Good morning", "\n");
    terminal.asks("/stats", "turns kept: 0");
    terminal.types(CTRL_D);
    assert_eq!(terminal.ends().0, Some(0));
}

#[test]
fn colours_are_used_on_terminals_without_no_color() {
    let (code, shown) = Terminal::start(&["doctor"], &[]).ends();
    assert!(code == Some(0) && shown.contains("\u{1b}["), "{shown}");
    let (_, shown) = Terminal::start(&["doctor"], &[("NO_COLOR", "1")]).ends();
    assert!(shown.contains("onnxruntime") && !shown.contains('\u{1b}'), "{shown}");
}
