//! Whether a document has the shape that its schema says: types, fields, words, quantities. Everything that is wrong is
//! found, with its place, and what is left is a document that can be read: what is wrong is left out of it, or has a value in its
//! place that means nothing where one must be ([`Told`] knows both).

use serde_json::{Map, Value, json};

use super::super::limits::NAME;
use super::events::Place;
use super::limits;
use super::outline::{Entry, Outline, Scalar, Shape};
use super::problems::Problems;
use crate::findings::told::Told;
use crate::units::{QUANTITY, Quantity};

/// Longer words are nobody's mistake in writing a shorter one.
const LONGEST_WORD: usize = 64;

/// What there is after a look at the shape.
pub(super) struct Shaped {
    /// What is wrong, in the order of the text.
    pub problems: Problems,
    /// Where.
    pub told: Told,
    /// What can be read.
    pub document: Value,
}

/// Looks at the whole document, which is of `schema`: one without references.
pub(super) fn shape(outline: &Outline, schema: &Value) -> Shaped {
    let (problems, told) = (Problems::default(), Told::default());
    let mut walk = Walk { outline, problems, told, path: String::new() };
    let document = walk.value(0, schema).unwrap_or_else(|| {
        walk.told.value("");
        stand_in(schema)
    });
    Shaped { problems: walk.problems, told: walk.told, document }
}

/// What a schema asks for.
enum Kind<'s> {
    Anything,
    /// One of these words.
    Word(Vec<&'s str>),
    Quantity(Quantity),
    Text,
    Whole {
        most: u64,
    },
    Number,
    Switch,
    /// A list.
    List(&'s Value),
    /// A mapping with keys of any name.
    Map(&'s Value),
    /// A mapping with fields.
    Struct(&'s Value),
}

/// What `schema` asks for, and whether nothing will do too.
fn kind(schema: &Value) -> (Kind<'_>, bool) {
    if let Some(any) = schema["anyOf"].as_array() {
        let nothing = |one: &&Value| one["type"] == "null";
        let one = any.iter().find(|one| !nothing(one)).unwrap_or(&Value::Null);
        return (kind(one).0, any.iter().any(|one| nothing(&one)));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let nothing = types.contains(&"null");
    if let Some(choices) = schema["oneOf"].as_array() {
        return (Kind::Word(choices.iter().filter_map(|one| one["const"].as_str()).collect()), nothing);
    }
    if let Some(choices) = schema["enum"].as_array() {
        return (Kind::Word(choices.iter().filter_map(Value::as_str).collect()), nothing);
    }
    let kind = match types.iter().find(|kind| **kind != "null") {
        Some(&"string") => {
            schema[QUANTITY].as_str().and_then(Quantity::named).map_or(Kind::Text, Kind::Quantity)
        }
        Some(&"integer") if schema["format"] == "uint32" => Kind::Whole { most: u32::MAX.into() },
        // The largest that Kubernetes keeps.
        Some(&"integer") => Kind::Whole { most: i64::MAX as u64 },
        Some(&"number") => Kind::Number,
        Some(&"boolean") => Kind::Switch,
        Some(&"array") => Kind::List(schema),
        Some(&"object") => match &schema["additionalProperties"] {
            values @ Value::Object(_) => Kind::Map(values),
            _ => Kind::Struct(schema),
        },
        _ => Kind::Anything,
    };
    (kind, nothing)
}

/// Names of the fields of a mapping.
fn names(schema: &Value) -> impl Iterator<Item = &str> {
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str())
}

/// Names of those that it must have.
fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

impl Kind<'_> {
    /// As errors end.
    fn expected(&self) -> String {
        match self {
            Self::Anything => "a value".into(),
            Self::Word(_) => "a word".into(),
            Self::Quantity(quantity) => format!("a {quantity}"),
            Self::Text => "a string".into(),
            Self::Whole { most } => format!("a whole number from 0 to {most}"),
            Self::Number => "a number".into(),
            Self::Switch => "`true` or `false`".into(),
            Self::List(_) => "a list".into(),
            Self::Map(_) | Self::Struct(_) => "a mapping, such as `{name: value}`".into(),
        }
    }
}

/// A value of the schema's type that means nothing.
pub(super) fn stand_in(schema: &Value) -> Value {
    let (kind, nothing) = kind(schema);
    match kind {
        _ if nothing => Value::Null,
        Kind::Anything => Value::Null,
        Kind::Word(words) => words.first().copied().into(),
        Kind::Quantity(quantity) => quantity.units().first().map(|(unit, _)| format!("0{unit}")).into(),
        Kind::Text => "".into(),
        Kind::Whole { .. } | Kind::Number => 0.into(),
        Kind::Switch => false.into(),
        Kind::List(_) => json!([]),
        Kind::Map(_) => json!({}),
        Kind::Struct(schema) => required(schema)
            .map(|name| (name.to_owned(), stand_in(&schema["properties"][name])))
            .collect::<Map<String, Value>>()
            .into(),
    }
}

/// Words as a choice: `a` or `b`.
fn choice<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match &words[..] {
        [] => "nothing".into(),
        [one] => one.clone(),
        [one, other] => format!("{one} or {other}"),
        several => format!("one of {}", several.join(", ")),
    }
}

/// The one of `words` that `written` was meant to be.
fn nearest<'w>(written: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    if written.len() > LONGEST_WORD {
        return None;
    }
    let plain = |word: &str| word.replace(['-', '_', ' '], "").to_lowercase();
    let (written, most) = (plain(written), (written.chars().count() / 3).max(1));
    let distance = |word: &'w str| (strsim::damerau_levenshtein(&written, &plain(word)), word);
    words.map(distance).filter(|(distance, _)| *distance <= most).min().map(|(_, word)| word)
}

