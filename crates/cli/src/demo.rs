//! The models that the command carries: none in a build without the feature `demo-model`.

use headwise::{Error, Source};

/// One for each task.
#[derive(Clone, Copy)]
pub enum Demo {
    Write,
    Translate,
    Fill,
    Classify,
}

impl Demo {
    #[cfg(feature = "demo-model")]
    pub fn source(self) -> Result<Source, Error> {
        Ok(match self {
            Self::Write => Source::demo(),
            Self::Translate => Source::demo_translate(),
            Self::Fill => Source::demo_fill(),
            Self::Classify => Source::demo_classify(),
        })
    }

    #[cfg(not(feature = "demo-model"))]
    pub fn source(self) -> Result<Source, Error> {
        let what = match self {
            Self::Write => "writes",
            Self::Translate => "translates",
            Self::Fill => "fills masks",
            Self::Classify => "classifies",
        };
        Err(Error::Argument {
            name: "--model",
            found: "nothing".to_owned(),
            expected: format!("a model that {what}: this command was built without those of its own"),
        })
    }
}
