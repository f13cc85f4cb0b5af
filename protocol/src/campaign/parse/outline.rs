//! The outline of a document: how large it is with every alias written out, and where each value stands. It is made before
//! anything is built of the document, and ends at the first thing that is over a limit.

use std::collections::{HashMap, HashSet};

use super::events::{Event, Events, Names, Place, SyntaxFault};
use super::problems::Problems;
use super::{MAX_DEPTH, MAX_DOCUMENT, MAX_NODES};
use crate::findings::Step;

/// Types that YAML itself names (1.2, 10.3).
const KINDS: [&str; 7] = ["bool", "float", "int", "map", "null", "seq", "str"];

/// What a document is before anybody asks what it means.
#[derive(Debug)]
pub(super) struct Outline {
    /// The first one is the document.
    pub nodes: Vec<Node>,
    /// Index of the document among those of the text: empty ones may stand before it.
    pub index: usize,
    /// Keys that stand in a mapping twice.
    pub repeated: Problems,
}

/// Values, with every alias written out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Of the document that is read.
    pub document: usize,
    /// Of the whole text, with one more for each document.
    pub text: usize,
}

/// A value.
#[derive(Debug)]
pub(super) struct Node {
    pub place: Place,
    pub shape: Shape,
}

#[derive(Debug)]
pub(super) enum Shape {
    /// Its text, and what that means once [`super::scalars`] has said so.
    Scalar(Box<str>, Scalar),
    Sequence(Vec<usize>),
    Mapping(Vec<Entry>),
    Alias(usize),
}

/// What a scalar means (YAML 1.2, 10.3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Whole(i128),
    Float(f64),
    Text,
}

/// An entry of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its key, if that is a scalar.
    pub name: Option<Box<str>>,
    /// The key's node.
    pub key: usize,
    /// The value's.
    pub value: usize,
    /// The key stands in the mapping once before: that is told, and this entry has no meaning.
    pub repeated: bool,
}

/// Why a text is no document that is read.
#[derive(Debug)]
pub(super) struct Fault {
    pub place: Place,
    pub message: String,
}

impl From<SyntaxFault> for Fault {
    fn from(fault: SyntaxFault) -> Self {
        Self { place: fault.place, message: fault.message }
    }
}

/// What an anchor stands at.
#[derive(Clone, Copy)]
struct Anchored {
    node: usize,
    /// `None` while its end has not come.
    size: Option<Size>,
}

/// With every alias written out.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    /// Levels below it.
    height: usize,
}

/// A list or mapping that has begun.
struct Frame {
    node: usize,
    anchor: Option<Box<[u8]>>,
    /// What was counted before it.
    before: Size,
    height: usize,
    /// Of a mapping: its keys so far, and the one whose value comes next.
    keys: HashSet<Box<str>>,
    key: Option<Entry>,
}

impl Outline {
    /// Reads `text` as far as it is within the limits.
    ///
    /// # Errors
    /// [`Fault`]: what is wrong first.
    pub(super) fn of(text: &str) -> Result<Self, Fault> {
        Self::counted(text).map(|(outline, _)| outline)
    }

    /// The same, with what was counted.
    pub(super) fn counted(text: &str) -> Result<(Self, Counted), Fault> {
        let mut events = Events::new(text);
        let (mut documents, mut found) = (0, None);
        let (mut maker, mut counted) = (Maker::default(), Counted::default());
        let mut before = 0;
        loop {
            match events.next()? {
                (Event::End, _) => break,
                (Event::Document, place) => {
                    maker.count(place, Size { nodes: 1, ..Size::default() })?;
                    maker.begin();
                    before = maker.total.nodes;
                }
                (Event::DocumentEnd, _) => {
                    if !maker.is_empty() {
                        counted.document = maker.total.nodes - before;
                        let repeated = std::mem::take(&mut maker.repeated);
                        found = Some((documents, std::mem::take(&mut maker.nodes), repeated));
                    }
                    documents += 1;
                }
                (event, place) => {
                    if found.is_some() && !is_nothing(&event) {
                        let message = "a second document begins here: a file holds one campaign: split the documents at `---` \
                                       into files";
                        return Err(Fault { place, message: message.into() });
                    }
                    maker.take(event, place)?;
                }
            }
        }
        let Some((index, nodes, repeated)) = found else {
            let message =
                "the document is empty: write a campaign, such as manifests/campaigns/quickstart.yaml";
            return Err(Fault { place: Place { line: 1, column: 1 }, message: message.into() });
        };
        counted.text = maker.total.nodes;
        Ok((Self { nodes, index, repeated }, counted))
    }

