//! What the scalars of an outline mean: numbers, switches, nothing or text, as serde_yaml tells them apart.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::outline::{Outline, Scalar, Shape};

/// Walks through what serde_yaml reads and the outline of the same text at once. It refuses nothing.
pub(super) struct Scalars<'o> {
    pub outline: &'o mut Outline,
    /// The node that is read.
    pub at: usize,
}

impl Scalars<'_> {
    fn is(self, scalar: Scalar) {
        let target = self.outline.target(self.at);
        if let Some(Shape::Scalar(_, meaning)) =
            self.outline.nodes.get_mut(target).map(|node| &mut node.shape)
        {
            *meaning = scalar;
        }
    }

    /// The nodes of the parts, keys among them.
    fn parts(&self) -> Vec<usize> {
        match self.outline.resolved(self.at).map(|node| &node.shape) {
            Some(Shape::Sequence(entries)) => entries.clone(),
            Some(Shape::Mapping(entries)) => {
                entries.iter().flat_map(|entry| [entry.key, entry.value]).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Scalars<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalars<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.is(Scalar::Null);
        Ok(())
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.is(Scalar::Bool(value));
        Ok(())
    }
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.is(Scalar::Whole(value.into()));
        Ok(())
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.is(Scalar::Whole(value.into()));
        Ok(())
    }
    fn visit_i128<E>(self, value: i128) -> Result<(), E> {
        self.is(Scalar::Whole(value));
        Ok(())
    }
    fn visit_u128<E>(self, value: u128) -> Result<(), E> {
        self.is(Scalar::Whole(value.try_into().unwrap_or(i128::MAX)));
        Ok(())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.is(Scalar::Float(value));
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.is(Scalar::Text);
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut parts = self.parts().into_iter();
        while seq.next_element_seed(Scalars { outline: &mut *self.outline, at: next(&mut parts) })?.is_some()
        {
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut parts = self.parts().into_iter();
        while map.next_key_seed(Scalars { outline: &mut *self.outline, at: next(&mut parts) })?.is_some() {
            map.next_value_seed(Scalars { outline: &mut *self.outline, at: next(&mut parts) })?;
        }
        Ok(())
    }
}

/// The next part; behind the last one, none that there is.
fn next(parts: &mut impl Iterator<Item = usize>) -> usize {
    parts.next().unwrap_or(usize::MAX)
}