struct Walk<'o> {
    outline: &'o Outline,
    problems: Problems,
    told: Told,
    /// To the value that is looked at.
    path: String,
}

impl<'o> Walk<'o> {
    fn tell(&mut self, place: Place, message: impl FnOnce() -> String) {
        self.problems.add(place, &self.path, message);
    }

    /// Tells that the value at `at` has the wrong type or is out of the type's range.
    fn wrong(&mut self, at: usize, what: &str, kind: &Kind<'_>) {
        let outline = self.outline;
        self.tell(self.outline.place_of(at), || {
            let found = outline.resolved(at).map_or_else(String::new, |node| found(&node.shape));
            format!("invalid {what}: {found}, expected {}", kind.expected())
        });
    }

    /// Does something with a part of the value that is looked at.
    fn within<T>(&mut self, step: &str, part: impl FnOnce(&mut Self) -> T) -> T {
        let end = self.path.len();
        self.path.push_str(step);
        let done = part(self);
        self.path.truncate(end);
        done
    }

    /// The value at `at` as the schema asks for it; nothing if it is something else. That is told, and so are limits that it does
    /// not keep.
    fn value(&mut self, at: usize, schema: &Value) -> Option<Value> {
        let read = self.read(at, schema)?;
        if let Some(message) = limits::scalar(schema, &read) {
            self.tell(self.outline.place_of(at), || message);
            // A name that is none is still the one that others name.
            if schema[NAME] != true {
                self.told.value(&self.path);
            }
        }
        Some(read)
    }

    fn read(&mut self, at: usize, schema: &Value) -> Option<Value> {
        let (kind, nothing) = kind(schema);
        let outline: &'o Outline = self.outline;
        let shape = &outline.resolved(at)?.shape;
        let is_nothing = matches!(shape, Shape::Scalar(_, Scalar::Null));
        if is_nothing && nothing {
            return Some(Value::Null);
        }
        // `metadata:` with nothing after it is empty.
        let is_empty = matches!(shape, Shape::Scalar(text, Scalar::Null) if text.is_empty());
        match (&kind, shape) {
            (Kind::Anything, _) => return Some(Value::Null),
            (Kind::Word(words), Shape::Scalar(text, _)) => return self.word(at, text, words),
            (Kind::Quantity(_), Shape::Scalar(_, Scalar::Null | Scalar::Bool(_))) => {}
            (Kind::Quantity(quantity), Shape::Scalar(text, _)) => {
                return match quantity.read(text) {
                    Ok(_) => Some(text.as_ref().into()),
                    Err(why) => {
                        self.tell(self.outline.place_of(at), || why.to_string());
                        None
                    }
                };
            }
            (Kind::Text, Shape::Scalar(text, _)) => return Some(text.as_ref().into()),
            (Kind::Whole { most }, Shape::Scalar(_, Scalar::Whole(number))) => {
                if let Some(number) = u64::try_from(*number).ok().filter(|number| number <= most) {
                    return Some(number.into());
                }
                self.wrong(at, "value", &kind);
                return None;
            }
            (Kind::Number, Shape::Scalar(_, Scalar::Whole(number))) => return Some((*number as f64).into()),
            (Kind::Number, Shape::Scalar(_, Scalar::Float(number))) if number.is_finite() => {
                return Some((*number).into());
            }
            (Kind::Switch, Shape::Scalar(_, Scalar::Bool(on))) => return Some((*on).into()),
            (Kind::List(schema), Shape::Sequence(entries)) => return Some(self.list(at, entries, schema)),
            (Kind::Map(values), Shape::Mapping(entries)) => return Some(self.map(entries, values)),
            (Kind::Struct(schema), Shape::Mapping(entries)) => return Some(self.fields(at, entries, schema)),
            (Kind::List(schema), _) if is_empty => return Some(self.list(at, &[], schema)),
            (Kind::Map(_), _) if is_empty => return Some(json!({})),
            (Kind::Struct(schema), _) if is_empty => return Some(self.fields(at, &[], schema)),
            _ => {}
        }
        self.wrong(at, "type", &kind);
        None
    }