    /// Where the value at `path` stands, or its nearest ancestor that exists.
    pub(super) fn place(&self, path: &[Step]) -> Place {
        let mut at = 0;
        for step in path {
            match self.child(at, *step) {
                Some(child) => at = child,
                None => break,
            }
        }
        self.place_of(at)
    }

    /// The text of the value at `path`, if it is a scalar.
    pub(super) fn scalar(&self, path: &[Step]) -> Option<&str> {
        let at = path.iter().try_fold(0, |at, step| self.child(at, *step))?;
        match &self.resolved(at)?.shape {
            Shape::Scalar(text, _) => Some(text),
            _ => None,
        }
    }

    /// How many entries the list at `path` has.
    pub(super) fn entries(&self, path: &[Step]) -> Option<usize> {
        let at = path.iter().try_fold(0, |at, step| self.child(at, *step))?;
        match &self.resolved(at)?.shape {
            Shape::Sequence(entries) => Some(entries.len()),
            _ => None,
        }
    }

    /// Where the value at `at` stands.
    pub(super) fn place_of(&self, at: usize) -> Place {
        self.nodes.get(at).map_or(Place { line: 1, column: 1 }, |node| node.place)
    }

    /// The value of a field of the mapping at `at`.
    pub(super) fn field(&self, at: usize, name: &str) -> Option<usize> {
        match &self.resolved(at)?.shape {
            Shape::Mapping(entries) => {
                entries.iter().find(|entry| entry.name.as_deref() == Some(name)).map(|entry| entry.value)
            }
            _ => None,
        }
    }

    /// An entry of the list at `at`.
    pub(super) fn entry(&self, at: usize, index: usize) -> Option<usize> {
        match &self.resolved(at)?.shape {
            Shape::Sequence(entries) => entries.get(index).copied(),
            _ => None,
        }
    }

    fn child(&self, at: usize, step: Step) -> Option<usize> {
        match step {
            Step::Field(name) => self.field(at, name),
            Step::Index(index) => self.entry(at, index),
        }
    }

    /// The value at `at`, or what its alias leads to.
    pub(super) fn resolved(&self, at: usize) -> Option<&Node> {
        self.nodes.get(self.target(at))
    }

    /// An alias leads to an anchor, which stands at no alias.
    pub(super) fn target(&self, at: usize) -> usize {
        match self.nodes.get(at) {
            Some(Node { shape: Shape::Alias(target), .. }) => *target,
            _ => at,
        }
    }
}

/// Whether it is what an empty document is made of.
fn is_nothing(event: &Event) -> bool {
    matches!(event, Event::Scalar { names: Names { anchor: None, tag: None }, text, plain: true } if text.is_empty())
}

#[derive(Default)]
struct Maker {
    nodes: Vec<Node>,
    frames: Vec<Frame>,
    anchors: HashMap<Box<[u8]>, Anchored>,
    repeated: Problems,
    /// Of all documents so far.
    total: Size,
}

impl Maker {
    fn begin(&mut self) {
        self.nodes.clear();
        self.anchors.clear();
    }

    fn is_empty(&self) -> bool {
        match &self.nodes[..] {
            [] => true,
            [Node { shape: Shape::Scalar(text, _), .. }] => text.is_empty(),
            _ => false,
        }
    }

    /// Counts what comes at `place`.
    fn count(&mut self, place: Place, size: Size) -> Result<(), Fault> {
        let refused = |message: String| Err(Fault { place, message });
        self.total.nodes = self.total.nodes.saturating_add(size.nodes);
        self.total.bytes = self.total.bytes.saturating_add(size.bytes);
        let aliases = if size.nodes > 1 { ", with every alias written out" } else { "" };
        if self.total.nodes > MAX_NODES {
            return refused(format!(
                "the document has more than {MAX_NODES} values up to here{aliases}: write a smaller campaign"
            ));
        }
        if self.total.bytes > MAX_DOCUMENT {
            return refused(format!(
                "the values of the document have more than {MAX_DOCUMENT} bytes up to here{aliases}: write a smaller campaign"
            ));
        }
        if self.frames.len() + size.height >= MAX_DEPTH {
            return refused(format!("is nested deeper than {MAX_DEPTH} levels{aliases}: no campaign is"));
        }
        Ok(())
    }

