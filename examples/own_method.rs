//! A method of one's own, of probes alone: which heads look at the start of the text ("attention sinks", arXiv 2309.17453), and what
//! becomes of the text's loss when those heads see all alike.
//!
//! ```text
//! cargo run --release --features demo-model --example own_method -- "The king shall reign for ever"
//! ```

use headwise::{
    Edit, Edits, Gpu, GpuOptions, Model, Score, block_on,
    probes::{Address, Change, Keys, Observe, What},
};

fn main() -> headwise::Result<()> {
    let text =
        std::env::args().nth(1).unwrap_or("And the king said unto them, Go ye up in peace.".to_owned());
    block_on(async {
        let model = Model::demo(&Gpu::new(GpuOptions::new()).await?).await?;
        let ids = model.encode(&text)?;
        let sinks = sinks(&model, &ids).await?;
        let edits: Edits = sinks.iter().take(5).map(|&(_, at)| Edit::new(at, Change::Uniform(1.0))).collect();
        let score = async |model: &Model| model.score_ids(&[&ids], &Score::new()).await;
        let (plain, without) = (score(&model).await?, score(&model.edited(&edits)?).await?);
        for (mean, at) in sinks.iter().take(5) {
            println!("{at}: {:.0} % on the first token", 100.0 * mean);
        }
        println!("perplexity {:?}, without these {:?}", plain[0].perplexity(), without[0].perplexity());
        Ok(())
    })
}

/// How much each head looks at the first token, those that do most first.
pub async fn sinks(model: &Model, ids: &[u32]) -> headwise::Result<Vec<(f32, Address)>> {
    let observe = Observe::new().capture("L*H*:rows".parse()?).mass("sink", Keys::At(vec![0]));
    let trace = model.trace(&[ids], &observe).await?;
    let (sink, weight) = (trace.column("sink").unwrap_or(0), trace.column("argmax_weight").unwrap_or(0));
    let mut heads = Vec::new();
    for layer in trace.of(What::Rows) {
        for (place, &head) in layer.heads.iter().enumerate() {
            // The rows of the tokens that chose this head; the first token sees nothing but itself.
            let rows = (1..ids.len()).map(|row| layer.at(row, place)).filter(|row| row[weight] > 0.0);
            let (sum, count) = rows.fold((0.0, 0.0), |(sum, count), row| (sum + row[sink], count + 1.0));
            if count > 0.0 {
                heads.push((sum / count, Address::head(layer.layer, head)));
            }
        }
    }
    heads.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(heads)
}
