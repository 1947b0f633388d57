//! A sorted list of numbers that nearly always holds one.

/// Sorted, without repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Few {
    #[default]
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl Few {
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    pub(super) fn insert(&mut self, value: u32) {
        let mut values = self.as_slice().to_vec();
        values.push(value);
        *self = values.into();
    }

    pub(super) fn remove(&mut self, value: u32) {
        *self = self.as_slice().iter().copied().filter(|&v| v != value).collect::<Vec<_>>().into();
    }
}

impl FromIterator<u32> for Few {
    fn from_iter<I: IntoIterator<Item = u32>>(values: I) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(one), Some(two)) => [one, two].into_iter().chain(values).collect::<Vec<_>>().into(),
        }
    }
}

impl From<Vec<u32>> for Few {
    fn from(mut values: Vec<u32>) -> Self {
        values.sort_unstable();
        values.dedup();
        match *values {
            [] => Self::None,
            [one] => Self::One(one),
            _ => Self::Many(values.into()),
        }
    }
}
