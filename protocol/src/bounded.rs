//! Lists and maps of messages, bounded as they are read: a peer that names too many entries is refused, or told about in
//! short, before they are held. What a program of Toll says is far below each bound.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Labels of an agent.
pub const MOST_LABELS: usize = 64;
/// Trials that an agent may hold: some 260 outcomes, and what is not torn down.
pub(crate) const MOST_HELD: usize = 4096;
/// CPUs of a host: the kernel has no more (NR_CPUS).
pub(crate) const MOST_CPUS: usize = 8192;
/// Samples of an end: one each 100 ms of an interval, which lasts an hour at most.
pub(crate) const MOST_SAMPLES: usize = 40_000;
/// Threads of an end.
pub(crate) const MOST_THREADS: usize = 320;
/// Connections of a stream: 128 each way.
pub(crate) const MOST_FLOWS: usize = 256;
/// Causes of exits: of a kind and a register, or a port of the machine.
pub(crate) const MOST_CAUSES: usize = 256;
/// Flags of an end.
pub(crate) const MOST_FLAGS: usize = 64;
/// Last words of an end, or of two that failed together: of one there are some 40 lines and the registers.
pub(crate) const MOST_WORDS: usize = 512;
/// What could not be removed of a trial.
pub(crate) const MOST_LEFTOVERS: usize = 64;

/// Bytes of a name.
const LONGEST_NAME: usize = 256;

/// A name that is no longer than a name may be.
pub(crate) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.len() > LONGEST_NAME { Err(too_long(name.len())) } else { Ok(name) }
}

fn too_long<E: Error>(length: usize) -> E {
    E::custom(format_args!("a name of {length} bytes stands here; one has at most {LONGEST_NAME}"))
}

fn too_many<E: Error>(most: usize) -> E {
    E::custom(format_args!("more than {most} entries stand here"))
}

/// A list of at most `MOST` entries. One that has more is no message.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct List<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MOST} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if all.len() == MOST {
                    return Err(too_many(MOST));
                }
                all.push(entry);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(List::<T, MOST>(PhantomData))
}

/// A map of at most `MOST` names. One that has more is no message.
pub(crate) fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct Map<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Map<T, MOST> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map of at most {MOST} entries")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, entry)) = entries.next_entry::<String, T>()? {
                if name.len() > LONGEST_NAME {
                    return Err(too_long(name.len()));
                }
                if all.len() == MOST && !all.contains_key(&name) {
                    return Err(too_many(MOST));
                }
                all.insert(name, entry);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_map(Map::<T, MOST>(PhantomData))
}

/// Which lines of a list for people are kept.
#[derive(Clone, Copy)]
enum Kept {
    First,
    Last,
}

/// The last `MOST` lines; of a longer list the first of them says how many were before.
pub(crate) fn last_lines<'de, D: Deserializer<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(Lines::<MOST>(Kept::Last))
}

/// The first `MOST` lines; of a longer list the last of them says how many were left out.
pub(crate) fn first_lines<'de, D: Deserializer<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(Lines::<MOST>(Kept::First))
}

struct Lines<const MOST: usize>(Kept);

impl<'de, const MOST: usize> Visitor<'de> for Lines<MOST> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lines")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Result<Vec<String>, A::Error> {
        let (mut kept, mut left_out) = (VecDeque::new(), 0_usize);
        while let Some(line) = lines.next_element::<String>()? {
            if kept.len() < MOST {
                kept.push_back(line);
                continue;
            }
            left_out += 1;
            if matches!(self.0, Kept::Last) {
                kept.pop_front();
                kept.push_back(line);
            }
        }
        // The word on it takes the place of a line, so that a list that is written and read again stays as it is.
        match self.0 {
            _ if left_out == 0 => {}
            Kept::First => {
                kept.pop_back();
                kept.push_back(format!("and {} more", left_out + 1));
            }
            Kept::Last => {
                kept.pop_front();
                kept.push_front(format!("({} lines before these were left out)", left_out + 1));
            }
        }
        Ok(kept.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Deserializer as Json;

    use super::*;

    const MOST: usize = 5;

    proptest! {
        #[test]
        fn a_list_has_its_entries_or_is_refused(entries in prop::collection::vec(any::<u32>(), 0..12)) {
            let text = serde_json::to_string(&entries).expect("is JSON");
            let read = list::<_, u32, MOST>(&mut Json::from_str(&text));
            match read {
                Ok(read) => prop_assert!(read == entries && entries.len() <= MOST),
                Err(error) => {
                    prop_assert!(entries.len() > MOST);
                    prop_assert!(error.to_string().starts_with("more than 5 entries"), "{error}");
                }
            }
        }

        #[test]
        fn a_map_has_its_entries_or_is_refused(entries in prop::collection::btree_map("[a-z]{1,3}", any::<u32>(), 0..12)) {
            let text = serde_json::to_string(&entries).expect("is JSON");
            let read = map::<_, u32, MOST>(&mut Json::from_str(&text));
            prop_assert_eq!(read.ok(), (entries.len() <= MOST).then_some(entries));
        }

        #[test]
        fn of_many_lines_some_are_kept_and_the_others_counted(count in 0_usize..40) {
            let lines: Vec<String> = (0..count).map(|line| line.to_string()).collect();
            let text = serde_json::to_string(&lines).expect("is JSON");
            let first = first_lines::<_, MOST>(&mut Json::from_str(&text)).expect("reads");
            let last = last_lines::<_, MOST>(&mut Json::from_str(&text)).expect("reads");
            if count <= MOST {
                prop_assert!(first == lines && last == lines);
                return Ok(());
            }
            prop_assert_eq!(&first[..MOST - 1], &lines[..MOST - 1]);
            prop_assert_eq!(&first[MOST - 1], &format!("and {} more", count - (MOST - 1)));
            prop_assert_eq!(&last[1..], &lines[count - (MOST - 1)..]);
            prop_assert_eq!(&last[0], &format!("({} lines before these were left out)", count - (MOST - 1)));
            let again = serde_json::to_string(&last).expect("is JSON");
            prop_assert_eq!(last_lines::<_, MOST>(&mut Json::from_str(&again)).expect("reads"), last);
        }
    }

    #[test]
    fn a_long_name_is_refused() {
        let longest = format!("\"{}\"", "a".repeat(LONGEST_NAME));
        assert!(name(&mut Json::from_str(&longest)).is_ok());
        let long = longest.replacen('a', "aa", 1);
        assert!(name(&mut Json::from_str(&long)).is_err());
        assert!(map::<_, u32, MOST>(&mut Json::from_str(&format!("{{{long}: 1}}"))).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_one_entry() {
        let twice = r#"{"a": 1, "b": 2, "a": 3}"#;
        let read = map::<_, u32, 2>(&mut Json::from_str(twice)).expect("has two");
        assert_eq!(read, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]));
    }
}
