//! Penalties and biases, as their authors have them: repetition as `RepetitionPenaltyLogitsProcessor` of transformers (Keskar et
//! al. 2019, arXiv 1909.05858), presence and frequency as OpenAI's API documents them, a bias that is added.

/// What changes the logits of one row.
#[derive(Clone, Debug)]
pub struct Penalties {
    /// Divides the score of a token that the text has, or multiplies it where it is below zero.
    pub repetition: f64,
    /// Taken off once if the token was written.
    pub presence: f64,
    /// Taken off each time that it was written.
    pub frequency: f64,
    /// `[vocabulary]`; −∞ bans.
    pub bias: Vec<f64>,
}

/// The logits `[vocabulary]` that a token is chosen by, behind a prompt and the tokens that were written.
pub fn adjust_logits(logits: &[f64], penalties: &Penalties, prompt: &[u32], written: &[u32]) -> Vec<f64> {
    let mut scores = logits.to_vec();
    for token in 0..scores.len() as u32 {
        let score = &mut scores[token as usize];
        let times = written.iter().filter(|&&one| one == token).count() as f64;
        if times > 0.0 || prompt.contains(&token) {
            *score = if *score < 0.0 { *score * penalties.repetition } else { *score / penalties.repetition };
        }
        *score -= times * penalties.frequency + if times > 0.0 { penalties.presence } else { 0.0 };
        *score += penalties.bias[token as usize];
    }
    scores
}
