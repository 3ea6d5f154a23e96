//! The requests of a run and their schedule, both determined by a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Exp1};
use serde_json::{Value, json};

use super::lengths::Lengths;

/// Words for meaningless prompts; each is one or two tokens in most vocabularies.
const WORDS: [&str; 64] = [
    "the", "water", "river", "small", "house", "morning", "light", "people", "garden", "under", "stone",
    "market", "slowly", "letter", "winter", "yellow", "between", "paper", "mountain", "story", "never",
    "always", "green", "window", "bread", "music", "teacher", "silver", "forest", "summer", "behind",
    "village", "carry", "question", "answer", "evening", "bridge", "quiet", "island", "friend", "corner",
    "travel", "colour", "number", "season", "candle", "harbour", "doctor", "engine", "pocket", "mirror",
    "valley", "shadow", "ticket", "orange", "basket", "winding", "kitchen", "planet", "signal", "thunder",
    "feather", "copper", "journey",
];

/// Which of OpenAI's endpoints is used.
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
    /// Random words; the length counts words.
    Words,
    /// Random token ids below this number, for [`Api::Completions`]; the length counts tokens.
    Ids(u32),
    /// These prompts in random order; the length is ignored.
    Listed(Vec<String>),
}

/// Schedule of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// A number of clients, each of which sends its next request after the previous answer.
    Closed {
        /// Number of clients.
        clients: usize,
    },
    /// A Poisson process, independent of the answers.
    Open {
        /// Mean number of requests per second.
        rate: f64,
    },
}

/// Properties of the requests.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's name; some servers need none.
    pub model: Option<String>,
    /// The endpoint.
    pub api: Api,
    /// Source of the prompts.
    pub prompts: Prompts,
    /// Length of a prompt, in words or tokens.
    pub prompt_lengths: Lengths,
    /// `max_tokens` of a request.
    pub output_lengths: Lengths,
    /// Ignore end tokens, so that every answer has the requested length.
    pub ignore_eos: bool,
    /// Additional fields of every request.
    pub extra: serde_json::Map<String, Value>,
    /// Their schedule.
    pub pace: Pace,
    /// Seed of prompts, lengths and schedule.
    pub seed: u64,
}

impl Api {
    /// The endpoint's path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl Plan {
    /// The body of a request, determined by its number and the seed.
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
            // The first ids are special tokens in most vocabularies.
            Prompts::Ids(vocabulary) => {
                let min = 16.min(vocabulary / 2);
                (0..length).map(|_| random.random_range(min..*vocabulary)).collect()
            }
            Prompts::Words => {
                let words: Vec<_> = (0..length).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
                json!(words.join(" "))
            }
            Prompts::Listed(prompts) if prompts.is_empty() => json!(""),
            Prompts::Listed(prompts) => json!(prompts[random.random_range(0..prompts.len())]),
        }
    }

    /// Send times of an open loop, from the start of the run.
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
    fn the_same_seed_gives_the_same_requests() {
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
    fn an_open_loop_sends_at_its_rate_at_random_times() {
        let moments: Vec<_> = plan().moments(50.0).take(5_000).map(|at| at.as_secs_f64()).collect();
        let rate = 5_000.0 / moments.last().unwrap();
        assert!((rate / 50.0 - 1.0).abs() < 0.05, "{rate}");
        let gaps: Vec<_> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // In a Poisson process the standard deviation of the gaps equals their mean.
        let mean = gaps.iter().sum::<f64>() / 4_999.0;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 4_999.0).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.1, "{deviation} {mean}");
    }
}
