//! The events of a YAML text, one after the other, from libyaml: the scanner that serde_yaml reads with. What is counted
//! here is what serde_yaml would build; a second scanner would see another document where the two disagree. It keeps one
//! event, so whoever stops asking has spent what was asked for. The only file that knows unsafe-libyaml.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use unsafe_libyaml as unsafe_yaml;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Place {
    fn of(mark: unsafe_yaml::yaml_mark_t) -> Self {
        let from_one = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).saturating_add(1);
        Self { line: from_one(mark.line), column: from_one(mark.column) }
    }
}

/// What a text says next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The text is over.
    End,
    /// A document begins.
    Document,
    /// It is over.
    DocumentEnd,
    /// What the anchor of this name stands at, once more.
    Alias(Box<[u8]>),
    /// A value without parts.
    Scalar {
        /// What others may call it.
        names: Names,
        /// Its text, decoded.
        text: Box<str>,
        /// Whether it is written without quotes.
        plain: bool,
    },
    /// A list begins.
    Sequence(Names),
    /// A mapping begins.
    Mapping(Names),
    /// The list or mapping that began last is over.
    Close,
}

/// What stands before a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// `&a`.
    pub anchor: Option<Box<[u8]>>,
    /// `!!str`, written out.
    pub tag: Option<Box<str>>,
}

/// A text is no YAML.
#[derive(Debug)]
pub(super) struct SyntaxFault {
    /// Where.
    pub place: Place,
    /// libyaml's words.
    pub message: String,
}

/// Reads events.
pub(super) struct Events<'t> {
    /// Owned. It holds pointers to itself and into the text: it is never moved.
    parser: NonNull<unsafe_yaml::yaml_parser_t>,
    text: PhantomData<&'t str>,
}

impl<'t> Events<'t> {
    /// The events of `text`.
    pub(super) fn new(text: &'t str) -> Self {
        let memory = Box::into_raw(Box::new(MaybeUninit::<unsafe_yaml::yaml_parser_t>::uninit()));
        // SAFETY: the memory is the parser's own, large enough and aligned for it, and freed by `drop` alone. It is
        // initialised before it is used otherwise; the one cause of failure is an allocation, which aborts here. The
        // text outlives the parser ('t) and is as long as it says.
        unsafe {
            let parser = NonNull::new_unchecked(memory).cast::<unsafe_yaml::yaml_parser_t>();
            let initialised = unsafe_yaml::yaml_parser_initialize(parser.as_ptr());
            assert!(initialised.ok, "libyaml can't be initialised");
            unsafe_yaml::yaml_parser_set_encoding(parser.as_ptr(), unsafe_yaml::YAML_UTF8_ENCODING);
            unsafe_yaml::yaml_parser_set_input_string(parser.as_ptr(), text.as_ptr(), text.len() as u64);
            Self { parser, text: PhantomData }
        }
    }

    /// The next event and where it stands; after [`Event::End`] or a fault, the same for ever.
    pub(super) fn next(&mut self) -> Result<(Event, Place), SyntaxFault> {
        loop {
            let mut event = MaybeUninit::<unsafe_yaml::yaml_event_t>::uninit();
            // SAFETY: the parser is initialised and nobody else has it. On success the event is initialised, and it is
            // deleted once, after what is kept of it was copied.
            let (read, place) = unsafe {
                // libyaml must not be asked again after a fault.
                if self.parser.as_ref().error != unsafe_yaml::YAML_NO_ERROR
                    || unsafe_yaml::yaml_parser_parse(self.parser.as_ptr(), event.as_mut_ptr()).fail
                {
                    return Err(self.fault());
                }
                let read = copied(event.assume_init_ref());
                let place = Place::of(event.assume_init_ref().start_mark);
                unsafe_yaml::yaml_event_delete(event.as_mut_ptr());
                (read, place)
            };
            if let Some(read) = read {
                return Ok((read, place));
            }
        }
    }

    fn fault(&self) -> SyntaxFault {
        // SAFETY: the parser is initialised.
        let parser = unsafe { self.parser.as_ref() };
        // SAFETY: both are null, or static strings of libyaml that end with 0.
        let words = |text: *const std::ffi::c_char| unsafe {
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let mut message = words(parser.problem.cast()).unwrap_or_else(|| "this is no YAML".into());
        if let Some(context) = words(parser.context.cast()) {
            let (from, place) = (Place::of(parser.context_mark), Place::of(parser.problem_mark));
            message.push_str(&format!(", {context}"));
            if from != place {
                message.push_str(&format!(" at line {} column {}", from.line, from.column));
            }
        }
        SyntaxFault { place: Place::of(parser.problem_mark), message }
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: the parser is initialised, was made by `Box::into_raw` of this very layout, and is used no more.
        unsafe {
            unsafe_yaml::yaml_parser_delete(self.parser.as_ptr());
            drop(Box::from_raw(self.parser.as_ptr().cast::<MaybeUninit<unsafe_yaml::yaml_parser_t>>()));
        }
    }
}

/// What is kept of an event; nothing of the beginning of the text.
///
/// # Safety
/// libyaml has filled the event, and it is not deleted.
unsafe fn copied(event: &unsafe_yaml::yaml_event_t) -> Option<Event> {
    // SAFETY: the type says which of the union is filled, as libyaml does everywhere; its strings end with 0.
    let names = |anchor: *const u8, tag: *const u8| unsafe {
        let tag = word(tag).map(|tag| String::from_utf8_lossy(&tag).into());
        Names { anchor: word(anchor), tag }
    };
    // SAFETY: as above. A value is as long as it says.
    unsafe {
        Some(match event.type_ {
            unsafe_yaml::YAML_STREAM_END_EVENT | unsafe_yaml::YAML_NO_EVENT => Event::End,
            unsafe_yaml::YAML_DOCUMENT_START_EVENT => Event::Document,
            unsafe_yaml::YAML_DOCUMENT_END_EVENT => Event::DocumentEnd,
            unsafe_yaml::YAML_ALIAS_EVENT => Event::Alias(word(event.data.alias.anchor).unwrap_or_default()),
            unsafe_yaml::YAML_SCALAR_EVENT => {
                let scalar = &event.data.scalar;
                let length = usize::try_from(scalar.length).unwrap_or(0);
                let text = String::from_utf8_lossy(std::slice::from_raw_parts(scalar.value, length)).into();
                let plain = scalar.style == unsafe_yaml::YAML_PLAIN_SCALAR_STYLE;
                Event::Scalar { names: names(scalar.anchor, scalar.tag), text, plain }
            }
            unsafe_yaml::YAML_SEQUENCE_START_EVENT => {
                Event::Sequence(names(event.data.sequence_start.anchor, event.data.sequence_start.tag))
            }
            unsafe_yaml::YAML_MAPPING_START_EVENT => {
                Event::Mapping(names(event.data.mapping_start.anchor, event.data.mapping_start.tag))
            }
            unsafe_yaml::YAML_SEQUENCE_END_EVENT | unsafe_yaml::YAML_MAPPING_END_EVENT => Event::Close,
            _ => return None,
        })
    }
}

/// # Safety
/// `text` is null, or ends with 0.
unsafe fn word(text: *const u8) -> Option<Box<[u8]>> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text.cast()).to_bytes().into() })
}
