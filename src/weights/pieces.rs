//! What a file calls a thing that a model wants: the names of one tensor, or of several.

use super::Order;

/// A tensor of the file, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub name: String,
    /// The tensor's shape, where it is not what the form implies.
    pub shape: Option<Vec<usize>>,
    /// The first row along the first dimension, and how many.
    pub rows: Option<(usize, usize)>,
}

impl Piece {
    /// A tensor with a shape of its own.
    pub fn shaped(name: String, shape: &[usize]) -> Self {
        Self { name, shape: Some(shape.to_vec()), rows: None }
    }

    /// `count` rows of a tensor of `shape`, from row `first` on.
    pub fn rows_of(name: String, shape: &[usize], first: usize, count: usize) -> Self {
        Self { name, shape: Some(shape.to_vec()), rows: Some((first, count)) }
    }

    /// What the loaded thing goes by.
    pub fn key(&self) -> String {
        match self.rows {
            None => self.name.clone(),
            Some((first, count)) => format!("{}[{first}..{}]", self.name, first + count),
        }
    }
}

/// The tensors that make one thing, the first on top, and how they order its values. Of none it is a thing that the model
/// does not have.
///
/// A tensor for each expert is a piece for each expert, with SwiGLU an expert's gate and then its up projection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    pub list: Vec<Piece>,
    pub order: Order,
}

impl Pieces {
    /// The same tensors, in another order than rows of one dense matrix.
    pub fn ordered(self, order: Order) -> Self {
        Self { order, ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl FromIterator<Piece> for Pieces {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        Self { list: pieces.into_iter().collect(), order: Order::default() }
    }
}

impl FromIterator<String> for Pieces {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        names.into_iter().map(|name| Piece { name, shape: None, rows: None }).collect()
    }
}

impl From<Piece> for Pieces {
    fn from(piece: Piece) -> Self {
        std::iter::once(piece).collect()
    }
}

impl From<String> for Pieces {
    fn from(name: String) -> Self {
        std::iter::once(name).collect()
    }
}