    fn word(&mut self, at: usize, text: &str, words: &[&str]) -> Option<Value> {
        if words.contains(&text) {
            return Some(text.into());
        }
        self.tell(self.outline.place_of(at), || {
            let meant = nearest(text, words.iter().copied());
            let meant = meant.map(|word| format!(": did you mean `{word}`?")).unwrap_or_default();
            format!("unknown variant `{text}`, expected {}{meant}", choice(words.iter().copied()))
        });
        None
    }

    fn list(&mut self, at: usize, nodes: &[usize], schema: &Value) -> Value {
        if let Some((message, ends)) = limits::list(schema, nodes.len()) {
            self.tell(self.outline.place_of(at), || message);
            self.told.value(&self.path);
            if ends {
                return json!([]);
            }
        }
        let of = &schema["items"];
        let (mut list, mut told) = (Vec::new(), Vec::new());
        for (index, node) in nodes.iter().enumerate() {
            let read = self.within(&format!("[{index}]"), |walk| {
                let read = walk.value(*node, of);
                if read.is_none() {
                    walk.told.value(&walk.path);
                }
                told.push(read.is_none() || walk.told.is_value(&format!("{}.name", walk.path)));
                read
            });
            list.push(read.unwrap_or_else(|| stand_in(of)));
        }
        let is_told = |index| told.get(index).copied().unwrap_or(false);
        for (index, field, message) in limits::entries(schema, &list, is_told) {
            let Some(mut place) = nodes.get(index).map(|node| self.outline.place_of(*node)) else { continue };
            let step = field.map_or_else(|| format!("[{index}]"), |field| format!("[{index}].{field}"));
            if let (Some(field), Some(node)) = (field, nodes.get(index)) {
                place = self.outline.field(*node, field).map_or(place, |at| self.outline.place_of(at));
            }
            self.within(&step, |walk| walk.tell(place, || message));
        }
        list.into()
    }

    fn map(&mut self, entries: &[Entry], schema: &Value) -> Value {
        let mut map = Map::new();
        for entry in entries.iter().filter(|entry| !entry.repeated) {
            let Some(name) = &entry.name else {
                self.wrong(entry.key, "type", &Kind::Text);
                continue;
            };
            let read = self.within(&format!(".{name}"), |walk| walk.value(entry.value, schema));
            map.extend(read.map(|value| (name.to_string(), value)));
        }
        map.into()
    }

    fn fields(&mut self, at: usize, entries: &[Entry], schema: &Value) -> Value {
        let mut read = Map::new();
        // Names that other names were meant to be.
        let mut meant = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.repeated) {
            let Some(name) = entry.name.as_deref() else {
                self.told.in_part(&self.path);
                self.wrong(entry.key, "type", &Kind::Word(Vec::new()));
                continue;
            };
            if let Some(schema) = schema["properties"].get(name) {
                let value = self.field(name, |walk| walk.value(entry.value, schema));
                read.extend(value.map(|value| (name.to_owned(), value)));
                continue;
            }
            // Of very many nobody is told what each was meant to be.
            let likely = if self.problems.is_open() { nearest(name, names(schema)) } else { None };
            meant.extend(likely);
            self.told.in_part(&self.path);
            self.tell(self.outline.place_of(entry.key), || {
                let likely = likely.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default();
                format!("unknown field `{name}`, expected {}{likely}", choice(names(schema)))
            });
        }
        for name in required(schema).filter(|name| !read.contains_key(*name)).collect::<Vec<_>>() {
            let written = entries.iter().any(|entry| entry.name.as_deref() == Some(name));
            if !written && !meant.contains(&name) {
                self.tell(self.outline.place_of(at), || format!("missing field `{name}`"));
            }
            if !written {
                self.field(name, |_| None::<()>);
            }
            read.insert(name.to_owned(), stand_in(&schema["properties"][name]));
        }
        let read = read.into();
        if let Some(message) = limits::mapping(schema, &read, self.told.is_in_part_of(&self.path)) {
            self.tell(self.outline.place_of(at), || message);
            self.told.in_part(&self.path);
        }
        read
    }

    /// What is read of a field; if it is nothing, that is noted.
    fn field<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let step = if self.path.is_empty() { name.to_owned() } else { format!(".{name}") };
        self.within(&step, |walk| {
            let value = read(walk);
            if value.is_none() {
                walk.told.value(&walk.path);
            }
            value
        })
    }
}

/// What stands in the text, as errors call it.
fn found(shape: &Shape) -> String {
    match shape {
        Shape::Scalar(_, Scalar::Null) => "nothing".into(),
        Shape::Scalar(text, Scalar::Bool(_)) => format!("boolean `{text}`"),
        Shape::Scalar(text, Scalar::Whole(_)) => format!("integer `{text}`"),
        Shape::Scalar(text, Scalar::Float(_)) => format!("floating point `{text}`"),
        Shape::Scalar(text, Scalar::Text) => format!("string {text:?}"),
        Shape::Sequence(_) => "list".into(),
        Shape::Mapping(_) => "map".into(),
        Shape::Alias(_) => "alias".into(),
    }
}
