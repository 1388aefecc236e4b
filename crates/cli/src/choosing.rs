//! How tokens are chosen: options that everything which writes has.

use clap::Args;
use headwise::Generate;

use super::numbers;

#[derive(Args)]
pub struct Choosing {
    /// Divide the logits by T; 0 is greedy
    #[arg(long, value_name = "T", default_value = "0.8", value_parser = numbers::not_negative::<f32>)]
    temperature: f32,
    /// Sample from the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value = "40", value_parser = numbers::whole::<u32>)]
    top_k: u32,
    /// Sample from the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value = "0.95", value_parser = numbers::not_negative::<f32>)]
    top_p: f32,
    /// Same seed, same adapter: same text
    #[arg(long, value_name = "S", default_value = "0", value_parser = numbers::whole::<u64>)]
    seed: u64,
    /// Always take the likeliest token, whatever the options above say
    #[arg(long)]
    greedy: bool,
    /// End the text before this one; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Make what the text has less likely, by this factor
    #[arg(long, value_name = "P", default_value = "1", value_parser = numbers::not_negative::<f32>)]
    repetition_penalty: f32,
    /// Take P off the logits of tokens that the new text has
    #[arg(long, value_name = "P", default_value = "0", value_parser = numbers::finite::<f32>)]
    presence_penalty: f32,
    /// Take P off for each time that it has them
    #[arg(long, value_name = "P", default_value = "0", value_parser = numbers::finite::<f32>)]
    frequency_penalty: f32,
    /// Add X to a token's logit, -inf bans it; may be given several times
    #[arg(long, value_name = "ID=X", value_parser = numbers::bias)]
    logit_bias: Vec<(u32, f32)>,
}

impl Choosing {
    /// At most `max_new` tokens, chosen so.
    pub fn options(&self, max_new: usize) -> Generate {
        let options = Generate::new()
            .max_new(max_new)
            .temperature(self.temperature)
            .top_k((self.top_k > 0).then_some(self.top_k))
            .top_p(self.top_p)
            .seed(self.seed)
            .stop(&self.stop)
            .repetition_penalty(self.repetition_penalty)
            .presence_penalty(self.presence_penalty)
            .frequency_penalty(self.frequency_penalty)
            .logit_bias(self.logit_bias.iter().copied());
        if self.greedy { options.greedy() } else { options }
    }
}
