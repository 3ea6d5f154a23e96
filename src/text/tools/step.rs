//! What a character means to the reader of a call.

/// How far a call has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More is to come.
    More,
    /// Its name was read, and more is to come.
    Named,
    /// Its last character was read.
    Complete,
    /// The character cannot be part of it.
    Broken,
}

/// The position of a character in a JSON value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    pub(super) fn take(&mut self, c: char) {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            '{' | '[' if !self.in_string => self.depth += 1,
            '}' | ']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    pub(super) const fn is_over(&self) -> bool {
        self.depth == 0 && !self.in_string
    }
}
