use proptest::prelude::*;

use super::*;

fn record(version: &str, holder: Option<&str>) -> Record {
    Record {
        version: version.into(),
        holder: holder.map(Into::into),
        duration: Some(Duration::from_secs(15)),
        transitions: 3,
    }
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn an_absent_lease_is_created_and_then_renewed() {
    let start = Instant::now();
    let mut election = Election::new("a".into(), Timing::KUBERNETES);
    assert_eq!(election.read(start, None), Step::Write { replaces: None, taken: true, transitions: 0 });
    assert_eq!(election.written(start, start), Step::Wait);
    assert_eq!(election.leads_until(), Some(after(start, 10)));
    let renewal = Step::Write { replaces: Some("1".into()), taken: false, transitions: 3 };
    assert_eq!(election.read(after(start, 2), Some(&record("1", Some("a")))), renewal);
    election.written(after(start, 2), after(start, 3));
    assert_eq!(election.leads_until(), Some(after(start, 12)));
}

#[test]
fn a_lease_that_changes_is_never_taken_and_one_that_stands_still_is() {
    let start = Instant::now();
    let mut election = Election::new("b".into(), Timing::KUBERNETES);
    for (second, version) in [(0, "1"), (14, "2"), (28, "3"), (42, "3")] {
        assert_eq!(election.read(after(start, second), Some(&record(version, Some("a")))), Step::Wait);
    }
    let take = Step::Write { replaces: Some("3".into()), taken: true, transitions: 4 };
    assert_eq!(election.read(after(start, 43), Some(&record("3", Some("a")))), take);
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let start = Instant::now();
    let mut election = Election::new("b".into(), Timing::KUBERNETES);
    let take = Step::Write { replaces: Some("9".into()), taken: true, transitions: 4 };
    assert_eq!(election.read(start, Some(&record("9", None))), take);
}

#[test]
fn one_that_was_killed_goes_on_with_its_own_lease() {
    let mut election = Election::new("b".into(), Timing::KUBERNETES);
    let take = Step::Write { replaces: Some("9".into()), taken: true, transitions: 4 };
    assert_eq!(election.read(Instant::now(), Some(&record("9", Some("b")))), take);
}

#[test]
fn a_leader_that_cannot_renew_ends_before_another_may_begin() {
    let start = Instant::now();
    let mut election = Election::new("a".into(), Timing::KUBERNETES);
    election.read(start, None);
    election.written(start, start);
    assert_eq!(election.failed(after(start, 9)), Step::Wait);
    let Step::Lost(why) = election.failed(after(start, 10)) else { unreachable!("it leads no more") };
    assert_eq!(why, "the Lease could not be renewed within 10 s");
    assert_eq!(election.leads_until(), None);
    // An answer that came too late makes no leader.
    let mut late = Election::new("a".into(), Timing::KUBERNETES);
    late.read(start, None);
    assert!(matches!(late.written(start, after(start, 11)), Step::Lost(_)));
}

#[test]
fn a_leader_that_sees_another_ends() {
    let start = Instant::now();
    let mut election = Election::new("a".into(), Timing::KUBERNETES);
    election.read(start, None);
    election.written(start, start);
    let step = election.read(after(start, 1), Some(&record("5", Some("b"))));
    assert_eq!(step, Step::Lost("the Lease is held by b".into()));
}

/// The API server: one Lease, writes checked against its version.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    writes: u64,
}

impl Server {
    fn write(&mut self, replaces: Option<&String>, holder: &str, transitions: u32) -> bool {
        if self.lease.as_ref().map(|lease| &lease.version) != replaces {
            return false;
        }
        self.writes += 1;
        self.lease = Some(Record {
            version: self.writes.to_string(),
            holder: Some(holder.into()),
            duration: Some(Timing::KUBERNETES.duration),
            transitions,
        });
        true
    }
}

struct Candidate {
    name: String,
    election: Election,
    pending: Option<(Instant, Step)>,
}

#[derive(Debug, Clone)]
enum Move {
    /// Time passes: seconds.
    Pass(u64),
    /// A candidate reads; the answer is lost if `false`.
    Read(usize, bool),
    /// A candidate's pending write reaches the server (or not), and its answer the candidate (or not).
    Write(usize, bool, bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let any_move = prop_oneof![
        3 => (0_u64..8).prop_map(Move::Pass),
        4 => (0_usize..3, prop::bool::weighted(0.8)).prop_map(|(who, heard)| Move::Read(who, heard)),
        4 => (0_usize..3, prop::bool::weighted(0.8), prop::bool::weighted(0.8))
            .prop_map(|(who, sent, heard)| Move::Write(who, sent, heard)),
    ];
    prop::collection::vec(any_move, 0..200)
}

proptest! {
    /// Whatever is lost and however late: at no moment do two lead.
    #[test]
    fn two_never_lead(moves in moves()) {
        let mut now = Instant::now();
        let mut server = Server::default();
        let mut candidates: Vec<Candidate> = ["a", "b", "c"].map(|name| Candidate {
            name: name.into(),
            election: Election::new(name.into(), Timing::KUBERNETES),
            pending: None,
        }).into();
        for step in moves {
            match step {
                Move::Pass(seconds) => now += Duration::from_secs(seconds),
                Move::Read(who, heard) => {
                    let candidate = &mut candidates[who];
                    let next = if heard {
                        candidate.election.read(now, server.lease.as_ref())
                    } else {
                        candidate.election.failed(now)
                    };
                    candidate.pending = matches!(next, Step::Write { .. }).then_some((now, next));
                }
                Move::Write(who, sent, heard) => {
                    let candidate = &mut candidates[who];
                    let Some((began, Step::Write { replaces, transitions, .. })) = candidate.pending.take() else {
                        continue;
                    };
                    let accepted = sent && server.write(replaces.as_ref(), &candidate.name, transitions);
                    if accepted && heard {
                        candidate.election.written(began, now);
                    } else {
                        candidate.election.failed(now);
                    }
                }
            }
            let leaders = candidates.iter().filter(|candidate| {
                candidate.election.leads_until().is_some_and(|until| now < until)
            });
            let leaders: Vec<&str> = leaders.map(|candidate| candidate.name.as_str()).collect();
            prop_assert!(leaders.len() <= 1, "{:?} lead", leaders);
        }
    }
}
