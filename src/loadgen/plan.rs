//! What is asked, and when: the same seed, the same requests at the same moments.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Exp1};
use serde_json::{Value, json};

use super::lengths::Lengths;

/// Words for prompts that say nothing, each one token or two in most vocabularies.
const WORDS: [&str; 64] = [
    "the", "water", "river", "small", "house", "morning", "light", "people", "garden", "under", "stone",
    "market", "slowly", "letter", "winter", "yellow", "between", "paper", "mountain", "story", "never",
    "always", "green", "window", "bread", "music", "teacher", "silver", "forest", "summer", "behind",
    "village", "carry", "question", "answer", "evening", "bridge", "quiet", "island", "friend", "corner",
    "travel", "colour", "number", "season", "candle", "harbour", "doctor", "engine", "pocket", "mirror",
    "valley", "shadow", "ticket", "orange", "basket", "winding", "kitchen", "planet", "signal", "thunder",
    "feather", "copper", "journey",
];

/// Which of OpenAI's routes is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Made of random words, as many as the length says.
    Words,
    /// Random token ids below this, as many as the length says; for [`Api::Completions`].
    Ids(u32),
    /// These, in a random order; lengths mean nothing.
    Given(Vec<String>),
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many clients, each of which asks again when it has its answer.
    Closed {
        /// Clients.
        clients: usize,
    },
    /// At random moments, so many a second on average, whatever has been answered: a Poisson process.
    Open {
        /// Requests in a second.
        rate: f64,
    },
}

/// What requests are like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's name; a server that serves one may want none.
    pub model: Option<String>,
    /// The route.
    pub api: Api,
    /// Their prompts.
    pub prompts: Prompts,
    /// Words or tokens of a prompt.
    pub prompt_lengths: Lengths,
    /// `max_tokens` of a request.
    pub output_lengths: Lengths,
    /// Answers go on beyond an end token, so that they have the length that was asked for.
    pub ignore_eos: bool,
    /// Fields that every request has besides.
    pub extra: serde_json::Map<String, Value>,
    /// When they are sent.
    pub pace: Pace,
    /// Same seed, same requests.
    pub seed: u64,
}

impl Api {
    /// The route's path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl Plan {
    /// The body of a request, which depends on its number and the seed alone.
    #[must_use]
    pub fn body(&self, number: u64) -> Value {
        let mut random = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let length = self.prompt_lengths.sample(&mut random);
        let max_tokens = self.output_lengths.sample(&mut random);
        let prompt = self.prompt(length, &mut random);
        let mut body = json!({
            "max_tokens": max_tokens, "stream": true, "stream_options": {"include_usage": true}, "temperature": 0,
        });
        match self.api {
            Api::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
            Api::Completions => body["prompt"] = prompt,
        }
        if let Some(model) = &self.model {
            body["model"] = json!(model);
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        body
    }

    fn prompt(&self, length: u32, random: &mut StdRng) -> Value {
        match &self.prompts {
            // The first ids are signs of their own in most vocabularies.
            Prompts::Ids(vocabulary) => {
                let least = 16.min(vocabulary / 2);
                (0..length).map(|_| random.random_range(least..*vocabulary)).collect()
            }
            Prompts::Words => {
                let words: Vec<_> = (0..length).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
                json!(words.join(" "))
            }
            Prompts::Given(prompts) if prompts.is_empty() => json!(""),
            Prompts::Given(prompts) => json!(prompts[random.random_range(0..prompts.len())]),
        }
    }

    /// For an open loop, the moments at which requests are sent, counted from the beginning.
    pub fn moments(&self, rate: f64) -> impl Iterator<Item = Duration> + use<> {
        let mut random = StdRng::seed_from_u64(!self.seed);
        let mut at = 0.0;
        std::iter::repeat_with(move || {
            let gap: f64 = Exp1.sample(&mut random);
            at += gap / rate;
            Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            model: Some("m".into()),
            api: Api::Completions,
            prompts: Prompts::Ids(32_000),
            prompt_lengths: Lengths::Uniform(4, 9),
            output_lengths: Lengths::Fixed(7),
            ignore_eos: true,
            extra: serde_json::Map::new(),
            pace: Pace::Open { rate: 50.0 },
            seed: 3,
        }
    }

    #[test]
    fn the_same_seed_asks_the_same() {
        assert_eq!(plan().body(5), plan().body(5));
        assert_ne!(plan().body(5)["prompt"], plan().body(6)["prompt"]);
        assert_ne!(plan().body(5)["prompt"], Plan { seed: 4, ..plan() }.body(5)["prompt"]);
        let ids = plan().body(5)["prompt"].as_array().unwrap().clone();
        assert!((4..=9).contains(&ids.len()) && ids.iter().all(|id| id.as_u64() < Some(32_000)));
        let chat = Plan { api: Api::Chat, prompts: Prompts::Words, ..plan() }.body(0);
        let words = chat["messages"][0]["content"].as_str().unwrap().split(' ').count();
        assert!((4..=9).contains(&words));
    }

    #[test]
    fn an_open_loop_sends_at_its_rate_and_not_evenly() {
        let moments: Vec<_> = plan().moments(50.0).take(5_000).map(|at| at.as_secs_f64()).collect();
        let rate = 5_000.0 / moments.last().unwrap();
        assert!((rate / 50.0 - 1.0).abs() < 0.05, "{rate}");
        let gaps: Vec<_> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // Of a Poisson process the deviation of the gaps is their mean; of an even one it is nothing.
        let mean = gaps.iter().sum::<f64>() / 4_999.0;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 4_999.0).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.1, "{deviation} {mean}");
    }
}
