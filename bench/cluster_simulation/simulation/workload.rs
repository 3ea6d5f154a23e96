//! What clients send: conversations whose turns each take a node some time to read and to write.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The time one turn takes a node, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Turn {
    /// To read the turns before this one; nothing if the node keeps their prefix.
    pub(crate) prefix_s: f64,
    /// To read what is new.
    pub(crate) new_s: f64,
    /// To write the answer.
    pub(crate) write_s: f64,
}

impl Turn {
    /// To answer without a kept prefix.
    pub(crate) fn service_s(&self) -> f64 {
        self.prefix_s + self.new_s + self.write_s
    }
}

/// Log-normally distributed lengths in tokens: a few are much longer than most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lengths {
    /// Half are shorter.
    pub(crate) median: f64,
    /// Standard deviation of the logarithm.
    pub(crate) sigma: f64,
}

impl Lengths {
    fn sample(self, random: &mut ChaCha8Rng) -> f64 {
        let unit: f64 = StandardNormal.sample(random);
        self.median * (self.sigma * unit).exp()
    }
}

/// Speeds of a node and lengths of conversations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speeds {
    /// Prompt tokens that a node reads per second.
    pub(crate) prefill: f64,
    /// Tokens that a node writes per second.
    pub(crate) decode: f64,
    /// Tokens of a user's message.
    pub(crate) messages: Lengths,
    /// Tokens of an answer.
    pub(crate) answers: Lengths,
}

impl Default for Speeds {
    /// A 7 B model on a small GPU: 5.3 s per request of a conversation of four turns.
    fn default() -> Self {
        Self {
            prefill: 1500.0,
            decode: 40.0,
            messages: Lengths { median: 415.0, sigma: 1.0 },
            answers: Lengths { median: 107.0, sigma: 0.9 },
        }
    }
}

/// Where the times come from.
#[derive(Clone, Debug)]
pub(crate) enum Times {
    /// Random lengths and constant speeds.
    Speeds(Speeds),
    /// Measured requests: seconds to the first token, and from there to the end. Of the time to the first token of turn `n`, a kept
    /// prefix saves `(n - 1) / n`.
    Measured(Vec<(f64, f64)>),
}

/// Conversations of a number of turns.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// How long a turn takes.
    pub(crate) times: Times,
    /// Turns of a conversation, 1 or more.
    pub(crate) turns: usize,
    /// Mean seconds between an answer and the user's next message.
    pub(crate) think_s: f64,
}

impl Workload {
    /// The turns of a random conversation.
    pub(crate) fn conversation(&self, random: &mut ChaCha8Rng) -> Vec<Turn> {
        match &self.times {
            Times::Measured(requests) => self.measured(requests, random),
            Times::Speeds(speeds) => self.computed(speeds, random),
        }
    }

    fn measured(&self, requests: &[(f64, f64)], random: &mut ChaCha8Rng) -> Vec<Turn> {
        let turn = |number: usize| {
            let (read_s, write_s) = requests[random.random_range(0..requests.len())];
            let new_s = read_s / number as f64;
            Turn { prefix_s: read_s - new_s, new_s, write_s }
        };
        (1..=self.turns).map(turn).collect()
    }

    fn computed(&self, speeds: &Speeds, random: &mut ChaCha8Rng) -> Vec<Turn> {
        let mut prefix = 0.0;
        let turn = |_| {
            let (message, answer) = (speeds.messages.sample(random), speeds.answers.sample(random));
            let turn = Turn {
                prefix_s: prefix / speeds.prefill,
                new_s: message / speeds.prefill,
                write_s: answer / speeds.decode,
            };
            prefix += message + answer;
            turn
        };
        (0..self.turns).map(turn).collect()
    }

    /// Mean seconds per request without kept prefixes, from a sample.
    pub(crate) fn mean_service_s(&self) -> f64 {
        const CONVERSATIONS: usize = 20_000;
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let sum: f64 = (0..CONVERSATIONS)
            .map(|_| self.conversation(&mut random).iter().map(Turn::service_s).sum::<f64>())
            .sum();
        sum / (CONVERSATIONS * self.turns) as f64
    }
}
