//! Gain of a draft model by its acceptance rate.

use eka::engine::{Speculation, Timeline};

use super::{DRAFTS, Text, Told, run, speed};

/// Every n-th drafted token is wrong: none, one in ten, in four, in two, all.
const WRONG: [usize; 5] = [0, 10, 4, 2, 1];

/// Measures a model with its draft model, and prints.
pub(crate) fn measure(
    (timeline, draft): (&mut Timeline, &mut Timeline),
    texts: &[Text],
    rounds: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    for text in texts {
        for wrong in WRONG {
            let told = Told::new(draft, text, 1, wrong);
            let mut learned = Speculation::new().with_draft(told)?;
            let (mut ratios, mut last) = (Vec::new(), String::new());
            for _ in 0..rounds {
                let (plain, alone) = run(timeline, text, 1, &mut Speculation::new())?;
                let (outcome, passes) = run(timeline, text, DRAFTS + 1, &mut learned)?;
                ratios.push(format!("{:.2}", speed(&outcome) / speed(&plain)));
                let guessed = outcome.timings.drafted_by_model;
                last = format!(
                    "{passes} passes in place of {alone}, {} of {} right",
                    guessed.accepted, guessed.tokens
                );
            }
            let wrong = if wrong == 0 { "none".into() } else { format!("1 in {wrong}") };
            println!("{:<22} {wrong:<7} wrong: ratios {}  {last}", text.name, ratios.join(" "));
        }
    }
    Ok(())
}