    fn take(&mut self, event: Event, place: Place) -> Result<(), Fault> {
        match event {
            Event::Scalar { names, text, .. } => {
                self.tag(&names, place)?;
                let size = Size { nodes: 1, bytes: text.len(), height: 0 };
                self.count(place, size)?;
                let node = self.add(Shape::Scalar(text, Scalar::Text), place);
                self.anchor(names.anchor, node, Some(size), place)?;
            }
            Event::Alias(name) => {
                let shown = String::from_utf8_lossy(&name);
                let Some(anchored) = self.anchors.get(&name).copied() else {
                    let message = format!("there is no anchor `&{shown}` before this alias");
                    return Err(Fault { place, message });
                };
                let Some(size) = anchored.size else {
                    let message =
                        format!("the alias `*{shown}` stands inside of what it names: it has no end");
                    return Err(Fault { place, message });
                };
                self.count(place, size)?;
                if let Some(frame) = self.frames.last_mut() {
                    frame.height = frame.height.max(size.height + 1);
                }
                self.add(Shape::Alias(anchored.node), place);
            }
            Event::Sequence(names) => self.open(names, Shape::Sequence(Vec::new()), place)?,
            Event::Mapping(names) => self.open(names, Shape::Mapping(Vec::new()), place)?,
            Event::Close => self.close(),
            Event::End | Event::Document | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, names: Names, shape: Shape, place: Place) -> Result<(), Fault> {
        self.tag(&names, place)?;
        let before = self.total;
        self.count(place, Size { nodes: 1, ..Size::default() })?;
        let node = self.add(shape, place);
        self.anchor(names.anchor.clone(), node, None, place)?;
        let (keys, key) = (HashSet::new(), None);
        self.frames.push(Frame { node, anchor: names.anchor, before, height: 0, keys, key });
        Ok(())
    }

    fn close(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        if let Some(anchored) = frame.anchor.and_then(|anchor| self.anchors.get_mut(&anchor)) {
            anchored.size = Some(Size {
                nodes: self.total.nodes - frame.before.nodes,
                bytes: self.total.bytes - frame.before.bytes,
                height: frame.height,
            });
        }
        if let Some(above) = self.frames.last_mut() {
            above.height = above.height.max(frame.height + 1);
        }
    }

    /// Adds a value to what began last.
    fn add(&mut self, shape: Shape, place: Place) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node { place, shape });
        let Some(frame) = self.frames.last_mut() else { return node };
        let shape = &mut self.nodes[frame.node].shape;
        if let Shape::Sequence(entries) = shape {
            entries.push(node);
            return node;
        }
        if let Some(entry) = frame.key.take() {
            if let Shape::Mapping(entries) = shape {
                entries.push(Entry { value: node, ..entry });
            }
            return node;
        }
        let key = match &self.nodes[node].shape {
            Shape::Alias(target) => &self.nodes[*target].shape,
            shape => shape,
        };
        let name = if let Shape::Scalar(text, _) = key { Some(text.clone()) } else { None };
        let repeated = name.as_ref().is_some_and(|name| !frame.keys.insert(name.clone()));
        let again = name.clone().filter(|_| repeated);
        frame.key = Some(Entry { name, key: node, value: node, repeated });
        if let Some(name) = again {
            let within = self.path();
            self.repeated.add(place, &within, || format!("`{name}` stands here twice: keep one of the two"));
        }
        node
    }

    /// The path to what began last.
    fn path(&self) -> String {
        let mut path = String::new();
        // Each frame but the last one holds the next.
        for frame in &self.frames[..self.frames.len().saturating_sub(1)] {
            match (&self.nodes[frame.node].shape, &frame.key) {
                (Shape::Sequence(entries), _) => {
                    path.push_str(&format!("[{}]", entries.len().saturating_sub(1)));
                }
                (Shape::Mapping(fields), _) => {
                    let name = fields.last().and_then(|entry| entry.name.as_deref()).unwrap_or("?");
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(name);
                }
                _ => {}
            }
        }
        path
    }

    /// A name that is given twice would mean the one here and the other there.
    fn anchor(
        &mut self,
        anchor: Option<Box<[u8]>>,
        node: usize,
        size: Option<Size>,
        place: Place,
    ) -> Result<(), Fault> {
        let Some(anchor) = anchor else { return Ok(()) };
        if self.anchors.contains_key(&anchor) {
            let shown = String::from_utf8_lossy(&anchor);
            let message = format!("two values have the anchor `&{shown}`: give each a name of its own");
            return Err(Fault { place, message });
        }
        self.anchors.insert(anchor, Anchored { node, size });
        Ok(())
    }

    /// Types of YAML's own may be written out; others would choose what a value means.
    fn tag(&self, names: &Names, place: Place) -> Result<(), Fault> {
        match names.tag.as_deref() {
            None => Ok(()),
            Some(tag) if tag.strip_prefix("tag:yaml.org,2002:").is_some_and(|kind| KINDS.contains(&kind)) => {
                Ok(())
            }
            Some(tag) => Err(Fault {
                place,
                message: format!("the tag `{tag}` means nothing in a campaign: leave it out"),
            }),
        }
    }
}
