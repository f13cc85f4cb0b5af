//! Ids of campaigns: each names a directory, and with a suffix a Kubernetes object's status. Pure.

/// Longest id, in bytes.
pub const LONGEST: usize = 80;

/// Whether `id` can be a campaign's.
pub fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST).contains(&id.len()) && id.chars().all(allowed) && !id.starts_with('-') && !id.ends_with('-')
}

/// The first id for a campaign called `name` at `time` that is not taken: `quickstart-20261124-190406`, and then
/// `quickstart-20261124-190406-2`. A name that leaves no room for the rest is cut. `None` if four thousand million are
/// taken, or `name` or `time` can't be in an id.
pub fn free(name: &str, time: &str, mut is_taken: impl FnMut(&str) -> bool) -> Option<String> {
    let suffixes = std::iter::once(format!("-{time}"));
    let mut ids = suffixes.chain((2..=u32::MAX).map(|number| format!("-{time}-{number}"))).map(|suffix| {
        let room = LONGEST.saturating_sub(suffix.len());
        // A name has ASCII alone, or it is refused below.
        let kept = name.get(..room.min(name.len())).unwrap_or_default().trim_end_matches('-');
        format!("{kept}{suffix}")
    });
    let id = ids.find(|id| !is_id(id) || !is_taken(id))?;
    is_id(&id).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "20261124-190406";

    #[test]
    fn an_id_leads_nowhere_else() {
        for id in ["a", "quickstart-20261124-190406", "x-0a1b2c3d"] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "-a", "a-", "A", "a.new", &"a".repeat(81)] {
            assert!(!is_id(id), "{id}");
        }
    }

    #[test]
    fn the_longest_name_has_room_for_a_number() {
        let name = "n".repeat(63);
        let first = free(&name, TIME, |_| false).expect("one is free");
        assert_eq!(first, format!("{name}-{TIME}"));
        let second = free(&name, TIME, |id| id == first).expect("another one is free");
        assert!(second.len() <= LONGEST && second.ends_with(&format!("n-{TIME}-2")), "{second}");
    }

    #[test]
    fn what_can_be_in_no_id_gives_none() {
        assert_eq!(free("../x", TIME, |_| false), None);
        assert_eq!(free("\u{e4}", TIME, |_| false), None);
        assert_eq!(free(&"\u{e4}".repeat(60), TIME, |_| false), None);
    }

    proptest! {
        /// Names as the schema has them, any number of submissions at the same instant.
        #[test]
        fn every_submission_of_an_instant_has_an_id_of_its_own(
            names in proptest::collection::vec("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", 1..4),
            submissions in proptest::collection::vec(any::<prop::sample::Index>(), 1..150),
        ) {
            let mut taken = BTreeSet::new();
            for which in submissions {
                let name: &String = which.get(&names);
                let id = free(name, TIME, |id| taken.contains(id)).expect("one is free");
                prop_assert!(is_id(&id), "{}", id);
                prop_assert!(taken.insert(id));
            }
        }
    }
}
